//! A certificate for a server that is not on loopback, where it would make its
//! own.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

use crate::trust;

/// Writes a self-signed P-256 certificate for `localhost` and `address`, and its
/// key, into a directory; their files.
pub(crate) fn write(dir: &Path, address: IpAddr) -> Result<(PathBuf, PathBuf)> {
    let names = vec![trust::SERVER_NAME.to_owned(), address.to_string()];
    let params = CertificateParams::new(names).context("names of the certificate")?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("key of the certificate")?;
    let certificate = params.self_signed(&key).context("signing the certificate")?;
    let (certificate_file, key_file) = (dir.join("certificate.pem"), dir.join("key.pem"));
    let certificate = pem("CERTIFICATE", certificate.der());
    fs::write(&certificate_file, certificate).context("writing the certificate")?;
    let key = pem("PRIVATE KEY", key.serialized_der());
    fs::write(&key_file, key).context("writing the key")?;
    Ok((certificate_file, key_file))
}

/// DER as text (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|&byte| char::from(byte)));
        out.push('\n');
    }
    out + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use super::*;

    #[test]
    fn certificate_and_key_are_read_back_and_belong_together() {
        let dir = std::env::temp_dir().join(format!("loadtest-certificate-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (certificate, key) = write(&dir, IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
        let certificate = CertificateDer::from_pem_file(certificate).unwrap();
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let config = rustls::ServerConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key);
        assert!(config.is_ok(), "{:?}", config.err());
    }
}
