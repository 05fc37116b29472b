//! `[trace]`: following single events.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde::{Deserialize, Serialize};

use super::validate::Check;
use super::{Secret, section};
use crate::trust::Trust;

/// Headers for a collector.
const MOST_HEADERS: usize = 16;
/// Bytes of one header's value.
const MOST_VALUE: usize = 8_192;
/// What requests carry anyway, or HTTP itself decides on.
const OURS: [HeaderName; 6] =
    [CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING, USER_AGENT];

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
    /// Traces kept per shard, the oldest gone first. 2 KiB each, up to 9 KiB
    /// when the event's id is repeated or viewers get it again many times.
    /// Default 1000.
    pub kept: usize = 1_000,
    /// Rules of operators at once. Default 64.
    pub rules: usize = 64,
    /// Events that one rule follows at most. Default 1000.
    pub rule_events: u32 = 1_000,
    /// Where spans are sent: base address of an OpenTelemetry collector, OTLP
    /// over HTTP, like `http://127.0.0.1:4318` or `https://collector:4318`.
    /// Default empty: nowhere.
    pub otlp_endpoint: String = String::new(),
    /// PEM file with the authorities that may vouch for an `https://` collector,
    /// no others. Read once at start; relative to the working directory. Default
    /// empty: this machine's roots.
    pub otlp_ca: PathBuf = PathBuf::new(),
    /// Headers of every request to the collector by name, such as a token:
    /// `{ authorization = "Bearer …" }`. At most 16, of 8 KiB each. Values are
    /// secrets: neither printed nor logged. Default none.
    pub otlp_headers: BTreeMap<String, Secret> = BTreeMap::new(),
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
        let allowed = "scheme, host and port like \"http://127.0.0.1:4318\" or \
                       \"https://collector.example:4318\"";
        let problem = match endpoint.contains('@') {
            true => "names a user, for which trace.otlp_headers is the place".to_owned(),
            false => format!("is {endpoint:?}"),
        };
        check.fail("trace.otlp_endpoint", problem, allowed);
    }
    if let Err(problem) = trace.trust() {
        check.fail("trace.otlp_ca", problem, "a PEM file of certificates");
    } else if !trace.otlp_ca.as_os_str().is_empty() && endpoint.starts_with("http:") {
        let problem = format!("is given, and trace.otlp_endpoint is {endpoint:?}");
        check.fail("trace.otlp_ca", problem, "\"\", or an https:// endpoint");
    }
    if trace.otlp_headers.len() > MOST_HEADERS {
        let problem = format!("are {}", trace.otlp_headers.len());
        check.fail("trace.otlp_headers", problem, format!("at most {MOST_HEADERS}"));
    }
    if let Err(problem) = trace.headers() {
        check.fail("trace.otlp_headers", problem, "names and values that HTTP allows");
    }
}

/// HTTP or HTTPS to a host, perhaps below a path.
fn is_base(endpoint: &str) -> bool {
    endpoint.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            // Who writes a password there would read it in the log.
            && !endpoint.contains('@')
            && uri.query().is_none()
    })
}

impl Trace {
    /// Whose certificate is believed at an `https://` collector, as the file is
    /// now.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn trust(&self) -> Result<Trust, String> {
        if self.otlp_ca.as_os_str().is_empty() {
            return Ok(Trust::System);
        }
        let file = self.otlp_ca.display();
        let text = std::fs::read(&self.otlp_ca);
        let text = text.map_err(|error| format!("{file} cannot be read: {error}"))?;
        Trust::pem(&text).map_err(|error| format!("{file}: {error}"))
    }

    /// What requests to the collector carry, each value marked as secret.
    ///
    /// # Errors
    /// Which header cannot be sent, without its value.
    pub fn headers(&self) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.otlp_headers {
            let parsed = HeaderName::from_bytes(name.as_bytes());
            let parsed = parsed.map_err(|_| format!("{name:?} is no name of a header"))?;
            if OURS.contains(&parsed) {
                return Err(format!("{name:?} is not for the configuration to say"));
            }
            let wrong = || format!("the value of {name:?} cannot stand in a header");
            let mut value = HeaderValue::from_bytes(value.expose()).map_err(|_| wrong())?;
            if value.len() > MOST_VALUE {
                return Err(format!("the value of {name:?} has {} bytes", value.len()));
            }
            value.set_sensitive(true);
            if headers.insert(parsed, value).is_some() {
                return Err(format!("{name:?} is there twice, in another case"));
            }
        }
        Ok(headers)
    }

    /// Whether others on the network can read what the collector is sent.
    #[must_use]
    pub fn is_in_clear(&self) -> bool {
        let Ok(uri) = self.otlp_endpoint.parse::<Uri>() else { return false };
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let local = host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
        uri.scheme_str() == Some("http") && !local
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(headers: &[(&str, &str)]) -> Trace {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value)));
        Trace { otlp_headers: headers.collect(), ..Trace::default() }
    }

    #[test]
    fn headers_are_marked_as_secret_and_their_values_stand_in_no_error() {
        let headers = with(&[("Authorization", "Bearer s3cret"), ("x-scope", "live")]).headers();
        let headers = headers.expect("good ones");
        assert_eq!(headers["authorization"], "Bearer s3cret");
        assert!(headers.values().all(HeaderValue::is_sensitive));
        assert!(!format!("{headers:?}").contains("s3cret"));
        for bad in [
            with(&[("a b", "s3cret")]),
            with(&[("a", "s3cret\r\nb: c")]),
            with(&[("Host", "s3cret")]),
            with(&[("A", "s3cret"), ("a", "s3cret")]),
            with(&[("a", &"s3cret".repeat(2_000))]),
        ] {
            let problem = bad.headers().expect_err("refused");
            assert!(!problem.contains("s3cret"), "{problem}");
        }
    }

    #[test]
    fn only_this_machine_gets_headers_without_tls_and_without_a_warning() {
        let at = |endpoint: &str| Trace { otlp_endpoint: endpoint.into(), ..Trace::default() };
        for clear in ["http://10.0.0.1:4318", "http://collector", "http://[2001:db8::1]:4318"] {
            assert!(is_base(clear) && at(clear).is_in_clear(), "{clear}");
        }
        for not in ["http://127.0.0.1:4318", "http://[::1]", "http://localhost", "https://c:1"] {
            assert!(is_base(not) && !at(not).is_in_clear(), "{not}");
        }
        for no_base in ["collector:4318", "grpc://c", "http://", "http://u:p@c", "https://c?x=1"] {
            assert!(!is_base(no_base), "{no_base}");
        }
    }
}
