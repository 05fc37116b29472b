//! Following single events, on the real binary: by whichever way they came in,
//! over both shards, to viewers who get them again, within bounds, on the
//! operators' port and at a collector.

#[path = "trace/again.rs"]
mod again;
#[path = "trace/collector.rs"]
mod collector;
mod harness;
#[path = "tls/kit.rs"]
mod kit;
#[path = "trace/secure.rs"]
mod secure;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use collector::Collector;
use futures_util::stream;
use harness::{PATIENCE, Server, Viewer, exchange};
use serde_json::{Value, json};
use tidegate::wire::proto::v1;

fn operators(server: &Server, method: &str, path: &str, token: &str, body: &str) -> (u16, Value) {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{token}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (status, text) = exchange(server.admin, request.as_bytes());
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

fn bearer(server: &Server, role: &str) -> String {
    format!("Authorization: Bearer {}\r\n", server.token("olga", role, &["*"]))
}

/// Sets a rule; returns the answer's status.
fn rule(server: &Server, rule: &Value) -> u16 {
    operators(server, "POST", "/trace", &bearer(server, "operator"), &rule.to_string()).0
}

fn ask(server: &Server, query: &str) -> Value {
    let (status, answer) = operators(server, "GET", &format!("/trace?{query}"), "", "");
    assert_eq!((status, &answer["silent_shards"]), (200, &json!([])), "{answer}");
    answer
}

fn steps(trace: &Value) -> Vec<&Value> {
    trace["steps"].as_array().map(|steps| steps.iter().collect()).unwrap_or_default()
}

fn names(trace: &Value) -> Vec<&str> {
    steps(trace).iter().map(|step| step["step"].as_str().expect("a name")).collect()
}

/// Waits until the trace of an event is as wanted.
fn trace(server: &Server, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = ask(server, &format!("id={id}"));
        if wanted(&answer["traces"][0]) {
            return answer["traces"][0].clone();
        }
        assert!(Instant::now() < until, "the trace of {id} stays {answer}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn has(step: &'static str) -> impl Fn(&Value) -> bool {
    move |trace| names(trace).contains(&step)
}

/// Viewers of a room who acknowledge, at least one on each of the two shards.
fn viewers(server: &Server, room: &str) -> Vec<Viewer> {
    let mut shards = BTreeSet::new();
    let mut viewers = Vec::new();
    while shards.len() < 2 {
        assert!(viewers.len() < 200, "all connections come to one shard");
        let mut viewer = server.connect();
        let welcome = viewer.expect("welcome");
        let session = welcome["session"].as_str().expect("a session");
        shards.insert(session.split('-').next().expect("a shard").to_owned());
        let token = server.token("u", "viewer", &[room]);
        viewer.send(&json!({"join": {"room": room, "token": token, "acks": true}}));
        viewer.expect("joined");
        viewers.push(viewer);
    }
    viewers
}

fn sum(trace: &Value, step: &str, detail: &str) -> u64 {
    let those = steps(trace).into_iter().filter(|noted| noted["step"] == step);
    those.map(|noted| noted[detail].as_u64().unwrap_or(0)).sum()
}

#[test]
fn an_event_is_followed_from_its_socket_to_the_last_acknowledgement() {
    let server = Server::start("");
    let mut viewers = viewers(&server, "r");
    let count = viewers.len() as u64;
    assert_eq!(rule(&server, &json!({"id": "p", "seconds": 60})), 200);
    let event = |id: &str| json!([{"id": id, "kind": "red_packet", "payload": 1}]);
    assert_eq!(server.publish("r", event("unasked")).1["results"][0]["status"], "accepted");
    assert_eq!(server.publish("r", event("p")).1["results"][0]["status"], "accepted");
    for viewer in &mut viewers {
        while viewer.expect("frame")["important"] != 2 {}
        viewer.send(&json!({"ack": {"room": "r", "important": 2}}));
    }
    let trace = trace(&server, "p", |trace| sum(trace, "confirmed", "acknowledgements") == count);

    let expected = ["received", "admitted", "queued", "numbered", "logged", "flushed", "encoded"];
    assert_eq!(names(&trace)[..7], expected, "{trace}");
    let rest: BTreeMap<&str, usize> =
        names(&trace)[7..].iter().fold(BTreeMap::new(), |mut counts, name| {
            *counts.entry(*name).or_default() += 1;
            counts
        });
    assert_eq!(rest, BTreeMap::from([("written", 2), ("confirmed", 2)]), "{trace}");
    for pair in steps(&trace).windows(2) {
        assert!(pair[0]["at_us"].as_u64() <= pair[1]["at_us"].as_u64(), "{pair:?}");
    }
    for step in steps(&trace) {
        assert!(step["since_us"].as_u64() <= step["at_us"].as_u64(), "{step}");
    }
    let step = |name: &str| {
        steps(&trace).into_iter().find(|step| step["step"] == name).cloned().expect("there")
    };
    assert_eq!((&trace["way"], &trace["kind"]), (&json!("http"), &json!("red_packet")));
    assert_eq!((&step("numbered")["seq"], &step("numbered")["important"]), (&json!(2), &json!(2)));
    assert!(step("encoded")["json_bytes"].as_u64().is_some_and(|bytes| bytes > 50), "{trace}");
    assert_eq!(sum(&trace, "written", "whole"), count);
    assert_eq!(sum(&trace, "written", "backlogged"), 0);
    let home = step("numbered")["shard"].clone();
    assert!(steps(&trace)[1..7].iter().all(|step| step["shard"] == home), "{trace}");
    assert_eq!(ask(&server, "id=unasked")["traces"], json!([]));
    assert_eq!(server.metric("tidegate_traced_events_total"), 1.0);

    // As a terminal shows it.
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["trace", "p", "--room", "r", "--url"])
        .arg(format!("http://{}", server.admin))
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.starts_with("r p (red_packet) at "), "{text}");
    assert!(expected.iter().all(|step| text.contains(step)), "{text}");
    assert!(text.contains(" acknowledgements="), "{text}");
}

