//! The upgrade from HTTP to WebSocket: Origin, subprotocol and compression are
//! settled here, the rest of RFC 6455, section 4.2, by tungstenite.

use http::header::{HOST, ORIGIN, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use thiserror::Error;
use tungstenite::handshake::server::create_response_with_body;

use crate::transport::origin;
use crate::wire::Format;

/// Subprotocols, most wanted first.
const PROTOCOLS: [(&str, Format); 2] =
    [("tidegate.v1.json", Format::Json), ("tidegate.v1.proto", Format::Proto)];

/// What was agreed: each side may compress, every message by itself.
const DEFLATE: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// Why an upgrade is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// Not a WebSocket upgrade, or a broken one.
    #[error("not a valid WebSocket upgrade: {0}")]
    NotAnUpgrade(String),
    /// A page from elsewhere.
    #[error("pages of this origin may not connect")]
    ForeignOrigin,
    /// None of the offered subprotocols is known.
    #[error("offer the subprotocol tidegate.v1.json or tidegate.v1.proto")]
    NoSubprotocol,
}

impl HandshakeError {
    /// Machine-readable, also a metric label.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            HandshakeError::NotAnUpgrade(_) => "bad_handshake",
            HandshakeError::ForeignOrigin => "foreign_origin",
            HandshakeError::NoSubprotocol => "no_subprotocol",
        }
    }

    /// HTTP status of the refusal.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            HandshakeError::ForeignOrigin => StatusCode::FORBIDDEN,
            HandshakeError::NotAnUpgrade(_) | HandshakeError::NoSubprotocol => {
                StatusCode::BAD_REQUEST
            }
        }
    }
}

/// What the server allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Origins of pages that may connect; `*` for all. Empty: the server's own
    /// host. A client without Origin is no browser and always may.
    pub origins: Vec<String>,
    /// Offer permessage-deflate.
    pub compression: bool,
    /// Connect without a subprotocol, as an echo server for test suites does.
    pub any_subprotocol: bool,
}

/// Checks an upgrade request and forms the answer.
///
/// # Errors
/// [`HandshakeError`], to be answered with its status.
pub fn accept<B, R>(
    request: &Request<B>,
    policy: &Policy,
    body: impl FnOnce() -> R,
) -> Result<(Response<R>, Format), HandshakeError> {
    let headers = request.headers();
    if !origin_allowed(headers, &policy.origins) {
        return Err(HandshakeError::ForeignOrigin);
    }
    let mut response = create_response_with_body(request, body)
        .map_err(|error| HandshakeError::NotAnUpgrade(error.to_string()))?;
    let plain = match choose_protocol(headers) {
        Some((name, format)) => {
            let name = HeaderValue::from_static(name);
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, name);
            format
        }
        None if policy.any_subprotocol => Format::Json,
        None => return Err(HandshakeError::NoSubprotocol),
    };
    if !(policy.compression && offers_deflate(headers)) {
        return Ok((response, plain));
    }
    let agreed = HeaderValue::from_static(DEFLATE);
    response.headers_mut().insert(SEC_WEBSOCKET_EXTENSIONS, agreed);
    let format = if plain.is_json() { Format::JsonDeflate } else { Format::ProtoDeflate };
    Ok((response, format))
}

fn choose_protocol(headers: &HeaderMap) -> Option<(&'static str, Format)> {
    let offered: Vec<&str> = tokens(headers, SEC_WEBSOCKET_PROTOCOL).collect();
    PROTOCOLS.into_iter().find(|(name, _)| offered.contains(name))
}

/// Whether one of the client's offers can be taken as it stands. One that asks
/// for a smaller window cannot: everyone shares the same compressed bytes.
fn offers_deflate(headers: &HeaderMap) -> bool {
    tokens(headers, SEC_WEBSOCKET_EXTENSIONS).any(|offer| {
        let mut parts = offer.split(';').map(str::trim);
        parts.next() == Some("permessage-deflate") && all_acceptable(parts)
    })
}

