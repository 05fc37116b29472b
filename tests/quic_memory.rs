//! What an idle QUIC connection holds, counted by the allocator: a few megabytes
//! per thousand viewers come and go with a library's version, and nobody notices.
//!
//! Connections of the server's own configuration and storage talk to
//! `quinn-proto` clients over a network without loss, in virtual time. Counted is
//! what the server's side allocates; the cipher library's memory is C's and is
//! not seen here.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Transmit,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use tidegate::clock::Clock;
use tidegate::config::Congestion;
use tidegate::shard::carrier_stats::CopyStats;
use tidegate::tls::Identity;
use tidegate::transport::quic::peer::{Context, CopyWork, Heard, Peer, Prefixed, copies};
use tidegate::transport::quic::peers::Peers;
use tidegate::transport::quic::rest::REST;
use tidegate::transport::quic::settings::Settings;
use tidegate::transport::quic::{ALPN, crypto};
use tidegate::transport::webtransport::Rules;

/// Connections that are counted, and those before them: what is there once, or for
/// those who are awake (a room for each of 256), is there by then.
const CONNECTIONS: usize = 512;
const BEFORE: usize = 260;

/// Bytes that one of them may hold, its share of the endpoint's tables included.
/// Where nothing is packed (`packed.rs`), 3 KB more.
const MOST: isize = 10_000;
const MOST_WHOLE: isize = 13_000;

thread_local! {
    static COUNTS: Cell<bool> = const { Cell::new(false) };
    static HELD: Cell<isize> = const { Cell::new(0) };
}

/// Counts what a thread holds of what it allocated while it said that it counts.
struct Counting;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTS.get() {
            HELD.set(HELD.get() + layout.size() as isize);
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if COUNTS.get() {
            HELD.set(HELD.get() - layout.size() as isize);
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What the server does. What it allocates it frees, in here as well.
fn serving<T>(work: impl FnOnce() -> T) -> T {
    COUNTS.set(true);
    let result = work();
    COUNTS.set(false);
    result
}

/// Whoever the server is: it is this test.
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
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn settings() -> Settings {
    Settings {
        idle_timeout: Duration::from_secs(60),
        handshake_timeout: Duration::from_secs(10),
        send_window: 131_072,
        receive_window: 32_768,
        datagram_bytes: 4_096,
        important_bytes: 262_144,
        congestion: Congestion::Discerning,
        copies: copies::Rules {
            after: Duration::from_millis(20),
            min_rtt: Duration::from_millis(50),
            one_in: 100,
            bytes_per_second: 16_384,
        },
        retry_above: 128,
        max_handshakes: 1_024,
        max_connections: 50_000,
        max_message: 16_384,
        sessions: Arc::new(Rules { origins: Vec::new(), path: "/v1/wt".into(), max_header: 8_192 }),
    }
}

fn client() -> ClientConfig {
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("a cipher")))
}

/// A server and its clients. The table of a shard has the first as here.
struct Net {
    settings: Settings,
    server: Endpoint,
    peers: Peers,
    clients: Endpoint,
    connections: Vec<Connection>,
    to_server: VecDeque<(usize, Vec<u8>)>,
    to_client: VecDeque<Vec<u8>>,
    /// Messages that the server heard.
    heard: usize,
    prefixed: Prefixed,
    stats: CopyStats,
    now: Instant,
}

fn address(client: usize) -> SocketAddr {
    ([127, 0, 0, 1], 10_000 + client as u16).into()
}

fn parts<'a>(transmit: &Transmit, bytes: &'a [u8]) -> impl Iterator<Item = Vec<u8>> + 'a {
    let size = transmit.segment_size.unwrap_or(transmit.size);
    bytes[..transmit.size].chunks(size).map(<[u8]>::to_vec)
}

