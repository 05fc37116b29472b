//! TLS on the listening port, on the real binary: viewers, publishers and gRPC
//! over it and beside it, certificates that change while people watch, and what
//! goes wrong.

mod harness;
#[path = "tls/kit.rs"]
mod kit;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harness::{PATIENCE, Server, exchange};
use kit::{
    ANY, Certificates, TlsSocket, connect, over, presented, sha256, shown, trusting, upgrade,
    viewer,
};
use prost::Message as _;
use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tidegate::config::Config;
use tidegate::wire::close::CloseReason;
use tidegate::wire::proto::v1;

/// A server with a certificate, and a client of it.
fn start(extra: &str) -> (Certificates, Server, Arc<ClientConfig>) {
    let certificates = Certificates::new();
    let server = Server::start(&format!("{}{extra}", certificates.section("")));
    let client = Arc::new(certificates.client(ANY));
    (certificates, server, client)
}

/// `count` chats with long texts.
fn chats(prefix: &str, count: usize) -> Value {
    let text = "x".repeat(3_900);
    let chat = |n| json!({"id": format!("{prefix}{n}"), "kind": "chat", "payload": text});
    (0..count).map(chat).collect()
}

/// Ids of the events in the frames to come, up to one.
fn ids_until<S: Read + Write>(viewer: &mut harness::Viewer<S>, last: &str) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.last().is_none_or(|id| id != last) {
        let frame = viewer.expect("frame");
        let events = frame["events"].as_array().cloned().unwrap_or_default();
        ids.extend(events.iter().map(|event| event["id"].as_str().expect("an id").to_owned()));
    }
    ids
}

