import DailyRepsCrypto
import Foundation
import HTTPTypes
import OpenAPIRuntime
import Testing

@testable import DailyRepsBackup

/// A server that gives these answers, in this order, and keeps what was sent.
final class Fake: ClientTransport, @unchecked Sendable {
    struct Sent: Sendable {
        let method: String
        let path: String
        let headers: HTTPFields
        let body: Data
        var json: [String: String] { (try? JSONDecoder().decode([String: String].self, from: body)) ?? [:] }
        var blob: Data { Data(base64Encoded: json["data"] ?? "")! }
    }

    struct Answer: Sendable {
        let status: Int
        var body = Data()
        var headers: [String: String] = [:]
        /// The request was done, or not, and its answer is lost.
        static let lost = Answer(status: 0)
    }

    struct NoAnswer: Error {}

    private let lock = NSLock()
    private var answers: [Reply]
    private var requests: [Sent] = []
    private var atOnce = 0
    private var most = 0
    /// How many requests were under way at the same time.
    var mostAtOnce: Int { lock.withLock { most } }
    var sent: [Sent] { lock.withLock { requests } }

    init(_ answers: [Reply]) { self.answers = answers }

    func send(_ request: HTTPRequest, body: HTTPBody?, baseURL: URL, operationID: String) async throws -> (
        HTTPResponse, HTTPBody?
    ) {
        var bytes = Data()
        if let body { bytes = try await Data(collecting: body, upTo: .max) }
        let sent = Sent(
            method: request.method.rawValue, path: request.path ?? "", headers: request.headerFields, body: bytes)
        lock.withLock {
            atOnce += 1
            most = max(most, atOnce)
        }
        defer { lock.withLock { atOnce -= 1 } }
        try? await Task.sleep(nanoseconds: 1_000_000)
        let answer = lock.withLock {
            requests.append(sent)
            if answers.isEmpty { Issue.record("one request too many: \(sent.method) \(sent.path)") }
            return answers.isEmpty ? lost : answers.removeFirst()
        }.answer(sent)
        if answer.status == 0 { throw NoAnswer() }
        var response = HTTPResponse(status: .init(code: answer.status))
        for (name, value) in answer.headers { response.headerFields[HTTPField.Name(name)!] = value }
        return (response, answer.body.isEmpty ? nil : HTTPBody(answer.body))
    }
}

/// What a fake server answers to a request.
struct Reply: Sendable {
    let answer: @Sendable (Fake.Sent) -> Fake.Answer
    init(_ answer: @escaping @Sendable (Fake.Sent) -> Fake.Answer) { self.answer = answer }
    /// An answer without a body.
    init(_ status: Int, _ headers: [String: String] = [:]) { answer = { _ in .init(status: status, headers: headers) } }
}

let lost = Reply { _ in .lost }
let notModified = Reply(304)

func json(_ status: Int, _ text: String) -> Reply {
    Reply { _ in .init(status: status, body: Data(text.utf8), headers: ["Content-Type": "application/json"]) }
}

func html(_ status: Int) -> Reply {
    Reply { _ in .init(status: status, body: Data("<h1>Bad Gateway</h1>".utf8), headers: ["Content-Type": "text/html"])
    }
}

func problem(_ status: Int, _ code: String, _ more: String = "", retryAfter: Int? = nil) -> Reply {
    Reply { _ in
        var headers = ["Content-Type": "application/problem+json", "X-Request-Id": "0123456789abcdef"]
        headers["Retry-After"] = retryAfter.map { "\($0)" }
        let body = #"{"type":"x:y","title":"t","detail":"d","status":\#(status),"code":"\#(code)"\#(more)}"#
        return .init(status: status, body: Data(body.utf8), headers: headers)
    }
}

