//! gRPC end to end, on the real binary: with a client as upstream services use
//! it, and with bare HTTP/2 where rules are to be broken.

mod harness;
#[path = "grpc/health.rs"]
mod health;
#[path = "grpc/unfinished.rs"]
mod unfinished;

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::stream::unfold;
use harness::{PATIENCE, Server, now, sign};
use http::uri::PathAndQuery;
use prost::Message as _;
use serde_json::json;
use tidegate::wire::proto::v1;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

const PUBLISH: &str = "/tidegate.v1.Publisher/Publish";

/// Requests as bytes, so that a test may send what is none.
#[derive(Clone, Copy)]
struct RawRequests;

impl Codec for RawRequests {
    type Encode = Vec<u8>;
    type Decode = v1::PublishResponse;
    type Encoder = Self;
    type Decoder = <tonic_prost::ProstCodec<(), v1::PublishResponse> as Codec>::Decoder;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self::Decoder {
        tonic_prost::ProstCodec::<(), v1::PublishResponse>::default().decoder()
    }
}

impl Encoder for RawRequests {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item);
        Ok(())
    }
}

impl Decoder for RawRequests {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(bytes.copy_to_bytes(bytes.remaining())))
    }
}

async fn channel(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).expect("an address");
    endpoint.connect().await.expect("connected")
}

/// An open stream.
struct Stream {
    requests: mpsc::Sender<Vec<u8>>,
    answers: Streaming<v1::PublishResponse>,
}

impl Stream {
    async fn open_at(
        channel: &Channel,
        path: &'static str,
        token: Option<&str>,
    ) -> Result<Stream, Status> {
        let (requests, receiver) = mpsc::channel(64);
        let stream = unfold(receiver, |mut receiver: mpsc::Receiver<Vec<u8>>| async move {
            let message = receiver.recv().await?;
            Some((message, receiver))
        });
        let mut request = Request::new(stream);
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().expect("a header value");
            request.metadata_mut().insert("authorization", value);
        }
        let mut grpc = Grpc::new(channel.clone());
        grpc.ready().await.expect("ready");
        let path = PathAndQuery::from_static(path);
        let answers = grpc.streaming(request, path, RawRequests).await?.into_inner();
        Ok(Stream { requests, answers })
    }

    async fn open(channel: &Channel, token: &str) -> Stream {
        Self::open_at(channel, PUBLISH, Some(token)).await.expect("a stream")
    }

    async fn send(&self, request: &v1::PublishRequest) {
        self.requests.send(request.encode_to_vec()).await.expect("sent");
    }

    async fn next(&mut self) -> Result<Option<v1::PublishResponse>, Status> {
        timeout(PATIENCE, self.answers.message()).await.expect("an answer in time")
    }

    async fn answer(&mut self) -> v1::PublishResponse {
        self.next().await.expect("no status").expect("not the end")
    }

    async fn ask(&mut self, request: &v1::PublishRequest) -> v1::PublishResponse {
        self.send(request).await;
        self.answer().await
    }

    /// Reads to the end, which must not be a good one.
    async fn status(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ends well"),
                Err(status) => return status,
            }
        }
    }
}

fn event(id: &str, kind: &str, payload: &str) -> v1::PublishEvent {
    let payload = Bytes::copy_from_slice(payload.as_bytes());
    let body = Some(v1::PublishBody { payload, ..Default::default() });
    v1::PublishEvent { id: id.into(), kind: kind.into(), body, ..Default::default() }
}

fn request(request: u64, room: &str, events: Vec<v1::PublishEvent>) -> v1::PublishRequest {
    v1::PublishRequest { request, room: room.into(), events }
}

fn codes(answer: &v1::PublishResponse) -> Vec<&str> {
    let code = |result: &'_ v1::PublishResult| match result.status() {
        v1::PublishStatus::Accepted => "accepted".to_owned(),
        _ => result.code.clone(),
    };
    let owned: Vec<String> = answer.results.iter().map(code).collect();
    owned.into_iter().map(|code| &*code.leak()).collect()
}

