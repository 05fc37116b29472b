use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::super::event::{Event, Frame as Content, Numbered, Snapshot, Total};
use super::super::ids::Epoch;
use super::super::testing::{Build, START, card, chat, entrance, like, red_packet};
use super::*;

/// A frame whose bytes are its number, as often as what is left of it is large.
#[derive(Debug, Clone)]
struct Plain {
    number: u8,
    content: Arc<Content>,
}

/// Bytes of an event or a total.
const SIZE: usize = 10;

impl Frame for Plain {
    fn content(&self) -> &Content {
        &self.content
    }

    fn bytes(&self, cut: Cut) -> Bytes {
        let content = &self.content;
        let events = content.events.iter().filter(|e| cut.keeps(e.event.kind.lane)).count();
        let totals = if cut.keeps_totals() { content.totals.len() } else { 0 };
        let numbers = cut != Cut::ImportantOnly && content.first_seq <= content.last_seq;
        vec![self.number; (events + totals) * SIZE + usize::from(numbers)].into()
    }
}

/// Notices are `G`, the number up to which they go, and how many are lost.
struct Tester;

impl Voice for Tester {
    fn gap(&self, _: &RoomId, first: Seq, last: Seq, dropped: &[DroppedKind]) -> Bytes {
        let lost: u64 = dropped.iter().map(|d| d.count).sum();
        vec![b'G', first.0 as u8, last.0 as u8, lost as u8].into()
    }

    fn gone(&self, _: &RoomId) -> Bytes {
        Bytes::from_static(b"!")
    }
}

fn room() -> RoomId {
    RoomId::new("r").expect("a valid name")
}

/// The frame with this number: `seq` and `important` are its last ones.
fn frame(number: u8, events: Vec<Build>, totals: usize, seq: u64, important: u64) -> Plain {
    let events: Vec<Event> = events.into_iter().map(Build::event).collect();
    let count = |lane| events.iter().filter(|e| e.kind.lane == lane).count() as u64;
    let numbered = count(Lane::Important) + count(Lane::Ordered);
    let (mut next, mut next_important) = (seq - numbered, important - count(Lane::Important));
    let kind = Arc::new(like("t").event().kind.as_ref().clone());
    let total = Total { kind, user: None, key: "".into(), sum: 1, delta: 1 };
    let numbers = |event: Event| {
        let lane = event.kind.lane;
        next += u64::from(lane != Lane::Sampled);
        next_important += u64::from(lane == Lane::Important);
        let seq = (lane != Lane::Sampled).then_some(Seq(next));
        let important = (lane == Lane::Important).then_some(ImportantNo(next_important));
        Arc::new(Numbered { event, seq, important })
    };
    let content = Content {
        room: room(),
        epoch: Epoch(1),
        first_seq: Seq(seq - numbered + 1),
        last_seq: Seq(seq),
        important: ImportantNo(important),
        time: START,
        oldest: START,
        events: events.into_iter().map(numbers).collect(),
        totals: vec![total; totals],
        dropped: Vec::new(),
        online: None,
        ack: None,
        represents: 0,
    };
    Plain { number, content: Arc::new(content) }
}

/// One chat, one entrance and one total: 31 bytes, 21 without sampled events, 11
/// without totals, nothing without ordered ones.
fn usual(number: u8) -> Plain {
    let events = vec![chat("c"), entrance("e", 3)];
    frame(number, events, 1, u64::from(number), 0)
}

fn settings(bytes: [usize; 4]) -> LadderSettings {
    let age = Duration::from_secs(20);
    LadderSettings {
        bounds: bytes.map(|bytes| Bounds { frames: 100, bytes, age }),
        recover: Duration::from_secs(2),
        recover_percent: 25,
        drain: Duration::from_secs(30),
    }
}

struct Driver {
    delivery: Delivery<Plain>,
    settings: LadderSettings,
    stats: DeliveryStats,
    now: Time,
}

impl Driver {
    fn new(bytes: [usize; 4]) -> Self {
        let stats = DeliveryStats::default();
        Self { delivery: Delivery::new(START), settings: settings(bytes), stats, now: START }
    }

    fn push(&mut self, frame: Plain) {
        self.delivery.frame(frame, &self.settings, &mut self.stats, self.now);
    }

