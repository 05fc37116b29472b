//! The viewer against servers that say what a test wants: over WebSocket, in clear
//! and over TLS, and over QUIC.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use prost::Message as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

use super::*;
use crate::wire::proto::v1::{client_message::Message as Out, server_message::Message as In};
use crate::wire::stream::{self, Decoder};

/// Longest wait for anything; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("in time")
}

/// A viewer's connection, from the server's side.
enum Peer {
    WebSocket(Box<WebSocketStream<TcpStream>>),
    Quic(Box<QuicPeer>),
}

struct QuicPeer {
    connection: quinn::Connection,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    important: Option<quinn::SendStream>,
    decoder: Decoder,
    whole: VecDeque<Bytes>,
}

impl Peer {
    async fn heard(&mut self) -> Out {
        let bytes = soon(async {
            match self {
                Peer::WebSocket(socket) => loop {
                    match socket.next().await.expect("open").expect("whole") {
                        Message::Binary(bytes) => break bytes,
                        Message::Ping(_) | Message::Pong(_) => {}
                        other => panic!("{other:?}"),
                    }
                },
                Peer::Quic(quic) => loop {
                    if let Some(message) = quic.whole.pop_front() {
                        break message;
                    }
                    let chunk = quic.receive.read_chunk(1_000, true).await.expect("open");
                    let mut heard = |message: &[u8]| {
                        quic.whole.push_back(Bytes::copy_from_slice(message));
                        true
                    };
                    let bytes = chunk.expect("not ended").bytes;
                    quic.decoder.feed(&bytes, 100_000, &mut heard).expect("short");
                },
            }
        })
        .await;
        v1::ClientMessage::decode(bytes).expect("readable").message.expect("known")
    }

    async fn join(&mut self) -> v1::Join {
        match self.heard().await {
            Out::Join(join) => join,
            other => panic!("{other:?}"),
        }
    }

    async fn published(&mut self) -> v1::Publish {
        match self.heard().await {
            Out::Publish(event) => event,
            other => panic!("{other:?}"),
        }
    }

    async fn say(&mut self, message: In) {
        let message = v1::ServerMessage { message: Some(message) };
        match self {
            Peer::WebSocket(socket) => {
                let message = Message::binary(message.encode_to_vec());
                socket.send(message).await.expect("sent");
            }
            Peer::Quic(quic) => {
                let bytes = stream::data(&message.encode_to_vec());
                quic.send.write_all(&bytes).await.expect("sent");
            }
        }
    }

    /// On the stream of important events.
    async fn say_important(&mut self, message: In) {
        let message = v1::ServerMessage { message: Some(message) };
        let Peer::Quic(quic) = self else { panic!("one stream only") };
        if quic.important.is_none() {
            quic.important = Some(quic.connection.open_uni().await.expect("a stream"));
        }
        let important = quic.important.as_mut().expect("opened");
        important.write_all(&stream::data(&message.encode_to_vec())).await.expect("sent");
    }

    fn say_datagram(&mut self, message: In) {
        let message = v1::ServerMessage { message: Some(message) };
        let Peer::Quic(quic) = self else { panic!("no datagrams") };
        quic.connection.send_datagram(message.encode_to_vec().into()).expect("sent");
    }

    async fn welcome(&mut self) {
        let session = "s".to_owned();
        self.say(In::Welcome(v1::Welcome { session, ping_interval_ms: 60_000, ack_slot: 0 })).await;
    }

    async fn close(&mut self, code: u16) {
        match self {
            Peer::WebSocket(socket) => {
                let frame = CloseFrame { code: code.into(), reason: "test".into() };
                (**socket).close(Some(frame)).await.expect("closed");
            }
            Peer::Quic(quic) => {
                quic.send.finish().expect("open");
                // What was said is read before the end is told.
                let _ = quic.send.stopped().await;
                quic.connection.close(u32::from(code).into(), b"test");
            }
        }
    }
}

/// A certificate for `localhost`, its key, and its hash as a viewer knows it.
fn certificate() -> (CertificateDer<'static>, PrivateKeyDer<'static>, Trust) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("made");
    let der = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let trust = Trust::Roots(vec![der.to_vec()]);
    (der, key, trust)
}

