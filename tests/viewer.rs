//! The viewer library against the real binary: over both transports, across its
//! death, across a change of address, and where UDP goes nowhere.

mod harness;

use std::io::{BufRead as _, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use harness::{PATIENCE, Server};
use serde_json::{Value, json};
use tidegate::viewer::{
    Happening, NewEvent, Options, Published, Room, Status, Transport, Trust, Viewer, Why,
};
use tokio::time::timeout;

const BOTH: [Transport; 2] = [Transport::WebSocket, Transport::Quic];

fn options(server: &Server, transport: Option<Transport>) -> Options {
    let trust = Trust::Anything;
    Options { transport, trust, ..Options::new(format!("ws://{}", server.address)) }
}

async fn join(server: &Server, viewer: &Viewer, room: &str) -> Room {
    let token = server.token("u", "viewer", &["*"]);
    soon(viewer.join(room, token)).await.expect("joined")
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("in time")
}

async fn next(room: &mut Room) -> Happening {
    soon(room.next()).await.expect("open")
}

/// Publishes events of a kind, named after their number.
fn publish(server: &Server, kind: &str, numbers: std::ops::Range<u32>) {
    let event = |n: u32| json!({"id": format!("{kind}-{n}"), "kind": kind, "payload": n});
    let events: Vec<Value> = numbers.map(event).collect();
    let (status, body) = server.publish("r", json!(events));
    assert_eq!(status, 200, "{body}");
    let results = body["results"].as_array().expect("results");
    assert!(results.iter().all(|result| result["status"] == "accepted"), "{body}");
}

/// The payloads of the next important events.
async fn packets(room: &mut Room, count: usize) -> Vec<u64> {
    let mut came = Vec::new();
    while came.len() < count {
        if let Happening::Event(event) = next(room).await
            && event.important.is_some()
        {
            came.push(event.json().and_then(|n| n.as_u64()).expect("a number"));
        }
    }
    came
}

#[tokio::test]
async fn all_lanes_arrive_over_both_transports() {
    let server = Server::start("");
    for transport in BOTH {
        let viewer = Viewer::connect(options(&server, Some(transport))).expect("started");
        let mut room = join(&server, &viewer, "r").await;
        assert_eq!(viewer.transport(), Some(transport));
        assert!(matches!(next(&mut room).await, Happening::Joined(_)));
        let chat = NewEvent::json("chat", &json!({"text": "hi"})).expect("JSON");
        let said = soon(room.publish(chat)).await.expect("accepted");
        assert!(matches!(said, Published { seq: Some(_) }));
        let no_kind = transport as u32;
        publish(&server, "red_packet", no_kind..no_kind + 1);
        publish(&server, "like", no_kind..no_kind + 1);
        let (mut chats, mut packets, mut likes) = (0, 0, 0);
        while chats == 0 || packets == 0 || likes == 0 {
            match next(&mut room).await {
                Happening::Event(event) if event.kind == "chat" => {
                    assert_eq!(event.json(), Some(json!({"text": "hi"})));
                    chats += 1;
                }
                Happening::Event(event) if event.kind == "red_packet" => packets += 1,
                Happening::Totals(totals) => {
                    likes += totals.iter().filter(|total| total.kind == "like").count();
                }
                _ => {}
            }
        }
        assert_eq!((chats, packets), (1, 1));
        soon(room.leave()).await;
        let stats = soon(viewer.close()).await;
        assert_eq!((stats.lost, stats.failed), (0, 0), "{stats:?}");
    }
}

#[tokio::test]
async fn nothing_important_is_lost_or_doubled_when_the_server_dies() {
    for transport in BOTH {
        let mut server = Server::start("");
        let viewer = Viewer::connect(options(&server, Some(transport))).expect("started");
        let mut room = join(&server, &viewer, "r").await;
        let mut came = Vec::new();
        for life in 0..3 {
            publish(&server, "red_packet", life * 20..life * 20 + 10);
            // Some of them on their way when it dies.
            let first = packets(&mut room, 5).await;
            came.extend(first);
            server.kill();
            server.again();
            publish(&server, "red_packet", life * 20 + 10..life * 20 + 20);
            let rest = packets(&mut room, 15).await;
            came.extend(rest);
        }
        assert!(came.iter().copied().eq(0..60), "{transport}: {came:?}");
        assert_eq!(viewer.stats().lost, 3);
        let mut shown = 0;
        while let Ok(Some(happening)) = timeout(Duration::from_millis(300), room.next()).await {
            shown += u32::from(matches!(&happening, Happening::Event(e) if e.important.is_some()));
        }
        assert_eq!(shown, 0, "again");
    }
}

#[tokio::test]
async fn what_was_said_when_the_server_died_is_said_once() {
    for transport in BOTH {
        let mut server = Server::start("");
        let viewer = Viewer::connect(options(&server, Some(transport))).expect("started");
        let mut room = join(&server, &viewer, "r").await;
        server.kill();
        let said = tokio::spawn(room.publish(NewEvent::new("chat", "\"once\"")));
        server.again();
        assert!(soon(said).await.expect("done").is_ok());
        let again = loop {
            match next(&mut room).await {
                Happening::Joined(snapshot) if snapshot.why != Why::First => break snapshot,
                _ => {}
            }
        };
        assert_ne!(again.why, Why::Rebased);
        let marker = soon(room.publish(NewEvent::new("chat", "\"marker\""))).await;
        assert!(marker.is_ok());
        let mut once = 0;
        loop {
            match next(&mut room).await {
                Happening::Event(event) if event.payload == "\"once\"" => once += 1,
                Happening::Event(event) if event.payload == "\"marker\"" => break,
                _ => {}
            }
        }
        assert_eq!(once, 1, "{transport}");
    }
}

#[tokio::test]
async fn a_change_of_address_costs_nothing_over_quic() {
    let server = Server::start("");
    let viewer = Viewer::connect(options(&server, Some(Transport::Quic))).expect("started");
    let mut room = join(&server, &viewer, "r").await;
    for step in 0..10 {
        publish(&server, "red_packet", step * 5..step * 5 + 5);
        viewer.rebind().await.expect("another socket");
        let came = packets(&mut room, 5).await;
        assert!(came.into_iter().eq(u64::from(step) * 5..u64::from(step) * 5 + 5));
    }
    let stats = viewer.stats();
    assert_eq!((stats.quic, stats.websocket, stats.lost), (1, 0, 0));
}

#[tokio::test]
async fn by_itself_it_takes_quic_and_where_udp_goes_nowhere_websocket() {
    let server = Server::start("");
    let viewer = Viewer::connect(options(&server, None)).expect("started");
    let _room = join(&server, &viewer, "r").await;
    assert_eq!(viewer.transport(), Some(Transport::Quic));
    let server = Server::start("[quic]\nenabled = false\n");
    let hole = UdpSocket::bind(server.address).expect("the port is free");
    let viewer = Viewer::connect(options(&server, None)).expect("started");
    let _room = join(&server, &viewer, "r").await;
    assert_eq!(viewer.transport(), Some(Transport::WebSocket));
    hole.set_nonblocking(true).expect("a socket");
    assert!(hole.recv(&mut [0; 2_000]).is_ok(), "it was tried");
}

#[tokio::test]
async fn a_drained_viewer_comes_back_when_it_was_told_to() {
    for transport in BOTH {
        let mut server = Server::start("");
        let viewer = Viewer::connect(options(&server, Some(transport))).expect("started");
        let mut room = join(&server, &viewer, "r").await;
        publish(&server, "red_packet", 0..1);
        assert_eq!(packets(&mut room, 1).await, [0]);
        server.terminate();
        let (mut told, mut waited) = (None, None);
        while told.is_none() || waited.is_none() {
            match next(&mut room).await {
                Happening::Leaving { reconnect_after } => told = Some(reconnect_after),
                Happening::Disconnected { again_in, .. } => waited = Some(again_in),
                _ => {}
            }
        }
        assert_eq!(told, waited, "{transport}");
        server.again();
        publish(&server, "red_packet", 1..2);
        assert_eq!(packets(&mut room, 1).await, [1]);
        let connected = |status: &Status| matches!(status, Status::Connected { .. });
        assert!(connected(&viewer.status().borrow()));
    }
}

#[tokio::test]
async fn websocket_over_tls_is_the_same() {
    let mut server = Server::start("");
    let url = format!("wss://{}", server.address);
    let options = Options { url, ..options(&server, Some(Transport::WebSocket)) };
    let viewer = Viewer::connect(options).expect("started");
    let mut room = join(&server, &viewer, "r").await;
    publish(&server, "red_packet", 0..5);
    assert_eq!(packets(&mut room, 5).await, [0, 1, 2, 3, 4]);
    server.kill();
    server.again();
    publish(&server, "red_packet", 5..7);
    assert_eq!(packets(&mut room, 2).await, [5, 6]);
}

/// `tidegate watch`; killed when dropped.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Watch {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["watch", "r"])
            .args(arguments)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        Watch { child, lines }
    }

    fn next(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn watch_shows_what_carries_it() {
    let server = Server::start("");
    let url = format!("ws://{}", server.address);
    let token = server.token("u", "viewer", &["r"]);
    for transport in BOTH {
        let name = transport.to_string();
        let arguments = ["--insecure", "--transport", &name, "--url", &url, "--token", &token];
        let watch = Watch::start(&arguments, &[]);
        assert_eq!(watch.next(), format!("connected by {name} to {}", server.address));
        assert!(watch.next().starts_with("joined: epoch "));
        let number = transport as u32;
        publish(&server, "red_packet", number..number + 1);
        while !watch.next().contains("red_packet") {}
    }
}
