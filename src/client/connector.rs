//! Connections to the server, in clear or over TLS, for both protocols.

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

use super::StartError;
use crate::trust::Trust;

/// For connecting and TLS' handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes connections to the server of a URL: TLS if that is `https://`.
#[derive(Clone)]
pub(super) struct Connector {
    tls: Option<TlsConnector>,
    timeout: Duration,
}

/// What a protocol runs on.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Connection for Box<dyn Duplex> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Connector {
    /// For connections that speak `protocol` (RFC 7301) and are there within
    /// `timeout`, or within 5 s.
    pub(super) fn new(
        url: &Uri,
        trust: &Trust,
        protocol: &[u8],
        timeout: Duration,
    ) -> Result<Self, StartError> {
        let tls = match url.scheme_str() {
            Some("https") => {
                let tls = trust.client(&[protocol]);
                let tls = tls.map_err(|error| StartError::Tls(error.to_string()))?;
                Some(TlsConnector::from(Arc::new(tls)))
            }
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