let no = problem(401, "credentials_invalid")
let conflict = problem(409, "version_conflict", #","currentVersion":2"#)

func receipt(_ blob: Data, _ version: Int = 1, keyVersion: Int = 1) -> String {
    #"{"version":\#(version),"updatedAt":"2026-11-24T09:00:00Z","size":\#(blob.count),"sha256":"\#(sha256(blob))","#
        + #""keyVersion":\#(keyVersion)}"#
}

/// The receipt of what was sent.
func stored(_ version: Int, status: Int = 201, keyVersion: Int = 1) -> Reply {
    Reply { json(status, receipt($0.blob, version, keyVersion: keyVersion)).answer($0) }
}

func list(_ receipts: String...) -> Reply { json(200, #"{"versions":[\#(receipts.joined(separator: ","))]}"#) }

func backup(_ blob: Data, _ version: Int) -> Reply {
    json(200, receipt(blob, version).dropLast() + #","data":"\#(blob.base64EncodedString())"}"#)
}

// MARK: A device

/// `alex`, with the password `correct horse battery staple`.
let alex = Keys(
    userId: "466debb7ac770c3e11cdf7f080d26bca24dce0f112dec90c3df7f3c2eaf03124",
    masterKey: bytes(hex: "6468111e80ef9c100cb73f7420ba985cc8131f5b3ba32ed1e9e87e5994c6d601")!)
/// Keys of other passwords of hers. Which, does not matter.
let newKeys = Keys(userId: alex.userId, masterKey: Data(repeating: 2, count: 32))
let thirdKeys = Keys(userId: alex.userId, masterKey: Data(repeating: 3, count: 32))
let clock = 1_795_510_800.0
let f = String(repeating: "f", count: 64)

func log(_ text: String) -> Data { Data(text.utf8) }
func text(_ log: Data) -> String { String(decoding: log, as: UTF8.self) }
@Sendable func joined(_ mine: Data, _ theirs: Data) -> Data { mine == theirs ? mine : mine + Data("+".utf8) + theirs }

func made(_ text: String, _ sequence: UInt64, base: String? = nil, keys: Keys = alex) -> Data {
    try! encrypt(log(text), with: keys, sequence: sequence, baseSha256: base)
}

/// A value that several threads may change.
final class Box<Value: Sendable>: @unchecked Sendable {
    private let lock = NSLock()
    private var held: Value
    init(_ value: Value) { held = value }
    var value: Value {
        get { lock.withLock { held } }
        set { lock.withLock { held = newValue } }
    }
    func change(_ change: (inout Value) -> Void) { lock.withLock { change(&held) } }
}

/// A device in front of a fake server, and all that comes out of it.
struct Scene: Sendable {
    let device: Device
    let fake: Fake
    let saved = Box<[State]>([])
    let told = Box<[Verdict]>([])
    let time: Box<Double>
    let pauses = Box<[Double]>([])

    init(
        _ answers: Reply..., log text: String = "mine", at time: Double = clock,
        before change: (inout State) -> Void = { _ in },
        merge: @escaping @Sendable (Data, Data) throws -> Data = joined
    ) {
        var state = State(log: Data(text.utf8))
        state.keys = alex
        change(&state)
        fake = Fake(answers)
        self.time = Box(time)
        let (saved, told, pauses, clock) = (saved, told, pauses, self.time)
        device = Device(
            server: Server(
                url: URL(string: "https://backup.example")!,
                secret: AppSecret("an-example-secret-for-the-documentation"),
                transport: fake),
            state: state, merge: merge, save: { state in saved.change { $0.append(state) } },
            tell: { verdict in told.change { $0.append(verdict) } }, now: { clock.value },
            pause: { seconds in pauses.change { $0.append(seconds) } })
    }

    var sent: [Fake.Sent] { fake.sent }
    var state: State { get async { await device.state } }
}

/// Returns the error that a function throws.
func thrown(_ run: () async throws -> Void) async -> (any Error)? {
    do { try await run() } catch { return error }
    return nil
}

func code(_ run: () async throws -> Void) async -> String? { (await thrown(run) as? BackupError)?.code }
func isLost(_ run: () async throws -> Void) async -> Bool { (await thrown(run) as? BackupError)?.isLost == true }
