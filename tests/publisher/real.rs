//! The library against a real server, over both protocols, and the command that
//! uses it.

use std::process::Command;

use serde_json::Value;
use tidegate::client::{Failure, Protocol};

use super::*;

fn runtime() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}

fn real(server: &harness::Server, protocol: Protocol, token: &str) -> PublisherSettings {
    let url = format!("http://{}", server.address);
    PublisherSettings { protocol, ..PublisherSettings::new(url, token) }
}

#[test]
fn the_real_server_takes_batches_and_delivers_each_event_once() {
    let server = harness::Server::start("");
    for (protocol, name) in [(Protocol::Http, "h"), (Protocol::Grpc, "g")] {
        let mut viewer = server.viewer("mei", name);
        let token = server.token("im", "publisher", &["*"]);
        let stats = runtime().block_on(async {
            let publisher = ready(real(&server, protocol, &token)).await;
            // Nobody's: a server that is busy takes users in the order of their levels.
            let chat = (0..200).map(|id| {
                let chat = NewEvent { user: String::new(), ..event(id, "chat") };
                publisher.publish(&room(name), chat).expect("room for it")
            });
            let numbered = outcomes(chat.collect()).await;
            assert_eq!(numbered[199], Outcome::Accepted { seq: Some(200) });
            assert_eq!(accepted(&numbered), 200);
            let again = outcomes(publish_many(&publisher, name, "chat", 0..1)).await;
            assert_eq!(again, [Outcome::Accepted { seq: Some(1) }], "an id is taken once");
            let bad = NewEvent { key: Some("k".repeat(500)), ..event("long", "chat") };
            let refused = within(publisher.publish(&room(name), bad).expect("taken")).await;
            assert!(matches!(&refused, Outcome::Rejected(r) if r.code == "bad_key"), "{refused:?}");
            let bytes = Content::Bytes(Bytes::from_static(&[0xff, 0]));
            let packet = NewEvent { payload: bytes, ..event("999", "red_packet") };
            within(publisher.publish(&room(name), packet).expect("taken")).await;
            within(publisher.close()).await
        });
        assert_eq!((stats.accepted, stats.shed_locally, stats.failed), (202, 0, 0), "{stats:?}");
        assert!(stats.requests < 50, "events travel together: {stats:?}");
        assert!(stats.level.is_some(), "every answer carries the level");
        let mut events = Vec::new();
        while events.last().is_none_or(|event: &Value| event["id"] != "999") {
            let frame = viewer.expect("frame");
            events.extend(frame["events"].as_array().expect("events").clone());
        }
        let ids: Vec<_> = events.iter().map(|event| event["id"].as_str().expect("an id")).collect();
        let wanted: Vec<String> = (0..200).chain([999]).map(|id| id.to_string()).collect();
        assert_eq!(ids, wanted);
        let last = &events[200];
        assert_eq!((&last["payload"], &last["encoding"]), (&json!("/wA="), &json!("base64")));
    }
}

#[test]
fn tokens_rooms_and_sizes_are_refused_alike_by_both_protocols() {
    let server = harness::Server::start("[ingress]\nmax_events_per_request = 10");
    for (protocol, name) in [(Protocol::Http, "h"), (Protocol::Grpc, "g")] {
        runtime().block_on(async {
            let publisher = start(real(&server, protocol, "nonsense"));
            let refused = outcomes(publish_many(&publisher, name, "chat", 0..1)).await;
            let code = |o: &Outcome| match o {
                Outcome::Rejected(refusal) => refusal.code.clone(),
                other => format!("{other:?}"),
            };
            assert_eq!(code(&refused[0]), "token_malformed", "{protocol:?}");
            publisher.set_token(&server.token("im", "publisher", &[name])).expect("a token");
            let taken = outcomes(publish_many(&publisher, name, "chat", 1..101)).await;
            assert_eq!(accepted(&taken), 100, "in parts: {taken:?}");
            let elsewhere = outcomes(publish_many(&publisher, "other", "chat", 0..1)).await;
            assert_eq!(code(&elsewhere[0]), "forbidden_room", "{protocol:?}");
            balanced(&within(publisher.close()).await, 102);
        });
    }
}

