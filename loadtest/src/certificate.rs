//! A certificate for a server that is not on loopback, where it would make its
//! own.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
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
    fs::write(&certificate_file, certificate.pem()).context("writing the certificate")?;
    fs::write(&key_file, key.serialize_pem()).context("writing the key")?;
    Ok((certificate_file, key_file))
}
