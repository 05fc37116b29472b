//! A log under test, and events for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate::engine::event::{Event, Numbered, Payload};
use tidegate::engine::ids::{Epoch, ImportantNo, RoomId, Seq, ShardId, Tier};
use tidegate::engine::kind::{Ack, Kind, Lane, Merge};
use tidegate::engine::time::Time;
use tidegate::log::{
    Batch, Entry, KindOf, Log, LogError, LogFailure, LogSettings, LogState, Logged, Read,
    ReadAnswer, Recovered,
};

use super::disk::MemoryDisk;

/// When tests begin.
pub(crate) const START: Time = Time::from_millis(1_800_000_000_000);
/// Longest wait for anything; nothing comes near it.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn kinds() -> KindOf {
    Arc::new(|name: &str| {
        Arc::new(Kind {
            name: name.into(),
            lane: Lane::Important,
            merge: Merge::Append,
            tier: Tier(0),
            ttl: None,
            max_payload_bytes: 1 << 20,
            ack: Ack::Logged,
            viewer_publish: false,
            idle_reset: None,
        })
    })
}

/// Small segments, so that there are many, and short pauses.
pub(crate) fn settings() -> LogSettings {
    let first_pause = Duration::from_millis(1);
    LogSettings { segment_bytes: 4_096, ahead_bytes: 3_000, first_pause, ..LogSettings::new("log") }
}

pub(crate) fn room(name: &str) -> RoomId {
    RoomId::new(name).expect("a room's name")
}

/// An event with every field that the log keeps; `salt` makes it unlike others.
pub(crate) fn event(important: u64, seq: u64, salt: u64, received: Time) -> Arc<Numbered> {
    let text =
        |n: u64| format!("{{\"coupon\":{n},\"fill\":\"{}\"}}", "x".repeat(salt as usize % 50));
    let event = Event {
        id: format!("id-{salt}").into(),
        kind: kinds()(if salt.is_multiple_of(2) { "coupon" } else { "red_packet" }),
        user: format!("user{}", salt % 7).into(),
        payload: Payload { bytes: Bytes::from(text(salt)), json: !salt.is_multiple_of(3) },
        key: salt.is_multiple_of(3).then(|| format!("key{salt}").into()),
        amount: salt.is_multiple_of(4).then(|| salt as i64 - 1_000),
        ttl: salt.is_multiple_of(5).then(|| Duration::from_millis(salt)),
        received,
        mark: None,
    };
    Arc::new(Numbered { event, seq: Some(Seq(seq)), important: Some(ImportantNo(important)) })
}

/// A log and what it answers.
pub(crate) struct Bench {
    pub(crate) log: Log,
    pub(crate) recovered: Recovered,
    pub(crate) answers: Receiver<Logged>,
    ticket: u64,
}

impl Bench {
    pub(crate) fn open(disk: &MemoryDisk) -> Self {
        Self::open_with(disk, settings(), START).expect("the log opens")
    }

    pub(crate) fn open_with(
        disk: &MemoryDisk,
        settings: LogSettings,
        now: Time,
    ) -> Result<Self, LogError> {
        let (sender, answers) = channel();
        let done = Box::new(move |logged| {
            // Whoever does not listen any more does not want to know.
            let _ = sender.send(logged);
        });
        let (log, recovered) = Log::open_on(Arc::new(disk.clone()), settings, kinds(), now, done)?;
        Ok(Self { log, recovered, answers, ticket: 0 })
    }

    /// Submits without waiting; gives the ticket.
    pub(crate) fn submit(&mut self, entries: Vec<Entry>) -> Result<u64, LogFailure> {
        self.ticket += 1;
        let generation = self.log.generation();
        let (shard, ticket) = (ShardId(0), self.ticket);
        self.log.submit(Batch { shard, ticket, generation, entries })?;
        Ok(ticket)
    }

    pub(crate) fn answer(&self) -> Logged {
        self.answers.recv_timeout(PATIENCE).expect("every batch is answered")
    }

    /// Submits and waits.
    pub(crate) fn write(&mut self, entries: Vec<Entry>) -> Result<(), LogFailure> {
        let ticket = self.submit(entries)?;
        let logged = self.answer();
        assert_eq!(logged.ticket, ticket, "answers come in order");
        logged.result
    }

    pub(crate) fn write_event(&mut self, room: &RoomId, epoch: Epoch, event: &Arc<Numbered>) {
        let (room, event) = (room.clone(), Arc::clone(event));
        self.write(vec![Entry::Event { room, epoch, event }]).expect("the event is logged");
    }

    pub(crate) fn read(
        &self,
        room: &RoomId,
        epoch: Epoch,
        after: u64,
        max_events: usize,
    ) -> ReadAnswer {
        let (sender, answer) = channel();
        self.log
            .read(Read {
                room: room.clone(),
                epoch,
                after: ImportantNo(after),
                max_events,
                max_bytes: usize::MAX,
                reply: Box::new(move |answer| {
                    let _ = sender.send(answer);
                }),
            })
            .expect("the reader takes it");
        answer.recv_timeout(PATIENCE).expect("every read is answered")
    }

    /// Everything retained of a numbering, by number.
    pub(crate) fn read_all(&self, room: &RoomId, epoch: Epoch) -> BTreeMap<u64, Arc<Numbered>> {
        let answer = self.read(room, epoch, 0, usize::MAX);
        assert!(!answer.more);
        let number = |event: &Arc<Numbered>| event.important.expect("logged events have one").0;
        let events: Vec<u64> = answer.events.iter().map(number).collect();
        assert!(events.is_sorted_by(|a, b| a < b), "in order: {events:?}");
        answer.events.into_iter().map(|event| (number(&event), event)).collect()
    }

    /// Waits until it takes writes again. Attempts are real-time pauses apart.
    pub(crate) fn until_writable(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.log.state() != LogState::Writable {
            assert!(Instant::now() < deadline, "the log does not recover: {:?}", self.log.state());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
