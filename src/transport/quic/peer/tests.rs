//! A server's end of a connection, and a client, over a line of 100 ms each way in
//! virtual time; which packets to the client are lost is said one by one.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{ClientConfig, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

use super::*;
use crate::config::Congestion;
use crate::engine::time::Time;
use crate::tls::{Identity, provider};
use crate::transport::quic::{ALPN, crypto};
use crate::transport::webtransport::Rules;

const DELAY: Duration = Duration::from_millis(100);

/// Whoever the server is: it is the one of this test.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn settings(rules: copies::Rules) -> Settings {
    let long = Duration::from_secs(600);
    Settings {
        idle_timeout: long,
        handshake_timeout: long,
        send_window: 128 << 10,
        receive_window: 32 << 10,
        datagram_bytes: 4_096,
        important_bytes: 256 << 10,
        congestion: Congestion::Discerning,
        copies: rules,
        retry_above: 100,
        max_handshakes: 100,
        max_connections: 100,
        max_message: 16 << 10,
        sessions: Arc::new(Rules { origins: Vec::new(), path: "/".into(), max_header: 4_096 }),
    }
}

fn client_config() -> ClientConfig {
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("a cipher")))
}

struct Line {
    begun: Instant,
    now: Instant,
    settings: Settings,
    server: Endpoint,
    peer: Option<Peer>,
    far: Endpoint,
    handle: ConnectionHandle,
    client: Connection,
    /// On its way: when it comes, whether to the server.
    wire: VecDeque<(Instant, bool, Vec<u8>)>,
    /// Of the next packets to the client, which are lost.
    lost: VecDeque<bool>,
    stats: CopyStats,
    prefixed: Prefixed,
    decoder: Decoder,
    /// Messages that came and when, in milliseconds; by datagram or not.
    came: Vec<(u128, bool, Vec<u8>)>,
}

impl Line {
    /// With a connection that has carried some events and is at rest.
    fn new(rules: copies::Rules) -> Self {
        let begun = Instant::now();
        let settings = settings(rules);
        let identity = Identity::development(Time::from_millis(1_800_000_000_000)).expect("made");
        let config = crypto::server(identity.resolver(), &settings).expect("configured");
        let shared = Arc::new(EndpointConfig::default());
        let server = Endpoint::new(Arc::clone(&shared), Some(config), true, Some([1; 32]));
        let mut far = Endpoint::new(shared, None, true, Some([2; 32]));
        let connecting = far.connect(begun, client_config(), near(), "localhost");
        let (handle, client) = connecting.expect("sensible");
        let mut line = Self {
            begun,
            now: begun,
            settings,
            server,
            peer: None,
            far,
            handle,
            client,
            wire: VecDeque::new(),
            lost: VecDeque::new(),
            stats: CopyStats::default(),
            prefixed: Prefixed::default(),
            decoder: Decoder::default(),
            came: Vec::new(),
        };
        line.pass(1_000);
        for n in 0..10 {
            line.say(n);
            line.pass(1_000);
        }
        assert_eq!(line.came.iter().filter(|(_, datagram, _)| !datagram).count(), 10);
        line.came.clear();
        line
    }

    fn peer(&mut self) -> &mut Peer {
        self.peer.as_mut().expect("a connection")
    }

    /// An important event.
    fn say(&mut self, n: u8) {
        let Self { peer, settings, stats, now, .. } = self;
        let peer = peer.as_mut().expect("a connection");
        let message = stream::data(&[n; 300]);
        peer.write_important(&message, settings).expect("room");
        peer.copy(&message, settings, || *now, stats);
        self.drive();
    }

