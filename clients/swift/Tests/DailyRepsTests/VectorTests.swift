import DailyRepsCrypto
import Foundation
import Testing

#if canImport(CryptoKit)
    import CryptoKit
#else
    import Crypto
#endif

/// The vectors of `fixtures/` that concern keys, encryption, decisions and signatures.
struct VectorTests {
    /// A file with a type that no test here reads is newer than these tests.
    @Test func everyTypeIsRead() {
        let read = [
            "derivation": ["Username", "Keys", "Expansion", "RecoveryCode", "Password"],
            "encryption": ["Blob", "Data", "File"],
            "devices": ["Verdict", "Sequence", "SignIn"],
            "signing": ["Request"],
            "exchanges": ["Exchange"],
        ]
        for (kind, types) in read.sorted(by: { $0.key < $1.key }) {
            #expect(Set(groups(kind).map { $0["type"].text }) == Set(types))
            for type in types { print("vectors: \(vectors(kind, type).count) of the type \(type)") }
        }
        print("vectors: \(Self.requests.count) requests that a client makes")
    }

    // client.user-id
    @Test(arguments: vectors("derivation", "Username"))
    func username(_ vector: Vector) throws {
        let derived = Result { try deriveUserId(text(utf16: vector["username"].utf16)) }
        switch vector["error"].optionalText {
        case "empty": #expect(throws: EmptyUsernameError.self) { try derived.get() }
        case "lone-surrogate": #expect(throws: LoneSurrogateError.self) { try derived.get() }
        default:
            let normalized = try normalizedUsername(vector["username"].text)
            let id = try derived.get()
            let isSame =
                same(normalized, vector["normalized"].text) && hex(normalized.utf8) == vector["normalizedUtf8"].text
                && id == vector["userId"].text
            #expect(isSame == vector.isValid)
        }
    }