impl Net {
    fn new() -> Self {
        let clock = Clock::start();
        let identity = Identity::development(clock.now()).expect("a certificate");
        let settings = settings();
        let accepts = crypto::server(identity.resolver(), &settings).expect("TLS");
        let config = Arc::new(crypto::endpoint(&[7; crypto::SECRET_BYTES], 0, 1));
        Self {
            settings,
            server: serving(|| Endpoint::new(config, Some(accepts), true, None)),
            peers: serving(Peers::default),
            clients: Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None),
            connections: Vec::new(),
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            heard: 0,
            prefixed: Prefixed::default(),
            stats: CopyStats::default(),
            now: clock.instant(clock.now()),
        }
    }

    fn connect(&mut self) {
        let to = ([127, 0, 0, 1], 7_400).into();
        let connecting = self.clients.connect(self.now, client(), to, "localhost");
        let (handle, connection) = connecting.expect("sensible");
        assert_eq!(handle.0, self.connections.len());
        self.connections.push(connection);
        self.settle(handle.0..handle.0 + 1);
    }

    /// The server reads one datagram, and lays its connection down again.
    fn read(&mut self, from: usize, bytes: &[u8]) {
        let Self { server, peers, now, .. } = self;
        let index = serving(|| {
            let mut answer = Vec::new();
            match server.handle(*now, address(from), None, None, bytes.into(), &mut answer) {
                Some(DatagramEvent::NewConnection(incoming)) => {
                    let accepted = server.accept(incoming, *now, &mut answer, None);
                    let (handle, connection) = accepted.map_err(|e| e.cause).expect("accepted");
                    peers.put(handle.0 as u32, Peer::new(connection, 1), *now);
                    Some(handle.0 as u32)
                }
                Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                    let peer = peers.take_up(handle.0 as u32).expect("known");
                    peer.connection.handle_event(event);
                    Some(handle.0 as u32)
                }
                Some(DatagramEvent::Response(_)) | None => None,
            }
        });
        if let Some(index) = index {
            self.drive(index);
        }
    }

    fn drive(&mut self, index: u32) {
        let Self { server, peers, settings, now, heard, to_client, prefixed, stats, .. } = self;
        let sent = serving(|| {
            let peer = peers.take_up(index).expect("known");
            if peer.connection.poll_timeout().is_some_and(|at| at <= *now) {
                let rules = &settings.copies;
                peer.expire(*now, &mut CopyWork { rules, prefixed, stats });
            }
            peer.poll(&mut Context {
                settings,
                now: *now,
                heard: &mut |what| *heard += usize::from(matches!(what, Heard::Message(_))),
                session: &mut |_| {},
                ignored: 0,
            });
            while let Some(event) = peer.connection.poll_endpoint_events() {
                if let Some(event) = server.handle_event(ConnectionHandle(index as usize), event) {
                    peer.connection.handle_event(event);
                }
            }
            let mut sent = Vec::new();
            let mut buffer = Vec::new();
            while let Some(transmit) = peer.connection.poll_transmit(*now, 8, &mut buffer) {
                sent.extend(parts(&transmit, &buffer));
                buffer.clear();
            }
            if !sent.is_empty() {
                peers.sent(index, *now);
            }
            peers.lay_down(index);
            sent
        });
        to_client.extend(sent.iter().cloned());
        serving(|| drop(sent));
    }

    /// Until nobody has anything to say.
    fn settle(&mut self, clients: std::ops::Range<usize>) {
        loop {
            while let Some(bytes) = self.to_client.pop_front() {
                let from = ([127, 0, 0, 1], 7_400).into();
                let (bytes, mut answer) = (BytesMut::from(&bytes[..]), Vec::new());
                let event = self.clients.handle(self.now, from, None, None, bytes, &mut answer);
                if let Some(DatagramEvent::ConnectionEvent(handle, event)) = event {
                    self.connections[handle.0].handle_event(event);
                }
            }
            for index in clients.clone() {
                self.client(index);
            }
            if self.to_server.is_empty() {
                break;
            }
            while let Some((from, bytes)) = self.to_server.pop_front() {
                self.read(from, &bytes);
            }
        }
    }

    fn client(&mut self, index: usize) {
        let Self { clients, connections, to_server, now, .. } = self;
        let connection = &mut connections[index];
        if connection.poll_timeout().is_some_and(|at| at <= *now) {
            connection.handle_timeout(*now);
        }
        while connection.poll().is_some() {}
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = clients.handle_event(ConnectionHandle(index), event) {
                connection.handle_event(event);
            }
        }
        let mut buffer = Vec::new();
        while let Some(transmit) = connection.poll_transmit(*now, 1, &mut buffer) {
            to_server.extend(parts(&transmit, &buffer).map(|part| (index, part)));
            buffer.clear();
        }
    }

    /// So much time goes by, in ten steps.
    fn wait(&mut self, time: Duration) {
        for _ in 0..10 {
            self.now += time / 10;
            for index in 0..self.connections.len() {
                let at = serving(|| {
                    let peer = self.peers.take_up(index as u32).expect("known");
                    let at = peer.connection.poll_timeout();
                    self.peers.lay_down(index as u32);
                    at
                });
                if at.is_some_and(|at| at <= self.now) {
                    self.drive(index as u32);
                }
            }
            self.settle(0..self.connections.len());
            let Self { peers, now, .. } = self;
            while peers.next_rest().is_some_and(|at| at <= *now) {
                serving(|| peers.rest(*now));
            }
        }
    }

    /// Every client says something, and every viewer is told something.
    fn talk(&mut self, message: &Bytes) {
        for index in 0..self.connections.len() {
            let connection = &mut self.connections[index];
            let stream = connection.streams().open(Dir::Bi);
            if let Some(stream) = stream {
                let said = connection.send_stream(stream).write(b"\x05hello");
                assert_eq!(said.expect("credit"), 6);
            }
        }
        self.settle(0..self.connections.len());
        self.tell(message);
    }

    /// Every viewer is told something.
    fn tell(&mut self, message: &Bytes) {
        for index in 0..self.connections.len() as u32 {
            serving(|| {
                let peer = self.peers.take_up(index).expect("known");
                assert_eq!(peer.write(message).expect("room"), message.len());
            });
            self.drive(index);
        }
        self.settle(0..self.connections.len());
    }

    /// Bytes that one of those who came after `before` holds.
    fn each(&self, before: isize) -> isize {
        (HELD.get() - before) / CONNECTIONS as isize
    }
}

