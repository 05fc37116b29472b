//! Every way to break a rule gets its clear answer, and costs nobody else
//! anything: a bystander in another room keeps receiving throughout.

mod harness;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use harness::{PATIENCE, SECRET, Server, exchange, now, sign};
use serde_json::{Value, json};
use tungstenite::Message;

fn request(server: &Server, extra: &str) -> String {
    format!(
        "GET /v1/ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{extra}\r\n",
        server.address
    )
}

const JSON: &str = "Sec-WebSocket-Protocol: tidegate.v1.json\r\n";

/// The bystander still gets what is published to its room.
fn bystander_is_served(server: &Server, viewer: &mut harness::Viewer, id: &str) {
    let (status, body) =
        server.publish("other", json!([{"id": id, "kind": "red_packet", "payload": id}]));
    assert_eq!((status, &body["results"][0]["status"]), (200, &json!("accepted")));
    loop {
        let frame = viewer.expect("frame");
        let events = frame["events"].as_array().expect("events").clone();
        if events.iter().any(|event| event["id"] == id) {
            return;
        }
    }
}

#[test]
fn silence_and_a_byte_a_second_end_at_the_handshake_timeout() {
    let server = Server::start("[websocket]\nhandshake_timeout_ms = 1500\n");
    let mut bystander = server.viewer("b", "other");
    let mut silent = TcpStream::connect(server.address).expect("connected");
    let mut slow = TcpStream::connect(server.address).expect("connected");
    let began = Instant::now();
    for byte in request(&server, JSON).as_bytes().iter().take(10) {
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    bystander_is_served(&server, &mut bystander, "during");
    for stream in [&mut silent, &mut slow] {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = stream.read_to_end(&mut rest);
        assert!(!String::from_utf8_lossy(&rest).contains("101"), "no upgrade");
    }
    assert!(began.elapsed() < PATIENCE);
    server.wait_metric("tidegate_handshakes_total{result=\"timeout\"}", 2.0);
}

#[test]
fn seventeen_kilobytes_of_headers_are_refused() {
    let server = Server::start("");
    let padding = format!("X-Padding: {}\r\n{JSON}", "x".repeat(17 * 1024));
    let (status, _) = exchange(server.address, request(&server, &padding).as_bytes());
    assert_eq!(status, 431);
}

#[test]
fn a_handshake_that_breaks_a_rule_is_answered_with_its_code() {
    let server = Server::start("");
    let cases = [
        (
            request(&server, &format!("{JSON}Origin: https://evil.example\r\n")),
            403,
            "foreign_origin",
        ),
        (request(&server, ""), 400, "no_subprotocol"),
        (request(&server, "Sec-WebSocket-Protocol: mqtt\r\n"), 400, "no_subprotocol"),
        (
            format!("GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{JSON}\r\n"),
            400,
            "bad_handshake",
        ),
    ];
    for (request, status, code) in cases {
        let request = request.replace("Connection: Upgrade", "Connection: Upgrade, close");
        let (got, body) = exchange(server.address, request.as_bytes());
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!((got, body["error"]["code"].as_str()), (status, Some(code)), "{body}");
        assert!(server.metric(&format!("tidegate_handshakes_total{{result=\"{code}\"}}")) >= 1.0);
    }
}

#[test]
fn tokens_that_prove_nothing_join_nothing() {
    let server = Server::start("[auth]\naudience = \"live\"\nissuer = \"im\"\n");
    let claims = |change: Value| {
        let mut claims = json!({"sub": "u", "rooms": ["r"], "exp": now() + 60,
                                "aud": "live", "iss": "im"});
        for (name, value) in change.as_object().expect("an object") {
            if value.is_null() {
                claims.as_object_mut().expect("an object").remove(name);
            } else {
                claims[name] = value.clone();
            }
        }
        sign(&claims)
    };
    let encode = |text: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
    };
    let body = encode(&json!({"sub": "u", "rooms": ["r"], "exp": now() + 60}).to_string());
    let unsigned = format!("{}.{body}.", encode(r#"{"alg":"none","kid":"test"}"#));
    let forged = format!("{}x", claims(json!({})));
    let bad = [
        ("no token", String::new()),
        ("alg none", unsigned),
        ("a broken signature", forged),
        ("no exp", claims(json!({"exp": null}))),
        ("expired past the leeway", claims(json!({"exp": now() - 31}))),
        ("not yet valid", claims(json!({"nbf": now() + 600}))),
        ("another audience", claims(json!({"aud": "shop"}))),
        ("another issuer", claims(json!({"iss": "mallory"}))),
        ("no subject", claims(json!({"sub": null}))),
        ("oversized", claims(json!({"sub": "u", "pad": "x".repeat(5_000)}))),
    ];
    for (name, token) in bad {
        let mut viewer = server.connect();
        viewer.expect("welcome");
        viewer.join("r", &token);
        let (message, content) = viewer.next();
        assert_eq!(message, "error", "{name}: {content}");
        let code = content["code"].as_str().expect("a code");
        assert!(code.starts_with("token"), "{name}: {code}");
        assert!(!content.to_string().contains(SECRET));
        // The connection lives on and may try again.
        viewer.join("r", &claims(json!({"exp": now() - 10})));
        viewer.expect("joined");
    }
    let mut viewer = server.connect();
    viewer.expect("welcome");
    viewer.join("another", &claims(json!({})));
    viewer.expect_error("forbidden_room");
    assert!(server.metric("tidegate_joins_total{result=\"bad_token\"}") >= 10.0);
}

#[test]
fn broken_messages_close_the_connection_with_their_code() {
    let server = Server::start("");
    let mut bystander = server.viewer("b", "other");
    let text = |text: &str| vec![Message::text(text.to_owned())];
    let cases: Vec<(&str, Vec<Message>, u16)> = vec![
        ("not JSON", text("nonsense"), 3500),
        ("unknown message", text(r#"{"shout":{}}"#), 3500),
        ("two messages in one", text(r#"{"pong":{},"leave":{"room":"r"}}"#), 3500),
        ("binary for JSON", vec![Message::binary(vec![1, 2, 3])], 1003),
        ("oversized", text(&"x".repeat(17_000)), 1009),
    ];
    for (name, messages, code) in cases {
        let mut viewer = server.connect();
        for message in messages {
            viewer.socket.send(message).expect("sent");
        }
        assert_eq!(viewer.closed(), Some(code), "{name}");
    }
    let raw: [(&str, Vec<u8>, u16); 3] = [
        ("unmasked frame", vec![0x81, 0x02, b'h', b'i'], 1002),
        ("reserved opcode", vec![0x83, 0x80, 0, 0, 0, 0], 1002),
        ("giant in fragments", giant_fragments(), 1009),
    ];
    for (name, bytes, code) in raw {
        let mut viewer = server.connect();
        // The server may close before it has read everything.
        let _ = viewer.socket.get_mut().write_all(&bytes);
        assert_eq!(viewer.closed(), Some(code), "{name}");
    }
    bystander_is_served(&server, &mut bystander, "after");
}

/// A text message of 40 fragments of 1,000 bytes, masked with zeros.
fn giant_fragments() -> Vec<u8> {
    let mut bytes = Vec::new();
    for i in 0..40 {
        bytes.extend_from_slice(&[if i == 0 { 0x01 } else { 0x00 }, 0x80 | 126]);
        bytes.extend_from_slice(&1_000u16.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&[b'a'; 1_000]);
    }
    bytes
}

#[test]
fn a_message_that_is_never_finished_ends_its_connection() {
    let server = Server::start("[websocket]\nhandshake_timeout_ms = 1000\n");
    let mut viewer = server.viewer("u", "r");
    viewer.raw(&[0x81, 0x80 | 50, 0, 0, 0, 0, b'{']);
    assert_eq!(viewer.closed(), Some(3003));
}

#[test]
fn a_flood_is_first_refused_and_then_cut_off() {
    let server = Server::start("[websocket]\nmessages_per_second = 5\nmessage_burst = 10\n");
    let mut bystander = server.viewer("b", "other");
    let mut viewer = server.viewer("u", "r");
    for i in 0..15 {
        viewer.send(&json!({"publish": {"room": "r", "id": i.to_string(), "kind": "chat",
                                        "payload": "hi"}}));
    }
    let (mut accepted, mut rejected) = (0, Vec::new());
    while accepted + rejected.len() < 15 {
        match viewer.next() {
            (name, _) if name == "accepted" => accepted += 1,
            (name, content) if name == "rejected" => rejected.push(content),
            _ => {}
        }
    }
    for answer in &rejected {
        assert_eq!(answer["code"], "rate_limited");
        assert!(answer["retry_after_ms"].as_u64().expect("a time") > 0);
    }
    assert!((5..=14).contains(&accepted), "{accepted} accepted");
    let ping = [0x89, 0x80, 0, 0, 0, 0].repeat(50);
    let _ = viewer.socket.get_mut().write_all(&ping);
    assert_eq!(viewer.closed(), Some(3501));
    bystander_is_served(&server, &mut bystander, "after");
}

#[test]
fn a_connection_joins_in_time_and_only_so_many_rooms() {
    let server =
        Server::start("[websocket]\njoin_timeout_ms = 1000\nmax_rooms_per_connection = 2\n");
    let mut idle = server.connect();
    assert_eq!(idle.closed(), Some(3002));
    let token = server.token("u", "viewer", &["*"]);
    let mut viewer = server.connect();
    viewer.expect("welcome");
    for room in ["one", "two"] {
        viewer.join(room, &token);
        viewer.expect("joined");
    }
    viewer.join("three", &token);
    viewer.expect_error("too_many_rooms");
    viewer.join("one", &token);
    viewer.expect_error("already_joined");
    viewer.send(&json!({"leave": {"room": "one"}}));
    assert_eq!(viewer.expect("left")["room"], "one");
    viewer.join("three", &token);
    assert_eq!(viewer.expect("joined")["room"], "three");
    viewer.join("two", &server.token("somebody-else", "viewer", &["*"]));
    viewer.expect_error("already_joined");
    viewer.send(&json!({"leave": {"room": "nowhere"}}));
    viewer.expect_error("not_joined");
    viewer.send(&json!({"pull": {"room": "nowhere", "from": 1, "to": 2}}));
    viewer.expect_error("not_joined");
}

#[test]
fn viewers_publish_only_where_they_are_and_what_they_may() {
    let server = Server::start("");
    let mut viewer = server.viewer("u", "r");
    let publish = |room: &str, id: &str, kind: &str| json!({"publish": {"room": room, "id": id, "kind": kind, "payload": "x"}});
    let cases = [
        (publish("elsewhere", "1", "chat"), "not_joined"),
        (publish("r", "2", "red_packet"), "forbidden_kind"),
        (publish("r", "3", "unheard-of"), "forbidden_kind"),
        (publish("r", "", "chat"), "bad_id"),
    ];
    for (message, code) in cases {
        viewer.send(&message);
        assert_eq!(viewer.expect("rejected")["code"], code);
    }
    let long = "x".repeat(5_000);
    viewer.send(&json!({"publish": {"room": "r", "id": "4", "kind": "chat", "payload": long}}));
    assert_eq!(viewer.expect("rejected")["code"], "payload_too_large");
}

#[test]
fn http_bodies_are_refused_whole_or_answered_event_by_event() {
    let server = Server::start("[ingress]\nmax_body_bytes = 20000\nmax_events_per_request = 3\n");
    let publisher = server.token("im", "publisher", &["r"]);
    let viewer = server.token("u", "viewer", &["r"]);
    let path = "/v1/rooms/r/events";
    let large = format!("{{\"events\":[{}]}}", " ".repeat(3_000_000));
    let many = json!({"events": [{"id":"1","kind":"k"},{"id":"2","kind":"k"},
                                 {"id":"3","kind":"k"},{"id":"4","kind":"k"}]})
    .to_string();
    /// Method, path, token, body; status, code.
    type Case<'a> = (&'a str, &'a str, Option<&'a str>, &'a str, u16, &'a str);
    let cases: [Case<'_>; 11] = [
        ("POST", path, None, "{}", 401, "missing_token"),
        ("POST", path, Some("nonsense"), "{}", 401, "token_malformed"),
        ("POST", path, Some(&viewer), "{}", 403, "forbidden_role"),
        ("POST", "/v1/rooms/q/events", Some(&publisher), "{}", 403, "forbidden_room"),
        ("POST", "/v1/rooms/a%20b/events", Some(&publisher), "{}", 400, "bad_room"),
        ("POST", path, Some(&publisher), "{bad", 400, "malformed_body"),
        ("POST", path, Some(&publisher), r#"{"events":[{"id":1}]}"#, 400, "malformed_body"),
        ("POST", path, Some(&publisher), &large, 413, "body_too_large"),
        ("POST", path, Some(&publisher), &many, 422, "too_many_events"),
        ("GET", "/v1/rooms/r", Some(&publisher), "", 404, "unknown_room"),
        ("DELETE", path, Some(&publisher), "", 405, "method_not_allowed"),
    ];
    for (method, path, token, body, status, code) in cases {
        let (got, answer) = server.http(method, path, token, body);
        assert_eq!((got, answer["error"]["code"].as_str()), (status, Some(code)), "{answer}");
        assert!(answer["admission"]["business"].is_number());
    }
    let events = json!({"events": [
        {"id": "ok", "kind": "chat", "payload": "hi"},
        {"id": "", "kind": "chat"},
        {"id": "b64", "kind": "chat", "payload": "!", "encoding": "base64"},
    ]});
    let (status, answer) = server.http("POST", path, Some(&publisher), &events.to_string());
    assert_eq!(status, 200);
    let codes: Vec<_> =
        (0..3).map(|i| answer["results"][i]["code"].as_str().unwrap_or("accepted")).collect();
    assert_eq!(codes, ["accepted", "bad_id", "bad_payload"]);
    let (status, answer) = server.http("GET", &format!("{path}?limit=1"), Some(&publisher), "");
    assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("bad_query")));
}

#[test]
fn a_publisher_that_outruns_the_mailbox_is_told_to_wait() {
    let server = Server::start("[ingress]\nmailbox_events = 2\nmax_events_per_request = 3\n");
    let events =
        json!([{"id":"1","kind":"chat"},{"id":"2","kind":"chat"},{"id":"3","kind":"chat"}]);
    let (status, body) = server.publish("r", events);
    assert_eq!(status, 200);
    for i in 0..3 {
        assert_eq!(body["results"][i]["code"], "busy", "{body}");
        assert!(body["results"][i]["retry_after_ms"].as_u64().expect("a time") > 0);
    }
    assert!((server.metric("tidegate_events_refused_total{reason=\"busy\"}") - 3.0).abs() < 0.1);
    let (_, body) = server.publish("r", json!([{"id":"1","kind":"chat"}]));
    assert_eq!(body["results"][0]["status"], "accepted");
}

#[test]
fn a_replayed_id_is_accepted_with_its_first_number_and_delivered_once() {
    let server = Server::start("");
    let mut viewer = server.viewer("u", "r");
    let event = json!({"id": "one", "kind": "red_packet", "payload": 1});
    let (_, first) = server.publish("r", json!([event]));
    let (_, again) = server.publish("r", json!([event, {"id": "two", "kind": "red_packet"}]));
    assert_eq!(first["results"][0]["seq"], again["results"][0]["seq"]);
    assert_eq!(again["results"][0]["status"], "accepted");
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("two") {
        for event in viewer.expect("frame")["events"].as_array().expect("events") {
            seen.push(event["id"].as_str().expect("an id").to_owned());
        }
    }
    assert_eq!(seen, ["one", "two"]);
    assert!((server.metric("tidegate_events_duplicate_total") - 1.0).abs() < 0.1);
}

#[test]
fn rooms_past_the_limit_are_refused_to_publishers_and_viewers() {
    let server = Server::start("[rooms]\nmax_rooms = 1\n");
    // One room on each of the two shards, whichever they are.
    let (mut open, mut refused) = (Vec::new(), Vec::new());
    for i in 0..12 {
        let room = format!("room-{i}");
        let (_, body) = server.publish(&room, json!([{"id": "1", "kind": "chat"}]));
        match body["results"][0]["code"].as_str() {
            None => open.push(room),
            Some(code) => {
                assert_eq!(code, "too_many_rooms");
                refused.push(room);
            }
        }
    }
    assert_eq!((open.len(), refused.len()), (2, 10));
    let mut viewer = server.connect();
    viewer.expect("welcome");
    viewer.join(&refused[0], &server.token("u", "viewer", &["*"]));
    viewer.expect_error("too_many_rooms");
    viewer.join(&open[0], &server.token("u", "viewer", &["*"]));
    viewer.expect("joined");
    let counted = server.metric("tidegate_events_refused_total{reason=\"too_many_rooms\"}");
    assert!((counted - 10.0).abs() < 0.1, "{counted}");
}

#[test]
fn silent_connections_shut_nobody_out() {
    let server = Server::start("[websocket]\nmax_handshakes = 4\nhandshake_timeout_ms = 60000\n");
    let _silent: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(server.address).expect("connected")).collect();
    // All places of both shards would be held for a minute, were it not for the
    // rule that the oldest gives way.
    let mut viewer = server.viewer("u", "other");
    bystander_is_served(&server, &mut viewer, "one");
    assert!(server.metric("tidegate_handshakes_total{result=\"gave_way\"}") >= 1.0);
    assert!(server.metric("tidegate_handshakes_in_progress") <= 8.0);
    assert!(server.metric("tidegate_handshakes_total{result=\"timeout\"}") < 1.0);
}
