//! Viewers that read too slowly, on the real binary: what each rung of their
//! ladder takes from them, what they are told, and how they come back.

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::{PATIENCE, Server, Viewer, exchange};
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};
use tungstenite::client::IntoClientRequest;

/// A viewer in a room whose kernel takes little before it reads.
fn viewer_with_a_small_buffer(server: &Server, room: &str) -> Viewer {
    let mut request =
        format!("ws://{}/v1/ws", server.address).into_client_request().expect("a request");
    let value = "tidegate.v1.json".parse().expect("a header value");
    request.headers_mut().insert("Sec-WebSocket-Protocol", value);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    socket.connect(&server.address.into()).expect("connected");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let (socket, _) = tungstenite::client(request, stream).expect("upgraded");
    let mut viewer = Viewer { socket };
    viewer.expect("welcome");
    viewer.join(room, &server.token("slow", "viewer", &[room]));
    viewer.expect("joined");
    viewer
}

/// What goes to the room, counted.
struct Publisher<'a> {
    server: &'a Server,
    batches: u64,
    chats: u64,
    packets: u64,
    likes: i64,
}

impl<'a> Publisher<'a> {
    fn new(server: &'a Server) -> Self {
        Self { server, batches: 0, chats: 0, packets: 0, likes: 0 }
    }

    /// Chats, likes, entrances and a counter, with a red packet now and then. In a
    /// small room that is a frame or a few.
    fn batch(&mut self) {
        self.batches += 1;
        let n = self.batches;
        let text = "x".repeat(3_900);
        let mut events = vec![
            json!({"id": format!("a{n}"), "kind": "chat", "payload": text}),
            json!({"id": format!("b{n}"), "kind": "chat", "payload": text}),
            json!({"id": format!("l{n}"), "kind": "like", "amount": 3}),
            json!({"id": format!("e{n}"), "kind": "enter", "user": format!("u{n}")}),
            json!({"id": format!("s{n}"), "kind": "stats", "key": "online", "payload": n}),
        ];
        if n.is_multiple_of(4) {
            events.push(json!({"id": format!("p{n}"), "kind": "red_packet", "payload": n}));
            self.packets += 1;
        }
        let sent = events.len();
        let (status, body) = self.server.publish("r", json!(events));
        let results = body["results"].as_array().expect("results");
        let taken = results.iter().filter(|r| r["status"] == "accepted").count();
        assert_eq!((status, taken), (200, sent), "{body}");
        self.chats += 2;
        self.likes += 3;
    }

    /// Until a metric is at least `least`.
    fn batches_until(&mut self, series: &str, least: f64) {
        let until = Instant::now() + PATIENCE * 3;
        while self.server.metric(series) < least {
            assert!(Instant::now() < until, "{series} stays at {}", self.server.metric(series));
            self.batch();
        }
    }
}

/// What a slow viewer made of what it was sent.
#[derive(Default)]
struct Notes {
    /// Numbers up to here came or were told as lost.
    covered: u64,
    important: u64,
    chats: u64,
    entrances: u64,
    lost: BTreeMap<String, u64>,
    likes: i64,
    counter: u64,
    gaps: u64,
    rebased: u64,
    /// Frames without numbers and events that bring totals.
    totals_alone: u64,
    /// What frames said was withheld, as often as it changed.
    withheld: Vec<u64>,
    ids: BTreeSet<String>,
}

impl Notes {
    /// Takes a message in, and says what it was.
    fn take(&mut self, viewer: &mut Viewer) -> String {
        let (name, content) = viewer.next();
        match name.as_str() {
            "frame" => self.frame(&content),
            "gap" => {
                assert!(content["first_seq"].as_u64() <= Some(self.covered + 1), "{content}");
                self.covered = self.covered.max(content["last_seq"].as_u64().expect("a number"));
                self.gaps += 1;
                for (kind, count) in content["dropped"].as_object().expect("counts") {
                    *self.lost.entry(kind.clone()).or_default() += count.as_u64().expect("a count");
                }
            }
            "joined" => {
                assert_eq!(content["rebased"], true, "{content}");
                assert_eq!(content["seq"].as_u64(), Some(self.covered));
                assert_eq!(content["important"].as_u64(), Some(self.important), "owed ones first");
                self.rebased += 1;
                self.totals(&content);
                for event in content["state"].as_array().expect("state") {
                    self.value(event);
                }
            }
            "ping" => {}
            other => panic!("{other} {content}"),
        }
        name
    }

