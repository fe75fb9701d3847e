import DailyRepsCrypto
import Foundation
import Testing

@testable import DailyRepsBackup

/// No key, credential or blob shows in what prints a value.
struct SecrecyTests {
    static let secrets = [
        alex.storageKey, hex(alex.encryptionKey), hex(alex.masterKey), alex.userId, newKeys.storageKey, "bytes",
        "an-example",
        alex.encryptionKey.base64EncodedString(),
    ]

    func printed(_ value: Any) -> String {
        var dumped = ""
        dump(value, to: &dumped)
        return "\(value) \(String(reflecting: value)) \(dumped) \((value as? any Error)?.localizedDescription ?? "")"
    }

    func hidden(_ value: Any) -> Bool { !Self.secrets.contains { printed(value).contains($0) } }

    @Test func values() throws {
        let upload = Upload(blob: made("mine", 1), sequence: 1, baseSha256: nil, logSha256: f)
        var state = State(log: log("mine"))
        state.keys = alex
        state.unsent = upload
        let change = Change(old: alex, new: newKeys, keepUntil: 0, ahead: 0)
        for value in [alex, state, upload, change, AppSecret("an-example"), try decrypt(upload.blob, with: alex)]
            as [Any]
        {
            #expect(hidden(value))
        }
        #expect(hidden(Optional(alex) as Any) && hidden([alex]) && hidden(["keys": state]))
    }

    /// Whoever answers may repeat what was sent: in the body, in the code, in a header.
    static let answers: [String: Reply] = [
        "a page": html(502),
        "none": lost,
        "an error that repeats the body": Reply { sent in
            .init(status: 502, body: sent.body, headers: ["Content-Type": "application/json"])
        },
        "a success that repeats the body": Reply { sent in
            .init(status: 200, body: sent.body, headers: ["Content-Type": "application/json"])
        },
        "a problem that repeats everything": Reply { sent in
            let body = #"{"code":"\#(sent.json["storageKey"] ?? "")","detail":"\#(sent.json["data"] ?? "")"}"#
            return .init(
                status: 400, body: Data(body.utf8),
                headers: ["Content-Type": "application/problem+json", "X-Request-Id": sent.headers[.authorization]!])
        },
    ]

    @Test(arguments: answers.keys.sorted())
    func errors(_ name: String) async throws {
        let answer = Self.answers[name]!
        let scene = Scene(answer, no, list(), no, list()) { state in
            state.base = Base(sha256: f, sequence: 1, logSha256: "")
        }
        let error = try #require(
            await thrown { try await scene.device.changePassword(to: "a longer and better passphrase") })
        let sent = scene.sent[0]
        let keys = try #require(await scene.state.change)
        #expect(hidden(error) && printed(error).count < 1000)
        for secret in [
            sent.json["storageKey"]!, sent.json["data"]!, keys.new.storageKey, sent.headers[.authorization]!,
        ] {
            #expect(!printed(error).contains(secret))
        }
    }

    @Test func sentences() {
        for error in [BackupError.misfit, .lost(nil), .logTooLarge, .notListed] {
            #expect(error.localizedDescription.hasSuffix("."))
        }
    }
}