fn all_acceptable<'a>(parameters: impl Iterator<Item = &'a str>) -> bool {
    let mut seen: Vec<&str> = Vec::new();
    for parameter in parameters {
        let (name, value) = match parameter.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (parameter, None),
        };
        let acceptable = match name {
            "server_no_context_takeover" | "client_no_context_takeover" => value.is_none(),
            "client_max_window_bits" => {
                value.is_none_or(|bits| matches!(bits.parse::<u8>(), Ok(8..=15)))
            }
            "server_max_window_bits" => value == Some("15"),
            _ => false,
        };
        if !acceptable || seen.contains(&name) {
            return false;
        }
        seen.push(name);
    }
    true
}

fn tokens(headers: &HeaderMap, name: http::HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

fn origin_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    let origin = headers.get(ORIGIN).map(HeaderValue::as_bytes);
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    origin::allowed(origin, host, allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy { origins: Vec::new(), compression: true, any_subprotocol: false }
    }

    fn request(extra: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::get("/v1/ws")
            .header("Host", "live.example:7400")
            .header("Connection", "keep-alive, Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
        for (name, value) in extra {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a valid request")
    }

    const JSON: (&str, &str) = ("Sec-WebSocket-Protocol", "chat, tidegate.v1.json");

    #[test]
    fn the_answer_carries_the_accept_key_of_the_rfc() {
        let (response, format) = accept(&request(&[JSON]), &policy(), || ()).expect("accepted");
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["sec-websocket-protocol"], "tidegate.v1.json");
        assert_eq!(format, Format::Json);
    }

    #[test]
    fn without_a_known_subprotocol_there_is_no_connection() {
        let other = ("Sec-WebSocket-Protocol", "mqtt");
        for extra in [&[][..], &[other]] {
            let refused = accept(&request(extra), &policy(), || ()).err();
            assert_eq!(refused, Some(HandshakeError::NoSubprotocol));
        }
    }

    #[test]
    fn foreign_pages_are_refused_and_own_or_listed_ones_are_not() {
        let try_origin = |origin, origins: &[&str]| {
            let origins = origins.iter().map(ToString::to_string).collect();
            let policy = Policy { origins, ..policy() };
            accept(&request(&[JSON, ("Origin", origin)]), &policy, || ()).is_ok()
        };
        assert!(try_origin("https://live.example:7400", &[]));
        assert!(!try_origin("https://evil.example", &[]));
        assert!(!try_origin("https://live.example:7400.evil.example", &[]));
        assert!(!try_origin("null", &[]));
        assert!(try_origin("https://shop.example", &["https://shop.example"]));
        assert!(!try_origin("https://live.example:7400", &["https://shop.example"]));
        assert!(try_origin("https://any.example", &["*"]));
    }

    #[test]
    fn compression_is_agreed_only_on_terms_that_all_viewers_share() {
        let agreed = |offer| {
            let extra = [JSON, ("Sec-WebSocket-Extensions", offer)];
            accept(&request(&extra), &policy(), || ()).map(|(_, f)| f.is_deflate())
        };
        assert_eq!(agreed("permessage-deflate"), Ok(true));
        assert_eq!(agreed("permessage-deflate; client_max_window_bits"), Ok(true));
        assert_eq!(agreed("permessage-deflate; server_max_window_bits=10"), Ok(false));
        assert_eq!(
            agreed("permessage-deflate; server_max_window_bits=10, permessage-deflate"),
            Ok(true)
        );
        assert_eq!(agreed("permessage-deflate; unheard_of"), Ok(false));
        assert_eq!(agreed("x-webkit-deflate-frame"), Ok(false));
    }

    #[test]
    fn a_plain_request_is_told_what_is_missing() {
        let plain = Request::get("/v1/ws").body(()).expect("valid");
        let refused = accept(&plain, &policy(), || ()).err();
        assert!(matches!(refused, Some(HandshakeError::NotAnUpgrade(_))), "{refused:?}");
    }
}