    fn frame(&mut self, frame: &Value) {
        let number = |field: &str| frame[field].as_u64().expect("a number");
        let (first, last) = (number("first_seq"), number("last_seq"));
        let events = frame["events"].as_array().expect("events");
        let withheld = frame["withheld"].as_u64().unwrap_or(0);
        let says = withheld > 0 || first <= last;
        if says && self.withheld.last() != Some(&withheld) {
            self.withheld.push(withheld);
        }
        if first <= last {
            assert!(first <= self.covered + 1, "{first} comes after {}", self.covered);
            self.covered = self.covered.max(last);
        } else if events.is_empty() && !frame["totals"].as_array().expect("totals").is_empty() {
            self.totals_alone += 1;
        }
        for event in events {
            let id = event["id"].as_str().expect("an id").to_owned();
            assert!(self.ids.insert(id), "twice: {event}");
            if let Some(important) = event["important"].as_u64() {
                assert_eq!(important, self.important + 1, "in order, without a hole");
                self.important = important;
            }
            self.chats += u64::from(event["kind"] == "chat");
            self.entrances += u64::from(event["kind"] == "enter");
            self.value(event);
        }
        self.totals(frame);
    }

    fn totals(&mut self, of: &Value) {
        for total in of["totals"].as_array().expect("totals") {
            if total["kind"] == "like" {
                self.likes = total["sum"].as_i64().expect("a sum");
            }
        }
    }

    fn value(&mut self, event: &Value) {
        if event["kind"] == "stats" {
            self.counter = event["payload"].as_u64().expect("a number");
        }
    }
}

/// Bounds by frames alone, so that no clock decides.
fn bounds(frames: [u32; 4]) -> String {
    let names = ["no_sampled", "totals_only", "important_only", "rebase"];
    let mut text = String::from("[delivery]\nrecover_ms = 200\n");
    for (name, frames) in names.into_iter().zip(frames) {
        text +=
            &format!("{name}_frames = {frames}\n{name}_bytes = 100000000\n{name}_ms = 3600000\n");
    }
    text + "[rooms]\nsmall_room_viewers = 1000\n"
}

fn climbs(rung: &str) -> String {
    format!("tidegate_slow_viewer_climbs_total{{rung=\"{rung}\"}}")
}

