//! A server for the tests: it takes connections, answers what is said first on
//! a control stream with `joined`, and says what it is told to everybody.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, Event,
    ServerConfig, StreamEvent, StreamId, VarInt,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::super::clients::Outbox;
use super::super::config::ALPN;
use super::super::inbox::{Inbox, framed};

/// What a viewer's socket is called here.
fn address(socket: u32) -> SocketAddr {
    SocketAddr::from(([127, 1, 1, 1], 20_000 + socket as u16))
}

fn socket_of(address: SocketAddr) -> u32 {
    u32::from(address.port()) - 20_000
}

struct Peer {
    connection: Connection,
    control: Option<(StreamId, Inbox)>,
    important: Option<StreamId>,
    heard: Vec<Vec<u8>>,
    /// Bytes that the stream has not taken yet.
    waiting: Vec<u8>,
}

/// The server.
pub(super) struct Server {
    endpoint: Endpoint,
    peers: HashMap<ConnectionHandle, Peer>,
    /// Demands address validation of everybody.
    pub(super) retries: bool,
    /// How often it did.
    pub(super) retried: u32,
    /// Connections that ended.
    pub(super) closed: u32,
    responses: Vec<(u32, Vec<u8>)>,
}

impl Server {
    pub(super) fn new() -> Server {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let chain = vec![CertificateDer::from(made.cert.der().to_vec())];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicServerConfig::try_from(tls).unwrap();
        let config = Arc::new(ServerConfig::with_crypto(Arc::new(crypto)));
        let shared = Arc::new(EndpointConfig::default());
        Server {
            endpoint: Endpoint::new(shared, Some(config), false, Some([3; 32])),
            peers: HashMap::new(),
            retries: false,
            retried: 0,
            closed: 0,
            responses: Vec::new(),
        }
    }

