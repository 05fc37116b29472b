//! The session as a whole: what real clients send, each way to break the rules,
//! and arbitrary bytes.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use quinn_proto::{Dir, Side, StreamId};

use super::codes::*;
use super::connect::{close_frame, frame};
use super::testing::{rules, section};
use super::*;

/// What Chromium 156 sent: its control stream, with a reserved setting and a
/// reserved frame; its CONNECT, with a reserved frame behind; the beginning of
/// its control stream; its close with code 7, "bye".
const CHROMIUM_CONTROL: &str = "00042901800100000680004000074064330180ffd27701ab60374201\
    c0000016f732ff54c000000043717af9c000000d2c8f675900";
const CHROMIUM_CONNECT: &str = "0140550000d7cf508a089d5c0b8170dc7db003518563b858f09f2f00\
    b95d8749c87a3f89f058d360ea4567b13f2f0e4148b782c69b07522b3d895a74a6b65692c1ca900b01315f4b8f\
    9d29aee30c044eae05c0b86e3ed3e00030c8f302624dd1aaa527f9fbd5351c7e85ed0ef7621b0efce0e25f402d\
    6d65a7d6bc66642b0698b0914cef4d07beaceb91";
const CHROMIUM_CLOSE: &str = "000a68430700000007627965";
/// What aioquic 1.7 sent.
const AIOQUIC_CONNECT: &str = "012a0000cfd7508aa0e41d139d09b8d34cb3518563b858f09f2f00b95d\
    8749c87a3f89f058d360ea4567b13f";
/// The beginning of a session's stream, from either.
const SESSION_0: &[u8] = b"\x40\x41\x00";

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn bidi(index: u64) -> StreamId {
    StreamId::new(Side::Client, Dir::Bi, index)
}

fn uni(index: u64) -> StreamId {
    StreamId::new(Side::Client, Dir::Uni, index)
}

/// A session and what came of it.
struct Peer {
    session: Session,
    out: Vec<Output>,
}

impl Peer {
    fn new() -> Self {
        Peer::with(rules())
    }

    fn with(rules: Rules) -> Self {
        let mut out = Vec::new();
        let session = Session::new(Arc::new(rules), &mut out);
        assert!(matches!(&out[..], [Output::OpenUni(bytes)] if bytes.starts_with(&[0, 4])));
        Peer { session, out: Vec::new() }
    }

    /// One whose session is open, with its control stream.
    fn open() -> Self {
        let mut peer = Peer::new();
        peer.says(uni(0), &control(), false);
        peer.says(bidi(0), &connect(&[]), false);
        peer.says(bidi(1), SESSION_0, false);
        assert!(peer.session.is_open());
        peer.out.clear();
        peer
    }

    fn says(&mut self, id: StreamId, bytes: &[u8], fin: bool) -> &[Output] {
        let before = self.out.len();
        self.session.stream_bytes(id, Bytes::copy_from_slice(bytes), fin, &mut self.out);
        &self.out[before..]
    }

    fn error(&self) -> Option<u64> {
        match self.out.last() {
            Some(Output::Error { code, .. }) => Some(*code),
            _ => None,
        }
    }
}

/// The shortest control stream: no settings.
fn control() -> Vec<u8> {
    vec![0x00, 0x04, 0x00]
}

fn connect(more: &[(&str, &str)]) -> Vec<u8> {
    let mut fields = vec![
        (":method", "CONNECT"),
        (":protocol", "webtransport"),
        (":scheme", "https"),
        (":authority", "live.example:7400"),
        (":path", "/v1/wt"),
    ];
    fields.extend_from_slice(more);
    frame(FRAME_HEADERS, &section(&fields))
}

fn accepted(stream: StreamId) -> [Output; 2] {
    let section = qpack::response(200, Some(("sec-webtransport-http3-draft", "draft02")));
    let bytes = frame(FRAME_HEADERS, &section);
    [Output::Write { stream, bytes, fin: false }, Output::Accepted]
}

