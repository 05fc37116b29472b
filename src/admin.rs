//! The operators' port: a page for people, metrics, health and readiness.
//!
//! `/healthz` says the process lives. `/readyz` says every shard answers and
//! the server is not leaving, and important events can be logged: a shard that
//! does not answer within
//! [`ANSWER_WITHIN`] is stuck or overloaded, and a load balancer should know.

mod overload;
mod trace;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::{Response, StatusCode};
use axum::routing::{get, post};
use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::timeout;
use tracing::warn;

use crate::auth::Authenticator;
use crate::clock::Clock;
use crate::engine::ids::ShardId;
use crate::engine::kind::Kinds;
use crate::ingress::answer::json;
use crate::ingress::stats::EdgeStats;
use crate::log::{Log, LogState};
use crate::shard::peers::{LocalShards, Message, Path as _};
use crate::shard::stats::ShardStats;
use crate::telemetry::{
    CONTENT_TYPE as METRICS_TYPE, Process, Scrape, TraceScrape, overview, render,
};
use crate::tls::Identity;
use crate::trace::Watch;
use crate::trace::otlp::ExportStats;

/// A shard that takes longer than this is not ready.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How old what gRPC's health service says may be, when all shards answer.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Clock ticks in a second, as /proc counts CPU time: fixed on Linux.
const TICKS: f64 = 100.0;

/// What operators need for following events.
pub struct Tracing {
    /// Which events are followed.
    pub watch: Arc<Watch>,
    /// Events that one rule follows at most.
    pub rule_events: u32,
    /// What became of spans, if they are exported.
    pub export: Option<Arc<ExportStats>>,
}

/// Sees all shards.
pub struct Observer {
    shards: Arc<LocalShards>,
    edges: Vec<Arc<EdgeStats>>,
    auth: Arc<Authenticator>,
    kinds: Arc<Kinds>,
    log: Option<Arc<Log>>,
    tracing: Tracing,
    identity: Option<Identity>,
    clock: Clock,
    leaving: AtomicBool,
    last: Mutex<Vec<ShardStats>>,
}

impl Observer {
    /// Of these shards.
    #[must_use]
    pub fn new(
        shards: Arc<LocalShards>,
        edges: Vec<Arc<EdgeStats>>,
        auth: Arc<Authenticator>,
        kinds: Arc<Kinds>,
        log: Option<Arc<Log>>,
        tracing: Tracing,
        clock: Clock,
    ) -> Self {
        Self {
            shards,
            edges,
            auth,
            kinds,
            log,
            tracing,
            identity: None,
            clock,
            leaving: AtomicBool::new(false),
            last: Mutex::default(),
        }
    }

    /// Whose certificate there is to report of.
    #[must_use]
    pub fn with_identity(self, identity: Option<Identity>) -> Self {
        Self { identity, ..self }
    }

    /// From now on the server is not ready.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// What every shard says of itself; `None` for those that do not answer.
    async fn collect(&self) -> Vec<Option<ShardStats>> {
        let answers = (0..self.shards.count()).map(|index| {
            let (reply, answer) = oneshot::channel();
            self.shards.send(ShardId(index as u16), Message::Stats(reply));
            timeout(ANSWER_WITHIN, answer)
        });
        let answers = join_all(answers).await;
        answers.into_iter().map(|answer| answer.ok().and_then(Result::ok)).collect()
    }

    /// The same, with the last known counts of a shard that does not answer:
    /// counters that fell to zero would look like a restart.
    async fn counts(&self) -> (Vec<ShardStats>, bool) {
        let fresh = self.collect().await;
        let all = fresh.iter().all(Option::is_some);
        let mut last = self.last.lock().await;
        last.resize_with(fresh.len(), ShardStats::default);
        for (last, fresh) in last.iter_mut().zip(fresh) {
            if let Some(fresh) = fresh {
                *last = fresh;
            }
        }
        (last.clone(), all)
    }

    async fn readiness(&self) -> Readiness {
        let silent = self.collect().await.into_iter().enumerate();
        let failing = self.log.as_ref().and_then(|log| match log.state() {
            LogState::Writable => None,
            LogState::Failing { why, .. } => Some(why.code()),
        });
        Readiness {
            leaving: self.leaving.load(Ordering::Relaxed),
            silent: silent.filter(|(_, stats)| stats.is_none()).map(|(index, _)| index).collect(),
            failing,
        }
    }