async fn by_grpc(server: &Server, id: &str) {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address));
    let channel = endpoint.expect("an address").connect().await.expect("connected");
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.expect("ready");
    let body = Some(v1::PublishBody { payload: Bytes::from_static(b"1"), ..Default::default() });
    let event = v1::PublishEvent { id: id.into(), kind: "chat".into(), body, ..Default::default() };
    let publish = v1::PublishRequest { request: 1, room: "r".into(), events: vec![event] };
    let mut request = tonic::Request::new(stream::iter([publish]));
    let token = format!("Bearer {}", server.token("im", "publisher", &["*"]));
    request.metadata_mut().insert("authorization", token.parse().expect("a header value"));
    let path = http::uri::PathAndQuery::from_static("/tidegate.v1.Publisher/Publish");
    let codec = tonic_prost::ProstCodec::<v1::PublishRequest, v1::PublishResponse>::default();
    let answers = grpc.streaming(request, path, codec).await.expect("a stream");
    let answer = answers.into_inner().message().await.expect("good").expect("an answer");
    assert_eq!(answer.results[0].status(), v1::PublishStatus::Accepted);
}

#[test]
fn whatever_came_in_by_whichever_way_is_followed_to_its_end() {
    let server = Server::start("");
    let mut viewer = server.viewer("u", "r");
    assert_eq!(rule(&server, &json!({"room": "r", "seconds": 60})), 200);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(by_grpc(&server, "g"));
    viewer.send(&json!({"publish": {"room": "r", "id": "v", "kind": "chat", "payload": "hi"}}));
    viewer.expect("accepted");
    for (id, way) in [("g", "grpc"), ("v", "viewer")] {
        let trace = trace(&server, id, has("written"));
        assert_eq!(trace["way"], way);
        let expected =
            ["received", "admitted", "queued", "numbered", "flushed", "encoded", "written"];
        assert_eq!(names(&trace), expected, "{trace}");
    }

    // What is in no frame, or not taken, says why.
    let publish = |id: &str, kind: &str, payload: Value| {
        server.publish("r", json!([{"id": id, "kind": kind, "payload": payload, "key": "k"}]));
    };
    publish("like", "like", json!(null));
    publish("long", "like", json!("x".repeat(5_000)));
    publish("v", "chat", json!("again"));
    let ended = |id: &str, end: &'static str, detail: &str, is: &str| {
        let trace = trace(&server, id, has(end));
        assert!(steps(&trace).iter().any(|step| step["step"] == end && step[detail] == is));
    };
    ended("like", "merged", "into", "total");
    ended("long", "refused", "why", "payload_too_large");
    let repeated = trace(&server, "v", has("repeated"));
    assert_eq!(repeated["way"], "http", "of the last arrival");
    let early = |kind: &str| json!({"publish": {"room": "r", "id": kind, "kind": kind}});
    viewer.send(&early("red_packet"));
    ended("red_packet", "refused", "why", "forbidden_kind");
    let path = "/v1/rooms/r/events";
    let token = server.token("im", "publisher", &["*"]);
    let body = r#"{"events":[{"id":"odd","kind":"chat","payload":1,"encoding":"odd"}]}"#;
    server.http("POST", path, Some(&token), body);
    ended("odd", "refused", "why", "bad_payload");

    // Ended, it follows no more.
    assert_eq!(rule(&server, &json!({"room": "r", "seconds": 0})), 200);
    publish("after", "chat", json!(1));
    assert_eq!(ask(&server, "id=after")["traces"], json!([]));
}