#[tokio::test]
async fn what_is_published_on_a_stream_arrives_in_order_beside_http_and_websocket() {
    let server = Server::start("");
    let mut viewer = server.viewer("ana", "r");
    let channel = channel(&server).await;
    let mut stream = Stream::open(&channel, &server.token("im", "publisher", &["r"])).await;
    for i in 1..=200 {
        stream.send(&request(i, "r", vec![event(&format!("g{i}"), "chat", "{\"n\": 1.50}")])).await;
        if i % 50 == 0 {
            let events = json!([{"id": format!("h{i}"), "kind": "chat", "payload": i}]);
            assert_eq!(server.publish("r", events).0, 200);
        }
    }
    let mut numbers = Vec::new();
    for _ in 1..=200 {
        let answer = stream.answer().await;
        assert_eq!(codes(&answer), ["accepted"], "{answer:?}");
        let admission = answer.admission.expect("the level");
        assert_eq!((admission.business, admission.user, admission.share), (63, 127, None));
        assert!(admission.ttl_ms > 0);
        numbers.push((answer.request, answer.results[0].seq.expect("a number")));
    }
    numbers.sort_unstable();
    assert!(numbers.windows(2).all(|pair| pair[0].1 < pair[1].1), "{numbers:?}");
    let mut seen = Vec::new();
    while seen.len() < 204 {
        let frame = viewer.expect("frame");
        for event in frame["events"].as_array().expect("events") {
            seen.push(event["id"].as_str().expect("an id").to_owned());
            if event["id"] == "g7" {
                assert_eq!(event["payload"].to_string(), "{\"n\":1.5}");
            }
        }
    }
    let streamed: Vec<_> = seen.iter().filter(|id| id.starts_with('g')).collect();
    let sent: Vec<String> = (1..=200).map(|i| format!("g{i}")).collect();
    assert_eq!(streamed, sent.iter().collect::<Vec<_>>());
    server.wait_metric("tidegate_grpc_requests_total{result=\"answered\"}", 200.0);
    assert_eq!(server.metric("tidegate_grpc_streams"), 1.0);
    drop(stream.requests);
    let end = timeout(PATIENCE, stream.answers.message()).await.expect("in time");
    assert!(matches!(end, Ok(None)), "{end:?}");
}

#[tokio::test]
async fn who_may_not_publish_hears_so_in_grpc_terms() {
    let server = Server::start("");
    let channel = channel(&server).await;
    let viewer = server.token("ana", "viewer", &["*"]);
    let late = sign(&json!({"sub": "im", "role": "publisher", "rooms": ["*"], "exp": now() - 60}));
    let good = server.token("im", "publisher", &["*"]);
    let cases = [
        (PUBLISH, None, Code::Unauthenticated, "missing_token"),
        (PUBLISH, Some("x.y.z"), Code::Unauthenticated, "token_malformed"),
        (PUBLISH, Some(&*late), Code::Unauthenticated, "token_expired"),
        (PUBLISH, Some(&*viewer), Code::PermissionDenied, "forbidden_role"),
        ("/tidegate.v1.Publisher/Shout", Some(&*good), Code::Unimplemented, "unknown_method"),
    ];
    for (path, token, code, text) in cases {
        let opened = Stream::open_at(&channel, path, token).await;
        let status = opened.err().unwrap_or_else(|| panic!("{text}: opened"));
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().starts_with(text), "{status:?}");
    }
}

#[tokio::test]
async fn a_refused_request_or_event_leaves_the_rest_of_the_stream_alone() {
    let server = Server::start("[ingress]\nmax_events_per_request = 5\n");
    let channel = channel(&server).await;
    let mut stream = Stream::open(&channel, &server.token("im", "publisher", &["r"])).await;
    let one = |id: &str| vec![event(id, "chat", "1")];
    let refused = [
        (request(1, "elsewhere", one("1")), "forbidden_room"),
        (request(2, "no room", one("1")), "bad_room"),
        (request(3, "r", vec![event("x", "chat", "1"); 6]), "too_many_events"),
    ];
    for (request, code) in refused {
        let answer = stream.ask(&request).await;
        assert_eq!(answer.request, request.request);
        assert_eq!(answer.error.map(|error| error.code).as_deref(), Some(code));
        assert!(answer.results.is_empty());
    }
    let mut json_only = event("j", "chat", "1,\"x\":2");
    json_only.body.as_mut().expect("a body").encoding = v1::PayloadEncoding::Json.into();
    let long = "x".repeat(129);
    let events = vec![
        event("a", "chat", "1"),
        event("", "chat", "1"),
        event("b", &long, "1"),
        json_only,
        event("a", "chat", "1"),
    ];
    let answer = stream.ask(&request(4, "r", events)).await;
    assert_eq!(codes(&answer), ["accepted", "bad_id", "bad_kind", "bad_payload", "accepted"]);
    let ids: Vec<&str> = answer.results.iter().map(|result| &*result.id).collect();
    assert_eq!(ids, ["a", "", "b", "j", "a"]);
    assert_eq!(answer.results[0].seq, answer.results[4].seq, "a repetition has the first number");

    // One event of a request that is no event: field 1 cut short.
    let mut bytes = request(5, "r", one("ok")).encode_to_vec();
    bytes.extend(b"\x1a\x02\x0a\x05");
    stream.requests.send(bytes).await.expect("sent");
    assert_eq!(codes(&stream.answer().await), ["accepted", "bad_event"]);
    assert_eq!(codes(&stream.ask(&request(6, "r", one("end"))).await), ["accepted"]);
    server.wait_metric("tidegate_grpc_requests_total{result=\"too_many_events\"}", 1.0);
    server.wait_metric("tidegate_events_refused_total{reason=\"bad_event\"}", 1.0);
}

