//! `[trace]`: following single events.

use serde::{Deserialize, Serialize};

use super::section;
use super::validate::Check;

section! {
/// `[trace]`: following single events through every step of their way, see
/// docs/tracing.md.
pub struct Trace {
    /// Events followed: one in so many, by a hash of room and id. Default 0:
    /// only what operators ask for.
    pub sample_one_in: u32 = 0,
    /// Follow what publishers follow: requests whose `traceparent` is sampled.
    /// Default `false`.
    pub follow_parents: bool = false,
    /// Traces kept per shard, the oldest gone first. Up to 2 KiB each.
    /// Default 1000.
    pub kept: usize = 1_000,
    /// Rules of operators at once. Default 64.
    pub rules: usize = 64,
    /// Events that one rule follows at most. Default 1000.
    pub rule_events: u32 = 1_000,
    /// Where spans are sent: base address of an OpenTelemetry collector, OTLP
    /// over HTTP, like `http://127.0.0.1:4318`. Default empty: nowhere.
    pub otlp_endpoint: String = String::new(),
    /// Spans that may wait for the collector; more are dropped. Up to 320 bytes
    /// each. Default 8192.
    pub otlp_queue: usize = 8_192,
    /// The `service.name` of the spans. Default `tidegate`.
    pub service_name: String = "tidegate".to_owned(),
}
}

/// Ranges, and addresses that cannot be.
pub(super) fn check(trace: &Trace, check: &mut Check) {
    check.range("trace.kept", trace.kept, 1..=1_000_000);
    check.range("trace.rules", trace.rules, 0..=10_000);
    check.range("trace.rule_events", trace.rule_events, 1..=10_000_000);
    check.range("trace.otlp_queue", trace.otlp_queue, 1..=10_000_000);
    if trace.service_name.is_empty() {
        check.fail("trace.service_name", "is empty", "a name");
    }
    let endpoint = &trace.otlp_endpoint;
    if !endpoint.is_empty() && !is_base(endpoint) {
        let allowed = "scheme, host and port like \"http://127.0.0.1:4318\"; TLS is left to a \
                       collector beside the server";
        check.fail("trace.otlp_endpoint", format!("is {endpoint:?}"), allowed);
    }
}

/// Plain HTTP to a host, perhaps below a path.
fn is_base(endpoint: &str) -> bool {
    endpoint.parse::<http::Uri>().is_ok_and(|uri| {
        uri.scheme_str() == Some("http") && uri.host().is_some() && uri.query().is_none()
    })
}
