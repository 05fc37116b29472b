//! Sends spans in batches. What a collector does not take at once is tried
//! again a few times, as the specification asks; meanwhile the queue fills, and
//! what no longer fits is dropped where it arises.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use reqwest::StatusCode;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::Span;
use super::message::{Attribute, Request, Resource, ResourceSpans, Response, Scope, ScopeSpans};

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

/// The way in.
pub type Spans = mpsc::Sender<Span>;

/// Where spans go, and as whose.
#[derive(Debug, Clone)]
pub struct ExportSettings {
    /// Base of the collector's address; `/v1/traces` is added.
    pub endpoint: String,
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
}

/// See the module's documentation.
pub struct Exporter {
    spans: mpsc::Receiver<Span>,
    client: reqwest::Client,
    url: String,
    resource: Resource,
    stats: Arc<ExportStats>,
    failing: bool,
}

enum Failed {
    /// It may be taken later.
    ForNow(String),
    /// It will not.
    ForEver(String),
}

impl Exporter {
    /// An exporter and the way to it.
    ///
    /// # Errors
    /// The HTTP client's, which cannot be made.
    pub fn new(settings: ExportSettings) -> reqwest::Result<(Self, Spans)> {
        let (sender, spans) = mpsc::channel(settings.queue.max(1));
        let attributes = vec![
            Attribute::text("service.name", &settings.service_name),
            Attribute::text("service.version", env!("CARGO_PKG_VERSION")),
            Attribute::text("service.instance.id", &settings.instance),
        ];
        let exporter = Self {
            spans,
            client: reqwest::Client::builder().timeout(ATTEMPT).no_proxy().build()?,
            url: format!("{}/v1/traces", settings.endpoint.trim_end_matches('/')),
            resource: Resource { attributes },
            stats: Arc::default(),
            failing: false,
        };
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
                    self.failing = false;
                    return;
                }
                Err(Failed::ForNow(_)) if attempt < ATTEMPTS => {
                    sleep(pause).await;
                    pause *= 2;
                }
                Err(Failed::ForNow(why) | Failed::ForEver(why)) => {
                    self.stats.failed.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    // Said once, until it works again: the counter tells the rest.
                    if !std::mem::replace(&mut self.failing, true) {
                        warn!(url = self.url, why, "spans cannot be exported");
                    }
                    return;
                }
            }
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
        let for_now = |error: reqwest::Error| Failed::ForNow(error.to_string());
        let request = self.client.post(&self.url).body(body);
        let request = request.header("content-type", "application/x-protobuf");
        let answer = request.send().await.map_err(for_now)?;
        let status = answer.status();
        if status.is_success() {
            let body = answer.bytes().await.unwrap_or_default();
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