#[test]
fn an_idle_connection_holds_no_more_than_it_did() {
    let mut net = Net::new();
    (0..BEFORE).for_each(|_| net.connect());
    let before = HELD.get();
    (0..CONNECTIONS).for_each(|_| net.connect());
    assert!(net.connections.iter().all(|connection| !connection.is_handshaking()));
    let joined = net.each(before);
    let message = serving(|| Bytes::from(vec![7; 400]));
    net.talk(&message);
    net.wait(Duration::from_millis(200));
    let talked = net.each(before);
    // A frame a second, until it is no longer young, and two more.
    for _ in 0..7 {
        net.wait(Duration::from_millis(800));
        net.tell(&message);
        net.wait(Duration::from_millis(200));
    }
    let busy = net.each(before);
    net.wait(REST * 2);
    let rested = net.each(before);
    println!(
        "{joined} bytes after the handshake, {talked} after a message both ways, {busy} at one \
         each second, {rested} at rest after that"
    );
    assert_eq!(net.heard, net.connections.len());
    for connection in &net.connections {
        let ids = connection.stats().frame_rx.new_connection_id;
        assert_eq!(ids, 2, "one to move on with, and one more");
    }
    let most = if net.peers.packs() { MOST } else { MOST_WHOLE };
    for held in [joined, talked, rested] {
        assert!(held <= most, "{held} bytes, not {most}");
    }
    if net.peers.packs() {
        // Also where it is in a room that was there before.
        assert!(busy > rested, "who is at work stays whole");
    }
}
