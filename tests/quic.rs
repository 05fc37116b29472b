//! Raw QUIC against the real binary, with streams read one by one: what one lane
//! does to another.

mod harness;

use std::sync::Arc;
use std::time::Duration;

use harness::{PATIENCE, Server};
use prost::Message as _;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream, TransportConfig, VarInt};
use serde_json::{Value, json};
use tidegate::trust::Trust;
use tidegate::viewer;
use tidegate::wire::proto::v1;
use tidegate::wire::proto::v1::client_message::Message as Out;
use tidegate::wire::proto::v1::server_message::Message as In;
use tidegate::wire::stream;
use tokio::net::UdpSocket;
use tokio::time::timeout;

struct Viewer {
    endpoint: Endpoint,
    connection: Connection,
    say: SendStream,
    control: RecvStream,
    /// Of the control stream, not yet a whole message.
    held: stream::Decoder,
    heard: std::collections::VecDeque<In>,
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("in time")
}

/// Messages of `bytes`, the next of a stream.
fn messages(decoder: &mut stream::Decoder, bytes: &[u8]) -> Vec<In> {
    let mut messages = Vec::new();
    let mut heard = |bytes: &[u8]| {
        let message = v1::ServerMessage::decode(bytes).expect("protobuf").message;
        messages.push(message.expect("a known message"));
        true
    };
    decoder.feed(bytes, 1 << 20, &mut heard).expect("not too long");
    messages
}

impl Viewer {
    /// In room `r`, with so many bytes of credit for each stream.
    async fn join(server: &Server, window: u32) -> Self {
        // Whoever the server is: it is the one that this test has started.
        let tls = Trust::Anything.client(&[b"tidegate/1"]).expect("TLS");
        let crypto = QuicClientConfig::try_from(tls).expect("a cipher");
        let mut config = ClientConfig::new(Arc::new(crypto));
        let mut transport = TransportConfig::default();
        transport.stream_receive_window(VarInt::from_u32(window));
        config.transport_config(Arc::new(transport));
        let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).expect("a socket");
        let connecting = endpoint.connect_with(config, server.address, "localhost");
        let connection = soon(connecting.expect("sensible")).await.expect("connected");
        let (mut say, control) = connection.open_bi().await.expect("a stream");
        let join = v1::Join {
            room: "r".into(),
            token: server.token("u", "viewer", &["*"]),
            resume: None,
            acks: false,
        };
        let join = v1::ClientMessage { message: Some(Out::Join(join)) };
        say.write_all(&stream::data(&join.encode_to_vec())).await.expect("written");
        let (held, heard) = Default::default();
        let mut viewer = Self { endpoint, connection, say, control, held, heard };
        while !matches!(viewer.hear().await, In::Joined(_)) {}
        viewer
    }

    /// The next message of the control stream.
    async fn hear(&mut self) -> In {
        loop {
            if let Some(message) = self.heard.pop_front() {
                return message;
            }
            let chunk = soon(self.control.read_chunk(64 << 10, true)).await;
            let chunk = chunk.expect("open").expect("not at its end");
            self.heard.extend(messages(&mut self.held, &chunk.bytes));
        }
    }
}

fn publish(server: &Server, kind: &str, ids: std::ops::Range<u32>, payload: &str) {
    let event = |n: u32| json!({"id": format!("{kind}-{n}"), "kind": kind, "payload": payload});
    let (status, body) = server.publish("r", json!(ids.map(event).collect::<Vec<Value>>()));
    assert_eq!(status, 200, "{body}");
    let results = body["results"].as_array().expect("results");
    assert!(results.iter().all(|result| result["status"] == "accepted"), "{body}");
}

#[tokio::test]
async fn datagrams_of_a_viewer_mean_nothing_and_are_counted() {
    let server = Server::start("");
    let mut viewer = Viewer::join(&server, 64 << 10).await;
    for n in 0..5_u8 {
        viewer.connection.send_datagram(vec![n; 100].into()).expect("sent");
    }
    let leave = v1::ClientMessage { message: Some(Out::Leave(v1::Leave { room: "r".into() })) };
    viewer.say.write_all(&stream::data(&leave.encode_to_vec())).await.expect("written");
    // It goes on all the same; and while this waits, what was said goes out.
    while !matches!(viewer.hear().await, In::Left(_)) {}
    server.wait_metric("tidegate_quic_dropped_total{reason=\"from_viewer\"}", 5.0);
}

