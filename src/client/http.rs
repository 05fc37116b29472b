//! The HTTP interface, from the publisher's side.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::StartError;
use super::event::{NewEvent, write_json};
use super::outcome::{Failure, Refusal};
use super::priorities::Table;
use super::transport::{Answer, EventResult, Whole, read_level, read_table};
use crate::connector::{Connector, innermost};
use crate::engine::ids::RoomId;
use crate::trust::{self, Trust};

/// Longest answer that is read, in bytes. A thousand results with the longest
/// ids and reasons stay below it.
const MAX_ANSWER: usize = 4 << 20;
/// Connections to the server that are kept while nothing is sent.
const IDLE_CONNECTIONS: usize = 8;
/// The time after which one of them is closed.
const IDLE: Duration = Duration::from_secs(90);

/// A server's HTTP interface.
#[derive(Debug, Clone)]
pub(super) struct Http {
    client: Client<Connector, Full<Bytes>>,
    /// Without a slash at its end.
    base: Arc<str>,
    authorization: Authorization,
    timeout: Duration,
}

/// What requests carry as `authorization`; may be replaced at any time.
#[derive(Clone)]
pub(super) struct Authorization(Arc<RwLock<HeaderValue>>);

impl Authorization {
    pub(super) fn new(value: HeaderValue) -> Self {
        Self(Arc::new(RwLock::new(value)))
    }

    pub(super) fn set(&self, value: HeaderValue) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value;
    }

    pub(super) fn get(&self) -> HeaderValue {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Authorization {
    /// Keeps the token out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorization(..)")
    }
}

#[derive(Deserialize)]
struct AnswerBody<'a> {
    #[serde(default)]
    results: Vec<ResultBody>,
    error: Option<ErrorBody>,
    #[serde(borrow)]
    admission: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ResultBody {
    status: String,
    seq: Option<u64>,
    #[serde(default)]
    code: String,
    #[serde(default)]
    reason: String,
    retry_after_ms: Option<u64>,
}

#[derive(Deserialize)]
struct ErrorBody {
    code: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    temporary: bool,
    retry_after_ms: Option<u64>,
}

impl Http {
    /// A server at `base` (`https://host:port`), whose answers may take `timeout`.
    pub(super) fn new(
        base: &Uri,
        trust: &Trust,
        authorization: Authorization,
        timeout: Duration,
    ) -> Result<Self, StartError> {
        let connector = Connector::new(base, trust, b"http/1.1", timeout);
        let connector = connector.map_err(|error| StartError::Tls(error.to_string()))?;
        // It follows no redirect: what that leads to is not the server whose level
        // is learned.
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build(connector);
        let base = base.to_string().trim_end_matches('/').into();
        Ok(Self { client, base, authorization, timeout })
    }

    /// See [`Transport::table`](super::transport::Transport::table).
    pub(super) async fn table(&self) -> Result<Option<Table>, Failure> {
        let (status, _, body) = self.exchange(Method::GET, "/v1/admission", Vec::new()).await?;
        match status {
            StatusCode::OK => match read_table(&body) {
                Some(table) => Ok(Some(table)),
                None => Err(Failure::Malformed { status: 200 }),
            },
            _ if busy(status) => Err(Failure::Malformed { status: status.as_u16() }),
            _ => Ok(None),
        }
    }

    /// See [`Transport::publish`](super::transport::Transport::publish).
    pub(super) async fn publish(
        &self,
        room: &RoomId,
        events: impl Iterator<Item = (&NewEvent, Duration)>,
    ) -> Result<Answer, Failure> {
        let mut body = b"{\"events\":[".to_vec();
        let mut count = 0;
        for (event, age) in events {
            if count > 0 {
                body.push(b',');
            }
            write_json(&mut body, event, age).map_err(|e| Failure::Broken(e.to_string()))?;
            count += 1;
        }
        body.extend_from_slice(b"]}");
        let path = format!("/v1/rooms/{room}/events");
        let (status, headers, body) = self.exchange(Method::POST, &path, body).await?;
        read_answer(status, &headers, &body, count)
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, HeaderMap, Vec<u8>), Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(AUTHORIZATION, self.authorization.get());
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::from(body));
        let request = request.map_err(|error| Failure::Broken(error.to_string()))?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| failure(&error))?;
            let (head, mut response) = response.into_parts();
            let mut body = Vec::new();
            while let Some(frame) = response.frame().await {
                let frame = frame.map_err(|error| Failure::Broken(innermost(&error)))?;
                let Ok(chunk) = frame.into_data() else { continue };
                if body.len() + chunk.len() > MAX_ANSWER {
                    return Err(Failure::Malformed { status: head.status.as_u16() });
                }
                body.extend_from_slice(&chunk);
            }
            Ok((head.status, head.headers, body))
        };
        timeout(self.timeout, exchange).await.unwrap_or(Err(Failure::Timeout))
    }
}

