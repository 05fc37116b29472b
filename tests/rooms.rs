//! A room end to end, on the real binary: what is published arrives, late
//! joiners see the state, slow viewers hurt nobody, a drain loses nothing.

mod harness;

use std::time::Instant;

use harness::{PATIENCE, Server};
use prost::Message as _;
use serde_json::{Value, json};
use tidegate::wire::proto::v1;
use tungstenite::Message;

/// Reads frames until an event of this id is in one; returns all events.
fn events_until(viewer: &mut harness::Viewer, id: &str) -> Vec<Value> {
    let mut events = Vec::new();
    loop {
        let frame = viewer.expect("frame");
        events.extend(frame["events"].as_array().expect("events").iter().cloned());
        if events.iter().any(|event| event["id"] == id) {
            return events;
        }
    }
}

#[test]
fn what_is_published_reaches_viewers_on_every_shard_once_and_in_order() {
    let server = Server::start("");
    // Enough that both shards have some.
    let mut viewers: Vec<_> = (0..16).map(|i| server.viewer(&format!("u{i}"), "r")).collect();
    for batch in 0..5 {
        let events: Vec<Value> = (0..20)
            .map(|i| json!({"id": format!("{batch}-{i}"), "kind": "chat", "payload": {"n": i}}))
            .collect();
        let (status, body) = server.publish("r", json!(events));
        assert_eq!(status, 200, "{body}");
    }
    server.publish("r", json!([{"id": "end", "kind": "red_packet", "payload": [1, 2.50, "é"]}]));
    for viewer in &mut viewers {
        let events = events_until(viewer, "end");
        let numbers: Vec<u64> = events.iter().map(|e| e["seq"].as_u64().expect("seq")).collect();
        assert_eq!(numbers, (1..=101).collect::<Vec<_>>());
        assert_eq!(events[100]["important"], 1);
        assert_eq!(events[100]["payload"].to_string(), r#"[1,2.5,"é"]"#);
    }
}

/// They enter a few at a time, while the room talks.
#[test]
fn a_crowd_that_joins_at_once_misses_nothing_and_gets_nothing_twice() {
    let server = Server::start("[delivery]\nslice_us = 50\n");
    let token = server.token("u", "viewer", &["r"]);
    let mut viewers: Vec<_> = (0..600).map(|_| server.connect()).collect();
    for viewer in &mut viewers {
        viewer.expect("welcome");
    }
    let packet = |n: u32| json!([{"id": n.to_string(), "kind": "red_packet", "payload": n}]);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..60).for_each(|n| drop(server.publish("r", packet(n)))));
        for viewer in &mut viewers {
            viewer.join("r", &token);
        }
    });
    assert_eq!(server.publish("r", packet(60)).0, 200);
    for viewer in &mut viewers {
        let joined = viewer.expect("joined");
        let from = joined["important"].as_u64().expect("a number");
        let events = if from == 61 { Vec::new() } else { events_until(viewer, "60") };
        let numbers: Vec<u64> =
            events.iter().map(|event| event["important"].as_u64().expect("a number")).collect();
        assert_eq!(numbers, (from + 1..=61).collect::<Vec<_>>(), "{joined}");
    }
}

