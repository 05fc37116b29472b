//! Acknowledgements on the real binary: who is silent is sent important events
//! again and then told to pull, and what has arrived is reported.

mod harness;

use harness::{Server, Viewer};
use serde_json::{Value, json};
use tidegate::engine::digest::Digest;
use tidegate::engine::ids::ImportantNo;

const ALLOWANCE: &str = "[websocket]\nmessages_per_second = 1\nmessage_burst = 3\n";

/// Chases twice as fast as by default, so that the test takes seconds.
const FAST: &str = "[rooms]\ncarry_after_ms = 300\ncarries = 2\n";

fn viewer(server: &Server, user: &str) -> Viewer {
    let mut viewer = server.connect();
    let welcome = viewer.expect("welcome");
    assert!(welcome["ack_slot"].as_u64().expect("a slot") < 65_536);
    let token = server.token(user, "viewer", &["r"]);
    viewer.send(&json!({"join": {"room": "r", "token": token, "acks": true}}));
    viewer.expect("joined");
    viewer
}

fn ack(viewer: &mut Viewer, important: &Value) {
    viewer.send(&json!({"ack": {"room": "r", "important": important}}));
}

fn publish(server: &Server, id: &str) {
    let (_, body) = server.publish("r", json!([{"id": id, "kind": "red_packet", "payload": 1}]));
    assert_eq!(body["results"][0]["status"], "accepted", "{body}");
}

/// The next frame with this event in it.
fn frame_with(viewer: &mut Viewer, id: &str) -> Value {
    loop {
        let frame = viewer.expect("frame");
        let events = frame["events"].as_array().expect("events");
        if events.iter().any(|event| event["id"] == id) {
            return frame;
        }
    }
}

/// The first event of the next frame that has any: some tell only the number of
/// viewers.
fn next_event(viewer: &mut Viewer) -> Value {
    loop {
        let frame = viewer.expect("frame");
        if frame["events"][0].is_object() {
            return frame["events"][0]["id"].clone();
        }
    }
}

#[test]
fn who_is_silent_is_sent_it_again_and_told_to_pull() {
    let server = Server::start(FAST);
    let mut silent = viewer(&server, "silent");
    let mut prompt = viewer(&server, "prompt");
    publish(&server, "p");
    let frame = frame_with(&mut prompt, "p");
    assert_eq!(frame["ack"], json!({"one_in": 1, "within_ms": 0}));
    prompt.send(&json!({"ack": {"room": "r", "important": 1}}));
    frame_with(&mut silent, "p");
    for _ in 0..2 {
        let again = frame_with(&mut silent, "p");
        assert_eq!((&again["first_seq"], &again["last_seq"]), (&json!(2), &json!(1)));
    }
    let missed = silent.expect("missed");
    assert_eq!((&missed["from"], &missed["to"]), (&json!(1), &json!(1)));
    silent.send(&json!({"pull": {"room": "r", "from": 1, "to": 1}}));
    frame_with(&mut silent, "p");
    silent.send(&json!({"ack": {"room": "r", "important": 1}}));
    server.wait_metric("tidegate_important_confirmed_total", 2.0);
    assert_eq!(server.metric("tidegate_carried_along_total"), 2.0);
    assert_eq!(server.metric("tidegate_important_missed_total"), 1.0);
    // Nothing of this went to the one that answered.
    publish(&server, "q");
    assert_eq!(prompt.expect("frame")["events"][0]["id"], "q");
}

#[test]
fn pulls_share_their_bytes_and_keep_to_a_rate() {
    let server = Server::start("[rooms]\npulls_per_second = 4\n");
    let mut viewers: Vec<_> = (0..4).map(|i| viewer(&server, &format!("u{i}"))).collect();
    publish(&server, "p");
    let pull = json!({"pull": {"room": "r", "from": 1, "to": 1}});
    for viewer in &mut viewers {
        frame_with(viewer, "p");
        viewer.send(&pull);
        frame_with(viewer, "p");
    }
    // The first made the bytes; how many of the others came within the moment
    // for which they are kept is up to the machine.
    let answered = |result| server.metric(&format!("tidegate_pulls_total{{result=\"{result}\"}}"));
    assert_eq!(answered("memory") + answered("shared"), 4.0);
    let limited = &mut viewers[0];
    let error = loop {
        limited.send(&pull);
        match limited.next() {
            (name, error) if name == "error" => break error,
            (name, _) => assert_eq!(name, "frame"),
        }
    };
    assert_eq!((&error["code"], &error["temporary"]), (&json!("pull_limited"), &json!(true)));
    assert!(error["retry_after_ms"].as_u64().expect("a time") <= 2_500);
}

