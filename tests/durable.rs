//! What was accepted survives the server, on the real binary: killed without
//! a warning, asked to leave, with a log that fails.

mod harness;

use std::time::{Duration, Instant};

use harness::{PATIENCE, Server, Viewer};
use serde_json::{Value, json};

fn packet(id: &str) -> Value {
    json!({"id": id, "kind": "red_packet", "payload": {"for": id}})
}

/// Publishes; returns the numbers.
fn publish(server: &Server, events: &[Value]) -> Vec<u64> {
    let (status, body) = server.publish("r", json!(events));
    assert_eq!(status, 200, "{body}");
    let results = body["results"].as_array().expect("results");
    let seq = |result: &Value| {
        assert_eq!(result["status"], "accepted", "{body}");
        result["seq"].as_u64().expect("a number")
    };
    results.iter().map(seq).collect()
}

fn ids(frame: &Value) -> Vec<&str> {
    let events = frame["events"].as_array().expect("events");
    events.iter().map(|event| event["id"].as_str().expect("an id")).collect()
}

fn back(server: &Server, from: &Value) -> (Viewer, Value) {
    let mut viewer = server.connect();
    viewer.expect("welcome");
    viewer.resume("r", &server.token("u", "viewer", &["r"]), from);
    let joined = viewer.expect("joined");
    (viewer, joined)
}

#[test]
fn what_was_accepted_survives_a_kill_and_numbers_go_on() {
    let mut server = Server::start("");
    let mut viewer = server.viewer("u", "r");
    assert_eq!(publish(&server, &[packet("a")]), [1]);
    let frame = viewer.expect("frame");
    assert_eq!((ids(&frame), &frame["important"]), (vec!["a"], &json!(1)));
    assert_eq!(publish(&server, &[packet("b"), packet("c")]), [2, 3]);
    server.kill();
    server.again();

    let from = json!({"epoch": frame["epoch"], "seq": frame["last_seq"], "important": 1});
    let (mut viewer, joined) = back(&server, &from);
    assert_eq!((&joined["epoch"], &joined["important"]), (&frame["epoch"], &json!(3)));
    // Talk may have been lost with the process.
    assert_eq!(joined["recovered"], false);
    assert_eq!(ids(&viewer.expect("frame")), ["b", "c"]);

    assert_eq!(publish(&server, &[packet("b")]), [2], "the first answer");
    let next = publish(&server, &[packet("d")]);
    assert!(next[0] > 3, "no number is given twice: {next:?}");
    let frame = viewer.expect("frame");
    assert_eq!((ids(&frame), &frame["important"]), (vec!["d"], &json!(4)));
    let reader = server.token("u", "viewer", &["r"]);
    let path = "/v1/rooms/r/events?important_after=0";
    let (status, body) = server.http("GET", path, Some(&reader), "");
    assert_eq!((status, ids(&body)), (200, vec!["a", "b", "c", "d"]), "{body}");
    assert_eq!(body["complete"], true);
}

#[test]
fn after_an_orderly_end_a_viewer_that_missed_nothing_has_recovered() {
    let mut server = Server::start("");
    let mut viewer = server.viewer("u", "r");
    publish(&server, &[packet("a"), json!({"id": "c", "kind": "chat", "payload": 1})]);
    let mut last = viewer.expect("frame");
    while last["last_seq"] != 2 {
        last = viewer.expect("frame");
    }
    server.terminate();
    server.again();
    let from = json!({"epoch": last["epoch"], "seq": 2, "important": 1});
    let (mut viewer, joined) = back(&server, &from);
    assert_eq!((&joined["recovered"], &joined["seq"]), (&json!(true), &json!(2)));
    assert_eq!(publish(&server, &[packet("b")]), [3], "no number is skipped");
    assert_eq!(ids(&viewer.expect("frame")), ["b"]);
}

