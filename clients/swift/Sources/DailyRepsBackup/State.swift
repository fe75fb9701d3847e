import DailyRepsCrypto
import Foundation

/// What a device saves, always as a whole: the log, the keys, and what it knows of the server. It belongs to one
/// userId, and survives a sign-out. Printing it shows nothing.
public struct State: Sendable, Codable, Equatable, Redacted {
    /// The keys that are in force, once somebody has signed in or registered.
    public internal(set) var keys: Keys?
    /// The log, in whatever form the app has chosen.
    public internal(set) var log: Data
    /// The version that the log was made from.
    var base: Base?
    var highest = Seen.nothing
    /// The SHA-256 of the log in the version `highest`.
    var highestLog: String?
    var unsent: Upload?
    /// The keys of a registration that has no answer so far.
    var registering: Keys?
    /// A change of the password that may have happened or not.
    var change: Change?
    var deletion: Deletion?
    /// Keys of before a change, newest last, in case the server is restored from a snapshot.
    var oldKeys: [OldKeys] = []
    /// The name of the newest derivation that has succeeded on this device.
    var succeeded: String?

    /// - Parameter log: The log of a device that knows nothing so far, in the app's own form. It may be one without
    ///   workouts.
    public init(log: Data) { self.log = log }

    /// Whether the server acknowledged the log as it is now.
    public var isStored: Bool { base != nil && base?.logSha256 == sha256(log) }
    /// Whether a change of the password is not settled: tell the person that the new one is not in force.
    public var hasUnsettledChange: Bool { change != nil }
    /// Whether a deletion was begun, and perhaps done. Nothing else is sent for this account, until it is registered
    /// again.
    public var isBeingDeleted: Bool { deletion != nil }
}

/// A stored version that a log was made from. If it cannot be decrypted, only `sha256` is known.
struct Base: Sendable, Codable, Equatable {
    let sha256: String
    var sequence: UInt64?
    var logSha256: String?
    var version: Int64?

    /// What names the version in `If-None-Match`.
    var entityTag: String? { version.map { "\"\($0)-\(sha256)\"" } }
}

/// A blob that was sent. After a lost answer, the very same bytes are sent again.
struct Upload: Sendable, Codable, Equatable, Redacted {
    let blob: Data
    let sequence: UInt64
    let baseSha256: String?
    let logSha256: String
    /// If the upload restores an older version: its log, which then replaces the log with the digest `insteadOf`.
    var restored: Data?
    var insteadOf: String?

    var body: Components.Schemas.BackupUpload { .init(data: blob.base64EncodedString(), baseSha256: baseSha256) }
    var seen: Seen { Seen(sequence: sequence, sha256: sha256(blob)) }
}

/// Both keys are kept at least until `keepUntil`. Times are Unix seconds of the device's clock. `ahead` is the greatest
/// number of seconds that this clock was ahead of the server's at any attempt; `keepUntil` has it included.
struct Change: Sendable, Codable, Equatable, Redacted {
    let old: Keys
    let new: Keys
    var keepUntil: Double
    var ahead: Double
}

/// A deletion that was begun at `first`. The userId may be registered again at `registerAfter`.
struct Deletion: Sendable, Codable, Equatable {
    let first: Double
    var registerAfter: Double
    var ahead: Double
}

struct OldKeys: Sendable, Codable, Equatable, Redacted {
    let keys: Keys
    let until: Double
}

/// A file that keeps a ``State``. The system protects it: it can be read after the first unlock since the device
/// started, so a background upload can go on.
public struct StateFile: Sendable {
    let url: URL

    /// - Parameter url: Where the file is, or will be.
    public init(_ url: URL) { self.url = url }

    /// Returns the saved state, or nil if there is none.
    public func load() throws -> State? {
        guard FileManager.default.fileExists(atPath: url.path) else { return nil }
        return try PropertyListDecoder().decode(State.self, from: Data(contentsOf: url))
    }

    /// Replaces the saved state: all of it or nothing.
    public func save(_ state: State) throws {
        let encoder = PropertyListEncoder()
        encoder.outputFormat = .binary
        try encoder.encode(state).write(to: url, options: options)
    }

    private var options: Data.WritingOptions {
        #if canImport(Darwin)
            [.atomic, .completeFileProtectionUntilFirstUserAuthentication]
        #else
            .atomic
        #endif
    }
}
