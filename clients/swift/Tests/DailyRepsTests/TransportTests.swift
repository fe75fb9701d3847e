import DailyRepsCrypto
import Foundation
import Testing

@testable import DailyRepsBackup

#if canImport(Glibc)
    import Glibc
    private let stream = Int32(SOCK_STREAM.rawValue)
#else
    import Darwin
    private let stream = SOCK_STREAM
#endif

/// The transport that an app has, in front of servers and proxies that do what they should not.
struct TransportTests {
    @Test func aRedirect() async throws {
        let elsewhere = try TinyServer(answer("200 OK", "application/json", #"{"versions":[]}"#))
        let proxy = try TinyServer(
            "HTTP/1.1 302 Found\r\nLocation: \(elsewhere.url)/api/backup/versions\r\nContent-Length: 0\r\n\r\n")
        #expect(await isLost { _ = try await device(proxy).versions() })
        #expect(proxy.requests.count == 4 && elsewhere.requests.isEmpty)
    }

    @Test func anAnswerThatBreaksOff() async throws {
        let server = try TinyServer(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
        #expect(await isLost { _ = try await device(server).versions() })
    }

    @Test func nobodyListens() async throws {
        let server = try TinyServer("")
        server.stop()
        #expect(await isLost { _ = try await device(server).versions() })
    }

    @Test func aProxysPage() async throws {
        let server = try TinyServer(answer("502 Bad Gateway", "text/html", "<h1>Bad Gateway</h1>"))
        #expect(await isLost { _ = try await device(server).versions() })
        #expect(server.requests.allSatisfy { $0.contains("GET /api/backup/versions HTTP/1.1") })
    }

    // FoundationNetworking hangs at a 401 with a challenge, before Swift 6.3.2.
    #if canImport(Darwin)
        @Test func aChallenge() async throws {
            let server = try TinyServer(
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"backup\"\r\nContent-Type: application/problem+json\r\n"
                    + "Content-Length: 30\r\n\r\n{\"code\":\"credentials_invalid\" }")
            var state = State(log: Data(repeating: 7, count: 5_000_000))
            state.keys = alex
            state.base = Base(sha256: f, sequence: 1)
            let error = await thrown { try await device(server, state).sync() } as? BackupError
            #expect(error?.code == "credentials_invalid" && server.requests.count == 1)
        }
    #endif

    private func answer(_ status: String, _ type: String, _ body: String) -> String {
        "HTTP/1.1 \(status)\r\nContent-Type: \(type)\r\nContent-Length: \(body.utf8.count)\r\n\r\n\(body)"
    }

    private func device(_ server: TinyServer, _ state: State? = nil) -> Device {
        var new = State(log: Data())
        new.keys = alex
        return Device(
            server: Server(url: URL(string: server.url)!, secret: AppSecret("a secret")), state: state ?? new,
            merge: joined,
            save: { _ in }, pause: { _ in })
    }
}

/// Gives every connection the same answer, and closes it.
private final class TinyServer: Sendable {
    struct Failed: Error {}

    let url: String
    private let descriptor: Int32
    private let heads = Box<[String]>([])
    var requests: [String] { heads.value }

    init(_ answer: String) throws {
        let descriptor = socket(AF_INET, stream, 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = inet_addr("127.0.0.1")
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let bound = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, size) == 0 && listen(descriptor, 16) == 0
                    && getsockname(descriptor, $0, &size) == 0
            }
        }
        guard bound else { throw Failed() }
        self.descriptor = descriptor
        url = "http://127.0.0.1:\(UInt16(bigEndian: address.sin_port))"
        Thread.detachNewThread { [heads] in
            while true {
                let connection = accept(descriptor, nil, nil)
                guard connection >= 0 else { return }
                var buffer = [UInt8](repeating: 0, count: 65_536)
                let count = recv(connection, &buffer, buffer.count, 0)
                heads.change { $0.append(String(decoding: buffer[..<max(count, 0)], as: UTF8.self)) }
                _ = answer.withCString { send(connection, $0, strlen($0), 0) }
                shutdown(connection, Int32(SHUT_WR))
                while recv(connection, &buffer, buffer.count, 0) > 0 {}
                close(connection)
            }
        }
    }

    func stop() {
        shutdown(descriptor, Int32(SHUT_RDWR))
        close(descriptor)
    }

    deinit { stop() }
}
