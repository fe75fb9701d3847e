import Foundation

#if canImport(CommonCrypto)
    import CommonCrypto

    func pbkdf2(_ password: Data, salt: Data, iterations: Int) -> Data {
        var key = Data(count: 32)
        // A buffer of no bytes may have no address, so an empty password gets one more byte, which is not counted.
        let status = key.withUnsafeMutableBytes { key in
            (password + [0]).withUnsafeBytes { password in
                salt.withUnsafeBytes { salt in
                    CCKeyDerivationPBKDF(
                        CCPBKDFAlgorithm(kCCPBKDF2),
                        password.baseAddress!.assumingMemoryBound(to: CChar.self), password.count - 1,
                        salt.baseAddress!.assumingMemoryBound(to: UInt8.self), salt.count,
                        CCPseudoRandomAlgorithm(kCCPRFHmacAlgSHA256), UInt32(iterations),
                        key.baseAddress!.assumingMemoryBound(to: UInt8.self), key.count)
                }
            }
        }
        precondition(status == Int32(kCCSuccess), "PBKDF2 fails only for wrong parameters")
        return key
    }
#else
    import Crypto
    import CryptoExtras

    func pbkdf2(_ password: Data, salt: Data, iterations: Int) -> Data {
        // The vectors have derivations with few iterations, hence "unchecked".
        let key = try? KDF.Insecure.PBKDF2.deriveKey(
            from: password, salt: salt, using: .sha256, outputByteCount: 32, unsafeUncheckedRounds: iterations)
        guard let key else { preconditionFailure("PBKDF2 fails only for wrong parameters") }
        return key.withUnsafeBytes { Data($0) }
    }
#endif