#[tokio::test]
async fn a_viewer_may_update_its_keys_and_move_again_and_again() {
    let server = Server::start("");
    let mut viewer = Viewer::join(&server, 64 << 10).await;
    let mut said = 0.0;
    for round in 0..12 {
        // What it says next is sealed with keys that the server has to derive, and
        // the server answers with its own next ones (RFC 9001, section 6). As long
        // as packets under the last ones may come, this does nothing.
        viewer.connection.force_key_update();
        if round % 3 == 2 {
            // Each move takes an id that the server has given before.
            let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
            viewer.endpoint.rebind(socket).expect("moved");
        } else {
            viewer.connection.send_datagram(vec![0; 100].into()).expect("sent");
            said += 1.0;
        }
        publish(&server, "chat", round..round + 1, "x");
        loop {
            let In::Frame(frame) = viewer.hear().await else { continue };
            if frame.events.iter().any(|event| event.id == format!("chat-{round}")) {
                break;
            }
        }
        server.wait_metric("tidegate_quic_dropped_total{reason=\"from_viewer\"}", said);
    }
    assert_eq!(server.metric("tidegate_transport_connections{transport=\"quic\"}"), 1.0);
}

#[tokio::test]
async fn a_viewer_that_reads_no_talk_gets_what_matters_and_is_told_what_it_lost() {
    let server = Server::start("[delivery]\nrecover_ms = 200\n");
    let mut viewer = Viewer::join(&server, 8 << 10).await;
    assert_eq!(server.metric("tidegate_transport_connections{transport=\"quic\"}"), 1.0);
    // Far more than the window, the server's own and every rung take.
    let long = "x".repeat(3_500);
    for batch in 0..60 {
        publish(&server, "chat", batch * 20..batch * 20 + 20, &long);
    }
    publish(&server, "red_packet", 0..3, "all");
    let mut important = soon(viewer.connection.accept_uni()).await.expect("a stream");
    let (mut decoder, mut came) = (stream::Decoder::default(), Vec::new());
    while came.len() < 3 {
        let chunk = soon(important.read_chunk(64 << 10, true)).await;
        for message in messages(&mut decoder, &chunk.expect("open").expect("not its end").bytes) {
            let In::Frame(frame) = message else { panic!("{message:?} on the important stream") };
            assert_eq!(frame.first_seq, frame.last_seq + 1, "it covers no numbers");
            came.extend(frame.events.into_iter().map(|event| event.id));
        }
    }
    assert_eq!(came, ["red_packet-0", "red_packet-1", "red_packet-2"]);
    // Now it reads: what came before is whole, and what did not is told.
    let (mut lost, mut shown, mut rebased) = (0, 0, false);
    publish(&server, "chat", 9_000..9_001, "last");
    let mut number = 9_001;
    loop {
        let heard = timeout(Duration::from_millis(500), viewer.hear()).await;
        match heard {
            Ok(In::Frame(frame)) => {
                shown += frame.events.len() as u64;
                lost += frame.dropped.values().sum::<u64>();
                if frame.events.iter().any(|event| event.id.starts_with("chat-90")) {
                    break;
                }
            }
            Ok(In::Gap(gap)) => lost += gap.dropped.values().sum::<u64>(),
            Ok(In::Joined(joined)) => rebased |= joined.rebased,
            Ok(other) => assert!(matches!(other, In::Ping(_)), "{other:?}"),
            // It has skipped ahead and waits for news.
            Err(_) => {
                publish(&server, "chat", number..number + 1, "again");
                number += 1;
            }
        }
    }
    assert!(lost > 0, "something was lost");
    assert!(shown > 0 && shown + lost <= 1_200 + u64::from(number - 9_000), "{shown} and {lost}");
    assert!(rebased || shown + lost >= 1_200, "{shown} shown, {lost} told of");
    let leave = v1::ClientMessage { message: Some(Out::Leave(v1::Leave { room: "r".into() })) };
    viewer.say.write_all(&stream::data(&leave.encode_to_vec())).await.expect("written");
    while !matches!(viewer.hear().await, In::Left(_)) {}
}

/// The frames of the next datagrams.
async fn datagrams(viewer: &Viewer, count: usize) -> Vec<v1::Frame> {
    let mut frames = Vec::new();
    while frames.len() < count {
        let bytes = soon(viewer.connection.read_datagram()).await.expect("open");
        let message = v1::ServerMessage::decode(bytes).expect("protobuf").message;
        let Some(In::Frame(frame)) = message else { panic!("{message:?} in a datagram") };
        // The count of viewers comes by itself.
        if !frame.events.is_empty() {
            frames.push(frame);
        }
    }
    frames
}

/// The next frames of the important stream, and the stream, which must not be let go.
async fn important(viewer: &Viewer, count: usize) -> (Vec<v1::Frame>, RecvStream) {
    let mut stream = soon(viewer.connection.accept_uni()).await.expect("a stream");
    let (mut decoder, mut frames) = (stream::Decoder::default(), Vec::new());
    while frames.len() < count {
        let chunk = soon(stream.read_chunk(64 << 10, true)).await.expect("open");
        for message in messages(&mut decoder, &chunk.expect("not its end").bytes) {
            let In::Frame(frame) = message else { panic!("{message:?} on the important stream") };
            frames.push(frame);
        }
    }
    (frames, stream)
}