#[tokio::test]
async fn what_is_no_request_ends_its_stream_and_no_other() {
    let server = Server::start("[ingress]\nmax_body_bytes = 20000\n");
    let channel = channel(&server).await;
    let token = server.token("im", "publisher", &["r"]);
    let mut bystander = Stream::open(&channel, &token).await;
    let large = request(1, "r", vec![event("1", "chat", &"x".repeat(30_000))]);
    let none = request(0, "r", vec![]);
    let cases: [(Vec<u8>, Code, &str); 4] = [
        (b"\xff\xfe garbage".to_vec(), Code::InvalidArgument, "malformed_message"),
        (b"\x1a\xff\xff\xff\x0f".to_vec(), Code::InvalidArgument, "malformed_message"),
        (none.encode_to_vec(), Code::InvalidArgument, "bad_request_number"),
        (large.encode_to_vec(), Code::ResourceExhausted, "message_too_large"),
    ];
    for (i, (bytes, code, text)) in cases.into_iter().enumerate() {
        let mut stream = Stream::open(&channel, &token).await;
        // What was taken before is answered.
        let before = request(9, "r", vec![event(&format!("{i}"), "chat", "1")]);
        stream.send(&before).await;
        stream.requests.send(bytes).await.expect("sent");
        assert_eq!(stream.answer().await.request, 9);
        let status = stream.status().await;
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().starts_with(text), "{status:?}");
    }
    let answer = bystander.ask(&request(1, "r", vec![event("end", "chat", "1")])).await;
    assert_eq!(codes(&answer), ["accepted"]);
}

#[tokio::test]
async fn fixed_limits_hold_on_streams() {
    let limits = "[limits]\napplication_events_per_second = 1\napplication_burst = 10\n";
    let server = Server::start(limits);
    let channel = channel(&server).await;
    let mut stream = Stream::open(&channel, &server.token("im", "publisher", &["*"])).await;
    let events = |n: usize| (0..n).map(|i| event(&format!("{i}"), "chat", "1")).collect();
    let answer = stream.ask(&request(1, "r", events(30))).await;
    let accepted = codes(&answer).iter().filter(|code| **code == "accepted").count();
    assert!((10..=12).contains(&accepted), "{accepted} accepted");
    let last = answer.results.last().expect("results");
    assert_eq!(last.code, "application_limited");
    assert!(last.retry_after_ms.is_some_and(|wait| (1..=1_000).contains(&wait)), "{last:?}");
}

