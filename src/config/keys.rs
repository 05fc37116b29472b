//! Key material: shared secrets and public keys, read and checked once.
//!
//! Both the check of a configuration and [`crate::auth`] use it, so that what is
//! accepted here is what tokens are verified with. A key is bound to its one
//! algorithm, and nothing a token says changes that.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use serde::Deserialize;

use super::error::ConfigError;
use super::{Auth, KeyAlgorithm, KeyConfig};

/// Shortest shared secret, in bytes: RFC 7518 section 3.2 wants HS256 keys as
/// long as the hash.
const MIN_SECRET_BYTES: usize = 32;
/// Longest key id, in bytes.
const MAX_KEY_ID_BYTES: usize = 128;
/// Keys in all. A token is compared with each id in turn.
const MAX_KEYS: usize = 64;
/// Bytes of a secret or key-set file.
const MAX_FILE_BYTES: u64 = 1 << 18;

/// One key, prepared.
#[derive(Clone)]
pub struct KeyMaterial {
    /// The `kid` by which tokens name it.
    pub id: String,
    /// The only algorithm it is used with.
    pub algorithm: Algorithm,
    /// For verifying.
    pub verify: DecodingKey,
    /// For signing; public keys have none.
    pub sign: Option<EncodingKey>,
}

impl KeyMaterial {
    /// A shared secret for HS256.
    #[must_use]
    pub fn shared_secret(id: impl Into<String>, secret: &[u8]) -> Self {
        Self {
            id: id.into(),
            algorithm: Algorithm::HS256,
            verify: DecodingKey::from_secret(secret),
            sign: Some(EncodingKey::from_secret(secret)),
        }
    }
}

/// Reads every configured key: secrets first, then the key set.
///
/// # Errors
/// Every key that is not usable, with the reason; never the key.
pub fn load(auth: &Auth) -> Result<Vec<KeyMaterial>, Vec<ConfigError>> {
    let mut keys = Vec::new();
    let mut errors = Vec::new();
    let mut take = |path: String, key: Result<KeyMaterial, ConfigError>| match key {
        Ok(key) => keys.push((path, key)),
        Err(error) => errors.push(error),
    };
    for (index, config) in auth.keys.iter().enumerate() {
        let path = format!("auth.keys[{index}]");
        take(format!("{path}.id"), shared_secret(&path, config));
    }
    if let Some(file) = &auth.jwks_file {
        match read_key_set(file) {
            Ok(set) => {
                for (index, key) in set.keys.iter().enumerate() {
                    let name = describe(index, key);
                    take("auth.jwks_file".to_owned(), public_key(&name, key));
                }
            }
            Err(error) => errors.push(error),
        }
    }
    check_ids(&keys, &mut errors);
    if errors.is_empty() { Ok(keys.into_iter().map(|(_, key)| key).collect()) } else { Err(errors) }
}

fn check_ids(keys: &[(String, KeyMaterial)], errors: &mut Vec<ConfigError>) {
    for (index, (path, key)) in keys.iter().enumerate() {
        if keys[..index].iter().any(|(_, earlier)| earlier.id == key.id) {
            let problem = format!("another key has the id {:?} too", key.id);
            errors.push(ConfigError::new(path, problem).allowed("ids that differ"));
        }
    }
    if keys.len() > MAX_KEYS {
        let problem = format!("there are {} keys", keys.len());
        errors.push(ConfigError::new("auth.keys", problem).allowed(format!("{MAX_KEYS} keys")));
    }
}

fn shared_secret(path: &str, config: &KeyConfig) -> Result<KeyMaterial, ConfigError> {
    if !is_key_id(&config.id) {
        let problem = if config.id.is_empty() { "is missing" } else { "is not a key id" };
        return Err(ConfigError::new(format!("{path}.id"), problem).allowed(key_id_rule()));
    }
    let (field, secret) = match (&config.secret, &config.secret_file) {
        (Some(secret), None) => (format!("{path}.secret"), secret.expose().to_vec()),
        (None, Some(file)) => {
            let field = format!("{path}.secret_file");
            let mut secret = read_bytes(&field, file)?;
            let end = secret.iter().rposition(|b| !b"\r\n".contains(b)).map_or(0, |last| last + 1);
            secret.truncate(end);
            (field, secret)
        }
        (Some(_), Some(_)) => {
            return Err(ConfigError::new(path, "has both secret and secret_file").allowed("one"));
        }
        (None, None) => {
            return Err(ConfigError::new(format!("{path}.secret"), "is missing")
                .allowed("secret or secret_file"));
        }
    };
    if secret.len() < MIN_SECRET_BYTES {
        let problem = format!("has {} bytes", secret.len());
        let allowed = format!("at least {MIN_SECRET_BYTES} bytes, like `openssl rand -hex 32`");
        return Err(ConfigError::new(field, problem).allowed(allowed));
    }
    match config.algorithm {
        KeyAlgorithm::Hs256 => Ok(KeyMaterial::shared_secret(&config.id, &secret)),
    }
}

