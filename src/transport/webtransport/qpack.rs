//! Header sections (QPACK, RFC 9204) without a dynamic table: one request per
//! connection has nothing to gain from one, and a table of the peer's making is
//! memory that the peer decides about. Our SETTINGS leave its capacity at the
//! default, 0, so that a client which refers to it breaks the protocol.

use std::borrow::Cow;

use super::huffman::{self, HuffmanError};
use super::static_table::STATIC_TABLE;

/// What a field counts beyond its name and value (RFC 9114, section 4.2.2).
const FIELD_OVERHEAD: usize = 32;

/// Why a header section cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QpackError {
    /// To be answered with `QPACK_DECOMPRESSION_FAILED` (RFC 9204, section 6).
    Broken,
    /// Decoded it is larger than allowed.
    TooLarge,
}

/// Name and value of a field, as bytes: nothing is said of what is in them.
pub(super) type Field<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

/// Reads the fields of one section, which may count `limit` bytes with 32 more
/// for each field.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Fields<'a> {
    /// Reads the prefix of `section`.
    ///
    /// # Errors
    /// [`QpackError::Broken`].
    pub(super) fn new(section: &'a [u8], limit: usize) -> Result<Self, QpackError> {
        let mut rest = section;
        let (_, required) = integer(&mut rest, 8)?;
        let (_, _base) = integer(&mut rest, 7)?;
        if required != 0 {
            return Err(QpackError::Broken);
        }
        Ok(Fields { rest, left: limit })
    }

    /// The next field; none at the end.
    ///
    /// # Errors
    /// [`QpackError`]; what follows is then not to be read.
    pub(super) fn next(&mut self) -> Result<Option<Field<'a>>, QpackError> {
        let Some(first) = self.rest.first() else { return Ok(None) };
        self.take(FIELD_OVERHEAD)?;
        // RFC 9204, section 4.5; T is 1 for the static table.
        match first {
            // 1 T index(6): indexed field line.
            0b1100_0000.. => {
                let (_, index) = integer(&mut self.rest, 6)?;
                let (name, value) = entry(index)?;
                self.take(name.len() + value.len())?;
                Ok(Some((Cow::Borrowed(name.as_bytes()), Cow::Borrowed(value.as_bytes()))))
            }
            // 0 1 N T index(4): literal field line with name reference.
            0b0100_0000..=0b0111_1111 if first & 0b1_0000 != 0 => {
                let (_, index) = integer(&mut self.rest, 4)?;
                let (name, _) = entry(index)?;
                self.take(name.len())?;
                let value = self.string(7)?;
                Ok(Some((Cow::Borrowed(name.as_bytes()), value)))
            }
            // 0 0 1 N H length(3): literal field line with literal name.
            0b0010_0000..=0b0011_1111 => {
                let name = self.string(3)?;
                Ok(Some((name, self.string(7)?)))
            }
            // All else refers to the dynamic table.
            _ => Err(QpackError::Broken),
        }
    }

    fn take(&mut self, bytes: usize) -> Result<(), QpackError> {
        self.left = self.left.checked_sub(bytes).ok_or(QpackError::TooLarge)?;
        Ok(())
    }

    /// A string literal whose length has a prefix of `bits`; the bit before it
    /// says whether it is Huffman-coded.
    fn string(&mut self, bits: u8) -> Result<Cow<'a, [u8]>, QpackError> {
        let (flags, length) = integer(&mut self.rest, bits)?;
        let Some((coded, rest)) = self.rest.split_at_checked(length) else {
            return Err(QpackError::Broken);
        };
        self.rest = rest;
        let string = if flags & 1 == 0 {
            Cow::Borrowed(coded)
        } else {
            let decoded = huffman::decode(coded, self.left).map_err(|error| match error {
                HuffmanError::Invalid => QpackError::Broken,
                HuffmanError::TooLong => QpackError::TooLarge,
            })?;
            Cow::Owned(decoded)
        };
        self.take(string.len())?;
        Ok(string)
    }
}

fn entry(index: usize) -> Result<(&'static str, &'static str), QpackError> {
    STATIC_TABLE.get(index).copied().ok_or(QpackError::Broken)
}

