//! What operators decide on their own port, and what upstreams may read.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{PATIENCE, SECRET, Server, exchange, now, sign};

fn request(
    address: std::net::SocketAddr,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: &str,
) -> (u16, Value) {
    let authorization =
        token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n{authorization}\r\n{body}",
        body.len()
    );
    let (status, text) = exchange(address, request.as_bytes());
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// One decision with an operator's token, which is followed.
pub(crate) fn decide(server: &Server, what: &str, body: &Value) {
    let token = server.token("olga", "operator", &["*"]);
    let path = format!("/admission/{what}");
    let (status, answer) = request(server.admin, "POST", &path, Some(&token), &body.to_string());
    assert_eq!((status, &answer), (200, &json!({"done": true})));
}

/// Where the shards stand.
fn shards(server: &Server) -> Vec<Value> {
    let (status, answer) = request(server.admin, "GET", "/admission", None, "");
    assert_eq!(status, 200, "{answer}");
    answer["shards"].as_array().expect("shards").clone()
}

fn one(kind: &str, id: &str) -> Value {
    json!([{"id": id, "kind": kind, "user": "u", "payload": null}])
}

#[test]
fn a_pinned_level_refuses_what_lies_behind_it_until_it_is_given_back() {
    let server = Server::start("");
    decide(&server, "pin", &json!({"business": 1, "user": 127}));
    for shard in shards(&server) {
        assert_eq!((&shard["pinned"], &shard["level"]["business"]), (&json!(true), &json!(1)));
    }
    let (_, answer) = server.publish("r", one("chat", "a"));
    let result = &answer["results"][0];
    assert_eq!((&result["status"], &result["code"]), (&json!("rejected"), &json!("overloaded")));
    assert!(result["retry_after_ms"].as_u64().is_some_and(|wait| wait > 0), "{answer}");
    let level = &answer["admission"];
    assert_eq!((&level["business"], &level["user"]), (&json!(1), &json!(127)), "{answer}");
    let (_, answer) = server.publish("r", one("gift", "b"));
    assert_eq!(answer["results"][0]["status"], "accepted", "tier 1 is admitted: {answer}");
    decide(&server, "pin", &json!({}));
    let (_, answer) = server.publish("r", one("chat", "a"));
    assert_eq!(answer["results"][0]["status"], "accepted", "{answer}");
    assert_eq!(answer["admission"]["business"], 63, "{answer}");
    assert!(shards(&server).iter().all(|shard| shard["pinned"] == false));
}

#[test]
fn a_silenced_kind_is_refused_in_its_room_alone() {
    let server = Server::start("");
    decide(&server, "silence", &json!({"room": "r", "kind": "chat", "seconds": 600}));
    let (_, answer) = server.publish("r", one("chat", "a"));
    let result = &answer["results"][0];
    assert_eq!(result["code"], "silenced", "{answer}");
    let wait = result["retry_after_ms"].as_u64().expect("until when");
    assert!((500_000..=600_000).contains(&wait), "{answer}");
    for (room, kind) in [("r", "like"), ("other", "chat")] {
        let (_, answer) = server.publish(room, one(kind, "b"));
        assert_eq!(answer["results"][0]["status"], "accepted", "{room} {kind}: {answer}");
    }
    let silenced: Vec<Value> = shards(&server)
        .iter()
        .flat_map(|shard| shard["silenced"].as_array().cloned())
        .flatten()
        .collect();
    assert!(silenced.iter().any(|s| s["room"] == "r" && s["kind"] == "chat"), "{silenced:?}");
    decide(&server, "silence", &json!({"room": "r", "kind": "chat", "seconds": 0}));
    let (_, answer) = server.publish("r", one("chat", "a"));
    assert_eq!(answer["results"][0]["status"], "accepted", "{answer}");
}