    /// The socket takes up to this many bytes; what it got.
    fn take(&mut self, bytes: usize) -> Vec<u8> {
        self.delivery.prepare(&Tester);
        let got: Vec<u8> = self.delivery.chunks().flatten().copied().take(bytes).collect();
        self.delivery.advance(got.len(), &self.settings, &mut self.stats, self.now, |_, _| ());
        if self.delivery.is_empty() {
            self.delivery.drained(&mut self.stats, self.now);
        } else {
            self.delivery.refused();
        }
        got
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
        self.delivery.tick(&self.settings, &mut self.stats, self.now);
    }

    fn ask(&mut self) -> Option<Ask> {
        self.delivery.poll_ask(&self.settings, self.now)
    }

    /// Answers a question with the state after `seq`: `J`, behind what is owed.
    fn rebase(&mut self, ask: &Ask, owed: Vec<u64>, seq: u64, important: u64) {
        assert_eq!(self.delivery.wanted(&ask.room, ask.serial, ask.from), Wanted::Rebase(ask.from));
        let events = owed.into_iter().map(|no| {
            let (seq, important) = (Some(Seq(no)), Some(ImportantNo(no)));
            Arc::new(Numbered { event: red_packet("p").event(), seq, important })
        });
        let from = ask.from.unwrap_or(ImportantNo(important + 1));
        let owed = Owed::within(events.collect(), from, ImportantNo(important), false, usize::MAX);
        let snapshot = Snapshot {
            room: room(),
            epoch: Epoch(1),
            seq: Seq(seq),
            important: ImportantNo(important),
            online: 1,
            users: crate::engine::visitors::Users::default(),
            state: Vec::new(),
            totals: Vec::new(),
        };
        let frame = owed.frame(&snapshot, self.now);
        let frame = frame.map(|frame| Plain { number: b'O', content: Arc::new(frame) });
        let joined = (Seq(seq), Bytes::from_static(b"J"));
        let stats = &mut self.stats;
        self.delivery.rebased(&room(), &owed, frame, joined, &Tester, stats, self.now);
    }
}

#[test]
fn sampled_events_go_first_then_totals_then_ordered_events() {
    let mut viewer = Driver::new([62, 62, 62, 62]);
    (1..=2).for_each(|n| viewer.push(usual(n)));
    assert_eq!((viewer.delivery.rung(), viewer.delivery.bytes()), (Rung::Full, 62));
    viewer.push(usual(3));
    // 93 bytes, 63 without sampled events, 33 without totals.
    assert_eq!((viewer.delivery.rung(), viewer.delivery.bytes()), (Rung::TotalsOnly, 33));
    (4..=6).for_each(|n| viewer.push(usual(n)));
    assert_eq!((viewer.delivery.rung(), viewer.delivery.bytes()), (Rung::ImportantOnly, 0));
    let dropped = &viewer.stats.events_dropped;
    assert_eq!(dropped[Rung::NoSampled.index()], [0, 0, 3]);
    assert_eq!(dropped[Rung::TotalsOnly.index()], [0, 0, 3], "those that came later");
    assert_eq!(dropped[Rung::ImportantOnly.index()], [0, 6, 0]);
    assert_eq!(viewer.stats.totals_dropped[Rung::TotalsOnly.index()], [0, 0, 6]);
    assert_eq!(viewer.stats.climbed, [0, 1, 1, 1, 0]);
    viewer.push(frame(7, vec![red_packet("p")], 0, 7, 1));
    let got = viewer.take(1_000);
    assert_eq!(got[..4], [b'G', 1, 6, 12], "the notice comes before what follows");
    assert_eq!((got[4..].len(), viewer.stats.gaps), (SIZE, 1));
}

#[test]
fn what_has_begun_is_finished_as_it_began() {
    let mut viewer = Driver::new([62, 62, 62, 62]);
    viewer.push(usual(1));
    assert_eq!(viewer.take(5), [1; 5]);
    (2..=9).for_each(|n| viewer.push(usual(n)));
    assert_eq!(viewer.delivery.rung(), Rung::ImportantOnly);
    viewer.push(frame(10, vec![red_packet("p")], 0, 10, 1));
    let got = viewer.take(1_000);
    assert_eq!(got[..26], [1; 26]);
    assert_eq!(got[26..30], [b'G', 2, 9, 16]);
    assert_eq!(got[30..], [10; SIZE]);
}