fn flood(server: &Server, events: usize) {
    let chat = |i: usize| json!({"id": format!("e{i}"), "kind": "chat", "payload": 1});
    let (status, _) = server.publish("r", (0..events).map(chat).collect());
    assert_eq!(status, 200);
}

#[test]
fn a_sample_follows_its_share_and_the_same_everywhere() {
    let sampled = || -> BTreeSet<String> {
        let server = Server::start("[trace]\nsample_one_in = 4\n");
        flood(&server, 400);
        let answer = ask(&server, "limit=1000");
        let traces = answer["traces"].as_array().expect("traces");
        traces.iter().map(|trace| trace["id"].as_str().expect("an id").to_owned()).collect()
    };
    let first = sampled();
    assert!((60..140).contains(&first.len()), "{}", first.len());
    assert_eq!(sampled(), first);
}

#[test]
fn bounds_hold_under_a_flood_of_ids() {
    let server = Server::start("[trace]\nkept = 10\nrules = 2\nrule_events = 50\n");
    assert_eq!(rule(&server, &json!({"room": "r", "seconds": 60})), 200);
    assert_eq!(rule(&server, &json!({"id": "x", "seconds": 60})), 200);
    assert_eq!(rule(&server, &json!({"id": "y", "seconds": 60})), 422, "one rule too many");
    assert_eq!(rule(&server, &json!({"id": "x", "seconds": 9})), 200, "in place of the first");
    flood(&server, 200);
    let answer = ask(&server, "room=r&limit=1000");
    assert_eq!(answer["traces"].as_array().map(Vec::len), Some(10));
    let rules = answer["rules"].as_array().expect("rules").iter();
    let left: BTreeSet<_> = rules.map(|rule| rule["events_left"].as_u64()).collect();
    assert_eq!(left, BTreeSet::from([Some(0), Some(50)]), "{answer}");
    let expected = [
        ("tidegate_traces ", 10.0),
        ("tidegate_traced_events_total", 50.0),
        ("tidegate_traces_forgotten_total", 40.0),
        ("tidegate_trace_unmarked_total", 150.0),
        ("tidegate_trace_rules ", 2.0),
        ("tidegate_trace_rules_refused_total", 1.0),
    ];
    for (metric, value) in expected {
        assert_eq!(server.metric(metric), value, "{metric}");
    }
}

