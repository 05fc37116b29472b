use std::io::{Read as _, Write as _};

use proptest::prelude::*;
use rustls::crypto::cipher::{MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::pki_types::ServerName;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, ConnectionTrafficSecrets, ContentType,
    RootCertStore, SupportedCipherSuite, SupportedProtocolVersion,
};

use super::*;
use crate::clock::Clock;
use crate::tls::{Identity, provider};

const BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

/// A server's channel and a client of rustls', with nothing between them.
struct Pair {
    server: Channel,
    client: ClientConnection,
    sealed: Vec<u8>,
    plain: Vec<u8>,
}

fn client_config(identity: &Identity, version: &'static SupportedProtocolVersion) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(identity.0.present.get().cert[0].clone()).expect("an anchor");
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    config
}

fn identity() -> Identity {
    Identity::development(Clock::start().now()).expect("made")
}

impl Pair {
    fn new(identity: &Identity, config: &Arc<ClientConfig>) -> Self {
        let server = Channel::new(identity.tcp_config()).expect("a channel");
        let name = ServerName::try_from("localhost").expect("a name");
        let client = ClientConnection::new(Arc::clone(config), name).expect("a client");
        Self { server, client, sealed: vec![0; SEALED], plain: Vec::new() }
    }

    fn of(version: &'static SupportedProtocolVersion) -> Self {
        let identity = identity();
        let mut pair = Self::new(&identity, &client_config(&identity, version).into());
        pair.run(usize::MAX).expect("a handshake");
        pair
    }

    /// What the client has for the server arrives in `pieces` of bytes, and what
    /// waits at the server arrives at the client, until neither says more.
    fn run(&mut self, pieces: usize) -> Result<(), Error> {
        loop {
            let mut wire = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut wire).expect("written");
            }
            if wire.is_empty() && self.server.waiting() == 0 {
                return Ok(());
            }
            for piece in wire.chunks(pieces) {
                self.arrives(piece)?;
            }
            self.flush();
        }
    }

    fn arrives(&mut self, wire: &[u8]) -> Result<(), Error> {
        let mut buffer = vec![0; MAX_PARTIAL + wire.len()];
        let begun = self.server.resume(&mut buffer);
        buffer[begun..begun + wire.len()].copy_from_slice(wire);
        self.server.receive(&mut buffer[..begun + wire.len()], &mut self.plain)
    }

    /// What waits at the server arrives at the client.
    fn flush(&mut self) {
        let client = &mut self.client;
        let mut wire = Vec::new();
        let all = self.server.flush(|bytes| wire.write(bytes)).expect("flushed");
        assert!(all);
        feed(client, &wire);
    }

    fn says(&mut self, text: &[u8]) {
        let length = self.server.seal(text, &mut self.sealed).expect("sealed");
        let wire = self.sealed[..length].to_vec();
        feed(&mut self.client, &wire);
    }

    fn heard(&mut self) -> Vec<u8> {
        let mut heard = Vec::new();
        match self.client.reader().read_to_end(&mut heard) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => heard,
            other => panic!("{other:?}"),
        }
    }
}

fn feed(client: &mut ClientConnection, mut wire: &[u8]) {
    while !wire.is_empty() {
        client.read_tls(&mut wire).expect("read");
        client.process_new_packets().expect("processed");
    }
}

#[test]
fn a_conversation_in_pieces_of_any_size_is_the_same() {
    for version in BOTH {
        for pieces in [1, 2, 5, 6, 100, usize::MAX] {
            let identity = identity();
            let mut pair = Pair::new(&identity, &client_config(&identity, version).into());
            pair.run(pieces).expect("a handshake");
            assert!(!pair.server.is_handshaking() && !pair.client.is_handshaking());
            for text in [&b"short"[..], &[7; 40_000]] {
                pair.client.writer().write_all(text).expect("written");
                pair.run(pieces).expect("received");
                assert_eq!(std::mem::take(&mut pair.plain), text);
                let mut heard = Vec::new();
                for piece in text.chunks(RECORD) {
                    pair.says(piece);
                    heard.extend(pair.heard());
                }
                assert_eq!(heard, text);
            }
        }
    }
}

#[test]
fn a_channel_that_nothing_waits_in_holds_no_buffer() {
    let pair = Pair::of(&rustls::version::TLS13);
    assert_eq!((pair.server.partial.capacity(), pair.server.unsent.capacity()), (0, 0));
    assert!(size_of::<Channel>() <= 1_200, "{}", size_of::<Channel>());
}

#[test]
fn a_session_is_resumed_in_either_version() {
    for version in BOTH {
        let identity = identity();
        let config = Arc::new(client_config(&identity, version));
        let resumed = [false, true].map(|_| {
            let mut pair = Pair::new(&identity, &config);
            pair.run(usize::MAX).expect("a handshake");
            let agreed = pair.server.agreed();
            assert_eq!(agreed.is_13, version.version == ProtocolVersion::TLSv1_3);
            agreed.resumed
        });
        assert_eq!(resumed, [false, true]);
    }
}