/// Admits of chat what users up to level 63 say.
fn pin_half_of_chat(server: &harness::Server) {
    let operator = server.token("ops", "operator", &["*"]);
    let body = r#"{"business":3,"user":63}"#;
    let request = format!(
        "POST /admission/pin HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\
         Authorization: Bearer {operator}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (status, answer) = harness::exchange(server.admin, request.as_bytes());
    assert!((200..300).contains(&status), "{status} {answer}");
}

#[test]
fn what_is_shed_here_is_what_the_real_server_would_refuse() {
    let server = harness::Server::start("");
    pin_half_of_chat(&server);
    for (protocol, name) in [(Protocol::Http, "h"), (Protocol::Grpc, "g")] {
        let token = server.token("im", "publisher", &["*"]);
        let (ended, stats) = runtime().block_on(async {
            let publisher = ready(real(&server, protocol, &token)).await;
            let first = outcomes(publish_many(&publisher, name, "gift", 1_000..1_001)).await;
            assert_eq!(accepted(&first), 1);
            let ended = outcomes(publish_many(&publisher, name, "chat", 0..400)).await;
            (ended, within(publisher.close()).await)
        });
        let shed: Vec<usize> =
            (0..400).filter(|&id| matches!(ended[id], Outcome::ShedLocally { .. })).collect();
        assert!((100..300).contains(&shed.len()), "about half: {}", shed.len());
        // What was sent is taken, but for the probes.
        let probes = stats.caller.probes as usize;
        assert_eq!(stats.rejections() as usize, probes, "{stats:?}");
        assert_eq!(accepted(&ended), 400 - shed.len() - probes);
        let events = shed.iter().map(
            |id| json!({"id": format!("again-{id}"), "kind": "chat", "user": format!("user-{id}")}),
        );
        let (_, answer) = server.publish(name, events.collect());
        let results = answer["results"].as_array().expect("results");
        let refused = |result: &Value| result["code"] == "overloaded";
        assert!(results.len() == shed.len() && results.iter().all(refused), "{answer}");
    }
}

#[test]
fn a_server_that_leaves_takes_nobody_with_it() {
    for protocol in [Protocol::Http, Protocol::Grpc] {
        let server = harness::Server::start("");
        let token = server.token("im", "publisher", &["*"]);
        runtime().block_on(async {
            let publisher = start(real(&server, protocol, &token));
            assert_eq!(accepted(&outcomes(publish_many(&publisher, "r", "chat", 0..10)).await), 10);
            server.terminate();
            assert!(server.wait().success());
            let left = outcomes(publish_many(&publisher, "r", "chat", 10..20)).await;
            let connect = |o: &Outcome| matches!(o, Outcome::Failed(Failure::Connect(_)));
            assert!(left.iter().all(connect), "{protocol:?}: {left:?}");
            balanced(&within(publisher.close()).await, 20);
        });
    }
}

fn tidegate_publish(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let output = command.arg("publish").args(arguments).output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_says_what_became_of_each_event() {
    let server = harness::Server::start("");
    let (url, token) =
        (format!("http://{}", server.address), server.token("im", "publisher", &["r"]));
    let to = ["--url", &url, "--token", &token];
    let run = |arguments: &[&str]| tidegate_publish(&[arguments, &to[..]].concat());
    let (code, out, _) = run(&["r", "chat", "hello", "--id", "a"]);
    assert_eq!((code, out.as_str()), (Some(0), "accepted a: seq 1\n"));
    let (_, out, _) = run(&["r", "like", "null", "--id", "b", "--amount", "3"]);
    assert_eq!(out, "accepted b: no number\n");
    let long = "k".repeat(500);
    let (code, out, _) = run(&["r", "chat", "x", "--id", "c", "--key", &long]);
    assert!(code == Some(1) && out.starts_with("rejected c: bad_key: "), "{out}");
    let (code, out, _) = run(&["q", "chat", "x", "--id", "d"]);
    assert!(code == Some(1) && out.starts_with("rejected d: forbidden_room: "), "{out}");
    let (code, _, error) = tidegate_publish(&["r", "chat", "x", "--url", &url, "--token", "x"]);
    assert_eq!((code, error.as_str()), (Some(1), ""));
    let nobody = ["r", "chat", "x", "--url", "http://127.0.0.1:1", "--token", "x"];
    let (code, _, error) = tidegate_publish(&nobody);
    assert_eq!(code, Some(1));
    assert_eq!(error, "tidegate: no server answers at http://127.0.0.1:1\n");
}
