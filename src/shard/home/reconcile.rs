//! What viewers say they received, compared with what their rooms sent.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::Homes;
use crate::engine::confirm::Asked;
use crate::engine::digest::{Digest, MAX_RANGE};
use crate::engine::event::{Frame, Numbered};
use crate::engine::ids::ImportantNo;
use crate::engine::time::Time;
use crate::shard::peers::{Message, Path, Reconcile, Wanted};
use crate::shard::stats::{DIGEST_RESULTS, count};
use crate::trace::Again;
use crate::wire::message::ServerMessage;
use crate::wire::shared::message;

/// Who is asked to acknowledge is asked for a digest too, of this many events,
/// when that many have gone out.
const EVERY: u64 = 100;

/// Between two lines in the log about mismatches.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// How long a viewer that has something else than we is to spread its pull.
const PULL_WITHIN_MS: u32 = 1_000;

/// What came of comparing.
#[derive(Debug)]
pub(super) struct Digests {
    pub(super) results: [u64; DIGEST_RESULTS.len()],
    next_log: Time,
}

impl Digests {
    pub(super) fn new(now: Time) -> Self {
        Self { results: [0; DIGEST_RESULTS.len()], next_log: now }
    }
}

/// Asks for a digest as well, when it is time.
pub(super) fn with_digest(asked: Asked, frame: &Frame) -> Asked {
    let carried = frame.events.iter().filter(|event| event.important.is_some()).count() as u64;
    let ImportantNo(last) = frame.important;
    let due = last / EVERY > last.saturating_sub(carried) / EVERY;
    let digest_from = due.then(|| ImportantNo(last.saturating_sub(EVERY + carried) + 1));
    let digest_from = digest_from.filter(|from| last - from.0 < MAX_RANGE);
    Asked { digest_from, ..asked }
}

impl Homes {
    /// Compares a viewer's digest, or has the log read for it.
    pub fn reconcile(&mut self, reconcile: Reconcile, path: &Arc<dyn Path>, now: Time) {
        let Reconcile { room: id, from, to, .. } = &reconcile;
        let Some(home) = self.rooms.get(id) else { return };
        if *to > home.room.sent_important() {
            // It cannot have received what was not sent; nor is that a loss.
            return count(&mut self.digests.results, &DIGEST_RESULTS, "unknown");
        }
        let (after, events) = (ImportantNo(from.0 - 1), (to.0 + 1 - from.0) as usize);
        let held = home.room.history_after_important(after, events);
        let wanted = Wanted::Digest(reconcile.clone());
        if !held.complete && self.read_log(id, after, events, wanted, path) {
            return;
        }
        self.compare(&reconcile, &held.events, held.complete, path.as_ref(), now);
    }

    pub(super) fn compare(
        &mut self,
        reconcile: &Reconcile,
        events: &[Arc<Numbered>],
        complete: bool,
        path: &dyn Path,
        now: Time,
    ) {
        let Reconcile { room, from, to, digest: theirs, viewer } = reconcile;
        let ours = Digest::of(events.iter().map(AsRef::as_ref));
        let whole = complete || u64::from(ours.count) == to.0 + 1 - from.0;
        let result = match (whole, ours == *theirs) {
            (false, _) => "unknown",
            (true, true) => "match",
            (true, false) => "mismatch",
        };
        count(&mut self.digests.results, &DIGEST_RESULTS, result);
        if result != "mismatch" {
            return;
        }
        if now >= self.digests.next_log {
            self.digests.next_log = now + LOG_EVERY;
            let (has, sent) = (theirs.count, ours.count);
            warn!(%room, from = from.0, to = to.0, has, sent, "a viewer has other events than were sent");
        }
        if let (Some(tracer), Some(home)) = (&mut self.tracer, self.rooms.get(room)) {
            tracer.missed((room, home.room.epoch()), (*from, *to), Again::Digest);
        }
        let (from, to, within_ms) = (*from, *to, PULL_WITHIN_MS);
        let told = ServerMessage::Missed { room: room.as_str(), from, to, within_ms };
        let bytes = message(viewer.format, &told);
        path.send(viewer.shard, Message::Direct { viewer: viewer.viewer, bytes });
    }
}