#[test]
fn a_room_that_nobody_is_in_sleeps_and_goes_on_where_it_stopped() {
    let asleep = |server: &Server| {
        server.wait_metric("tidegate_rooms_asleep", 1.0);
        assert_eq!(server.metric("tidegate_rooms "), 0.0, "the room is one or the other");
    };
    let mut server = Server::start("[rooms]\nidle_ms = 100\n");
    let talk = |id: &str| json!({"id": id, "kind": "chat", "payload": 1});
    assert_eq!(publish(&server, &[packet("a"), talk("c")]), [1, 2]);
    asleep(&server);
    assert_eq!(server.metric("tidegate_events_accepted_total{lane=\"ordered\"}"), 1.0);
    assert!(server.metric("tidegate_room_bytes") > 0.0);

    // Somebody asks: it is told all that a room which had stayed awake would tell.
    let reader = server.token("u", "viewer", &["r"]);
    let path = "/v1/rooms/r/events?important_after=0";
    let (status, body) = server.http("GET", path, Some(&reader), "");
    assert_eq!((status, ids(&body), &body["complete"]), (200, vec!["a"], &json!(true)), "{body}");
    assert_eq!(publish(&server, &[packet("a")]), [1], "the first answer");
    assert_eq!(publish(&server, &[talk("d")]), [3]);
    asleep(&server);

    // An orderly end in its sleep skips no number.
    server.terminate();
    server.again();
    asleep(&server);
    let mut viewer = server.viewer("u", "r");
    assert_eq!(publish(&server, &[packet("b")]), [4]);
    let frame = viewer.expect("frame");
    assert_eq!((ids(&frame), &frame["important"]), (vec!["b"], &json!(2)));
    drop(viewer);
    asleep(&server);

    // Killed, it gives none again that may have been in use.
    server.kill();
    server.again();
    asleep(&server);
    let next = publish(&server, &[packet("e")]);
    assert!(next[0] > 4, "{next:?}");
}

#[test]
fn what_memory_has_forgotten_is_read_from_the_log() {
    let server = Server::start("[rooms]\nhistory_important = 2\n");
    let mut first = server.viewer("first", "r");
    let all: Vec<String> = (1..=9).map(|i| format!("p{i}")).collect();
    for id in &all {
        publish(&server, &[packet(id)]);
    }
    let epoch = loop {
        let frame = first.expect("frame");
        if frame["important"] == 9 {
            break frame["epoch"].clone();
        }
    };
    let (mut viewer, joined) = back(&server, &json!({"epoch": epoch, "seq": 0, "important": 3}));
    assert!(joined.get("missed").is_none(), "{joined}");
    assert_eq!(ids(&viewer.expect("frame")), all[3..]);
    viewer.send(&json!({"pull": {"room": "r", "from": 2, "to": 4}}));
    assert_eq!(ids(&viewer.expect("frame")), all[1..4]);
    let reader = server.token("u", "viewer", &["r"]);
    let path = "/v1/rooms/r/events?important_after=1&limit=3";
    let (_, body) = server.http("GET", path, Some(&reader), "");
    assert_eq!(
        (ids(&body), &body["more"]),
        (all[1..4].iter().map(String::as_str).collect(), &json!(true))
    );
    assert_eq!(body["complete"], true);
}

#[test]
fn state_survives_in_what_newcomers_are_told() {
    let mut server = Server::start("");
    let card = |id: &str| json!({"id": id, "kind": "product_card", "key": "pinned", "payload": id});
    publish(&server, &[card("x"), card("y")]);
    server.kill();
    server.again();
    let mut viewer = server.connect();
    viewer.expect("welcome");
    viewer.join("r", &server.token("u", "viewer", &["r"]));
    let joined = viewer.expect("joined");
    assert_eq!(joined["state"][0]["payload"], "y", "{joined}");
}

#[test]
fn a_second_server_on_the_same_log_says_so_and_ends() {
    let server = Server::start("");
    let log = server.folder.path().join("log");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .arg("serve")
        .env("TIDEGATE__SERVER__LISTEN", "127.0.0.1:0")
        .env("TIDEGATE__SERVER__ADMIN_LISTEN", "127.0.0.1:0")
        .env("TIDEGATE__DURABLE__DIRECTORY", &log)
        .output()
        .expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("durable.directory"), "{error}");
}