    /// Time goes by.
    fn pass(&mut self, millis: u64) {
        let until = self.now + Duration::from_millis(millis);
        self.drive();
        loop {
            let (now, on_wire) = (self.now, self.wire.front().map(|(at, ..)| *at));
            let of_peer = self.peer.as_mut().and_then(|peer| peer.deadline(now));
            let next = [on_wire, of_peer, self.client.poll_timeout()].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            while let Some((_, up, bytes)) = self.wire.pop_front_if(|(at, ..)| *at <= self.now) {
                self.arrive(up, &bytes);
            }
            let Self { peer, settings, prefixed, stats, now, .. } = self;
            if let Some(peer) = peer {
                peer.expire(*now, &mut CopyWork { rules: &settings.copies, prefixed, stats });
            }
            if self.client.poll_timeout().is_some_and(|at| at <= self.now) {
                self.client.handle_timeout(self.now);
            }
            self.drive();
        }
        self.now = until;
    }

    fn arrive(&mut self, up: bool, bytes: &[u8]) {
        let (endpoint, from) = if up { (&mut self.server, far()) } else { (&mut self.far, near()) };
        let mut out = Vec::new();
        match endpoint.handle(self.now, from, None, None, BytesMut::from(bytes), &mut out) {
            Some(DatagramEvent::ConnectionEvent(_, event)) if up => {
                self.peer().connection.handle_event(event);
            }
            Some(DatagramEvent::ConnectionEvent(_, event)) => self.client.handle_event(event),
            Some(DatagramEvent::NewConnection(incoming)) => {
                let accepted = self.server.accept(incoming, self.now, &mut out, None);
                self.peer = Some(Peer::new(accepted.map_err(|e| e.cause).expect("taken").1, 1));
            }
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    fn drive(&mut self) {
        let Self { peer, server, settings, now, wire, lost, .. } = self;
        let mut buffer = Vec::new();
        if let Some(peer) = peer {
            let mut context = Context {
                settings,
                now: *now,
                heard: &mut |_| {},
                session: &mut |_| {},
                ignored: 0,
            };
            peer.poll(&mut context);
            while let Some(event) = peer.connection.poll_endpoint_events() {
                if let Some(event) = server.handle_event(ConnectionHandle(0), event) {
                    peer.connection.handle_event(event);
                }
            }
            while let Some(sent) = peer.connection.poll_transmit(*now, 1, &mut buffer) {
                if lost.pop_front() != Some(true) {
                    wire.push_back((*now + DELAY, false, buffer[..sent.size].to_vec()));
                }
                buffer.clear();
            }
        }
        self.listen();
        while let Some(event) = self.client.poll_endpoint_events() {
            if let Some(event) = self.far.handle_event(self.handle, event) {
                self.client.handle_event(event);
            }
        }
        while let Some(sent) = self.client.poll_transmit(self.now, 1, &mut buffer) {
            self.wire.push_back((self.now + DELAY, true, buffer[..sent.size].to_vec()));
            buffer.clear();
        }
    }

    /// What the client hears.
    fn listen(&mut self) {
        let Self { client, came, decoder, now, begun, .. } = self;
        let at = (*now - *begun).as_millis();
        while let Some(event) = client.poll() {
            match event {
                Event::DatagramReceived => {
                    while let Some(bytes) = client.datagrams().recv() {
                        came.push((at, true, bytes.to_vec()));
                    }
                }
                Event::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                    client.streams().accept(Dir::Uni);
                }
                _ => {}
            }
        }
        let important = StreamId::new(quinn_proto::Side::Server, Dir::Uni, 0);
        let mut stream = client.recv_stream(important);
        let Ok(mut chunks) = stream.read(true) else { return };
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            let mut whole = |message: &[u8]| {
                came.push((at, false, message.to_vec()));
                true
            };
            decoder.feed(&chunk.bytes, 1 << 20, &mut whole).expect("short messages");
        }
        let _ = chunks.finalize();
    }

