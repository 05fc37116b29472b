//! The outside of a token: three parts, a header, a signature.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::AuthError;
use crate::config::KeyMaterial;

/// A token taken apart, nothing of it believed yet.
pub(super) struct Parts<'a> {
    algorithm: Algorithm,
    key_id: Option<String>,
    /// Header and claims as they were signed.
    signed: &'a str,
    payload: &'a str,
    signature: &'a str,
}

/// The members of a JOSE header (RFC 7515 section 4.1) that we act on. Those that
/// carry a key or its address (`jwk`, `jku`, `x5c`) are among the ignored: a key
/// comes from the configuration or not at all.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    crit: Option<IgnoredAny>,
}

/// Takes `token` apart.
pub(super) fn split(token: &str) -> Result<Parts<'_>, AuthError> {
    let (signed, signature) = token.rsplit_once('.').ok_or(AuthError::Malformed)?;
    let (header, payload) = signed.split_once('.').ok_or(AuthError::Malformed)?;
    if payload.contains('.') {
        return Err(AuthError::Malformed);
    }
    let bytes = URL_SAFE_NO_PAD.decode(header).map_err(|_| AuthError::Malformed)?;
    let header: Header<'_> = serde_json::from_slice(&bytes).map_err(|_| AuthError::Malformed)?;
    let algorithm = match header.alg.as_ref() {
        "HS256" => Algorithm::HS256,
        "RS256" => Algorithm::RS256,
        "ES256" => Algorithm::ES256,
        "EdDSA" | "Ed25519" => Algorithm::EdDSA,
        _ => return Err(AuthError::UnsupportedAlgorithm),
    };
    if header.crit.is_some() {
        return Err(AuthError::UnsupportedExtension);
    }
    let key_id = header.kid.map(Cow::into_owned);
    Ok(Parts { algorithm, key_id, signed, payload, signature })
}

impl Parts<'_> {
    /// The `kid` of the header.
    pub(super) fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// Checks the signature with `key` and returns the claims, still as bytes.
    pub(super) fn verify(&self, key: &KeyMaterial) -> Result<Vec<u8>, AuthError> {
        if self.algorithm != key.algorithm {
            return Err(AuthError::WrongAlgorithm);
        }
        let signed = self.signed.as_bytes();
        // The key's algorithm, not the token's: they are equal here, and must be.
        match jsonwebtoken::crypto::verify(self.signature, signed, &key.verify, key.algorithm) {
            Ok(true) => {}
            Ok(false) | Err(_) => return Err(AuthError::BadSignature),
        }
        URL_SAFE_NO_PAD.decode(self.payload).map_err(|_| AuthError::Malformed)
    }
}
