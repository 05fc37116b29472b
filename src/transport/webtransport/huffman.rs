//! The Huffman code of field names and values (RFC 7541, section 5.2 and
//! appendix B, taken over by RFC 9204, section 4.1.2).
//!
//! The code is canonical: codes of one length are consecutive numbers in the
//! order of their symbols, and the first of the next length is the one after
//! the last, with a bit appended. So how many codes there are of each length
//! and the symbols in order are the whole table, and a string is decoded bit by
//! bit with two additions per bit. A connection sends one short request, so
//! there is nothing that a faster table would win.

/// Why a string is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HuffmanError {
    /// The padding is not all ones, or as long as a byte; or the string holds
    /// the end-of-string symbol.
    Invalid,
    /// The decoded string is longer than the caller allows.
    TooLong,
}

/// Codes by their length in bits, from 0 to 30.
const COUNTS: [u16; 31] = [
    0, 0, 0, 0, 0, 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19,
    29, 0, 4,
];

/// Symbols in the order of their codes. The last code, end-of-string, has none:
/// it must not occur.
const SYMBOLS: [u8; 256] = [
    48, 49, 50, 97, 99, 101, 105, 111, 115, 116, 32, 37, 45, 46, 47, 51, 52, 53, 54, 55, 56, 57,
    61, 65, 95, 98, 100, 102, 103, 104, 108, 109, 110, 112, 114, 117, 58, 66, 67, 68, 69, 70, 71,
    72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 89, 106, 107, 113, 118, 119,
    120, 121, 122, 38, 42, 44, 59, 88, 90, 33, 34, 40, 41, 63, 39, 43, 124, 35, 62, 0, 36, 64, 91,
    93, 126, 94, 125, 60, 96, 123, 92, 195, 208, 128, 130, 131, 162, 184, 194, 224, 226, 153, 161,
    167, 172, 176, 177, 179, 209, 216, 217, 227, 229, 230, 129, 132, 133, 134, 136, 146, 154, 156,
    160, 163, 164, 169, 170, 173, 178, 181, 185, 186, 187, 189, 190, 196, 198, 228, 232, 233, 1,
    135, 137, 138, 139, 140, 141, 143, 147, 149, 150, 151, 152, 155, 157, 158, 165, 166, 168, 174,
    175, 180, 182, 183, 188, 191, 197, 231, 239, 9, 142, 144, 145, 148, 159, 171, 206, 215, 225,
    236, 237, 199, 207, 234, 235, 192, 193, 200, 201, 202, 205, 210, 213, 218, 219, 238, 240, 242,
    243, 255, 203, 204, 211, 212, 214, 221, 222, 223, 241, 244, 245, 246, 247, 248, 250, 251, 252,
    253, 254, 2, 3, 4, 5, 6, 7, 8, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28,
    29, 30, 31, 127, 220, 249, 10, 13, 22,
];

/// Decodes `coded` to at most `limit` bytes.
///
/// # Errors
/// [`HuffmanError`].
pub(super) fn decode(coded: &[u8], limit: usize) -> Result<Vec<u8>, HuffmanError> {
    // The shortest code has 5 bits.
    let mut decoded = Vec::with_capacity(limit.min(coded.len() * 8 / 5));
    let mut code = Code::default();
    for byte in coded {
        for shift in (0..8).rev() {
            match code.push(u16::from(byte >> shift & 1)) {
                None => continue,
                Some(None) => return Err(HuffmanError::Invalid),
                Some(Some(_)) if decoded.len() == limit => return Err(HuffmanError::TooLong),
                Some(Some(symbol)) => decoded.push(symbol),
            }
            code = Code::default();
        }
    }
    // What is left is padding: the beginning of end-of-string, which is ones.
    let padding = code.length < 8 && code.ones;
    if padding { Ok(decoded) } else { Err(HuffmanError::Invalid) }
}

/// A code of which some bits are read.
#[derive(Debug)]
struct Code {
    length: usize,
    /// How far the code read is from the first one of its length.
    offset: u32,
    /// Symbols with shorter codes.
    before: u32,
    ones: bool,
}

impl Default for Code {
    fn default() -> Self {
        Code { length: 0, offset: 0, before: 0, ones: true }
    }
}

impl Code {
    /// Takes one bit. `Some` when it completes a code: with its symbol, or
    /// without for end-of-string.
    fn push(&mut self, bit: u16) -> Option<Option<u8>> {
        self.length += 1;
        self.ones &= bit == 1;
        self.offset = self.offset * 2 + u32::from(bit);
        // The code is complete (every sequence of 30 bits begins with one), so
        // a code is found at the latest there.
        let of_length = u32::from(COUNTS[self.length]);
        if self.offset < of_length {
            let at = (self.before + self.offset) as usize;
            return Some(SYMBOLS.get(at).copied());
        }
        self.offset -= of_length;
        self.before += of_length;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn the_examples_of_the_rfc() {
        // RFC 7541, appendices C.4 and C.6.
        for (coded, plain) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95ba97d7f", "custom-key"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("6402", "302"),
            ("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
            (
                "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
                "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            ),
            ("", ""),
        ] {
            assert_eq!(decode(&bytes(coded), 100), Ok(plain.as_bytes().to_vec()));
        }
    }

    #[test]
    fn every_symbol_has_its_own_code_and_all_codes_are_used() {
        let mut seen = SYMBOLS;
        seen.sort_unstable();
        assert!(seen.iter().enumerate().all(|(at, symbol)| at == usize::from(*symbol)));
        // Kraft: a complete code fills the space of 30 bits exactly.
        let filled: u64 = (1..=30).map(|bits| u64::from(COUNTS[bits]) << (30 - bits)).sum();
        assert_eq!(filled, 1 << 30);
    }

    #[test]
    fn the_longest_codes_are_decoded() {
        // 10 is 30 bits: 1111…1100; 256 (end-of-string) is 30 ones.
        assert_eq!(decode(&bytes("fffffff3"), 9), Ok(vec![10]));
        assert_eq!(decode(&bytes("ffffffff"), 9), Err(HuffmanError::Invalid));
    }

    #[test]
    fn padding_is_ones_and_shorter_than_a_byte() {
        assert_eq!(decode(&[0x1f], 9), Ok(b"a".to_vec()));
        assert_eq!(decode(&[0x18], 9), Err(HuffmanError::Invalid));
        assert_eq!(decode(&[0x1f, 0xff], 9), Err(HuffmanError::Invalid));
        assert_eq!(decode(&[0xff], 9), Err(HuffmanError::Invalid));
    }

    #[test]
    fn no_more_is_decoded_than_allowed() {
        assert_eq!(decode(&bytes("a8eb10649cbf"), 8), Ok(b"no-cache".to_vec()));
        assert_eq!(decode(&bytes("a8eb10649cbf"), 7), Err(HuffmanError::TooLong));
    }
}
