import DailyRepsCrypto
import Foundation
import HTTPTypes
import Testing

@testable import DailyRepsBackup

/// The exchanges of `fixtures/` that a client sends: it makes the same proofs, and understands the answer.
struct ExchangeTests {
    static let requests = vectors("exchanges", "Exchange")
        .filter { !$0["flags"].list.contains(.text("ServerOnly")) && $0["operationId"].text != "getHealth" }
        .map(Sent.init)

    /// What a vector says that a client sends.
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

        init(_ vector: Vector) {
            self.vector = vector
            let text = vector["request"].list.map { piece in
                piece.optionalText ?? String(repeating: piece["text"].text, count: Int(piece["times"].number))
            }.joined()
            let parts = text.components(separatedBy: "\r\n\r\n")
            var lines = parts[0].components(separatedBy: "\r\n")
            let target = lines.removeFirst().components(separatedBy: " ")
            (method, path) = (target[0], target[1])
            let fields = lines.map { line in
                let colon = line.firstIndex(of: ":") ?? line.endIndex
                return (String(line[..<colon]), line[colon...].dropFirst().trimmingCharacters(in: .whitespaces))
            }
            headers = Dictionary(uniqueKeysWithValues: fields)
            // One character is one byte.
            body = Data(parts.dropFirst().joined(separator: "\r\n\r\n").unicodeScalars.map { UInt8($0.value) })
            upload = (try? JSONDecoder().decode([String: String].self, from: body)) ?? [:]
            let credentials = Data(base64Encoded: String(headers["Authorization"]!.dropFirst(6)))!
            let pair = String(decoding: credentials, as: UTF8.self).components(separatedBy: ":")
            (userId, storageKey) = (pair[0], pair[1])
            let input = headers["Signature-Input"]!.firstMatch(of: #/;created=(\d+);keyid="([\w-]+)"/#)!
            (created, keyid) = (Int(input.output.1)!, String(input.output.2))
        }

        var secret: AppSecret { AppSecret(keyid: keyid, vector.group["secrets"]![keyid].text) }
    }

    @Test func howMany() {
        print("vectors: \(Self.requests.count) exchanges that a client sends and understands")
        #expect(Self.requests.count > 100)
    }

    @Test(arguments: requests)
    func proofs(_ request: Sent) throws {
        let mine = DailyRepsCrypto.proofs(
            method: request.method, path: request.path, body: request.body, userId: request.userId,
            storageKey: request.storageKey, secret: request.secret, created: request.created)
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
            url: URL(string: "https://backup.example")!, secret: request.secret, transport: fake
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
        #expect(fake.sent[0].path == request.path)
    }
}
