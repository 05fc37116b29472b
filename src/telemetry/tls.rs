//! Metrics of certificates and TLS.

use super::{Scrape, Text, load};
use crate::ingress::stats::{TLS_FAILURES, TLS_SESSIONS, TLS_VERSIONS};

pub(super) fn tls(text: &mut Text, scrape: &Scrape<'_>) {
    let name = "tidegate_tls_handshakes_total";
    text.head(name, "counter", "TLS handshakes on TCP, by version and whether resumed.");
    for (v, version) in TLS_VERSIONS.iter().enumerate() {
        for (s, session) in TLS_SESSIONS.iter().enumerate() {
            let count: u64 = scrape.edges.iter().map(|edge| load(&edge.tls_handshakes[v][s])).sum();
            text.sample(name, &[("version", version), ("session", session)], count as f64);
        }
    }
    text.by(
        ("tidegate_tls_failures_total", "reason"),
        "TLS handshakes on TCP that failed.",
        TLS_FAILURES.iter().enumerate().map(|(i, reason)| {
            (*reason, scrape.edges.iter().map(|edge| load(&edge.tls_failures[i])).sum())
        }),
    );
    let reloads = scrape.certificate.unwrap_or_default();
    text.by(
        ("tidegate_tls_reloads_total", "result"),
        "New certificates taken while running, and files that gave none.",
        [("loaded", reloads.loaded), ("failed", reloads.failed)],
    );
    let name = "tidegate_tls_certificate_expires_seconds";
    text.head(name, "gauge", "When the certificate ends, in seconds since the Unix epoch.");
    if let Some(reloads) = scrape.certificate {
        text.sample(name, &[], (reloads.expires.as_millis() / 1_000) as f64);
    }
}