fn tls(alpn: &[u8]) -> (rustls::ServerConfig, Trust) {
    let (certificate, key, trust) = certificate();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a pair");
    tls.alpn_protocols = vec![alpn.to_vec()];
    (tls, trust)
}

/// A server on one port, or a half of one.
struct Server {
    tcp: Option<TcpListener>,
    udp: Option<quinn::Endpoint>,
    port: u16,
    trust: Trust,
}

impl Server {
    async fn websocket() -> Server {
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = tcp.local_addr().expect("bound").port();
        Server { tcp: Some(tcp), udp: None, port, trust: Trust::System }
    }

    fn quic() -> Server {
        Self::quic_on(0)
    }

    fn quic_on(port: u16) -> Server {
        let (tls, trust) = tls(quic::ALPN);
        let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).expect("TLS 1.3");
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let udp = quinn::Endpoint::server(config, address).expect("a port");
        let port = udp.local_addr().expect("bound").port();
        Server { tcp: None, udp: Some(udp), port, trust }
    }

    fn options(&self) -> Options {
        let trust = self.trust.clone();
        Options { trust, ..Options::new(format!("ws://localhost:{}", self.port)) }
    }

    async fn accept_tcp(&self) -> Peer {
        #[expect(clippy::result_large_err, reason = "the library's signature")]
        let agree = |request: &Request, mut response: Response| {
            assert_eq!(request.uri().path(), "/v1/ws");
            let protocol = request.headers()["sec-websocket-protocol"].clone();
            assert_eq!(protocol, "tidegate.v1.proto");
            response.headers_mut().insert("sec-websocket-protocol", protocol);
            Ok(response)
        };
        let tcp = self.tcp.as_ref().expect("TCP");
        let (stream, _) = soon(tcp.accept()).await.expect("a connection");
        let socket = soon(accept_hdr_async(stream, agree)).await.expect("upgraded");
        Peer::WebSocket(Box::new(socket))
    }

    async fn accept_udp(&self) -> Peer {
        let udp = self.udp.as_ref().expect("UDP");
        let incoming = soon(udp.accept()).await.expect("open");
        let connection = soon(incoming.into_future()).await.expect("a connection");
        let (send, receive) = soon(connection.accept_bi()).await.expect("a control stream");
        let (decoder, whole) = (Decoder::default(), VecDeque::new());
        let peer = QuicPeer { connection, send, receive, important: None, decoder, whole };
        Peer::Quic(Box::new(peer))
    }

    /// The next connection, which has asked to join: welcomed.
    async fn accept(&self) -> (Peer, v1::Join) {
        let mut peer = match self.tcp {
            Some(_) => self.accept_tcp().await,
            None => self.accept_udp().await,
        };
        let join = peer.join().await;
        peer.welcome().await;
        (peer, join)
    }
}

fn joined(seq: u64, important: u64, recovered: bool) -> In {
    let room = "r".to_owned();
    In::Joined(v1::Joined { room, epoch: 7, seq, important, recovered, ..v1::Joined::default() })
}

fn event(seq: Option<u64>, important: Option<u64>) -> v1::Event {
    let id = format!("{seq:?}-{important:?}");
    v1::Event { id, kind: "k".to_owned(), seq, important, ..v1::Event::default() }
}

fn frame_of(seqs: (u64, u64), important: u64, events: Vec<v1::Event>) -> v1::Frame {
    let (first_seq, last_seq) = seqs;
    let room = "r".to_owned();
    v1::Frame { room, epoch: 7, first_seq, last_seq, important, events, ..v1::Frame::default() }
}

fn error(code: &str, temporary: bool, retry_after_ms: Option<u64>) -> In {
    let (code, reason, room) = (code.to_owned(), String::new(), Some("r".to_owned()));
    In::Error(v1::Error { code, reason, temporary, room, retry_after_ms })
}

