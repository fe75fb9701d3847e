import DailyRepsCrypto
import Foundation
import Testing

@testable import DailyRepsBackup

struct StateTests {
    @Test func aStateFile() throws {
        let url = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: url) }
        let file = StateFile(url)
        #expect(try file.load() == nil)
        var state = State(log: log("mine"))
        state.keys = alex
        state.base = Base(sha256: f, sequence: 1, logSha256: f, version: 1)
        state.highest = Seen(sequence: sequences.upperBound, sha256: f)
        state.highestLog = f
        state.unsent = Upload(
            blob: made("mine", 1), sequence: 1, baseSha256: nil, logSha256: f, restored: log("old"), insteadOf: f)
        state.registering = newKeys
        state.change = Change(old: alex, new: newKeys, keepUntil: clock, ahead: 500)
        state.deletion = Deletion(first: clock, registerAfter: clock + 901, ahead: 0)
        state.oldKeys = [OldKeys(keys: thirdKeys, until: clock)]
        state.succeeded = "v1"
        try file.save(state)
        #expect(try file.load() == state)
        try file.save(State(log: Data()))
        #expect(try file.load() == State(log: Data()))
    }

    /// What cannot be saved is not sent.
    @Test func aDeviceThatCannotSave() async throws {
        struct Full: Error {}
        let fake = Fake([])
        var state = State(log: log("mine"))
        state.keys = alex
        state.base = Base(sha256: f, sequence: 1)
        let device = Device(
            server: Server(url: URL(string: "https://backup.example")!, secret: AppSecret("a secret"), transport: fake),
            state: state, merge: joined, save: { _ in throw Full() })
        #expect(await thrown { try await device.sync() } is Full)
        #expect(await thrown { try await device.delete() } is Full)
        #expect(await thrown { try await device.changePassword(to: "another") } is Full)
        #expect(fake.sent.isEmpty)
    }
}
