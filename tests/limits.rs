//! Fixed limits end to end: each with its own code, on every way in.

mod harness;

use harness::{Server, now, sign};
use serde_json::{Value, json};

/// Likes with these users, as many as there are.
fn likes<'a>(users: impl IntoIterator<Item = &'a str>, batch: &str) -> Value {
    let events = users.into_iter().enumerate();
    let event = |(i, user): (usize, &str)| json!({"id": format!("{batch}-{i}"), "kind": "like", "user": user, "payload": null});
    events.map(event).collect()
}

/// How many were accepted, and the codes of the others with their advice.
fn sorted(body: &Value) -> (usize, Vec<(String, u64)>) {
    let results = body["results"].as_array().expect("results");
    let refused: Vec<_> = results
        .iter()
        .filter(|result| result["status"] == "rejected")
        .map(|result| {
            let code = result["code"].as_str().expect("a code").to_owned();
            (code, result["retry_after_ms"].as_u64().expect("worth a retry"))
        })
        .collect();
    (results.len() - refused.len(), refused)
}

fn post(server: &Server, token: &str, room: &str, events: Value) -> (usize, Vec<(String, u64)>) {
    let body = json!({ "events": events }).to_string();
    let path = format!("/v1/rooms/{room}/events");
    let (status, answer) = server.http("POST", &path, Some(token), &body);
    assert_eq!(status, 200, "{answer}");
    sorted(&answer)
}

/// All `refused` have this code, and come back within `seconds`.
fn all_are(refused: &[(String, u64)], code: &str, seconds: u64) {
    let as_told = |(got, wait): &(String, u64)| got == code && (1..=seconds * 1_000).contains(wait);
    assert!(refused.iter().all(as_told), "{refused:?}");
}

#[test]
fn one_user_is_limited_and_the_others_in_the_room_are_not() {
    let server = Server::start("[limits]\nuser_events_per_second = 1\nuser_burst = 5\n");
    let token = server.token("im", "publisher", &["*"]);
    let (accepted, refused) = post(&server, &token, "r", likes(vec!["loud"; 50], "a"));
    assert!((5..=7).contains(&accepted), "{accepted} accepted");
    all_are(&refused, "user_limited", 1);
    let names: Vec<String> = (0..50).map(|i| format!("quiet-{i}")).collect();
    let (accepted, _) = post(&server, &token, "r", likes(names.iter().map(String::as_str), "b"));
    assert_eq!(accepted, 50);
    let (accepted, _) = post(&server, &token, "r", likes(vec![""; 50], "c"));
    assert_eq!(accepted, 50, "nobody in particular has no limit of a user");
    let series = "tidegate_events_refused_total{reason=\"user_limited\"}";
    server.wait_metric(series, refused.len() as f64);
}

#[test]
fn one_room_is_limited_and_another_is_not() {
    let server = Server::start("[limits]\nroom_events_per_second = 1\nroom_burst = 5\n");
    let token = server.token("im", "publisher", &["*"]);
    let (accepted, refused) = post(&server, &token, "hot", likes(vec![""; 50], "a"));
    assert!((5..=7).contains(&accepted), "{accepted} accepted");
    all_are(&refused, "room_limited", 1);
    for room in ["small-1", "small-2", "small-3"] {
        assert_eq!(post(&server, &token, room, likes(vec![""; 5], "a")).0, 5);
    }
    let series = "tidegate_events_refused_total{reason=\"room_limited\"}";
    server.wait_metric(series, refused.len() as f64);
}

