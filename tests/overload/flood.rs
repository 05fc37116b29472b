//! Publishers on keep-alive connections, one of them without manners.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::harness::{PATIENCE, Server};

/// Work of a millisecond may wait. Queueing time counts only beyond a second, so
/// that what overflows decides, and not how long a debug build reads a request.
pub(crate) const SMALL_QUEUE: &str =
    "[admission]\nqueue_ms = 1\nburst_ms = 1\nthreshold_ms = 1000\n";

/// One connection of one application.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    token: String,
}

impl Client {
    /// An application of this name.
    pub(crate) fn new(server: &Server, name: &str) -> Client {
        let stream = TcpStream::connect(server.address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("set");
        let token = server.token(name, "publisher", &["*"]);
        Client { stream: BufReader::new(stream), token }
    }

    /// Publishes events; the answer, which must be a 200.
    pub(crate) fn publish(&mut self, room: &str, events: &Value) -> Value {
        let body = json!({ "events": events }).to_string();
        let head = format!(
            "POST /v1/rooms/{room}/events HTTP/1.1\r\nHost: test\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\
             Authorization: Bearer {}\r\n\r\n",
            body.len(),
            self.token
        );
        let stream = self.stream.get_mut();
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).expect("sent");
        let (mut line, mut length, mut status) = (String::new(), 0, String::new());
        loop {
            line.clear();
            self.stream.read_line(&mut line).expect("a header");
            let lower = line.trim_end().to_ascii_lowercase();
            if status.is_empty() {
                status.clone_from(&lower);
            } else if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            } else if lower.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("a body");
        let answer = serde_json::from_slice(&body).expect("JSON");
        assert!(status.starts_with("http/1.1 200"), "{status} {answer}");
        answer
    }
}

/// Chat of as many users.
pub(crate) fn events(batch: &str, count: usize) -> Value {
    let event = |n: usize| {
        json!({"id": format!("{batch}-{n}"), "kind": "chat", "user": format!("u{n}"),
               "payload": "all of it in capital letters"})
    };
    (0..count).map(event).collect()
}

/// When to come back, of each event rejected with this code.
pub(crate) fn rejected(answer: &Value, code: &str) -> Vec<Option<u64>> {
    let results = answer["results"].as_array().expect("results").iter();
    let refused = results.filter(|result| result["code"] == code);
    refused.map(|result| result["retry_after_ms"].as_u64()).collect()
}

/// What became of a flood's events.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) accepted: usize,
    pub(crate) refused: usize,
}

/// Connections that send a thousand events as soon as the last were answered,
/// whatever the answer was.
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Flood {
    /// Into one room, until stopped.
    pub(crate) fn start(server: &Server, room: &str, connections: usize) -> Flood {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |connection: usize| {
            let mut client = Client::new(server, &format!("flood-{connection}"));
            let (room, stop) = (room.to_owned(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut tally = Tally::default();
                for batch in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let name = format!("flood-{connection}-{batch}");
                    let answer = client.publish(&room, &events(&name, 1_000));
                    let refused = rejected(&answer, "overloaded").len();
                    tally.refused += refused;
                    tally.accepted += 1_000 - refused;
                }
                tally
            })
        };
        let threads = (0..connections).map(start).collect();
        Flood { stop, threads }
    }

    /// Ends it.
    pub(crate) fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for thread in self.threads {
            let tally = thread.join().expect("no panic in a flood");
            sum.accepted += tally.accepted;
            sum.refused += tally.refused;
        }
        sum
    }
}