fn refused(stream: StreamId, status: u16, code: &'static str) -> [Output; 3] {
    let field = if status == 405 { Some(("allow", "CONNECT")) } else { None };
    let bytes = frame(FRAME_HEADERS, &qpack::response(status, field));
    let error = if status == 400 { H3_MESSAGE_ERROR } else { H3_NO_ERROR };
    [
        Output::Write { stream, bytes, fin: true },
        Output::Stop { stream, code: error },
        Output::Refused { code },
    ]
}

fn data(bytes: &'static [u8], fin: bool) -> Output {
    Output::Data { bytes: Bytes::from_static(bytes), fin }
}

#[test]
fn chromium_opens_a_session_speaks_and_closes() {
    // The page came from another port, so its origin is listed.
    let origins = vec!["http://127.0.0.1:9490".to_owned()];
    let mut peer = Peer::with(Rules { origins, ..rules() });
    assert_eq!(peer.says(uni(0), &hex(CHROMIUM_CONTROL), false), []);
    assert!(peer.session.takes_datagrams());
    assert_eq!(peer.says(bidi(0), &hex(CHROMIUM_CONNECT), false), accepted(bidi(0)));
    assert_eq!(peer.says(bidi(1), SESSION_0, false), [Output::Control(bidi(1))]);
    assert_eq!(peer.says(bidi(1), b"hello", false), [data(b"hello", false)]);
    assert_eq!(peer.session.uni_header(), b"\x40\x54\x00");
    assert_eq!(peer.session.datagram_prefix(), b"\x00");
    let closed = Output::Closed { code: 7, reason: "bye".to_owned() };
    assert_eq!(peer.says(bidi(0), &hex(CHROMIUM_CLOSE), true), [closed]);
    assert!(!peer.session.is_open());
}

#[test]
fn a_page_from_elsewhere_is_refused() {
    let mut peer = Peer::new();
    peer.says(uni(0), &hex(CHROMIUM_CONTROL), false);
    assert_eq!(
        peer.says(bidi(0), &hex(CHROMIUM_CONNECT), false),
        refused(bidi(0), 403, "foreign_origin")
    );
    assert!(peer.session.uni_header().is_empty() && peer.session.datagram_prefix().is_empty());
}

#[test]
fn aioquic_opens_a_session() {
    let mut peer = Peer::new();
    // Its SETTINGS are 21 bytes: QPACK, extended CONNECT, a reserved one,
    // datagrams, WebTransport; a MAX_PUSH_ID behind.
    let settings = hex("0150000710080121013301ab60374201");
    let mut stream = vec![0x00];
    stream.extend(frame(FRAME_SETTINGS, &settings));
    stream.extend(hex("0d0108"));
    assert_eq!(peer.says(uni(0), &stream, false), []);
    assert_eq!(peer.says(uni(1), b"\x02", false), []);
    assert_eq!(peer.says(uni(2), b"\x03", false), []);
    assert!(peer.session.takes_datagrams());
    assert_eq!(peer.says(bidi(0), &hex(AIOQUIC_CONNECT), false), accepted(bidi(0)));
}

#[test]
fn our_close_is_over_when_the_client_has_answered_it() {
    let mut peer = Peer::open();
    assert!(peer.session.close(3000, "drain", &mut peer.out));
    let bytes = b"\x00\x0c\x68\x43\x09\x00\x00\x0b\xb8drain".to_vec();
    assert_eq!(peer.out, [Output::Write { stream: bidi(0), bytes, fin: true }]);
    assert_eq!(peer.says(bidi(1), b"too late", false), []);
    assert_eq!(peer.says(bidi(0), b"", true), [Output::Ended]);
    assert!(!peer.session.close(3000, "drain", &mut peer.out));
    assert_eq!(peer.says(bidi(0), b"x", false), []);
}

#[test]
fn a_session_without_a_close_ends_with_code_0() {
    let closed = [Output::Closed { code: 0, reason: String::new() }];
    let mut peer = Peer::open();
    assert_eq!(peer.says(bidi(0), b"", true), closed);
    let mut peer = Peer::open();
    peer.session.stream_reset(bidi(0), &mut peer.out);
    assert_eq!(peer.out, closed);
}

