//! One TLS connection without I/O: ciphertext comes in and plaintext goes out,
//! and the other way round.
//!
//! rustls' unbuffered interface underneath, since a viewer that says nothing
//! must not own buffers: its buffered one keeps 4 KiB for reading. What is held
//! here beside the keys is a record that has come in part ([`MAX_PARTIAL`]), and
//! ciphertext that the socket has not taken ([`MAX_UNSENT`]), each only while
//! there is any. Keys and state take about 4.3 KiB a connection (measured: 1.1
//! KiB in the connection, as much behind it, the rest in two cipher contexts of
//! aws-lc). Sealing a frame of 520 bytes takes 0.4 µs with AES-GCM, less than a
//! tenth of the write that follows.
//!
//! To read: [`Channel::resume`] the buffer, read behind that, and give it all to
//! [`Channel::receive`]. To write: [`Channel::flush`] what waits, and only then
//! [`Channel::seal`] and [`Channel::send`].

use std::io;
use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{Error, HandshakeKind, ProtocolVersion, ServerConfig};

/// Bytes of plaintext in one record at most (RFC 8446, section 5.1).
pub const RECORD: usize = 1 << 14;
/// Bytes of one sealed record at most: header, content type, tag, and what an
/// explicit nonce of TLS 1.2 takes, with a key update before it.
pub const SEALED: usize = RECORD + 512;
/// Bytes of a record, or of a handshake message in several records, that is not
/// complete. A record has up to 16,645 bytes; a `ClientHello` rarely 2,000.
pub const MAX_PARTIAL: usize = 20 * 1_024;
/// Bytes that wait for the socket: what of one record was not taken, and answers
/// to the peer's key updates, which rustls limits.
pub const MAX_UNSENT: usize = 2 * SEALED;

/// See the module's documentation.
pub struct Channel {
    connection: UnbufferedServerConnection,
    /// Also what rustls has looked at and still refers to: it gets the same bytes
    /// at every call, for it counts on them.
    partial: Vec<u8>,
    unsent: Vec<u8>,
    /// How much of `unsent` is out.
    sent: usize,
    peer_closed: bool,
    closing: bool,
    /// After a mistake rustls must not be asked again.
    failed: bool,
}

/// What was agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// TLS 1.3, or else 1.2.
    pub is_13: bool,
    /// From a session of before, without a certificate.
    pub resumed: bool,
}

