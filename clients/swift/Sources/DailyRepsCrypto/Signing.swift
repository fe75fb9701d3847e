import Foundation

#if canImport(CryptoKit)
    import CryptoKit
#else
    import Crypto
#endif

/// The secret that an app signs its requests with, and the name of that secret. Printing it shows none.
public struct AppSecret: Sendable, Redacted {
    let keyid: String
    let secret: String

    /// - Parameters:
    ///   - keyid: 1 to 64 characters of `A-Z a-z 0-9 _ -`.
    ///   - secret: Its characters are the key, also if they look like hex or base64.
    public init(keyid: String = "app", _ secret: String) {
        precondition((1...64).contains(keyid.utf8.count) && keyid.utf8.allSatisfy(isKeyidCharacter), "not a keyid")
        self.keyid = keyid
        self.secret = secret
    }
}

private func isKeyidCharacter(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "a")...UInt8(ascii: "z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"),
        UInt8(ascii: "_"), UInt8(ascii: "-"):
        true
    default: false
    }
}

/// Returns the Authorization header: HTTP Basic (RFC 7617).
public func authorization(userId: String, storageKey: String) -> String {
    "Basic " + Data("\(userId):\(storageKey)".utf8).base64EncodedString()
}

/// Returns the Content-Digest header of a body, which may be empty (RFC 9530 section 2).
public func contentDigest(_ body: Data) -> String {
    "sha-256=:\(Data(SHA256.hash(data: body)).base64EncodedString()):"
}

/// Returns the value of `@signature-params` (RFC 9421 section 2.3), in the only profile that the server accepts.
///
/// - Parameter created: Unix seconds.
public func signatureParams(keyid: String, created: Int) -> String {
    #"("@method" "@path" "authorization" "content-digest");created=\#(created);keyid="\#(keyid)";alg="hmac-sha256""#
}

/// Returns the string to sign (RFC 9421 section 2.5): five lines, with no line feed at the end.
public func signatureBase(method: String, path: String, authorization: String, digest: String, params: String) -> String
{
    [
        #""@method": \#(method)"#,
        #""@path": \#(path)"#,
        #""authorization": \#(authorization)"#,
        #""content-digest": \#(digest)"#,
        #""@signature-params": \#(params)"#,
    ].joined(separator: "\n")
}

/// Returns the four headers that prove a request, by their names: Authorization, Content-Digest, Signature-Input and
/// Signature.
///
/// - Parameters:
///   - method: In capitals.
///   - path: The path of the request target as it will be sent, without a query.
///   - body: The very bytes that will be sent.
///   - created: The server's time in Unix seconds. 300 s more or less are accepted.
public func proofs(
    method: String, path: String, body: Data, userId: String, storageKey: String, secret: AppSecret, created: Int
) -> [(name: String, value: String)] {
    let authorization = authorization(userId: userId, storageKey: storageKey)
    let digest = contentDigest(body)
    let params = signatureParams(keyid: secret.keyid, created: created)
    let base = signatureBase(method: method, path: path, authorization: authorization, digest: digest, params: params)
    let key = SymmetricKey(data: Data(secret.secret.utf8))
    let mac = Data(HMAC<SHA256>.authenticationCode(for: Data(base.utf8), using: key)).base64EncodedString()
    return [
        ("Authorization", authorization),
        ("Content-Digest", digest),
        ("Signature-Input", "app=\(params)"),
        ("Signature", "app=:\(mac):"),
    ]
}