#[test]
fn a_notice_that_has_not_begun_grows_with_what_is_lost_behind_it() {
    let mut viewer = Driver::new([62, 62, 62, 62]);
    viewer.push(usual(1));
    viewer.take(5);
    (2..=8).for_each(|n| viewer.push(usual(n)));
    viewer.push(frame(9, vec![red_packet("p")], 0, 9, 1));
    assert_eq!(viewer.take(20), [1; 20], "the notice is queued, not begun");
    viewer.push(usual(10));
    let got = viewer.take(1_000);
    assert_eq!(got[6..10], [b'G', 2, 10, 16]);
    assert_eq!(viewer.stats.gaps, 1, "one for the whole stall");
}

#[test]
fn totals_follow_once_all_else_is_sent_and_again_after_a_while() {
    let mut viewer = Driver::new([62, 62, 1_000, 1_000]);
    (1..=3).for_each(|n| viewer.push(usual(n)));
    assert_eq!(viewer.delivery.rung(), Rung::TotalsOnly);
    assert_eq!(viewer.ask(), None, "something waits");
    viewer.take(1_000);
    let ask = viewer.ask().expect("a question");
    assert_eq!((ask.from, viewer.ask()), (None, None), "asked once");
    assert_eq!(viewer.delivery.wanted(&room(), ask.serial + 1, None), Wanted::Nothing);
    assert_eq!(viewer.delivery.wanted(&room(), ask.serial, None), Wanted::Totals);
    let current = Bytes::from_static(b"T");
    viewer.delivery.retotalled(&room(), current, &mut viewer.stats, viewer.now);
    assert_eq!(viewer.take(1_000), b"T");
    viewer.push(usual(4));
    viewer.take(1_000);
    assert_eq!(viewer.ask(), None, "told a moment ago");
    viewer.pass(2);
    assert!(viewer.ask().is_some());
}

#[test]
fn a_value_that_was_not_sent_is_made_up_for_like_a_total() {
    let mut viewer = Driver::new([10, 10, 10, 1_000]);
    (1..=3).for_each(|n| viewer.push(frame(n, vec![card("c").key("k")], 0, n.into(), 0)));
    assert_eq!(viewer.delivery.rung(), Rung::ImportantOnly);
    viewer.take(1_000);
    let ask = viewer.ask().expect("a question");
    assert_eq!(viewer.delivery.wanted(&room(), ask.serial, None), Wanted::State);
}

#[test]
fn a_sampled_value_that_was_not_sent_is_made_up_for_at_the_end() {
    let counter = || card("c").kind(|kind| kind.lane = Lane::Sampled);
    let mut viewer = Driver::new([10, 1_000, 1_000, 1_000]);
    (1..=3).for_each(|n| viewer.push(frame(n, vec![counter()], 0, 0, 0)));
    assert_eq!(viewer.delivery.rung(), Rung::NoSampled);
    viewer.take(1_000);
    assert_eq!(viewer.ask(), None);
    viewer.pass(2);
    assert_eq!(viewer.delivery.rung(), Rung::Full);
    let ask = viewer.ask().expect("a question");
    assert_eq!(viewer.delivery.wanted(&room(), ask.serial, None), Wanted::State);
}

#[test]
fn a_rebase_drops_all_and_owes_what_is_important() {
    let mut viewer = Driver::new([25, 25, 25, 25]);
    viewer.push(usual(1));
    viewer.take(5);
    (2..=3).for_each(|n| viewer.push(usual(n)));
    (4..=6).for_each(|n| {
        viewer.push(frame(n, vec![red_packet("p")], 0, n.into(), u64::from(n) - 3));
    });
    assert_eq!((viewer.delivery.rung(), viewer.delivery.len()), (Rung::Rebase, 1));
    viewer.push(usual(7));
    assert_eq!(viewer.ask(), None, "the socket takes nothing yet");
    assert_eq!(viewer.take(1_000), [1; 26]);
    viewer.push(usual(8));
    let ask = viewer.ask().expect("a question");
    assert_eq!(ask.from, Some(ImportantNo(1)));
    viewer.push(frame(9, vec![red_packet("p")], 0, 9, 4));
    viewer.rebase(&ask, vec![1, 2, 3, 4], 9, 4);
    assert_eq!(viewer.delivery.rung(), Rung::ImportantOnly);
    let got = viewer.take(1_000);
    assert_eq!(got[..3], [b'G', 2, 9]);
    assert_eq!(got[4..44], [b'O'; 40]);
    assert_eq!(got[44..], *b"J");
    let stats = &viewer.stats;
    assert_eq!((stats.owed, stats.repaid, stats.unpaid, stats.rebased), (4, 4, 0, 1));
}