#[test]
fn a_pull_up_to_the_last_number_there_is_harms_nobody() {
    let server = Server::start("");
    let mut viewer = viewer(&server, "u");
    publish(&server, "p");
    frame_with(&mut viewer, "p");
    viewer.send(&json!({"pull": {"room": "r", "from": 1, "to": u64::MAX}}));
    frame_with(&mut viewer, "p");
}

#[test]
fn arrival_is_reported_by_kind_and_horizon() {
    let server = Server::start("");
    let mut viewers: Vec<_> = (0..4).map(|i| viewer(&server, &format!("u{i}"))).collect();
    publish(&server, "p");
    for (i, viewer) in viewers.iter_mut().enumerate() {
        frame_with(viewer, "p");
        if i > 0 {
            viewer.send(&json!({"ack": {"room": "r", "important": 1}}));
        }
    }
    let of =
        |name: &str| format!("tidegate_arrival_{name}_total{{kind=\"red_packet\",within=\"3\"}}");
    server.wait_metric(&of("due"), 4.0);
    assert_eq!(server.metric("tidegate_confirmation_age_seconds_count"), 3.0);
    assert_eq!(server.metric(&of("confirmed")), 3.0);
    assert_eq!(server.metric(&of("deviation")), 0.0, "everybody was asked");
}

#[test]
fn a_digest_is_compared_and_a_mismatch_starts_a_pull() {
    let server = Server::start("[rooms]\nhistory_important = 1\n");
    let mut viewer = viewer(&server, "u");
    for id in ["a", "b", "c"] {
        publish(&server, id);
        frame_with(&mut viewer, id);
    }
    let digest = |ids: &[(u64, &str)]| {
        let mut digest = Digest::default();
        ids.iter().for_each(|(no, id)| digest.add(ImportantNo(*no), id));
        digest
    };
    let mut say = |from: u64, to: u64, Digest { count, xor }: Digest| {
        let said = json!({"room": "r", "from": from, "to": to, "count": count, "xor": xor});
        viewer.send(&json!({"digest": said}));
    };
    say(1, 3, digest(&[(1, "a"), (2, "b"), (3, "c")]));
    server.wait_metric("tidegate_digests_total{result=\"match\"}", 1.0);
    say(1, 9, digest(&[(1, "a")]));
    server.wait_metric("tidegate_digests_total{result=\"unknown\"}", 1.0);
    say(2, 3, digest(&[(2, "b"), (3, "x")]));
    server.wait_metric("tidegate_digests_total{result=\"mismatch\"}", 1.0);
    // Ranges that make no sense are no digests.
    say(0, 3, digest(&[]));
    say(3, 2, digest(&[]));
    say(1, u64::MAX, digest(&[]));
    let missed = viewer.expect("missed");
    assert_eq!((&missed["from"], &missed["to"]), (&json!(2), &json!(3)));
}

#[test]
fn clients_that_know_nothing_of_it_are_left_alone() {
    let server = Server::start(FAST);
    let mut plain = server.viewer("plain", "r");
    let mut prompt = viewer(&server, "prompt");
    publish(&server, "p");
    frame_with(&mut plain, "p");
    frame_with(&mut prompt, "p");
    // By the time that a silent viewer would have been told twice.
    server.wait_metric("tidegate_important_missed_total", 1.0);
    publish(&server, "q");
    assert_eq!(next_event(&mut plain), "q");
    // An acknowledgement for another room, or of what never was, is no mistake.
    plain.send(&json!({"ack": {"room": "elsewhere", "important": 7}}));
    plain.send(&json!({"ack": {"room": "r", "important": 1_000_000}}));
    publish(&server, "s");
    assert_eq!(next_event(&mut plain), "s");
}

#[test]
fn acknowledgements_that_were_asked_for_take_nothing_off_the_allowance() {
    let server = Server::start(ALLOWANCE);
    let mut viewer = viewer(&server, "u");
    for i in 1..=30 {
        let event = json!([{"id": format!("p{i}"), "kind": "red_packet", "payload": i}]);
        assert_eq!(server.publish("r", event).0, 200);
        // One that tells the number of viewers may come before it.
        let frame = frame_with(&mut viewer, &format!("p{i}"));
        assert_eq!((&frame["important"], &frame["ack"]["one_in"]), (&json!(i), &json!(1)));
        ack(&mut viewer, &frame["important"]);
    }
    server.wait_metric("tidegate_important_confirmed_total", 30.0);
}

#[test]
fn acknowledgements_that_say_nothing_new_do() {
    let server = Server::start(ALLOWANCE);
    let mut viewer = viewer(&server, "u");
    for _ in 0..20 {
        ack(&mut viewer, &json!(0));
    }
    assert_eq!(viewer.closed(), Some(3501));
}
