import DailyRepsCrypto
import Foundation
import HTTPTypes
import OpenAPIRuntime
import OpenAPIURLSession

#if canImport(FoundationNetworking)
    import FoundationNetworking
#endif

/// Where a server is, and what it takes to talk to it.
public struct Server: Sendable {
    let url: URL
    let secret: AppSecret
    let transport: any ClientTransport

    /// - Parameters:
    ///   - url: The origin of the server, for example `https://backup.example`. A path is ignored: the contract has
    ///     none.
    ///   - secret: The app's secret, which the operator of the server gives to its publisher.
    ///   - transport: Without it, a `URLSession` of its own, which keeps no credentials and follows no redirect.
    public init(url: URL, secret: AppSecret, transport: (any ClientTransport)? = nil) {
        var origin = URLComponents()
        origin.scheme = url.scheme
        origin.host = url.host
        origin.port = url.port
        guard let url = origin.url, url.host != nil else {
            preconditionFailure("the URL of a server has a scheme and a host")
        }
        self.url = url
        self.secret = secret
        self.transport = transport ?? urlSessionTransport()
    }

    /// Returns a client that makes one attempt.
    func client(_ proofs: Proofs?, ifNoneMatch: String? = nil) -> Client {
        Client(
            serverURL: url, configuration: Configuration(jsonEncodingOptions: [.sortedKeys, .withoutEscapingSlashes]),
            transport: transport, middlewares: [Exchange(proofs: proofs, ifNoneMatch: ifNoneMatch)])
    }
}

private func urlSessionTransport() -> URLSessionTransport {
    let configuration = URLSessionConfiguration.ephemeral
    configuration.urlCache = nil
    configuration.urlCredentialStorage = nil
    configuration.httpShouldSetCookies = false
    configuration.timeoutIntervalForRequest = 60  // seconds without a byte
    configuration.timeoutIntervalForResource = 360
    let session = URLSession(configuration: configuration, delegate: Direct(), delegateQueue: nil)
    // The body is in memory anyway, because it is signed. A streamed one could not be sent again after a 401.
    return URLSessionTransport(configuration: .init(session: session, httpBodyProcessingMode: .buffered))
}

/// Takes each answer as it is. A redirect would give the credentials to another address.
private final class Direct: NSObject, URLSessionTaskDelegate {
    func urlSession(
        _ session: URLSession, task: URLSessionTask, willPerformHTTPRedirection response: HTTPURLResponse,
        newRequest request: URLRequest, completionHandler: @escaping @Sendable (URLRequest?) -> Void
    ) { completionHandler(nil) }
}

/// What proves a request: who sends it, with which app, and when (Unix seconds).
struct Proofs: Sendable {
    let keys: Keys
    let secret: AppSecret
    let created: Int

    /// Returns the four headers. `body` is what will be sent.
    func headers(method: String, path: String, body: Data) -> [(name: String, value: String)] {
        proofs(
            method: method, path: path, body: body, userId: keys.userId, storageKey: keys.storageKey, secret: secret,
            created: created)
    }
}

/// One request and its answer: signs what is sent, and lets only an answer of the contract reach the generated client.
struct Exchange: ClientMiddleware {
    let proofs: Proofs?
    let ifNoneMatch: String?

    /// More than any backup, and less than the memory of a phone.
    private static let largestAnswer = 64 << 20

    func intercept(
        _ request: HTTPRequest, body: HTTPBody?, baseURL: URL, operationID: String,
        next: @Sendable (HTTPRequest, HTTPBody?, URL) async throws -> (HTTPResponse, HTTPBody?)
    ) async throws -> (HTTPResponse, HTTPBody?) {
        var request = request
        var sent = Data()
        if let body { sent = try await Data(collecting: body, upTo: 8_388_608) }
        for (name, value) in proofs?.headers(method: request.method.rawValue, path: request.path ?? "", body: sent)
            ?? []
        {
            request.headerFields[HTTPField.Name(name)!] = value
        }
        // The generated client would encode the quotes of a header parameter.
        request.headerFields[.ifNoneMatch] = ifNoneMatch
        let (response, answer) = try await next(request, body == nil ? nil : HTTPBody(sent), baseURL)
        var received = Data()
        if let answer { received = try await Data(collecting: answer, upTo: Self.largestAnswer) }
        let status = response.status.code
        let isOfTheContract =
            switch status {
            case 204: true
            case 200..<300: mediaType(response.headerFields[.contentType]) == "application/json"
            case 304: ifNoneMatch != nil
            default: false
            }
        guard isOfTheContract else {
            throw error(
                status: status, header: { HTTPField.Name($0).flatMap { response.headerFields[$0] } }, body: received)
        }
        return (response, HTTPBody(received))
    }
}

/// The times that the contract knows, in Unix seconds.
private let times = 0...9_007_199_254_740_991

private func mediaType(_ header: String?) -> String? {
    header?.prefix { $0 != ";" }.trimmingCharacters(in: .whitespaces).lowercased()
}

/// Returns what an answer means that is no success.
func error(status: Int, header: (String) -> String?, body: Data) -> BackupError {
    struct Members: Decodable {
        let code: String
        let serverTime: Int?
    }
    guard status >= 400, mediaType(header("Content-Type")) == "application/problem+json",
        let members = try? JSONDecoder().decode(Members.self, from: body), Problem.isCode(members.code)
    else { return .lost(nil) }
    let problem = Problem(
        code: members.code, status: status, retryAfter: header("Retry-After").flatMap { Int($0) },
        requestId: header("X-Request-Id"), serverTime: members.serverTime.flatMap { times.contains($0) ? $0 : nil })
    let mayHaveBeenDone =
        status >= 500 && !["account_damaged", "backup_damaged", "storage_full"].contains(problem.code)
    return mayHaveBeenDone ? .lost(problem) : .refused(problem)
}
