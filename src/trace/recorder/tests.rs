use std::sync::OnceLock;

use tokio::sync::mpsc;

use super::*;
use crate::engine::event::Numbered;
use crate::engine::ids::Epoch;
use crate::engine::mark::Way;
use crate::engine::stats::DropReason;
use crate::engine::testing::{chat, red_packet};

/// One for all: two that were started apart differ by a little.
fn clock() -> Clock {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    *CLOCK.get_or_init(Clock::start)
}

fn mark(id: &str, key: u128) -> Arc<Mark> {
    Arc::new(Mark {
        key,
        trace: key,
        span: 5,
        parent: None,
        room: RoomId::new("r").expect("a name"),
        id: id.into(),
        kind: "chat".into(),
        way: Way::Http,
        shard: ShardId(0),
        received: clock().now(),
    })
}

fn recorder(kept: usize, spans: Option<Spans>) -> Recorder {
    Recorder::new(ShardId(0), clock(), RecorderSettings { kept }, spans)
}

fn steps(recorder: &Recorder, id: &str) -> Vec<Step> {
    let query = Query { room: None, id: Some(id.to_owned()), limit: 9 };
    let views = recorder.views(&query);
    views.iter().flat_map(|view| view.steps.iter().map(|noted| noted.step)).collect()
}

#[test]
fn each_step_begins_where_the_last_ended() {
    let mut recorder = recorder(9, None);
    let mark = mark("a", 1);
    recorder.arrived(&mark);
    recorder.admitted(&mark, 3);
    recorder.taken(&mark);
    recorder.answered(&mark, &Offered::Done(Outcome::Accepted { seq: Some(Seq(4)) }));
    recorder.fate(&(Arc::clone(&mark), Fate::Dropped(DropReason::FrameBudget)));
    let view = recorder.views(&Query { limit: 1, ..Query::default() }).remove(0);
    let expected = [Step::Received, Step::Admitted, Step::Queued, Step::Numbered, Step::Dropped];
    assert_eq!(view.steps.iter().map(|noted| noted.step).collect::<Vec<_>>(), expected);
    for pair in view.steps.windows(2) {
        assert!(pair[1].since == pair[0].at && pair[1].at >= pair[0].at, "{pair:?}");
    }
    assert_eq!(view.steps[1].details, [("waiting", Detail::Count(3))]);
    assert_eq!(view.steps[3].details, [("seq", Detail::Count(4))]);
    assert_eq!(view.steps[4].details, [("why", Detail::Word("frame_budget"))]);
}

#[test]
fn traces_and_steps_are_bounded_and_counted() {
    let mut recorder = recorder(3, None);
    for key in 1..=5 {
        recorder.arrived(&mark(&format!("e{key}"), key));
    }
    assert_eq!((recorder.stats().kept, recorder.stats().forgotten), (3, 2));
    assert!(steps(&recorder, "e2").is_empty() && !steps(&recorder, "e3").is_empty());
    recorder.taken(&mark("e2", 2));
    assert!(steps(&recorder, "e2").is_empty(), "it stays away");
    let again = mark("e5", 5);
    for _ in 0..MOST_STEPS {
        recorder.taken(&again);
    }
    assert_eq!(steps(&recorder, "e5").len(), MOST_STEPS);
    assert_eq!(recorder.stats().cut_steps, 1);
}

#[test]
fn the_log_decides_over_its_own_room_and_numbers_only() {
    let mut recorder = recorder(9, None);
    let (a, b, c) = (mark("a", 1), mark("b", 2), mark("c", 3));
    for (mark, number) in [(&a, 1), (&b, 2), (&c, 3)] {
        let answer = Outcome::Accepted { seq: Some(Seq(number)) };
        let important = ImportantNo(number);
        recorder.arrived(mark);
        recorder.answered(mark, &Offered::Staged { important, answer, at_once: number == 3 });
    }
    let other = RoomId::new("other").expect("a name");
    recorder.logged(&other, ImportantNo(9));
    assert_eq!(steps(&recorder, "a"), [Step::Received, Step::Numbered]);
    recorder.logged(&a.room, ImportantNo(1));
    recorder.log_failed(&a.room, ImportantNo(2));
    assert_eq!(steps(&recorder, "a"), [Step::Received, Step::Numbered, Step::Logged]);
    assert_eq!(steps(&recorder, "b"), [Step::Received, Step::Numbered, Step::Refused]);
    let dropped = [Step::Received, Step::Numbered, Step::Dropped];
    assert_eq!(steps(&recorder, "c"), dropped, "its publisher was told otherwise");
    assert!(!recorder.is_logging());
}