#[test]
fn what_overtakes_its_session_is_kept_within_bounds() {
    let mut peer = Peer::new();
    assert_eq!(peer.says(bidi(1), &[SESSION_0, b"join"].concat(), false), []);
    // The CONNECT waits for the SETTINGS.
    assert_eq!(peer.says(bidi(0), &connect(&[]), false), []);
    let mut expected = accepted(bidi(0)).to_vec();
    expected.extend([Output::Control(bidi(1)), data(b"join", false)]);
    assert_eq!(peer.says(uni(0), &control(), false), expected);
    assert_eq!(peer.says(bidi(1), b"more", true), [data(b"more", true)]);

    let rejected = |stream| {
        let code = WT_BUFFERED_STREAM_REJECTED;
        [Output::Reset { stream, code }, Output::Stop { stream, code }]
    };
    let mut peer = Peer::new();
    peer.says(bidi(1), SESSION_0, false);
    assert_eq!(peer.says(bidi(2), SESSION_0, false), rejected(bidi(2)));
    assert_eq!(peer.says(bidi(1), &[0; HELD_BYTES], false), []);
    assert_eq!(peer.says(bidi(1), &[0], false), rejected(bidi(1)));
    // Of another session than the one that comes.
    assert_eq!(peer.says(bidi(3), b"\x40\x41\x10", false), []);
    peer.says(uni(0), &control(), false);
    let mut expected = accepted(bidi(0)).to_vec();
    expected.extend(rejected(bidi(3)));
    assert_eq!(peer.says(bidi(0), &connect(&[]), false), expected);
}

#[test]
fn a_second_session_and_further_streams_are_turned_away() {
    let mut peer = Peer::open();
    assert_eq!(peer.says(bidi(2), &connect(&[]), false), refused(bidi(2), 429, "bad_handshake"));
    let (stream, code) = (bidi(3), WT_BUFFERED_STREAM_REJECTED);
    assert_eq!(
        peer.says(stream, SESSION_0, false),
        [Output::Reset { stream, code }, Output::Stop { stream, code }]
    );
    let stream = uni(3);
    assert_eq!(peer.says(stream, b"\x40\x54\x00", false), [Output::Stop { stream, code }]);
    let code = H3_STREAM_CREATION_ERROR;
    let stream = uni(4);
    assert_eq!(peer.says(stream, b"\x21", false), [Output::Stop { stream, code }]);
    assert!(peer.session.is_open());
    for index in 5..200 {
        peer.says(uni(index), b"\x21", true);
    }
    assert_eq!(peer.error(), Some(H3_EXCESSIVE_LOAD));
}

#[test]
fn other_requests_get_their_status_and_the_connection_may_ask_again() {
    let mut peer = Peer::new();
    peer.says(uni(0), &control(), false);
    let get = |path| {
        frame(
            FRAME_HEADERS,
            &section(&[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "live.example"),
                (":path", path),
            ]),
        )
    };
    assert_eq!(peer.says(bidi(0), &get("/"), true), refused(bidi(0), 404, "bad_handshake"));
    assert_eq!(peer.says(bidi(1), &get("/v1/wt"), true), refused(bidi(1), 405, "bad_handshake"));
    let long = "x".repeat(2_000);
    let large = connect(&[("cookie", &long)]);
    assert_eq!(peer.says(bidi(2), &large, false), refused(bidi(2), 431, "bad_handshake"));
    let upper = connect(&[("Origin", "https://live.example:7400")]);
    assert_eq!(peer.says(bidi(3), &upper, false), refused(bidi(3), 400, "bad_handshake"));
    assert_eq!(peer.says(bidi(4), &connect(&[]), false), accepted(bidi(4)));
    assert_eq!(peer.session.uni_header(), b"\x40\x54\x10");
    assert_eq!(peer.session.datagram_prefix(), b"\x04");
}

