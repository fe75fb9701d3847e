import DailyRepsCrypto
import Foundation
import OpenAPIRuntime

/// The receipt of a stored version.
public struct Version: Sendable, Equatable {
    /// Counts 1, 2, 3… within one registration.
    public let version: Int64
    /// By the server's clock. Show the date that the log itself has: this one is the server's word.
    public let updatedAt: Date
    /// Bytes of the blob.
    public let size: Int64
    /// The SHA-256 of the blob, as 64 lowercase hex characters.
    public let sha256: String
    /// How often the key had been changed, plus one. It hints which password opens the version.
    public let keyVersion: Int64

    /// Throws if the SHA-256 is none: it may become the base of an upload.
    init(_ receipt: Components.Schemas.Receipt) throws {
        guard receipt.sha256 == receipt.sha256.lowercased(), bytes(hex: receipt.sha256)?.count == 32 else {
            throw BackupError.lost(nil)
        }
        version = receipt.version
        updatedAt = receipt.updatedAt
        size = receipt.size
        sha256 = receipt.sha256
        keyVersion = receipt.keyVersion
    }
}

/// A fetched version.
struct Fetched: Sendable {
    let blob: Data
    let version: Int64
    let sha256: String
}

/// Each operation, once. What is no success is thrown as ``BackupError``. So is a success that is none of the
/// operation's.
extension Client {
    /// Returns whether the account is a new one.
    func register() async throws -> Bool {
        switch try await answer({ try await registerUser() }) {
        case .created: true
        case .ok: false
        default: throw BackupError.lost(nil)
        }
    }

    func store(_ upload: Components.Schemas.BackupUpload) async throws -> Version {
        switch try await answer({ try await storeBackup(body: .json(upload)) }) {
        case .ok(let ok): try Version(ok.body.json)
        case .created(let created): try Version(created.body.json)
        default: throw BackupError.lost(nil)
        }
    }

    /// Returns nil if the version is the one whose entity tag was sent.
    func fetch() async throws -> Components.Schemas.Backup? {
        switch try await answer({ try await fetchBackup() }) {
        case .ok(let ok): try ok.body.json
        case .notModified: nil
        default: throw BackupError.lost(nil)
        }
    }

    func fetch(version: Int64) async throws -> Components.Schemas.Backup? {
        switch try await answer({ try await fetchBackupVersion(path: .init(version: version)) }) {
        case .ok(let ok): try ok.body.json
        case .notModified: nil
        default: throw BackupError.lost(nil)
        }
    }

    func list() async throws -> [Version] {
        switch try await answer({ try await listBackupVersions() }) {
        case .ok(let ok): try ok.body.json.versions.map(Version.init)
        default: throw BackupError.lost(nil)
        }
    }

    func changeKey(_ change: Components.Schemas.StorageKeyChange) async throws -> Version {
        switch try await answer({ try await changeStorageKey(body: .json(change)) }) {
        case .ok(let ok): try Version(ok.body.json)
        default: throw BackupError.lost(nil)
        }
    }

    func delete() async throws {
        guard case .noContent = try await answer({ try await deleteUser() }) else { throw BackupError.lost(nil) }
    }
}

/// Turns whatever a call throws into a ``BackupError``. A `ClientError` would print the request, the new key included.
private func answer<Output>(_ call: () async throws -> Output) async throws -> Output {
    do { return try await call() } catch let error as ClientError {
        if Task.isCancelled { throw CancellationError() }
        throw error.underlyingError as? BackupError ?? BackupError.lost(nil)
    }
}

extension Components.Schemas.Backup {
    /// Returns the version, after checking that it has the size and the SHA-256 of its receipt, and that it is the one
    /// that was asked for.
    func checked(version asked: Int64?, sha256 listed: String?) throws -> Fetched {
        let blob = try bytes(base64: data)
        guard Int64(blob.count) == size, sha256(blob) == self.sha256, asked == nil || asked == version,
            listed == nil || listed == self.sha256
        else { throw DamagedError() }
        return Fetched(blob: blob, version: version, sha256: self.sha256)
    }

    private func sha256(_ blob: Data) -> String { DailyRepsCrypto.sha256(blob) }
}

extension Version {
    /// Whether this is the receipt of these bytes. Otherwise the answer is lost.
    func isReceipt(of blob: Data) -> Bool { size == Int64(blob.count) && sha256 == DailyRepsCrypto.sha256(blob) }
}
