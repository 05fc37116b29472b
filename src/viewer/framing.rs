//! Messages on a QUIC stream: the length as a variable-length integer (RFC 9000,
//! section 16), then so many bytes of protobuf.

use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message;

/// Largest message taken, in bytes: above the largest frame that can be configured
/// usefully.
pub(super) const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// A message with its length before it.
pub(super) fn frame(message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut out = Vec::with_capacity(8 + length);
    write_length(length as u64, &mut out);
    out.extend_from_slice(&message.encode_to_vec());
    out
}

fn write_length(length: u64, out: &mut Vec<u8>) {
    match length {
        0..0x40 => out.push(length as u8),
        0x40..0x4000 => out.extend_from_slice(&(length as u16 | 0x4000).to_be_bytes()),
        0x4000..0x4000_0000 => {
            out.extend_from_slice(&(length as u32 | 0x8000_0000).to_be_bytes());
        }
        _ => out.extend_from_slice(&(length | 0xc000_0000_0000_0000).to_be_bytes()),
    }
}

/// A stream's bytes, cut into messages.
#[derive(Debug, Default)]
pub(super) struct Unframed {
    bytes: BytesMut,
}

/// A message is announced that is longer than any is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLong(pub(super) u64);

impl Unframed {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        let Some(first) = self.bytes.first() else { return Ok(None) };
        let width = 1usize << (first >> 6);
        let Some(head) = self.bytes.get(..width) else { return Ok(None) };
        let length = head[1..].iter().fold(u64::from(head[0] & 0x3f), |length, byte| {
            length << 8 | u64::from(*byte)
        });
        let whole = usize::try_from(length).ok().filter(|length| *length <= MAX_MESSAGE_BYTES);
        let Some(whole) = whole else { return Err(TooLong(length)) };
        if self.bytes.len() < width + whole {
            return Ok(None);
        }
        self.bytes.advance(width);
        Ok(Some(self.bytes.split_to(whole).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_the_standard_has_them() {
        // RFC 9000, appendix A.1.
        for (length, bytes) in [
            (37, "25"),
            (15_293, "7bbd"),
            (494_878_333, "9d7f3e7d"),
            (151_288_809_941_952_652, "c2197c5eff14e88c"),
        ] {
            let mut out = Vec::new();
            write_length(length, &mut out);
            let hex: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, bytes);
        }
    }

    #[test]
    fn messages_come_out_whole_however_they_are_cut() {
        let lengths = [0usize, 1, 63, 64, 16_383, 16_384, 70_000];
        let mut stream = Vec::new();
        for (no, length) in lengths.iter().enumerate() {
            write_length(*length as u64, &mut stream);
            stream.extend(std::iter::repeat_n(no as u8, *length));
        }
        for piece in [1, 7, 1_000, stream.len()] {
            let (mut unframed, mut came) = (Unframed::default(), Vec::new());
            for piece in stream.chunks(piece) {
                unframed.push(piece);
                while let Some(message) = unframed.next().unwrap() {
                    assert!(message.iter().all(|byte| usize::from(*byte) == came.len()));
                    came.push(message.len());
                }
            }
            assert_eq!(came, lengths);
        }
    }

    #[test]
    fn a_length_beyond_all_bounds_is_refused_before_anything_is_kept() {
        let mut unframed = Unframed::default();
        unframed.push(&[0xff; 8]);
        assert_eq!(unframed.next(), Err(TooLong(0x3fff_ffff_ffff_ffff)));
    }
}
