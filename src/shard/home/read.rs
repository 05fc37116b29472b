//! What rooms are asked for again: pulls of viewers, readers over HTTP, and
//! what those who come back are owed. Memory answers first; what it has
//! forgotten is read from the log, and the answer waits for that.

use std::sync::Arc;
use std::time::Duration;

use super::{HomeRoom, Homes, MAX_PULL, SNAPSHOT_AGE};
use crate::engine::delivery::{Ask, Cut};
use crate::engine::event::{Frame, Numbered};
use crate::engine::ids::{ImportantNo, RoomId, ShardId};
use crate::engine::room::{Position, Replay};
use crate::engine::time::Time;
use crate::log::{Read, ReadAnswer};
use crate::shard::peers::{After, Asker, Events, LogRead, Message, Path, Wanted};
use crate::shard::rebase::Located;
use crate::shard::stats::{PULL_RESULTS, count};
use crate::shard::traces;
use crate::trace::Again;
use crate::wire::message::ServerMessage;
use crate::wire::shared::{SharedFrame, SharedSnapshot, message};

/// When a read that the log has no place for may be tried again.
const LOG_BUSY: Duration = Duration::from_millis(500);

/// Answers to pulls kept for those who ask the same within a moment.
const PULLS_KEPT: usize = 16;

/// An answer to a pull.
pub(super) struct Pulled {
    after: ImportantNo,
    events: usize,
    made: Time,
    frame: Arc<SharedFrame>,
    complete: bool,
}

/// The rate of pulls, a cost of its own beside what publishers cause: a token
/// bucket that holds a second's worth.
#[derive(Debug)]
pub(super) struct Pulls {
    per_second: f64,
    left: f64,
    filled: Time,
    pub(super) results: [u64; PULL_RESULTS.len()],
}

impl Pulls {
    pub(super) fn new(per_second: u32, now: Time) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: per_second, filled: now, results: [0; PULL_RESULTS.len()] }
    }

    /// Takes one, or says how long until there is one.
    fn take(&mut self, now: Time) -> Option<Duration> {
        let refill = now.since(self.filled).as_secs_f64() * self.per_second;
        (self.left, self.filled) = ((self.left + refill).min(self.per_second), now);
        if self.left < 1.0 {
            return Some(Duration::from_secs_f64((1.0 - self.left) / self.per_second));
        }
        self.left -= 1.0;
        None
    }
}

/// Bytes that one read of the log brings at most.
const READ_BYTES: usize = 1 << 20;

impl Homes {
    /// Sends a viewer the important events it asks for. When a whole room asks
    /// for the same, they are encoded once; beyond the rate that pulls may have,
    /// viewers are told when to come back.
    pub fn pull(
        &mut self,
        id: &RoomId,
        (from, to): (ImportantNo, ImportantNo),
        asker: Asker,
        path: &Arc<dyn Path>,
        now: Time,
    ) {
        let Some(home) = self.rooms.get_mut(id) else { return };
        let events = to.0.saturating_add(1).saturating_sub(from.0).min(MAX_PULL) as usize;
        let after = ImportantNo(from.0.saturating_sub(1));
        if let Some(wait) = self.pulls.take(now) {
            return self.put_off(id, asker, wait, path.as_ref());
        }
        home.pulled.retain(|pulled| now.since(pulled.made) < SNAPSHOT_AGE);
        let known =
            home.pulled.iter().find(|pulled| (pulled.after, pulled.events) == (after, events));
        if let Some(Pulled { frame, complete, .. }) = known {
            count(&mut self.pulls.results, &PULL_RESULTS, "shared");
            traces::again(&mut self.tracer, frame, Again::Pulled, 1);
            return send_pulled(id, asker, frame, *complete, path.as_ref());
        }
        let replay = home.room.history_after_important(after, events);
        let wanted = Wanted::Pull { after, events, asker };
        if !replay.complete && self.read_log(id, after, events, wanted, path) {
            return count(&mut self.pulls.results, &PULL_RESULTS, "log");
        }
        if !replay.complete && self.journal().is_some() {
            // As many reads wait as may: what is kept must not be called gone.
            return self.put_off(id, asker, LOG_BUSY, path.as_ref());
        }
        let result = if replay.complete { "memory" } else { "gone" };
        count(&mut self.pulls.results, &PULL_RESULTS, result);
        self.pulled(id, (after, events), asker, replay.events, replay.complete, path.as_ref(), now);
    }