    /// Says an event of which packets are lost as told, and waits. How long it took by
    /// datagram and on its stream, in milliseconds.
    fn fate(&mut self, n: u8, lost: &[bool]) -> (Vec<u128>, Vec<u128>) {
        let said = (self.now - self.begun).as_millis();
        self.lost = lost.to_vec().into();
        self.say(n);
        self.pass(3_000);
        let came = std::mem::take(&mut self.came);
        assert!(came.iter().all(|(.., message)| message == &[n; 300]));
        let of = |wanted: bool| -> Vec<u128> {
            let of_it = came.iter().filter(|(_, datagram, _)| *datagram == wanted);
            of_it.map(|(at, ..)| at - said).collect()
        };
        (of(true), of(false))
    }
}

fn near() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 4_433))
}

fn far() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 40_000))
}

/// A path is never taken for a good one.
const ALWAYS: copies::Rules = copies::Rules {
    after: Duration::from_millis(20),
    min_rtt: Duration::from_millis(50),
    one_in: 10_000,
    bytes_per_second: 16_384,
};

const NEVER: copies::Rules = copies::Rules { bytes_per_second: 0, ..ALWAYS };

#[test]
fn without_copies_a_lost_event_costs_more_than_a_round_trip() {
    let mut line = Line::new(NEVER);
    assert_eq!(line.fate(1, &[]), (vec![], vec![100]));
    let (copies, came) = line.fate(2, &[true]);
    assert_eq!((copies.len(), came.len()), (0, 1));
    assert!((300..700).contains(&came[0]), "{came:?}");
    assert_eq!(line.stats, CopyStats::default());
}

#[test]
fn a_copy_comes_a_moment_after_the_event_would_have() {
    let mut line = Line::new(ALWAYS);
    // From here on its path loses.
    let (copies, came) = line.fate(1, &[true]);
    assert_eq!((copies, came.len()), (vec![120], 1));
    assert!(came[0] > 300, "{came:?}");
    assert_eq!(line.fate(2, &[]), (vec![120], vec![100]));
    // Which of the two was lost, nobody can tell: a probe timeout brings another.
    let (copies, came) = line.fate(3, &[false, true]);
    assert_eq!((copies.len(), came), (1, vec![100]));
    assert!(copies[0] > 300, "{copies:?}");
}

#[test]
fn when_both_are_lost_a_probe_timeout_brings_another_copy() {
    let mut line = Line::new(ALWAYS);
    line.fate(1, &[true]);
    for n in 2..12 {
        line.fate(n, &[]);
    }
    let (copies, came) = line.fate(12, &[true, true]);
    assert_eq!((copies.len(), came.len()), (1, 1));
    let round_trips = |count: u128| 2 * DELAY.as_millis() * count;
    assert!(copies[0] < round_trips(2), "{copies:?}");
    assert!(came[0] > copies[0], "{copies:?} before {came:?}");
}

#[test]
fn a_path_that_was_good_for_a_while_gets_copies_from_its_first_loss_until_it_is_good_again() {
    let mut line = Line::new(copies::Rules { one_in: 20, ..ALWAYS });
    let mut n = 0;
    let mut copied = |line: &mut Line, lost: &[bool]| {
        n = (n + 1) % 200;
        !line.fate(n, lost).0.is_empty()
    };
    let mut spent = 0;
    while copied(&mut line, &[]) {
        spent += 1;
        assert!(spent < 64, "a good path");
    }
    let counted = line.stats;
    for _ in 0..10 {
        assert!(!copied(&mut line, &[]));
    }
    assert_eq!(line.stats, counted, "not even refused");
    assert!(!copied(&mut line, &[true]), "nobody could know");
    let after = std::iter::from_fn(|| copied(&mut line, &[]).then_some(())).count();
    assert!((2..20).contains(&after), "{after} events");
    assert_eq!(line.stats.sent, counted.sent + after as u64);
}

#[test]
fn a_near_path_gets_no_copies_however_much_it_loses() {
    let mut line = Line::new(copies::Rules { min_rtt: Duration::from_millis(201), ..ALWAYS });
    line.fate(1, &[true, true, true]);
    assert_eq!((line.fate(2, &[]).0, line.stats), (vec![], CopyStats::default()));
}
