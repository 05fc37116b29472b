//! Messages on a stream: a length as QUIC variable-length integer (RFC 9000,
//! section 16), then that many bytes.

/// Longest message taken.
const MAX_MESSAGE: u64 = 16 << 20;

/// Puts the length before a message.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let length = message.len() as u64;
    let mut out = Vec::with_capacity(message.len() + 8);
    match length {
        0..0x40 => out.push(message.len() as u8),
        0x40..0x4000 => out.extend_from_slice(&(0x4000 | length as u16).to_be_bytes()),
        0x4000..0x4000_0000 => out.extend_from_slice(&(0x8000_0000 | length as u32).to_be_bytes()),
        _ => out.extend_from_slice(&(0xc000_0000_0000_0000 | length).to_be_bytes()),
    }
    out.extend_from_slice(message);
    out
}

/// A variable-length integer at the beginning: its value and its length, `None`
/// if it has not come whole.
pub(super) fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1 << (first >> 6);
    let bytes = bytes.get(..length)?;
    let value = bytes[1..]
        .iter()
        .fold(u64::from(first & 0x3f), |value, &byte| value << 8 | u64::from(byte));
    Some((value, length))
}

/// The beginning of a message that has not come whole; owns no memory otherwise.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    partial: Vec<u8>,
}

impl Inbox {
    /// Takes the stream's next bytes, and calls `each` with every message that
    /// is whole. An error is the server's mistake.
    pub(crate) fn take(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), String> {
        if self.partial.is_empty() {
            let used = cut(bytes, &mut each)?;
            if used < bytes.len() {
                self.partial = bytes[used..].to_vec();
            }
            return Ok(());
        }
        self.partial.extend_from_slice(bytes);
        let partial = std::mem::take(&mut self.partial);
        let used = cut(&partial, &mut each)?;
        if used < partial.len() {
            self.partial = partial;
            self.partial.drain(..used);
        }
        Ok(())
    }
}

/// Calls `each` with the whole messages in `bytes`; how many bytes they were.
fn cut(bytes: &[u8], each: &mut impl FnMut(&[u8])) -> Result<usize, String> {
    let mut used = 0;
    while let Some((length, header)) = varint(&bytes[used..]) {
        if length > MAX_MESSAGE {
            return Err(format!("a message of {length} bytes"));
        }
        let start = used + header;
        let end = start + usize::try_from(length).unwrap_or(usize::MAX);
        let Some(message) = bytes.get(start..end) else { break };
        each(message);
        used = end;
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: [usize; 8] = [0, 1, 63, 64, 16_383, 16_384, 70_000, 3];

    #[test]
    fn messages_of_every_length_come_out_of_pieces_of_every_length() {
        let messages: Vec<Vec<u8>> =
            LENGTHS.iter().map(|&length| (0..length).map(|at| at as u8).collect()).collect();
        let stream: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
        for piece in [1, 2, 7, 1_000, 65_536, stream.len()] {
            let mut inbox = Inbox::default();
            let mut got: Vec<Vec<u8>> = Vec::new();
            for bytes in stream.chunks(piece) {
                inbox.take(bytes, |message| got.push(message.to_vec())).unwrap();
            }
            assert_eq!(got, messages, "pieces of {piece}");
            assert_eq!(inbox.partial.capacity(), 0, "memory is kept");
        }
    }

    #[test]
    fn lengths_are_read_as_the_examples_of_rfc_9000() {
        // Appendix A.1.
        for (bytes, value) in [
            (&[0x25][..], 37),
            (&[0x40, 0x25], 37),
            (&[0x7b, 0xbd], 15_293),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
        ] {
            assert_eq!(varint(bytes), Some((value, bytes.len())));
            assert_eq!(varint(&bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn a_message_longer_than_any_is_refused_before_it_comes() {
        let mut inbox = Inbox::default();
        assert!(inbox.take(&[0xc0, 0, 0, 0, 2, 0, 0, 0], |_| ()).is_err());
    }
}
