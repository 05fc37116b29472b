//! How segments and records stand on the disk; docs/log.md draws it.
//!
//! Both checks of a record start from where it stands (store, segment, offset),
//! so bytes that belong elsewhere, an older file's block or a copied record, are
//! not taken for one. The first covers the length alone: it tells a record that
//! is cut off from one that is damaged, lets a reader step over a damaged body,
//! and makes looking for the next record after damage cheap, at 28 bytes a try.

use crc32c::{crc32c, crc32c_append};

use crate::engine::time::Time;

/// The format that this code writes.
pub(super) const VERSION: u32 = 1;
/// Where records begin: after two copies of the header.
pub(super) const RECORDS_AT: u64 = 2 * COPY as u64;
/// Bytes before a record's body: length, check of the length, check of the body.
pub(super) const HEAD: usize = 12;
/// Longest body, and so the most that a damaged length could make a reader read.
pub(super) const MAX_BODY: usize = 64 << 20;

/// The last byte of each body. Files are filled with zeros ahead, so a zero here
/// says that a write did not come as far; no one flipped bit makes it one.
const LAST: u8 = 0xa5;
const COPY: usize = 64;
const MAGIC: [u8; 8] = *b"tidelog\n";
const SUFFIX: &str = ".tidelog";

/// A segment's file name.
pub(super) fn file_name(segment: u32) -> String {
    format!("{segment:010}{SUFFIX}")
}

/// The number in a segment's file name, from 1; nothing for other files.
pub(super) fn segment_number(name: &str) -> Option<u32> {
    let number = name.strip_suffix(SUFFIX)?;
    let plain = number.len() == 10 && number.bytes().all(|b| b.is_ascii_digit());
    number.parse().ok().filter(|&n| plain && n > 0)
}

/// What a segment says of itself, twice, so that one damaged bit costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Tells this log from any other.
    pub(super) store: u64,
    /// Its number.
    pub(super) segment: u32,
    /// The segment before it, 0 for none. Those between hold nothing that counts.
    pub(super) previous: u32,
    /// Where that one validly ends: what stands behind was refused or cut off.
    pub(super) previous_end: u64,
    /// When it was begun.
    pub(super) created: Time,
}

/// What was read where a header should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderRead {
    /// Both copies are good, or (`false`) only one.
    Good(Header, bool),
    /// Of a later format.
    Newer(u32),
    /// The file ends inside.
    Short,
    /// Neither copy is good.
    Damaged,
}

impl Header {
    /// Both copies.
    pub(super) fn encode(&self) -> [u8; 2 * COPY] {
        let mut copy = [0; COPY];
        copy[..8].copy_from_slice(&MAGIC);
        copy[8..12].copy_from_slice(&VERSION.to_le_bytes());
        copy[16..24].copy_from_slice(&self.store.to_le_bytes());
        copy[24..28].copy_from_slice(&self.segment.to_le_bytes());
        copy[28..32].copy_from_slice(&self.previous.to_le_bytes());
        copy[32..40].copy_from_slice(&self.previous_end.to_le_bytes());
        copy[40..48].copy_from_slice(&self.created.as_micros().to_le_bytes());
        let check = crc32c(&copy[..COPY - 4]);
        copy[COPY - 4..].copy_from_slice(&check.to_le_bytes());
        let mut both = [0; 2 * COPY];
        both[..COPY].copy_from_slice(&copy);
        both[COPY..].copy_from_slice(&copy);
        both
    }

    /// From the first bytes of a file.
    pub(super) fn decode(bytes: &[u8]) -> HeaderRead {
        let copies: Vec<_> = bytes.chunks_exact(COPY).take(2).map(Self::decode_copy).collect();
        let newer = copies.iter().flatten().find_map(|read| read.err());
        let good: Vec<Header> = copies.iter().flatten().filter_map(|read| read.ok()).collect();
        match (good.first(), newer) {
            (_, Some(version)) => HeaderRead::Newer(version),
            (Some(header), None) => HeaderRead::Good(*header, good.len() == 2),
            (None, None) if bytes.len() < 2 * COPY => HeaderRead::Short,
            (None, None) => HeaderRead::Damaged,
        }
    }

    /// One copy; a later format promises magic, version and check at these places.
    fn decode_copy(copy: &[u8]) -> Option<Result<Self, u32>> {
        if copy[..8] != MAGIC || crc32c(&copy[..COPY - 4]) != u32_at(copy, COPY - 4) {
            return None;
        }
        let version = u32_at(copy, 8);
        if version > VERSION {
            return Some(Err(version));
        }
        Some(Ok(Self {
            store: u64_at(copy, 16),
            segment: u32_at(copy, 24),
            previous: u32_at(copy, 28),
            previous_end: u64_at(copy, 32),
            created: Time::from_micros(u64_at(copy, 40)),
        }))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

/// Which store and segment a record belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// See [`Header::store`].
    pub(super) store: u64,
    /// Its segment.
    pub(super) segment: u32,
}

impl Place {
    /// The check of a record's length at an offset.
    fn mark(self, offset: u64, len: u32) -> u32 {
        let mut text = [0; 24];
        text[..8].copy_from_slice(&self.store.to_le_bytes());
        text[8..12].copy_from_slice(&self.segment.to_le_bytes());
        text[12..20].copy_from_slice(&offset.to_le_bytes());
        text[20..].copy_from_slice(&len.to_le_bytes());
        crc32c(&text)
    }
}

/// Appends a record to `out`, whose first byte will stand at `base`; `body`
/// writes what it holds. Gives the record's offset and length, head included.
pub(super) fn append(
    out: &mut Vec<u8>,
    place: Place,
    base: u64,
    body: impl FnOnce(&mut Vec<u8>),
) -> (u64, u32) {
    let start = out.len();
    let offset = base + start as u64;
    out.extend_from_slice(&[0; HEAD]);
    body(out);
    out.push(LAST);
    // Callers check sizes before: a record never comes near 4 GiB.
    let len = u32::try_from(out.len() - start - HEAD).unwrap_or(u32::MAX);
    let mark = place.mark(offset, len);
    let check = crc32c_append(mark, &out[start + HEAD..]);
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&mark.to_le_bytes());
    out[start + 8..start + HEAD].copy_from_slice(&check.to_le_bytes());
    (offset, len + HEAD as u32)
}