#[test]
fn an_application_is_limited_over_all_rooms_and_shards() {
    let limits = "[limits]\napplication_events_per_second = 1\napplication_burst = 20\n";
    let server = Server::start(limits);
    let token = server.token("im", "publisher", &["*"]);
    let mut accepted = 0;
    // Each on a connection of its own, so that both shards serve some.
    for i in 0..16 {
        let (taken, refused) =
            post(&server, &token, &format!("r{i}"), likes(vec![""; 5], &format!("{i}")));
        accepted += taken;
        all_are(&refused, "application_limited", 1);
    }
    assert!((20..=25).contains(&accepted), "{accepted} accepted");
    let other = server.token("gifts", "publisher", &["*"]);
    assert_eq!(post(&server, &other, "r0", likes(vec![""; 5], "x")).0, 5);
    server.wait_metric("tidegate_events_refused_total{reason=\"application_limited\"}", 55.0);
}

#[test]
fn a_client_type_is_limited_for_publishers_and_viewers_alike() {
    let server = Server::start("[limits]\nclient_events_per_second = 1\nclient_burst = 10\n");
    let web = |user: &str, role: &str| {
        let exp = now() + 3_600;
        sign(&json!({"sub": user, "role": role, "rooms": ["r"], "client": "web", "exp": exp}))
    };
    let (accepted, refused) = post(&server, &web("im", "publisher"), "r", likes(vec![""; 30], "a"));
    assert!((10..=12).contains(&accepted), "{accepted} accepted");
    all_are(&refused, "client_limited", 1);

    let mut viewer = server.connect();
    viewer.expect("welcome");
    viewer.join("r", &web("ana", "viewer"));
    viewer.expect("joined");
    let chat = |id: &str| json!({"publish": {"room": "r", "id": id, "kind": "chat", "payload": 1}});
    // The type has used up its burst; at one a second some of these are refused.
    for i in 0..10 {
        viewer.send(&chat(&format!("v{i}")));
    }
    let refused = loop {
        let (name, content) = viewer.next();
        if name == "rejected" {
            break content;
        }
    };
    assert_eq!(refused["code"], "client_limited", "{refused}");
    server.wait_metric("tidegate_viewer_events_refused_total{reason=\"client_limited\"}", 1.0);

    let mut other = server.viewer("bob", "r");
    other.send(&chat("other"));
    assert_eq!(other.expect("accepted")["id"], "other", "a viewer's token without a client");
}

#[test]
fn the_command_line_makes_tokens_with_a_client_type() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("tidegate.toml");
    let key = format!("[[auth.keys]]\nid = \"test\"\nsecret = \"{}\"\n", harness::SECRET);
    std::fs::write(&config, key).expect("a config");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["token", "--user", "ana", "--room", "r", "--client", "web", "--config"])
        .arg(&config)
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let token = String::from_utf8(output.stdout).expect("text");
    let server = Server::start("[limits]\nclient_events_per_second = 1\nclient_burst = 1\n");
    let mut viewer = server.connect();
    viewer.expect("welcome");
    viewer.join("r", token.trim());
    viewer.expect("joined");
    for id in ["1", "2"] {
        viewer.send(&json!({"publish": {"room": "r", "id": id, "kind": "chat", "payload": 1}}));
    }
    assert_eq!(viewer.expect("rejected")["code"], "client_limited");
    // Others are not of that type.
    assert_eq!(server.publish("r", likes(vec![""], "a")).1["results"][0]["status"], "accepted");
}

#[test]
fn a_million_users_are_told_apart_in_bounded_memory() {
    // 200,000 here: enough to pass the bound two hundred times. The unit test
    // counts a million.
    let server = Server::start("[limits]\nkeys = 1000\n");
    let token = server.token("im", "publisher", &["*"]);
    let flood = |batch: usize| {
        let names: Vec<String> = (0..1_000).map(|i| format!("user-{batch}-{i}")).collect();
        let users = names.iter().map(String::as_str);
        post(&server, &token, "r", likes(users, &format!("{batch}")))
    };
    for batch in 0..20 {
        flood(batch);
    }
    let before = server.metric("process_resident_memory_bytes");
    for batch in 20..200 {
        flood(batch);
    }
    let after = server.metric("process_resident_memory_bytes");
    assert!(after - before < 16e6, "{before} to {after} bytes");
}
