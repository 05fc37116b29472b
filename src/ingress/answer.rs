//! What HTTP callers hear. Every answer of the publishing route carries the
//! admission level, refusals too, so that an upstream learns it at once.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use serde::Serialize;

use crate::auth::AuthError;
use crate::engine::priority::Advice;

/// The admission level (B, U) of the DAGOR paper: what is at most this gets in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Admission {
    /// Least important tier admitted.
    pub business: u8,
    /// Least important user level of that tier admitted.
    pub user: u8,
    /// The part of that user level that is admitted; left out when it is all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// How long that may be relied on, in milliseconds.
    pub ttl_ms: u64,
}

impl From<Advice> for Admission {
    fn from(advice: Advice) -> Self {
        Self {
            business: advice.level.business(),
            user: advice.level.user(),
            share: advice.share_per_mille().map(|share| f64::from(share) / 1_000.0),
            ttl_ms: advice.ttl.as_millis() as u64,
        }
    }
}

/// A request refused whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// Machine-readable.
    pub code: &'static str,
    /// For people.
    pub reason: String,
    /// Trying again may help.
    pub temporary: bool,
    /// The level to tell; until somebody sets it, everything is admitted.
    pub advice: Advice,
}

impl ApiError {
    /// One that trying again will not mend.
    pub fn new(status: StatusCode, code: &'static str, reason: impl Into<String>) -> Self {
        Self { status, code, reason: reason.into(), temporary: false, advice: Advice::OPEN }
    }

    /// One that passes.
    pub fn temporary(status: StatusCode, code: &'static str, reason: impl Into<String>) -> Self {
        Self { temporary: true, ..Self::new(status, code, reason) }
    }

    /// The same, telling this level.
    #[must_use]
    pub fn beside(self, advice: Advice) -> Self {
        Self { advice, ..self }
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error.code(), error.to_string())
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorFields<'a>,
    admission: Admission,
}

#[derive(Serialize)]
struct ErrorFields<'a> {
    code: &'a str,
    reason: &'a str,
    temporary: bool,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let fields =
            ErrorFields { code: self.code, reason: &self.reason, temporary: self.temporary };
        let body = ErrorBody { error: fields, admission: self.advice.into() };
        let bytes = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = json(self.status, bytes);
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 9110, section 11.6.1, and RFC 6750, section 3.
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.temporary {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A JSON answer.
#[must_use]
pub fn json(status: StatusCode, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