/// The numbers of the next events, past other things.
async fn events(room: &mut Room, count: usize) -> Vec<(Option<u64>, Option<u64>)> {
    let mut came = Vec::new();
    while came.len() < count {
        if let Happening::Event(event) = soon(room.next()).await.expect("open") {
            came.push((event.seq, event.important));
        }
    }
    came
}

async fn until(room: &mut Room, wanted: impl Fn(&Happening) -> bool) -> Happening {
    loop {
        let happening = soon(room.next()).await.expect("open");
        if wanted(&happening) {
            return happening;
        }
    }
}

/// A server that sends its viewer away, and when it is back for good.
async fn leaving_server(server: &Server) {
    let (mut peer, join) = server.accept().await;
    assert_eq!((join.token.as_str(), join.acks, join.resume), ("t", true, None));
    peer.say(joined(1, 0, false)).await;
    let ack = Some(v1::AckAsked { one_in: 1, within_ms: 20, digest_from: None });
    let events = vec![event(Some(2), None), event(Some(3), Some(1))];
    peer.say(In::Frame(v1::Frame { ack, ..frame_of((2, 3), 1, events) })).await;
    let said = match (peer.heard().await, peer.heard().await) {
        (Out::Ack(ack), Out::Publish(said)) | (Out::Publish(said), Out::Ack(ack)) => {
            assert_eq!(ack.important, 1);
            said
        }
        other => panic!("{other:?}"),
    };
    peer.say(In::Ping(v1::Ping {})).await;
    assert!(matches!(peer.heard().await, Out::Pong(_)));
    peer.say(In::Goaway(v1::Goaway { reconnect_after_ms: 10, url: None })).await;
    peer.close(3_000).await;

    let (mut peer, join) = server.accept().await;
    let resume = v1::Resume { epoch: 7, seq: 3, important: 1 };
    assert_eq!(join.resume, Some(resume));
    peer.say(joined(3, 1, true)).await;
    let again = peer.published().await;
    assert_eq!(again, said, "with the same id");
    let accepted = v1::Accepted { id: again.id, seq: Some(4), admission: None };
    peer.say(In::Accepted(accepted)).await;
    peer.close(3_500).await;
}

async fn leaves_and_comes_back(server: Server, transport: Transport) {
    let viewer =
        Viewer::connect(Options { transport: Some(transport), ..server.options() }).unwrap();
    let watching = async {
        let mut room = soon(viewer.join("r", "t")).await.unwrap();
        assert_eq!(viewer.transport(), Some(transport));
        assert_eq!(viewer.join("r", "t").await.unwrap_err(), JoinError::AlreadyJoined);
        let first = soon(room.next()).await.unwrap();
        assert!(matches!(first, Happening::Joined(Snapshot { why: Why::First, .. })), "{first:?}");
        assert_eq!(events(&mut room, 2).await, [(Some(2), None), (Some(3), Some(1))]);
        let said = room.publish(NewEvent::json("chat", &"hi").unwrap());
        let said = tokio::spawn(said);
        let wait = until(&mut room, |h| matches!(h, Happening::Disconnected { .. })).await;
        let Happening::Disconnected { again_in, why } = wait else { unreachable!() };
        assert_eq!(again_in, Duration::from_millis(10), "as the server said");
        assert!(why.contains("3000"), "{why}");
        assert_eq!(soon(said).await.unwrap(), Ok(Published { seq: Some(4) }));
        let end = until(&mut room, |h| matches!(h, Happening::Ended(_))).await;
        let Happening::Ended(End::Dismissed { code, .. }) = end else { panic!("{end:?}") };
        assert_eq!((code, soon(room.next()).await), (3_500, None));
        let late = room.publish(NewEvent::new("chat", "x")).await;
        assert_eq!(late, Err(PublishError::Closed));
    };
    tokio::join!(watching, leaving_server(&server));
    let stats = soon(viewer.close()).await;
    assert_eq!((stats.published, stats.resent, stats.websocket + stats.quic), (1, 1, 2));
}

