//! permessage-deflate (RFC 7692) without context takeover in either direction:
//! every message stands alone, so one compressed form serves every viewer and
//! no viewer owns a window.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use thiserror::Error;

/// The four bytes that end every sync-flushed block and are not sent
/// (RFC 7692, section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// Compresses whole messages.
#[derive(Debug)]
pub struct Deflater {
    state: Compress,
}

impl Deflater {
    /// `level` is zlib's, 1 (fast) to 9 (small).
    #[must_use]
    pub fn new(level: u32) -> Self {
        Self { state: Compress::new(Compression::new(level), false) }
    }

    /// The message as permessage-deflate sends it.
    #[must_use]
    pub fn compress(&mut self, message: &[u8]) -> Vec<u8> {
        self.state.reset();
        let mut out = Vec::with_capacity(message.len() / 2 + 64);
        loop {
            let done = self.state.total_in() as usize;
            let room = out.capacity() - out.len();
            let status = self.state.compress_vec(&message[done..], &mut out, FlushCompress::Sync);
            let consumed = self.state.total_in() as usize == message.len();
            // A sync flush is complete when output space was left over.
            if status.is_err() || (consumed && out.len() < out.capacity() && room > 0) {
                break;
            }
            out.reserve(out.capacity().max(64));
        }
        if out.ends_with(&TAIL) {
            out.truncate(out.len() - TAIL.len());
        }
        out
    }
}

/// Why a message does not inflate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InflateError {
    /// It would become longer than the limit.
    #[error("the inflated message is larger than the limit")]
    TooLarge,
    /// It is not deflate data.
    #[error("the message does not inflate")]
    Corrupt,
}

/// Inflates whole messages. One serves all connections of a shard.
#[derive(Debug)]
pub struct Inflater {
    state: Decompress,
}

impl Default for Inflater {
    fn default() -> Self {
        Self { state: Decompress::new(false) }
    }
}

impl Inflater {
    /// The message, at most `limit` bytes of it.
    ///
    /// # Errors
    /// [`InflateError`]; memory never exceeds `limit` by more than 1 byte, so a
    /// compression bomb costs no more than an honest message of that size.
    pub fn inflate(&mut self, message: &[u8], limit: usize) -> Result<Vec<u8>, InflateError> {
        self.state.reset(false);
        let guess = message.len().saturating_mul(4).clamp(256, limit.saturating_add(1));
        let mut out = Vec::with_capacity(guess);
        self.feed(message, limit, &mut out)?;
        self.feed(&TAIL, limit, &mut out)?;
        Ok(out)
    }

    fn feed(&mut self, input: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), InflateError> {
        let base = self.state.total_in();
        loop {
            let done = (self.state.total_in() - base) as usize;
            let before = out.len();
            let status = self
                .state
                .decompress_vec(&input[done..], out, FlushDecompress::Sync)
                .map_err(|_| InflateError::Corrupt)?;
            if out.len() > limit {
                return Err(InflateError::TooLarge);
            }
            let consumed = (self.state.total_in() - base) as usize == input.len();
            match status {
                // A final block inside the message: legal, and the end of it.
                Status::StreamEnd => return Ok(()),
                _ if consumed && out.len() < out.capacity() => return Ok(()),
                _ if out.len() == before && out.len() < out.capacity() => {
                    return Err(InflateError::Corrupt);
                }
                _ => {
                    let target = (out.capacity() * 2).clamp(256, limit.saturating_add(1));
                    out.reserve_exact(target.saturating_sub(out.len()).max(1));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_inflates_to_itself() {
        let mut deflater = Deflater::new(3);
        let mut inflater = Inflater::default();
        let noise: Vec<u8> =
            (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for message in [&b""[..], b"a", &[b'x'; 5_000], &noise] {
            let small = deflater.compress(message);
            assert_eq!(inflater.inflate(&small, 1 << 20).as_deref(), Ok(message));
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = Deflater::new(9).compress(&vec![0; 10_000_000]);
        assert!(bomb.len() < 20_000);
        let mut inflater = Inflater::default();
        assert_eq!(inflater.inflate(&bomb, 16_384), Err(InflateError::TooLarge));
        // And the inflater still serves the next message.
        let fine = Deflater::new(3).compress(b"fine");
        assert_eq!(inflater.inflate(&fine, 16_384).as_deref(), Ok(&b"fine"[..]));
    }

    #[test]
    fn garbage_is_refused() {
        assert_eq!(Inflater::default().inflate(&[0xff; 32], 1_000), Err(InflateError::Corrupt));
    }
}