    /// What `render` makes of everything there is to see.
    async fn scrape(&self, render: fn(&Scrape<'_>) -> String) -> String {
        let (shards, all) = self.counts().await;
        let leaving = self.leaving.load(Ordering::Relaxed);
        let edges: Vec<&EdgeStats> = self.edges.iter().map(AsRef::as_ref).collect();
        let queued: Vec<usize> = (0..shards.len()).map(|i| self.shards.queued(i)).collect();
        let tracing = &self.tracing;
        render(&Scrape {
            shards: &shards,
            edges: &edges,
            queued: &queued,
            ready: !leaving && all,
            draining: leaving,
            log: self.log.as_ref().map(|log| log.stats()),
            trace: TraceScrape {
                rules: tracing.watch.rules(self.clock.now()).len(),
                watch: &tracing.watch,
                export: tracing.export.as_deref(),
            },
            certificate: self.identity.as_ref().map(Identity::reloads),
            process: read_process().unwrap_or_default(),
        })
    }
}

/// What speaks against taking traffic.
struct Readiness {
    leaving: bool,
    /// Shards that do not answer.
    silent: Vec<usize>,
    /// Why important events cannot be logged.
    failing: Option<&'static str>,
}

impl Readiness {
    fn is_ready(&self) -> bool {
        !self.leaving && self.silent.is_empty() && self.failing.is_none()
    }
}

/// Keeps `ready` at what `/readyz` says, looking every [`LOOK_EVERY`], until the
/// task is aborted: for those who are answered from what is known.
pub async fn follow_readiness(observer: Arc<Observer>, ready: watch::Sender<bool>) {
    loop {
        let is_ready = observer.readiness().await.is_ready();
        ready.send_if_modified(|before| std::mem::replace(before, is_ready) != is_ready);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Serves the operators until the task is aborted.
pub async fn serve(listener: TcpListener, observer: Arc<Observer>) {
    let router = Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/admission", get(overload::show))
        .route("/admission/pin", post(overload::pin))
        .route("/admission/silence", post(overload::silence))
        .route("/admission/joins", post(overload::joins))
        .route("/trace", get(trace::show).post(trace::set))
        .with_state(observer);
    if let Err(error) = axum::serve(listener, router).await {
        warn!(%error, "the operators' port is closed");
    }
}

/// What else there is on this port.
const PLACES: &str = "
elsewhere
  /metrics    the same and more, for Prometheus
  /healthz    the process lives
  /readyz     it takes traffic
  /admission  overload control; POST /admission/pin, /admission/silence, /admission/joins
  /trace      steps of single events; POST /trace follows some
";

/// How often a browser that shows the page asks for it again, in seconds.
const REFRESH: HeaderValue = HeaderValue::from_static("5");

async fn index(State(observer): State<Arc<Observer>>) -> Response<Body> {
    let page = observer.scrape(overview).await + PLACES;
    let mut response = Response::new(Body::from(page));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(HeaderName::from_static("refresh"), REFRESH);
    response
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(observer): State<Arc<Observer>>) -> Response<Body> {
    let readiness = observer.readiness().await;
    let ready = readiness.is_ready();
    let Readiness { leaving, silent, failing } = readiness;
    let silent: Vec<String> = silent.iter().map(usize::to_string).collect();
    let log = failing.map_or_else(|| "null".to_owned(), |why| format!("\"{why}\""));
    let body = format!(
        "{{\"ready\":{ready},\"draining\":{leaving},\"silent_shards\":[{}],\"log_failing\":{log}}}\n",
        silent.join(",")
    );
    json(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body.into())
}

async fn metrics(State(observer): State<Arc<Observer>>) -> Response<Body> {
    let mut response = Response::new(Body::from(observer.scrape(render).await));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(METRICS_TYPE));
    response
}

/// From /proc; `None` where that is not Linux's.
fn read_process() -> Option<Process> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name in parentheses, and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let boot = std::fs::read_to_string("/proc/stat").ok()?;
    let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?.parse::<f64>().ok()?;
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let page = rustix::param::page_size() as f64;
    Some(Process {
        resident_bytes: (field(24)? * page) as u64,
        cpu_seconds: (field(14)? + field(15)?) / TICKS,
        open_fds: std::fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        max_fds: files.split_whitespace().next()?.parse().unwrap_or(u64::MAX),
        start_seconds: boot + field(22)? / TICKS,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_what_the_process_uses() {
        let process = read_process().expect("Linux");
        assert!(process.resident_bytes > 1 << 20);
        assert!(process.open_fds >= 3 && process.max_fds > process.open_fds);
        assert!(process.start_seconds > 1.7e9, "{process:?}");
    }
}
