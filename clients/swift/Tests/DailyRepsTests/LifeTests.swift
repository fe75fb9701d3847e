import DailyRepsCrypto
import Foundation
import HTTPTypes
import OpenAPIRuntime
import Testing

@testable import DailyRepsBackup

#if canImport(FoundationNetworking)
    import FoundationNetworking
#endif

/// Real lives, in front of the server that `BACKUP_URL` names, with its `APP_SECRET_KEY` (`secret` or `keyid:secret`).
private let environment = ProcessInfo.processInfo.environment

@Suite(.enabled(if: environment["BACKUP_URL"] != nil, "not run: needs a server, whose address BACKUP_URL gives"))
struct LifeTests {
    let url: URL
    let secret: AppSecret
    let username = "swift-\(UUID().uuidString)"
    let password = "correct horse battery staple"

    init() throws {
        url = try #require(environment["BACKUP_URL"].flatMap(URL.init(string:)))
        let parts = try #require(environment["APP_SECRET_KEY"]).split(separator: ",")[0].split(separator: ":")
        secret = AppSecret(keyid: parts.count == 2 ? String(parts[0]) : "app", String(parts.last ?? ""))
    }

    /// The default transport where it can read a 401, and one of the tests' own elsewhere.
    var server: Server {
        #if canImport(Glibc)
            Server(url: url, secret: secret, transport: SocketTransport())
        #else
            Server(url: url, secret: secret)
        #endif
    }

    func device(
        _ text: String = "", on server: Server? = nil, state: State? = nil, saved: Box<State?> = Box(nil),
        told: Box<[Verdict]> = Box([]), clockIsSlowBy slow: Double = 0
    ) -> Device {
        Device(
            server: server ?? self.server, state: state ?? State(log: log(text)), merge: union,
            save: { saved.value = $0 },
            tell: { verdict in told.change { $0.append(verdict) } }, now: { Date().timeIntervalSince1970 - slow },
            pause: { _ in })
    }

    // client.no-false-alarm
    @Test func aWholeLife() async throws {
        let phone = device("squat")
        try await phone.register(username: username, password: password)
        try await phone.register(username: username, password: password)  // a repeat is harmless
        let code = try #require(await phone.recoveryCode)
        #expect(try await phone.versions().isEmpty)
        try await phone.sync()
        #expect(try await phone.versions().map(\.version) == [1])

        // The clock of the tablet is two hours slow.
        let told = Box<[Verdict]>([])
        let tablet = device("bench", told: told, clockIsSlowBy: 7200)
        #expect(
            await self.code { try await tablet.signIn(username: username, password: "another") }
                == "credentials_invalid")
        try await tablet.signIn(username: username.uppercased(), password: password)
        #expect(await tablet.clockOffset > 7100)
        try await tablet.sync()
        #expect(text(await tablet.log) == "bench squat")

        // Both have changed. The phone gets a conflict, fetches, merges, and stores again.
        try await phone.update { union($0, log("row")) }
        try await phone.sync()
        #expect(text(await phone.log) == "bench row squat")
        try await phone.sync()  // 304
        #expect(try await phone.versions().map(\.version) == [3, 2, 1])

        // A new phone, with the recovery code.
        let newPhone = device()
        try await newPhone.signIn(username: username, recoveryCode: code.lowercased())
        try await newPhone.sync()
        #expect(text(await newPhone.log) == "bench row squat")

        // The password changes. The tablet has to sign in again.
        try await newPhone.changePassword(to: "a longer and better passphrase")
        #expect(await newPhone.recoveryCode != code)
        #expect(await self.code { try await tablet.sync() } == "credentials_invalid")
        #expect(try await tablet.afterRefusal() == .ask)
        try await tablet.signIn(username: username, password: "a longer and better passphrase")
        try await tablet.sync()
        #expect(try await tablet.versions().map(\.keyVersion) == [2, 1, 1, 1])

        // Version 1, of before the change: the tablet has kept its keys.
        #expect(text(try await tablet.openVersion(1)) == "squat")
        try await tablet.restore(1)
        #expect(text(await tablet.log) == "squat")
        try await newPhone.sync()
        #expect(text(await newPhone.log) == "squat")
        #expect(told.value.isEmpty)

