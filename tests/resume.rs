//! Coming back to a room, on the real binary: what was missed is replayed,
//! and what cannot be is named.

mod harness;

use harness::{Server, Viewer};
use serde_json::{Value, json};

fn chat(id: &str) -> Value {
    json!({"id": id, "kind": "chat", "payload": id})
}

fn packet(id: &str) -> Value {
    json!({"id": id, "kind": "red_packet", "payload": id})
}

/// Publishes one after the other, so that each gets the next number.
fn publish(server: &Server, events: &[Value]) {
    let (status, body) = server.publish("r", json!(events));
    assert_eq!(status, 200, "{body}");
    let results = body["results"].as_array().expect("results");
    assert!(results.iter().all(|result| result["status"] == "accepted"), "{body}");
}

fn ids(frame: &Value) -> Vec<&str> {
    let events = frame["events"].as_array().expect("events");
    events.iter().map(|event| event["id"].as_str().expect("an id")).collect()
}

/// Joins from a position; returns `joined` and, if any, the replay.
fn back(server: &Server, from: &Value) -> (Viewer, Value) {
    let mut viewer = server.connect();
    viewer.expect("welcome");
    viewer.resume("r", &server.token("u", "viewer", &["r"]), from);
    let joined = viewer.expect("joined");
    (viewer, joined)
}

/// A room with `a` (1), packet `b` (2), `c` (3), packet `d` (4); its epoch.
fn room(server: &Server) -> Value {
    let mut viewer = server.viewer("first", "r");
    publish(server, &[chat("a"), packet("b"), chat("c"), packet("d")]);
    let mut seen = 0;
    let mut epoch = Value::Null;
    while seen < 4 {
        let frame = viewer.expect("frame");
        seen = frame["last_seq"].as_u64().expect("a number");
        epoch = frame["epoch"].clone();
    }
    epoch
}

#[test]
fn what_was_missed_follows_in_order_and_once() {
    let server = Server::start("");
    let epoch = room(&server);
    let (mut viewer, joined) = back(&server, &json!({"epoch": epoch, "seq": 2, "important": 1}));
    assert_eq!((&joined["recovered"], &joined["seq"]), (&json!(true), &json!(4)));
    assert!(joined.get("missed").is_none());
    let frame = viewer.expect("frame");
    assert_eq!((ids(&frame), &frame["first_seq"]), (vec!["c", "d"], &json!(3)));
    publish(&server, &[chat("e")]);
    let next = viewer.expect("frame");
    assert_eq!((ids(&next), &next["first_seq"]), (vec!["e"], &json!(5)));
    server.wait_metric("tidegate_resumes_total{result=\"recovered\"}", 1.0);
}

#[test]
fn who_missed_nothing_gets_nothing_again() {
    let server = Server::start("");
    let epoch = room(&server);
    let (mut viewer, joined) = back(&server, &json!({"epoch": epoch, "seq": 4, "important": 2}));
    assert_eq!(joined["recovered"], true);
    publish(&server, &[chat("e")]);
    assert_eq!(ids(&viewer.expect("frame")), ["e"]);
}

#[test]
fn another_numbering_is_a_fresh_start() {
    let server = Server::start("");
    room(&server);
    let (mut viewer, joined) = back(&server, &json!({"epoch": 1, "seq": 2, "important": 1}));
    assert_eq!((&joined["recovered"], &joined["seq"]), (&json!(false), &json!(4)));
    publish(&server, &[chat("e")]);
    assert_eq!(ids(&viewer.expect("frame")), ["e"]);
}

#[test]
fn important_events_follow_when_talk_is_forgotten() {
    let server = Server::start("[rooms]\nhistory_events = 1\n");
    let epoch = room(&server);
    let (mut viewer, joined) = back(&server, &json!({"epoch": epoch, "seq": 0, "important": 0}));
    assert_eq!(joined["recovered"], false);
    let frame = viewer.expect("frame");
    assert_eq!(ids(&frame), ["b", "d"]);
    assert_eq!((&frame["first_seq"], &frame["last_seq"]), (&json!(5), &json!(4)));
    server.wait_metric("tidegate_resumes_total{result=\"fresh\"}", 1.0);
}

#[test]
fn beyond_the_limit_the_rest_is_named_and_can_be_pulled() {
    let server = Server::start("[rooms]\nresume_events = 1\n");
    let epoch = room(&server);
    let (mut viewer, joined) = back(&server, &json!({"epoch": epoch, "seq": 0, "important": 0}));
    assert_eq!(joined["missed"], json!({"from": 1, "to": 1}));
    assert_eq!(ids(&viewer.expect("frame")), ["d"]);
    viewer.send(&json!({"pull": {"room": "r", "from": 1, "to": 1}}));
    assert_eq!(ids(&viewer.expect("frame")), ["b"]);
}
