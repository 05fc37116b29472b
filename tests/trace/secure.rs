//! Spans to a collector behind TLS.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

use crate::collector::Collector;
use crate::harness::{PATIENCE, Server};
use crate::kit::Certificates;
use crate::{has, rule, trace};

/// A collector with a certificate of an authority of its own.
fn collector(certificates: &Certificates) -> Collector {
    let chain = CertificateDer::pem_file_iter(certificates.path("certificate.pem"));
    let chain: Result<Vec<_>, _> = chain.expect("a file").collect();
    let key = PrivateKeyDer::from_pem_file(certificates.path("key.pem")).expect("a key");
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let config = ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain.expect("certificates"), key)
        .expect("a pair");
    Collector::start_tls(Arc::new(config))
}

/// The line of the server's log that says so, once it is there.
fn logged(server: &Server, what: &str) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let log = server.log();
        if let Some(line) = log.lines().find(|line| line.contains(what)) {
            return line.to_owned();
        }
        assert!(Instant::now() < until, "{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn publish(server: &Server, id: &str) {
    let events = json!([{"id": id, "kind": "red_packet", "payload": 1}]);
    assert_eq!(server.publish("r", events).0, 200);
}

#[test]
fn a_collector_behind_tls_gets_spans_and_its_token_also_of_what_is_sent_again() {
    let certificates = Certificates::new();
    let collector = collector(&certificates);
    let server = Server::start_with(
        &format!(
            "[rooms]\ncarry_after_ms = 200\ncarries = 1\n[trace]\notlp_endpoint = \"https://{}/at\"\n\
             otlp_ca = {:?}\n",
            collector.address,
            certificates.path("authority.pem")
        ),
        &[("TIDEGATE__TRACE__OTLP_HEADERS__AUTHORIZATION", "Bearer t0ken")],
    );
    let mut silent = server.connect();
    silent.expect("welcome");
    let token = server.token("u", "viewer", &["r"]);
    silent.send(&json!({"join": {"room": "r", "token": token, "acks": true}}));
    silent.expect("joined");
    assert_eq!(rule(&server, &json!({"id": "p", "seconds": 60})), 200);
    publish(&server, "p");
    silent.expect("missed");
    trace(&server, "p", has("missed"));
    // What is counted for a while goes out when the process ends.
    server.wait_metric("tidegate_trace_spans_total{result=\"exported\"}", 9.0);
    server.terminate();
    let log = server.log();
    assert!(server.wait().success());
    let names: BTreeSet<String> =
        collector.wait("p", 11).into_iter().map(|span| span.name).collect();
    for step in ["event", "received", "logged", "written", "carried", "missed"] {
        assert!(names.contains(step), "{step} in {names:?}");
    }
    let heads = collector.heads();
    assert!(!heads.is_empty());
    for head in heads {
        assert!(head.starts_with("post /at/v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("\r\nauthorization: bearer t0ken\r\n"), "{head}");
    }
    assert!(!log.contains("t0ken"), "{log}");
}

#[test]
fn a_collector_that_is_not_believed_gets_nothing_and_operators_hear_why() {
    let certificates = Certificates::new();
    let collector = collector(&certificates);
    // The roots of this machine do not vouch for it.
    let server = Server::start(&format!(
        "[trace]\notlp_endpoint = \"https://{}\"\notlp_headers = {{ x-token = \"t0ken\" }}\n",
        collector.address
    ));
    assert_eq!(rule(&server, &json!({"id": "p", "seconds": 60})), 200);
    publish(&server, "p");
    server.wait_metric("tidegate_trace_spans_total{result=\"untrusted\"}", 1.0);
    assert_eq!(server.metric("tidegate_trace_spans_total{result=\"failed\"}"), 0.0);
    let line = logged(&server, "spans are not exported");
    assert!(line.contains("certificate is not believed") && line.contains("trace.otlp_ca"));
    assert!(line.contains("UnknownIssuer") && !server.log().contains("t0ken"), "{line}");
    assert!(collector.heads().is_empty(), "not even the token");
}

#[test]
fn a_token_that_others_on_the_network_can_read_is_warned_of() {
    // An address for documentation (RFC 5737): nobody is there.
    let section = "[trace]\notlp_endpoint = \"http://192.0.2.1:4318\"\n";
    let server = Server::start(&format!("{section}otlp_headers = {{ x-token = \"t0ken\" }}\n"));
    let line = logged(&server, "in clear");
    assert!(line.contains("WARN") && line.contains("192.0.2.1") && !line.contains("t0ken"));
    assert!(!Server::start(section).log().contains("in clear"), "there is nothing to read");
}
