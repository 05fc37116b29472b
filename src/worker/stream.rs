//! A connection before it is a viewer's, and of those who never become one: in
//! clear or over TLS, alike to hyper.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::tls::channel::{Agreed, Channel, MAX_PARTIAL, RECORD, SEALED};

/// Bytes read from a socket at once.
const READ: usize = 16 * 1_024;

/// Buffers that all TLS connections of a thread share, for none keeps them
/// beyond one call.
pub struct Scratch {
    incoming: Vec<u8>,
    plain: Vec<u8>,
    sealed: Vec<u8>,
}

impl Scratch {
    /// For one thread: about 68 KiB.
    #[must_use]
    pub fn new() -> Rc<RefCell<Self>> {
        let (incoming, sealed) = (vec![0; MAX_PARTIAL + READ], vec![0; SEALED]);
        Rc::new(RefCell::new(Self { incoming, plain: Vec::new(), sealed }))
    }
}

/// In clear or over TLS.
pub enum Stream {
    /// In clear.
    Clear(TcpStream),
    /// Over TLS.
    Tls(Box<TlsStream>),
}

impl Stream {
    /// Resolves when there may be something to read.
    ///
    /// # Errors
    /// The socket's.
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Stream::Clear(stream) => stream.readable().await,
            Stream::Tls(stream) if stream.plain.is_empty() => stream.tcp.readable().await,
            Stream::Tls(_) => Ok(()),
        }
    }
}

/// A TLS connection on a socket of the runtime.
pub struct TlsStream {
    tcp: TcpStream,
    channel: Channel,
    /// Plaintext that nobody has asked for yet.
    plain: BytesMut,
    scratch: Rc<RefCell<Scratch>>,
    ended: bool,
}

/// Why there was no handshake.
#[derive(Debug)]
pub enum HandshakeFailure {
    /// The socket failed, or the peer left.
    Socket(io::Error),
    /// TLS failed.
    Tls(rustls::Error),
}

impl From<io::Error> for HandshakeFailure {
    fn from(error: io::Error) -> Self {
        HandshakeFailure::Socket(error)
    }
}

impl TlsStream {
    /// Goes through the handshake; `head` was read already. Data cannot be in it:
    /// a client has to hear the server first.
    ///
    /// # Errors
    /// Why there was none. The peer has been told where TLS has words for it.
    pub async fn accept(
        tcp: TcpStream,
        head: &mut [u8],
        config: Arc<ServerConfig>,
        scratch: Rc<RefCell<Scratch>>,
    ) -> Result<(Self, Agreed), HandshakeFailure> {
        let channel = Channel::new(config).map_err(HandshakeFailure::Tls)?;
        let mut stream = Self { tcp, channel, plain: BytesMut::new(), scratch, ended: false };
        let mut received = stream.channel.receive(head, &mut Vec::new());
        loop {
            // An alert goes out as well, if the socket takes it at once.
            let sent = stream.flush().await;
            std::mem::replace(&mut received, Ok(())).map_err(HandshakeFailure::Tls)?;
            sent?;
            if !stream.channel.is_handshaking() {
                let agreed = stream.channel.agreed();
                return Ok((stream, agreed));
            }
            stream.tcp.readable().await?;
            match stream.receive() {
                Ok(()) if stream.ended && stream.channel.is_handshaking() => {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => received = Err(error.downcast::<rustls::Error>()?),
            }
        }
    }

    /// The socket, the connection, and plaintext that was received and not read.
    #[must_use]
    pub fn into_parts(self) -> (TcpStream, Channel, Bytes) {
        (self.tcp, self.channel, self.plain.freeze())
    }

    async fn flush(&mut self) -> io::Result<()> {
        loop {
            let tcp = &self.tcp;
            if self.channel.flush(|bytes| tcp.try_write(bytes))? {
                return Ok(());
            }
            self.tcp.writable().await?;
        }
    }

    /// One read of the socket.
    fn receive(&mut self) -> io::Result<()> {
        let mut scratch = self.scratch.borrow_mut();
        let Scratch { incoming, plain, .. } = &mut *scratch;
        let begun = self.channel.resume(incoming);
        let read = self.tcp.try_read(&mut incoming[begun..])?;
        if read == 0 {
            self.ended = true;
            return Ok(());
        }
        plain.clear();
        let received = self.channel.receive(&mut incoming[..begun + read], plain);
        self.plain.extend_from_slice(plain);
        plain.clear();
        self.ended |= self.channel.peer_closed();
        let tcp = &self.tcp;
        if received.is_err() {
            // Nobody comes back to it.
            let _ = self.channel.flush(|bytes| tcp.try_write(bytes));
        }
        received.map_err(io::Error::other)
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let tcp = &self.tcp;
            if self.channel.flush(|bytes| tcp.try_write(bytes))? {
                return Poll::Ready(Ok(()));
            }
            ready!(self.tcp.poll_write_ready(context))?;
        }
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.plain.is_empty() && !self.ended {
            ready!(self.tcp.poll_read_ready(context))?;
            match self.receive() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => result?,
            }
            // Answers to key updates; whatever the socket does not take goes with
            // the next write.
            let tcp = &self.tcp;
            self.channel.flush(|bytes| tcp.try_write(bytes))?;
        }
        let length = self.plain.len().min(out.remaining());
        out.put_slice(&self.plain[..length]);
        self.plain.advance(length);
        if self.plain.is_empty() {
            self.plain = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(context))?;
        let piece = &bytes[..bytes.len().min(RECORD)];
        let mut scratch = self.scratch.borrow_mut();
        let length = self.channel.seal(piece, &mut scratch.sealed)?;
        let tcp = &self.tcp;
        self.channel.send(&scratch.sealed[..length], |bytes| tcp.try_write(bytes))?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.channel.close();
        ready!(self.poll_flush(context))?;
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Clear(stream) => Pin::new(stream).poll_read(context, out),
            Stream::Tls(stream) => stream.poll_read(context, out),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Clear(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => stream.poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Clear(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Tls(stream) => {
                let first = slices.iter().find(|slice| !slice.is_empty());
                stream.poll_write(context, first.map_or(&[], |slice| slice))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        // Over TLS hyper had better gather small pieces itself.
        matches!(self, Stream::Clear(stream) if stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Clear(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => stream.poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Clear(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => stream.poll_shutdown(context),
        }
    }
}