fn frame(mark: &Arc<Mark>) -> Frame {
    let event =
        crate::engine::event::Event { mark: Some(Arc::clone(mark)), ..red_packet("a").event() };
    let numbered = |event, important| Numbered { event, seq: Some(Seq(7)), important };
    Frame {
        room: mark.room.clone(),
        epoch: Epoch(1),
        first_seq: Seq(6),
        last_seq: Seq(7),
        important: ImportantNo(3),
        time: mark.received,
        oldest: mark.received,
        events: vec![
            Arc::new(numbered(chat("unmarked").event(), None)),
            Arc::new(numbered(event, Some(ImportantNo(3)))),
        ],
        totals: Vec::new(),
        dropped: Vec::new(),
        online: None,
        ack: None,
        represents: 2,
    }
}

#[test]
fn acknowledgements_count_for_their_number_until_their_time_is_over() {
    let mut recorder = recorder(9, None);
    let mark = mark("a", 1);
    let frame = frame(&mark);
    recorder.expect_receipts(&frame);
    assert!(recorder.awaits_receipts());
    recorder.confirmed(&mark.room, ImportantNo(0), ImportantNo(2));
    assert!(steps(&recorder, "a").is_empty(), "not up to its number");
    let (begun, ended) = (mark.received, recorder.clock.now());
    recorder.written(&frame, Written { begun, ended, whole: 2, backlogged: 1, at_home: false });
    recorder.confirmed(&mark.room, ImportantNo(2), ImportantNo(3));
    recorder.confirmed(&mark.room, ImportantNo(0), ImportantNo(5));
    recorder.confirmed(&mark.room, ImportantNo(3), ImportantNo(5));
    let view = recorder.views(&Query { limit: 1, ..Query::default() }).remove(0);
    assert_eq!(view.steps.len(), 2);
    assert_eq!(view.steps[1].details, [("acknowledgements", Detail::Count(2))]);
    recorder.tick(recorder.clock.now() + RECEIPTS_FOR);
    assert!(!recorder.awaits_receipts());
    assert_eq!(steps(&recorder, "a"), [Step::Written, Step::Confirmed], "and it stays");
}

/// A number's event, with its mark or as the log brings it.
fn numbered(mark: &Arc<Mark>, number: u64, marked: bool) -> Arc<Numbered> {
    let event = crate::engine::event::Event {
        mark: marked.then(|| Arc::clone(mark)),
        ..red_packet(&mark.id).event()
    };
    Arc::new(Numbered { event, seq: Some(Seq(7)), important: Some(ImportantNo(number)) })
}

/// One that has been sent, with number 3.
fn sent(mark: &Arc<Mark>, recorder: &mut Recorder) {
    let (begun, ended) = (mark.received, mark.received);
    let written = Written { begun, ended, whole: 2, backlogged: 0, at_home: false };
    recorder.written(&frame(mark), written);
}

fn last(recorder: &Recorder) -> Noted {
    let view = recorder.views(&Query { limit: 1, ..Query::default() }).remove(0);
    view.steps.last().expect("a step").clone()
}