#[test]
fn a_held_join_is_sent_away_after_its_time_with_another_to_come_back() {
    let server = Server::start("[admission]\nhold_ms = 300\n");
    let mut before = server.viewer("early", "r");
    decide(&server, "joins", &json!({"hold": true}));
    let mut viewer = server.connect();
    viewer.expect("welcome");
    viewer.join("r", &server.token("late", "viewer", &["r"]));
    let asked = Instant::now();
    let (name, error) = viewer.next();
    assert_eq!((name.as_str(), &error["code"]), ("error", &json!("overloaded")), "{error}");
    assert!(asked.elapsed() >= Duration::from_millis(290), "it did not wait");
    assert_eq!((&error["temporary"], &error["room"]), (&json!(true), &json!("r")), "{error}");
    assert!(error["retry_after_ms"].as_u64().is_some_and(|wait| wait > 0), "{error}");
    // Whoever is in stays in, and is served.
    server.publish("r", one("red_packet", "p"));
    while before.expect("frame")["events"][0]["id"] != "p" {}
    decide(&server, "joins", &json!({"hold": false}));
    viewer.join("r", &server.token("late", "viewer", &["r"]));
    viewer.expect("joined");
}

#[test]
fn a_join_in_line_is_let_in_when_joins_are() {
    let server = Server::start("[admission]\nhold_ms = 60000\n");
    decide(&server, "joins", &json!({"hold": true}));
    let mut viewer = server.connect();
    viewer.expect("welcome");
    viewer.join("r", &server.token("late", "viewer", &["r"]));
    server.wait_metric("tidegate_joins_waiting", 1.0);
    assert!(shards(&server).iter().all(|shard| shard["joins_held"] == true));
    decide(&server, "joins", &json!({"hold": false}));
    viewer.expect("joined");
    assert!(server.metric("tidegate_joins_total{result=\"held\"}") >= 1.0);
}

#[test]
fn who_leaves_while_its_join_is_in_line_is_not_let_in_later() {
    let server = Server::start("[admission]\nhold_ms = 60000\n");
    decide(&server, "joins", &json!({"hold": true}));
    let mut viewer = server.connect();
    viewer.expect("welcome");
    for room in ["r", "q"] {
        viewer.join(room, &server.token("late", "viewer", &["r", "q"]));
    }
    server.wait_metric("tidegate_joins_waiting", 2.0);
    viewer.send(&json!({"leave": {"room": "r"}}));
    assert_eq!(viewer.expect("left"), json!({"room": "r"}));
    viewer.send(&json!({"leave": {"room": "r"}}));
    viewer.expect_error("not_joined");
    assert_eq!(server.metric("tidegate_joins_waiting"), 1.0);
    decide(&server, "joins", &json!({"hold": false}));
    assert_eq!(viewer.expect("joined")["room"], "q");
    server.publish("r", one("red_packet", "p"));
    server.publish("q", one("red_packet", "p"));
    // Nothing of the other room, neither `joined` nor its frame.
    assert_eq!(viewer.expect("frame")["room"], "q");
    viewer.join("r", &server.token("late", "viewer", &["r"]));
    assert_eq!(viewer.expect("joined")["room"], "r");
}

