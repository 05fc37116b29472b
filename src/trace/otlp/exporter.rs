//! Sends spans in batches. What a collector does not take at once is tried
//! again a few times, as the specification asks; meanwhile the queue fills, and
//! what no longer fits is dropped where it arises.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::uri::{InvalidUri, Uri};
use http::{HeaderMap, HeaderValue, Request as HttpRequest, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prost::Message as _;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::Span;
use super::message::{Attribute, Request, Resource, ResourceSpans, Response, Scope, ScopeSpans};
use crate::connector::{Connector, innermost};
use crate::trust::{self, Trust};

/// Spans of one request: the default of the OpenTelemetry SDKs.
const BATCH: usize = 512;
/// How long the first of them waits for company.
const GATHER: Duration = Duration::from_secs(1);
/// An attempt takes no longer: the default of OTLP exporters.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How often a batch is sent.
const ATTEMPTS: u32 = 4;
/// Pause after the first failure; doubled after each.
const PAUSE: Duration = Duration::from_millis(500);

/// Bytes of an answer that are read: it holds a number, and perhaps a sentence.
const MOST_ANSWER: usize = 64 << 10;
/// A connection that nothing was sent on for so long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// The way in.
pub type Spans = mpsc::Sender<Span>;

/// Where spans go, and as whose.
#[derive(Debug, Clone)]
pub struct ExportSettings {
    /// Base of the collector's address, `http://` or `https://`; `/v1/traces` is
    /// added.
    pub endpoint: String,
    /// Whose certificate is believed there.
    pub trust: Trust,
    /// What requests carry beside what OTLP asks for. Values that are secret are
    /// marked so.
    pub headers: HeaderMap,
    /// `service.name`.
    pub service_name: String,
    /// `service.instance.id`, unlike any other's.
    pub instance: String,
    /// Spans that may wait.
    pub queue: usize,
}

/// What became of the spans.
#[derive(Debug, Default)]
pub struct ExportStats {
    /// Taken by the collector.
    pub exported: AtomicU64,
    /// Refused by it, or not delivered.
    pub failed: AtomicU64,
    /// Not sent, since its certificate is not believed.
    pub untrusted: AtomicU64,
}

/// Why there can be no exporter.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The endpoint is no URL.
    #[error("not a URL: {0}")]
    Endpoint(#[from] InvalidUri),
    /// TLS could not be set up.
    #[error("TLS does not start: {0}")]
    Tls(#[from] rustls::Error),
}

/// See the module's documentation.
pub struct Exporter {
    spans: mpsc::Receiver<Span>,
    client: Client<Connector, Full<Bytes>>,
    url: Uri,
    headers: HeaderMap,
    resource: Resource,
    stats: Arc<ExportStats>,
    /// Why the last batch was not taken.
    failing: Option<Lost>,
}

enum Failed {
    /// It may be taken later.
    ForNow(String),
    /// It will not.
    ForEver(String),
    /// Who answers there is not believed: nothing was sent. It takes people to
    /// change that.
    Untrusted(String),
}

/// Sorts of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    Refused,
    Unreachable,
    Untrusted,
}

impl Exporter {
    /// An exporter and the way to it.
    ///
    /// # Errors
    /// [`ExportError`]. Whether the collector is there is not known yet.
    pub fn new(settings: ExportSettings) -> Result<(Self, Spans), ExportError> {
        let (sender, spans) = mpsc::channel(settings.queue.max(1));
        let attributes = vec![
            Attribute::text("service.name", &settings.service_name),
            Attribute::text("service.version", env!("CARGO_PKG_VERSION")),
            Attribute::text("service.instance.id", &settings.instance),
        ];
        let url = format!("{}/v1/traces", settings.endpoint.trim_end_matches('/'));
        let url: Uri = url.parse()?;
        let connector = Connector::new(&url, &settings.trust, b"http/1.1", ATTEMPT)?;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(1)
            .build(connector);
        let mut headers = settings.headers;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let agent = concat!("tidegate/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        let (resource, stats) = (Resource { attributes }, Arc::default());
        let exporter = Self { spans, client, url, headers, resource, stats, failing: None };
        Ok((exporter, sender))
    }

    /// Counters, which outlive it.
    #[must_use]
    pub fn stats(&self) -> Arc<ExportStats> {
        Arc::clone(&self.stats)
    }

    /// Sends until every way in is gone and nothing waits.
    pub async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.spans.recv_many(&mut batch, BATCH).await > 0 {
            let gather = async {
                while batch.len() < BATCH {
                    let more = BATCH - batch.len();
                    if self.spans.recv_many(&mut batch, more).await == 0 {
                        break;
                    }
                }
            };
            // Full, or over: either way it is time.
            let _ = timeout(GATHER, gather).await;
            self.export(&batch).await;
            batch.clear();
        }
    }

    async fn export(&mut self, batch: &[Span]) {
        let body = Bytes::from(self.encode(batch));
        let mut pause = PAUSE;
        for attempt in 1.. {
            match self.post(body.clone()).await {
                Ok(rejected) => {
                    let rejected = rejected.min(batch.len() as u64);
                    let taken = batch.len() as u64 - rejected;
                    self.stats.exported.fetch_add(taken, Ordering::Relaxed);
                    self.stats.failed.fetch_add(rejected, Ordering::Relaxed);
                    self.failing = None;
                    return;
                }
                Err(Failed::ForNow(_)) if attempt < ATTEMPTS => {
                    sleep(pause).await;
                    pause *= 2;
                }
                Err(failed) => return self.lost(batch.len() as u64, failed),
            }
        }
    }

    fn lost(&mut self, spans: u64, failed: Failed) {
        let (lost, why, count) = match failed {
            Failed::ForNow(why) => (Lost::Unreachable, why, &self.stats.failed),
            Failed::ForEver(why) => (Lost::Refused, why, &self.stats.failed),
            Failed::Untrusted(why) => (Lost::Untrusted, why, &self.stats.untrusted),
        };
        count.fetch_add(spans, Ordering::Relaxed);
        // Said once, until it works again or fails otherwise: the counters tell
        // the rest.
        if self.failing.replace(lost) == Some(lost) {
            return;
        }
        let url = self.url.to_string();
        match lost {
            Lost::Untrusted => warn!(
                url,
                why,
                "spans are not exported: the collector's certificate is not believed; if an \
                 authority of your own signed it, name that in trace.otlp_ca"
            ),
            Lost::Refused | Lost::Unreachable => warn!(url, why, "spans cannot be exported"),
        }
    }

    fn encode(&self, batch: &[Span]) -> Vec<u8> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let scope_spans = ScopeSpans {
            scope: Some(Scope { name: "tidegate".to_owned(), version }),
            spans: batch.iter().map(Span::message).collect(),
        };
        let resource = Some(self.resource.clone());
        let spans = ResourceSpans { resource, scope_spans: vec![scope_spans] };
        Request { resource_spans: vec![spans] }.encode_to_vec()
    }

    /// Sends a batch; returns how many spans of it were refused.
    async fn post(&self, body: Bytes) -> Result<u64, Failed> {
        let mut request = HttpRequest::post(self.url.clone()).body(Full::new(body));
        if let Ok(request) = &mut request {
            request.headers_mut().clone_from(&self.headers);
        }
        let request = request.map_err(|error| Failed::ForEver(error.to_string()))?;
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|error| {
                let why = innermost(&error);
                if trust::is_distrust(&error) {
                    return Failed::Untrusted(why);
                }
                Failed::ForNow(why)
            })?;
            let status = answer.status();
            // Also what says nothing is read, so that the connection can be used again.
            let body = Limited::new(answer.into_body(), MOST_ANSWER).collect().await;
            Ok((status, body.map(|body| body.to_bytes()).unwrap_or_default()))
        };
        let late = || Err(Failed::ForNow("no answer in time".to_owned()));
        let (status, body) = timeout(ATTEMPT, exchange).await.unwrap_or_else(|_| late())?;
        if status.is_success() {
            let said = Response::decode(body).unwrap_or_default().partial_success;
            return Ok(said.map_or(0, |said| u64::try_from(said.rejected_spans).unwrap_or(0)));
        }
        let why = format!("the collector answers {status}");
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Failed::ForNow(why),
            _ => Failed::ForEver(why),
        })
    }
}