/// An integer with a prefix of `bits` (RFC 7541, section 5.1), and the bits
/// before it. What needs more than four bytes after the prefix is nothing that
/// fits into a section that we take.
fn integer(rest: &mut &[u8], bits: u8) -> Result<(u8, usize), QpackError> {
    let (first, mut after) = rest.split_first().ok_or(QpackError::Broken)?;
    let most = (1_usize << bits) - 1;
    let flags = u8::try_from(usize::from(*first) >> bits).unwrap_or(0);
    let mut value = usize::from(*first) & most;
    if value == most {
        for shift in [0, 7, 14, 21, 28] {
            let (byte, next) = after.split_first().ok_or(QpackError::Broken)?;
            if shift == 28 {
                return Err(QpackError::Broken);
            }
            after = next;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = after;
    Ok((flags, value))
}

/// A header section of a status and at most one field more, whose names and
/// values are short literals.
pub(super) fn response(status: u16, field: Option<(&str, &str)>) -> Vec<u8> {
    // Required insert count and base: no dynamic table.
    let mut section = vec![0, 0];
    let status = status.to_string();
    let indexed = STATIC_TABLE.iter().position(|entry| *entry == (":status", status.as_str()));
    match indexed {
        Some(index) => put_integer(&mut section, 0b1100_0000, 6, index),
        None => put_field(&mut section, ":status", &status),
    }
    if let Some((name, value)) = field {
        put_field(&mut section, name, value);
    }
    section
}

pub(super) fn put_field(section: &mut Vec<u8>, name: &str, value: &str) {
    match STATIC_TABLE.iter().position(|(known, _)| *known == name) {
        Some(index) => put_integer(section, 0b0101_0000, 4, index),
        None => {
            put_integer(section, 0b0010_0000, 3, name.len());
            section.extend_from_slice(name.as_bytes());
        }
    }
    put_integer(section, 0, 7, value.len());
    section.extend_from_slice(value.as_bytes());
}

fn put_integer(section: &mut Vec<u8>, flags: u8, bits: u8, value: usize) {
    let most = (1_usize << bits) - 1;
    let low = |value: usize| u8::try_from(value & 0xff).unwrap_or(0);
    if value < most {
        section.push(flags | low(value));
        return;
    }
    section.push(flags | low(most));
    let mut rest = value - most;
    while rest >= 0x80 {
        section.push(0x80 | low(rest & 0x7f));
        rest >>= 7;
    }
    section.push(low(rest));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(section: &[u8], limit: usize) -> Result<Vec<(String, String)>, QpackError> {
        let mut fields = Fields::new(section, limit)?;
        let mut all = Vec::new();
        while let Some((name, value)) = fields.next()? {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            all.push((text(&name), text(&value)));
        }
        Ok(all)
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn the_first_example_of_the_rfc() {
        // RFC 9204, appendix B.1.
        let section = b"\x00\x00\x51\x0b/index.html";
        assert_eq!(fields(section, 1000), Ok(vec![pair(":path", "/index.html")]));
    }

    #[test]
    fn what_refers_to_a_dynamic_table_is_broken() {
        for section in [
            &b"\x03\x81\x10\x11"[..], // RFC 9204, B.2: post-base references
            b"\x05\x00\x80\xc1\x81",  // RFC 9204, B.4: indexed
            b"\x00\x00\x80",          // indexed, dynamic
            b"\x00\x00\x40\x01a",     // literal, dynamic name
            b"\x00\x00\x00\x01a",     // literal, post-base name
            b"\x00\x00\x10",          // indexed, post-base
            b"\x00\x00\xff\x24",      // static entry 99, one past the end
            b"\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        ] {
            assert_eq!(fields(section, 1000), Err(QpackError::Broken), "{section:02x?}");
        }
        assert_eq!(
            fields(b"\x00\x00\xff\x23", 1000),
            Ok(vec![pair("x-frame-options", "sameorigin")])
        );
    }

    #[test]
    fn every_field_counts_even_where_it_is_one_byte_long() {
        // ":method CONNECT" from the static table: 1 byte that counts 46.
        let section = [&[0, 0][..], &[0xcf; 3]].concat();
        assert_eq!(fields(&section, 3 * 46).map(|all| all.len()), Ok(3));
        assert_eq!(fields(&section, 3 * 46 - 1), Err(QpackError::TooLarge));
    }

    #[test]
    fn answers_are_read_back() {
        let field = Some(("allow", "CONNECT"));
        for status in [200, 403, 404, 405, 431, 501] {
            let expected = vec![pair(":status", &status.to_string()), pair("allow", "CONNECT")];
            assert_eq!(fields(&response(status, field), 1000), Ok(expected));
        }
        assert_eq!(response(200, None), [0, 0, 0xd9]);
    }

    proptest! {
        #[test]
        fn arbitrary_sections_end_in_fields_or_an_error_within_the_limit(
            section in proptest::collection::vec(any::<u8>(), 0..200),
            limit in 0_usize..2_000,
        ) {
            if let Ok(all) = fields(&section, limit) {
                let counted: usize = all.iter().map(|(name, value)| {
                    // Bytes that are no UTF-8 are longer as text than counted.
                    let bytes = |text: &str| text.chars().count();
                    bytes(name) + bytes(value) + FIELD_OVERHEAD
                }).sum();
                prop_assert!(counted <= limit);
            }
        }

        #[test]
        fn literals_come_back_as_they_were(name in "[a-z-]{1,300}", value in "[ -~]{0,300}") {
            let section = response(200, Some((&name, &value)));
            let all = fields(&section, 1_000).expect("valid");
            prop_assert_eq!(&all[1], &pair(&name, &value));
        }
    }
}