#[test]
fn what_a_socket_does_not_take_goes_first_and_in_order() {
    let mut pair = Pair::of(&rustls::version::TLS13);
    let mut wire = Vec::new();
    for (number, room) in [0_usize, 1, 7, 40, 10_000].into_iter().enumerate() {
        let text = [number as u8; 100];
        let length = pair.server.seal(&text, &mut pair.sealed).expect("sealed");
        let mut left = room;
        let mut socket = |bytes: &[u8]| {
            let taken = bytes.len().min(left);
            left -= taken;
            wire.extend_from_slice(&bytes[..taken]);
            if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
        };
        let out = pair.server.send(&pair.sealed[..length], &mut socket).expect("sent");
        assert_eq!(out, room >= length);
        assert_eq!(pair.server.flush(&mut socket).expect("flushed"), out);
        while !pair.server.flush(|bytes| wire.write(&bytes[..1])).expect("flushed") {}
    }
    feed(&mut pair.client, &wire);
    let expected: Vec<u8> = (0..5).flat_map(|number| [number; 100]).collect();
    assert_eq!(pair.heard(), expected);
}

#[test]
fn keys_are_renewed_on_demand_and_both_go_on() {
    let mut pair = Pair::of(&rustls::version::TLS13);
    for _ in 0..3 {
        pair.client.refresh_traffic_keys().expect("asked for");
        pair.client.writer().write_all(b"with new keys").expect("written");
        pair.run(3).expect("received");
        pair.says(b"with new keys too");
    }
    assert_eq!(pair.plain, b"with new keys".repeat(3));
    assert_eq!(pair.heard(), b"with new keys too".repeat(3));
}

/// Seals records of any type, as the client would.
struct Forger(Box<dyn MessageEncrypter>, u64);

impl Forger {
    fn new(client: ClientConnection) -> Self {
        let suite = client.negotiated_cipher_suite().expect("agreed");
        let SupportedCipherSuite::Tls13(suite) = suite else { panic!("{suite:?}") };
        let secrets = client.dangerous_extract_secrets().expect("allowed");
        let (number, secrets) = secrets.tx;
        let (key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (key, iv),
            _ => panic!("another cipher"),
        };
        Self(suite.aead_alg.encrypter(key, iv), number)
    }

    fn record(&mut self, typ: ContentType, payload: &[u8]) -> Vec<u8> {
        let payload = OutboundChunks::Single(payload);
        let message = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload };
        let sealed = self.0.encrypt(message, self.1).expect("sealed");
        self.1 += 1;
        sealed.encode()
    }
}

/// rustls goes on in the middle of what it has been shown; with nothing there it
/// would be out of bounds.
#[test]
fn a_handshake_message_in_two_records_may_have_frames_between() {
    let Pair { mut server, client, mut sealed, .. } = Pair::of(&rustls::version::TLS13);
    let mut forger = Forger::new(client);
    let mut buffer = vec![0; 2 * MAX_PARTIAL];
    // A key update (RFC 8446, section 4.6.3) that asks for none in return.
    for half in [&[24, 0][..], &[0, 1, 0]] {
        let record = forger.record(ContentType::Handshake, half);
        for piece in [&record[..record.len() / 2], &record[record.len() / 2..]] {
            let begun = server.resume(&mut buffer);
            buffer[begun..begun + piece.len()].copy_from_slice(piece);
            let received = &mut buffer[..begun + piece.len()];
            server.receive(received, &mut Vec::new()).expect("received");
            for _ in 0..2 {
                assert!(server.seal(b"a frame", &mut sealed).expect("sealed") > 7);
            }
        }
    }
    assert_eq!(server.partial.capacity(), 0);
}

#[test]
fn a_flood_of_key_updates_ends_the_connection() {
    let Pair { mut server, client, .. } = Pair::of(&rustls::version::TLS13);
    let mut forger = Forger::new(client);
    let mut buffer = forger.record(ContentType::Handshake, &[24, 0, 0, 1, 1].repeat(2_000));
    assert!(server.receive(&mut buffer, &mut Vec::new()).is_err());
    assert!(server.waiting() <= MAX_UNSENT);
}

