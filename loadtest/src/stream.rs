//! A worker's TCP connection, in clear or in TLS.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use crate::trust;

/// A connection.
#[derive(Debug)]
pub(crate) enum Stream {
    /// In clear.
    Plain(TcpStream),
    /// In TLS.
    Secure(Box<Secure>),
}

/// A connection in TLS.
#[derive(Debug)]
pub(crate) struct Secure {
    tcp: TcpStream,
    tls: ClientConnection,
}

impl Stream {
    /// Over `tcp`, which may still be connecting.
    pub(crate) fn new(tcp: TcpStream, tls: Option<&Arc<ClientConfig>>) -> io::Result<Stream> {
        let Some(config) = tls else { return Ok(Stream::Plain(tcp)) };
        let name = ServerName::try_from(trust::SERVER_NAME).map_err(io::Error::other)?;
        let tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        Ok(Stream::Secure(Box::new(Secure { tcp, tls })))
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Secure(secure) => &secure.tcp,
        }
    }

    /// What went wrong with it, if anything.
    pub(crate) fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.tcp().take_error()
    }

    /// The other end, once it is connected.
    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().peer_addr()
    }

    /// Reads; fewer bytes than fit mean that the socket is empty. `WouldBlock`
    /// says that there was nothing, 0 that nothing will come.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(tcp) => tcp.read(buffer),
            Stream::Secure(secure) => secure.read(buffer),
        }
    }

    /// Writes all of it or fails: what a viewer says is little.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(tcp) => tcp.write(bytes),
            Stream::Secure(secure) => secure.write(bytes),
        }
    }
}

impl Secure {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Before the handshake is over, rustls keeps it until then.
        self.tls.writer().write_all(bytes)?;
        self.flush()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.tcp)?;
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        let mut emptied = false;
        loop {
            match self.tls.reader().read(&mut buffer[filled..]) {
                Ok(0) => return Ok(filled),
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if emptied && filled == 0 {
                        return Err(ErrorKind::WouldBlock.into());
                    }
                    if emptied {
                        return Ok(filled);
                    }
                    emptied = self.fetch()?;
                }
                // The peer hung up without a word; what came before it counts.
                Err(_) if filled > 0 => return Ok(filled),
                Err(error) => return Err(error),
            }
            if filled == buffer.len() {
                return Ok(filled);
            }
        }
    }

    /// Takes what the socket holds, up to what the TLS layer takes at once;
    /// whether the socket is empty now.
    fn fetch(&mut self) -> io::Result<bool> {
        let mut source = Source { tcp: &mut self.tcp, emptied: false };
        match self.tls.read_tls(&mut source) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
        let emptied = source.emptied;
        self.tls.process_new_packets().map_err(io::Error::other)?;
        self.flush()?;
        Ok(emptied)
    }
}

/// Notes whether a read has emptied the socket (epoll(7)): it spares a second
/// read per frame.
struct Source<'a> {
    tcp: &'a mut TcpStream,
    emptied: bool,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.tcp.read(buffer)?;
        self.emptied = read < buffer.len() && read > 0;
        Ok(read)
    }
}