/// Waits until nothing is withheld from anybody.
fn wait_for_recovery(server: &Server) {
    let until = Instant::now() + PATIENCE;
    while server.metric("tidegate_slow_viewers") > 0.0 {
        assert!(Instant::now() < until, "it stays slow");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn sampled_events_go_first_and_nothing_else_is_missing() {
    let server = Server::start(&bounds([6, 100_000, 100_000, 100_000]));
    let mut publisher = Publisher::new(&server);
    let mut slow = viewer_with_a_small_buffer(&server, "r");
    publisher.batches_until(&climbs("no_sampled"), 1.0);
    (0..8).for_each(|_| publisher.batch());
    let mut notes = Notes::default();
    while notes.chats < publisher.chats || notes.likes < publisher.likes {
        notes.take(&mut slow);
    }
    assert!(notes.entrances < publisher.batches, "sampled events are missing");
    assert_eq!((notes.gaps, notes.rebased, notes.totals_alone), (0, 0, 0));
    let dropped = "tidegate_viewer_dropped_events_total{rung=\"no_sampled\",lane=\"sampled\"}";
    let entrances = publisher.batches - notes.entrances;
    assert!(server.metric(dropped) >= entrances as f64);
    // Once it keeps up it is given the counter that it missed, and everything again.
    while notes.counter < publisher.batches {
        notes.take(&mut slow);
    }
    wait_for_recovery(&server);
    publisher.batch();
    let before = notes.entrances;
    while notes.entrances == before {
        notes.take(&mut slow);
    }
    assert_eq!(notes.withheld, [0, 1, 0]);
}

#[test]
fn totals_go_next_and_follow_once_everything_else_is_out() {
    let server = Server::start(&bounds([6, 10, 100_000, 100_000]));
    let mut publisher = Publisher::new(&server);
    let mut slow = viewer_with_a_small_buffer(&server, "r");
    publisher.batches_until(&climbs("totals_only"), 1.0);
    (0..8).for_each(|_| publisher.batch());
    let mut notes = Notes::default();
    while notes.likes < publisher.likes {
        notes.take(&mut slow);
    }
    assert_eq!(notes.chats, publisher.chats, "the totals come when nothing else waits");
    assert!(notes.withheld.contains(&2), "{:?}", notes.withheld);
    assert_eq!(notes.important, publisher.packets);
    assert!(notes.totals_alone > 0 || notes.rebased > 0);
    assert_eq!(notes.gaps, 0);
    let dropped = "tidegate_viewer_dropped_totals_total{rung=\"totals_only\"";
    assert!(server.metric(dropped) >= 1.0);
    assert!(server.metric("tidegate_viewer_refreshes_total") >= 1.0);
}

#[test]
fn ordered_events_go_with_a_notice_that_counts_them() {
    let server = Server::start(&bounds([6, 8, 10, 100_000]));
    let mut publisher = Publisher::new(&server);
    let mut slow = viewer_with_a_small_buffer(&server, "r");
    publisher.batches_until(&climbs("important_only"), 1.0);
    // More of them than of anything that waits, and one that must not be lost.
    (0..8).for_each(|_| publisher.batch());
    let mut notes = Notes::default();
    while notes.likes < publisher.likes || notes.important < publisher.packets {
        notes.take(&mut slow);
    }
    wait_for_recovery(&server);
    publisher.batch();
    let last = format!("b{}", publisher.batches);
    while !notes.ids.contains(&last) {
        notes.take(&mut slow);
    }
    assert_eq!(notes.chats + notes.lost["chat"], publisher.chats);
    assert!(notes.withheld.contains(&3) && notes.withheld.ends_with(&[0]), "{:?}", notes.withheld);
    assert!(notes.gaps >= 1 && notes.rebased <= 1, "at most the counter's state");
    let dropped = "tidegate_viewer_dropped_events_total{rung=\"important_only\",lane=\"ordered\"}";
    assert!((server.metric(dropped) - notes.lost["chat"] as f64).abs() < 0.5);
    assert!((server.metric("tidegate_viewer_gaps_total") - notes.gaps as f64).abs() < 0.5);
}

#[test]
fn too_far_behind_it_goes_on_from_the_present_state_and_misses_nothing_important() {
    let followed = "[trace]\nsample_one_in = 1\nkept = 100000\n";
    let server = Server::start(&(bounds([4, 5, 6, 8]) + followed));
    let mut publisher = Publisher::new(&server);
    let mut slow = viewer_with_a_small_buffer(&server, "r");
    // With only important events left, that many of them must wait.
    publisher.batches_until(&climbs("rebase"), 1.0);
    (0..8).for_each(|_| publisher.batch());
    assert!(server.metric("tidegate_slow_viewers{rung=\"rebase\"}") >= 1.0);
    let held = server.metric("tidegate_backlog_frames");
    assert!(held <= 2.0, "{held} frames are held for a viewer that skips ahead");
    let mut notes = Notes::default();
    while notes.rebased == 0 {
        notes.take(&mut slow);
    }
    assert_eq!(notes.important, publisher.packets);
    assert_eq!(notes.likes, publisher.likes);
    assert_eq!(notes.counter, publisher.batches);
    assert_eq!(notes.chats + notes.lost["chat"], publisher.chats);
    wait_for_recovery(&server);
    publisher.batch();
    let last = format!("e{}", publisher.batches);
    while !notes.ids.contains(&last) {
        notes.take(&mut slow);
    }
    assert_eq!(notes.withheld.last(), Some(&0), "everything again, and told so");
    for rung in ["important_only", "totals_only", "no_sampled", "full"] {
        let series = format!("tidegate_slow_viewer_returns_total{{rung=\"{rung}\"}}");
        assert!(server.metric(&series) >= 1.0, "{rung}");
    }
    let owed = server.metric("tidegate_viewer_owed_events_total");
    assert!(owed >= 1.0);
    assert!((server.metric("tidegate_viewer_repaid_events_total") - owed).abs() < 0.5);
    assert!(server.metric("tidegate_viewer_unpaid_events_total").abs() < 0.5);
    assert!(server.metric("tidegate_viewers") >= 1.0, "it was a viewer all the time");
    // Who looks for one of these events sees that it came so.
    let packets = (1..=publisher.batches).filter(|n| n.is_multiple_of(4));
    let traced: u64 = packets.map(|n| viewers_rebased(&server, &format!("p{n}"))).sum();
    assert!((traced as f64 - owed).abs() < 0.5, "{traced} of {owed}");
}

/// Viewers that got an event when they skipped ahead, as its trace says.
fn viewers_rebased(server: &Server, id: &str) -> u64 {
    let request =
        format!("GET /trace?room=r&id={id} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    let (_, answer) = exchange(server.admin, request.as_bytes());
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let steps = answer["traces"][0]["steps"].as_array().expect("a trace").iter();
    let rebased = steps.filter(|step| step["step"] == "rebased");
    rebased.map(|step| step["viewers"].as_u64().expect("a count")).sum()
}

/// They are answered in slices, while the room goes on talking: each must have its answer
/// between the frame that it covers and the next.
#[test]
fn many_that_fell_behind_together_miss_nothing_important() {
    const VIEWERS: u32 = 60;
    let server = Server::start(&bounds([4, 5, 6, 8]).replace("200\n", "200\nslice_us = 50\n"));
    let mut publisher = Publisher::new(&server);
    let mut slow: Vec<_> = (0..VIEWERS).map(|_| viewer_with_a_small_buffer(&server, "r")).collect();
    publisher.batches_until(&climbs("rebase"), f64::from(VIEWERS));
    let done = AtomicU64::new(u64::MAX);
    std::thread::scope(|scope| {
        for viewer in &mut slow {
            let done = &done;
            scope.spawn(move || {
                let mut notes = Notes::default();
                while notes.important < done.load(Ordering::Relaxed) {
                    notes.take(viewer);
                }
                assert!(notes.rebased > 0);
            });
        }
        for _ in 0..40 {
            publisher.batch();
        }
        // The last is important, and nobody looks before it has come.
        while !publisher.batches.is_multiple_of(4) {
            publisher.batch();
        }
        done.store(publisher.packets, Ordering::Relaxed);
        (0..4).for_each(|_| publisher.batch());
    });
    assert!(server.metric("tidegate_viewer_rebases_total") >= f64::from(VIEWERS));
    assert_eq!(server.metric("tidegate_viewers"), f64::from(VIEWERS));
}

/// Its socket is found broken by what is written to it and by what is read from it in
/// one turn. It must have left its rooms before its row is another viewer's.
#[test]
fn one_that_breaks_off_while_much_waits_for_it_leaves_nothing_to_who_comes_next() {
    let server = Server::start(&bounds([100_000; 4]));
    let mut publisher = Publisher::new(&server);
    for _ in 0..3 {
        let slow = viewer_with_a_small_buffer(&server, "r");
        publisher.batches_until("tidegate_backlogged_viewers", 1.0);
        // The next write or read is answered with a reset.
        SockRef::from(slow.socket.get_ref()).set_linger(Some(Duration::ZERO)).expect("set");
        drop(slow);
        let until = Instant::now() + PATIENCE;
        while server.metric("tidegate_viewers") > 0.0 {
            assert!(Instant::now() < until, "somebody is still in the room");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let mut next = viewer_with_a_small_buffer(&server, "elsewhere");
    publisher.batch();
    let event = json!([{"id": "a", "kind": "chat", "payload": "for elsewhere"}]);
    let (status, _) = server.publish("elsewhere", event);
    assert_eq!(status, 200);
    let frame = next.expect("frame");
    assert_eq!(frame["room"], "elsewhere");
    assert_eq!(server.metric("tidegate_viewers"), 1.0);
}
