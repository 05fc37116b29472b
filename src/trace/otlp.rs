//! Steps as OpenTelemetry spans, sent to a collector by OTLP over HTTP.
//! <https://opentelemetry.io/docs/specs/otlp/>
//!
//! One trace per event, or the publisher's where it sent `traceparent`. A span
//! `event` stands for one arrival, from its socket to the end of its home's
//! work; each step is a span below it. Spans are known only once they are over
//! and their ids are hashes, so that shards need not agree on anything: the
//! OpenTelemetry SDK is made for the contrary, spans that one task opens and
//! closes. What remains of it is the message, [`message`].
//!
//! The exporter is one task, owned by the server. Shards put spans into a
//! bounded queue and never wait; what does not fit is counted as dropped.

mod exporter;
pub mod message;

pub use exporter::{ExportError, ExportSettings, ExportStats, Exporter, Spans};

use std::sync::Arc;

use self::message::{Attribute, SpanMessage, Status};
use super::step::{Detail, Step};
use crate::engine::ids::ShardId;
use crate::engine::mark::Mark;
use crate::engine::time::Time;

/// A span that is over.
#[derive(Debug, Clone)]
pub struct Span {
    mark: Arc<Mark>,
    own: u64,
    parent: Option<u64>,
    /// `None`: the event's own.
    step: Option<Step>,
    shard: ShardId,
    details: Vec<(&'static str, Detail)>,
    start: Time,
    end: Time,
    /// Why the event was not taken, or reaches nobody.
    failed: Option<&'static str>,
}

impl Span {
    /// One step.
    pub(super) fn of_step(
        mark: &Arc<Mark>,
        own: u64,
        step: Step,
        shard: ShardId,
        details: &[(&'static str, Detail)],
        start: Time,
        end: Time,
    ) -> Self {
        let (parent, failed) = (Some(mark.span), failure(step, details));
        let (mark, details, step) = (Arc::clone(mark), details.to_vec(), Some(step));
        Self { mark, own, parent, step, shard, details, start, end, failed }
    }

    /// The event, which has come to its last step at its home.
    pub(super) fn whole(
        mark: &Arc<Mark>,
        last: Step,
        details: &[(&'static str, Detail)],
        end: Time,
    ) -> Self {
        Self {
            own: mark.span,
            parent: mark.parent,
            step: None,
            shard: mark.shard,
            details: vec![("ended", Detail::Word(last.name()))],
            start: mark.received,
            end,
            failed: failure(last, details),
            mark: Arc::clone(mark),
        }
    }

    pub(super) fn message(&self) -> SpanMessage {
        let mark = &self.mark;
        let mut attributes = vec![
            Attribute::text("tidegate.room", mark.room.as_str()),
            Attribute::text("tidegate.event.id", &mark.id),
            Attribute::number("tidegate.shard", self.shard.0.into()),
        ];
        if self.step.is_none() {
            attributes.push(Attribute::text("tidegate.event.kind", &mark.kind));
            attributes.push(Attribute::text("tidegate.way", mark.way.name()));
        }
        attributes.extend(self.details.iter().map(|(name, detail)| {
            let name = format!("tidegate.{name}");
            match *detail {
                Detail::Count(count) => Attribute::number(&name, count),
                Detail::Word(word) => Attribute::text(&name, word),
            }
        }));
        let nanos = |time: Time| time.as_micros().saturating_mul(1_000);
        SpanMessage {
            trace_id: mark.trace.to_be_bytes().to_vec(),
            span_id: self.own.to_be_bytes().to_vec(),
            parent_span_id: self.parent.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
            name: self.step.map_or("event", Step::name).to_owned(),
            kind: if self.step.is_none() { message::SERVER } else { message::INTERNAL },
            start_time_unix_nano: nanos(self.start),
            end_time_unix_nano: nanos(self.end.max(self.start)),
            attributes,
            status: self.failed.map(Status::error),
        }
    }
}

fn failure(step: Step, details: &[(&'static str, Detail)]) -> Option<&'static str> {
    if !matches!(step, Step::Refused | Step::Dropped) {
        return None;
    }
    details.iter().find_map(|(_, detail)| match *detail {
        Detail::Word(word) => Some(word),
        Detail::Count(_) => None,
    })
}
