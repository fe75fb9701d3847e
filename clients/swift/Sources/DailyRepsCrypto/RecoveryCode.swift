import Foundation

#if canImport(CryptoKit)
    import CryptoKit
#else
    import Crypto
#endif

private let alphabet = Array("0123456789ABCDEFGHJKMNPQRSTVWXYZ".unicodeScalars)

extension Keys {
    /// The master key in a form that a person can write down: 8 groups of 7 characters. With the username, it opens the
    /// account like the password does. A change of the password makes it void.
    public var recoveryCode: String {
        let content = Data([1]) + masterKey
        let code = base32(content + recoveryChecksum(userId: userId, content: content))
        return stride(from: 0, to: code.count, by: 7).map { String(code[$0..<$0 + 7]) }.joined(separator: "-")
    }

    /// Reads a recovery code as it was typed: in small letters, with or without hyphens and spaces.
    ///
    /// - Throws: ``MistypedCodeError``, ``EmptyUsernameError``, or ``AppOutdatedError`` if a newer version of the app
    ///   made the code.
    public init(username: String, recoveryCode typed: String) throws {
        let content = try bytes(base32: typed)
        let id = try deriveUserId(username)
        guard content[33...] == recoveryChecksum(userId: id, content: content[..<33]) else { throw MistypedCodeError() }
        guard content[0] == 1 else { throw AppOutdatedError() }
        self.init(userId: id, masterKey: Data(content[1..<33]))
    }
}

private func recoveryChecksum(userId: String, content: Data) -> Data {
    Data(SHA256.hash(data: Data("dailyreps/v1/recovery-code/\(userId)".utf8) + content)).prefix(2)
}

/// Crockford's base32: the first character has the highest five bits. 5 bytes are 8 characters.
private func base32(_ bytes: Data) -> [Character] {
    var code: [Character] = []
    var bits = 0
    var held: UInt32 = 0
    for byte in bytes {
        held = (held << 8 | UInt32(byte)) & 0xFFFF
        bits += 8
        while bits >= 5 {
            bits -= 5
            code.append(Character(alphabet[Int(held >> UInt32(bits) & 31)]))
        }
    }
    return code
}

/// Returns the 35 bytes of a code as it was typed.
private func bytes(base32 typed: String) throws -> Data {
    var bytes = Data()
    var bits = 0
    var held: UInt32 = 0
    for scalar in typed.unicodeScalars {
        let digit: Int?
        switch scalar {
        case "-", "\u{2010}"..."\u{2015}", "\u{2212}": continue
        case _ where scalar.properties.isWhitespace: continue
        case "O", "o": digit = 0
        case "I", "i", "L", "l": digit = 1
        // Only ASCII letters have a capital here: uppercased() would also read U+0131 as I and U+017F as S.
        case "a"..."z": digit = alphabet.firstIndex { $0.value == scalar.value - 32 }
        default: digit = alphabet.firstIndex(of: scalar)
        }
        guard let digit else { throw MistypedCodeError() }
        held = (held << 5 | UInt32(digit)) & 0xFFFF
        bits += 5
        if bits >= 8 {
            bits -= 8
            bytes.append(UInt8(truncatingIfNeeded: held >> UInt32(bits)))
        }
    }
    guard bytes.count == 35, bits == 0 else { throw MistypedCodeError() }
    return bytes
}