const COPIED: &str = "tidegate_quic_copies_total{result=\"sent\"}";

#[tokio::test]
async fn on_a_path_of_which_nothing_is_known_important_events_come_by_datagram_too() {
    let server = Server::start("[quic]\ncopy_min_rtt_ms = 0\n");
    let viewer = Viewer::join(&server, 64 << 10).await;
    // One frame each, for the copies to be told apart.
    let mut copies = Vec::new();
    for n in 0..5 {
        publish(&server, "red_packet", n..n + 1, "all");
        copies.extend(datagrams(&viewer, 1).await);
    }
    let ids: Vec<&str> = copies.iter().map(|frame| frame.events[0].id.as_str()).collect();
    assert_eq!(
        ids,
        ["red_packet-0", "red_packet-1", "red_packet-2", "red_packet-3", "red_packet-4"]
    );
    assert_eq!(important(&viewer, 5).await.0, copies, "the same messages");
    server.wait_metric(COPIED, 5.0);
}

#[tokio::test]
async fn what_fits_no_datagram_or_no_budget_is_not_copied_and_counted() {
    let server = Server::start("[quic]\ncopy_min_rtt_ms = 0\ncopy_bytes_per_second = 100\n");
    let viewer = Viewer::join(&server, 64 << 10).await;
    publish(&server, "red_packet", 0..1, &"x".repeat(200));
    server.wait_metric("tidegate_quic_copies_total{result=\"budget\"}", 1.0);
    publish(&server, "red_packet", 1..2, &"x".repeat(1_500));
    server.wait_metric("tidegate_quic_copies_total{result=\"too_large\"}", 1.0);
    assert_eq!(server.metric(COPIED), 0.0);
    assert_eq!(important(&viewer, 2).await.0.len(), 2);
}

#[tokio::test]
async fn a_near_path_gets_no_copies() {
    let server = Server::start("[quic]\ncopy_after_ms = 1\n");
    let mut viewer = Viewer::join(&server, 64 << 10).await;
    for n in 0..3 {
        publish(&server, "red_packet", n..n + 1, "all");
    }
    let (frames, _stream) = important(&viewer, 3).await;
    assert_eq!(frames.len(), 3);
    let leave = v1::ClientMessage { message: Some(Out::Leave(v1::Leave { room: "r".into() })) };
    viewer.say.write_all(&stream::data(&leave.encode_to_vec())).await.expect("written");
    while !matches!(viewer.hear().await, In::Left(_)) {}
    for result in ["sent", "budget", "too_large", "unsupported", "congested"] {
        let name = format!("tidegate_quic_copies_total{{result=\"{result}\"}}");
        assert_eq!(server.metric(&name), 0.0, "{result}");
    }
}

/// Carries packets between one client and a server; of those to the client one in
/// `loses` gets lost, once the handshake is over.
async fn losing_line(server: std::net::SocketAddr, loses: u32) -> std::net::SocketAddr {
    let near = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let far = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    far.connect(server).await.expect("connected");
    let address = near.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut up, mut down) = ([0; 2_048], [0; 2_048]);
        let (mut client, mut came) = (None, 0_u32);
        loop {
            tokio::select! {
                Ok((length, from)) = near.recv_from(&mut up) => {
                    client = Some(from);
                    let _ = far.send(&up[..length]).await;
                }
                Ok(length) = far.recv(&mut down) => {
                    came += 1;
                    let Some(client) = client.filter(|_| came < 10 || came % loses > 0) else {
                        continue;
                    };
                    let _ = near.send_to(&down[..length], client).await;
                }
            }
        }
    });
    address
}

#[tokio::test]
async fn over_a_path_that_loses_every_important_event_comes_once_and_in_order() {
    let server = Server::start("[quic]\ncopy_min_rtt_ms = 0\ncopy_bytes_per_second = 100000\n");
    let line = losing_line(server.address, 5).await;
    let options = viewer::Options {
        transport: Some(viewer::Transport::Quic),
        trust: viewer::Trust::Anything,
        ..viewer::Options::new(format!("ws://{line}"))
    };
    let watching = viewer::Viewer::connect(options).expect("started");
    let token = server.token("u", "viewer", &["*"]);
    let mut room = soon(watching.join("r", token)).await.expect("joined");
    let mut came = Vec::new();
    for n in 0..60 {
        publish(&server, "red_packet", n..n + 1, "all");
        while came.len() <= n as usize {
            if let viewer::Happening::Event(event) = soon(room.next()).await.expect("open") {
                came.push(event.id);
            }
        }
    }
    let expected: Vec<String> = (0..60).map(|n| format!("red_packet-{n}")).collect();
    assert_eq!(came, expected);
    // Where both come, the second is dropped.
    assert!(server.metric(COPIED) >= 40.0, "{} copies", server.metric(COPIED));
    assert!(room.tally().dropped > 0, "{:?}", room.tally());
    assert_eq!(room.tally().lost, 0);
}