#[tokio::test]
async fn it_is_told_what_is_withheld_when_that_changes() {
    let server = Server::websocket().await;
    let viewer = Viewer::connect(server.options()).unwrap();
    let serving = async {
        let (mut peer, _) = server.accept().await;
        peer.say(joined(1, 0, false)).await;
        for (seq, withheld) in [(2, 0), (3, 1), (4, 3), (5, 2), (6, 2), (7, 0)] {
            peer.say(In::Frame(v1::Frame { withheld, ..frame_of((seq, seq), 0, vec![]) })).await;
        }
    };
    let (Ok(mut room), ()) = tokio::join!(viewer.join("r", "t"), serving) else { panic!() };
    let mut next = async || until(&mut room, |h| matches!(h, Happening::Withheld(_))).await;
    for expected in [Withheld::Sampled, Withheld::Ordered, Withheld::Totals, Withheld::Nothing] {
        assert_eq!(next().await, Happening::Withheld(expected));
    }
}

#[tokio::test]
async fn over_websocket_it_comes_back_where_it_left_off_and_a_dismissed_one_does_not() {
    leaves_and_comes_back(Server::websocket().await, Transport::WebSocket).await;
}

#[tokio::test]
async fn over_quic_it_comes_back_where_it_left_off_and_a_dismissed_one_does_not() {
    leaves_and_comes_back(Server::quic(), Transport::Quic).await;
}

