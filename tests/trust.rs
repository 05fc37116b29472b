//! Whose certificates publishers and viewers believe, and what they say of one
//! that they do not: the libraries and the commands against the real binary.

mod harness;
#[path = "tls/kit.rs"]
mod kit;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harness::{PATIENCE, Server};
use kit::{Certificates, presented, sha256};
use tidegate::client::{
    Failure, NewEvent, Outcome, Protocol, Publisher, PublisherSettings, StartError, Trust,
};
use tidegate::engine::ids::RoomId;
use tokio::time::timeout;

const BOTH: [Protocol; 2] = [Protocol::Http, Protocol::Grpc];

/// What became of an event.
async fn published(publisher: &Publisher, id: &str) -> Outcome {
    let room = RoomId::new("r").expect("a room");
    let receipt = publisher.publish(&room, NewEvent::new(id, "chat")).expect("room for it");
    timeout(PATIENCE, receipt).await.expect("an outcome")
}

fn publisher(server: &Server, protocol: Protocol, trust: Trust) -> Publisher {
    let url = format!("https://{}", server.address);
    let token = server.token("im", "publisher", &["*"]);
    let settings = PublisherSettings { protocol, trust, ..PublisherSettings::new(url, token) };
    Publisher::start(settings).expect("a publisher")
}

/// Waits for the table of priorities.
async fn table(publisher: &Publisher) {
    let came = async {
        while publisher.stats().tables == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, came).await.expect("it comes over TLS");
}

#[tokio::test]
async fn a_publisher_over_tls_believes_its_authority_or_a_hash_and_nobody_else() {
    let certificates = Certificates::new();
    let server = Server::start(&certificates.section("plaintext = \"never\""));
    let roots = || Trust::Roots(vec![certificates.root().to_vec()]);
    let hash =
        |hash: Vec<u8>| Trust::Sha256(vec![<[u8; 32]>::try_from(hash).expect("32 bytes")].into());
    let mut seq = 0;
    for protocol in BOTH {
        let own = hash(sha256(&presented(server.address)));
        for (name, trust) in [("roots", roots()), ("hash", own)] {
            let id = format!("{protocol:?}-{name}");
            let publisher = publisher(&server, protocol, trust);
            table(&publisher).await;
            seq += 1;
            let outcome = published(&publisher, &id).await;
            assert_eq!(outcome, Outcome::Accepted { seq: Some(seq) }, "{id}");
        }
        for (name, trust) in [("system", Trust::System), ("another", hash(vec![7; 32]))] {
            let id = format!("{protocol:?}-{name}");
            let outcome = published(&publisher(&server, protocol, trust), &id).await;
            let untrusted = matches!(&outcome, Outcome::Failed(Failure::Untrusted(_)));
            assert!(untrusted, "{id}: {outcome:?}");
        }
    }
    let started = Publisher::start(PublisherSettings::new("ftp://edge", "t"));
    assert!(matches!(started, Err(StartError::Url(_))), "{started:?}");
}

fn tidegate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments);
    command
}

fn told(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn publish_over_https_takes_the_options_of_watch_and_names_them_when_they_are_wanting() {
    let certificates = Certificates::new();
    let server = Server::start(&certificates.section(""));
    let url = format!("https://{}", server.address);
    let token = server.token("im", "publisher", &["r"]);
    let authority = certificates.path("authority.pem");
    let hash = STANDARD.encode(sha256(&presented(server.address)));
    let publish = |id: &str, more: &[&str]| {
        let arguments = ["publish", "r", "chat", "x", "--url", &url, "--token", &token, "--id", id];
        told(&tidegate(&[&arguments[..], more].concat()).output().expect("it runs"))
    };
    for protocol in ["http", "grpc"] {
        let protocol = ["--protocol", protocol];
        let trusted: [&[&str]; 3] = [
            &["--ca", authority.to_str().expect("a path")],
            &["--certificate-sha256", &hash],
            &["--insecure"],
        ];
        for (n, trust) in trusted.iter().enumerate() {
            let id = format!("{}-{n}", protocol[1]);
            let (code, text) = publish(&id, &[&protocol[..], trust].concat());
            assert_eq!(code, Some(0), "{text}");
            assert!(text.starts_with(&format!("accepted {id}: seq ")), "{text}");
        }
        let (code, text) = publish("never", &protocol);
        assert_eq!(code, Some(1), "{text}");
        for part in ["UnknownIssuer", "--certificate-sha256 HASH", "--ca FILE"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

/// A running command; killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn watch_says_what_to_do_about_a_certificate_that_it_does_not_know() {
    // On loopback and without the demo: a certificate of its own, and nobody who
    // would tell the command of it.
    let server = Server::start("");
    let url = format!("wss://{}", server.address);
    let hash = STANDARD.encode(sha256(&presented(server.address)));
    let token = server.token("u", "viewer", &["r"]);
    for transport in ["quic", "websocket"] {
        let arguments = ["watch", "r", "--url", &url, "--token", &token, "--transport", transport];
        let mut command = tidegate(&arguments);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut watch = Running(child.expect("it starts"));
        let mut lines = BufReader::new(watch.0.stderr.take().expect("piped")).lines();
        let mut next = || lines.next().expect("a line").expect("readable");
        let why = next();
        assert!(why.contains("UnknownIssuer"), "{transport}: {why}");
        let hint: Vec<String> = std::iter::repeat_with(&mut next).take(4).collect();
        assert!(hint[1].contains("--certificate-sha256 HASH"), "{transport}: {hint:?}");
        assert!(hint[3].contains("--ca FILE"), "{transport}: {hint:?}");
        let again = next();
        assert!(again.contains("UnknownIssuer"), "told once: {again}");
        drop(watch);

        let mut command = tidegate(&[&arguments[..], &["--certificate-sha256", &hash]].concat());
        let child = command.stdout(Stdio::piped()).spawn();
        let mut watch = Running(child.expect("it starts"));
        let mut lines = BufReader::new(watch.0.stdout.take().expect("piped")).lines();
        let line = lines.next().expect("a line").expect("readable");
        assert_eq!(line, format!("connected by {transport} to {}", server.address));
    }
}
