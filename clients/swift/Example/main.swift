import DailyRepsBackup
import DailyRepsCrypto
import Foundation

// A log is whatever bytes an app chooses. Here, each line is a workout. To merge is to keep what either log has.
@Sendable func merge(_ mine: Data, _ theirs: Data) -> Data {
    let lines = Set([mine, theirs].flatMap { String(decoding: $0, as: UTF8.self).split(separator: "\n") })
    return Data(lines.sorted().joined(separator: "\n").utf8)
}

// A device saves its state in a file of its own, always as a whole.
func device(_ name: String, on server: Server, in folder: URL) throws -> Device {
    let file = StateFile(folder.appendingPathComponent("\(name).plist"))
    return Device(
        server: server,
        state: try file.load() ?? State(log: Data()),
        merge: merge,
        save: file.save,
        tell: { verdict in print("Tell the person: the server gave out an older state (\(verdict)).") })
}

let environment = ProcessInfo.processInfo.environment
let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
let url = environment["BACKUP_URL"].flatMap(URL.init(string:)) ?? URL(string: "http://127.0.0.1:8080")!
let parts = (environment["APP_SECRET_KEY"] ?? "").split(separator: ":").map(String.init)
let server = Server(url: url, secret: AppSecret(keyid: parts.count == 2 ? parts[0] : "app", parts.last ?? ""))
let username = "Anna \(UUID().uuidString)"

// On a phone: register, log a workout, store.
let phone = try device("phone", on: server, in: folder)
try await phone.register(username: username, password: "correct horse battery staple")
print("Write this down:", await phone.recoveryCode ?? "")
try await phone.update { log in log + Data("squat".utf8) }
try await phone.sync()

// On a tablet, the username and the password are enough.
let tablet = try device("tablet", on: server, in: folder)
try await tablet.signIn(username: username, password: "correct horse battery staple")
try await tablet.sync()
print("On the tablet:", String(decoding: await tablet.log, as: UTF8.self))

// Both change their log. Whoever comes second fetches, merges, and stores again.
try await tablet.update { log in log + Data("\nbench press".utf8) }
try await tablet.sync()
try await phone.update { log in log + Data("\ndeadlift".utf8) }
try await phone.sync()
print("On the phone:", String(decoding: await phone.log, as: UTF8.self).split(separator: "\n").joined(separator: ", "))

// An older version becomes the latest again. The others stay in the list.
let versions = try await phone.versions()
try await phone.restore(versions.last!.version)
print("Restored:", String(decoding: await phone.log, as: UTF8.self))

// The password changes. The recovery code does, too.
do {
    try await phone.changePassword(to: "a longer and better passphrase")
    print("Write this down instead:", await phone.recoveryCode ?? "")
} catch BackupError.lost {
    print("Tell the person: the new password is not in force yet. The next sync() goes on with it.")
}

// While the app is suspended, the system stores the log.
try await phone.update { log in log + Data("\nrow".utf8) }
try await storeInBackground(phone, file: folder.appendingPathComponent("body"))
print("All is stored:", await phone.state.isStored)

try await phone.delete()
try FileManager.default.removeItem(at: folder)
print("Everything went as it should.")