#[test]
fn an_important_event_that_comes_while_the_question_is_out_makes_it_ask_again() {
    let mut viewer = Driver::new([25, 25, 25, 25]);
    viewer.push(usual(1));
    viewer.take(5);
    viewer.pass(20);
    assert_eq!(viewer.delivery.rung(), Rung::Rebase, "nothing was taken for too long");
    viewer.push(usual(2));
    viewer.take(1_000);
    let ask = viewer.ask().expect("a question");
    viewer.push(frame(3, vec![red_packet("p")], 0, 3, 1));
    assert_eq!(viewer.delivery.wanted(&room(), ask.serial, ask.from), Wanted::Nothing);
    assert_eq!(viewer.ask().expect("another").from, Some(ImportantNo(1)));
}

#[test]
fn a_state_that_another_room_pushes_out_is_asked_for_again() {
    let elsewhere = |number: u8| {
        let packet = vec![red_packet("p")];
        let mut content = (*frame(number, packet, 0, number.into(), number.into()).content).clone();
        content.room = RoomId::new("q").expect("a valid name");
        Plain { number, content: Arc::new(content) }
    };
    let mut viewer = Driver::new([15; 4]);
    viewer.push(usual(1));
    viewer.take(5);
    viewer.pass(20);
    viewer.push(usual(2));
    viewer.take(1_000);
    let ask = viewer.ask().expect("a question");
    viewer.delivery.fixed(Bytes::from_static(b"answer"), false);
    viewer.rebase(&ask, Vec::new(), 2, 0);
    assert_eq!(viewer.take(3), b"ans", "the state has not begun");
    (1..=4).for_each(|n| viewer.push(elsewhere(n)));
    assert_eq!(viewer.delivery.rung(), Rung::Rebase);
    assert_eq!(viewer.take(1_000), b"wer");
    let again: Vec<_> =
        std::iter::from_fn(|| viewer.ask()).map(|ask| (ask.room, ask.from)).collect();
    let elsewhere = RoomId::new("q").expect("a valid name");
    assert_eq!(again, [(room(), None), (elsewhere, Some(ImportantNo(1)))]);
}

#[test]
fn what_the_room_forgot_is_told_and_counted() {
    let mut viewer = Driver::new([25, 25, 25, 25]);
    viewer.push(usual(1));
    viewer.take(5);
    (1..=4).for_each(|n| viewer.push(frame(n, vec![red_packet("p")], 0, n.into(), n.into())));
    viewer.take(1_000);
    let ask = viewer.ask().expect("a question");
    viewer.rebase(&ask, vec![3, 4], 4, 4);
    let got = viewer.take(1_000);
    assert_eq!(got[..5], [b'!', b'G', 1, 4, 0]);
    assert_eq!((viewer.stats.owed, viewer.stats.repaid, viewer.stats.unpaid), (4, 2, 2));
}

#[test]
fn a_viewer_that_takes_nothing_is_rebased_and_then_given_up() {
    let mut viewer = Driver::new([1_000; 4]);
    viewer.push(usual(1));
    assert_eq!(viewer.delivery.deadline(&viewer.settings), Some(START + Duration::from_secs(20)));
    viewer.pass(20);
    assert_eq!((viewer.delivery.rung(), viewer.delivery.is_empty()), (Rung::Rebase, true));
    assert_eq!(viewer.delivery.verdict(&viewer.settings, viewer.now), Verdict::Patience);
    assert_eq!(viewer.delivery.deadline(&viewer.settings), Some(START + Duration::from_secs(50)));
    viewer.pass(30);
    assert_eq!(viewer.delivery.verdict(&viewer.settings, viewer.now), Verdict::GiveUp);
}

#[test]
fn who_keeps_up_gets_everything_again_rung_by_rung() {
    let mut viewer = Driver::new([62, 62, 62, 1_000]);
    (1..=6).for_each(|n| viewer.push(usual(n)));
    assert_eq!(viewer.delivery.rung(), Rung::ImportantOnly);
    viewer.take(1_000);
    for (rung, size) in [(Rung::TotalsOnly, 11), (Rung::NoSampled, 21), (Rung::Full, 31)] {
        assert!(!viewer.delivery.is_over());
        viewer.pass(2);
        assert_eq!(viewer.delivery.rung(), rung);
        viewer.take(1_000);
        viewer.push(usual(7));
        assert_eq!(viewer.take(1_000).len(), size);
    }
    assert_eq!(viewer.stats.descended, [1, 1, 1, 0, 0]);
    assert!(!viewer.delivery.is_over(), "it still needs the totals");
    let ask = viewer.ask().expect("a question");
    viewer.delivery.wanted(&room(), ask.serial, None);
    viewer.delivery.retotalled(&room(), Bytes::from_static(b"T"), &mut viewer.stats, viewer.now);
    viewer.take(1_000);
    assert!(viewer.delivery.is_over());
}