/// What stands at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look<'a> {
    /// A whole record.
    Record {
        /// Its body but for the last byte.
        content: &'a [u8],
        /// Its length, head included.
        total: usize,
    },
    /// A record's beginning; the rest is not there.
    Short,
    /// A record of this length, head included, whose body is damaged.
    BadBody(usize),
    /// Nothing that could be a record.
    BadHead,
}

/// Looks at `bytes`, which begin at `offset` and are not empty.
pub(super) fn look(bytes: &[u8], place: Place, offset: u64) -> Look<'_> {
    if bytes.len() < HEAD {
        return Look::Short;
    }
    let (len, mark) = (u32_at(bytes, 0), u32_at(bytes, 4));
    if len == 0 || len as usize > MAX_BODY || place.mark(offset, len) != mark {
        return Look::BadHead;
    }
    let total = HEAD + len as usize;
    let Some(body) = bytes.get(HEAD..total) else {
        return Look::Short;
    };
    match body.split_last() {
        Some((&LAST, content)) if crc32c_append(mark, body) == u32_at(bytes, 8) => {
            Look::Record { content, total }
        }
        _ => Look::BadBody(total),
    }
}

/// Whether what stands at `at` is a write that was never finished: a record, or
/// the beginning of its head, that ends where nothing but zeros follow.
/// `written` is where those begin.
pub(super) fn is_torn(look: Look<'_>, at: usize, written: usize) -> bool {
    match look {
        Look::Record { .. } => false,
        Look::Short => true,
        Look::BadBody(total) => at + total > written,
        Look::BadHead => at + HEAD > written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { store: 7, segment: 3 };

    fn record(base: u64, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        append(&mut out, PLACE, base, |out| out.extend_from_slice(body));
        out
    }

    #[test]
    fn a_record_is_valid_only_where_it_was_written() {
        let bytes = record(128, b"body");
        assert_eq!(look(&bytes, PLACE, 128), Look::Record { content: b"body", total: 17 });
        for (place, offset) in
            [(PLACE, 129), (Place { segment: 4, ..PLACE }, 128), (Place { store: 8, ..PLACE }, 128)]
        {
            assert_eq!(look(&bytes, place, offset), Look::BadHead);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let bytes = record(128, b"some body");
        for at in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            let expected = if at < 64 { Look::BadHead } else { Look::BadBody(bytes.len()) };
            assert_eq!(look(&flipped, PLACE, 128), expected, "bit {at}");
        }
        for len in 1..bytes.len() {
            assert_eq!(look(&bytes[..len], PLACE, 128), Look::Short, "{len} bytes");
        }
    }

    #[test]
    fn a_record_before_zeros_is_torn_at_any_byte_and_never_by_a_flipped_bit() {
        let bytes = record(128, b"body\0\0\0");
        let torn = |bytes: &[u8]| {
            let written = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
            let mut ahead = bytes.to_vec();
            ahead.resize(bytes.len() + 100, 0);
            is_torn(look(&ahead, PLACE, 128), 0, written)
        };
        for len in 1..bytes.len() {
            assert!(torn(&bytes[..len]), "{len} bytes");
        }
        for at in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert!(!torn(&flipped), "bit {at}");
        }
        assert!(!torn(&bytes));
    }

    #[test]
    fn a_header_survives_any_one_flipped_bit() {
        let created = Time::from_millis(9);
        let header = Header { store: 1, segment: 2, previous: 1, previous_end: 500, created };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), HeaderRead::Good(header, true));
        for at in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[at / 8] ^= 1 << (at % 8);
            assert_eq!(Header::decode(&flipped), HeaderRead::Good(header, false), "bit {at}");
        }
        assert_eq!(Header::decode(&bytes[..127]), HeaderRead::Good(header, false));
        assert_eq!(Header::decode(&bytes[..63]), HeaderRead::Short);
        assert_eq!(Header::decode(&[0; 128]), HeaderRead::Damaged);
    }

    #[test]
    fn a_later_format_is_told_apart_from_damage() {
        let header =
            Header { store: 1, segment: 2, previous: 0, previous_end: 0, created: Time::default() };
        let mut bytes = header.encode();
        bytes[8..12].copy_from_slice(&(VERSION + 1).to_le_bytes());
        assert_eq!(Header::decode(&bytes), HeaderRead::Good(header, false));
        let check = crc32c(&bytes[..COPY - 4]);
        bytes[COPY - 4..COPY].copy_from_slice(&check.to_le_bytes());
        assert_eq!(Header::decode(&bytes), HeaderRead::Newer(VERSION + 1));
    }

    #[test]
    fn file_names_carry_the_number_and_nothing_else_does() {
        assert_eq!(segment_number(&file_name(42)), Some(42));
        for other in ["lock", "42.tidelog", "0000000000.tidelog", "+000000042.tidelog"] {
            assert_eq!(segment_number(other), None, "{other}");
        }
    }
}
