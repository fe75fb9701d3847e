import Foundation

/// Why a password cannot be chosen.
public enum PasswordProblem: String, Sendable {
    /// It has fewer than 10 code points.
    case tooShort = "too-short"
    /// It is one of the 10,000 commonest passwords.
    case tooCommon = "too-common"
}

/// Returns why a password cannot be chosen, or nil if it can. A sign-in does not ask: an older password may be weaker.
///
/// - Parameter common: The lines of `fixtures/common_passwords.txt`.
public func problem(ofPassword password: String, common: Set<String>) -> PasswordProblem? {
    let scalars = normalizedPassword(password).unicodeScalars
    guard scalars.count >= 10 else { return .tooShort }
    return common.contains(lowercased(scalars)) ? .tooCommon : nil
}

/// Returns words that are drawn at random, with one space between two. Four are about 2^51 possibilities.
///
/// - Parameter words: The 7,776 lines of `fixtures/passphrase_words.txt`.
public func newPassphrase(words: [String], count: Int = 4) -> String {
    var random = SystemRandomNumberGenerator()
    return (0..<count).map { _ in words.randomElement(using: &random)! }.joined(separator: " ")
}