    /// Tells a viewer to pull again later.
    fn put_off(&mut self, id: &RoomId, asker: Asker, wait: Duration, path: &dyn Path) {
        count(&mut self.pulls.results, &PULL_RESULTS, "limited");
        // Spread over as long again, so that they do not come back as one.
        let spread = u64::from(asker.viewer.index.wrapping_mul(0x9e37_79b1) >> 16);
        let wait_ms = wait.as_millis() as u64 + 1;
        let retry_after_ms = Some(wait_ms + wait_ms.max(1_000) * spread / 65_536);
        let reason = "more is pulled than the server brings at once";
        let error = error(id, "pull_limited", reason, true, retry_after_ms);
        let bytes = message(asker.format, &error);
        path.send(asker.shard, Message::Direct { viewer: asker.viewer, bytes });
    }

    #[allow(clippy::too_many_arguments, reason = "one pull's parts, used twice")]
    fn pulled(
        &mut self,
        id: &RoomId,
        (after, wanted): (ImportantNo, usize),
        asker: Asker,
        events: Vec<Arc<Numbered>>,
        complete: bool,
        path: &dyn Path,
        now: Time,
    ) {
        let Some(home) = self.rooms.get_mut(id) else { return };
        let frame = Arc::new(SharedFrame::new(home.beside(events, now), self.settings.compression));
        send_pulled(id, asker, &frame, complete, path);
        traces::again(&mut self.tracer, &frame, Again::Pulled, 1);
        if home.pulled.len() < PULLS_KEPT {
            home.pulled.push(Pulled { after, events: wanted, made: now, frame, complete });
        }
    }

    /// Tells a slow viewer's shard where a room stands.
    pub fn locate(&mut self, viewer: Asker, ask: Ask, path: &Arc<dyn Path>, now: Time) {
        let Some(home) = self.rooms.get(&ask.room) else { return };
        let after = ask.from.map(|from| ImportantNo(from.0.saturating_sub(1)));
        let limit = MAX_PULL as usize;
        let owed = after.map(|after| home.room.history_after_important(after, limit));
        if let (Some(after), Some(owed)) = (after, &owed)
            && !owed.complete
            && self.read_log(
                &ask.room,
                after,
                limit,
                Wanted::Locate { viewer, ask: ask.clone(), after },
                path,
            )
        {
            return;
        }
        self.located(viewer, ask, owed, path.as_ref(), now);
    }

    fn located(
        &mut self,
        viewer: Asker,
        ask: Ask,
        owed: Option<Replay>,
        path: &dyn Path,
        now: Time,
    ) {
        let compression = self.settings.compression;
        let Some(home) = self.rooms.get_mut(&ask.room) else { return };
        let snapshot = home.snapshot(compression, now);
        let located = Located { viewer: viewer.viewer, ask, snapshot, owed };
        path.send(viewer.shard, Message::Located(Box::new(located)));
    }

    /// Where a room stands, if anything is known of it.
    pub fn read_room(&mut self, id: &RoomId, now: Time) -> Option<Arc<SharedSnapshot>> {
        let compression = self.settings.compression;
        if !self.knows(id) {
            return None;
        }
        Some(self.open(id, now)?.snapshot(compression, now))
    }

    /// What a room has after a number, if anything is known of it.
    pub fn read_events(
        &mut self,
        id: &RoomId,
        after: After,
        limit: usize,
        reply: tokio::sync::oneshot::Sender<Option<Events>>,
        path: &Arc<dyn Path>,
        now: Time,
    ) {
        let known = self.knows(id);
        let Some(home) = known.then(|| self.open(id, now)).flatten() else {
            // Whoever asked may have given up; here and below nobody hears it then.
            let _ = reply.send(None);
            return;
        };
        let replay = match after {
            After::Seq(seq) => home.room.history_after_seq(seq, limit),
            After::Important(important) => home.room.history_after_important(important, limit),
        };
        let events = home.events(replay.events, replay.complete, replay.more);
        match after {
            // Without a log, what is kept is all there is.
            After::Important(after)
                if !replay.complete && after <= events.important && self.journal().is_some() =>
            {
                let reason = Wanted::Http { after, events: limit, reply };
                self.read_log(id, after, limit, reason, path);
            }
            _ => {
                super::traces::read(&mut self.tracer, &events.events);
                drop(reply.send(Some(events)));
            }
        }
    }

    /// Asks the log for what came after a number. Returns whether an answer
    /// will come; when it will not, a reader over HTTP has been answered.
    pub(super) fn read_log(
        &self,
        id: &RoomId,
        after: ImportantNo,
        max_events: usize,
        wanted: Wanted,
        path: &Arc<dyn Path>,
    ) -> bool {
        let (Some(journal), Some(home)) = (self.journal(), self.rooms.get(id)) else {
            return false;
        };
        let (room, path, shard) = (id.clone(), Arc::clone(path), self.shard);
        let reply = move |answer: ReadAnswer| {
            path.send(shard, Message::LogRead(Box::new(LogRead { room, wanted, answer })));
        };
        let epoch = home.room.epoch();
        let read = Read {
            room: id.clone(),
            epoch,
            after,
            max_events,
            max_bytes: READ_BYTES,
            reply: Box::new(reply),
        };
        journal.read(read).is_ok()
    }