impl Channel {
    /// Before the handshake.
    ///
    /// # Errors
    /// rustls'; the configuration is to blame.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(config)?,
            partial: Vec::new(),
            unsent: Vec::new(),
            sent: 0,
            peer_closed: false,
            closing: false,
            failed: false,
        })
    }

    /// Whether no data can go either way yet.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// What the handshake came to.
    #[must_use]
    pub fn agreed(&self) -> Agreed {
        Agreed {
            is_13: self.connection.protocol_version() == Some(ProtocolVersion::TLSv1_3),
            resumed: self.connection.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }

    /// Whether the peer has said that nothing more will come (close_notify).
    #[must_use]
    pub fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Begins `buffer` with what is left from the last read, and returns how much
    /// that is, at most [`MAX_PARTIAL`]. The next bytes of the socket belong
    /// behind it.
    pub fn resume(&self, buffer: &mut [u8]) -> usize {
        buffer[..self.partial.len()].copy_from_slice(&self.partial);
        self.partial.len()
    }

    /// Takes what [`resume`](Self::resume) gave and what was read behind it, and
    /// appends the plaintext in it to `plain`. What is to be answered waits for
    /// [`flush`](Self::flush), also after an error: then an alert.
    ///
    /// # Errors
    /// The peer's mistake; from then on, always an error.
    pub fn receive(&mut self, buffer: &mut [u8], plain: &mut Vec<u8>) -> Result<(), Error> {
        if self.failed {
            return Err(Error::HandshakeNotComplete);
        }
        let mut used = 0;
        let result = loop {
            let status = self.connection.process_tls_records(&mut buffer[used..]);
            let UnbufferedStatus { mut discard, state } = status;
            let more = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                    true
                }
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    append(data, &mut self.unsent);
                    true
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    true
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.peer_closed = true;
                    true
                }
                Ok(_) => false,
                Err(error) => {
                    used += discard;
                    break Err(error);
                }
            };
            used += discard;
            if !more {
                break Ok(());
            }
        };
        let rest = &buffer[used..];
        let fits = rest.len() <= MAX_PARTIAL && self.waiting() <= MAX_UNSENT;
        let result = if fits { result } else { Err(Error::PeerSentOversizedRecord) };
        self.partial = Vec::new();
        match &result {
            // Whatever follows the end is not looked at.
            Ok(()) if self.peer_closed => {}
            Ok(()) => self.partial = rest.to_vec(),
            Err(_) => {
                self.failed = true;
                self.collect_alert();
            }
        }
        result
    }

    /// The alert that goes with a mistake.
    fn collect_alert(&mut self) {
        // Only while there is something: otherwise rustls would go on reading.
        while self.connection.wants_write() {
            let status = self.connection.process_tls_records(&mut []);
            let Ok(ConnectionState::EncodeTlsData(data)) = status.state else { return };
            append(data, &mut self.unsent);
        }
    }

    /// Encrypts up to [`RECORD`] bytes into the front of `sealed`, which must have
    /// [`SEALED`], and returns how many it takes there.
    ///
    /// # Errors
    /// When the connection can send no more: it has ended, or its keys are used up
    /// and cannot be renewed (TLS 1.2, after 2^24 records).
    pub fn seal(&mut self, plaintext: &[u8], sealed: &mut [u8]) -> io::Result<usize> {
        debug_assert!(self.failed || self.waiting() == 0 && plaintext.len() <= RECORD);
        if self.failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let status = self.connection.process_tls_records(&mut self.partial);
        match status.state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                traffic.encrypt(plaintext, sealed).map_err(io::Error::other)
            }
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Sends what was sealed, and keeps what is not taken. Returns whether
    /// everything is out.
    ///
    /// # Errors
    /// Those of `write` but `WouldBlock`.
    pub fn send(
        &mut self,
        sealed: &[u8],
        write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<bool> {
        debug_assert!(self.waiting() == 0);
        let sent = write_all(sealed, write)?;
        self.unsent.extend_from_slice(&sealed[sent..]);
        Ok(sent == sealed.len())
    }

    /// Sends what waits. Returns whether everything is out.
    ///
    /// # Errors
    /// Those of `write` but `WouldBlock`.
    pub fn flush(&mut self, write: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<bool> {
        if self.unsent.is_empty() {
            return Ok(true);
        }
        self.sent += write_all(&self.unsent[self.sent..], write)?;
        let all = self.sent == self.unsent.len();
        if all {
            self.unsent = Vec::new();
            self.sent = 0;
        }
        Ok(all)
    }

    /// Says that nothing more will come (close_notify), behind what waits; once.
    pub fn close(&mut self) {
        if std::mem::replace(&mut self.closing, true) || self.failed {
            return;
        }
        let status = self.connection.process_tls_records(&mut self.partial);
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state {
            let mut alert = [0; 128];
            if let Ok(length) = traffic.queue_close_notify(&mut alert) {
                self.unsent.extend_from_slice(&alert[..length]);
            }
        }
    }

    /// Whether [`close`](Self::close) was called.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    fn waiting(&self) -> usize {
        self.unsent.len() - self.sent
    }
}

fn append<Data>(mut data: EncodeTlsData<'_, Data>, to: &mut Vec<u8>) {
    let begin = to.len();
    // It says how much it takes, and then takes that.
    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
        to.resize(begin + size.required_size, 0);
        let written = data.encode(&mut to[begin..]).unwrap_or(0);
        to.truncate(begin + written);
    }
}

/// How much of `bytes` goes before it would block.
fn write_all(bytes: &[u8], mut write: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match write(&bytes[sent..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => sent += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

#[cfg(test)]
mod tests;
