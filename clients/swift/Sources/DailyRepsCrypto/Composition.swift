import Foundation

/// Canonical composition of a text that is decomposed and in canonical order (Unicode standard, section 3.11).
func composed(_ text: String) -> String {
    var scalars: [Unicode.Scalar] = []
    var starter: Int?
    for scalar in text.unicodeScalars {
        // Whatever is between the starter and this code point, and did not compose, blocks it if it is not lower.
        if let starter,
            starter == scalars.count - 1 || combiningClass(scalars[scalars.count - 1]) < combiningClass(scalar),
            let composite = composite(scalars[starter], scalar)
        {
            scalars[starter] = composite
            continue
        }
        if combiningClass(scalar) == 0 { starter = scalars.count }
        scalars.append(scalar)
    }
    return String(String.UnicodeScalarView(scalars))
}

private func combiningClass(_ scalar: Unicode.Scalar) -> UInt8 { scalar.properties.canonicalCombiningClass.rawValue }

private func composite(_ first: Unicode.Scalar, _ second: Unicode.Scalar) -> Unicode.Scalar? {
    let (one, other) = (first.value, second.value)
    // Hangul: a leading consonant and a vowel, and a trailing consonant.
    if (0x1100...0x1112).contains(one), (0x1161...0x1175).contains(other) {
        let syllable = (one - 0x1100) * 21 + (other - 0x1161)
        return Unicode.Scalar(0xAC00 + syllable * 28)
    }
    if (0xAC00...0xD7A3).contains(one), (one - 0xAC00).isMultiple(of: 28), (0x11A8...0x11C2).contains(other) {
        return Unicode.Scalar(one + other - 0x11A7)
    }
    return composites[[first, second]]
}

/// The pairs that compose, of the Unicode version that this platform has. All composites but Hangul are in these two
/// ranges. Making the table takes a tenth of a second, once.
private let composites: [[Unicode.Scalar]: Unicode.Scalar] = {
    var whole: [[Unicode.Scalar]: Unicode.Scalar] = [:]
    for value in Array(0xC0...0x30FF as ClosedRange<UInt32>) + Array(0x11000...0x16FFF) {
        guard let scalar = Unicode.Scalar(value) else { continue }
        let decomposition = Array(String(scalar).decomposedStringWithCanonicalMapping.unicodeScalars)
        // What is excluded from composition does not come back.
        let again = String(scalar).precomposedStringWithCanonicalMapping
        if decomposition.count > 1, Array(again.unicodeScalars) == [scalar] { whole[decomposition] = scalar }
    }
    var pairs: [[Unicode.Scalar]: Unicode.Scalar] = [:]
    for (decomposition, scalar) in whole {
        let rest = Array(decomposition.dropLast())
        guard let first = rest.count == 1 ? rest[0] : whole[rest] else { continue }
        pairs[[first, decomposition[decomposition.count - 1]]] = scalar
    }
    return pairs
}()
