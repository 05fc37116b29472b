//! Following one event through every step of its way.
//!
//! Where an event comes in, [`Watch`] says whether it is followed: by a sample
//! of the ids, by a rule that an operator has set, or because its publisher
//! follows it. Then it carries a [`Mark`](crate::engine::mark::Mark), and every
//! shard's [`Recorder`] notes its steps with their times, in a ring of its own.
//! `GET /trace` puts the shards' notes together; [`otlp`] sends them on as
//! spans.
//!
//! The rules are shared by reference instead of being told to every shard:
//! ingress tasks are no part of a shard's state, and so a rule holds for all
//! ways in from one moment on. While nothing is followed a request reads one
//! flag that nobody writes, and every later step asks an event for its mark.
//!
//! Everything is bounded: rules, events per rule, traces per shard, steps per
//! trace, spans that wait. What does not fit is counted.

pub mod otlp;
mod parent;
mod recorder;
mod step;
mod watch;

pub use parent::Parent;
pub use recorder::{Again, Query, Recorder, RecorderSettings, TraceStats, View, Written};
pub use step::{Detail, Noted, Step};
pub use watch::{Arrival, Marker, Rule, Target, TooManyRules, Watch, WatchSettings};
