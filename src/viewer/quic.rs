//! Raw QUIC, ALPN `tidegate/1`: a control stream that the viewer opens, a stream of
//! important events that the server opens, and datagrams.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Buf;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use prost::Message as _;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, IdleTimeout, ReadError, RecvStream,
    SendStream, TransportConfig, TransportErrorCode, VarInt,
};
use tokio::time::{sleep, timeout};

use super::StartError;
use super::link::{Closed, DialError, Dialed, Link, MAX_MESSAGE_BYTES, Received};
use super::room::Source;
use super::target::Target;
use crate::trust::Trust;
use crate::wire::proto::v1;
use crate::wire::proto::v1::client_message::Message as Out;
use crate::wire::proto::v1::server_message::Message as In;
use crate::wire::stream::{self, Decoder, TooLong};

/// The protocol's name in the handshake.
pub(super) const ALPN: &[u8] = b"tidegate/1";
/// A peer that says nothing for so long is gone.
const IDLE: Duration = Duration::from_secs(30);
/// Two of these may be lost before `IDLE` is over; mobile networks forget a UDP
/// flow after 30 s and more (RFC 4787 asks for 2 minutes, few keep to it).
const KEEP_ALIVE: Duration = Duration::from_secs(12);
/// Bytes that a stream may have on its way, and the connection. A viewer that does
/// not read holds no more than this.
const STREAM_WINDOW: u32 = 512 << 10;
const WINDOW: u32 = 1 << 20;
/// Datagrams that are kept unread; the oldest go first, which is what sampled
/// content wants.
const DATAGRAM_BYTES: usize = 256 << 10;
/// Read from a stream at once.
const CHUNK: usize = 64 << 10;
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 4;
/// Between their beginnings (RFC 8305, section 5): one where nobody is, is silent.
const STAGGER: Duration = Duration::from_millis(250);
/// After a stream ended: for the server to say why.
const LAST_WORD: Duration = Duration::from_secs(3);

/// Makes QUIC connections, all from one UDP socket of each address family.
#[derive(Clone)]
pub(super) struct Dialer {
    config: ClientConfig,
    endpoints: Arc<Mutex<[Option<Endpoint>; 2]>>,
}

