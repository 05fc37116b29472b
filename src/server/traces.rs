//! The parts of following events that all shards share, and the exporter's task.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::clock::Clock;
use crate::config::Trace;
use crate::engine::ids::ShardId;
use crate::trace::otlp::{ExportSettings, ExportStats, Exporter, Spans};
use crate::trace::{Recorder, RecorderSettings, Watch, WatchSettings};

/// How long the end of the process waits for the last spans.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// See the module's documentation.
pub(super) struct Tracing {
    pub(super) watch: Arc<Watch>,
    /// The exporter's counters, if there is one.
    pub(super) stats: Option<Arc<ExportStats>>,
    kept: usize,
    spans: Option<Spans>,
    exporter: Option<Exporter>,
}

/// The exporter's task.
pub(super) struct Exporting(Option<JoinHandle<()>>);

impl Tracing {
    pub(super) fn new(config: &Trace, seed: u128) -> anyhow::Result<Self> {
        let watch = WatchSettings {
            sample_one_in: config.sample_one_in,
            follow_parents: config.follow_parents,
            most_rules: config.rules,
        };
        let exporter = match config.otlp_endpoint.is_empty() {
            true => None,
            false => Some(exporter(config, seed)?),
        };
        let (exporter, spans) = exporter.unzip();
        let stats = exporter.as_ref().map(Exporter::stats);
        let watch = Arc::new(Watch::new(watch));
        Ok(Self { watch, stats, kept: config.kept, spans, exporter })
    }

    /// For a shard.
    pub(super) fn recorder(&self, shard: ShardId, clock: Clock) -> Recorder {
        let settings = RecorderSettings { kept: self.kept };
        Recorder::new(shard, clock, settings, self.spans.clone())
    }

    /// Every shard has its recorder: the exporter ends when they have.
    pub(super) fn start(&mut self) -> Exporting {
        self.spans = None;
        Exporting(self.exporter.take().map(|exporter| tokio::spawn(exporter.run())))
    }
}

fn exporter(config: &Trace, seed: u128) -> anyhow::Result<(Exporter, Spans)> {
    let headers = config.headers().map_err(anyhow::Error::msg).context("trace.otlp_headers")?;
    let trust = config.trust().map_err(anyhow::Error::msg).context("trace.otlp_ca")?;
    if !headers.is_empty() && config.is_in_clear() {
        warn!(
            endpoint = config.otlp_endpoint,
            "trace.otlp_headers cross the network in clear, readable for whoever is in between"
        );
    }
    let settings = ExportSettings {
        endpoint: config.otlp_endpoint.clone(),
        trust,
        headers,
        service_name: config.service_name.clone(),
        instance: format!("{:016x}", seed as u64),
        queue: config.otlp_queue,
    };
    Exporter::new(settings).context("trace.otlp_endpoint")
}

impl Exporting {
    /// Waits a little for the last spans, once the shards have ended.
    pub(super) async fn finish(self) {
        let Some(mut task) = self.0 else { return };
        if tokio::time::timeout(LAST_SPANS, &mut task).await.is_err() {
            warn!("the last spans were not exported");
            task.abort();
        }
    }
}