#[test]
fn large_rooms_merge_and_late_joiners_see_sums_and_state() {
    // Every room is large here, and flushes at most every 300 ms.
    let server = Server::start("[rooms]\nsmall_room_viewers = 0\nflush_interval_ms = 300\n");
    let mut viewer = server.viewer("u", "r");
    for i in 0..10 {
        let likes: Vec<Value> = (0..50)
            .map(|j| json!({"id": format!("{i}-{j}"), "kind": "like", "amount": 2}))
            .collect();
        server.publish("r", json!(likes));
    }
    server.publish(
        "r",
        json!([{"id": "s1", "kind": "stats", "key": "online", "payload": 1},
               {"id": "s2", "kind": "stats", "key": "online", "payload": 2},
               {"id": "card", "kind": "product_card", "key": "pinned", "payload": {"title": "x"}},
               {"id": "g1", "kind": "gift", "user": "u7", "key": "rose", "amount": 3}]),
    );
    let (mut sum, mut delta, mut frames) = (0, 0, 0);
    while sum < 1_000 {
        let frame = viewer.expect("frame");
        frames += 1;
        for total in frame["totals"].as_array().expect("totals") {
            if total["kind"] == "like" {
                sum = total["sum"].as_i64().expect("a sum");
                delta += total["delta"].as_i64().expect("a delta");
            }
        }
    }
    assert_eq!((sum, delta), (1_000, 1_000));
    assert!(frames <= 30, "500 likes came in {frames} frames");
    let mut late = server.connect();
    late.join("r", &server.token("late", "viewer", &["r"]));
    let joined = late.expect("joined");
    assert!(joined["online"].as_u64() >= Some(1), "it counts itself: {joined}");
    let state: Vec<&Value> = joined["state"].as_array().expect("state").iter().collect();
    let ids: Vec<_> = state.iter().map(|e| e["id"].as_str().expect("an id")).collect();
    assert_eq!(ids, ["card", "s2"]);
    let gift = joined["totals"].as_array().expect("totals").iter().find(|t| t["kind"] == "gift");
    assert_eq!(gift.map(|g| (&g["user"], &g["sum"])), Some((&json!("u7"), &json!(3))));
    let reader = server.token("reader", "viewer", &["r"]);
    let (status, room) = server.http("GET", "/v1/rooms/r", Some(&reader), "");
    assert_eq!((status, &room["epoch"]), (200, &joined["epoch"]));
    let path = "/v1/rooms/r/events?important_after=0";
    let (_, history) = server.http("GET", path, Some(&reader), "");
    assert_eq!((&history["events"][0]["id"], &history["complete"]), (&json!("card"), &json!(true)));
}

#[test]
fn protobuf_viewers_see_what_json_viewers_see() {
    let server = Server::start("");
    let mut viewer = server.connect_as("tidegate.v1.proto");
    let next = |viewer: &mut harness::Viewer| loop {
        if let Message::Binary(bytes) = viewer.socket.read().expect("a message") {
            let message = v1::ServerMessage::decode(bytes).expect("protobuf");
            return message.message.expect("one message");
        }
    };
    let send = |viewer: &mut harness::Viewer, message| {
        let bytes = v1::ClientMessage { message: Some(message) }.encode_to_vec();
        viewer.socket.send(Message::binary(bytes)).expect("sent");
    };
    use v1::client_message::Message as In;
    use v1::server_message::Message as Out;
    assert!(matches!(next(&mut viewer), Out::Welcome(_)));
    let token = server.token("u", "viewer", &["r"]);
    send(&mut viewer, In::Join(v1::Join { room: "r".into(), token, resume: None, acks: false }));
    assert!(matches!(next(&mut viewer), Out::Joined(joined) if joined.room == "r"));
    let said = v1::Publish {
        room: "r".into(),
        id: "raw".into(),
        kind: "chat".into(),
        payload: vec![0xff, 0x00].into(),
        key: None,
        amount: None,
    };
    send(&mut viewer, In::Publish(said));
    let mut json_viewer = server.viewer("j", "r");
    let mut accepted = false;
    loop {
        match next(&mut viewer) {
            Out::Accepted(answer) => accepted = answer.id == "raw" && answer.seq == Some(1),
            Out::Frame(frame) if !frame.events.is_empty() => {
                assert_eq!(frame.events[0].payload.as_ref(), [0xff, 0x00]);
                assert_eq!(frame.events[0].user, "u");
                break;
            }
            _ => {}
        }
    }
    assert!(accepted);
    // What is no JSON reaches JSON readers as base64.
    json_viewer.send(&json!({"publish": {"room": "r", "id": "x", "kind": "chat",
                                         "payload": "/wA=", "encoding": "base64"}}));
    let events = events_until(&mut json_viewer, "x");
    let event = events.last().expect("one");
    assert_eq!((&event["payload"], &event["encoding"]), (&json!("/wA="), &json!("base64")));
}