impl Dialer {
    pub(super) fn new(trust: &Trust) -> Result<Self, StartError> {
        let wrong = |error: &dyn std::fmt::Display| StartError::Tls(error.to_string());
        let tls = trust.client(&[ALPN]).map_err(|error| wrong(&error))?;
        let tls = QuicClientConfig::try_from(tls).map_err(|error| wrong(&error))?;
        let mut config = ClientConfig::new(Arc::new(tls));
        let mut transport = TransportConfig::default();
        transport
            .max_idle_timeout(IdleTimeout::try_from(IDLE).ok())
            .keep_alive_interval(Some(KEEP_ALIVE))
            .stream_receive_window(STREAM_WINDOW.into())
            .receive_window(WINDOW.into())
            .datagram_receive_buffer_size(Some(DATAGRAM_BYTES))
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(1));
        config.transport_config(Arc::new(transport));
        Ok(Self { config, endpoints: Arc::default() })
    }

    fn endpoint(&self, to: SocketAddr) -> std::io::Result<Endpoint> {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut endpoints[usize::from(to.is_ipv6())];
        if let Some(endpoint) = slot {
            return Ok(endpoint.clone());
        }
        let endpoint = Endpoint::client(any(to.is_ipv6()))?;
        *slot = Some(endpoint.clone());
        Ok(endpoint)
    }

    /// Moves everything to new UDP sockets, as after a change of network.
    /// Connections go on.
    pub(super) fn rebind(&self) -> std::io::Result<()> {
        let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        for (family, endpoint) in endpoints.iter().enumerate() {
            if let Some(endpoint) = endpoint {
                endpoint.rebind(UdpSocket::bind(any(family == 1))?)?;
            }
        }
        Ok(())
    }

    /// Lets goodbyes go out.
    pub(super) async fn drained(&self) {
        let endpoints: Vec<Endpoint> = {
            let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
            endpoints.iter().flatten().cloned().collect()
        };
        for endpoint in endpoints {
            endpoint.wait_idle().await;
        }
    }

    /// Connects, says what is `first`, and waits for the welcome.
    pub(super) async fn dial(
        &self,
        target: &Target,
        first: Vec<v1::ClientMessage>,
    ) -> Result<Dialed, DialError> {
        let found = tokio::net::lookup_host((target.host.as_str(), target.port)).await;
        let found = found.map_err(|error| DialError::failed(format!("{error}")))?;
        let first = &first;
        let mut attempts: FuturesUnordered<_> = (0..)
            .zip(found.take(MAX_ADDRESSES))
            .map(async |(place, address)| {
                sleep(STAGGER * place).await;
                self.dial_at(target, address, first).await
            })
            .collect();
        let mut last = DialError::failed("no address");
        while let Some(outcome) = attempts.next().await {
            match outcome {
                Ok(dialed) => return Ok(dialed),
                Err(error) if error.is_final() => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn dial_at(
        &self,
        target: &Target,
        address: SocketAddr,
        first: &[v1::ClientMessage],
    ) -> Result<Dialed, DialError> {
        let failed = |why: &dyn std::fmt::Display| DialError::failed(format!("QUIC: {why}"));
        let endpoint = self.endpoint(address).map_err(|error| failed(&error))?;
        let connecting = endpoint.connect_with(self.config.clone(), address, &target.host);
        let connecting = connecting.map_err(|error| failed(&error))?;
        let closed = |error: ConnectionError| DialError::Failed(closed(&error));
        let connection = connecting.await.map_err(closed)?;
        let (send, receive) = connection.open_bi().await.map_err(closed)?;
        let control = Messages::new(receive);
        let mut quic = Quic { connection, send, control, important: None, closed: None };
        for message in first {
            quic.send(message).await.map_err(DialError::Failed)?;
        }
        if first.is_empty() {
            // The server knows of a stream when something is on it.
            let message = v1::ClientMessage { message: Some(Out::Pong(v1::Pong {})) };
            quic.send(&message).await.map_err(DialError::Failed)?;
        }
        match quic.control.next().await {
            Ok(v1::ServerMessage { message: Some(In::Welcome(welcome)) }) => {
                Ok(Dialed { link: Link::Quic(Box::new(quic)), welcome })
            }
            Ok(_) => Err(DialError::failed("QUIC: not welcomed")),
            Err(why) => Err(DialError::Failed(quic.ended(why).await)),
        }
    }
}

fn any(ipv6: bool) -> SocketAddr {
    if ipv6 { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() }
}

/// A connection.
pub(super) struct Quic {
    connection: Connection,
    send: SendStream,
    control: Messages,
    important: Option<Messages>,
    /// It is over; what has come before that is still to be read.
    closed: Option<Closed>,
}

/// A stream, cut into messages.
struct Messages {
    stream: RecvStream,
    decoder: Decoder,
    /// Whole ones of what was read at once.
    whole: VecDeque<Result<v1::ServerMessage, String>>,
}

/// Why a stream brings no more.
enum Over {
    /// The connection is over.
    Lost(ConnectionError),
    /// The stream is, or makes no sense.
    Stream(String),
}

impl Messages {
    fn new(stream: RecvStream) -> Self {
        Self { stream, decoder: Decoder::default(), whole: VecDeque::new() }
    }

    /// The next message; may be dropped before it is there.
    async fn next(&mut self) -> Result<v1::ServerMessage, Over> {
        loop {
            if let Some(message) = self.whole.pop_front() {
                return message.map_err(Over::Stream);
            }
            let chunk = match self.stream.read_chunk(CHUNK, true).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Err(Over::Stream("the server ended a stream".to_owned())),
                Err(ReadError::ConnectionLost(error)) => return Err(Over::Lost(error)),
                Err(error) => return Err(Over::Stream(format!("a stream broke: {error}"))),
            };
            let mut heard = |message: &[u8]| {
                self.whole.push_back(decode(message));
                true
            };
            let fed = self.decoder.feed(&chunk.bytes, MAX_MESSAGE_BYTES, &mut heard);
            if let Err(TooLong(length)) = fed {
                let why = format!("a message of {length} bytes, more than {MAX_MESSAGE_BYTES}");
                self.whole.push_back(Err(why));
            }
        }
    }
}

/// Of a stream that is there, or never.
async fn next_of(messages: &mut Option<Messages>) -> Result<v1::ServerMessage, Over> {
    match messages {
        Some(messages) => messages.next().await,
        None => std::future::pending().await,
    }
}

fn decode(bytes: impl Buf) -> Result<v1::ServerMessage, String> {
    v1::ServerMessage::decode(bytes).map_err(|error| format!("an unreadable message: {error}"))
}

impl Quic {
    pub(super) fn address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// The next thing; may be dropped before it is there.
    pub(super) async fn next(&mut self) -> Received {
        loop {
            if let Some(closed) = &self.closed {
                let closed = closed.clone();
                return self.rest(closed).await;
            }
            let over = tokio::select! {
                message = self.control.next() => match message {
                    Ok(message) => return Received::Message(Source::Control, message),
                    Err(over) => over,
                },
                message = next_of(&mut self.important) => match message {
                    Ok(message) => return Received::Message(Source::Important, message),
                    Err(over) => over,
                },
                stream = self.connection.accept_uni(), if self.important.is_none() => {
                    match stream {
                        Ok(stream) => {
                            self.important = Some(Messages::new(stream));
                            continue;
                        }
                        Err(error) => Over::Lost(error),
                    }
                },
                datagram = self.connection.read_datagram() => match datagram {
                    // One that cannot be read is as good as lost.
                    Ok(bytes) => match decode(bytes) {
                        Ok(message) => return Received::Message(Source::Datagram, message),
                        Err(_) => return Received::Alive,
                    },
                    Err(error) => Over::Lost(error),
                },
            };
            self.closed = Some(self.ended(over).await);
        }
    }

    /// What had come before the connection was over, then its end.
    async fn rest(&mut self, closed: Closed) -> Received {
        if let Ok(message) = self.control.next().await {
            return Received::Message(Source::Control, message);
        }
        if let Some(important) = &mut self.important
            && let Ok(message) = important.next().await
        {
            return Received::Message(Source::Important, message);
        }
        Received::Closed(closed)
    }

    /// A stream brings no more: the server's word on it, if there is one.
    async fn ended(&self, over: Over) -> Closed {
        match over {
            Over::Lost(error) => closed(&error),
            Over::Stream(why) => match timeout(LAST_WORD, self.connection.closed()).await {
                Ok(error) => closed(&error),
                Err(_) => {
                    self.connection.close(VarInt::from_u32(0), b"");
                    Closed::broken(why)
                }
            },
        }
    }

    pub(super) async fn send(&mut self, message: &v1::ClientMessage) -> Result<(), Closed> {
        let sent = self.send.write_all(&stream::data(&message.encode_to_vec())).await;
        sent.map_err(|error| Closed::broken(format!("the connection broke: {error}")))
    }

    pub(super) fn close(self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }
}

/// What the end of a connection means: its code is that of a WebSocket's close
/// frame.
fn closed(error: &ConnectionError) -> Closed {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let code = u16::try_from(close.error_code.into_inner()).ok();
            let reason = String::from_utf8_lossy(&close.reason);
            let number = code.map_or("?".to_owned(), |code| code.to_string());
            Closed {
                code,
                why: format!("closed by the server: {number} {reason}"),
                untrusted: false,
            }
        }
        error => {
            let untrusted = is_distrust(error);
            Closed { untrusted, ..Closed::broken(format!("QUIC: {error}")) }
        }
    }
}

/// Whether this side does not believe the server's certificate. quinn keeps only
/// the alert that it told the server of it; RFC 8446, section 6.2, says which are
/// about certificates, and rustls sends `access_denied` for what a verifier of
/// ours refuses.
fn is_distrust(error: &ConnectionError) -> bool {
    let ConnectionError::TransportError(error) = error else { return false };
    const ALERTS: [u8; 7] = [42, 43, 44, 45, 46, 48, 49];
    ALERTS.iter().any(|alert| error.code == TransportErrorCode::crypto(*alert))
}
