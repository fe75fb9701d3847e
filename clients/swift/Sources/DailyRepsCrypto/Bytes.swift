import Foundation

#if canImport(CryptoKit)
    import CryptoKit
#else
    import Crypto
#endif

/// Returns lowercase hex, two characters a byte.
public func hex(_ bytes: some Sequence<UInt8>) -> String {
    let digits = Array("0123456789abcdef")
    return String(bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] })
}

/// Returns the bytes of hex, or nil if it is none.
public func bytes(hex text: String) -> Data? {
    let digits = text.utf8.map(\.hexDigit)
    guard digits.count.isMultiple(of: 2) else { return nil }
    var bytes = Data(capacity: digits.count / 2)
    for at in stride(from: 0, to: digits.count, by: 2) {
        guard let high = digits[at], let low = digits[at + 1] else { return nil }
        bytes.append(high << 4 | low)
    }
    return bytes
}

/// Returns the SHA-256 of the bytes, as 64 lowercase hex characters.
public func sha256(_ bytes: Data) -> String { hex(SHA256.hash(data: bytes)) }

/// Returns the bytes of canonical base64 (RFC 4648 section 4): padded, with unused bits zero, and at least one byte.
/// Foundation's decoder reads more than that, so what it has read is written again and compared.
///
/// - Throws: ``DamagedError`` for anything else.
public func bytes(base64 text: String) throws -> Data {
    guard let bytes = Data(base64Encoded: text), !bytes.isEmpty,
        Array(bytes.base64EncodedString().utf8) == Array(text.utf8)
    else { throw DamagedError() }
    return bytes
}

extension UInt8 {
    fileprivate var hexDigit: UInt8? {
        switch self {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): self - UInt8(ascii: "0")
        case UInt8(ascii: "a")...UInt8(ascii: "f"): self - UInt8(ascii: "a") + 10
        case UInt8(ascii: "A")...UInt8(ascii: "F"): self - UInt8(ascii: "A") + 10
        default: nil
        }
    }
}
