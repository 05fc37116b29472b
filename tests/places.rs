//! Who gets a place among the HTTP connections, when more come than there are.

mod harness;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use harness::{PATIENCE, Server};
use serde_json::json;

const ONE_SHARD: &[(&str, &str)] = &[("TIDEGATE__SERVER__SHARDS", "1")];

/// A connection that is kept open.
struct Kept(TcpStream);

impl Kept {
    /// Opens it and asks something, without waiting for the answer.
    fn ask(server: &Server, application: &str) -> Kept {
        let mut kept = Kept(TcpStream::connect(server.address).expect("connected"));
        kept.0.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        kept.again(server, application);
        kept
    }

    fn again(&mut self, server: &Server, application: &str) {
        let token = server.token(application, "publisher", &["*"]);
        let request = format!(
            "GET /v1/admission HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\r\n",
            server.address
        );
        self.0.write_all(request.as_bytes()).expect("sent");
    }

    /// The head of the next answer, and its body.
    fn answer(&mut self) -> String {
        let mut bytes = Vec::new();
        let mut chunk = [0; 4_096];
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| {
                    line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok()
                });
                if length.is_none_or(|length: usize| body.len() >= length) {
                    return text;
                }
            }
            match self.0.read(&mut chunk).expect("an answer") {
                0 => panic!("closed before it was answered: {text:?}"),
                n => bytes.extend_from_slice(&chunk[..n]),
            }
        }
    }

    fn was_closed(mut self) -> bool {
        matches!(self.0.read(&mut [0; 1]), Ok(0))
    }
}

#[test]
fn an_application_that_keeps_connections_shuts_out_neither_others_nor_itself() {
    let limits = "[ingress]\nmax_connections = 4\napplication_connections = 3\n";
    let server = Server::start_with(limits, ONE_SHARD);
    let mut kept: Vec<Kept> = (0..3).map(|_| Kept::ask(&server, "greedy")).collect();
    for kept in &mut kept {
        assert!(kept.answer().starts_with("HTTP/1.1 200"));
    }
    // Its own further ones wait in line, until one that is idle gives way.
    let mut more: Vec<Kept> = (0..2).map(|_| Kept::ask(&server, "greedy")).collect();
    server.wait_metric("tidegate_http_connections_waiting", 2.0);
    let (status, answer) =
        server.publish("r", json!([{"id": "1", "kind": "red_packet", "payload": 1}]));
    assert_eq!((status, &answer["results"][0]["status"]), (200, &json!("accepted")));
    for more in &mut more {
        assert!(more.answer().starts_with("HTTP/1.1 200"));
    }
    server.wait_metric("tidegate_http_connections_gave_way_total", 2.0);
    // Those that were idle for longest: the first two.
    let mut last = kept.pop().expect("three");
    assert!(kept.into_iter().all(Kept::was_closed));
    last.again(&server, "greedy");
    assert!(last.answer().starts_with("HTTP/1.1 200"), "it stayed");
    assert!(server.metric("tidegate_http_connections_refused_total") < 0.5);
}

#[test]
fn the_line_is_bounded_and_who_is_in_it_is_answered_in_the_end() {
    let server = Server::start_with("[ingress]\nmax_connections = 1\n", ONE_SHARD);
    let token = server.token("slow", "publisher", &["*"]);
    // Its place is in use for as long as its body takes to come.
    let body = "{\"events\":[]}";
    let mut slow = Kept(TcpStream::connect(server.address).expect("connected"));
    slow.0.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let head = format!(
        "POST /v1/rooms/r/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    slow.0.write_all(head.as_bytes()).expect("sent");
    server.wait_metric("tidegate_http_connections", 1.0);
    let mut waits = Kept::ask(&server, "im");
    server.wait_metric("tidegate_http_connections_waiting", 1.0);
    let mut refused = Kept::ask(&server, "im");
    let answer = refused.answer();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"busy\""), "{answer}");
    assert!(answer.contains("retry-after: 1") && answer.contains("\"admission\""), "{answer}");
    assert!(refused.was_closed());
    assert!(server.metric("tidegate_http_connections_refused_total") > 0.5);
    slow.0.write_all(body.as_bytes()).expect("sent");
    assert!(slow.answer().starts_with("HTTP/1.1 200"));
    assert!(waits.answer().starts_with("HTTP/1.1 200"));
}
