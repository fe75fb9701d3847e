import DailyRepsCrypto
import Foundation
import Testing

private let cases = ProcessInfo.processInfo.environment["NFKC_CASES"]

/// Compares NFKC with that of another implementation: `NFKC_CASES` names a file with lines of input and result, as hex of UTF-8.
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
        print("NFKC: \(same) texts are equal, \(differing.count) differ, \(unknown) have code points that are unknown here")
        #expect(differing.isEmpty, "\(differing.suffix(20))")
        #expect(same > 100_000)
    }
}
