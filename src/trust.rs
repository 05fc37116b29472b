//! Which servers a client believes: publishers and viewers alike.

use std::error::Error as StdError;
use std::sync::{Arc, PoisonError, RwLock};
use std::{fmt, io};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// Whose certificates are accepted, over QUIC and TLS.
#[derive(Clone, Default)]
pub enum Trust {
    /// Those that the roots of this machine vouch for. The default.
    #[default]
    System,
    /// Those that these roots vouch for, in DER.
    Roots(Vec<Vec<u8>>),
    /// Those with one of these SHA-256 hashes over their DER, whatever their name
    /// and dates: for development, where a server makes its own and prints it.
    Sha256(Hashes),
    /// Any. Whoever is in between can read and change everything.
    Anything,
}

/// SHA-256 hashes of certificates. Clones share them, so that a server which got
/// another certificate can be believed without connecting anew.
#[derive(Debug, Clone, Default)]
pub struct Hashes(Arc<RwLock<Vec<[u8; 32]>>>);

impl Hashes {
    /// Believes these from now on, and no others.
    pub fn set(&self, hashes: Vec<[u8; 32]>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = hashes;
    }

    fn has(&self, hash: &[u8; 32]) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(hash)
    }

    fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl From<Vec<[u8; 32]>> for Hashes {
    fn from(hashes: Vec<[u8; 32]>) -> Self {
        Self(Arc::new(RwLock::new(hashes)))
    }
}

impl Trust {
    /// The roots of a PEM file.
    ///
    /// # Errors
    /// What is wrong with it, for people; a file without a certificate is wrong.
    pub fn pem(text: &[u8]) -> Result<Self, String> {
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
        let roots = roots.map_err(|error| error.to_string())?;
        if roots.is_empty() {
            return Err("no certificate in it".to_owned());
        }
        Ok(Self::Roots(roots.into_iter().map(|root| root.to_vec()).collect()))
    }

    /// A TLS client that believes so and agrees on one of these protocols (RFC 7301;
    /// none: it names none).
    ///
    /// # Errors
    /// rustls' own, if it cannot be set up.
    pub fn client(&self, alpn: &[&[u8]]) -> Result<ClientConfig, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = match self {
            Trust::System => builder.with_root_certificates(roots(
                rustls_native_certs::load_native_certs().certs.into_iter(),
            )),
            Trust::Roots(certificates) => {
                let certificates = certificates.iter().cloned().map(CertificateDer::from);
                builder.with_root_certificates(roots(certificates))
            }
            Trust::Sha256(hashes) => {
                let pinned = Pinned { hashes: Some(hashes.clone()), provider };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(pinned))
            }
            Trust::Anything => {
                let pinned = Pinned { hashes: None, provider };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(pinned))
            }
        };
        let mut client = builder.with_no_client_auth();
        client.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        // A join's token must not be replayed.
        client.enable_early_data = false;
        Ok(client)
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trust::System => f.write_str("System"),
            Trust::Roots(roots) => write!(f, "Roots({})", roots.len()),
            Trust::Sha256(hashes) => write!(f, "Sha256({})", hashes.len()),
            Trust::Anything => f.write_str("Anything"),
        }
    }
}

/// Whether `error` comes from a certificate that is not believed.
pub(crate) fn is_distrust(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // An `io::Error` shows what is behind that which it wraps, not that itself.
        if let Some(inner) = error.downcast_ref().and_then(io::Error::get_ref) {
            return is_distrust(inner);
        }
        if matches!(error.downcast_ref(), Some(Error::InvalidCertificate(_))) {
            return true;
        }
        next = error.source();
    }
    false
}

/// One that cannot be read is left out: it vouches for nobody.
fn roots(certificates: impl Iterator<Item = CertificateDer<'static>>) -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates);
    store
}

/// Accepts certificates by their hash; without hashes, all.
#[derive(Debug)]
struct Pinned {
    hashes: Option<Hashes>,
    provider: Arc<CryptoProvider>,
}

/// SHA-256.
fn hash(bytes: &[u8]) -> Option<[u8; 32]> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13()?;
    suite.common.hash_provider.hash(bytes).as_ref().try_into().ok()
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.hashes {
            Some(hashes) if !hash(end_entity).is_some_and(|hash| hashes.has(&hash)) => {
                let error = CertificateError::ApplicationVerificationFailure;
                Err(Error::InvalidCertificate(error))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> rcgen::CertifiedKey<rcgen::KeyPair> {
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap()
    }

    fn accepted(trust: &Trust, der: &CertificateDer<'_>) -> bool {
        let hashes = match trust {
            Trust::Sha256(hashes) => Some(hashes.clone()),
            _ => None,
        };
        let pinned = Pinned { hashes, provider: Arc::new(aws_lc_rs::default_provider()) };
        let name = ServerName::try_from("any.example").unwrap();
        pinned.verify_server_cert(der, &[], &name, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn a_pinned_certificate_is_known_by_its_hash_alone() {
        let (one, other) = (certificate(), certificate());
        let hash = hash(one.cert.der()).unwrap();
        let hashes = Hashes::from(vec![[7; 32], hash]);
        let trust = Trust::Sha256(hashes.clone());
        assert!(accepted(&trust, one.cert.der()));
        assert!(!accepted(&trust, other.cert.der()));
        hashes.set(vec![super::hash(other.cert.der()).unwrap()]);
        assert!(!accepted(&trust, one.cert.der()) && accepted(&trust, other.cert.der()));
        assert!(!accepted(&Trust::Sha256(Hashes::default()), one.cert.der()), "none is none");
        assert!(accepted(&Trust::Anything, other.cert.der()));
        let empty = super::hash(b"").unwrap();
        assert_eq!(empty[..4], [0xe3, 0xb0, 0xc4, 0x42], "SHA-256 of nothing");
    }

    #[test]
    fn distrust_is_found_however_deep_it_is_wrapped() {
        let wrapped = |error: Error| io::Error::other(io::Error::other(error));
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert!(is_distrust(&unknown()) && is_distrust(&wrapped(unknown())));
        assert!(!is_distrust(&wrapped(Error::DecryptError)));
        assert!(!is_distrust(&io::Error::from(io::ErrorKind::ConnectionRefused)));
    }

    #[test]
    fn roots_are_read_from_pem() {
        let Trust::Roots(roots) = Trust::pem(certificate().cert.pem().as_bytes()).unwrap() else {
            panic!()
        };
        assert_eq!(roots.len(), 1);
        assert!(Trust::pem(b"nothing").is_err());
        assert!(Trust::pem(b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----").is_err());
        for trust in [Trust::System, Trust::Roots(roots)] {
            let client = trust.client(&[b"tidegate/1"]).unwrap();
            assert_eq!(client.alpn_protocols, [b"tidegate/1"]);
        }
    }
}