#[test]
fn deciding_takes_an_operator_and_sense() {
    let server = Server::start("");
    let publisher = server.token("im", "publisher", &["*"]);
    let operator = server.token("olga", "operator", &["*"]);
    let good = [
        ("pin", r#"{"business":3}"#),
        ("silence", r#"{"room":"r","kind":"chat","seconds":1}"#),
        ("joins", r#"{"hold":true}"#),
    ];
    for (what, body) in good {
        let path = format!("/admission/{what}");
        let (status, _) = request(server.admin, "POST", &path, None, body);
        assert_eq!(status, 401, "{what} without a token");
        let (status, answer) = request(server.admin, "POST", &path, Some(&publisher), body);
        assert_eq!((status, &answer["error"]["code"]), (403, &json!("forbidden_role")), "{answer}");
    }
    let nonsense = [
        ("pin", r#"{"business":64}"#),
        ("pin", r#"{"user":3}"#),
        ("pin", r#"{"business":3,"user":128}"#),
        ("pin", r#"{"level":3}"#),
        ("silence", r#"{"room":"r","kind":"no such kind","seconds":1}"#),
        ("silence", r#"{"room":"r","kind":"chat","seconds":86401}"#),
        ("silence", r#"{"room":"r","kind":"chat"}"#),
        ("silence", r#"{"room":"","kind":"chat","seconds":1}"#),
        ("joins", r#"{"hold":"yes"}"#),
    ];
    for (what, body) in nonsense {
        let path = format!("/admission/{what}");
        let (status, answer) = request(server.admin, "POST", &path, Some(&operator), body);
        assert_eq!(status, 422, "{what} {body}: {answer}");
    }
    // None of it took hold.
    for shard in shards(&server) {
        let untouched = (&json!(false), &json!(false), &json!([]));
        assert_eq!((&shard["pinned"], &shard["joins_held"], &shard["silenced"]), untouched);
    }
}

#[test]
fn upstreams_may_read_the_level_and_viewers_may_not() {
    let server = Server::start("");
    decide(&server, "pin", &json!({"business": 3, "user": 64}));
    let read =
        |role| server.http("GET", "/v1/admission", Some(&server.token("x", role, &["*"])), "");
    let (status, answer) = read("publisher");
    assert_eq!(status, 200, "{answer}");
    let level = &answer["admission"];
    assert_eq!((&level["business"], &level["user"]), (&json!(3), &json!(64)), "{answer}");
    assert_eq!((&answer["kinds"]["chat"], &answer["kinds"]["red_packet"]), (&json!(3), &json!(0)));
    assert_eq!(answer["unknown_kind"], 63);
    let key = answer["user_levels"]["key"].as_str().expect("a key");
    assert!(key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");
    let until = answer["user_levels"]["valid_until_ms"].as_u64().expect("a time");
    assert!((1..=3_600_000).contains(&until.saturating_sub(now() * 1_000)), "{until}");
    assert_eq!(read("operator").0, 200);
    assert_eq!(read("viewer").0, 403);
    assert_eq!(server.http("GET", "/v1/admission", None, "").0, 401);
}

/// A server whose log can be read.
struct Logged {
    child: Child,
    folder: tempfile::TempDir,
    admin: std::net::SocketAddr,
}

impl Logged {
    fn start() -> Logged {
        let port = || TcpListener::bind("127.0.0.1:0").and_then(|probe| probe.local_addr());
        let (address, admin) = (port().expect("a port"), port().expect("a port"));
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("tidegate.toml");
        let text = format!(
            "[server]\nlisten = \"{address}\"\nadmin_listen = \"{admin}\"\nshards = 1\n\
             [[auth.keys]]\nid = \"test\"\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n"
        );
        fs::write(&config, text).expect("a config");
        let log = fs::File::create(folder.path().join("log")).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["serve", "--config"])
            .arg(&config)
            .current_dir(&folder)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the server starts");
        let server = Logged { child, folder, admin };
        server.wait(|| std::net::TcpStream::connect(admin).is_ok());
        server
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).expect("a log")
    }

    fn wait(&self, mut until: impl FnMut() -> bool) {
        let limit = Instant::now() + PATIENCE;
        while !until() {
            assert!(Instant::now() < limit, "the log: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_decision_leaves_a_line_with_the_operators_name_and_no_refusal_does() {
    let server = Logged::start();
    let token =
        |role: &str| sign(&json!({"sub": "olga", "role": role, "exp": now() + 60, "rooms": ["*"]}));
    let operator = token("operator");
    let decisions = [
        ("pin", r#"{"business":3,"user":64}"#, "business=3"),
        ("silence", r#"{"room":"lounge","kind":"chat","seconds":7}"#, "lounge"),
        ("joins", r#"{"hold":true}"#, "hold=true"),
        ("trace", r#"{"id":"coupon-7","seconds":9}"#, "coupon-7"),
    ];
    let path_of = |what: &str| match what {
        "trace" => "/trace".to_owned(),
        what => format!("/admission/{what}"),
    };
    for (what, body, _) in decisions {
        let path = path_of(what);
        let (status, _) = request(server.admin, "POST", &path, Some(&token("publisher")), body);
        assert_eq!(status, 403);
    }
    assert!(!server.log().contains("tidegate::audit"), "{}", server.log());
    for (what, body, shown) in decisions {
        let path = path_of(what);
        let (status, answer) = request(server.admin, "POST", &path, Some(&operator), body);
        assert_eq!(status, 200, "{answer}");
        server.wait(|| {
            server.log().lines().any(|line| {
                line.contains("tidegate::audit")
                    && line.contains("olga")
                    && line.contains(what)
                    && line.contains(shown)
            })
        });
    }
}