fn publish_over(server: &Server, client: &Arc<ClientConfig>, room: &str, events: Value) -> Value {
    let token = server.token("im", "publisher", &["*"]);
    let body = json!({ "events": events }).to_string();
    let request = format!(
        "POST /v1/rooms/{room}/events HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\
         Content-Type: application/json\r\nAuthorization: Bearer {token}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let socket = connect(server, client).expect("a handshake");
    let (status, body) = kit::exchange(socket, request.as_bytes());
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

#[test]
fn viewers_over_tls_and_in_clear_get_the_same_on_one_port() {
    let (certificates, server, client) = start("");
    let older = Arc::new(certificates.client(&[&rustls::version::TLS12]));
    let mut clear = server.viewer("clear", "r");
    let mut tls = [viewer(&server, &client, "a", "r"), viewer(&server, &older, "b", "r")];
    // More than one record, and more than a socket takes at once.
    let answer = publish_over(&server, &client, "r", chats("a", 20));
    let results = answer["results"].as_array().expect("results");
    assert!(results.iter().all(|result| result["status"] == "accepted"), "{answer}");
    let expected = ids_until(&mut clear, "a19");
    assert_eq!(expected.len(), 20);
    for viewer in &mut tls {
        assert_eq!(ids_until(viewer, "a19"), expected);
    }
    assert_eq!(server.metric("tidegate_tls_handshakes_total{version=\"1.2\""), 1.0);
    assert!(server.metric("tidegate_tls_handshakes_total{version=\"1.3\"") >= 2.0);
    // What viewers say comes through as well.
    for viewer in &mut tls {
        viewer.send(&json!({"publish": {"room": "r", "id": "own", "kind": "chat", "payload": 1}}));
        viewer.expect("accepted");
    }
}

#[test]
fn who_comes_back_resumes_the_session_and_is_counted() {
    let (_certificates, server, client) = start("");
    for _ in 0..2 {
        let mut viewer = viewer(&server, &client, "a", "r");
        viewer.socket.close(None).expect("closing");
        viewer.closed();
    }
    assert_eq!(server.metric("tidegate_tls_handshakes_total{version=\"1.3\",session=\"new\""), 1.0);
    let resumed = "tidegate_tls_handshakes_total{version=\"1.3\",session=\"resumed\"";
    assert_eq!(server.metric(resumed), 1.0);
}

#[test]
fn a_connection_over_tls_ends_with_a_close_frame_and_is_told_so_by_tls() {
    let (_certificates, server, client) = start("");
    let mut bad = viewer(&server, &client, "a", "r");
    bad.send(&json!({"nonsense": {}}));
    assert_eq!(bad.closed(), CloseReason::BadMessage.code());
    // close_notify: a clean end, where without it rustls reports a cut.
    assert_eq!(bad.socket.get_mut().read(&mut [0; 64]).expect("a clean end"), 0);

    let mut polite = viewer(&server, &client, "b", "r");
    polite.socket.close(None).expect("closing");
    assert!(polite.closed().is_none_or(|code| code == 1005 || code == 1000));
    assert_eq!(polite.socket.get_mut().read(&mut [0; 64]).expect("a clean end"), 0);

    let mut leaving = viewer(&server, &client, "c", "r");
    server.terminate();
    leaving.expect("goaway");
    assert!(leaving.closed().is_some());
    assert!(server.wait().success());
}

/// A viewer in a room whose kernel takes little before it reads.
fn slow_viewer(server: &Server, client: &Arc<ClientConfig>) -> harness::Viewer<TlsSocket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    socket.connect(&server.address.into()).expect("connected");
    let mut slow = upgrade(over(socket.into(), client).expect("a handshake"), "tidegate.v1.json");
    slow.expect("welcome");
    slow.join("r", &server.token("slow", "viewer", &["r"]));
    slow.expect("joined");
    slow
}

/// Publishes chats and a red packet at a time, until a metric is above a bound.
/// Returns the ids.
fn publish_until(server: &Server, series: &str, above: f64) -> Vec<String> {
    let until = Instant::now() + PATIENCE * 3;
    let mut ids: Vec<String> = Vec::new();
    while server.metric(series) <= above {
        assert!(Instant::now() < until, "{series} stays at {}", server.metric(series));
        let mut events = chats(&format!("c{}-", ids.len()), 5);
        let packet = json!({"id": format!("p{}", ids.len()), "kind": "red_packet", "payload": 1});
        events.as_array_mut().expect("events").push(packet);
        let sent = events.as_array().expect("events").iter();
        ids.extend(sent.map(|event| event["id"].as_str().expect("an id").to_owned()));
        let (status, body) = server.publish("r", events);
        assert!(status == 200 && !body.to_string().contains("rejected"), "{body}");
    }
    ids
}

#[test]
fn what_a_slow_socket_did_not_take_over_tls_arrives_whole_and_in_order() {
    let (_certificates, server, client) = start("");
    let mut slow = slow_viewer(&server, &client);
    let sent = publish_until(&server, "tidegate_backlog_bytes", 60_000.0);
    assert_eq!(server.metric("tidegate_viewer_gaps_total"), 0.0, "nothing was cut");
    let mut received = ids_until(&mut slow, sent.last().expect("one"));
    assert_eq!(received.len(), sent.len());
    // Important ones may overtake what came with them.
    received.sort();
    let mut sent = sent;
    sent.sort();
    assert_eq!(received, sent);
    // It is a quick one again.
    assert_eq!(server.publish("r", chats("end", 1)).0, 200);
    assert_eq!(ids_until(&mut slow, "end0"), ["end0"]);
}

#[test]
fn a_slow_viewer_over_tls_climbs_the_ladder_and_loses_nothing_important() {
    let ladder = "[delivery]\nrecover_ms = 200\nno_sampled_frames = 4\ntotals_only_frames = 5\n\
                  important_only_frames = 6\nrebase_frames = 8\n";
    let (_certificates, server, client) = start(ladder);
    let mut slow = slow_viewer(&server, &client);
    let rebase = "tidegate_slow_viewer_climbs_total{rung=\"rebase\"}";
    let sent = publish_until(&server, rebase, 0.0);
    let important: BTreeSet<String> = sent.into_iter().filter(|id| id.starts_with('p')).collect();
    let mut seen = BTreeSet::new();
    let mut rebased = false;
    while !(rebased && seen == important) {
        let (name, content) = slow.next();
        assert!(["frame", "gap", "joined"].contains(&name.as_str()), "{name}");
        rebased |= content["rebased"] == true;
        let events = content["events"].as_array().cloned().unwrap_or_default();
        let ids = events.iter().map(|event| event["id"].as_str().expect("an id").to_owned());
        seen.extend(ids.filter(|id| id.starts_with('p')));
    }
    assert_eq!(server.metric("tidegate_closes_total{reason=\"slow\"}"), 0.0);
    let until = Instant::now() + PATIENCE;
    while server.metric("tidegate_slow_viewers") > 0.0 {
        assert!(Instant::now() < until, "it stays slow");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(server.publish("r", chats("end", 1)).0, 200);
    ids_until(&mut slow, "end0");
}

#[test]
fn grpc_and_http2_are_spoken_over_tls() {
    let (certificates, server, _client) = start("");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut config = certificates.client(ANY);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = tokio::net::TcpStream::connect(server.address).await.expect("connected");
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);

        let token = server.token("im", "publisher", &["*"]);
        let request = http::Request::post("https://localhost/tidegate.v1.Publisher/Publish")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {token}"));
        let request = request.body(()).expect("a request");
        let (answer, mut body) = sender.send_request(request, false).expect("sent");
        let event = v1::PublishEvent {
            id: "a".into(),
            kind: "chat".into(),
            body: Some(v1::PublishBody { payload: "\"hi\"".into(), ..Default::default() }),
            ..Default::default()
        };
        let message = v1::PublishRequest { request: 7, room: "r".into(), events: vec![event] };
        let message = message.encode_to_vec();
        let mut framed = vec![0];
        framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
        framed.extend_from_slice(&message);
        body.send_data(framed.into(), true).expect("sent");
        let mut answer = answer.await.expect("an answer").into_body();
        let mut received = Vec::new();
        while let Some(data) = answer.data().await {
            received.extend_from_slice(&data.expect("data"));
        }
        let answer = v1::PublishResponse::decode(&received[5..]).expect("an answer");
        assert_eq!((answer.request, answer.results.len()), (7, 1));
        // Plain HTTP/2 on the same connection.
        let request = http::Request::get("https://localhost/v1/openapi.json");
        let request = request.body(()).expect("a request");
        let (answer, _) = sender.send_request(request, true).expect("sent");
        assert_eq!(answer.await.expect("an answer").status(), http::StatusCode::OK);
    });
}

