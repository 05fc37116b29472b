//! Messages on the streams of QUIC and WebTransport: the length as a
//! variable-length integer (RFC 9000, section 16), then so many bytes of
//! protobuf. What a server sends this way is the same for every viewer.

use bytes::{Bytes, BytesMut};

/// Longest length prefix, in bytes.
const MAX_PREFIX: usize = 8;

/// A message with its length.
#[must_use]
pub fn data(payload: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(MAX_PREFIX + payload.len());
    put_length(&mut bytes, payload.len() as u64);
    bytes.extend_from_slice(payload);
    Bytes::from(bytes)
}

/// The message behind its length, for a datagram, which needs none.
#[must_use]
pub fn payload(message: &Bytes) -> Bytes {
    let prefix = message.first().map_or(0, |first| 1 << (first >> 6));
    message.slice(prefix.min(message.len())..)
}

fn put_length(out: &mut Vec<u8>, length: u64) {
    match length {
        0..0x40 => out.push(length as u8),
        0x40..0x4000 => out.extend_from_slice(&(length as u16 | 1 << 14).to_be_bytes()),
        0x4000..0x4000_0000 => out.extend_from_slice(&(length as u32 | 2 << 30).to_be_bytes()),
        _ => out.extend_from_slice(&(length | 3 << 62).to_be_bytes()),
    }
}

/// A message is longer than it may be, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong(pub u64);

/// Puts the messages of a stream together, whatever pieces it comes in. Holds
/// nothing while no message is under way.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Of an unfinished message, its length included.
    held: BytesMut,
}

impl Decoder {
    /// Hands every whole message to `heard`, until that returns false. `most`:
    /// longest message, in bytes.
    ///
    /// # Errors
    /// [`TooLong`], as soon as the length is there; the stream is of no use then.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        most: usize,
        heard: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), TooLong> {
        while !bytes.is_empty() {
            if self.held.is_empty() {
                // The common case: whole messages, read where they are.
                let Some((prefix, length)) = whole(bytes, most)? else {
                    self.held.extend_from_slice(bytes);
                    return Ok(());
                };
                let (message, rest) = bytes.split_at(prefix + length);
                bytes = rest;
                if !heard(&message[prefix..]) {
                    return Ok(());
                }
                continue;
            }
            let wanted = missing(&self.held, most)?;
            let (piece, rest) = bytes.split_at(wanted.min(bytes.len()));
            self.held.extend_from_slice(piece);
            bytes = rest;
            if let Some((prefix, _)) = whole(&self.held, most)? {
                let message = std::mem::take(&mut self.held);
                if !heard(&message[prefix..]) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Whether no message is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held.is_empty()
    }
}

/// Length of the prefix and of the message, once the prefix is there.
fn header(bytes: &[u8], most: usize) -> Result<Option<(usize, usize)>, TooLong> {
    let Some(first) = bytes.first() else { return Ok(None) };
    let prefix = 1_usize << (first >> 6);
    let Some(head) = bytes.get(..prefix) else { return Ok(None) };
    let length = head[1..].iter().fold(u64::from(first & 0x3f), |n, b| n << 8 | u64::from(*b));
    match usize::try_from(length) {
        Ok(length) if length <= most => Ok(Some((prefix, length))),
        _ => Err(TooLong(length)),
    }
}

/// The same, once the whole message is there.
fn whole(bytes: &[u8], most: usize) -> Result<Option<(usize, usize)>, TooLong> {
    Ok(header(bytes, most)?.filter(|(prefix, length)| bytes.len() >= prefix + length))
}

/// Bytes until the next step of an unfinished message, at least one.
fn missing(held: &[u8], most: usize) -> Result<usize, TooLong> {
    let wanted = match header(held, most)? {
        Some((prefix, length)) => prefix + length,
        None => 1 << (held[0] >> 6),
    };
    Ok(wanted.saturating_sub(held.len()).max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 100_000;

    fn read(decoder: &mut Decoder, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        let mut heard = |message: &[u8]| {
            messages.push(message.to_vec());
            true
        };
        decoder.feed(bytes, MOST, &mut heard).expect("short messages");
        messages
    }

    #[test]
    fn lengths_are_as_in_the_rfc() {
        // RFC 9000, appendix A.1, and the limits between the sizes.
        let prefix = |length| {
            let mut out = Vec::new();
            put_length(&mut out, length);
            out
        };
        assert_eq!(prefix(37), [0x25]);
        assert_eq!(prefix(15_293), [0x7b, 0xbd]);
        assert_eq!(prefix(494_878_333), [0x9d, 0x7f, 0x3e, 0x7d]);
        assert_eq!(prefix(63).len(), 1);
        assert_eq!(prefix(64).len(), 2);
        assert_eq!(prefix(16_383).len(), 2);
        assert_eq!(prefix(16_384).len(), 4);
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_its_message_comes() {
        let mut decoder = Decoder::default();
        let mut heard = |_: &[u8]| true;
        let mut long = Vec::new();
        put_length(&mut long, MOST as u64 + 1);
        let (first, rest) = long.split_at(2);
        assert_eq!(decoder.feed(first, MOST, &mut heard), Ok(()));
        assert_eq!(decoder.feed(rest, MOST, &mut heard), Err(TooLong(MOST as u64 + 1)));
    }

    #[test]
    fn a_datagram_has_the_message_without_its_length() {
        for length in [0, 1, 63, 64, 300, 20_000] {
            let message = vec![7; length];
            assert_eq!(payload(&data(&message)), message);
        }
    }

    #[test]
    fn nothing_is_held_between_messages() {
        let mut decoder = Decoder::default();
        let message = data(b"hello");
        assert_eq!(read(&mut decoder, &message[..3]), Vec::<Vec<u8>>::new());
        assert!(!decoder.is_idle());
        assert_eq!(read(&mut decoder, &message[3..]), [b"hello"]);
        assert!(decoder.is_idle() && decoder.held.capacity() == 0);
    }

    proptest! {
        #[test]
        fn any_pieces_give_the_same_messages(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let bytes: Vec<u8> = messages.iter().flat_map(|m| data(m).to_vec()).collect();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let mut decoder = Decoder::default();
            let pieces = at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
            let got: Vec<Vec<u8>> = pieces.flat_map(|piece| read(&mut decoder, piece)).collect();
            prop_assert_eq!(got, messages);
            prop_assert!(decoder.is_idle());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut decoder = Decoder::default();
            let result = decoder.feed(&bytes, 64, &mut |message| message.len() <= 64);
            prop_assert!(decoder.held.len() <= 64 + MAX_PREFIX || result.is_err());
        }
    }
}
