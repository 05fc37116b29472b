//! Who is in a room, on the real binary: viewers are counted exactly over all
//! shards, different users too, and who comes and goes is told where wanted.

mod harness;

use harness::Server;
use serde_json::{Value, json};

fn room(server: &Server, name: &str) -> Value {
    let token = server.token("reader", "viewer", &["*"]);
    let (status, body) = server.http("GET", &format!("/v1/rooms/{name}"), Some(&token), "");
    assert_eq!(status, 200, "{body}");
    body
}

/// Asks until the room says so, since counts travel between shards.
fn wait_for(server: &Server, name: &str, field: &str, value: &Value) {
    let until = std::time::Instant::now() + harness::PATIENCE;
    while room(server, name)[field] != *value {
        assert!(std::time::Instant::now() < until, "{}", room(server, name));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn viewers_and_different_users_are_counted_over_all_shards() {
    let server = Server::start("");
    // Everybody twice: as many connections, half the users.
    let mut viewers: Vec<_> = (0..20).map(|i| server.viewer(&format!("u{}", i / 2), "r")).collect();
    wait_for(&server, "r", "online", &json!(20));
    wait_for(&server, "r", "users", &json!(10));
    assert_eq!(room(&server, "r")["users_exact"], true);
    viewers.truncate(5);
    wait_for(&server, "r", "online", &json!(5));
    assert_eq!(room(&server, "r")["users"], 10, "who has been there");
}

#[test]
fn a_move_to_another_room_takes_one_connection() {
    let server = Server::start("");
    let mut viewer = server.viewer("u", "a");
    wait_for(&server, "a", "online", &json!(1));
    viewer.send(&json!({"leave": {"room": "a"}}));
    assert_eq!(viewer.expect("left")["room"], "a");
    viewer.join("b", &server.token("u", "viewer", &["b"]));
    viewer.expect("joined");
    wait_for(&server, "b", "online", &json!(1));
    wait_for(&server, "a", "online", &json!(0));
    server.publish("b", json!([{"id": "1", "kind": "chat", "payload": "here"}]));
    loop {
        let frame = viewer.expect("frame");
        assert_eq!(frame["room"], "b");
        if frame["events"][0]["id"] == "1" {
            break;
        }
    }
}

#[test]
fn who_comes_and_goes_is_told_where_it_is_wanted() {
    let server = Server::start(
        "[rooms]\nenter_kind = \"enter\"\nleave_kind = \"leave\"\n\
         [kinds.leave]\nlane = \"sampled\"\ntier = 6\n",
    );
    let mut first = server.viewer("first", "r");
    let mut second = server.viewer("second", "r");
    let mut told = |kind: &str, user: &str| loop {
        let frame = first.expect("frame");
        let events = frame["events"].as_array().expect("events");
        if events.iter().any(|event| event["kind"] == kind && event["user"] == user) {
            break;
        }
    };
    told("enter", "second");
    second.send(&json!({"leave": {"room": "r"}}));
    told("leave", "second");
}

#[test]
fn nothing_is_told_by_default_and_a_wrong_kind_is_a_mistake() {
    let server = Server::start("");
    let mut first = server.viewer("first", "r");
    let _second = server.viewer("second", "r");
    server.publish("r", json!([{"id": "1", "kind": "chat", "payload": "x"}]));
    loop {
        let frame = first.expect("frame");
        let events = frame["events"].as_array().expect("events");
        assert!(events.iter().all(|event| event["kind"] == "chat"), "{frame}");
        if !events.is_empty() {
            break;
        }
    }
    for (kind, why) in [("nothing-known", "a kind in [kinds]"), ("coupon", "than important")] {
        let config = server.folder.path().join("wrong.toml");
        std::fs::write(&config, format!("[rooms]\nenter_kind = \"{kind}\"\n")).expect("a config");
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .arg("check-config")
            .arg(&config)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success() && said.contains(why), "{said}");
    }
}