#[test]
fn each_broken_rule_has_its_error() {
    let settings = |payload: &[u8]| [&[0][..], &frame(FRAME_SETTINGS, payload)].concat();
    let after = |bytes: &[u8]| [control(), bytes.to_vec()].concat();
    let many = frame(0x21, &[0; 40_000]);
    for (name, stream, bytes, fin, code) in [
        ("no settings first", uni(0), b"\x00\x07\x01\x00".to_vec(), false, H3_MISSING_SETTINGS),
        ("settings twice", uni(0), after(b"\x04\x00"), false, H3_FRAME_UNEXPECTED),
        ("data on control", uni(0), after(b"\x00\x00"), false, H3_FRAME_UNEXPECTED),
        ("headers on control", uni(0), after(b"\x01\x00"), false, H3_FRAME_UNEXPECTED),
        ("a frame of HTTP/2", uni(0), after(b"\x06\x00"), false, H3_FRAME_UNEXPECTED),
        ("an empty GOAWAY", uni(0), after(b"\x07\x00"), false, H3_FRAME_ERROR),
        ("control ends", uni(0), control(), true, H3_CLOSED_CRITICAL_STREAM),
        ("a setting of HTTP/2", uni(0), settings(b"\x02\x00"), false, H3_SETTINGS_ERROR),
        ("a setting twice", uni(0), settings(b"\x33\x01\x33\x01"), false, H3_SETTINGS_ERROR),
        ("a setting above 1", uni(0), settings(b"\x33\x02"), false, H3_SETTINGS_ERROR),
        ("half a setting", uni(0), settings(b"\x33"), false, H3_FRAME_ERROR),
        ("huge settings", uni(0), b"\x00\x04\x7f\xff".to_vec(), false, H3_EXCESSIVE_LOAD),
        (
            "much to be skipped",
            uni(0),
            after(&[many.clone(), many].concat()),
            false,
            H3_EXCESSIVE_LOAD,
        ),
        ("a push", uni(0), b"\x01".to_vec(), false, H3_STREAM_CREATION_ERROR),
        ("a QPACK insert", uni(0), b"\x02\xc0\x01a".to_vec(), false, QPACK_ENCODER_STREAM_ERROR),
        ("encoder ends", uni(0), b"\x02\x20".to_vec(), true, H3_CLOSED_CRITICAL_STREAM),
        ("a QPACK ack", uni(0), b"\x03\x80".to_vec(), false, QPACK_DECODER_STREAM_ERROR),
        ("decoder ends", uni(0), b"\x03\x7f\x01\x40".to_vec(), true, H3_CLOSED_CRITICAL_STREAM),
        ("data first", bidi(0), b"\x00\x01a".to_vec(), false, H3_FRAME_UNEXPECTED),
        ("settings in a request", bidi(0), b"\x04\x00".to_vec(), false, H3_FRAME_UNEXPECTED),
        ("a push promise", bidi(0), b"\x05\x01\x00".to_vec(), false, H3_FRAME_UNEXPECTED),
        ("half a header", bidi(0), b"\x01\x09\x00".to_vec(), true, H3_FRAME_ERROR),
        ("half a frame", bidi(0), b"\x21".to_vec(), true, H3_FRAME_ERROR),
        (
            "a dynamic table",
            bidi(0),
            b"\x01\x03\x00\x00\x80".to_vec(),
            false,
            QPACK_DECOMPRESSION_FAILED,
        ),
        ("a signal late", bidi(0), b"\x21\x00\x40\x41\x00".to_vec(), false, H3_FRAME_ERROR),
        ("no session's id", bidi(0), b"\x40\x41\x02".to_vec(), false, H3_ID_ERROR),
    ] {
        let mut peer = Peer::new();
        peer.says(stream, &bytes, fin);
        assert_eq!(peer.error(), Some(code), "{name}: {:?}", peer.out);
        assert_eq!(peer.says(bidi(9), b"\x01\x00", false), [], "{name}");
    }
    for (name, bytes, fin, code) in [
        ("a second header", connect(&[]), false, H3_FRAME_UNEXPECTED),
        ("settings on it", b"\x04\x00".to_vec(), false, H3_FRAME_UNEXPECTED),
        ("half a frame", b"\x00\x02a".to_vec(), true, H3_FRAME_ERROR),
        ("half a capsule", b"\x00\x02\x68\x43".to_vec(), true, H3_MESSAGE_ERROR),
        ("a close without a code", b"\x00\x03\x68\x43\x03".to_vec(), false, H3_MESSAGE_ERROR),
        ("a close that is long", b"\x00\x04\x68\x43\x44\x05".to_vec(), false, H3_MESSAGE_ERROR),
        ("a huge capsule", b"\x00\x10\x17\x80\x01\x00\x00".to_vec(), false, H3_EXCESSIVE_LOAD),
    ] {
        let mut peer = Peer::open();
        peer.says(bidi(0), &bytes, fin);
        assert_eq!(peer.error(), Some(code), "{name}: {:?}", peer.out);
    }
    for stream in [b"\x00", b"\x02", b"\x03"] {
        let mut peer = Peer::new();
        peer.says(uni(0), stream, false);
        peer.says(uni(1), stream, false);
        assert_eq!(peer.error(), Some(H3_STREAM_CREATION_ERROR));
        let mut peer = Peer::new();
        peer.says(uni(0), stream, false);
        peer.session.stream_reset(uni(0), &mut peer.out);
        assert_eq!(peer.error(), Some(H3_CLOSED_CRITICAL_STREAM));
    }
}