#[test]
fn a_gap_is_told_at_the_latest_before_ordered_events_come_again() {
    let mut viewer = Driver::new([62, 62, 62, 1_000]);
    (1..=6).for_each(|n| viewer.push(usual(n)));
    assert!(viewer.take(1_000).is_empty(), "nothing else is sent");
    viewer.pass(2);
    assert_eq!(viewer.take(1_000), [b'G', 1, 6, 12]);
}

#[test]
fn who_leaves_a_room_is_owed_nothing_of_it() {
    let mut viewer = Driver::new([25, 25, 25, 25]);
    viewer.push(usual(1));
    viewer.take(5);
    (1..=4).for_each(|n| viewer.push(frame(n, vec![red_packet("p")], 0, n.into(), n.into())));
    viewer.take(1_000);
    viewer.delivery.forget(&room(), &mut viewer.stats, viewer.now);
    assert_eq!((viewer.ask(), viewer.delivery.rung()), (None, Rung::ImportantOnly));
}

#[test]
fn answers_to_the_viewer_survive_a_rebase() {
    let mut viewer = Driver::new([25, 25, 25, 25]);
    viewer.push(usual(1));
    viewer.delivery.fixed(Bytes::from_static(b"answer"), false);
    (2..=9).for_each(|n| viewer.push(frame(n, vec![red_packet("p")], 0, n.into(), n.into())));
    assert_eq!(viewer.delivery.rung(), Rung::Rebase);
    assert_eq!(viewer.delivery.fixed_bytes(), 6);
    let got = viewer.take(1_000);
    assert_eq!(got, b"answer", "and the gap is told with the state");
}

proptest! {
    #[test]
    fn bounds_hold_and_every_event_is_sent_dropped_or_owed(
        steps in prop::collection::vec(
            (0usize..3, 0usize..3, 0usize..2, 0usize..3, 0usize..120, 0u64..3),
            1..200,
        )
    ) {
        let mut viewer = Driver::new([120, 160, 200, 240]);
        let (mut seq, mut important, mut pushed, mut sent) = (0, 0, 0u64, 0);
        for (sampled, ordered, packets, totals, room, seconds) in steps {
            let mut events: Vec<Build> = (0..sampled).map(|_| entrance("e", 3)).collect();
            events.extend((0..ordered).map(|_| chat("c")));
            events.extend((0..packets).map(|_| red_packet("p")));
            pushed += events.len() as u64;
            seq += (ordered + packets) as u64;
            important += packets as u64;
            viewer.push(frame(1, events, totals, seq, important));
            let load = viewer.delivery.load();
            prop_assert!(load.bytes <= 240 || load.frames == 1);
            viewer.delivery.prepare(&Tester);
            let room = room.min(viewer.delivery.bytes());
            let mut finished = 0;
            let Driver { delivery, settings, stats, now } = &mut viewer;
            delivery.advance(room, settings, stats, *now, |frame, cut| {
                let events = &frame.content().events;
                finished += events.iter().filter(|e| cut.keeps(e.event.kind.lane)).count() as u64;
            });
            sent += finished;
            let left: usize = delivery.chunks().map(bytes::Bytes::len).sum();
            prop_assert_eq!(delivery.bytes(), left);
            if delivery.is_empty() { delivery.drained(stats, *now) } else { delivery.refused() }
            while viewer.ask().is_some() {}
            viewer.pass(seconds);
        }
        let Driver { delivery, settings, stats, now } = &mut viewer;
        delivery.advance(delivery.bytes(), settings, stats, *now, |frame, cut| {
            let events = &frame.content().events;
            sent += events.iter().filter(|e| cut.keeps(e.event.kind.lane)).count() as u64;
        });
        let dropped: u64 = Lane::ALL.into_iter().map(|lane| stats.dropped_in(lane)).sum();
        prop_assert_eq!(stats.dropped_in(Lane::Important), 0);
        prop_assert_eq!(pushed, sent + dropped + stats.owed);
    }
}
