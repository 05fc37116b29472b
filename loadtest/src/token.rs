//! Tokens for viewers and publishers, signed as the server expects them.

use anyhow::{Context, Result};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use crate::sys;

/// Long enough for any run.
const TTL_SECS: u64 = 6 * 3600;

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    exp: u64,
    role: &'a str,
    rooms: &'a [&'a str],
}

/// Signs with HS256.
pub(crate) struct Signer {
    key: EncodingKey,
    header: Header,
    expires: u64,
}

impl Signer {
    /// With the secret's bytes.
    pub(crate) fn new(secret: &str) -> Self {
        // No key id: right for any server that has exactly one key.
        let header = Header::new(Algorithm::HS256);
        let key = EncodingKey::from_secret(secret.as_bytes());
        Self { key, header, expires: sys::wall_secs() + TTL_SECS }
    }

    /// For one viewer of one room.
    pub(crate) fn viewer(&self, user: &str, room: &str) -> Result<String> {
        self.sign(&Claims { sub: user, exp: self.expires, role: "viewer", rooms: &[room] })
    }

    /// For our publisher: any kind, any room.
    pub(crate) fn publisher(&self) -> Result<String> {
        let claims =
            Claims { sub: "loadtest", exp: self.expires, role: "publisher", rooms: &["*"] };
        self.sign(&claims)
    }

    /// The same under another name: a publishing application of its own.
    pub(crate) fn application(&self, name: &str) -> Result<String> {
        self.sign(&Claims { sub: name, exp: self.expires, role: "publisher", rooms: &["*"] })
    }

    fn sign(&self, claims: &Claims<'_>) -> Result<String> {
        jsonwebtoken::encode(&self.header, claims, &self.key).context("signing a token")
    }
}
