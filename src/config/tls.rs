//! `[tls]`: certificates, and connections without.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::section;
use super::validate::Check;
use super::{Config, Server};
use crate::clock::Clock;
use crate::tls::certificate::Files;

section! {
/// `[tls]`: certificates of the listening port, for HTTPS, WebSocket over TLS,
/// gRPC over TLS and QUIC. Without them a server on loopback makes one for
/// development, and any other speaks no TLS.
pub struct Tls {
    /// PEM file with the certificate chain, the server's own first. Relative to
    /// the working directory. Default none.
    pub certificate: PathBuf = PathBuf::new(),
    /// PEM file with its private key. Default none.
    pub key: PathBuf = PathBuf::new(),
    /// Milliseconds between two looks whether the files have changed; SIGHUP asks
    /// for one at once. Default 10 s.
    pub reload_ms: u64 = 10_000,
    /// Whether connections without TLS are taken where there is a certificate:
    /// `always`, `loopback` (from this machine only) or `never`. Default
    /// `loopback`: tokens must not cross a network in clear by mistake. A server
    /// without a certificate always takes them.
    pub plaintext: Plaintext = Plaintext::Loopback,
}
}

/// Who may connect without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plaintext {
    /// Everyone.
    Always,
    /// Who connects from this machine, such as a proxy that ends TLS itself.
    Loopback,
    /// Nobody.
    Never,
}

impl Tls {
    /// Where certificate and key are, if they are in files.
    #[must_use]
    pub fn files(&self) -> Option<Files> {
        let given = !self.certificate.as_os_str().is_empty();
        given.then(|| Files { certificate: self.certificate.clone(), key: self.key.clone() })
    }

    /// Time between two looks at them.
    #[must_use]
    pub fn reload(&self) -> Duration {
        Duration::from_millis(self.reload_ms)
    }
}

impl Server {
    /// Whether only this machine can connect as viewer or publisher.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.listen.ip().to_canonical().is_loopback()
    }
}

/// Ranges, what contradicts, and whether the files are right as they are now.
pub(super) fn check(config: &Config, check: &mut Check) {
    let tls = &config.tls;
    check.range("tls.reload_ms", tls.reload_ms, 100..=86_400_000);
    let (certificate, key) = (tls.certificate.as_os_str(), tls.key.as_os_str());
    if certificate.is_empty() != key.is_empty() {
        let (missing, other) =
            if key.is_empty() { ("tls.key", "certificate") } else { ("tls.certificate", "key") };
        check.fail(missing, "is missing", format!("a file, as tls.{other} is given; or neither"));
    } else if let Some(files) = tls.files()
        && let Err(error) = files.load(Clock::start().now())
    {
        let path = if error.is_about_key() { "tls.key" } else { "tls.certificate" };
        check.fail(path, error.to_string(), "a valid certificate and its key, in PEM");
    }
    if tls.plaintext == Plaintext::Never && certificate.is_empty() && !config.server.is_local() {
        let allowed = "\"always\" or \"loopback\", or tls.certificate and tls.key";
        check.fail("tls.plaintext", "is \"never\" while there is no certificate", allowed);
    }
}
