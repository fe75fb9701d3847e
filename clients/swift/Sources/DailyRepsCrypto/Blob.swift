import Foundation

#if canImport(CryptoKit)
    import CryptoKit
#else
    import Crypto
#endif

/// The sequences that a version may have. 2^53 - 1 is the largest that every platform counts to.
public let sequences: ClosedRange<UInt64> = 1...9_007_199_254_740_991

private let headerBytes = 41
private let nonceBytes = 12
private let tagBytes = 16

/// The largest log that fits into a backup, in bytes.
public let largestLog = 5_242_880 - headerBytes - nonceBytes - tagBytes

/// What a blob says.
public struct Decrypted: Sendable, Equatable, Redacted {
    /// The log, decrypted.
    public let log: Data
    /// From 1 to 2^53 - 1.
    public let sequence: UInt64
    /// The SHA-256 of the version that the log was made from, as 64 lowercase hex characters.
    public let baseSha256: String?
}

/// Returns the first 41 bytes of a blob: the format, the sequence in 8 bytes, and the SHA-256 of the base or zeros.
///
/// - Parameters:
///   - sequence: From 1 to 2^53 - 1.
///   - baseSha256: 64 hex characters, or nil without a base.
public func blobHeader(sequence: UInt64, baseSha256: String?) -> Data {
    let base = baseSha256.map { bytes(hex: $0) } ?? Data(count: 32)
    precondition(sequences.contains(sequence) && base?.count == 32, "a header has a sequence and a SHA-256")
    return Data([1]) + withUnsafeBytes(of: sequence.bigEndian) { Data($0) } + (base ?? Data())
}

/// Returns the bytes that bind a blob to its user and its header. So the server can neither pass off another user's
/// backup nor call an old one new.
public func associatedData(userId: String, header: Data) -> Data { Data("dailyreps/v1/\(userId)".utf8) + header }

/// Returns the blob of a log: header, nonce (12 bytes), AES-256-GCM ciphertext, tag (16 bytes).
///
/// - Parameters:
///   - sequence: From 1 to 2^53 - 1: see ``nextSequence(base:highest:restored:)``.
///   - baseSha256: The one that the upload will name.
///   - nonce: Pass it only to repeat a test vector. Two logs under the same nonce and key reveal both.
public func encrypt(
    _ log: Data, with keys: Keys, sequence: UInt64, baseSha256: String?, nonce: AES.GCM.Nonce = AES.GCM.Nonce()
) throws -> Data {
    let header = blobHeader(sequence: sequence, baseSha256: baseSha256)
    let box = try AES.GCM.seal(
        log, using: SymmetricKey(data: keys.encryptionKey), nonce: nonce,
        authenticating: associatedData(userId: keys.userId, header: header))
    return header + Data(nonce) + box.ciphertext + box.tag
}

/// Returns what a blob says.
///
/// - Throws: ``AppOutdatedError`` for an unknown format: never overwrite such a blob. ``DamagedError`` if the blob
///   belongs to another user or password, or if it is damaged.
public func decrypt(_ blob: Data, with keys: Keys) throws -> Decrypted {
    let blob = Data(blob)  // a slice would count from elsewhere
    if let format = blob.first, format != 1 { throw AppOutdatedError() }
    guard blob.count >= headerBytes + nonceBytes + tagBytes else { throw DamagedError() }
    let header = blob[..<headerBytes]
    let log: Data
    do {
        log = try AES.GCM.open(
            AES.GCM.SealedBox(combined: blob[headerBytes...]), using: SymmetricKey(data: keys.encryptionKey),
            authenticating: associatedData(userId: keys.userId, header: header))
    } catch { throw DamagedError() }
    let sequence = header[1..<9].reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
    guard sequences.contains(sequence) else { throw DamagedError() }
    let base = header[9...]
    return Decrypted(log: log, sequence: sequence, baseSha256: base.contains { $0 != 0 } ? hex(base) : nil)
}