#[test]
fn important_events_can_be_pulled_again() {
    let server = Server::start("");
    let mut viewer = server.viewer("u", "r");
    let events: Vec<Value> =
        (0..5).map(|i| json!({"id": format!("p{i}"), "kind": "red_packet"})).collect();
    server.publish("r", json!(events));
    events_until(&mut viewer, "p4");
    viewer.send(&json!({"pull": {"room": "r", "from": 2, "to": 3}}));
    let frame = viewer.expect("frame");
    let ids: Vec<_> =
        frame["events"].as_array().expect("events").iter().map(|e| &e["id"]).collect();
    assert_eq!(ids, ["p1", "p2"]);
    assert!(frame["first_seq"].as_u64() > frame["last_seq"].as_u64(), "it covers no new numbers");
}

#[test]
fn a_viewer_that_stops_reading_gets_a_gap_and_holds_up_nobody() {
    let server = Server::start(
        "[delivery]\nno_sampled_frames = 4\ntotals_only_frames = 6\nimportant_only_frames = 8\n\
         no_sampled_bytes = 65536\ntotals_only_bytes = 65536\nimportant_only_bytes = 65536\n\
         [rooms]\nsmall_room_viewers = 1000\nframe_bytes = 32768\n",
    );
    const ORDERED_LOST: &str =
        "tidegate_viewer_dropped_events_total{rung=\"important_only\",lane=\"ordered\"}";
    let mut fast = server.viewer("fast", "r");
    let mut slow = server.viewer("slow", "r");
    let payload = "x".repeat(4_000);
    let mut published = 0u64;
    // Until the kernel's buffers and the backlog are full.
    let until = Instant::now() + PATIENCE;
    while server.metric(ORDERED_LOST) < 20.0 {
        assert!(Instant::now() < until, "the slow viewer never overflows");
        let events: Vec<Value> = (0..5)
            .map(
                |i| json!({"id": format!("{}", published + i), "kind": "chat", "payload": payload}),
            )
            .collect();
        server.publish("r", json!(events));
        published += 5;
        events_until(&mut fast, &format!("{}", published - 1));
    }
    assert!(server.metric("tidegate_backlogged_viewers") >= 1.0);
    assert!(server.metric("tidegate_backlog_bytes") <= 2.0 * 65_536.0);
    server.publish("r", json!([{"id": "packet", "kind": "red_packet"}]));
    // It reads again: a gap says what is missing, and the red packet is there.
    let mut gap = None;
    let mut seen = 0;
    let mut last = 0;
    loop {
        match slow.next() {
            (name, content) if name == "gap" => gap = Some(content),
            (name, content) if name == "frame" => {
                let events = content["events"].as_array().expect("events");
                seen += events.iter().filter(|e| e["kind"] == "chat").count() as u64;
                for seq in events.iter().filter_map(|e| e["seq"].as_u64()) {
                    assert!(seq > last, "numbers rise");
                    last = seq;
                }
                if events.iter().any(|e| e["id"] == "packet") {
                    break;
                }
            }
            (name, content) => assert!(name == "ping" || name == "joined", "{name} {content}"),
        }
    }
    let gap = gap.expect("a gap notice");
    assert_eq!(seen + gap["dropped"]["chat"].as_u64().expect("a count"), published, "{gap}");
    assert!(gap["first_seq"].as_u64() <= gap["last_seq"].as_u64());
}

#[test]
fn a_viewer_that_never_reads_again_is_closed() {
    let server = Server::start(
        "[delivery]\nno_sampled_ms = 500\ntotals_only_ms = 500\nimportant_only_ms = 500\n\
         rebase_ms = 500\ndrain_timeout_ms = 1000\n",
    );
    let _slow = server.viewer("slow", "r");
    let payload = "x".repeat(4_000);
    let until = Instant::now() + PATIENCE;
    let mut published = 0;
    while server.metric("tidegate_closes_total{reason=\"slow\"}") < 1.0 {
        assert!(Instant::now() < until, "it stays open");
        let events: Vec<Value> = (0..20)
            .map(
                |i| json!({"id": format!("{}", published + i), "kind": "chat", "payload": payload}),
            )
            .collect();
        published += 20;
        server.publish("r", json!(events));
    }
    assert!(server.metric("tidegate_viewer_overruns_total") >= 1.0);
}

