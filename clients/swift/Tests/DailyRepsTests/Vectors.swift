import Foundation
import Testing

/// The folder `fixtures/` of the repository, or the one that the environment names.
let fixtures: URL =
    ProcessInfo.processInfo.environment["DAILYREPS_FIXTURES"].map { URL(fileURLWithPath: $0) }
    ?? URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("../../../../fixtures")
    .standardized

/// A vector, with the group that it belongs to.
struct Vector: Sendable, CustomTestStringConvertible {
    let group: [String: Json]
    let members: [String: Json]

    subscript(name: String) -> Json { members[name] ?? .null }
    var isValid: Bool { self["result"].text == "valid" }
    var testDescription: String { "tcId \(self["tcId"].number)" }
}

/// Returns the vectors of a type. An unknown result is a mistake, and so is a type without vectors.
func vectors(_ kind: String, _ type: String) -> [Vector] {
    let found = groups(kind).filter { $0["type"].text == type }.flatMap { group in
        group["tests"].list.map { Vector(group: group.members, members: $0.members) }
    }
    precondition(!found.isEmpty && found.allSatisfy { ["valid", "invalid"].contains($0["result"].text) })
    return found
}

/// Returns the groups of a file, which has as many tests as it says.
func groups(_ kind: String) -> [Json] {
    guard let raw = try? String(contentsOf: fixtures.appendingPathComponent("\(kind).json"), encoding: .utf8),
        let file = try? JSONDecoder().decode(Json.self, from: Data(marked(raw).utf8))
    else { fatalError("\(kind).json cannot be read") }
    let groups = file["testGroups"].list
    precondition(groups.map { $0["tests"].list.count }.reduce(0, +) == Int(file["numberOfTests"].number))
    return groups
}

/// Returns JSON with each escaped lone surrogate replaced by a private code point, because no `String` can hold one.
private func marked(_ json: String) -> String {
    // An escaped backslash, or a pair, stays as it is.
    let escape = #/\\\\|\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})|\\u(d[89a-f][0-9a-f]{2})/#
    return json.replacing(escape) { match in
        guard let lone = match.output.3, let unit = UInt32(lone, radix: 16), let mark = Unicode.Scalar(0x10_0000 + unit)
        else {
            return String(match.output.0)
        }
        return String(Character(mark))
    }
}

enum Json: Codable, Sendable, Hashable {
    case null
    case bool(Bool)
    case number(UInt64)
    case text(String)
    case list([Json])
    case object([String: Json])

    init(from decoder: any Decoder) throws {
        let value = try decoder.singleValueContainer()
        if value.decodeNil() {
            self = .null
        } else if let bool = try? value.decode(Bool.self) {
            self = .bool(bool)
        } else if let number = try? value.decode(UInt64.self) {
            self = .number(number)
        } else if let text = try? value.decode(String.self) {
            self = .text(text)
        } else if let list = try? value.decode([Json].self) {
            self = .list(list)
        } else {
            self = .object(try value.decode([String: Json].self))
        }
    }

    func encode(to encoder: any Encoder) throws {
        var value = encoder.singleValueContainer()
        switch self {
        case .null: try value.encodeNil()
        case .bool(let bool): try value.encode(bool)
        case .number(let number): try value.encode(number)
        case .text(let text): try value.encode(text)
        case .list(let list): try value.encode(list)
        case .object(let members): try value.encode(members)
        }
    }

    subscript(name: String) -> Json { members[name] ?? .null }
    var members: [String: Json] { if case .object(let members) = self { members } else { [:] } }
    var list: [Json] { if case .list(let list) = self { list } else { [] } }
    var number: UInt64 { if case .number(let number) = self { number } else { 0 } }
    var optionalNumber: UInt64? { if case .number(let number) = self { number } else { nil } }
    var isTrue: Bool { self == .bool(true) }
    var optionalText: String? { if case .text(let text) = self { text } else { nil } }
    var text: String { optionalText ?? "" }
    /// The UTF-16 code units of a text, with the lone surrogates that were marked.
    var utf16: [UInt16] {
        text.unicodeScalars.flatMap { scalar in
            (0x10_D800...0x10_DFFF).contains(scalar.value)
                ? [UInt16(scalar.value - 0x10_0000)] : Array(String(scalar).utf16)
        }
    }
}

/// `==` of texts takes canonically equivalent ones for equal, so compare their bytes.
func same(_ one: String, _ other: String) -> Bool { Array(one.utf8) == Array(other.utf8) }
