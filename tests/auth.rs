//! Tokens as a whole: which are taken, and that every broken rule has its own
//! answer. The keys are in `fixtures`.

#![allow(clippy::unwrap_used, reason = "a failing test names its line")]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tidegate::auth::{AuthError, Authenticator, Claims, DevKey, Grant, MintError, Role};
use tidegate::config::{Auth, KeyConfig, Secret};
use tidegate::engine::ids::RoomId;
use tidegate::engine::time::Time;

const SECRET: &str = "an-example-secret-of-forty-bytes-or-more";
const OTHER_SECRET: &str = "another-secret-with-more-than-32-bytes--";
const NOW_S: u64 = 1_800_000_000;

fn now() -> Time {
    Time::from_millis(NOW_S * 1_000)
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn secret_key(id: &str, secret: &str) -> KeyConfig {
    KeyConfig { id: id.into(), secret: Some(Secret::new(secret)), ..KeyConfig::default() }
}

fn one_secret() -> Auth {
    Auth { keys: vec![secret_key("main", SECRET)], ..Auth::default() }
}

/// A secret and the three public keys of the fixtures.
fn all_keys() -> Auth {
    Auth { jwks_file: Some(fixture("jwks.json")), ..one_secret() }
}

fn authenticator(auth: &Auth) -> Authenticator {
    Authenticator::new(auth, None).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// Claims that every rule allows.
fn good() -> Value {
    json!({"sub": "mei", "exp": NOW_S + 60, "rooms": ["live:1", "pub:*"]})
}

/// `good` with `field` set to `value`, or without it if that is null.
fn with(field: &str, value: Value) -> Value {
    let mut claims = good();
    if value.is_null() {
        claims.as_object_mut().unwrap().remove(field);
    } else {
        claims[field] = value;
    }
    claims
}

fn sign(header: &Header, claims: &Value, key: &EncodingKey) -> String {
    encode(header, claims, key).unwrap()
}

fn header(algorithm: Algorithm, kid: &str) -> Header {
    Header { kid: Some(kid.into()), ..Header::new(algorithm) }
}

fn hs256(claims: &Value) -> String {
    sign(&header(Algorithm::HS256, "main"), claims, &EncodingKey::from_secret(SECRET.as_bytes()))
}

/// A token with any header at all, signed with `SECRET` as HS256.
fn with_header(header: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(&good()));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{signed}.{signature}")
}

fn verify(claims: &Value) -> Result<Grant, AuthError> {
    authenticator(&one_secret()).verify(&hs256(claims), now())
}

fn room(name: &str) -> RoomId {
    RoomId::new(name).unwrap()
}

fn pem(name: &str) -> Vec<u8> {
    fs::read(fixture(name)).unwrap()
}

fn rsa_token(kid: &str) -> String {
    let key = EncodingKey::from_rsa_pem(&pem("rsa_private.pem")).unwrap();
    sign(&header(Algorithm::RS256, kid), &good(), &key)
}

#[test]
fn a_good_token_grants_what_it_says() {
    let grant = verify(&good()).unwrap();
    assert_eq!(&*grant.user, "mei");
    assert_eq!(grant.role, Role::Viewer);
    assert!(grant.allows_room(&room("live:1")) && grant.allows_room(&room("pub:x")));
    assert!(!grant.allows_room(&room("live:2")));
    assert_eq!(grant.expires, Time::from_millis((NOW_S + 60 + 30) * 1_000));
}

#[test]
fn each_public_key_algorithm_is_taken_from_its_own_key() {
    let auth = authenticator(&all_keys());
    let ec = EncodingKey::from_ec_pem(&pem("ec_private.pem")).unwrap();
    let ed = EncodingKey::from_ed_pem(&pem("ed25519_private.pem")).unwrap();
    auth.verify(&rsa_token("rsa"), now()).unwrap();
    auth.verify(&sign(&header(Algorithm::ES256, "ec"), &good(), &ec), now()).unwrap();
    auth.verify(&sign(&header(Algorithm::EdDSA, "ed"), &good(), &ed), now()).unwrap();
    auth.verify(&hs256(&good()), now()).unwrap();
}

#[test]
fn alg_none_is_refused() {
    for alg in ["none", "None", "NONE", ""] {
        let token = with_header(&json!({"alg": alg, "kid": "main"}));
        let unsigned = format!("{}.", token.rsplit_once('.').unwrap().0);
        for token in [token, unsigned] {
            let answer = authenticator(&one_secret()).verify(&token, now());
            assert_eq!(answer, Err(AuthError::UnsupportedAlgorithm), "{alg:?}");
        }
    }
}

#[test]
fn an_rsa_public_key_is_no_shared_secret() {
    // The classic attack: sign as HS256, with the public key's bytes as secret.
    let auth = authenticator(&all_keys());
    for public in [pem("rsa_public.pem"), pem("rsa_public.pem").trim_ascii().to_vec()] {
        let key = EncodingKey::from_secret(&public);
        let token = sign(&header(Algorithm::HS256, "rsa"), &good(), &key);
        assert_eq!(auth.verify(&token, now()), Err(AuthError::WrongAlgorithm));
    }
}

#[test]
fn a_token_does_not_choose_another_algorithm_than_its_keys() {
    let auth = authenticator(&all_keys());
    assert_eq!(auth.verify(&rsa_token("main"), now()), Err(AuthError::WrongAlgorithm));
    assert_eq!(auth.verify(&rsa_token("ec"), now()), Err(AuthError::WrongAlgorithm));
}

#[test]
fn hs384_and_other_algorithms_are_refused() {
    for alg in ["HS384", "HS512", "RS512", "PS256", "ES384", "hs256"] {
        let token = with_header(&json!({"alg": alg, "kid": "main"}));
        let answer = authenticator(&one_secret()).verify(&token, now());
        assert_eq!(answer, Err(AuthError::UnsupportedAlgorithm), "{alg}");
    }
}

#[test]
fn a_wrong_signature_is_refused() {
    let auth = authenticator(&one_secret());
    let forged = sign(
        &header(Algorithm::HS256, "main"),
        &good(),
        &EncodingKey::from_secret(OTHER_SECRET.as_bytes()),
    );
    assert_eq!(auth.verify(&forged, now()), Err(AuthError::BadSignature));

    let token = hs256(&good());
    let (signed, signature) = token.rsplit_once('.').unwrap();
    for cut in ["", "AAAA", &signature[..signature.len() - 4], &format!("{signature}==")] {
        let token = format!("{signed}.{cut}");
        assert_eq!(auth.verify(&token, now()), Err(AuthError::BadSignature), "{cut:?}");
    }
}

#[test]
fn changed_claims_are_refused() {
    let token = hs256(&good());
    let parts: Vec<&str> = token.split('.').collect();
    let changed = URL_SAFE_NO_PAD.encode(with("role", json!("operator")).to_string());
    let token = format!("{}.{changed}.{}", parts[0], parts[2]);
    assert_eq!(authenticator(&one_secret()).verify(&token, now()), Err(AuthError::BadSignature));
}

#[test]
fn an_unknown_key_is_refused() {
    let token = with_header(&json!({"alg": "HS256", "kid": "nobody"}));
    assert_eq!(authenticator(&one_secret()).verify(&token, now()), Err(AuthError::UnknownKey));
}

#[test]
fn the_key_id_may_be_absent_only_with_a_single_key() {
    let token = with_header(&json!({"alg": "HS256"}));
    authenticator(&one_secret()).verify(&token, now()).unwrap();
    assert_eq!(authenticator(&all_keys()).verify(&token, now()), Err(AuthError::MissingKeyId));
}

#[test]
fn keys_that_a_token_brings_along_are_ignored() {
    let token = with_header(&json!({
        "alg": "HS256", "kid": "main", "jku": "https://evil.example/jwks.json",
        "jwk": {"kty": "oct", "k": "AAAA"}, "x5u": "https://evil.example"
    }));
    authenticator(&one_secret()).verify(&token, now()).unwrap();
}

#[test]
fn a_critical_extension_is_refused() {
    let token = with_header(&json!({"alg": "HS256", "kid": "main", "crit": ["b64"]}));
    let answer = authenticator(&one_secret()).verify(&token, now());
    assert_eq!(answer, Err(AuthError::UnsupportedExtension));
}

#[test]
fn what_is_no_token_is_refused() {
    let auth = authenticator(&one_secret());
    let header = URL_SAFE_NO_PAD.encode("{\"alg\":\"HS256\"}");
    let no_alg = URL_SAFE_NO_PAD.encode("{}");
    let tokens = ["", ".", "..", "a.b", "a.b.c.d", "é.é.é", "{}.{}.{}"];
    let made = [format!("{header}.a.b.c"), format!("{no_alg}.e30.AAAA")];
    for token in tokens.into_iter().chain(made.iter().map(String::as_str)) {
        assert_eq!(auth.verify(token, now()), Err(AuthError::Malformed), "{token:?}");
    }
}

#[test]
fn a_too_long_token_is_refused_unread() {
    let auth = authenticator(&one_secret());
    let token = hs256(&with("note", json!("x".repeat(4_096))));
    assert_eq!(auth.verify(&token, now()), Err(AuthError::TooLarge));
}

#[test]
fn a_token_without_expiry_is_refused() {
    assert_eq!(verify(&with("exp", Value::Null)), Err(AuthError::MissingExpiry));
}

#[test]
fn an_expired_token_is_refused_after_the_leeway() {
    let auth = authenticator(&one_secret());
    let token = hs256(&good());
    let at = |seconds: u64| auth.verify(&token, Time::from_millis(seconds * 1_000));
    at(NOW_S + 60 + 29).unwrap();
    assert_eq!(at(NOW_S + 60 + 30), Err(AuthError::Expired));
    let grant = at(NOW_S).unwrap();
    assert!(grant.expired(grant.expires), "grant and verify agree on the moment");
}

#[test]
fn a_token_from_the_future_is_refused_before_the_leeway() {
    let auth = authenticator(&one_secret());
    let token = hs256(&with("nbf", json!(NOW_S + 40)));
    assert_eq!(auth.verify(&token, now()), Err(AuthError::NotYetValid));
    auth.verify(&token, now() + Duration::from_secs(10)).unwrap();
}

#[test]
fn times_may_be_fractions_and_absurd_ones_do_no_harm() {
    verify(&with("exp", json!(NOW_S as f64 + 0.5))).unwrap();
    verify(&with("exp", json!(1e300))).unwrap();
    verify(&with("nbf", json!(-5))).unwrap();
    assert_eq!(verify(&with("exp", json!(-1e300))), Err(AuthError::Expired));
    assert_eq!(verify(&with("exp", json!(0))), Err(AuthError::Expired));
}

#[test]
fn claims_of_wrong_types_are_refused() {
    let wrong = [("exp", json!("soon")), ("sub", json!(7)), ("rooms", json!("live:1"))];
    for (field, value) in wrong {
        assert_eq!(verify(&with(field, value)), Err(AuthError::BadClaims), "{field}");
    }
    assert_eq!(verify(&json!([1])), Err(AuthError::BadClaims));
}

#[test]
fn a_user_has_1_to_128_bytes() {
    verify(&with("sub", json!("u".repeat(128)))).unwrap();
    for bad in [Value::Null, json!(""), json!("u".repeat(129))] {
        assert_eq!(verify(&with("sub", bad.clone())), Err(AuthError::BadSubject), "{bad}");
    }
}

#[test]
fn an_unknown_role_is_refused() {
    for (name, role) in
        [("viewer", Role::Viewer), ("publisher", Role::Publisher), ("operator", Role::Operator)]
    {
        assert_eq!(verify(&with("role", json!(name))).unwrap().role, role);
    }
    for bad in ["admin", "Operator", ""] {
        assert_eq!(verify(&with("role", json!(bad))), Err(AuthError::BadRole), "{bad:?}");
    }
}

#[test]
fn a_client_type_that_is_empty_or_long_is_refused() {
    for bad in [String::new(), "x".repeat(33)] {
        assert_eq!(verify(&with("client", json!(bad))), Err(AuthError::BadClient), "{bad:?}");
    }
    assert!(verify(&with("client", json!("x".repeat(32)))).is_ok());
}

#[test]
fn a_pattern_that_is_no_room_is_refused() {
    assert_eq!(verify(&with("rooms", json!(["live:1", "a*b"]))), Err(AuthError::BadRooms));
}

#[test]
fn no_rooms_means_none_except_for_operators() {
    for rooms in [Value::Null, json!([])] {
        let claims = with("rooms", rooms);
        assert!(!verify(&claims).unwrap().allows_room(&room("live:1")));
        let mut operator = claims;
        operator["role"] = json!("operator");
        assert!(verify(&operator).unwrap().allows_room(&room("live:1")));
    }
}

#[test]
fn a_token_for_another_audience_is_refused() {
    let named = Auth { audience: Some("tidegate".into()), ..one_secret() };
    let named = authenticator(&named);
    for aud in [json!("tidegate"), json!(["other", "tidegate"])] {
        named.verify(&hs256(&with("aud", aud)), now()).unwrap();
    }
    for aud in [json!("other"), json!(["other"]), json!([]), Value::Null] {
        let answer = named.verify(&hs256(&with("aud", aud.clone())), now());
        assert_eq!(answer, Err(AuthError::WrongAudience), "{aud}");
    }
    // RFC 7519 section 4.1.3: without a name we are in nobody's audience.
    assert_eq!(verify(&with("aud", json!("tidegate"))), Err(AuthError::WrongAudience));
}

#[test]
fn a_token_of_another_issuer_is_refused() {
    let auth = authenticator(&Auth { issuer: Some("us".into()), ..one_secret() });
    auth.verify(&hs256(&with("iss", json!("us"))), now()).unwrap();
    for iss in [json!("them"), Value::Null] {
        let answer = auth.verify(&hs256(&with("iss", iss.clone())), now());
        assert_eq!(answer, Err(AuthError::WrongIssuer), "{iss}");
    }
    verify(&with("iss", json!("anybody"))).unwrap();
}

#[test]
fn codes_differ_and_messages_hold_nothing_of_the_key() {
    let errors = [
        AuthError::TooLarge,
        AuthError::Malformed,
        AuthError::UnsupportedAlgorithm,
        AuthError::UnsupportedExtension,
        AuthError::MissingKeyId,
        AuthError::UnknownKey,
        AuthError::WrongAlgorithm,
        AuthError::BadSignature,
        AuthError::BadClaims,
        AuthError::BadSubject,
        AuthError::BadRole,
        AuthError::BadRooms,
        AuthError::BadClient,
        AuthError::MissingExpiry,
        AuthError::Expired,
        AuthError::NotYetValid,
        AuthError::WrongAudience,
        AuthError::WrongIssuer,
    ];
    let mut codes: Vec<_> = errors.iter().map(|error| error.code()).collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), errors.len());
    let snake = |code: &str| code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    assert!(codes.iter().all(|code| snake(code)));
    let printed = format!("{:?}", one_secret());
    assert!(!printed.contains(SECRET), "{printed}");
    let serialised = serde_json::to_string(&one_secret()).unwrap();
    assert!(!serialised.contains(SECRET), "{serialised}");
}

