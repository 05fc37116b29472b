//! Followed events that viewers get again, by each of the ways there are.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Server, Viewer};
use crate::{ask, has, names, rule, steps, sum, trace};

/// Chases three times as fast as by default, so that a test takes seconds.
const FAST: &str = "carry_after_ms = 300\ncarries = 3\n";

fn publish(server: &Server, ids: &[&str]) {
    let event = |id: &&str| json!({"id": id, "kind": "red_packet", "payload": 1});
    let (_, body) = server.publish("r", ids.iter().map(event).collect());
    let results = body["results"].as_array().expect("results");
    assert!(results.iter().all(|result| result["status"] == "accepted"), "{body}");
}

/// One who says that it acknowledges.
fn promising(server: &Server) -> Viewer {
    let mut viewer = server.connect();
    viewer.expect("welcome");
    let token = server.token("u", "viewer", &["r"]);
    viewer.send(&json!({"join": {"room": "r", "token": token, "acks": true}}));
    viewer.expect("joined");
    viewer
}

fn follow(server: &Server, id: &str) {
    assert_eq!(rule(server, &json!({"id": id, "seconds": 60})), 200);
}

fn comes(viewer: &mut Viewer, id: &str) -> Value {
    loop {
        let frame = viewer.expect("frame");
        let events = frame["events"].as_array().expect("events");
        if events.iter().any(|event| event["id"] == id) {
            return frame;
        }
    }
}

/// The only step of a name with this word.
fn only<'a>(trace: &'a Value, step: &str, detail: &str, word: &str) -> &'a Value {
    let those = steps(trace).into_iter();
    let those: Vec<_> = those.filter(|s| s["step"] == step && s[detail] == word).collect();
    assert_eq!(those.len(), 1, "{step} {detail}={word} in {trace}");
    those[0]
}

#[test]
fn who_stays_silent_is_seen_to_be_sent_it_again_and_told_to_pull() {
    let server = Server::start(&format!("[rooms]\n{FAST}"));
    // Of who does not promise to acknowledge, the transport's word is taken.
    let mut plain = server.viewer("plain", "r");
    publish(&server, &["before"]);
    comes(&mut plain, "before");
    let mut silent = promising(&server);
    follow(&server, "p");
    publish(&server, &["p"]);
    let told = silent.expect("missed");
    assert_eq!((&told["from"], &told["to"]), (&json!(2), &json!(2)));
    let seen = trace(&server, "p", has("missed"));
    assert_eq!((sum(&seen, "carried", "viewers"), sum(&seen, "carried", "rounds")), (1, 3));
    assert_eq!(only(&seen, "missed", "why", "silent")["viewers"], 1);
    assert!(!names(&seen).contains(&"pulled"), "{seen}");

    // It pulls, twice within the moment for which the bytes are kept or not.
    for _ in 0..2 {
        silent.send(&json!({"pull": {"room": "r", "from": 2, "to": 2}}));
        comes(&mut silent, "p");
    }
    // A range without it leaves nothing.
    silent.send(&json!({"pull": {"room": "r", "from": 1, "to": 1}}));
    comes(&mut silent, "before");
    let token = server.token("im", "publisher", &["*"]);
    let path = "/v1/rooms/r/events?important_after=1";
    assert_eq!(server.http("GET", path, Some(&token), "").0, 200);
    // It says that it has another event in its place.
    let digest = json!({"room": "r", "from": 2, "to": 2, "count": 1, "xor": 1});
    silent.send(&json!({ "digest": digest }));
    silent.expect("missed");
    let seen = trace(&server, "p", |trace| sum(trace, "missed", "viewers") == 2);
    assert_eq!(only(&seen, "pulled", "way", "viewer")["viewers"], 2);
    assert_eq!(only(&seen, "pulled", "way", "http")["answers"], 1);
    assert_eq!(only(&seen, "missed", "why", "digest")["viewers"], 1);
    assert_eq!(ask(&server, "id=before")["traces"], json!([]), "nobody follows it");

    let output = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["trace", "p", "--url", &format!("http://{}", server.admin)])
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains(" ms  carried "));
    assert!(line.is_some_and(|line| line.ends_with("  rounds=3  viewers=1")), "{text}");
}

#[test]
fn who_comes_back_is_seen_to_get_it_from_memory_and_from_the_log() {
    // Memory holds one important event: what lies behind it is read from the log.
    let server = Server::start("[rooms]\nhistory_important = 1\nhistory_events = 1\n");
    let mut stays = server.viewer("stays", "r");
    publish(&server, &["before"]);
    let at = comes(&mut stays, "before");
    follow(&server, "p");
    publish(&server, &["p"]);
    comes(&mut stays, "p");
    let back = |from: &Value| {
        let mut viewer = server.connect();
        viewer.expect("welcome");
        viewer.resume("r", &server.token("u", "viewer", &["r"]), from);
        viewer.expect("joined");
        viewer
    };
    let from = json!({"epoch": at["epoch"], "seq": at["last_seq"], "important": 1});
    let mut viewers: Vec<Viewer> = (0..3).map(|_| back(&from)).collect();
    viewers.iter_mut().for_each(|viewer| drop(comes(viewer, "p")));
    trace(&server, "p", |trace| sum(trace, "replayed", "viewers") == 3);

    publish(&server, &["q", "last"]);
    comes(&mut stays, "last");
    viewers.push(back(&from));
    comes(&mut viewers[3], "p");
    trace(&server, "p", |trace| sum(trace, "replayed", "viewers") == 4);
    // Also what is pulled and read.
    viewers[0].send(&json!({"pull": {"room": "r", "from": 1, "to": 4}}));
    loop {
        let frame = comes(&mut viewers[0], "before");
        let events = frame["events"].as_array().expect("events");
        if events.iter().any(|event| event["id"] == "p") {
            break;
        }
    }
    let token = server.token("im", "publisher", &["*"]);
    let path = "/v1/rooms/r/events?important_after=0";
    assert_eq!(server.http("GET", path, Some(&token), "").0, 200);
    let seen = trace(&server, "p", |trace| sum(trace, "pulled", "answers") == 1);
    assert_eq!(only(&seen, "pulled", "way", "viewer")["viewers"], 1);
    // Who has it gets it no more.
    let from = json!({"epoch": at["epoch"], "seq": 2, "important": 2});
    let mut late = back(&from);
    comes(&mut late, "last");
    assert_eq!(sum(&trace(&server, "p", has("replayed")), "replayed", "viewers"), 4);
}