#[test]
fn a_full_disk_refuses_important_events_and_nothing_else() {
    let server = Server::start_on_small_disk("", 4);
    let mut viewer = server.viewer("u", "r");
    publish(&server, &[packet("a")]);
    assert_eq!(ids(&viewer.expect("frame")), ["a"]);
    let ballast = server.beside_log("ballast");
    fill(&ballast);

    // What the log has made sure of ahead still takes some, and giving a file up
    // frees what was left of that.
    let (mut number, mut refused) = (0, Value::Null);
    while server.metric("tidegate_log_failing") == 0.0 {
        number += 1;
        let id = format!("b{number}");
        let large = json!({"id": id, "kind": "red_packet", "payload": "x".repeat(16_000)});
        let (_, body) = server.publish("r", json!([large]));
        if body["results"][0]["status"] == "rejected" {
            refused = body["results"][0].clone();
        } else {
            assert_eq!(ids(&viewer.expect("frame")), [id]);
        }
        fill(&ballast);
    }
    assert_eq!(refused["code"], "log_unavailable", "{refused}");
    assert!(refused["retry_after_ms"].as_u64().expect("a time") > 0);
    publish(&server, &[json!({"id": "c", "kind": "chat", "payload": 1})]);
    assert_eq!(ids(&viewer.expect("frame")), ["c"], "talk goes on");
    let (status, body) = harness::exchange(
        server.admin,
        b"GET /readyz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
    );
    assert!(status == 503 && body.contains("\"log_failing\":\""), "{status} {body}");
    assert!(server.metric("tidegate_events_refused_total{reason=\"log_unavailable\"}") >= 1.0);

    std::fs::remove_file(&ballast).expect("removed");
    let until = Instant::now() + PATIENCE;
    let seq = loop {
        let (_, body) = server.publish("r", json!([packet("d")]));
        if let Some(seq) = body["results"][0]["seq"].as_u64() {
            break seq;
        }
        assert!(Instant::now() < until, "it does not recover: {body}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let frame = viewer.expect("frame");
    assert_eq!((ids(&frame), &frame["last_seq"]), (vec!["d"], &json!(seq)));
    let events = frame["events"].as_array().expect("events");
    let before = frame["important"].as_u64().expect("a number") - 1;
    assert_eq!(events[0]["important"], before + 1, "no hole between important numbers");
    let reader = server.token("u", "viewer", &["r"]);
    let path = "/v1/rooms/r/events?important_after=0";
    let (_, body) = server.http("GET", path, Some(&reader), "");
    assert_eq!(body["complete"], true, "{body}");
}

/// Writes until the disk takes no more.
fn fill(file: &std::path::Path) {
    use std::io::Write as _;
    let open = std::fs::OpenOptions::new().create(true).append(true).open(file);
    let mut open = open.expect("a file");
    for size in [65_536, 4_096, 1] {
        while open.write(&vec![0; size]).is_ok_and(|written| written > 0) {}
    }
}

#[test]
fn without_a_log_a_reader_is_given_what_memory_has() {
    let server = Server::start_with(
        "[rooms]\nhistory_important = 2\n",
        &[("TIDEGATE__DURABLE__DIRECTORY", "")],
    );
    for n in 1..=5 {
        let event = json!([{"id": n.to_string(), "kind": "red_packet", "payload": n}]);
        let (status, body) = server.publish("r", event);
        assert_eq!((status, &body["results"][0]["status"]), (200, &json!("accepted")));
    }
    let token = server.token("im", "publisher", &["*"]);
    let path = "/v1/rooms/r/events?important_after=0";
    let (status, body) = server.http("GET", path, Some(&token), "");
    assert_eq!(status, 200, "{body}");
    let ids: Vec<_> = body["events"].as_array().expect("events").iter().map(|e| &e["id"]).collect();
    assert_eq!((ids, &body["complete"]), (vec![&json!("4"), &json!("5")], &json!(false)));
}