#[test]
fn idle_viewers_are_pinged_and_those_who_do_not_answer_are_closed() {
    let server = Server::start("[websocket]\nping_interval_ms = 1000\npong_timeout_ms = 1000\n");
    let mut good = server.viewer("good", "r");
    let mut mute = server.viewer("mute", "r");
    for _ in 0..2 {
        good.expect("ping");
        good.send(&json!({"pong": {}}));
    }
    assert_eq!(mute.closed(), Some(3001));
    good.expect("ping");
}

/// A few are looked at in each round.
#[test]
fn hundreds_whose_time_comes_in_one_second_are_all_looked_at() {
    let settings = "[websocket]\njoin_timeout_ms = 1000\n[delivery]\nslice_us = 50\n";
    let server = Server::start(settings);
    let mut viewers: Vec<_> = (0..400).map(|_| server.connect()).collect();
    for viewer in &mut viewers {
        viewer.expect("welcome");
        assert_eq!(viewer.closed(), Some(3002));
    }
    server.wait_metric("tidegate_closes_total{reason=\"join_timeout\"}", 400.0);
}

#[test]
fn a_drain_delivers_what_was_accepted_and_says_when_to_come_back() {
    let server = Server::start("[rooms]\nsmall_room_viewers = 0\nflush_interval_ms = 5000\n");
    let mut viewers: Vec<_> = (0..8).map(|i| server.viewer(&format!("u{i}"), "r")).collect();
    let (_, body) = server.publish("r", json!([{"id": "last", "kind": "chat", "payload": "bye"}]));
    assert_eq!(body["results"][0]["status"], "accepted");
    server.terminate();
    for viewer in &mut viewers {
        events_until(viewer, "last");
        let content = loop {
            // A frame that only counts viewers may come between.
            match viewer.next() {
                (name, content) if name == "goaway" => break content,
                (name, frame) => assert!(name == "frame" && frame["events"] == json!([])),
            }
        };
        assert!(content["reconnect_after_ms"].as_u64().expect("a delay") <= 1_000);
        assert_eq!(viewer.closed(), Some(3000));
    }
    drop(viewers);
    assert!(server.wait().success());
}

#[test]
fn a_client_that_closes_is_answered_in_kind() {
    let server = Server::start("");
    let mut viewer = server.viewer("u", "r");
    let frame = tungstenite::protocol::CloseFrame { code: harness::code(1000), reason: "".into() };
    viewer.socket.close(Some(frame)).expect("sent");
    assert_eq!(viewer.closed(), Some(1000));
    drop(server.viewer("v", "r"));
    server.wait_metric("tidegate_closes_total{reason=\"broken\"}", 1.0);
    server.wait_metric("tidegate_closes_total{reason=\"peer\"}", 1.0);
}

#[test]
fn shards_with_descriptor_tables_of_their_own_serve_one_room() {
    // By the environment, since the harness has opened [server] already.
    let server = Server::start_with("", &[("TIDEGATE__SERVER__SEPARATE_DESCRIPTORS", "true")]);
    let mut viewers: Vec<_> = (0..16).map(|i| server.viewer(&format!("u{i}"), "r")).collect();
    let (_, body) = server.publish("r", json!([{"id": "one", "kind": "red_packet"}]));
    assert_eq!(body["results"][0]["status"], "accepted");
    for viewer in &mut viewers {
        events_until(viewer, "one");
    }
    server.terminate();
    for viewer in &mut viewers {
        assert_eq!(viewer.closed(), Some(3000));
    }
    drop(viewers);
    assert!(server.wait().success());
}

#[test]
fn a_burst_that_the_server_has_room_for_loses_nothing() {
    let server = Server::start("[rooms]\nsmall_room_viewers = 0\n");
    let mut viewer = server.viewer("u", "r");
    for batch in 0..4 {
        let events: Vec<Value> = (0..250)
            .map(|i| json!({"id": format!("{batch}-{i}"), "kind": "chat", "payload": "hello"}))
            .collect();
        server.publish("r", json!(events));
        let events = events_until(&mut viewer, &format!("{batch}-249"));
        assert_eq!(events.len(), 250);
    }
    let dropped = server.metric("tidegate_events_dropped_total");
    assert!(dropped.abs() < 0.1, "{dropped} dropped");
}