#[test]
fn streams_that_come_to_nothing_are_tolerated() {
    let mut peer = Peer::new();
    assert_eq!(peer.says(uni(0), b"\x40", true), []);
    let code = H3_REQUEST_INCOMPLETE;
    assert_eq!(peer.says(bidi(0), b"", true), [Output::Reset { stream: bidi(0), code }]);
    peer.says(bidi(1), b"\x01", false);
    peer.out.clear();
    peer.session.stream_reset(bidi(1), &mut peer.out);
    let code = H3_REQUEST_CANCELLED;
    assert_eq!(peer.out, [Output::Reset { stream: bidi(1), code }]);
    for index in 2..2 + MAX_STREAMS as u64 {
        peer.says(bidi(index), b"\x01", false);
    }
    assert_eq!(peer.error(), None);
    peer.says(bidi(99), b"\x01", false);
    assert_eq!(peer.error(), Some(H3_EXCESSIVE_LOAD));
}

#[test]
fn unknown_frames_and_capsules_are_skipped() {
    let mut peer = Peer::open();
    let capsules = b"\x17\x02ab\x78\xae\x00\x00\x01c"; // reserved, drain, datagram
    let mut bytes = frame(0x21, b"reserved");
    bytes.extend(frame(FRAME_DATA, &capsules[..3]));
    bytes.extend(frame(FRAME_DATA, &capsules[3..]));
    bytes.extend(close_frame(3, "end"));
    let closed = Output::Closed { code: 3, reason: "end".to_owned() };
    assert_eq!(peer.says(bidi(0), &bytes, false), [closed]);
}

#[test]
fn a_reason_is_cut_where_a_character_ends() {
    let frame = close_frame(1, &"é".repeat(1_000));
    let mut peer = Peer::open();
    let expected = Output::Closed { code: 1, reason: "é".repeat(512) };
    assert_eq!(peer.says(bidi(0), &frame, false), [expected]);
}

#[test]
fn an_open_session_holds_a_few_hundred_bytes() {
    let peer = Peer::open();
    let streams = peer.session.streams.capacity() * size_of::<Stream>();
    let connect = size_of::<connect::Connect>();
    let all = size_of::<Session>() + streams + connect + held(&peer.session);
    assert!(all <= 512, "{all} bytes: {streams} of streams, {connect} of the CONNECT");
}

/// Bytes of the client that the session keeps.
fn held(session: &Session) -> usize {
    let of = |stream: &Stream| match &stream.state {
        State::Header { section, .. } => section.len(),
        State::Held { bytes, .. } => bytes.len(),
        State::Connect(connect) => connect.held(),
        _ => 0,
    };
    session.streams.iter().map(of).sum()
}