fn is_key_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= MAX_KEY_ID_BYTES && id.bytes().all(|b| b.is_ascii_graphic())
}

fn key_id_rule() -> String {
    format!("1 to {MAX_KEY_ID_BYTES} visible ASCII characters")
}

fn read_bytes(path: &str, file: &Path) -> Result<Vec<u8>, ConfigError> {
    let fail =
        |what: String| ConfigError::new(path, format!("cannot read {}: {what}", file.display()));
    let size = fs::metadata(file).map_err(|error| fail(error.to_string()))?.len();
    if size > MAX_FILE_BYTES {
        return Err(fail(format!("it has {size} bytes")).allowed(format!("{MAX_FILE_BYTES} bytes")));
    }
    fs::read(file).map_err(|error| fail(error.to_string()))
}

/// RFC 7517: a JSON Web Key Set. Members that we do not use are ignored.
#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    /// Only private keys have it.
    d: Option<serde::de::IgnoredAny>,
}

fn read_key_set(file: &Path) -> Result<KeySet, ConfigError> {
    let path = "auth.jwks_file";
    let bytes = read_bytes(path, file)?;
    let set: KeySet = serde_json::from_slice(&bytes).map_err(|error| {
        ConfigError::new(path, format!("{} is not a JSON Web Key Set: {error}", file.display()))
    })?;
    if set.keys.is_empty() {
        return Err(ConfigError::new(path, format!("{} holds no keys", file.display())));
    }
    Ok(set)
}

fn describe(index: usize, key: &Jwk) -> String {
    match &key.kid {
        Some(kid) => format!("key {index} ({kid:?})"),
        None => format!("key {index}"),
    }
}

fn public_key(name: &str, key: &Jwk) -> Result<KeyMaterial, ConfigError> {
    let fail = |what: &str, allowed: &str| {
        ConfigError::new("auth.jwks_file", format!("{name} {what}")).allowed(allowed)
    };
    let Some(id) = key.kid.clone().filter(|id| is_key_id(id)) else {
        return Err(fail("has no usable kid", &key_id_rule()));
    };
    if key.d.is_some() {
        return Err(fail("is a private key", "public keys only: whoever reads it can sign"));
    }
    if key.usage.as_deref().is_some_and(|usage| usage != "sig") {
        return Err(fail("is not for signatures", "use = \"sig\", or none"));
    }
    let (algorithm, verify) = match key.alg.as_deref() {
        Some("RS256") => (Algorithm::RS256, rsa(key)),
        Some("ES256") => (Algorithm::ES256, p256(key)),
        Some("EdDSA" | "Ed25519") => (Algorithm::EdDSA, ed25519(key)),
        Some(_) => return Err(fail("has an alg we do not take", "RS256, ES256, EdDSA")),
        None => return Err(fail("has no alg", "RS256, ES256, EdDSA")),
    };
    match verify {
        Some(verify) => Ok(KeyMaterial { id, algorithm, verify, sign: None }),
        None => Err(fail(
            "does not fit its alg",
            "RS256: kty RSA with n of 2048 to 8192 bits and odd e; ES256: kty EC, crv P-256, x and \
             y of 32 bytes; EdDSA: kty OKP, crv Ed25519, x of 32 bytes",
        )),
    }
}

fn decode(text: Option<&String>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text?).ok()
}

fn rsa(key: &Jwk) -> Option<DecodingKey> {
    let (n, e) = (decode(key.n.as_ref())?, decode(key.e.as_ref())?);
    let significant = &n[n.iter().position(|byte| *byte != 0)?..];
    let bits = significant.len() * 8 - significant[0].leading_zeros() as usize;
    let odd = e.last().is_some_and(|last| last % 2 == 1) && e != [1];
    let fits = key.kty == "RSA" && (2_048..=8_192).contains(&bits) && odd;
    fits.then(|| DecodingKey::from_rsa_raw_components(&n, &e))
}

fn p256(key: &Jwk) -> Option<DecodingKey> {
    let (x, y) = (decode(key.x.as_ref())?, decode(key.y.as_ref())?);
    let fits = key.kty == "EC" && key.crv.as_deref() == Some("P-256");
    // SEC 1 section 2.3.3: an uncompressed point.
    let point = [&[4], x.as_slice(), y.as_slice()].concat();
    (fits && x.len() == 32 && y.len() == 32).then(|| DecodingKey::from_ec_der(&point))
}

fn ed25519(key: &Jwk) -> Option<DecodingKey> {
    let x = decode(key.x.as_ref())?;
    let fits = key.kty == "OKP" && key.crv.as_deref() == Some("Ed25519");
    (fits && x.len() == 32).then(|| DecodingKey::from_ed_der(&x))
}
