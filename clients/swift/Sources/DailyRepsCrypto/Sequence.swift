/// The highest version that a device has seen.
public struct Seen: Sendable, Codable, Hashable {
    /// From 1 to 2^53 - 1, or 0 for none.
    public let sequence: UInt64
    /// The SHA-256 of its blob, as 64 lowercase hex characters.
    public let sha256: String?

    /// What a device has seen before it has seen a version.
    public static let nothing = Seen(sequence: 0, sha256: nil)

    /// - Parameter sha256: 64 lowercase hex characters.
    public init(sequence: UInt64, sha256: String?) {
        self.sequence = sequence
        self.sha256 = sha256
    }

    /// The highest seen after one more version: an acknowledged upload, or the latest version, decrypted. Do not ask
    /// for a lost answer, nor for an older version that was fetched on purpose.
    public func higher(_ other: Seen) -> Seen { other.sequence > sequence ? other : self }
}

/// Returns the sequence of a new blob: one more than that of its base, of the highest seen, and of a version that is
/// being restored.
///
/// - Parameters:
///   - base: 0 without a base, and nil if the base cannot be decrypted: it counts as one more than the others.
///   - restored: The sequence of a version that is being restored, or 0.
/// - Throws: ``NoSequenceLeftError`` after 2^53 - 1.
public func nextSequence(base: UInt64?, highest: UInt64, restored: UInt64 = 0) throws -> UInt64 {
    let others = max(highest, restored)
    let next = 1 + max(base ?? others + 1, others)
    guard next <= sequences.upperBound else { throw NoSequenceLeftError() }
    return next
}

/// What a device makes of the latest version.
public enum Verdict: String, Sendable {
    /// There is nothing to compare with.
    case first
    /// Nothing is new.
    case same
    /// It was made from the highest seen.
    case next
    /// Other devices have stored in between.
    case later
    /// Merge, never adopt, and tell the person: it was made from another version than the highest seen.
    case unknownBase = "unknown-base"
    /// Merge, never adopt, and tell the person: it is older than the highest seen.
    case rollback

    /// Whether the person has to know.
    public var isAlarm: Bool { self == .unknownBase || self == .rollback }
}

/// Compares the latest version, decrypted, with the highest that this device has seen. If there is no version, it is
/// ``Seen/nothing``.
public func verdict(highest: Seen, latest: Seen, baseSha256: String?) -> Verdict {
    if highest.sequence == 0 { return .first }
    if latest.sequence <= highest.sequence { return latest == highest ? .same : .rollback }
    if latest.sequence > highest.sequence + 1 { return .later }
    return baseSha256 == highest.sha256 ? .next : .unknownBase
}
