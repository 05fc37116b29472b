//! Tokens: who may join, publish and operate.
//!
//! A token is a JSON Web Token (RFC 7519) in compact form. Its key is chosen by
//! `kid`, the key alone decides the algorithm, and the signature is checked
//! before any claim is read. That order is what keeps out the classic attacks:
//! `alg: none`, and a public key taken for a shared secret. `now` is handed in,
//! so a test can be at any time and the expiry check is ours, not a library's.
//!
//! Rooms that a token names are patterns: a name, a prefix with `*` at its end,
//! or `*` for all. No rooms means no rooms.

mod claims;
mod dev_key;
mod grant;
mod token;

use std::time::Duration;

use thiserror::Error;

use crate::config::{Auth, ConfigError, KeyMaterial, load_keys};
use crate::engine::time::Time;

pub use claims::{Claims, MintError};
pub use dev_key::{DevKey, DevKeyError};
pub use grant::{Grant, Role, RoomGrants};

/// Checks tokens, and mints them where it holds a shared secret. Share one behind
/// an `Arc` between all threads; nothing in it changes.
pub struct Authenticator {
    keys: Vec<KeyMaterial>,
    audience: Option<String>,
    issuer: Option<String>,
    leeway: Duration,
    max_token_bytes: usize,
}

/// Why a token is refused. No variant holds anything of the token or of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AuthError {
    /// Longer than `auth.max_token_bytes`; it was not read.
    #[error("the token is too long")]
    TooLarge,
    /// Not three base64url parts, or a header that is not a JSON object with
    /// `alg`.
    #[error("this is not a token")]
    Malformed,
    /// `alg` is `none` or one that no key can have.
    #[error("tokens with this algorithm are not accepted")]
    UnsupportedAlgorithm,
    /// The header asks for an extension (`crit`) that we do not have.
    #[error("the token needs an extension that is not supported")]
    UnsupportedExtension,
    /// No `kid`, though there are several keys.
    #[error("the token does not name its key (kid)")]
    MissingKeyId,
    /// No key has this `kid`.
    #[error("the token names a key that is not known here")]
    UnknownKey,
    /// `alg` is not the algorithm of the key.
    #[error("the token's algorithm is not that of its key")]
    WrongAlgorithm,
    /// The signature is not of this key over these bytes.
    #[error("the token's signature is wrong")]
    BadSignature,
    /// The claims are not a JSON object of the expected types.
    #[error("the token's claims cannot be read")]
    BadClaims,
    /// No `sub`, or not 1 to 128 bytes.
    #[error("the token names no user of 1 to 128 bytes (sub)")]
    BadSubject,
    /// `role` is not viewer, publisher or operator.
    #[error("the token's role is not viewer, publisher or operator")]
    BadRole,
    /// An entry of `rooms` is no room name, prefix with `*`, or `*`.
    #[error("the token's rooms hold what is neither a room name nor a prefix with *")]
    BadRooms,
    /// `client` is not 1 to 32 bytes.
    #[error("the token names a client that is not 1 to 32 bytes long")]
    BadClient,
    /// No `exp`: a token that never ends is not accepted.
    #[error("the token has no expiry (exp)")]
    MissingExpiry,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` lies ahead.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `aud` does not name us.
    #[error("the token is for another audience")]
    WrongAudience,
    /// `iss` is not the configured issuer.
    #[error("the token is from another issuer")]
    WrongIssuer,
}

impl AuthError {
    /// Its name in answers to clients and in metrics.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::TooLarge => "token_too_large",
            Self::Malformed => "token_malformed",
            Self::UnsupportedAlgorithm => "token_unsupported_algorithm",
            Self::UnsupportedExtension => "token_unsupported_extension",
            Self::MissingKeyId => "token_missing_key_id",
            Self::UnknownKey => "token_unknown_key",
            Self::WrongAlgorithm => "token_wrong_algorithm",
            Self::BadSignature => "token_bad_signature",
            Self::BadClaims => "token_bad_claims",
            Self::BadSubject => "token_bad_subject",
            Self::BadRole => "token_bad_role",
            Self::BadRooms => "token_bad_rooms",
            Self::BadClient => "token_bad_client",
            Self::MissingExpiry => "token_missing_expiry",
            Self::Expired => "token_expired",
            Self::NotYetValid => "token_not_yet_valid",
            Self::WrongAudience => "token_wrong_audience",
            Self::WrongIssuer => "token_wrong_issuer",
        }
    }
}

impl Authenticator {
    /// Reads and prepares every key. `dev_key` is used only if `auth` configures
    /// none, so that a forgotten development key opens no configured server.
    ///
    /// # Errors
    /// Keys that cannot be used, or no key at all.
    pub fn new(auth: &Auth, dev_key: Option<DevKey>) -> Result<Self, Vec<ConfigError>> {
        let mut keys = load_keys(auth)?;
        if keys.is_empty() {
            let Some(dev_key) = dev_key else {
                let error = ConfigError::new("auth.keys", "there is no key to check tokens with");
                return Err(vec![error.allowed("auth.keys or auth.jwks_file")]);
            };
            keys.push(dev_key.material());
        }
        Ok(Self {
            keys,
            audience: auth.audience.clone(),
            issuer: auth.issuer.clone(),
            leeway: Duration::from_secs(auth.leeway_s),
            max_token_bytes: auth.max_token_bytes,
        })
    }

    /// What `token` allows at `now`. Costs a few microseconds for HS256.
    ///
    /// # Errors
    /// [`AuthError`] says which rule the token breaks, the first one found.
    pub fn verify(&self, token: &str, now: Time) -> Result<Grant, AuthError> {
        if token.len() > self.max_token_bytes {
            return Err(AuthError::TooLarge);
        }
        let parts = token::split(token)?;
        let key = self.choose_key(&parts)?;
        let payload = parts.verify(key)?;
        let claims = claims::parse(&payload)?;
        claims.check_addressee(self.audience.as_deref(), self.issuer.as_deref())?;
        claims.grant(now, self.leeway)
    }

    /// A token with `claims` that holds for `ttl` from `now`, signed with the
    /// first shared secret.
    ///
    /// # Errors
    /// There is no shared secret, or `verify` would refuse the claims.
    pub fn mint(&self, claims: &Claims, ttl: Duration, now: Time) -> Result<String, MintError> {
        let with_secret = |key: &&KeyMaterial| key.sign.is_some();
        let key = self.keys.iter().find(with_secret).ok_or(MintError::NoSecret)?;
        let addressee = (self.audience.as_deref(), self.issuer.as_deref());
        let token = claims::mint(claims, ttl, now, addressee, key)?;
        if token.len() > self.max_token_bytes {
            return Err(MintError::TooLarge);
        }
        Ok(token)
    }

    fn choose_key(&self, parts: &token::Parts<'_>) -> Result<&KeyMaterial, AuthError> {
        match (parts.key_id(), self.keys.as_slice()) {
            (Some(id), keys) => keys.iter().find(|key| key.id == id).ok_or(AuthError::UnknownKey),
            (None, [only]) => Ok(only),
            (None, _) => Err(AuthError::MissingKeyId),
        }
    }
}