/// Pins the level, or gives it back.
fn pin(server: &Server, level: serde_json::Value) {
    let body = level.to_string();
    let token = server.token("op", "operator", &[]);
    let request = format!(
        "POST /admission/pin HTTP/1.1\r\nHost: t\r\nConnection: close\r\nAuthorization: Bearer \
         {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (status, text) = harness::exchange(server.admin, request.as_bytes());
    assert_eq!(status, 200, "{text}");
}

#[tokio::test]
async fn what_is_beyond_the_level_is_refused_and_every_answer_tells_the_level() {
    let server = Server::start("");
    let channel = channel(&server).await;
    let mut stream = Stream::open(&channel, &server.token("im", "publisher", &["*"])).await;
    pin(&server, json!({"business": 1, "user": 127}));
    let events = |n: usize| {
        let kinds = ["red_packet", "gift", "chat", "unheard_of"];
        kinds.iter().map(|kind| event(&format!("{kind}-{n}"), kind, "1")).collect::<Vec<_>>()
    };
    let answer = stream.ask(&request(1, "r", events(1))).await;
    assert_eq!(codes(&answer), ["accepted", "accepted", "overloaded", "overloaded"]);
    let waits: Vec<_> = answer.results.iter().map(|r| r.retry_after_ms.is_some()).collect();
    assert_eq!(waits, [false, false, true, true]);
    let admission = answer.admission.expect("the level");
    assert_eq!((admission.business, admission.user), (1, 127));
    let refused = stream.ask(&request(2, "no room", vec![])).await;
    assert_eq!(refused.admission.map(|level| level.business), Some(1), "refusals tell it, too");
    // Over HTTP as well: who is refused whole must not think the door open.
    let token = server.token("im", "publisher", &["*"]);
    let (status, body) = server.http("POST", "/v1/rooms/r/events", Some(&token), "garbage");
    assert_eq!((status, &body["admission"]["business"]), (400, &json!(1)), "{body}");
    pin(&server, json!({}));
    let answer = stream.ask(&request(3, "r", events(3))).await;
    assert_eq!(codes(&answer), ["accepted"; 4]);
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let server = Server::start_with("", &[("TIDEGATE__AUTH__LEEWAY_S", "0")]);
    let channel = channel(&server).await;
    let exp = now() + 3;
    let token = sign(&json!({"sub": "im", "role": "publisher", "rooms": ["*"], "exp": exp}));
    let mut stream = Stream::open(&channel, &token).await;
    let answer = stream.ask(&request(1, "r", vec![event("1", "chat", "1")])).await;
    assert_eq!(codes(&answer), ["accepted"]);
    // The clock has to pass a second given in the token.
    while now() <= exp {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stream.send(&request(2, "r", vec![event("2", "chat", "1")])).await;
    let status = stream.status().await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
}

#[tokio::test]
async fn a_drain_answers_what_was_taken_and_says_goodbye() {
    let server = Server::start("");
    let channel = channel(&server).await;
    let token = server.token("im", "publisher", &["*"]);
    let mut idle = Stream::open(&channel, &token).await;
    let mut stream = Stream::open(&channel, &token).await;
    let answer = stream.ask(&request(1, "r", vec![event("1", "chat", "1")])).await;
    assert_eq!(codes(&answer), ["accepted"]);
    server.terminate();
    for stream in [&mut idle, &mut stream] {
        let last = stream.answer().await;
        let error = last.error.expect("an error");
        assert_eq!((last.request, &*error.code, error.temporary), (0, "draining", true));
        let status = stream.status().await;
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.message().starts_with("draining"), "{status:?}");
    }
    let status = tokio::task::spawn_blocking(move || server.wait()).await.expect("waited");
    assert!(status.success());
}

#[tokio::test]
async fn streams_take_places_and_give_them_back() {
    // One place for the connection, one for a stream on it.
    let server = Server::start("[ingress]\nmax_connections = 2\n");
    let channel = channel(&server).await;
    let token = server.token("im", "publisher", &["*"]);
    let mut first = Stream::open(&channel, &token).await;
    let refused = Stream::open_at(&channel, PUBLISH, Some(&token)).await;
    let status = refused.err().expect("no place is left");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().starts_with("busy"), "{status:?}");
    let answer = first.ask(&request(1, "r", vec![event("1", "chat", "1")])).await;
    assert_eq!(codes(&answer), ["accepted"]);
    drop(first);
    let mut tries = 0;
    let mut second = loop {
        match Stream::open_at(&channel, PUBLISH, Some(&token)).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        tries += 1;
        assert!(tries < 500, "the place is not given back");
    };
    let answer = second.ask(&request(1, "r", vec![event("2", "chat", "1")])).await;
    assert_eq!(codes(&answer), ["accepted"]);
}

/// A bare HTTP/2 connection.
async fn http2(server: &Server, window: u32) -> h2::client::SendRequest<Bytes> {
    let socket = TcpStream::connect(server.address).await.expect("connected");
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window);
    let (client, connection) = builder.handshake(socket).await.expect("HTTP/2");
    tokio::spawn(async move { drop(connection.await) });
    client
}

fn call(token: &str) -> http::Request<()> {
    http::Request::post(format!("http://test{PUBLISH}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {token}"))
        .body(())
        .expect("a request")
}

/// A request as gRPC frames it.
fn framed(message: &v1::PublishRequest) -> Bytes {
    let mut bytes = vec![0];
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).expect("room enough");
    bytes.into()
}

