//! The inside of a token: what its claims say, and how new ones are written.

use std::time::Duration;

use jsonwebtoken::Header;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{AuthError, Grant, Role, RoomGrants};
use crate::config::{KeyMaterial, MAX_USER_BYTES};
use crate::engine::time::Time;

/// Longest name of a client type, in bytes.
const MAX_CLIENT_BYTES: usize = 32;

/// What a new token says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claims {
    /// Who its bearer is, 1 to 128 bytes.
    pub user: String,
    /// What it may do.
    pub role: Role,
    /// In which rooms: names, prefixes with `*` at their end, or `*`.
    pub rooms: Vec<String>,
    /// What sort of client its bearer uses, 1 to 32 bytes: `ios`, `web`.
    pub client: Option<String>,
}

/// Why a token is not minted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MintError {
    /// Only public keys are configured, and those do not sign.
    #[error("no shared secret is configured, so there is nothing to sign with")]
    NoSecret,
    /// The token would be refused.
    #[error("{0}")]
    Refused(#[from] AuthError),
    /// The token would be longer than `auth.max_token_bytes`.
    #[error("the token would be longer than auth.max_token_bytes")]
    TooLarge,
    /// The signature could not be made.
    #[error("signing failed")]
    Signing,
}

/// Claims as received. Seconds are fractional, as RFC 7519 section 2 allows.
#[derive(Deserialize)]
pub(super) struct Received {
    sub: Option<String>,
    exp: Option<f64>,
    nbf: Option<f64>,
    aud: Option<Audience>,
    iss: Option<String>,
    role: Option<String>,
    #[serde(default)]
    rooms: Vec<String>,
    client: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Reads claims whose signature was found good.
pub(super) fn parse(payload: &[u8]) -> Result<Received, AuthError> {
    serde_json::from_slice(payload).map_err(|_| AuthError::BadClaims)
}

impl Received {
    /// Checks `aud` and `iss`. RFC 7519 section 4.1.3: a token that names an
    /// audience is refused by whoever is not in it, us without a name included.
    pub(super) fn check_addressee(
        &self,
        audience: Option<&str>,
        issuer: Option<&str>,
    ) -> Result<(), AuthError> {
        let for_us = match (&self.aud, audience) {
            (None, None) => true,
            (Some(Audience::One(name)), Some(us)) => name == us,
            (Some(Audience::Many(names)), Some(us)) => names.iter().any(|name| name == us),
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !for_us {
            return Err(AuthError::WrongAudience);
        }
        if issuer.is_some_and(|issuer| self.iss.as_deref() != Some(issuer)) {
            return Err(AuthError::WrongIssuer);
        }
        Ok(())
    }

    /// Checks the times and everything that becomes part of the grant.
    pub(super) fn grant(self, now: Time, leeway: Duration) -> Result<Grant, AuthError> {
        let expires = time(self.exp.ok_or(AuthError::MissingExpiry)?) + leeway;
        if now >= expires {
            return Err(AuthError::Expired);
        }
        if self.nbf.is_some_and(|nbf| now + leeway < time(nbf)) {
            return Err(AuthError::NotYetValid);
        }
        let user = self.sub.ok_or(AuthError::BadSubject)?;
        check_user(&user)?;
        let role = self.role.as_deref().map_or(Ok(Role::default()), str::parse)?;
        let rooms = RoomGrants::parse(&self.rooms)?;
        check_client(self.client.as_deref())?;
        let client = self.client.map(Into::into);
        Ok(Grant { user: user.into(), role, client, rooms, expires })
    }
}

fn check_user(user: &str) -> Result<(), AuthError> {
    let fits = (1..=MAX_USER_BYTES).contains(&user.len());
    if fits { Ok(()) } else { Err(AuthError::BadSubject) }
}

fn check_client(client: Option<&str>) -> Result<(), AuthError> {
    let fits = client.is_none_or(|client| (1..=MAX_CLIENT_BYTES).contains(&client.len()));
    if fits { Ok(()) } else { Err(AuthError::BadClient) }
}

/// Seconds since 1970. The cast saturates: negative is 1970, huge is the end of
/// time.
fn time(seconds: f64) -> Time {
    Time::from_micros((seconds * 1e6) as u64)
}

#[derive(Serialize)]
struct Written<'a> {
    sub: &'a str,
    role: Role,
    rooms: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<&'a str>,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
}

/// Signs `claims` with `key`, which holds a secret.
pub(super) fn mint(
    claims: &Claims,
    ttl: Duration,
    now: Time,
    (aud, iss): (Option<&str>, Option<&str>),
    key: &KeyMaterial,
) -> Result<String, MintError> {
    check_user(&claims.user)?;
    RoomGrants::parse(&claims.rooms)?;
    check_client(claims.client.as_deref())?;
    let sign = key.sign.as_ref().ok_or(MintError::NoSecret)?;
    let seconds = |time: Time| time.as_millis() / 1_000;
    let written = Written {
        sub: &claims.user,
        role: claims.role,
        rooms: &claims.rooms,
        client: claims.client.as_deref(),
        iat: seconds(now),
        exp: seconds(now + ttl),
        aud,
        iss,
    };
    let header = Header { kid: Some(key.id.clone()), ..Header::new(key.algorithm) };
    jsonwebtoken::encode(&header, &written, sign).map_err(|_| MintError::Signing)
}