#[tokio::test]
async fn streams_that_overtake_each_other_make_one_order_of_important_events() {
    let server = Server::quic();
    let viewer = Viewer::connect(server.options()).unwrap();
    let serving = async {
        let (mut peer, _) = server.accept().await;
        // Before `joined`, and named by the control stream before it comes.
        peer.say_important(In::Frame(frame_of((2, 1), 1, vec![event(Some(2), Some(1))]))).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        peer.say(joined(1, 0, false)).await;
        peer.say(In::Frame(frame_of((3, 3), 2, vec![event(Some(3), None)]))).await;
        // A datagram would be ignored before it is in.
        peer.published().await;
        let total = |sum| v1::Total { kind: "like".to_owned(), sum, ..v1::Total::default() };
        for (time_ms, sum) in [(20, 7), (10, 5), (30, 9)] {
            let totals = vec![total(sum)];
            let sampled = v1::Frame { time_ms, totals, ..frame_of((4, 3), 2, Vec::new()) };
            peer.say_datagram(In::Frame(sampled));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        peer.say_important(In::Frame(frame_of((4, 3), 2, vec![event(Some(4), Some(2))]))).await;
        peer
    };
    let watching = async {
        let mut room = soon(viewer.join("r", "t")).await.unwrap();
        let _said = tokio::spawn(room.publish(NewEvent::new("chat", "I am in")));
        let (mut numbers, mut sums) = (Vec::new(), Vec::new());
        while numbers.len() < 2 {
            match soon(room.next()).await.unwrap() {
                Happening::Event(event) => numbers.extend(event.important),
                Happening::Totals(totals) => sums.extend(totals.iter().map(|total| total.sum)),
                _ => {}
            }
        }
        assert_eq!(numbers, [1, 2]);
        assert!(sums.is_sorted() && sums.last() == Some(&9), "the newest wins: {sums:?}");
        assert_eq!(room.tally().pulls, 0, "it was waited for");
        assert_eq!(room.position().unwrap().seq, 3);
    };
    let (_peer, ()) = tokio::join!(serving, watching);
    assert!(viewer.stats().datagrams > 0);
}

#[tokio::test]
async fn a_change_of_address_goes_unnoticed() {
    let server = Server::quic();
    let viewer = Viewer::connect(server.options()).unwrap();
    let serving = async {
        let (mut peer, _) = server.accept().await;
        peer.say(joined(0, 0, false)).await;
        let mut addresses = Vec::new();
        for seq in 1..=2 {
            let said = peer.published().await;
            let Peer::Quic(quic) = &peer else { unreachable!() };
            addresses.push(quic.connection.remote_address());
            let accepted = v1::Accepted { id: said.id, seq: Some(seq), admission: None };
            peer.say(In::Accepted(accepted)).await;
        }
        assert_ne!(addresses[0], addresses[1]);
        peer
    };
    let watching = async {
        let room = soon(viewer.join("r", "t")).await.unwrap();
        soon(room.publish(NewEvent::new("chat", "before"))).await.unwrap();
        viewer.rebind().await.unwrap();
        soon(room.publish(NewEvent::new("chat", "after"))).await.unwrap();
        room
    };
    let (_peer, _room) = tokio::join!(serving, watching);
    assert_eq!((viewer.stats().quic, viewer.stats().lost), (1, 0));
}

#[tokio::test]
async fn where_udp_goes_nowhere_it_falls_back_and_remembers() {
    let server = Server::websocket().await;
    let seen = tokio::sync::Notify::new();
    // Takes everything, says nothing.
    let hole = UdpSocket::bind(("127.0.0.1", server.port)).await.unwrap();
    let viewer = Viewer::connect(server.options()).unwrap();
    let serving = async {
        let (mut peer, _) = server.accept().await;
        peer.say(joined(0, 0, false)).await;
        seen.notified().await;
        drop(peer);
        let (mut peer, _) = server.accept().await;
        peer.say(joined(0, 0, true)).await;
        peer
    };
    let watching = async {
        let mut room = soon(viewer.join("r", "t")).await.unwrap();
        assert_eq!(viewer.transport(), Some(Transport::WebSocket));
        seen.notify_one();
        let tried = hole.try_recv_from(&mut [0; 2_000]).is_ok();
        assert!(tried, "QUIC was tried first");
        until(&mut room, |h| matches!(h, Happening::Disconnected { .. })).await;
        while hole.try_recv_from(&mut [0; 2_000]).is_ok() {}
        until(&mut room, |h| matches!(h, Happening::Joined(_))).await;
        assert!(hole.try_recv_from(&mut [0; 2_000]).is_err(), "not again so soon");
    };
    let (_peer, ()) = tokio::join!(serving, watching);
}

#[tokio::test]
async fn where_both_work_it_is_quic() {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server { tcp: None, ..Server::quic_on(tcp.local_addr().unwrap().port()) };
    let viewer = Viewer::connect(server.options()).unwrap();
    let serving = async {
        let (mut peer, _) = server.accept().await;
        peer.say(joined(0, 0, false)).await;
        peer
    };
    let (_peer, room) = tokio::join!(serving, soon(viewer.join("r", "t")));
    assert_eq!((room.is_ok(), viewer.transport()), (true, Some(Transport::Quic)));
}

#[tokio::test]
async fn who_reads_slowly_gets_everything_in_order_and_is_heard_meanwhile() {
    const EVENTS: u64 = 3_000;
    for server in [Server::websocket().await, Server::quic()] {
        let transport = server.tcp.as_ref().map_or(Transport::Quic, |_| Transport::WebSocket);
        let options = Options { happenings: 3, transport: Some(transport), ..server.options() };
        let viewer = Viewer::connect(options).unwrap();
        let serving = async {
            let (mut peer, _) = server.accept().await;
            peer.say(joined(0, 0, false)).await;
            for seq in 1..=EVENTS {
                peer.say(In::Frame(frame_of((seq, seq), 0, vec![event(Some(seq), None)]))).await;
            }
            let said = peer.published().await;
            peer.say(In::Accepted(v1::Accepted { id: said.id, seq: None, admission: None })).await;
            peer
        };
        let watching = async {
            let mut room = soon(viewer.join("r", "t")).await.unwrap();
            while viewer.stats().stalls == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let said = tokio::spawn(room.publish(NewEvent::new("chat", "meanwhile")));
            let came = events(&mut room, EVENTS as usize).await;
            assert!(came.iter().map(|(seq, _)| seq.unwrap()).eq(1..=EVENTS));
            assert_eq!(soon(said).await.unwrap(), Ok(Published { seq: None }));
            room
        };
        let (_peer, _room) = tokio::join!(serving, watching);
    }
}

#[tokio::test]
async fn a_token_that_is_too_old_is_asked_for_anew_once() {
    let server = Server::websocket().await;
    let viewer =
        Viewer::connect(Options { transport: Some(Transport::WebSocket), ..server.options() });
    let viewer = viewer.unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let token = Token::provider(move || {
        let number = count.fetch_add(1, Ordering::Relaxed);
        async move { Ok(format!("t{number}")) }
    });
    let serving = async {
        let (mut peer, join) = server.accept().await;
        assert_eq!(join.token, "t0");
        peer.say(error("token_expired", false, None)).await;
        assert_eq!(peer.join().await.token, "t1");
        peer.say(error("overloaded", true, Some(20))).await;
        assert_eq!(peer.join().await.token, "t2");
        peer.say(error("token_expired", false, None)).await;
        peer
    };
    let (_peer, refused) = tokio::join!(serving, soon(viewer.join("r", token)));
    let Err(JoinError::Refused(failure)) = refused else { panic!("{refused:?}") };
    assert_eq!((failure.code.as_str(), asked.load(Ordering::Relaxed)), ("token_expired", 3));
    let none = Token::provider(|| async { Err("no account".to_owned()) });
    let refused = soon(viewer.join("r", none)).await.unwrap_err();
    assert_eq!(refused, JoinError::NoToken("no account".to_owned()));
}

#[tokio::test]
async fn a_room_that_is_dropped_is_left_and_can_be_joined_again() {
    let server = Server::quic();
    let viewer = Viewer::connect(server.options()).unwrap();
    let serving = async {
        let (mut peer, _) = server.accept().await;
        peer.say(joined(0, 0, false)).await;
        assert!(matches!(peer.heard().await, Out::Leave(_)));
        let join = peer.join().await;
        assert_eq!(join.resume, None, "a new beginning");
        peer.say(joined(5, 0, false)).await;
        assert!(matches!(peer.heard().await, Out::Leave(_)));
        peer
    };
    let watching = async {
        let room = soon(viewer.join("r", "t")).await.unwrap();
        soon(room.leave()).await;
        let room = soon(viewer.join("r", "t")).await.unwrap();
        drop(room);
    };
    let (_peer, ()) = tokio::join!(serving, watching);
}

#[tokio::test]
async fn over_tls_the_certificate_counts() {
    let (tls, trust) = tls(b"http/1.1");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("wss://localhost:{}", tcp.local_addr().unwrap().port());
    let serving = async {
        let (stream, _) = soon(tcp.accept()).await.unwrap();
        assert!(soon(acceptor.accept(stream)).await.is_err(), "the viewer hangs up");
        let (stream, _) = soon(tcp.accept()).await.unwrap();
        let stream = soon(acceptor.accept(stream)).await.unwrap();
        #[expect(clippy::result_large_err, reason = "the library's signature")]
        let refuse = |_: &Request, _: Response| {
            let mut response = ErrorResponse::new(Some("who are you".to_owned()));
            *response.status_mut() = http::StatusCode::FORBIDDEN;
            Err(response)
        };
        assert!(soon(accept_hdr_async(stream, refuse)).await.is_err());
    };
    let watching = async {
        let transport = Some(Transport::WebSocket);
        let options = |trust| Options { transport, trust, ..Options::new(&url) };
        let stranger = Viewer::connect(options(Trust::Sha256(vec![[7; 32]].into()))).unwrap();
        let mut status = stranger.status();
        let joining = stranger.join("r", "t");
        let failing = status.wait_for(|status| matches!(status, Status::Waiting { .. }));
        let why = soon(async {
            tokio::select! { _ = joining => panic!(), s = failing => s.unwrap().clone() }
        });
        let Status::Waiting { why, untrusted, .. } = why.await else { unreachable!() };
        assert!(why.contains("TLS") && untrusted, "{why}");
        drop(stranger);
        let viewer = Viewer::connect(options(trust)).unwrap();
        let refused = soon(viewer.join("r", "t")).await.unwrap_err();
        let JoinError::Dismissed { code: 403, reason } = refused else { panic!("{refused:?}") };
        assert!(reason.contains("who are you"), "{reason}");
    };
    tokio::join!(serving, watching);
}
