import DailyRepsCrypto
import Foundation
import HTTPTypes
import Testing

@testable import DailyRepsBackup

/// The exchanges of `fixtures/` that a client can send: it makes the same proofs, and understands the answer.
struct ExchangeTests {
    static let operations: Set = [
        "registerUser", "storeBackup", "fetchBackup", "listBackupVersions", "fetchBackupVersion", "changeStorageKey",
        "deleteUser",
    ]
    static let requests = vectors("exchanges", "Exchange").compactMap(Sent.init)

    /// A request that this client can send: a signed operation, with a body that it can have.
    struct Sent: Sendable, CustomTestStringConvertible {
        let vector: Vector
        let method: String
        let path: String
        let headers: [String: String]
        let body: Data
        let upload: [String: String]
        let userId: String
        let storageKey: String
        let keyid: String
        let created: Int
        var testDescription: String { vector.testDescription }

        init?(_ vector: Vector) {
            guard operations.contains(vector["operationId"].text) else { return nil }
            let text = vector["request"].list.map { piece in
                piece.optionalText ?? String(repeating: piece["text"].text, count: Int(piece["times"].number))
            }.joined()
            let parts = text.components(separatedBy: "\r\n\r\n")
            var lines = parts[0].components(separatedBy: "\r\n")
            let target = lines.removeFirst().components(separatedBy: " ")
            let fields = lines.map { line in
                let colon = line.firstIndex(of: ":") ?? line.endIndex
                return (String(line[..<colon]), line[colon...].dropFirst().trimmingCharacters(in: .whitespaces))
            }
            headers = Dictionary(fields, uniquingKeysWith: { one, _ in one })
            // One character is one byte.
            body = Data(parts.dropFirst().joined(separator: "\r\n\r\n").unicodeScalars.map { UInt8($0.value) })
            upload = (try? JSONDecoder().decode([String: String].self, from: body)) ?? [:]
            let needs =
                ["storeBackup": ["data"], "changeStorageKey": ["data", "storageKey"]][vector["operationId"].text] ?? []
            let credentials = headers["Authorization"].flatMap { Data(base64Encoded: String($0.dropFirst(6))) }
            let pair = String(decoding: credentials ?? Data(), as: UTF8.self).components(separatedBy: ":")
            let input =
                #/^app=\("@method" "@path" "authorization" "content-digest"\);created=(\d+);keyid="([\w-]+)";alg="hmac-sha256"$/#
            // What the server says of a request that no client signs like this.
            let code = vector["answer"]["body"]["code"].text
            guard !["signature_missing", "signature_invalid", "digest_mismatch"].contains(code),
                headers["Content-Digest"] == contentDigest(body), headers["Signature"] != nil,
                headers.count == fields.count, target.count == 3, target[1].hasPrefix("/"), !target[1].contains("?"),
                headers["Transfer-Encoding"] == nil,
                headers["Expect"] == nil, headers["Content-Encoding"] == nil,
                body.isEmpty == needs.isEmpty, Set(upload.keys).subtracting(["baseSha256"]) == Set(needs),
                needs.isEmpty || headers["Content-Type"] == "application/json",
                headers["Authorization"]?.hasPrefix("Basic ") == true, pair.count == 2,
                pair.allSatisfy({ $0.count == 64 }),
                let match = headers["Signature-Input"]?.wholeMatch(of: input), let created = Int(match.output.1)
            else { return nil }
            self.vector = vector
            self.created = created
            method = target[0]
            path = target[1]
            userId = pair[0]
            storageKey = pair[1]
            keyid = String(match.output.2)
        }

        var secret: AppSecret? { vector.group["secrets"]?[keyid].optionalText.map { AppSecret(keyid: keyid, $0) } }
    }

    @Test func howMany() {
        print(
            "\(Self.requests.count) of \(vectors("exchanges", "Exchange").count) exchanges can be sent by this client")
        #expect(Self.requests.count > 200)
    }

    @Test(arguments: requests)
    func proofs(_ request: Sent) throws {
        guard let secret = request.secret else { return }  // the server knows no such keyid
        let mine = DailyRepsCrypto.proofs(
            method: request.method, path: request.path, body: request.body, userId: request.userId,
            storageKey: request.storageKey, secret: secret, created: request.created)
        for (name, value) in mine { #expect(request.headers[name] == value) }
    }

    @Test(arguments: requests)
    func answers(_ request: Sent) async throws {
        let answer = request.vector["answer"]
        let status = Int(answer["status"].number)
        let body = answer["body"] == .null ? Data() : try JSONEncoder().encode(answer["body"])
        let headers = answer["headers"].members.mapValues(\.text)
        let fake = Fake([Reply { _ in .init(status: status, body: body, headers: headers) }])
        let keys = Keys(userId: request.userId, storageKey: request.storageKey)
        let server = Server(
            url: URL(string: "https://backup.example")!, secret: request.secret ?? AppSecret("unknown"), transport: fake
        )
        let client = server.client(
            Proofs(keys: keys, secret: server.secret, created: request.created),
            ifNoneMatch: request.headers["If-None-Match"])
        let upload = Components.Schemas.BackupUpload(
            data: request.upload["data"] ?? "", baseSha256: request.upload["baseSha256"])
        let error = await thrown {
            switch request.vector["operationId"].text {
            case "registerUser": #expect(try await client.register() == (status == 201))
            case "storeBackup": #expect(try await client.store(upload).sha256 == answer["body"]["sha256"].text)
            case "fetchBackup":
                let backup = try await client.fetch()
                #expect((backup == nil) == (status == 304))
                #expect(throws: Never.self) {
                    try backup?.checked(version: nil, sha256: answer["body"]["sha256"].optionalText)
                }
            case "fetchBackupVersion":
                let version = Int64(request.path.split(separator: "/").last ?? "") ?? 0
                #expect(try await client.fetch(version: version)?.data == answer["body"]["data"].optionalText)
            case "listBackupVersions":
                #expect(
                    try await client.list().map(\.version)
                        == answer["body"]["versions"].list.map { Int64($0["version"].number) })
            case "changeStorageKey":
                let change = Components.Schemas.StorageKeyChange(
                    storageKey: request.upload["storageKey"] ?? "", data: upload.data, baseSha256: upload.baseSha256)
                #expect(try await client.changeKey(change).keyVersion == Int64(answer["body"]["keyVersion"].number))
            default: try await client.delete()
            }
        }
        if status < 400 {
            #expect(error == nil)
        } else {
            let problem = (error as? BackupError)?.problem
            #expect(problem?.code == answer["body"]["code"].text && problem?.status == status)
            #expect(problem?.serverTime.map(UInt64.init) == answer["body"]["serverTime"].optionalNumber)
        }
        #expect(
            fake.sent[0].method == request.method
                && fake.sent[0].headers[.authorization] == request.headers["Authorization"])
        if request.vector.isValid { #expect(fake.sent[0].path == request.path) }
    }
}
