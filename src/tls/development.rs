//! A certificate for development, made at start.
//!
//! Browsers connect over WebTransport to a server whose certificate nobody
//! signed, if the page names its SHA-256 (`serverCertificateHashes`) and it is a
//! P-256 one that holds for at most two weeks (W3C WebTransport, section 6.10).
//! So a new one is made before the old one ends, and a page that was handed the
//! old one's hash goes on being told of it as long as that could matter.

use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;

use super::certificate::Certificate;
use crate::engine::time::Time;

/// Whom it stands for.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// It began this long ago, for clients whose clock is slow.
const BEFORE: Duration = Duration::from_secs(3_600);
/// It holds for this long; with [`BEFORE`] below the browsers' 14 days.
const AHEAD: Duration = Duration::from_secs(13 * 86_400);
/// A new one is made this long before the end.
const RENEW: Duration = Duration::from_secs(3 * 86_400);

/// Why there is none.
#[derive(Debug, Error)]
pub enum MakeError {
    /// It could not be signed.
    #[error("no certificate for development: {0}")]
    Unsigned(#[from] rcgen::Error),
    /// rustls does not take it.
    #[error("no certificate for development: {0}")]
    Unusable(#[from] rustls::Error),
}

/// A new one, for loopback.
///
/// # Errors
/// When the cryptography's library fails.
pub fn make(now: Time) -> Result<Certificate, MakeError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(NAMES.map(str::to_owned))?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "tidegate development");
    params.distinguished_name = name;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let at = |time: Time| date_time_ymd(1970, 1, 1) + time.since(Time::default());
    // Certificates know whole seconds.
    let now = Time::from_millis(now.as_millis() / 1_000 * 1_000);
    params.not_before = at(now - BEFORE);
    params.not_after = at(now + AHEAD);
    let chain = vec![params.self_signed(&key)?.der().clone()];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Certificate::new(chain, key)?)
}

/// Whether it is time for a new one.
#[must_use]
pub fn is_due(current: &Certificate, now: Time) -> bool {
    now + RENEW >= current.expires
}

#[cfg(test)]
mod tests {
    use rustls::client::verify_server_name;
    use rustls::pki_types::ServerName;
    use rustls::server::ParsedCertificate;

    use super::*;

    #[test]
    fn it_is_what_browsers_ask_of_a_certificate_named_by_its_hash() {
        let now = Time::from_millis(1_800_000_000_123);
        let made = make(now).expect("made");
        assert!(made.expires.since(made.begins) <= Duration::from_secs(14 * 86_400));
        assert!(made.begins < now - Duration::from_secs(3_000), "slow clocks are allowed for");
        assert!(made.expires > now + Duration::from_secs(12 * 86_400));
        let der = &made.key.cert[0];
        let parsed = ParsedCertificate::try_from(der).expect("parsed");
        for name in NAMES {
            let name = ServerName::try_from(name).expect("a name");
            assert!(verify_server_name(&parsed, &name).is_ok(), "{name:?}");
        }
        // id-ecPublicKey and prime256v1 (RFC 5480, section 2.1.1).
        let p256 = [
            &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01][..],
            &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
        ]
        .concat();
        assert!(der.windows(p256.len()).any(|window| window == p256));
    }

    #[test]
    fn a_new_one_is_due_days_before_the_end_and_not_sooner() {
        let now = Time::from_millis(1_800_000_000_000);
        let made = make(now).expect("made");
        let days = |days: u64| now + Duration::from_secs(days * 86_400);
        assert!(!is_due(&made, now) && !is_due(&made, days(9)));
        assert!(is_due(&made, days(10)) && is_due(&made, days(13)));
        let next = make(days(10)).expect("made");
        assert_ne!(made.sha256, next.sha256);
        assert!(next.expires > made.expires);
    }
}