#[test]
fn viewers_who_get_it_again_are_one_step_by_way_and_burst() {
    let mut recorder = recorder(9, None);
    let mark = mark("a", 1);
    sent(&mark, &mut recorder);
    let event = [numbered(&mark, 3, true)];
    for viewers in [5, 3, 2] {
        recorder.again(&event, Again::Carried, viewers);
    }
    recorder.again(&event, Again::Replayed, 150_000);
    recorder.again(&event, Again::Replayed, 50_000);
    recorder.again(&event, Again::Pulled, 1);
    recorder.again(&event, Again::Read, 1);
    let view = recorder.views(&Query { limit: 1, ..Query::default() }).remove(0);
    let count = |name, count| (name, Detail::Count(count));
    let expected = [
        (Step::Carried, vec![count("viewers", 5), count("rounds", 3)]),
        (Step::Replayed, vec![count("viewers", 200_000)]),
        (Step::Pulled, vec![("way", Detail::Word("viewer")), count("viewers", 1)]),
        (Step::Pulled, vec![("way", Detail::Word("http")), count("answers", 1)]),
    ];
    let again = &view.steps[1..];
    assert_eq!(again.len(), expected.len(), "{again:?}");
    for (step, details) in expected {
        let found = again.iter().find(|noted| (noted.step, &noted.details) == (step, &details));
        assert!(found.is_some_and(|noted| noted.since <= noted.at), "{step:?} {details:?}");
    }
    // Quiet for long enough, all are over; who comes then is another burst.
    recorder.tick(recorder.clock.now() + Duration::from_secs(9));
    assert!(recorder.is_counting());
    recorder.tick(recorder.clock.now() + Duration::from_secs(10));
    assert!(!recorder.is_counting());
    recorder.again(&event, Again::Replayed, 7);
    assert_eq!(last(&recorder).details, [count("viewers", 7)]);
    assert_eq!(steps(&recorder, "a").len(), 6);
}

#[test]
fn a_burst_that_never_rests_ends_after_a_minute() {
    let mut bursts = Bursts::default();
    let (mark, start) = (mark("a", 1), clock().now());
    for second in 0..60 {
        let now = start + Duration::from_secs(second);
        bursts.add(&mark, Again::Replayed, 1, now);
        assert!(bursts.over(now).is_empty(), "{second}");
    }
    let ended = bursts.over(start + Duration::from_secs(60));
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].noted().details, [("viewers", Detail::Count(60))]);
    assert!(bursts.is_empty());
}

#[test]
fn the_log_s_events_get_their_marks_back_and_only_those() {
    let mut recorder = recorder(9, None);
    let (mark, other) = (mark("a", 1), mark("b", 2));
    sent(&mark, &mut recorder);
    let bring = |recorder: &Recorder, epoch, number, of: &Arc<Mark>| {
        let mut events = [numbered(of, number, false)];
        recorder.recognise(&of.room, Epoch(epoch), &mut events);
        events[0].event.mark.clone()
    };
    assert_eq!(bring(&recorder, 1, 3, &mark), Some(Arc::clone(&mark)));
    assert_eq!(bring(&recorder, 1, 4, &mark), None, "another number");
    assert_eq!(bring(&recorder, 2, 3, &mark), None, "another numbering");
    assert_eq!(bring(&recorder, 1, 3, &other), None, "another id");

    let told = |recorder: &mut Recorder, from, to| {
        let range = (ImportantNo(from), ImportantNo(to));
        recorder.missed((&mark.room, Epoch(1)), range, Again::Silent);
    };
    told(&mut recorder, 1, 2);
    told(&mut recorder, 4, 1);
    assert!(!recorder.is_counting());
    told(&mut recorder, 2, 9);
    told(&mut recorder, 3, 3);
    let details = [("why", Detail::Word("silent")), ("viewers", Detail::Count(2))];
    assert_eq!((last(&recorder).step, &last(&recorder).details[..]), (Step::Missed, &details[..]));
}

#[test]
fn what_is_known_of_numbers_and_bursts_is_bounded_by_the_traces() {
    let mut recorder = recorder(3, None);
    for key in 1..=20 {
        let mark = mark(&format!("e{key}"), key);
        sent(&mark, &mut recorder);
        recorder.again(&[numbered(&mark, 3, true)], Again::Replayed, 1);
        assert!(recorder.bursts.len() <= 3);
    }
    let room = RoomId::new("r").expect("a name");
    let known = recorder.numbers.of(&room, Epoch(1)).expect("a room");
    assert_eq!(known.len(), 1, "each has taken the number of the last");
    assert_eq!(steps(&recorder, "e20"), [Step::Written, Step::Replayed]);
    // What has given way comes back only where it pushes out nothing.
    let first = mark("e1", 1);
    recorder.again(&[numbered(&first, 3, true)], Again::Replayed, 1);
    assert!(steps(&recorder, "e1").is_empty());
    let mut fresh = self::recorder(3, None);
    assert!(!fresh.is_following());
    fresh.again(&[numbered(&first, 3, true)], Again::Replayed, 1);
    assert_eq!(steps(&fresh, "e1"), [Step::Replayed], "it came while nobody watched here");
}

