//! Viewers on TLS: rows like any other, with a [`Channel`] each.
//!
//! A frame is sealed for each of them, since each has keys of its own, into one
//! buffer that the shard's viewers share, and written from there. Only what the
//! socket does not take is kept, the rest of one record at most: to the ladder it
//! counts as sent, and nothing more is taken before it is out. So a slow viewer
//! waits with frames that can still be thinned out, not with ciphertext.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use bytes::Bytes;

use super::Shard;
use super::connection::{Connections, ViewerKey};
use crate::tls::channel::{Channel, RECORD, SEALED};
use crate::wire::Format;
use crate::wire::close::CloseReason;

/// The TLS connections of a shard's viewers, and what they share.
#[derive(Default)]
pub(super) struct Secured {
    /// By row; shorter than the rows if the last ones are not on TLS.
    channels: Vec<Option<Box<Channel>>>,
    /// Ciphertext on its way to a socket: [`SEALED`], once there is a viewer.
    sealed: Vec<u8>,
    /// Small pieces that become one record.
    gathered: Vec<u8>,
}

/// What one read of a socket brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Brought {
    /// Bytes of ciphertext; none: the peer's end.
    pub read: usize,
    /// There may be more.
    pub more: bool,
    /// The peer has said that nothing more will come.
    pub closed: bool,
}

/// One viewer's way out.
pub(super) struct Sealed<'a> {
    stream: &'a TcpStream,
    channel: &'a mut Channel,
    sealed: &'a mut [u8],
    gathered: &'a mut Vec<u8>,
}

impl Secured {
    fn set(&mut self, index: u32, channel: Box<Channel>) {
        let index = index as usize;
        if self.channels.len() <= index {
            self.channels.resize_with(index + 1, || None);
        }
        self.channels[index] = Some(channel);
        self.sealed.resize(SEALED, 0);
    }

    /// Whether a viewer is on TLS.
    pub(super) fn has(&self, index: u32) -> bool {
        self.channels.get(index as usize).is_some_and(Option::is_some)
    }

    fn channel(&mut self, index: u32) -> Option<&mut Channel> {
        self.channels.get_mut(index as usize)?.as_deref_mut()
    }

    /// The way out of a viewer on TLS.
    pub(super) fn outlet<'a>(
        &'a mut self,
        index: u32,
        stream: &'a TcpStream,
    ) -> Option<Sealed<'a>> {
        let channel = self.channels.get_mut(index as usize)?.as_deref_mut()?;
        let (sealed, gathered) = (&mut self.sealed[..], &mut self.gathered);
        Some(Sealed { stream, channel, sealed, gathered })
    }

    /// Its row is free.
    pub(super) fn release(&mut self, index: u32) {
        if let Some(channel) = self.channels.get_mut(index as usize) {
            *channel = None;
        }
    }
}

impl Sealed<'_> {
    /// Takes some of `bytes`, unless something waits.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.flush()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut taken = 0;
        for piece in bytes.chunks(RECORD) {
            let length = self.channel.seal(piece, self.sealed)?;
            taken += piece.len();
            let mut stream = self.stream;
            if !self.channel.send(&self.sealed[..length], |bytes| stream.write(bytes))? {
                break;
            }
        }
        Ok(taken)
    }

    /// The same, of as many pieces as one record holds.
    pub(super) fn write_chunks<'b>(
        &mut self,
        chunks: impl Iterator<Item = &'b Bytes>,
    ) -> io::Result<usize> {
        let mut gathered = std::mem::take(self.gathered);
        gathered.clear();
        for chunk in chunks {
            let room = RECORD - gathered.len();
            gathered.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if gathered.len() == RECORD {
                break;
            }
        }
        let taken = self.write(&gathered);
        *self.gathered = gathered;
        taken
    }

    /// Sends what waits. Returns whether everything is out.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        let mut stream = self.stream;
        let out = self.channel.flush(|bytes| stream.write(bytes))?;
        if out && self.channel.is_closing() {
            // Whether or not this works, the linger timer ends the connection.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(out)
    }

    /// Nothing more will be written.
    pub(super) fn finish(&mut self) {
        self.channel.close();
        // The same.
        let _ = self.flush();
    }
}

impl Connections {
    /// Whether a viewer is on TLS.
    #[must_use]
    pub fn is_secure(&self, index: u32) -> bool {
        self.secured.has(index)
    }

    /// Reads from the socket of a viewer on TLS, once, and appends what that comes
    /// to to `plain`. `buffer` is for the ciphertext, of more than
    /// [`MAX_PARTIAL`](crate::tls::channel::MAX_PARTIAL).
    ///
    /// # Errors
    /// The socket's, or `InvalidData` where the peer has broken a rule of TLS and
    /// been told so.
    pub fn receive(
        &mut self,
        index: u32,
        buffer: &mut [u8],
        plain: &mut Vec<u8>,
    ) -> io::Result<Brought> {
        let Some(mut stream) = self.streams.get(index as usize).and_then(Option::as_ref) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let Some(channel) = self.secured.channel(index) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let begun = channel.resume(buffer);
        let read = stream.read(&mut buffer[begun..])?;
        if read == 0 {
            return Ok(Brought { read, more: false, closed: true });
        }
        let received = channel.receive(&mut buffer[..begun + read], plain);
        // Alerts, and answers to key updates. What is not taken goes with the next
        // write; what fails, fails there.
        let _ = channel.flush(|bytes| stream.write(bytes));
        received.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let (more, closed) = (begun + read == buffer.len(), channel.peer_closed());
        Ok(Brought { read, more, closed })
    }

    /// Sends the ciphertext that waits for a viewer. Returns whether anything else
    /// may follow.
    pub(super) fn flush_sealed(&mut self, key: ViewerKey) -> bool {
        let Some(stream) = self.streams.get(key.index as usize).and_then(Option::as_ref) else {
            return true;
        };
        let Some(mut sealed) = self.secured.outlet(key.index, stream) else { return true };
        match sealed.flush() {
            Ok(out) => out,
            Err(_) => {
                self.end(key, CloseReason::Broken);
                false
            }
        }
    }
}

impl Shard {
    /// Takes over a connected, non-blocking socket with TLS on it.
    pub fn open_secure(
        &mut self,
        stream: TcpStream,
        channel: Box<Channel>,
        format: Format,
    ) -> ViewerKey {
        let key = self.open(stream, format);
        self.viewers.secured.set(key.index, channel);
        key
    }
}
