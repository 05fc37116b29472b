//! Connections to a server, in clear or over TLS: of publishers, to the edge, and
//! of the edge, to a collector of spans.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower::Service;

use crate::trust::Trust;

/// For connecting and TLS' handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes connections to the server of a URL: TLS if that is `https://`.
#[derive(Clone)]
pub(crate) struct Connector {
    tls: Option<TlsConnector>,
    timeout: Duration,
}

/// What a protocol runs on.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Connection for Box<dyn Duplex> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Connector {
    /// For connections that speak `protocol` (RFC 7301) and are there within
    /// `timeout`, or within 5 s.
    ///
    /// # Errors
    /// rustls' own, if it cannot be set up.
    pub(crate) fn new(
        url: &Uri,
        trust: &Trust,
        protocol: &[u8],
        timeout: Duration,
    ) -> Result<Self, rustls::Error> {
        let tls = match url.scheme_str() {
            Some("https") => Some(TlsConnector::from(Arc::new(trust.client(&[protocol])?))),
            _ => None,
        };
        Ok(Self { tls, timeout: timeout.min(CONNECT_TIMEOUT) })
    }

    async fn connect(self, uri: Uri) -> io::Result<TokioIo<Box<dyn Duplex>>> {
        let host = uri.host().unwrap_or_default();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bare.unwrap_or(host);
        let port = uri.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Duplex> = match self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                Box::new(tls.connect(name, stream).await?)
            }
        };
        Ok(TokioIo::new(stream))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Duplex>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = timeout(self.timeout, self.clone().connect(uri));
        let late = || io::Error::new(io::ErrorKind::TimedOut, "connecting took too long");
        Box::pin(async move { connecting.await.unwrap_or_else(|_| Err(late())) })
    }
}

/// What the outer errors wrap: "client error (Connect)" says nothing.
pub(crate) fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
