//! Variable-length integers (RFC 9000, section 16) that come in pieces, and
//! things that are a type, a length and a value: frames (RFC 9114, section 7.1)
//! and capsules (RFC 9297, section 3.2).

use bytes::Bytes;
use quinn_proto::VarInt;
use quinn_proto::coding::Codec;

/// An integer of which some bytes are read.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Partial {
    bytes: [u8; 8],
    have: u8,
}

impl Partial {
    /// Reads on; `Some` when the integer is complete, and this one is empty again.
    pub(super) fn read(&mut self, from: &mut Bytes) -> Option<u64> {
        loop {
            let have = usize::from(self.have);
            if have > 0 && have == 1 << (self.bytes[0] >> 6) {
                self.have = 0;
                return VarInt::decode(&mut &self.bytes[..have]).ok().map(VarInt::into_inner);
            }
            if from.is_empty() {
                return None;
            }
            self.bytes[have] = from.split_to(1)[0];
            self.have += 1;
        }
    }

    /// Whether nothing of an integer was read.
    pub(super) fn is_empty(&self) -> bool {
        self.have == 0
    }
}

/// Appends `value`, which must be below 2^62; a larger one is written as 2^62 - 1.
pub(super) fn put(bytes: &mut Vec<u8>, value: u64) {
    VarInt::from_u64(value).unwrap_or(VarInt::MAX).encode(bytes);
}

/// What [`Records`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Type and length were read. A value above `u32::MAX` is given as that: it
    /// is no type that we know, and no length that we take.
    Head { kind: u32, length: u32 },
    /// Bytes of the value, perhaps none; `last`: there are no more.
    Part { bytes: Bytes, last: bool },
}

#[derive(Debug, Default, Clone, Copy)]
enum Step {
    #[default]
    Kind,
    Length(u32),
    Value(u32),
}

/// Reads types, lengths and values one after another, and holds nothing of a
/// value.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Records {
    step: Step,
    number: Partial,
}

impl Records {
    /// Reads on from `from`; none when it is used up. A [`Piece::Head`] is
    /// followed by one or more [`Piece::Part`], the last of which says so.
    pub(super) fn read(&mut self, from: &mut Bytes) -> Option<Piece> {
        loop {
            match self.step {
                Step::Kind => self.step = Step::Length(saturated(self.number.read(from)?)),
                Step::Length(kind) => {
                    let length = saturated(self.number.read(from)?);
                    self.step = Step::Value(length);
                    return Some(Piece::Head { kind, length });
                }
                Step::Value(left) => {
                    if left > 0 && from.is_empty() {
                        return None;
                    }
                    let now = left.min(u32::try_from(from.len()).unwrap_or(u32::MAX));
                    let last = now == left;
                    self.step = if last { Step::Kind } else { Step::Value(left - now) };
                    let bytes = from.split_to(now as usize);
                    return Some(Piece::Part { bytes, last });
                }
            }
        }
    }

    /// The type, once it is read and until the length is: it can tell that
    /// there is no length.
    pub(super) fn kind(&mut self, from: &mut Bytes) -> Option<u32> {
        if matches!(self.step, Step::Kind) {
            self.step = Step::Length(saturated(self.number.read(from)?));
        }
        if let Step::Length(kind) = self.step { Some(kind) } else { None }
    }

    /// Whether nothing has begun that is not complete.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.step, Step::Kind) && self.number.is_empty()
    }
}

fn saturated(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_the_rfc() {
        // RFC 9000, appendix A.1.
        for (bytes, value) in [
            (&b"\xc2\x19\x7c\x5e\xff\x14\xe8\x8c"[..], 151_288_809_941_952_652),
            (b"\x9d\x7f\x3e\x7d", 494_878_333),
            (b"\x7b\xbd", 15_293),
            (b"\x25", 37),
            (b"\x40\x25", 37),
        ] {
            let mut number = Partial::default();
            assert_eq!(number.read(&mut Bytes::from_static(bytes)), Some(value));
            assert!(number.is_empty());
        }
    }

    #[test]
    fn lengths_that_nobody_takes_stay_recognisable() {
        let mut records = Records::default();
        let mut bytes = Bytes::from_static(b"\xc0\0\0\0\0\0\0\x01\xff\xff\xff\xff\xff\xff\xff\xff");
        let head = records.read(&mut bytes);
        assert_eq!(head, Some(Piece::Head { kind: 1, length: u32::MAX }));
    }

    proptest! {
        #[test]
        fn any_chunking_reads_the_same(
            values in proptest::collection::vec((0_u64..1 << 40, 0_usize..70), 0..5),
            size in 1_usize..9,
        ) {
            let mut wire = Vec::new();
            for (kind, length) in &values {
                put(&mut wire, *kind);
                put(&mut wire, *length as u64);
                wire.extend(std::iter::repeat_n(7, *length));
            }
            let mut records = Records::default();
            let mut read = Vec::new();
            for chunk in wire.chunks(size) {
                let mut chunk = Bytes::copy_from_slice(chunk);
                while let Some(piece) = records.read(&mut chunk) {
                    match piece {
                        Piece::Head { kind, .. } => read.push((kind, 0)),
                        Piece::Part { bytes, .. } => {
                            read.last_mut().expect("a head comes first").1 += bytes.len();
                        }
                    }
                }
            }
            // The last value may be empty and is then still to be read.
            while let Some(Piece::Part { .. }) = records.read(&mut Bytes::new()) {}
            prop_assert!(records.is_idle());
            let expected: Vec<_> =
                values.iter().map(|(kind, length)| (saturated(*kind), *length)).collect();
            prop_assert_eq!(read, expected);
        }
    }
}