    // client.keys
    @Test(arguments: vectors("derivation", "Keys"))
    func keys(_ vector: Vector) throws {
        let group = vector.group
        let derivation = Derivation(
            name: group["derivation"]!.text, iterations: Int(group["iterations"]!.number),
            storageKeyInfo: group["storageKeyInfo"]!.text, encryptionKeyInfo: group["encryptionKeyInfo"]!.text)
        if derivation.name == "v1" { #expect(Derivation.all == [derivation]) }
        let keys = try Keys(
            username: vector["username"].text, password: vector["password"].text, derivation: derivation)
        let isSame =
            keys.userId == vector["userId"].text
            && hex(normalizedPassword(vector["password"].text).utf8) == vector["passwordUtf8"].text
            && hex(keys.masterKey) == vector["masterKey"].text && keys.storageKey == vector["storageKey"].text
            && hex(keys.encryptionKey) == vector["encryptionKey"].text
        #expect(isSame == vector.isValid)
    }

    @Test(arguments: vectors("derivation", "Expansion"))
    func expansion(_ vector: Vector) {
        let keys = Keys(userId: "", masterKey: bytes(hex: vector["masterKey"].text)!)
        #expect(keys.storageKey == vector["storageKey"].text)
        #expect(hex(keys.encryptionKey) == vector["encryptionKey"].text)
    }

    // client.recovery-code
    @Test(arguments: vectors("derivation", "RecoveryCode"))
    func recoveryCode(_ vector: Vector) throws {
        func read() throws -> Keys { try Keys(username: vector["username"].text, recoveryCode: vector["code"].text) }
        guard vector.isValid else {
            try expectThrows(vector["error"].text, by: read)
            return
        }
        let keys = try read()
        #expect(keys.userId == vector["userId"].text)
        #expect(hex(keys.masterKey) == vector["masterKey"].text)
        #expect(keys.storageKey == vector["storageKey"].text)
        #expect(hex(keys.encryptionKey) == vector["encryptionKey"].text)
        #expect(keys.recoveryCode == vector["shown"].text)
    }

    // client.password-floor
    @Test(arguments: vectors("derivation", "Password"))
    func password(_ vector: Vector) {
        let found = problem(ofPassword: vector["password"].text, common: commonPasswords)
        #expect(found?.rawValue == vector["error"].optionalText)
    }

    // client.header
    @Test(arguments: vectors("encryption", "Blob"))
    func blob(_ vector: Vector) throws {
        let keys = keysOf(vector)
        let blob = bytes(hex: vector["blob"].text)!
        guard vector.isValid else {
            try expectThrows(vector["error"].text) { try decrypt(blob, with: keys) }
            return
        }
        let (log, sequence, base) = (
            bytes(hex: vector["plaintext"].text)!, vector["sequence"].number, vector["baseSha256"].optionalText
        )
        let header = blobHeader(sequence: sequence, baseSha256: base)
        #expect(hex(header) == vector["header"].text)
        #expect(hex(associatedData(userId: keys.userId, header: header)) == vector["associatedData"].text)
        let nonce = try AES.GCM.Nonce(data: bytes(hex: vector["nonce"].text)!)
        #expect(try encrypt(log, with: keys, sequence: sequence, baseSha256: base, nonce: nonce) == blob)
        let decrypted = try decrypt(blob, with: keys)
        #expect(decrypted.log == log && decrypted.sequence == sequence && decrypted.baseSha256 == base)
    }

    @Test(arguments: vectors("encryption", "Data"))
    func data(_ vector: Vector) throws {
        let blob = try? bytes(base64: vector["data"].text)
        let fits = blob.map { $0.count == Int(vector["size"].number) && sha256($0) == vector["sha256"].text } ?? false
        #expect(fits == vector.isValid)
        guard vector.isValid, let blob else { return }
        #expect(hex(blob) == vector["blob"].text)
        #expect(blob.base64EncodedString() == vector["data"].text)
    }

    @Test(arguments: vectors("encryption", "File"))
    func file(_ vector: Vector) throws {
        let keys = keysOf(vector)
        let log = try Data(contentsOf: fixtures.appendingPathComponent(vector["file"].text))
        #expect(log.count == Int(vector["fileSize"].number))
        let blob = try encrypt(
            log, with: keys, sequence: vector["sequence"].number, baseSha256: nil,
            nonce: AES.GCM.Nonce(data: bytes(hex: vector["nonce"].text)!))
        #expect(blob.count == Int(vector["size"].number) && sha256(blob) == vector["sha256"].text)
        #expect(try decrypt(blob, with: keys).log == log)
    }

    @Test(arguments: vectors("devices", "Verdict"))
    func verdict(_ vector: Vector) {
        let (highest, latest) = (seen(vector["highest"]), seen(vector["latest"]))
        let base = vector["latest"]["baseSha256"].optionalText
        let found = DailyRepsCrypto.verdict(highest: highest, latest: latest, baseSha256: base)
        #expect(found.rawValue == vector["verdict"].text && found.isAlarm == vector["tell"].isTrue)
        #expect(highest.higher(latest) == seen(vector["highestAfter"]))
    }

    @Test(arguments: vectors("devices", "Sequence"))
    func sequence(_ vector: Vector) throws {
        func next() throws -> UInt64 {
            try nextSequence(
                base: vector["base"].optionalNumber, highest: vector["highest"].number,
                restored: vector["restored"].number)
        }
        guard vector.isValid else {
            #expect(throws: NoSequenceLeftError.self) { try next() }
            return
        }
        #expect(try next() == vector["next"].number)
    }

    @Test(arguments: vectors("devices", "SignIn"))
    func derivationsThatAreTried(_ vector: Vector) throws {
        let known = vector["derivations"].list.map {
            Derivation(name: $0.text, iterations: 1, storageKeyInfo: "", encryptionKeyInfo: "")
        }
        let succeeded = vector["succeeded"].optionalText
        let tries = try derivationsToTry(succeeded: succeeded, of: known).map(\.name)
        // The sign-in ends at the first that is in force.
        #expect(tries.starts(with: vector["tries"].list.map(\.text)))
        #expect(throws: AppOutdatedError.self) { try derivationsToTry(succeeded: "unknown", of: known) }
    }

    /// An invalid request is a test of a server. So is one with another order of the parameters.
    static let requests = vectors("signing", "Request").filter { $0.isValid && $0["parameterOrder"] == .null }

    // client.signature
    @Test(arguments: requests)
    func request(_ vector: Vector) {
        let keyid = vector["keyid"].text
        let mine = proofs(
            method: vector["method"].text, path: vector["path"].text, body: Data(vector["body"].text.utf8),
            userId: vector["userId"].text, storageKey: vector["storageKey"].text,
            secret: AppSecret(keyid: keyid, vector.group["secrets"]![keyid].text),
            created: Int(vector["created"].number))
        let headers = vector["headers"].list.map { line in
            let parts = line.text.split(separator: ":", maxSplits: 1)
            return "\(parts[0].lowercased()):\(parts[1])"
        }
        #expect(mine.count == 4)
        for (name, value) in mine { #expect(headers.contains("\(name.lowercased()): \(value)")) }
    }
}

let commonPasswords = Set(lines("common_passwords.txt"))

func lines(_ name: String) -> [String] {
    (try! String(contentsOf: fixtures.appendingPathComponent(name), encoding: .utf8)).split(separator: "\n").map(
        String.init)
}

private func expectThrows(_ error: String, by run: () throws -> some Any) throws {
    switch error {
    case "mistyped": #expect(throws: MistypedCodeError.self) { try run() }
    case "damaged": #expect(throws: DamagedError.self) { try run() }
    case "update-the-app": #expect(throws: AppOutdatedError.self) { try run() }
    default: Issue.record("an unknown error: \(error)")
    }
}

private func seen(_ json: Json) -> Seen { Seen(sequence: json["sequence"].number, sha256: json["sha256"].optionalText) }

/// The keys that a vector names. The master key is not among them.
private func keysOf(_ vector: Vector) -> Keys {
    Keys(userId: vector["userId"].text, encryptionKey: bytes(hex: vector["encryptionKey"].text)!)
}
