//! An OpenTelemetry collector as far as spans go: takes what is posted to it,
//! and reads it with the messages that OpenTelemetry publishes.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use prost::Message as _;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::harness::PATIENCE;

/// What is asserted of a span.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) name: String,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) service: String,
    event: String,
}

/// A listening collector.
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    took: Arc<Took>,
}

/// What was posted to it.
#[derive(Default)]
struct Took {
    seen: Mutex<Vec<Seen>>,
    /// Request lines and headers, in lower case.
    heads: Mutex<Vec<String>>,
    /// Requests to be answered with 503.
    refusals: Mutex<usize>,
}

impl Collector {
    /// One that answers the first so many requests with 503.
    pub(crate) fn start(refusals: usize) -> Collector {
        Self::listen(refusals, serve)
    }

    /// One that speaks TLS.
    pub(crate) fn start_tls(config: Arc<ServerConfig>) -> Collector {
        Self::listen(0, move |stream, took| {
            let connection = ServerConnection::new(Arc::clone(&config)).expect("a server");
            serve(StreamOwned::new(connection, stream), took);
        })
    }

    fn listen(
        refusals: usize,
        serve: impl Fn(TcpStream, &Took) + Clone + Send + 'static,
    ) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let took = Arc::new(Took { refusals: Mutex::new(refusals), ..Took::default() });
        let into = Arc::clone(&took);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (into, serve) = (Arc::clone(&into), serve.clone());
                std::thread::spawn(move || serve(stream, &into));
            }
        });
        Collector { address, took }
    }

    /// Request lines and headers so far, in lower case.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.took.heads.lock().expect("no test has failed").clone()
    }

    /// The spans of an event so far.
    pub(crate) fn spans_of(&self, event: &str) -> Vec<Seen> {
        let seen = self.took.seen.lock().expect("no test has failed");
        seen.iter().filter(|span| span.event == event).cloned().collect()
    }

    /// The spans of an event, once there are so many.
    pub(crate) fn wait(&self, event: &str, count: usize) -> Vec<Seen> {
        let until = Instant::now() + PATIENCE;
        loop {
            let spans = self.spans_of(event);
            if spans.len() >= count {
                return spans;
            }
            assert!(Instant::now() < until, "{event}: {spans:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn serve(stream: impl Read + Write, took: &Took) {
    let mut reader = BufReader::new(stream);
    while let Some((head, body)) = request(&mut reader) {
        assert!(head.contains("/v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
        took.heads.lock().expect("no test has failed").push(head);
        let mut left = took.refusals.lock().expect("no test has failed");
        let answer = if *left > 0 {
            *left -= 1;
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
        } else {
            let request = ExportTraceServiceRequest::decode(&body[..]).expect("OTLP");
            took.seen.lock().expect("no test has failed").extend(spans(request));
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        };
        drop(left);
        let stream = reader.get_mut();
        stream.write_all(answer.as_bytes()).and_then(|()| stream.flush()).expect("answered");
    }
}

fn request(reader: &mut BufReader<impl Read>) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.expect("a length").parse().expect("a number")];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn spans(request: ExportTraceServiceRequest) -> Vec<Seen> {
    let mut spans = Vec::new();
    for process in request.resource_spans {
        let service = text(&process.resource.expect("a resource").attributes, "service.name");
        for span in process.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
            spans.push(Seen {
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                start: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
                service: service.clone(),
                event: text(&span.attributes, "tidegate.event.id"),
                name: span.name,
            });
        }
    }
    spans
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let attribute = attributes.iter().find(|attribute| attribute.key == key).expect("there");
    match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        other => panic!("{key} is {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
