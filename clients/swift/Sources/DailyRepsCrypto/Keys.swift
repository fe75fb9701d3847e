import Foundation

#if canImport(CryptoKit)
    import CryptoKit
#else
    import Crypto
#endif

/// A way from a password to the keys: the number of iterations of PBKDF2, and the infos of HKDF.
public struct Derivation: Sendable, Equatable {
    /// What the contract calls it.
    public let name: String
    /// Of PBKDF2.
    public let iterations: Int
    /// Of HKDF, for the storage key.
    public let storageKeyInfo: String
    /// Of HKDF, for the encryption key.
    public let encryptionKeyInfo: String

    /// Describes a derivation. An app uses ``all``.
    public init(name: String, iterations: Int, storageKeyInfo: String, encryptionKeyInfo: String) {
        self.name = name
        self.iterations = iterations
        self.storageKeyInfo = storageKeyInfo
        self.encryptionKeyInfo = encryptionKeyInfo
    }

    /// The only one so far.
    public static let v1 = Derivation(
        name: "v1", iterations: 600_000,
        storageKeyInfo: "dailyreps/v1/storage-key", encryptionKeyInfo: "dailyreps/v1/encryption-key")

    /// All that this client knows, newest first.
    public static let all = [v1]
}

/// The keys of a username and a password. Printing them shows none.
///
/// Keep them in the Keychain, or in a file that the system protects.
public struct Keys: Sendable, Codable, Hashable, Redacted {
    /// For the server: 64 lowercase hex characters. It is the same for every password and derivation.
    public let userId: String
    /// For the server: 64 lowercase hex characters. Whoever has it, has the account.
    public let storageKey: String
    /// 32 bytes, which never leave the device.
    public let encryptionKey: Data
    /// 32 bytes, which never leave the device. Both other keys follow from it.
    public let masterKey: Data
    /// The name of the derivation.
    public let derivation: String

    /// Derives the keys: SHA-256 of the username, then PBKDF2 (RFC 8018) and HKDF (RFC 5869) with SHA-256.
    ///
    /// This takes some tenths of a second on purpose. Do not call it on the main actor.
    ///
    /// - Throws: ``EmptyUsernameError``.
    public init(username: String, password: String, derivation: Derivation = Derivation.all[0]) throws {
        self.init(userId: try deriveUserId(username), password: password, derivation: derivation)
    }

    /// Derives the keys of another password of a known user.
    ///
    /// - Parameter userId: 64 hex characters.
    public init(userId: String, password: String, derivation: Derivation = Derivation.all[0]) {
        guard let salt = bytes(hex: userId), salt.count == 32 else { preconditionFailure("not a userId") }
        // The salt is the 32 bytes, not their hex.
        let masterKey = pbkdf2(Data(normalizedPassword(password).utf8), salt: salt, iterations: derivation.iterations)
        self.init(userId: userId, masterKey: masterKey, derivation: derivation)
    }

    /// Derives the two keys of a master key, by HKDF-SHA256 with an empty salt.
    public init(userId: String, masterKey: Data, derivation: Derivation = .v1) {
        func expanded(_ info: String) -> Data {
            HKDF<SHA256>.deriveKey(
                inputKeyMaterial: SymmetricKey(data: masterKey), salt: Data(), info: Data(info.utf8),
                outputByteCount: 32
            ).withUnsafeBytes { Data($0) }
        }
        self.userId = userId
        self.masterKey = masterKey
        self.derivation = derivation.name
        storageKey = hex(expanded(derivation.storageKeyInfo))
        encryptionKey = expanded(derivation.encryptionKeyInfo)
    }

    /// For vectors, which have no master key.
    package init(userId: String, storageKey: String = "", encryptionKey: Data = Data()) {
        self.userId = userId
        self.storageKey = storageKey
        self.encryptionKey = encryptionKey
        masterKey = Data()
        derivation = ""
    }
}

/// Returns the userId of a username, as 64 lowercase hex characters.
///
/// - Throws: ``EmptyUsernameError``.
public func deriveUserId(_ username: String) throws -> String {
    // This prefix stays for ever, whatever the derivation.
    sha256(Data("dailyreps/v1/user-id/\(try normalizedUsername(username))".utf8))
}

/// Returns the derivations that a sign-in tries, in this order: from the newest to the one that has succeeded. A server
/// could otherwise answer 401 and get a storage key that is easier to attack.
///
/// - Parameter succeeded: The name of the newest one that has succeeded on this device for this account, if any has.
/// - Throws: ``AppOutdatedError`` if the name is unknown: a newer version of the app moved this account.
public func derivationsToTry(succeeded: String?, of derivations: [Derivation] = Derivation.all) throws -> [Derivation] {
    guard let succeeded else { return derivations }
    guard let last = derivations.firstIndex(where: { $0.name == succeeded }) else { throw AppOutdatedError() }
    return Array(derivations[...last])
}
