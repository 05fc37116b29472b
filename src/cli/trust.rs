//! Which server `tidegate watch` and `tidegate publish` believe.
//!
//! A server for development makes its own certificate. It gives its hash to pages
//! on the same machine (`GET /demo/certificate`), and to these commands: who could
//! answer there in the server's place could read the development key as well.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::Value;

use crate::trust::{Hashes, Trust};

/// For the answer of a server on this machine.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What to do about a certificate that is not believed.
pub(super) const HINT: &str = "\
  The server's certificate is not believed here. If the server made it for itself, say
  --certificate-sha256 HASH with the hash that it prints at start (\"development
  certificate: SHA-256 HASH\"; in the log, sha256=HASH). If an authority of your own
  signed it, say --ca FILE with that authority's certificate in PEM.";

/// Whose certificate is believed, for https://, wss:// and QUIC.
#[derive(Debug, Clone, Args)]
pub(super) struct TrustSource {
    /// Believe a certificate with this SHA-256, in base64 or hexadecimal digits.
    /// May be repeated. Absent: this machine's roots decide, and of a server on
    /// this machine its certificate for development.
    #[arg(long, value_name = "HASH", value_parser = hash)]
    certificate_sha256: Vec<[u8; 32]>,
    /// Believe what the authorities in this PEM file have signed, and nothing
    /// else.
    #[arg(long, value_name = "FILE", conflicts_with = "certificate_sha256")]
    ca: Option<PathBuf>,
    /// Believe any certificate: whoever is in between can read everything.
    #[arg(long, conflicts_with_all = ["certificate_sha256", "ca"])]
    insecure: bool,
}

fn hash(text: &str) -> Result<[u8; 32], String> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    let bytes = if digits.len() == 64 {
        let pair = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16).ok().filter(|_| !pair.starts_with('+'))
        };
        digits.chunks(2).map(pair).collect()
    } else {
        STANDARD.decode(text).ok()
    };
    let bytes: Option<[u8; 32]> = bytes.and_then(|bytes: Vec<u8>| bytes.try_into().ok());
    bytes.ok_or_else(|| "32 bytes in base64 or hexadecimal digits".to_owned())
}

/// What is believed, and where to learn of a server's next certificate.
#[derive(Debug, Clone)]
pub(super) struct Believed {
    pub(super) trust: Trust,
    development: Option<(String, Hashes)>,
}

impl Believed {
    /// Looks for the certificate of a server that was started again.
    pub(super) async fn renew(&self) {
        if let Some((url, hashes)) = &self.development
            && let Some(found) = development(url).await
        {
            hashes.set(found);
        }
    }
}

impl TrustSource {
    /// What is believed of the server at `url`.
    pub(super) async fn believed(&self, url: &str) -> anyhow::Result<Believed> {
        let settled = |trust| Ok(Believed { trust, development: None });
        if self.insecure {
            return settled(Trust::Anything);
        }
        if !self.certificate_sha256.is_empty() {
            return settled(Trust::Sha256(self.certificate_sha256.clone().into()));
        }
        if let Some(file) = &self.ca {
            let about = || format!("--ca {}", file.display());
            let text = std::fs::read(file).with_context(about)?;
            return settled(Trust::pem(&text).map_err(anyhow::Error::msg).with_context(about)?);
        }
        let uri: http::Uri = url.parse().context("--url is not a URL")?;
        let safe = matches!(uri.scheme_str(), Some("wss" | "https"));
        let port = uri.port_u16().unwrap_or(if safe { 443 } else { 80 });
        let Some(host) = uri.host().filter(|host| is_loopback(host)) else {
            return settled(Trust::System);
        };
        let url = format!("http://{host}:{port}/demo/certificate");
        match development(&url).await {
            None => settled(Trust::System),
            Some(found) => {
                let hashes = Hashes::from(found);
                let development = Some((url, hashes.clone()));
                Ok(Believed { trust: Trust::Sha256(hashes), development })
            }
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The hashes of the certificates that the server on this machine made for itself.
async fn development(url: &str) -> Option<Vec<[u8; 32]>> {
    let client = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build().ok()?;
    let answer = client.get(url).send().await.ok()?.error_for_status().ok()?;
    let hashes = hashes(&answer.json::<Value>().await.ok()?);
    (!hashes.is_empty()).then_some(hashes)
}

/// `{"sha256": …}`, one or a list, and whatever else.
fn hashes(answer: &Value) -> Vec<[u8; 32]> {
    let read = |value: &Value| value.as_str().and_then(|text| hash(text).ok());
    match answer {
        Value::Object(fields) => fields.values().flat_map(hashes).collect(),
        Value::Array(values) => values.iter().flat_map(hashes).collect(),
        value => read(value).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_hash_is_read_in_both_ways_that_servers_and_tools_print_it() {
        let bytes: [u8; 32] = std::array::from_fn(|i| i as u8 * 7);
        let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
        let base64 = STANDARD.encode(bytes);
        for text in [digits.concat(), digits.join(":"), base64.clone()] {
            assert_eq!(hash(&text), Ok(bytes), "{text}");
        }
        for text in ["", "abc", &base64[4..], &"+1".repeat(32), &"zz".repeat(32)] {
            assert!(hash(text).is_err(), "{text}");
        }
        let answer = json!({"sha256": base64, "expires_ms": 5, "before": [{"sha256": base64}]});
        assert_eq!(hashes(&answer), [bytes, bytes]);
        assert!(hashes(&json!({"error": {"code": "no_certificate"}})).is_empty());
    }

    #[tokio::test]
    async fn a_file_of_authorities_is_read_and_named_when_it_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        let certificate = rcgen::generate_simple_self_signed(vec!["edge".to_owned()]);
        let pem = certificate.expect("a certificate").cert.pem();
        let source =
            TrustSource { certificate_sha256: Vec::new(), ca: Some(file.clone()), insecure: false };
        let believed = async || source.believed("wss://edge").await.map(|believed| believed.trust);
        let told = |error: anyhow::Error| format!("{error:#}");
        let missing = believed().await.map_err(told).expect_err("there is no file");
        assert!(missing.starts_with("--ca ") && missing.contains("No such file"), "{missing}");
        std::fs::write(&file, "nothing").expect("written");
        let empty = believed().await.map_err(told).expect_err("nothing in it");
        assert!(empty.ends_with("ca.pem: no certificate in it"), "{empty}");
        std::fs::write(&file, pem).expect("written");
        assert!(matches!(believed().await, Ok(Trust::Roots(roots)) if roots.len() == 1));
    }

    #[test]
    fn only_this_machine_is_asked() {
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "10.0.0.1", "[::2]", "edge"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
