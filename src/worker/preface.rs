//! Which protocol a new connection speaks: HTTP/2 begins with a fixed preface
//! (RFC 9113, section 3.4), TLS with the type of its first record, everything
//! else is HTTP/1.1. Within TLS it is asked again, whatever was agreed by ALPN:
//! the two say the same, and a client without ALPN is understood too.
//!
//! The bytes read for that are handed on in front of the socket, so that telling
//! them apart costs no system call.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::stream::Stream;
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// What HTTP/2 begins with.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What hyper reads first, too: it goes on as if nobody had read before it, down
/// to how much of an oversized head is read before the refusal.
const FIRST_READ: usize = 8_192;

/// What TLS begins with: the type of a record of the handshake (RFC 8446, section
/// 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// What a peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, or nothing that is known.
    Http1,
    /// HTTP/2.
    Http2,
    /// TLS, with something within.
    Tls,
}

/// Reads until it is clear what the peer speaks.
///
/// # Errors
/// The socket's.
pub async fn read(mut stream: Stream) -> io::Result<(Protocol, Prefixed)> {
    // Nothing is allocated for a connection that is silent.
    stream.readable().await?;
    let mut head = BytesMut::with_capacity(FIRST_READ);
    loop {
        let ended = stream.read_buf(&mut head).await? == 0;
        let read = head.len().min(PREFACE.len());
        let http2 = head[..read] == PREFACE[..read];
        if ended || !http2 || read == PREFACE.len() {
            let protocol = match head.first() {
                Some(&TLS_HANDSHAKE) => Protocol::Tls,
                Some(_) if http2 && !ended => Protocol::Http2,
                _ => Protocol::Http1,
            };
            return Ok((protocol, Prefixed::new(head.freeze(), stream)));
        }
    }
}

/// A socket some of whose bytes have been read.
pub struct Prefixed {
    head: Bytes,
    stream: Stream,
    blocked: Rc<Cell<bool>>,
}

impl Prefixed {
    fn new(head: Bytes, stream: Stream) -> Self {
        Self { head, stream, blocked: Rc::default() }
    }

    /// Whether something waits to be written that the kernel does not take.
    #[must_use]
    pub fn blocked(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.blocked)
    }

    /// What was read and not handed on, and the socket.
    #[must_use]
    pub fn into_parts(self) -> (Bytes, Stream) {
        (self.head, self.stream)
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, out);
        }
        let length = self.head.len().min(out.remaining());
        out.put_slice(&self.head[..length]);
        self.head.advance(length);
        if self.head.is_empty() {
            self.head = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.blocked.set(written.is_pending());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.blocked.set(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// What `pieces` are taken for, and what is read behind that.
    async fn arrives(pieces: &[&[u8]]) -> (Protocol, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut peer = TcpStream::connect(address).await.expect("connected");
        peer.set_nodelay(true).expect("no delay");
        let (stream, _) = listener.accept().await.expect("accepted");
        let writer = async {
            for piece in pieces {
                peer.write_all(piece).await.expect("sent");
                // Each in a read of its own: on loopback it is there by then.
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            drop(peer);
        };
        let (read, ()) = tokio::join!(read(Stream::Clear(stream)), writer);
        let (protocol, mut io) = read.expect("read");
        let mut bytes = Vec::new();
        io.read_to_end(&mut bytes).await.expect("the rest");
        (protocol, bytes)
    }

    #[tokio::test]
    async fn the_preface_is_known_in_any_pieces_and_no_byte_is_lost() {
        let request: &[u8] = b"POST /v1/rooms/r/events HTTP/1.1\r\n\r\n";
        let nearly: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r!";
        let cases: [(&[&[u8]], Protocol); 9] = [
            (&[PREFACE, b"settings"], Protocol::Http2),
            (&[b"P", b"RI * HTTP/2", b".0\r\n\r\nSM\r\n\r\nmore"], Protocol::Http2),
            (&[request], Protocol::Http1),
            (&[b"P", b"OST", b" / HTTP/1.1\r\n"], Protocol::Http1),
            (&[nearly], Protocol::Http1),
            (&[b"PRI * HTTP/2.0"], Protocol::Http1),
            (&[], Protocol::Http1),
            (&[b"\x16", b"\x03\x01\x00\x05"], Protocol::Tls),
            (&[b"\x16\x03\x01 and more"], Protocol::Tls),
        ];
        for (pieces, expected) in cases {
            let (protocol, bytes) = arrives(pieces).await;
            assert_eq!((protocol, bytes), (expected, pieces.concat()), "{pieces:?}");
        }
    }
}