#[test]
fn following_takes_an_operator_and_sense() {
    let server = Server::start("");
    let good = r#"{"id":"a","seconds":60}"#;
    assert_eq!(operators(&server, "POST", "/trace", "", good).0, 401);
    let (status, answer) =
        operators(&server, "POST", "/trace", &bearer(&server, "publisher"), good);
    assert_eq!((status, &answer["error"]["code"]), (403, &json!("forbidden_role")));
    for nonsense in [
        json!({"seconds": 60}),
        json!({"id": "a"}),
        json!({"id": "", "seconds": 60}),
        json!({"id": "x".repeat(200), "seconds": 60}),
        json!({"room": "a/b", "seconds": 60}),
        json!({"id": "a", "seconds": 3_601}),
        json!({"id": "a", "seconds": 60, "events": 0}),
        json!({"id": "a", "seconds": 60, "events": 1_001}),
        json!({"id": "a", "seconds": 60, "more": 1}),
    ] {
        assert_eq!(rule(&server, &nonsense), 422, "{nonsense}");
    }
    assert_eq!(operators(&server, "GET", "/trace?room=a/b", "", "").0, 400);
    assert_eq!(operators(&server, "GET", "/trace?what=a", "", "").0, 400);
    assert_eq!(ask(&server, "")["rules"], json!([]));

    // A terminal's way, with a token.
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args([
            "trace",
            "a",
            "--watch",
            "--for",
            "1m",
            "--url",
            &format!("http://{}", server.admin),
        ])
        .env("TIDEGATE_TOKEN", server.token("olga", "operator", &["*"]))
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("followed: event a until "), "{text}");
    assert_eq!(ask(&server, "")["rules"][0]["by"], "olga");
}

#[test]
fn a_collector_gets_every_step_as_a_span_below_its_event() {
    // Its first answer is 503: what it did not take is sent again.
    let collector = Collector::start(1);
    let trace_section = format!(
        "[trace]\nfollow_parents = true\notlp_endpoint = \"http://{}\"\nservice_name = \"edge-7\"\n",
        collector.address
    );
    let server = Server::start(&trace_section);
    let mut viewer = server.viewer("u", "r");
    assert_eq!(rule(&server, &json!({"id": "own", "seconds": 60})), 200);
    let (parent_trace, parent_span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let joined = |id: &str, parent: &str| {
        let body = json!({"events": [{"id": id, "kind": "red_packet", "payload": 1}]}).to_string();
        let token = server.token("im", "publisher", &["*"]);
        let request = format!(
            "POST /v1/rooms/r/events HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{parent}\
             Authorization: Bearer {token}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(exchange(server.address, request.as_bytes()).0, 200);
    };
    joined("theirs", &format!("traceparent: 00-{parent_trace}-{parent_span}-01\r\n"));
    joined("own", "");
    joined("nobodys", &format!("traceparent: 00-{parent_trace}-{parent_span}-00\r\n"));
    while viewer.expect("frame")["important"] != 3 {}
    viewer.send(&json!({"ack": {"room": "r", "important": 3}}));

    let steps = ["received", "admitted", "queued", "numbered", "logged", "flushed", "encoded"];
    let expected: BTreeSet<&str> = steps.into_iter().chain(["event", "written"]).collect();
    for id in ["theirs", "own"] {
        let spans = collector.wait(id, expected.len());
        let names: BTreeSet<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, expected, "{id}");
        let event = spans.iter().find(|span| span.name == "event").expect("there");
        let trace_id = trace(&server, id, has("written"))["trace_id"].clone();
        for span in &spans {
            assert_eq!(json!(span.trace), trace_id, "{id}: one trace");
            assert!(span.start <= span.end && span.start >= event.start, "{span:?}");
            assert_eq!(span.service, "edge-7");
            if span.name != "event" {
                assert_eq!(span.parent, event.id, "{span:?}");
            }
        }
        let ids: BTreeSet<&str> = spans.iter().map(|span| span.id.as_str()).collect();
        assert_eq!(ids.len(), spans.len(), "{id}: no span id twice");
        if id == "theirs" {
            assert_eq!((event.trace.as_str(), event.parent.as_str()), (parent_trace, parent_span));
        } else {
            assert_eq!(event.parent, "");
        }
    }
    assert!(collector.spans_of("nobodys").is_empty());
    server.wait_metric("tidegate_trace_spans_total{result=\"exported\"}", 18.0);
    assert_eq!(server.metric("tidegate_trace_spans_total{result=\"failed\"}"), 0.0);
    // Acknowledgements are counted for a while; the end of the process ends that.
    trace(&server, "own", has("confirmed"));
    server.terminate();
    assert!(server.wait().success());
    let last = collector.wait("own", expected.len() + 1);
    assert!(last.iter().any(|span| span.name == "confirmed"), "{last:?}");
}