/// Statuses by which a server, or what stands before it, says "not now".
fn busy(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

fn failure(error: &hyper_util::client::legacy::Error) -> Failure {
    if trust::is_distrust(error) {
        Failure::Untrusted(innermost(error))
    } else if error.is_connect() {
        Failure::Connect(innermost(error))
    } else {
        Failure::Broken(innermost(error))
    }
}

fn read_answer(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    count: usize,
) -> Result<Answer, Failure> {
    let malformed = || Failure::Malformed { status: status.as_u16() };
    let body: AnswerBody<'_> = serde_json::from_slice(body).map_err(|_| malformed())?;
    let level = body.admission.and_then(read_level);
    if let Some(error) = body.error {
        let seconds = headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        let retry_after = match error.retry_after_ms {
            Some(millis) => Some(Duration::from_millis(millis)),
            None => seconds.map(Duration::from_secs),
        };
        let temporary = error.temporary || busy(status);
        let too_large =
            matches!(status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY);
        let refusal = Refusal { code: error.code, reason: error.reason, retry_after };
        return Ok(Answer { results: Err(Whole { refusal, temporary, too_large }), level });
    }
    if status != StatusCode::OK || body.results.len() != count {
        return Err(malformed());
    }
    let results = body.results.into_iter().map(|result| match result.status.as_str() {
        "accepted" => EventResult::Accepted { seq: result.seq },
        _ => EventResult::Rejected(Refusal {
            code: result.code,
            reason: result.reason,
            retry_after: result.retry_after_ms.map(Duration::from_millis),
        }),
    });
    Ok(Answer { results: Ok(results.collect()), level })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::priority::AdmissionLevel;

    fn answer(status: u16, body: &str, count: usize) -> Result<Answer, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("2"));
        read_answer(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes(), count)
    }

    #[test]
    fn results_come_in_order_and_with_the_level() {
        let body = r#"{"results":[{"id":"1","status":"accepted","seq":5,"new":1},
            {"id":"2","status":"rejected","code":"busy","reason":"full","retry_after_ms":9}],
            "admission":{"business":1,"user":127,"ttl_ms":50}}"#;
        let answer = answer(200, body, 2).unwrap();
        let retry_after = Some(Duration::from_millis(9));
        let busy = Refusal { code: "busy".into(), reason: "full".into(), retry_after };
        let wanted = vec![EventResult::Accepted { seq: Some(5) }, EventResult::Rejected(busy)];
        assert_eq!(answer.results, Ok(wanted));
        let level = AdmissionLevel::from_wire(1, 127, None);
        assert_eq!(answer.level, Some((level, Duration::from_millis(50))));
    }

    #[test]
    fn a_refusal_of_the_whole_says_whether_to_come_again() {
        let body = r#"{"error":{"code":"draining","reason":"","temporary":true},
            "admission":{"business":"odd"}}"#;
        let got = answer(503, body, 2).unwrap();
        let whole = got.results.unwrap_err();
        assert!(whole.temporary && !whole.too_large && got.level.is_none());
        assert_eq!(whole.refusal.retry_after, Some(Duration::from_secs(2)), "the header's");
        let body = r#"{"error":{"code":"body_too_large"}}"#;
        let whole = answer(413, body, 2).unwrap().results.unwrap_err();
        assert!(!whole.temporary && whole.too_large);
    }

    #[test]
    fn what_is_no_answer_is_a_failure() {
        for body in ["", "<html>", "{}", r#"{"results":[]}"#, r#"{"results":[{"id":"1"}]}"#] {
            let malformed = Failure::Malformed { status: 200 };
            assert_eq!(answer(200, body, 1), Err(malformed), "{body}");
        }
        let away = answer(502, "<html>", 1).unwrap_err();
        assert!(away.temporary() && !answer(404, "<html>", 1).unwrap_err().temporary());
    }
}