#[test]
fn who_must_use_tls_is_told_so_and_gets_nothing_else() {
    let certificates = Certificates::new();
    let server = Server::start(&certificates.section("plaintext = \"never\""));
    let client = Arc::new(certificates.client(ANY));
    let (status, body) = server.http("GET", "/v1/rooms/r", None, "");
    assert_eq!((status, body["error"]["code"].as_str()), (403, Some("tls_required")), "{body}");
    let upgrade = "GET /v1/ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Sec-WebSocket-Protocol: tidegate.v1.json\r\n\r\n";
    let (status, body) = exchange(server.address, upgrade.as_bytes());
    assert_eq!(status, 403, "{body}");
    assert_eq!(server.metric("tidegate_handshakes_total{result=\"tls_required\"}"), 2.0);
    viewer(&server, &client, "a", "r");
}

#[test]
fn beyond_loopback_there_is_no_tls_without_a_certificate() {
    let server = Server::start_open("");
    let mut stream = TcpStream::connect(server.address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"\x16\x03\x01\x00\x05hello").expect("sent");
    let mut answer = Vec::new();
    // The rest of what was sent may turn the end into a reset.
    let _ = stream.read_to_end(&mut answer);
    assert_eq!(answer, [0x15, 3, 3, 0, 2, 2, 40], "a fatal handshake_failure");
    assert_eq!(server.metric("tidegate_handshakes_total{result=\"tls_off\"}"), 1.0);
    server.viewer("clear", "r");
}

#[test]
fn on_loopback_a_development_certificate_is_made_and_its_hash_told() {
    let server = Server::start_with("", &[("TIDEGATE__SERVER__DEMO", "true")]);
    let (status, told) = server.http("GET", "/demo/certificate", None, "");
    assert_eq!(status, 200, "{told}");
    let expires = told["expires_ms"].as_u64().expect("a time") / 1_000;
    let days = (expires - harness::now()) / 86_400;
    assert!((12..14).contains(&days), "{days} days");
    assert_eq!(told["previous"], json!([]));

    // Trusted by its hash alone, as browsers do.
    let hash = STANDARD.decode(told["sha256"].as_str().expect("a hash")).expect("base64");
    let certificate = presented(server.address);
    assert_eq!(sha256(&certificate), hash);
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("an anchor");
    let client = Arc::new(trusting(roots, ANY));
    viewer(&server, &client, "a", "r");
    assert_eq!(server.http("GET", "/demo", None, "").0, 200, "in clear as well");
}