    /// The log has answered.
    pub fn log_read(&mut self, read: LogRead, path: &dyn Path, now: Time) {
        let LogRead { room: id, wanted, mut answer } = read;
        if let (Some(tracer), Some(home)) = (&self.tracer, self.rooms.get(&id)) {
            tracer.recognise(&id, home.room.epoch(), &mut answer.events);
        }
        match wanted {
            Wanted::Pull { after, events, asker } => {
                let Some(home) = self.rooms.get(&id) else { return };
                let complete = answer.complete;
                let found = home.joined_up(after, answer, events);
                self.pulled(&id, (after, events), asker, found, complete, path, now);
            }
            Wanted::Http { after, events: limit, reply } => {
                let events = self.rooms.get(&id).map(|home| {
                    let complete = answer.complete;
                    let events = home.joined_up(after, answer, limit);
                    let last = events.last().and_then(|event| event.important);
                    let more = last.unwrap_or(after) < home.room.sent_important();
                    home.events(events, complete, more)
                });
                if let Some(Events { events, .. }) = &events {
                    super::traces::read(&mut self.tracer, events);
                }
                let _ = reply.send(events);
            }
            Wanted::Digest(reconcile) => {
                let complete = answer.complete && !answer.more;
                self.compare(&reconcile, &answer.events, complete, path, now);
            }
            Wanted::Locate { viewer, ask, after } => {
                let Some(home) = self.rooms.get(&id) else { return };
                let complete = answer.complete;
                let events = home.joined_up(after, answer, MAX_PULL as usize);
                let last = events.last().and_then(|event| event.important).unwrap_or(after);
                let more = last < home.room.sent_important();
                let owed = Some(Replay { events, complete, more });
                self.located(viewer, ask, owed, path, now);
            }
            Wanted::Resume { shard, from } => self.resume_read(&id, shard, from, answer, path, now),
        }
    }

    fn resume_read(
        &mut self,
        id: &RoomId,
        shard: ShardId,
        from: Position,
        answer: ReadAnswer,
        path: &dyn Path,
        now: Time,
    ) {
        let (compression, limit) = (self.settings.compression, self.settings.resume_events);
        let Some(home) = self.rooms.get_mut(id) else { return };
        let entrance = home.entrance_with(from, answer, limit, compression, now);
        path.send(shard, Message::Enter(entrance));
    }
}

fn send_pulled(id: &RoomId, asker: Asker, frame: &SharedFrame, complete: bool, path: &dyn Path) {
    let send = |bytes| path.send(asker.shard, Message::Direct { viewer: asker.viewer, bytes });
    if !complete {
        let reason = "some of the important events asked for are no longer held";
        send(message(asker.format, &error(id, "history_gone", reason, false, None)));
    }
    send(frame.bytes(asker.format, Cut::Full).clone());
}

fn error<'a>(
    id: &'a RoomId,
    code: &'a str,
    reason: &'a str,
    temporary: bool,
    retry_after_ms: Option<u64>,
) -> ServerMessage<'a> {
    ServerMessage::Error { code, reason, temporary, room: Some(id.as_str()), retry_after_ms }
}

impl HomeRoom {
    /// A frame that carries events and covers no new numbers.
    fn beside(&self, events: Vec<Arc<Numbered>>, now: Time) -> Frame {
        let Self { room, .. } = self;
        let at = (room.epoch(), room.sent_seq());
        Frame::beside(room.id().clone(), at, room.sent_important(), events, now)
    }

    fn events(&self, events: Vec<Arc<Numbered>>, complete: bool, more: bool) -> Events {
        Events {
            epoch: self.room.epoch(),
            seq: self.room.sent_seq(),
            important: self.room.sent_important(),
            events,
            complete,
            more,
        }
    }

    /// What the log brought and, where it ends, what memory has after that;
    /// nothing that viewers have not been sent.
    pub(super) fn joined_up(
        &self,
        after: ImportantNo,
        answer: ReadAnswer,
        limit: usize,
    ) -> Vec<Arc<Numbered>> {
        let sent = Some(self.room.sent_important());
        let mut events = answer.events;
        events.retain(|event| event.important <= sent);
        let last = events.last().and_then(|event| event.important).unwrap_or(after);
        if !answer.more && events.len() < limit {
            let rest = self.room.history_after_important(last, limit - events.len());
            // A hole between the two would look like nothing had been there.
            if rest.complete {
                events.extend(rest.events);
            }
        }
        events
    }
}