#[tokio::test]
async fn who_does_not_read_answers_can_send_no_more() {
    let server = Server::start("");
    let client = http2(&server, 16 * 1024).await;
    let mut client = client.ready().await.expect("ready");
    let token = server.token("im", "publisher", &["*"]);
    let (response, mut body) = client.send_request(call(&token), false).expect("sent");
    // Its answers are as large as it is: 128 bytes of id for each event.
    let id = "x".repeat(120);
    let mut sent = 0;
    let stalled = loop {
        let number = sent as u64 + 1;
        let events = (0..50).map(|i| event(&format!("{id}{number}-{i}"), "like", "1")).collect();
        let message = framed(&request(number, "r", events));
        body.reserve_capacity(message.len());
        let room = async {
            while body.capacity() < message.len() {
                let more = std::future::poll_fn(|context| body.poll_capacity(context)).await;
                more.expect("the stream is open").expect("the connection is");
            }
        };
        if timeout(Duration::from_secs(2), room).await.is_err() {
            break true;
        }
        body.send_data(message, false).expect("sent");
        sent += 1;
        if sent > 5_000 {
            break false;
        }
    };
    assert!(stalled, "40 MB were taken from a caller that takes no answer");
    // Under way: a stream's window of requests, and as many answers as fill a
    // window and a buffer; each some 8 KiB.
    assert!(sent < 150, "{sent} requests were taken");
    let answered = server.metric("tidegate_grpc_requests_total{result=\"answered\"}");
    assert!(answered <= sent as f64 - 16.0, "{answered} of {sent} answered, the rest unread");
    assert_eq!(server.publish("r", json!([{"id": "h", "kind": "chat", "payload": 1}])).0, 200);

    // It goes on where it stopped as soon as answers are read.
    let mut answers = response.await.expect("a response").into_body();
    let mut read = 0;
    while let Ok(Some(Ok(data))) = timeout(Duration::from_secs(2), answers.data()).await {
        answers.flow_control().release_capacity(data.len()).expect("released");
        read += data.len();
    }
    assert!(read > sent * 50 * 120, "{read} bytes of answers to {sent} requests");
    assert!(server.metric("tidegate_grpc_requests_total{result=\"answered\"}") >= sent as f64);
}

#[tokio::test]
async fn a_connection_that_resets_streams_in_masses_is_closed() {
    let server = Server::start("");
    let token = server.token("im", "publisher", &["*"]);
    let socket = TcpStream::connect(server.address).await.expect("connected");
    let (client, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let mut batches = 0;
    // Each request cancelled as soon as it is sent, and many sent at once: the
    // connection's task has no turn in between. The server counts those it sees
    // reset before it has looked at them, so it may take a few.
    while !connection.is_finished() {
        let Ok(mut ready) = client.clone().ready().await else { break };
        for _ in 0..90 {
            let Ok((_, mut stream)) = ready.send_request(call(&token), false) else { break };
            stream.send_reset(h2::Reason::CANCEL);
        }
        // Time for the server's answer, which a reset would destroy.
        tokio::time::sleep(Duration::from_millis(20)).await;
        batches += 1;
        assert!(batches < 500, "no end of it");
    }
    let ended = timeout(PATIENCE, connection).await.expect("in time").expect("no panic");
    let error = ended.expect_err("closed by the server");
    assert!(error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) || error.is_io(), "{error}");
    let channel = channel(&server).await;
    let mut stream = Stream::open(&channel, &token).await;
    let answer = stream.ask(&request(1, "r", vec![event("1", "chat", "1")])).await;
    assert_eq!(codes(&answer), ["accepted"]);
}

#[tokio::test]
async fn http2_without_a_request_is_closed_like_any_silent_connection() {
    let server = Server::start("[websocket]\nhandshake_timeout_ms = 300\n");
    let mut client = http2(&server, 65_535).await;
    let closed = timeout(PATIENCE, std::future::poll_fn(|context| client.poll_ready(context)));
    // Ready at first; then the connection goes.
    closed.await.expect("in time").expect("ready");
    server.wait_metric("tidegate_handshakes_total{result=\"timeout\"}", 1.0);
    let token = server.token("im", "publisher", &["*"]);
    let sent = client.send_request(call(&token), false);
    let gone = match sent {
        Err(_) => true,
        Ok((response, _)) => timeout(PATIENCE, response).await.expect("in time").is_err(),
    };
    assert!(gone, "it is still served");
}

#[tokio::test]
async fn http2_serves_the_http_interface_too_but_no_websocket() {
    let server = Server::start("[ingress]\nhttp2_streams = 7\n");
    let client = http2(&server, 65_535).await;
    let mut client = client.ready().await.expect("ready");
    for (path, status) in [("/v1/openapi.json", 200), ("/v1/ws", 400), ("/nothing", 404)] {
        let request = http::Request::get(format!("http://test{path}")).body(()).expect("a request");
        let (response, _) = client.send_request(request, true).expect("sent");
        let response = timeout(PATIENCE, response).await.expect("in time").expect("a response");
        assert_eq!(response.status(), status, "{path}");
    }
    assert_eq!(client.current_max_send_streams(), 7, "as configured");
}