        // Nothing on the server: not registered, registered again, deleted.
        try await newPhone.delete()
        #expect(await self.code { _ = try await tablet.versions() } == "credentials_invalid")
        let early = device()
        #expect(
            await self.code { try await early.register(username: username, password: password) } == "recently_deleted")
        #expect(await early.state.registering == nil)
        #expect(await newPhone.state.isBeingDeleted)
        #expect(text(await newPhone.log) == "squat")
    }

    /// Every answer to a change is lost. It happened nevertheless, the first time.
    @Test func lostAnswers() async throws {
        let losing = Losing(server.transport)
        let saved = Box<State?>(nil)
        let phone = device("squat", on: Server(url: url, secret: secret, transport: losing), saved: saved)
        losing.lose = ["POST /api/register"]
        try await phone.register(username: username, password: password)
        losing.lose = ["POST /api/backup"]
        try await phone.sync()
        #expect(try await phone.versions().map(\.version) == [1])

        losing.lose = Array(repeating: "POST /api/backup", count: 4)
        try await phone.update { union($0, log("row")) }
        #expect(await isLost { try await phone.sync() })
        let restarted = device(on: server, state: saved.value, saved: saved)
        try await restarted.sync()
        #expect(try await restarted.versions().map(\.version) == [2, 1])

        let changing = device(on: Server(url: url, secret: secret, transport: losing), state: saved.value, saved: saved)
        losing.lose = ["PUT /api/user/storage-key"]
        try await changing.changePassword(to: "a longer and better passphrase")
        #expect(try await changing.versions().map(\.keyVersion) == [2, 1, 1])
        losing.lose = ["DELETE /api/user"]
        try await changing.delete()
        #expect(losing.lose.isEmpty)
    }

    /// The transport that an app has, where no answer is a 401.
    @Test func theDefaultTransport() async throws {
        let server = Server(url: url, secret: secret)
        let big = String(repeating: "workout ", count: 38_000)
        let phone = device(big, on: server)
        try await phone.register(username: username, password: password)
        try await phone.sync()
        let tablet = device(on: server)
        try await tablet.signIn(username: username, password: password)
        try await tablet.sync()
        #expect(await tablet.state.isStored)
        try await tablet.sync()  // 304
        try await phone.delete()
    }

    @Test func aLogOfFiveMebibytes() async throws {
        let phone = Device(
            server: server, state: State(log: Data(repeating: 0xAB, count: largestLog)), merge: { mine, _ in mine },
            save: { _ in })
        try await phone.register(username: username, password: password)
        try await phone.sync()
        #expect(try await phone.versions().map(\.size) == [5_242_880])
        try await phone.delete()
    }

    @Test func anUploadFromAFile() async throws {
        let file = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: file) }
        let phone = device("squat")
        try await phone.register(username: username, password: password)
        let request = try #require(try await phone.backgroundUpload(to: file))
        let (body, response) = try await upload(request, file)
        #expect((response as? HTTPURLResponse)?.statusCode == 201)
        try await phone.finishBackgroundUpload(response, body: body)
        #expect(await phone.state.isStored)
        #expect(try await phone.backgroundUpload(to: file) == nil)
        try await phone.delete()
    }

    @Test func aBackgroundUpload() async throws {
        let file = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        let phone = device("squat")
        try await phone.register(username: username, password: password)
        let (outcomes, end) = AsyncStream.makeStream(of: Result<Void, any Error>.self)
        let background = BackgroundUpload(of: phone, file: file, configuration: .default, ended: { end.yield($0) })
        #expect(try await background.start())
        for await outcome in outcomes {
            #expect(throws: Never.self) { try outcome.get() }
            break
        }
        #expect(await phone.state.isStored)
        #expect(try await !background.start())
        #expect(!FileManager.default.fileExists(atPath: file.path))
        try await phone.delete()
    }

    private func upload(_ request: URLRequest, _ file: URL) async throws -> (Data, URLResponse?) {
        try await withCheckedThrowingContinuation { done in
            URLSession.shared.uploadTask(with: request, fromFile: file) { body, response, error in
                if let error {
                    done.resume(throwing: error)
                } else {
                    done.resume(returning: (body ?? Data(), response))
                }
            }.resume()
        }
    }

    private func code(_ run: () async throws -> Void) async -> String? { (await thrown(run) as? BackupError)?.code }
}

/// The words that either log has, in order.
@Sendable private func union(_ mine: Data, _ theirs: Data) -> Data {
    let words = Set((text(mine) + " " + text(theirs)).split(separator: " "))
    return log(words.sorted().joined(separator: " "))
}

/// Sends each request, and loses the answers to these.
private final class Losing: ClientTransport, @unchecked Sendable {
    private let transport: any ClientTransport
    private let box = Box<[String]>([])
    var lose: [String] {
        get { box.value }
        set { box.value = newValue }
    }

    init(_ transport: any ClientTransport) { self.transport = transport }

    func send(_ request: HTTPRequest, body: HTTPBody?, baseURL: URL, operationID: String) async throws -> (
        HTTPResponse, HTTPBody?
    ) {
        let answer = try await transport.send(request, body: body, baseURL: baseURL, operationID: operationID)
        let name = "\(request.method.rawValue) \(request.path ?? "")"
        if lose.first == name {
            lose.removeFirst()
            throw Fake.NoAnswer()
        }
        return answer
    }
}