#[test]
fn what_is_minted_is_accepted() {
    let auth = Auth { audience: Some("tidegate".into()), issuer: Some("us".into()), ..all_keys() };
    let auth = authenticator(&auth);
    let claims = Claims {
        user: "ana".into(),
        role: Role::Publisher,
        rooms: vec!["a".into(), "b:*".into()],
        client: Some("gifts".into()),
    };
    let token = auth.mint(&claims, Duration::from_secs(3_600), now()).unwrap();
    let grant = auth.verify(&token, now()).unwrap();
    assert_eq!((&*grant.user, grant.role), ("ana", Role::Publisher));
    assert!(grant.allows_room(&room("a")) && grant.allows_room(&room("b:1")));
    assert_eq!(grant.expires, now() + Duration::from_secs(3_630));
    assert_eq!(grant.client_type(), "gifts");
    let plain = auth.mint(&Claims { client: None, ..claims }, Duration::from_secs(1), now());
    assert_eq!(auth.verify(&plain.unwrap(), now()).unwrap().client_type(), "publisher");
}

#[test]
fn nothing_is_minted_that_would_be_refused() {
    let auth = authenticator(&one_secret());
    let mint = |claims: &Claims| auth.mint(claims, Duration::from_secs(1), now());
    let claims = Claims { user: "ana".into(), ..Claims::default() };
    let no_user = Claims { user: String::new(), ..claims.clone() };
    assert_eq!(mint(&no_user), Err(MintError::Refused(AuthError::BadSubject)));
    let bad_room = Claims { rooms: vec!["a b".into()], ..claims.clone() };
    assert_eq!(mint(&bad_room), Err(MintError::Refused(AuthError::BadRooms)));
    let many = Claims { rooms: vec!["r".repeat(128); 64], ..claims.clone() };
    assert_eq!(mint(&many), Err(MintError::TooLarge));
    let public = Auth { jwks_file: Some(fixture("jwks.json")), ..Auth::default() };
    let public = authenticator(&public);
    assert_eq!(public.mint(&claims, Duration::from_secs(1), now()), Err(MintError::NoSecret));
}

#[test]
fn a_development_key_counts_only_where_nothing_is_configured() {
    let key = DevKey::random();
    let dev = Authenticator::new(&Auth::default(), Some(key.clone())).unwrap_or_else(|_| panic!());
    let claims = Claims { user: "ana".into(), ..Claims::default() };
    let token = dev.mint(&claims, Duration::from_secs(60), now()).unwrap();
    dev.verify(&token, now()).unwrap();

    let configured = Authenticator::new(&one_secret(), Some(key)).unwrap_or_else(|_| panic!());
    assert_eq!(configured.verify(&token, now()), Err(AuthError::UnknownKey));
    assert!(Authenticator::new(&Auth::default(), None).is_err());
}

#[test]
fn an_authenticator_is_shared_between_threads() {
    let auth = Arc::new(authenticator(&all_keys()));
    let token = Arc::new(hs256(&good()));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (auth, token) = (Arc::clone(&auth), Arc::clone(&token));
            std::thread::spawn(move || auth.verify(&token, now()).is_ok())
        })
        .collect();
    assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
}