    pub(super) fn datagram(&mut self, now: Instant, socket: u32, data: BytesMut) {
        let mut buffer = Vec::new();
        let event = self.endpoint.handle(now, address(socket), None, None, data, &mut buffer);
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(peer) = self.peers.get_mut(&handle) {
                    peer.connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                if self.retries && !incoming.remote_address_validated() {
                    self.retried += 1;
                    let transmit = self.endpoint.retry(incoming, &mut buffer).unwrap();
                    self.responses.push((socket, buffer[..transmit.size].to_vec()));
                    return;
                }
                if let Ok((handle, connection)) =
                    self.endpoint.accept(incoming, now, &mut buffer, None)
                {
                    let peer = Peer {
                        connection,
                        control: None,
                        important: None,
                        heard: Vec::new(),
                        waiting: Vec::new(),
                    };
                    self.peers.insert(handle, peer);
                }
            }
            Some(DatagramEvent::Response(transmit)) => {
                self.responses.push((socket, buffer[..transmit.size].to_vec()));
            }
            None => {}
        }
    }

    pub(super) fn next_timeout(&mut self) -> Option<Instant> {
        self.peers.values_mut().filter_map(|peer| peer.connection.poll_timeout()).min()
    }

    pub(super) fn expire(&mut self, now: Instant) {
        for peer in self.peers.values_mut() {
            if peer.connection.poll_timeout().is_some_and(|due| due <= now) {
                peer.connection.handle_timeout(now);
            }
        }
    }

    pub(super) fn drive(&mut self, now: Instant, out: &mut dyn Outbox) {
        for (socket, response) in self.responses.drain(..) {
            out.push(socket, &response);
        }
        let mut over = Vec::new();
        let mut buffer = Vec::new();
        for (&handle, peer) in &mut self.peers {
            loop {
                let lost = peer.events();
                self.closed += u32::from(lost);
                while let Some(transmit) = peer.connection.poll_transmit(now, 1, &mut buffer) {
                    out.push(socket_of(transmit.destination), &buffer[..transmit.size]);
                    buffer.clear();
                }
                let mut more = false;
                while let Some(event) = peer.connection.poll_endpoint_events() {
                    if event.is_drained() {
                        over.push(handle);
                    }
                    if let Some(event) = self.endpoint.handle_event(handle, event) {
                        peer.connection.handle_event(event);
                        more = true;
                    }
                }
                if !more {
                    break;
                }
            }
        }
        for handle in over {
            self.peers.remove(&handle);
        }
    }

    /// Says a message on everybody's control stream.
    pub(super) fn control(&mut self, message: &[u8]) {
        self.raw(&framed(message));
    }

    /// Bytes as they are.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        for peer in self.peers.values_mut() {
            peer.waiting.extend_from_slice(bytes);
            peer.push();
        }
    }

    /// Bytes that the control streams have not taken, their windows being full.
    pub(super) fn waiting(&self) -> usize {
        self.peers.values().map(|peer| peer.waiting.len()).sum()
    }

    /// Says a message on everybody's stream of important events.
    pub(super) fn important(&mut self, message: &[u8]) {
        let bytes = framed(message);
        for peer in self.peers.values_mut() {
            let id = match peer.important {
                Some(id) => id,
                None => peer.connection.streams().open(Dir::Uni).unwrap(),
            };
            peer.important = Some(id);
            assert_eq!(peer.connection.send_stream(id).write(&bytes).unwrap(), bytes.len());
        }
    }

    /// Sends everybody a datagram.
    pub(super) fn datagrams(&mut self, message: &[u8]) {
        for peer in self.peers.values_mut() {
            let bytes = Bytes::copy_from_slice(message);
            peer.connection.datagrams().send(bytes, true).unwrap();
        }
    }

    /// How many times a message was heard.
    pub(super) fn heard(&self, message: &str) -> usize {
        let all = self.peers.values().flat_map(|peer| &peer.heard);
        all.filter(|heard| heard[..] == *message.as_bytes()).count()
    }

    /// How many have said something on a control stream.
    pub(super) fn joined(&self) -> usize {
        self.peers.values().filter(|peer| !peer.heard.is_empty()).count()
    }

    pub(super) fn close_all(&mut self, now: Instant, code: u32, reason: &[u8]) {
        for peer in self.peers.values_mut() {
            peer.connection.close(now, VarInt::from_u32(code), Bytes::copy_from_slice(reason));
        }
    }

    pub(super) fn lost_packets(&self) -> u64 {
        self.peers.values().map(|peer| peer.connection.stats().path.lost_packets).sum()
    }
}

impl Peer {
    /// Whether the connection ended.
    fn events(&mut self) -> bool {
        let mut lost = false;
        while let Some(event) = self.connection.poll() {
            match event {
                Event::ConnectionLost { .. } => lost = true,
                Event::Stream(StreamEvent::Opened { dir: Dir::Bi }) => {
                    let id = self.connection.streams().accept(Dir::Bi).unwrap();
                    self.control = Some((id, Inbox::default()));
                }
                Event::Stream(StreamEvent::Writable { .. }) => self.push(),
                _ => {}
            }
        }
        self.read();
        lost
    }

    fn read(&mut self) {
        let Some((id, inbox)) = &mut self.control else { return };
        let first = self.heard.is_empty();
        let mut stream = self.connection.recv_stream(*id);
        if let Ok(mut chunks) = stream.read(true) {
            while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                inbox.take(&chunk.bytes, |message| self.heard.push(message.to_vec())).unwrap();
            }
            let _ = chunks.finalize();
        }
        if first && !self.heard.is_empty() {
            assert!(self.heard[0].starts_with(b"join "));
            self.waiting.extend_from_slice(&framed(b"joined"));
            self.push();
        }
    }

    fn push(&mut self) {
        let Some((id, _)) = &self.control else { return };
        while !self.waiting.is_empty() {
            match self.connection.send_stream(*id).write(&self.waiting) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(_) => return,
            }
        }
    }
}