#[test]
fn bursts_are_exported_when_they_end_each_as_a_span_of_its_own() {
    let (sender, mut receiver) = mpsc::channel(99);
    let mut recorder = recorder(9, Some(sender));
    let mark = mark("a", 1);
    let event = [numbered(&mark, 3, true)];
    recorder.again(&event, Again::Pulled, 1);
    recorder.again(&event, Again::Read, 1);
    assert!(receiver.try_recv().is_err(), "they go on");
    recorder.tick(recorder.clock.now() + Duration::from_secs(10));
    // Another, of which the end of the shard is the end.
    recorder.again(&event, Again::Pulled, 1);
    drop(recorder);
    let mut ids = Vec::new();
    while let Ok(span) = receiver.try_recv() {
        ids.push(span.message().span_id);
    }
    assert_eq!(ids.len(), 3);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3, "each has an id of its own");
}

#[test]
fn spans_that_find_no_room_are_dropped_and_counted() {
    let (sender, mut receiver) = mpsc::channel(2);
    let mut recorder = recorder(9, Some(sender));
    let mark = mark("a", 1);
    recorder.arrived(&mark);
    recorder.refused(&mark, "busy");
    // Received, refused, and the event's own.
    assert_eq!(recorder.stats().dropped_spans, 1);
    assert!(receiver.try_recv().is_ok() && receiver.try_recv().is_ok());
}

#[test]
fn a_whole_trace_and_a_span_are_as_small_as_the_configuration_says() {
    let mut recorder = recorder(9, None);
    let mark = mark(&"i".repeat(64), 1);
    let answer = Outcome::Accepted { seq: Some(Seq(7)) };
    recorder.arrived(&mark);
    recorder.admitted(&mark, 3);
    recorder.taken(&mark);
    let important = ImportantNo(3);
    recorder.answered(&mark, &Offered::Staged { important, answer, at_once: false });
    recorder.logged(&mark.room, important);
    let frame = frame(&mark);
    recorder.flushed(&frame);
    recorder.encoded(&frame, &[("json_bytes", Detail::Count(1)); 4]);
    let (begun, ended) = (mark.received, mark.received);
    recorder.written(&frame, Written { begun, ended, whole: 1, backlogged: 0, at_home: true });
    recorder.expect_receipts(&frame);
    recorder.confirmed(&mark.room, ImportantNo(2), important);
    recorder.tick(recorder.clock.now() + RECEIPTS_FOR);
    let trace = &recorder.traces[&1];
    assert_eq!(trace.steps.len(), 9);
    let detail = size_of::<(&str, Detail)>();
    let details: usize = trace.steps.iter().map(|noted| noted.details.capacity() * detail).sum();
    let trace_mark = Arc::clone(&mark);
    let mark = size_of::<Mark>() + mark.id.len() + mark.kind.len();
    let steps = trace.steps.capacity() * size_of::<Noted>();
    let whole = size_of::<Trace>() + mark + steps + details;
    // Its number in the index: a place in a tree that is half full at least.
    let number = 2 * size_of::<(ImportantNo, Arc<Mark>)>();
    assert!(whole + number <= 2_048, "{whole} bytes and {number}");
    // As many more as there may be, with the most details that a burst has.
    recorder.bursts.add(&trace_mark, Again::Carried, 1, trace_mark.received);
    let burst = recorder.bursts.end()[0].noted().details.len();
    let rest = MOST_STEPS * (size_of::<Noted>() + burst * detail);
    assert!(whole + number + rest <= 9 << 10, "{whole}, {number} and {rest} bytes");
    // The largest number of details a step has.
    let span = size_of::<Span>() + 4 * detail;
    assert!(span <= 320, "{span} bytes");
}
