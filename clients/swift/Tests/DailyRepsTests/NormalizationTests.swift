import DailyRepsCrypto
import Foundation
import Testing

private let cases = ProcessInfo.processInfo.environment["NFKC_CASES"]

/// Compares NFKC with that of another implementation: `NFKC_CASES` names a file with lines of input and result, as hex
/// of UTF-8.
@Suite(.enabled(if: cases != nil, "not run: needs a file of another implementation, which NFKC_CASES names"))
struct NormalizationTests {
    @Test func nfkc() throws {
        var (same, unknown) = (0, 0)
        var differing: [String] = []
        for line in try String(contentsOfFile: cases!, encoding: .utf8).split(separator: "\n") {
            let parts = line.split(separator: " ").map { String(decoding: bytes(hex: String($0))!, as: UTF8.self) }
            if hasUnassigned(parts[0]) {
                unknown += 1
            } else if hex(normalizedPassword(parts[0]).utf8) == hex(parts[1].utf8) {
                same += 1
            } else {
                differing.append(String(line))
            }
        }
        print(
            "NFKC: \(same) texts are equal, \(differing.count) differ, \(unknown) have code points that are unknown here"
        )
        #expect(differing.isEmpty, "\(differing.prefix(20))")
        #expect(same > 100_000)
    }
}

/// Unicode's own test, as far as this platform's version knows its code points.
struct UnicodeTests {
    @Test func normalizationTest() throws {
        func text(_ points: Substring) -> String {
            let scalars = points.split(separator: " ").compactMap { UInt32($0, radix: 16).flatMap(Unicode.Scalar.init) }
            return String(String.UnicodeScalarView(scalars))
        }
        var (same, unknown) = (0, 0)
        for line in lines("normalization.txt") where !line.hasPrefix("#") {
            let parts = line.split(separator: ";")
            let source = text(parts[0])
            if hasUnassigned(source) {
                unknown += 1
            } else {
                #expect(hex(normalizedPassword(source).utf8) == hex(text(parts[1]).utf8), "\(line)")
                same += 1
            }
        }
        print("vectors: \(same) strings of normalization.txt, and \(unknown) with code points that are unknown here")
        #expect(same > 20_000)
    }
}

/// What Foundation's composition gets wrong, so that other platforms would derive other keys.
struct CompositionTests {
    @Test(arguments: [
        ("\u{FF76}\u{FF9E}", "\u{30AC}"),  // half-width kana with a voicing mark
        ("\u{FF8A}\u{FF9F}", "\u{30D1}"),
        ("\u{1100}\u{1161}\u{11A8}", "\u{AC01}"),
        ("\u{AC00}\u{11A8}", "\u{AC01}"),
        ("\u{1100}\u{1161}\u{11A7}", "\u{AC00}\u{11A7}"),  // U+11A7 is no trailing consonant
        ("\u{10041}\u{0301}", "\u{10041}\u{0301}"),  // not U+00C1
        ("\u{2304B}\u{3099}", "\u{2304B}\u{3099}"),  // not U+304C
        ("\u{11F41}\u{0323}\u{0301}", "\u{11F41}\u{0323}\u{0301}"),
        ("\u{0958}", "\u{0915}\u{093C}"),  // excluded from composition
        ("\u{11099}\u{110BA}", "\u{1109A}"),
        ("s\u{0307}\u{0323}", "\u{1E69}"),
        ("a\u{0315}\u{0300}\u{05AE}\u{0300}b", "\u{00E0}\u{05AE}\u{0300}\u{0315}b"),
    ])
    func composition(_ text: String, _ expected: String) {
        #expect(hex(normalizedPassword(text).utf8) == hex(expected.utf8))
    }
}