/// Waits until new connections are shown this certificate.
fn wait_shown(server: &Server, certificates: &Certificates, expected: &CertificateDer<'_>) {
    let until = Instant::now() + PATIENCE;
    loop {
        // A client of its own each time: who resumes is shown none.
        let client = Arc::new(certificates.client(ANY));
        if shown(&connect(server, &client).expect("a handshake")) == *expected {
            return;
        }
        assert!(Instant::now() < until, "another certificate is shown; {}", server.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_new_certificate_is_taken_on_change_and_on_sighup_and_nobody_is_dropped() {
    let certificates = Certificates::new();
    // By change, within 100 ms; then by the signal alone.
    for (reload_ms, hangup) in [(100, false), (86_400_000, true)] {
        let server = Server::start(&certificates.section(&format!("reload_ms = {reload_ms}")));
        let client = Arc::new(certificates.client(ANY));
        let mut viewers: Vec<_> =
            (0..50).map(|n| viewer(&server, &client, &format!("v{n}"), "r")).collect();
        let next = certificates.write(60);
        if hangup {
            server.signal(Signal::HUP);
        }
        wait_shown(&server, &certificates, &next);
        assert_eq!(server.metric("tidegate_tls_reloads_total{result=\"loaded\"}"), 1.0);
        let expires = server.metric("tidegate_tls_certificate_expires_seconds");
        let days = (expires - harness::now() as f64) / 86_400.0;
        assert!((59.9..60.1).contains(&days), "{days}");

        assert_eq!(server.publish("r", chats("a", 3)).0, 200);
        for viewer in &mut viewers {
            assert_eq!(ids_until(viewer, "a2"), ["a0", "a1", "a2"]);
        }
        viewer(&server, &Arc::new(certificates.client(ANY)), "new", "r");
    }
}

#[test]
fn a_certificate_that_is_wrong_is_not_taken_and_the_old_one_stays() {
    let certificates = Certificates::new();
    let first = certificates.write(90);
    let server = Server::start(&certificates.section("reload_ms = 100"));
    let (fresh, fresh_key, _) = certificates.issue(90);
    let (expired, expired_key, _) = certificates.issue(-3);
    let (_, other_key, _) = certificates.issue(90);
    let cases: [(&str, &str, &str); 4] = [
        ("no certificate", &fresh_key, "holds no usable certificate"),
        (&fresh, "no key", "holds no usable private key"),
        (&fresh, &other_key, "is not the key of"),
        (&expired, &expired_key, "has expired 3 days ago"),
    ];
    for (n, (certificate, key, expected)) in cases.into_iter().enumerate() {
        let failures = server.metric("tidegate_tls_reloads_total{result=\"failed\"}");
        std::fs::write(certificates.path("key.pem"), key).expect("written");
        std::fs::write(certificates.path("certificate.pem"), certificate).expect("written");
        server.signal(Signal::HUP);
        server.wait_metric("tidegate_tls_reloads_total{result=\"failed\"}", failures + 1.0);
        let until = Instant::now() + PATIENCE;
        while !server.log().contains(expected) {
            assert!(Instant::now() < until, "{n}: {expected} is not in {}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        wait_shown(&server, &certificates, &first);
    }
    assert_eq!(server.metric("tidegate_tls_reloads_total{result=\"loaded\"}"), 0.0);
    assert!(server.log().contains("the old one stays"));
    let next = certificates.write(90);
    wait_shown(&server, &certificates, &next);
}

/// The mistakes of a configuration with this `[tls]` in it.
fn mistakes(toml: &str) -> Vec<(String, String)> {
    let config = Config::from_toml(toml, std::iter::empty());
    let errors = config.err().map(|errors| errors.0).unwrap_or_default();
    errors.into_iter().map(|error| (error.path.clone(), error.to_string())).collect()
}

#[test]
fn every_mistake_in_the_configuration_is_named_with_its_field() {
    let certificates = Certificates::new();
    assert_eq!(mistakes(&certificates.section("plaintext = \"never\"")), []);
    let file = |name: &str, text: &str| {
        std::fs::write(certificates.path(name), text).expect("written");
        format!("{:?}", certificates.path(name))
    };
    let (good, key, _) = certificates.issue(90);
    let (expired, expired_key, _) = certificates.issue(-3);
    let (_, other_key, _) = certificates.issue(90);
    let good = file("good.pem", &good);
    let key = file("good.key", &key);
    let other_key = file("other.key", &other_key);
    let expired = (file("expired.pem", &expired), file("expired.key", &expired_key));
    let none = file("none.pem", "nothing");
    let pair =
        |certificate: &str, key: &str| format!("[tls]\ncertificate = {certificate}\nkey = {key}\n");
    let cases = [
        (format!("[tls]\ncertificate = {good}\n"), "tls.key", "is missing"),
        (format!("[tls]\nkey = {key}\n"), "tls.certificate", "is missing"),
        (pair("\"/nowhere.pem\"", &key), "tls.certificate", "cannot read /nowhere.pem: No such"),
        (pair(&good, "\"/nowhere.key\""), "tls.key", "cannot read /nowhere.key: No such"),
        (pair(&none, &key), "tls.certificate", "none.pem holds no usable certificate"),
        (pair(&good, &none), "tls.key", "none.pem holds no usable private key"),
        (pair(&good, &other_key), "tls.key", "other.key is not the key of"),
        (pair(&expired.0, &expired.1), "tls.certificate", "expired.pem has expired 3 days ago"),
        ("[tls]\nreload_ms = 1".to_owned(), "tls.reload_ms", "is 1; allowed: 100 to"),
        ("[tls]\nplaintext = \"maybe\"".to_owned(), "tls.plaintext", "\"maybe\""),
        ("[tls]\nciphers = 1".to_owned(), "tls.ciphers", "unknown"),
    ];
    for (toml, path, problem) in cases {
        let found = mistakes(&toml);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0 == path && found[0].1.contains(problem), "{found:?}");
    }
    // All at once; and the environment overrides these fields like any other.
    let open = "[server]\nlisten = \"0.0.0.0:7400\"\n[tls]\nreload_ms = 5\nplaintext = \"never\"\n";
    let key = "[[auth.keys]]\nid = \"test\"\nsecret = \"0123456789abcdef0123456789abcdef\"\n";
    let found = mistakes(&format!("{open}{key}"));
    let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["tls.plaintext", "tls.reload_ms"]);
    let environment = [("TIDEGATE__TLS__PLAINTEXT", "always"), ("TIDEGATE__TLS__RELOAD_MS", "100")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::from_toml(&format!("{open}{key}"), environment.into_iter());
    assert!(config.is_ok(), "{config:?}");
}

#[test]
fn operators_are_warned_of_the_end() {
    let certificates = Certificates::new();
    certificates.write(10);
    let server = Server::start(&certificates.section(""));
    let until = Instant::now() + PATIENCE;
    while !server.log().contains("the certificate expires soon") {
        assert!(Instant::now() < until, "{}", server.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn garbage_and_handshakes_that_stop_half_way_give_their_places_back() {
    let limits = "[websocket]\nmax_handshakes = 2\nhandshake_timeout_ms = 700\n";
    let (_certificates, server, client) = start(limits);
    let failed = |reason: &str| format!("tidegate_tls_failures_total{{reason=\"{reason}\"}}");

    // All places of both shards, and more.
    let silent: Vec<TcpStream> = (0..12)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).expect("connected");
            // The header of a record and a third of a ClientHello.
            stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).expect("sent");
            stream
        })
        .collect();
    // Some of them while they waited to be let in.
    server.wait_metric("tidegate_handshakes_total{result=\"timeout\"}", 12.0);
    assert_eq!(server.metric("tidegate_handshakes_in_progress"), 0.0);
    assert_eq!(server.metric("tidegate_connections_waiting"), 0.0);
    assert!(server.metric(&failed("unfinished")) >= 2.0);
    drop(silent);

    for n in 1..=20 {
        let mut stream = TcpStream::connect(server.address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(b"\x16GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, [0x15, 3, 3, 0, 2, 2, 50], "a fatal decode_error");
        server.wait_metric(&failed("malformed"), f64::from(n));
    }
    // Who does not trust the certificate says so, and is counted.
    let stranger = Arc::new(trusting(RootCertStore::empty(), ANY));
    assert!(connect(&server, &stranger).is_err());
    server.wait_metric(&failed("alert"), 1.0);
    assert_eq!(server.metric("tidegate_handshakes_total{result=\"bad_tls\"}"), 21.0);
    viewer(&server, &client, "a", "r");
}

#[test]
fn a_record_that_is_none_ends_the_viewer_and_nobody_else() {
    let (_certificates, server, client) = start("");
    let mut bad = viewer(&server, &client, "bad", "r");
    let mut good = viewer(&server, &client, "good", "r");
    let socket = &mut bad.socket.get_mut().sock;
    socket.write_all(&[0x17, 3, 3, 0, 32]).expect("sent");
    socket.write_all(&[7; 32]).expect("sent");
    server.wait_metric("tidegate_closes_total{reason=\"broken\"}", 1.0);
    let error = bad.socket.get_mut().read(&mut [0; 64]).expect_err("an alert");
    assert!(error.to_string().contains("BadRecordMac"), "{error}");
    assert_eq!(server.publish("r", chats("a", 1)).0, 200);
    assert_eq!(ids_until(&mut good, "a0"), ["a0"]);
}