#[test]
fn mistakes_are_answered_with_an_alert_and_nothing_follows() {
    let identity = identity();
    let config = Arc::new(client_config(&identity, &rustls::version::TLS13));
    let hello = {
        let mut wire = Vec::new();
        Pair::new(&identity, &config).client.write_tls(&mut wire).expect("written");
        wire
    };
    let mut early_data = hello.clone();
    early_data.extend_from_slice(&[23, 3, 3, 0, 5, 1, 2, 3, 4, 5]);
    let cases: [(&[u8], Option<u8>); 4] = [
        (b"\x16GET / HTTP/1.1\r\n\r\n", Some(AlertDescription::DecodeError.into())),
        (b"\x16\x03\x01\xff\xff", Some(AlertDescription::DecodeError.into())),
        // Too long a message, for which rustls has no alert.
        (b"\x16\x03\x01\x00\x05hello", None),
        (&early_data, None),
    ];
    for (wire, expected) in cases {
        let mut pair = Pair::new(&identity, &config);
        assert!(pair.arrives(wire).is_err(), "{wire:?}");
        let mut out = Vec::new();
        assert!(pair.server.flush(|bytes| out.write(bytes)).expect("flushed"));
        // The last record is an alert: 21, version, length 2, fatal, what. Once
        // there are keys, it cannot be read here.
        let alert = out.split_at(out.len().saturating_sub(7)).1;
        if let Some(expected) = expected {
            assert_eq!(alert, [21, 3, 3, 0, 2, 2, expected], "{wire:?}");
        }
        assert!(pair.server.seal(b"x", &mut pair.sealed).is_err());
    }
}

#[test]
fn a_record_that_was_tampered_with_ends_the_connection() {
    for version in BOTH {
        let mut pair = Pair::of(version);
        pair.client.writer().write_all(b"to be changed").expect("written");
        let mut wire = Vec::new();
        pair.client.write_tls(&mut wire).expect("written");
        let last = wire.len() - 1;
        wire[last] ^= 1;
        assert_eq!(pair.arrives(&wire), Err(Error::DecryptError));
        assert!(pair.plain.is_empty());
        let mut out = Vec::new();
        pair.server.flush(|bytes| out.write(bytes)).expect("flushed");
        pair.client.read_tls(&mut &out[..]).expect("read");
        let heard = pair.client.process_new_packets();
        assert_eq!(heard.err(), Some(Error::AlertReceived(AlertDescription::BadRecordMac)));
    }
}

#[test]
fn a_message_that_never_ends_is_held_to_a_bound() {
    let identity = identity();
    let config = Arc::new(client_config(&identity, &rustls::version::TLS13));
    let mut pair = Pair::new(&identity, &config);
    // Records of a ClientHello said to have 60,000 bytes.
    let mut record = vec![0x16, 3, 1, 0x10, 0x04, 1, 0, 0xea, 0x60];
    record.resize(9 + 4_096, 0);
    let mut given = 0;
    let refused = loop {
        let result = pair.arrives(&record);
        given += record.len();
        assert!(pair.server.partial.capacity() <= MAX_PARTIAL);
        if result.is_err() || given > 65_536 {
            break result;
        }
        record = vec![0x16, 3, 1, 0x10, 0x00];
        record.resize(5 + 4_096, 0);
    };
    assert!(refused.is_err() && given < 2 * MAX_PARTIAL, "{given}");
}

#[test]
fn the_end_is_told_both_ways() {
    for version in BOTH {
        let mut pair = Pair::of(version);
        pair.client.writer().write_all(b"bye").expect("written");
        pair.client.send_close_notify();
        pair.run(usize::MAX).expect("received");
        assert!(pair.server.peer_closed());
        assert_eq!(pair.plain, b"bye");
        pair.says(b"you too");
        pair.server.close();
        pair.server.close();
        pair.flush();
        let mut heard = Vec::new();
        assert_eq!(pair.client.reader().read_to_end(&mut heard).expect("an end"), 7);
        assert!(pair.server.is_closing());
        assert_eq!(pair.server.waiting(), 0, "told once");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// In a handshake or after it, whatever comes neither panics nor is kept
    /// beyond the bounds, and a channel that has failed stays so.
    #[test]
    fn any_bytes_are_survived_within_bounds(
        established in any::<bool>(),
        records in prop::collection::vec((20_u8..26, prop::collection::vec(any::<u8>(), 0..600)), 1..6),
        raw in prop::collection::vec(any::<u8>(), 0..200),
        pieces in 1_usize..2_000,
    ) {
        let version = &rustls::version::TLS13;
        let mut pair = if established {
            Pair::of(version)
        } else {
            let identity = identity();
            Pair::new(&identity, &client_config(&identity, version).into())
        };
        let mut wire = Vec::new();
        for (kind, payload) in records {
            wire.extend_from_slice(&[kind, 3, 3]);
            wire.extend_from_slice(&(payload.len() as u16).to_be_bytes());
            wire.extend_from_slice(&payload);
        }
        wire.extend_from_slice(&raw);
        let mut failed = false;
        for piece in wire.chunks(pieces) {
            let result = pair.arrives(piece);
            prop_assert!(!(failed && result.is_ok()));
            failed |= result.is_err();
            prop_assert!(pair.server.partial.len() <= MAX_PARTIAL);
            prop_assert!(pair.server.waiting() <= MAX_UNSENT);
        }
        pair.server.close();
        while !pair.server.flush(|bytes| Ok(bytes.len())).expect("flushed") {}
        prop_assert!(!failed || pair.server.seal(b"x", &mut pair.sealed).is_err());
        prop_assert!(pair.plain.is_empty(), "nothing of it was ever said");
    }
}
