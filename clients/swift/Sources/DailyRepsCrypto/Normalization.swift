import Foundation

/// Returns the form of a username that is hashed: NFKC, without White_Space at both ends, each code point in lower case
/// by itself, and NFKC again.
///
/// - Throws: ``EmptyUsernameError`` if nothing is left.
public func normalizedUsername(_ username: String) throws -> String {
    // Scalar by scalar. A Character may have several scalars: "\r\n" is one Character.
    var scalars = nfkc(username).unicodeScalars[...]
    while let first = scalars.first, first.properties.isWhitespace { scalars.removeFirst() }
    while let last = scalars.last, last.properties.isWhitespace { scalars.removeLast() }
    guard !scalars.isEmpty else { throw EmptyUsernameError() }
    return nfkc(lowercased(scalars))
}

/// Returns the form of a password that is derived from: NFKC and nothing else.
public func normalizedPassword(_ password: String) -> String { nfkc(password) }

/// NFKC. Foundation decomposes correctly, but its composition does not: it leaves half-width kana with a voicing mark
/// as they are, takes U+10041 U+0301 for U+00C1, and drops U+11A7. Other platforms would derive other keys.
func nfkc(_ text: String) -> String { composed(text.decomposedStringWithCompatibilityMapping) }

/// Unicode's full mapping of each code point by itself: no locale, and no final sigma.
func lowercased(_ scalars: some Sequence<Unicode.Scalar>) -> String {
    scalars.map(\.properties.lowercaseMapping).joined()
}

/// Returns whether the Unicode version of this platform does not know a code point of the text. Refuse such a username
/// or password when it is chosen: a later version might normalise it differently.
public func hasUnassigned(_ text: String) -> Bool {
    text.unicodeScalars.contains { $0.properties.generalCategory == .unassigned }
}

/// Returns the text of UTF-16 code units, for example those of an `NSString`. A `String` that was made of an `NSString`
/// has U+FFFD where that had a lone surrogate, so all such names would be one.
///
/// - Throws: ``LoneSurrogateError``.
public func text(utf16 units: some Sequence<UInt16>) throws -> String {
    var (codec, units, scalars) = (UTF16(), units.makeIterator(), String.UnicodeScalarView())
    while true {
        switch codec.decode(&units) {
        case .scalarValue(let scalar): scalars.append(scalar)
        case .emptyInput: return String(scalars)
        case .error: throw LoneSurrogateError()
        }
    }
}
