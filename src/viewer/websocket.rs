//! WebSocket, in clear or over TLS, with the subprotocol `tidegate.v1.proto`.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::HeaderValue;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use prost::Message as _;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::link::{Closed, DialError, Dialed, Link, MAX_MESSAGE_BYTES, Received};
use super::room::Source;
use super::target::Target;
use crate::trust;
use crate::wire::proto::v1;
use crate::wire::proto::v1::server_message::Message as In;

const SUBPROTOCOL: HeaderValue = HeaderValue::from_static("tidegate.v1.proto");

/// What WebSocket runs on.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(super) struct WebSocket {
    socket: WebSocketStream<Box<dyn Duplex>>,
    address: SocketAddr,
}

/// Connects, says what is `first`, and waits for the welcome.
pub(super) async fn dial(
    target: &Target,
    tls: &Arc<ClientConfig>,
    first: Vec<v1::ClientMessage>,
) -> Result<Dialed, DialError> {
    let failed = |error: std::io::Error| DialError::failed(format!("cannot connect: {error}"));
    let stream = TcpStream::connect((target.host.as_str(), target.port)).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let address = stream.peer_addr().map_err(failed)?;
    let stream: Box<dyn Duplex> = if target.tls {
        let name = ServerName::try_from(target.host.clone())
            .map_err(|error| DialError::failed(error.to_string()))?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await;
        Box::new(stream.map_err(|error| match trust::is_distrust(&error) {
            true => DialError::distrusted(format!("TLS: {error}")),
            false => DialError::failed(format!("TLS: {error}")),
        })?)
    } else {
        Box::new(stream)
    };
    let request = target.url().into_client_request();
    let mut request = request.map_err(|error| DialError::failed(error.to_string()))?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let upgraded = client_async_with_config(request, stream, Some(config)).await;
    let (socket, _) = upgraded.map_err(|error| refused(&error))?;
    let mut socket = WebSocket { socket, address };
    for message in &first {
        socket.send(message).await.map_err(DialError::Failed)?;
    }
    loop {
        match socket.next().await {
            Received::Message(_, v1::ServerMessage { message: Some(In::Welcome(welcome)) }) => {
                return Ok(Dialed { link: Link::WebSocket(Box::new(socket)), welcome });
            }
            Received::Message(..) => return Err(DialError::failed("not welcomed")),
            Received::Closed(closed) => return Err(DialError::Failed(closed)),
            Received::Alive => {}
        }
    }
}

/// Why there was no upgrade. A client error will be one again, except for those
/// that say "not now".
fn refused(error: &Error) -> DialError {
    match error {
        Error::Http(response) => {
            let status = response.status();
            let body = response.body().as_deref().map(String::from_utf8_lossy);
            let why = format!("refused: {status} {}", body.unwrap_or_default());
            if status.is_client_error() && !matches!(status.as_u16(), 408 | 425 | 429) {
                DialError::Refused { code: status.as_u16(), why }
            } else {
                DialError::failed(why)
            }
        }
        error => DialError::failed(format!("cannot connect: {error}")),
    }
}

impl WebSocket {
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) async fn next(&mut self) -> Received {
        match self.socket.next().await {
            None => Received::Closed(Closed::broken("the server is gone")),
            Some(Err(error)) => {
                Received::Closed(Closed::broken(format!("the connection broke: {error}")))
            }
            Some(Ok(Message::Binary(bytes))) => read(bytes),
            Some(Ok(Message::Close(frame))) => {
                let Some(frame) = frame else {
                    return Received::Closed(Closed::broken("the server is gone"));
                };
                let code = u16::from(frame.code);
                let why = format!("closed by the server: {code} {}", frame.reason);
                Received::Closed(Closed { code: Some(code), why, untrusted: false })
            }
            Some(Ok(_)) => Received::Alive,
        }
    }

    pub(super) async fn send(&mut self, message: &v1::ClientMessage) -> Result<(), Closed> {
        let sent = self.socket.send(Message::binary(message.encode_to_vec())).await;
        sent.map_err(|error| Closed::broken(format!("the connection broke: {error}")))
    }

    pub(super) async fn close(mut self) {
        // Whether or not it is heard, we are leaving.
        drop(self.socket.close(None).await);
    }
}

fn read(bytes: Bytes) -> Received {
    match v1::ServerMessage::decode(bytes) {
        Ok(message) => Received::Message(Source::Control, message),
        Err(error) => Received::Closed(Closed::broken(format!("an unreadable message: {error}"))),
    }
}