/// Pieces of the protocol, whole and broken, and arbitrary bytes.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let well_formed = prop_oneof![
        Just(control()),
        Just(hex(CHROMIUM_CONTROL)),
        Just(hex(CHROMIUM_CONNECT)),
        Just(hex(CHROMIUM_CLOSE)),
        Just(connect(&[])),
        Just(connect(&[("origin", "https://evil.example")])),
        Just(SESSION_0.to_vec()),
        Just(b"\x40\x54\x00".to_vec()),
        Just(b"\x00\x02\x17\x00".to_vec()),
        Just(b"\x21\x02ab".to_vec()),
        Just(vec![2, 0x20]),
        Just(vec![3, 0x7f, 0x80, 0x01]),
        proptest::collection::vec(any::<u8>(), 0..40),
    ];
    let change = proptest::option::weighted(0.2, (any::<prop::sample::Index>(), any::<u8>()));
    (well_formed, change).prop_map(|(mut bytes, change)| {
        if let Some((at, byte)) = change
            && !bytes.is_empty()
        {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

fn stream_id() -> impl Strategy<Value = StreamId> {
    (any::<bool>(), 0_u64..6)
        .prop_map(|(is_uni, index)| if is_uni { uni(index) } else { bidi(index) })
}

/// What came out, with what was said on the control stream as one.
fn joined(out: Vec<Output>) -> Vec<Output> {
    let mut all: Vec<Output> = Vec::new();
    for output in out {
        match (all.last_mut(), output) {
            (
                Some(Output::Data { bytes: before, fin }),
                Output::Data { bytes: after, fin: last },
            ) => {
                *before = [before.as_ref(), after.as_ref()].concat().into();
                *fin |= last;
            }
            (_, output) => all.push(output),
        }
    }
    all.retain(|output| !matches!(output, Output::Data { bytes, fin: false } if bytes.is_empty()));
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn arbitrary_bytes_end_nothing_but_their_connection_and_are_not_kept(
        open: bool,
        says in proptest::collection::vec((stream_id(), piece(), prop::bool::weighted(0.1), any::<u8>()), 1..40),
    ) {
        let mut peer = if open { Peer::open() } else { Peer::new() };
        let most = rules().max_header + HELD_BYTES + 1_028;
        let mut stopped: Vec<StreamId> = Vec::new();
        for (id, bytes, fin, dice) in says {
            if stopped.contains(&id) {
                continue;
            }
            let before = peer.out.len();
            if dice == 0 {
                peer.session.stream_reset(id, &mut peer.out);
            } else {
                peer.says(id, &bytes, fin);
            }
            if fin || dice == 0 {
                stopped.push(id);
            }
            for output in &peer.out[before..] {
                if let Output::Stop { stream, .. } = output {
                    stopped.push(*stream);
                }
            }
            prop_assert!(held(&peer.session) <= most);
            prop_assert!(peer.session.streams.len() <= MAX_STREAMS);
        }
        let last = |output: &Output| {
            matches!(output, Output::Error { .. } | Output::Closed { .. } | Output::Ended)
        };
        if let Some(at) = peer.out.iter().position(last) {
            prop_assert_eq!(at + 1, peer.out.len(), "nothing follows");
        }
        let accepted = peer.out.iter().filter(|output| matches!(output, Output::Accepted));
        prop_assert!(accepted.count() <= usize::from(!open));
    }

    #[test]
    fn any_chunking_gives_the_same(
        open: bool,
        streams in proptest::collection::vec((stream_id(), proptest::collection::vec(piece(), 1..4), any::<bool>()), 1..6),
        size in 1_usize..20,
    ) {
        let peer = || if open { Peer::open() } else { Peer::new() };
        let (mut whole, mut chunked) = (peer(), peer());
        let mut seen: Vec<StreamId> = Vec::new();
        for (id, pieces, fin) in streams {
            if seen.contains(&id) {
                continue;
            }
            seen.push(id);
            let bytes = pieces.concat();
            whole.says(id, &bytes, fin);
            let mut chunks = bytes.chunks(size).peekable();
            let mut gone = false;
            while let Some(chunk) = chunks.next() {
                if !gone {
                    let fin = fin && chunks.peek().is_none();
                    gone = chunked.says(id, chunk, fin).iter().any(
                        |output| matches!(output, Output::Stop { stream, .. } if *stream == id));
                }
            }
            if bytes.is_empty() {
                chunked.says(id, &[], fin);
            }
        }
        prop_assert_eq!(joined(whole.out), joined(chunked.out));
    }
}
