use super::*;
use crate::engine::digest::{self, Digest};
use crate::engine::ids::ImportantNo;

/// The draw of every test.
fn half(end: u64) -> u64 {
    end / 2
}

fn at(millis: u64) -> Time {
    Time::from_millis(millis)
}

fn joined(seq: u64, important: u64, recovered: bool) -> Joined {
    Joined { epoch: 7, seq, important, recovered, ..Joined::default() }
}

/// A room that joined at seq 4 and important 2.
fn room(split: bool) -> Model<u64> {
    let mut room = Model::default();
    room.connected(0, split);
    assert_eq!(enter(&mut room, &joined(4, 2, false), 0).0, Entry::First);
    room
}

fn header(seqs: (u64, u64), important: u64) -> Header {
    Header { epoch: 7, first_seq: seqs.0, last_seq: seqs.1, important, ack: None }
}

fn asking(one_in: u32, within_ms: u32, header: Header) -> Header {
    Header { ack: Some(Asked { one_in, within_ms, digest_from: None }), ..header }
}

fn packet(number: u64) -> Incoming<u64> {
    let hash = digest::hash(ImportantNo(number), &number.to_string());
    Incoming { seq: None, important: Some(number), hash, event: number }
}

/// What was shown: important events as their number, what is lost as the last
/// number with a minus, what was skipped not at all.
fn shown_as(shown: &mut Vec<i64>) -> impl FnMut(Shown<u64>) {
    |what| match what {
        Shown::Event(number) => shown.push(number.cast_signed()),
        Shown::Lost { to, .. } => shown.push(-to.cast_signed()),
        Shown::Skipped { .. } => {}
    }
}

fn enter(room: &mut Model<u64>, joined: &Joined, now: u64) -> (Entry, Vec<i64>) {
    let mut shown = Vec::new();
    let entry = room.joined(joined, at(now), &mut half, &mut shown_as(&mut shown));
    (entry, shown)
}

fn take(room: &mut Model<u64>, header: &Header, numbers: &[u64], now: u64) -> Vec<i64> {
    take_from(room, Source::Control, header, numbers, now)
}

fn take_from(
    room: &mut Model<u64>,
    source: Source,
    header: &Header,
    numbers: &[u64],
    now: u64,
) -> Vec<i64> {
    let mut shown = Vec::new();
    let events = numbers.iter().map(|number| packet(*number));
    room.frame(header, source, events, at(now), &mut half, &mut shown_as(&mut shown));
    shown
}

fn say(room: &mut Model<u64>, now: u64) -> Option<Say> {
    room.say(at(now), &mut half)
}

/// What it says when its next time has come, and when that is.
fn next(room: &mut Model<u64>) -> Option<(u64, Say)> {
    let due = room.next_deadline()?.as_millis();
    assert_eq!(due.checked_sub(1).and_then(|before| say(room, before)), None, "not before");
    Some((due, say(room, due).expect("something to say when it is due")))
}

#[test]
fn what_it_has_is_dropped_and_what_is_next_is_shown() {
    let mut room = room(false);
    assert_eq!(take(&mut room, &header((5, 6), 4), &[3, 4], 1), [3, 4]);
    assert_eq!(take(&mut room, &header((7, 6), 4), &[3, 4], 2), [0; 0]);
    assert_eq!((room.tally.dropped, room.tally.skipped), (2, 0));
    assert!(room.caught_up() && room.next_deadline().is_none());
}

#[test]
fn on_one_connection_a_hole_is_pulled_at_once_and_nothing_is_shown_behind_it() {
    let mut room = room(false);
    assert_eq!(take(&mut room, &header((5, 7), 5), &[4, 5], 10), [0; 0]);
    assert!(!room.caught_up());
    assert_eq!(next(&mut room), Some((10, Say::Pull(3, 3))));
    assert_eq!(say(&mut room, 10), None, "asked already");
    assert_eq!(take(&mut room, &header((8, 7), 5), &[3], 20), [3, 4, 5]);
    assert_eq!(say(&mut room, 20), Some(Say::Ack(5)), "who was missing something says so");
    assert_eq!(room.next_deadline(), None);
}

#[test]
fn where_streams_are_apart_what_is_on_its_way_is_waited_for() {
    let mut room = room(true);
    assert_eq!(take(&mut room, &header((5, 7), 3), &[], 10), [0; 0]);
    assert_eq!(room.next_deadline(), Some(at(1_010)));
    let own = header((8, 7), 3);
    assert_eq!(take_from(&mut room, Source::Important, &own, &[3], 400), [3]);
    assert_eq!(room.next_deadline(), None);
    take(&mut room, &header((9, 9), 5), &[], 500);
    let own = header((10, 9), 4);
    assert_eq!(take_from(&mut room, Source::Important, &own, &[4], 1_400), [4]);
    assert_eq!(next(&mut room), Some((2_400, Say::Pull(5, 5))), "it stood still for a second");
    assert_eq!(room.tally.skipped, 0, "numbers of important events may be absent");
}

#[test]
fn an_unanswered_pull_is_repeated_after_a_while() {
    let mut room = room(false);
    take(&mut room, &header((5, 5), 3), &[], 0);
    assert_eq!(next(&mut room), Some((0, Say::Pull(3, 3))));
    assert_eq!(next(&mut room), Some((3_000, Say::Pull(3, 3))), "2 s and a random part of as many");
    room.failed("pull_limited", Some(Duration::from_millis(70)), at(3_010));
    assert_eq!(next(&mut room), Some((3_080, Say::Pull(3, 3))));
}

#[test]
fn long_holes_are_pulled_in_parts() {
    let mut room = room(false);
    take(&mut room, &header((5, 5), 302), &[], 0);
    assert_eq!(next(&mut room), Some((0, Say::Pull(3, 202))));
    let part: Vec<u64> = (3..=202).collect();
    assert_eq!(take(&mut room, &header((6, 5), 302), &part, 40).len(), 200);
    assert_eq!(next(&mut room), Some((40, Say::Pull(203, 302))));
}

#[test]
fn what_the_server_no_longer_has_is_told_and_given_up() {
    let mut room = room(false);
    take(&mut room, &header((5, 6), 9), &[9], 0);
    assert_eq!(say(&mut room, 0), Some(Say::Pull(3, 8)));
    room.failed("history_gone", None, at(5));
    assert_eq!(take(&mut room, &header((7, 6), 9), &[8], 5), [-7, 8, 9]);
    assert_eq!(room.tally.lost, 5);
    assert_eq!(say(&mut room, 5), Some(Say::Ack(9)));
    take(&mut room, &header((7, 7), 11), &[], 6);
    assert_eq!(say(&mut room, 6), Some(Say::Pull(10, 11)));
    room.failed("history_gone", None, at(7));
    assert_eq!(take(&mut room, &header((8, 7), 11), &[], 7), [-11], "nothing is left of it");
    assert!(room.caught_up());
}

#[test]
fn what_came_meanwhile_of_what_is_given_up_is_shown() {
    let mut room = room(false);
    take(&mut room, &header((5, 5), 9), &[], 0);
    assert_eq!(say(&mut room, 0), Some(Say::Pull(3, 9)));
    take(&mut room, &header((6, 5), 9), &[5, 6], 1);
    room.failed("history_gone", None, at(2));
    assert_eq!(take(&mut room, &header((6, 5), 9), &[9], 2), [-4, 5, 6, -8, 9]);
    assert_eq!(room.tally.lost, 4);
}

#[test]
fn a_sampled_viewer_acknowledges_within_its_time_and_others_never() {
    let mut room = room(false);
    room.slot = 20_000;
    let asked = asking(2, 100, header((5, 5), 3));
    take(&mut room, &asked, &[3], 0);
    assert_eq!(next(&mut room), Some((50, Say::Ack(3))));
    take(&mut room, &asking(4, 0, header((6, 6), 4)), &[4], 60);
    assert_eq!(room.next_deadline(), None);
    take(&mut room, &asking(2, 0, header((7, 7), 5)), &[5], 70);
    assert_eq!(say(&mut room, 70), Some(Say::Ack(5)));
}

#[test]
fn an_event_and_its_copy_are_shown_once_and_acknowledged_once_whichever_comes_first() {
    for order in [[Source::Datagram, Source::Important], [Source::Important, Source::Datagram]] {
        let mut room = room(true);
        let own = asking(1, 0, header((5, 4), 3));
        assert_eq!(take_from(&mut room, order[0], &own, &[3], 0), [3]);
        assert_eq!(say(&mut room, 0), Some(Say::Ack(3)));
        assert_eq!(take_from(&mut room, order[1], &own, &[3], 300), [0; 0]);
        assert_eq!(say(&mut room, 300), None, "it was said after {order:?}");
        assert_eq!(take(&mut room, &own, &[3], 900), [0; 0]);
        assert_eq!(say(&mut room, 900), Some(Say::Ack(3)), "sent again for want of an answer");
    }
}

#[test]
fn who_gets_only_copies_for_a_while_is_shown_them_in_order_and_pulls_nothing() {
    let mut room = room(true);
    let copy = |room: &mut Model<u64>, number, now| {
        take_from(room, Source::Datagram, &header((5, 4), number), &[number], now)
    };
    assert_eq!(copy(&mut room, 3, 0), [3]);
    assert_eq!(copy(&mut room, 5, 10), [0; 0], "behind a hole it is held");
    assert_eq!(copy(&mut room, 4, 20), [4, 5]);
    assert_eq!(room.next_deadline(), None);
    let own = header((5, 4), 5);
    assert_eq!(take_from(&mut room, Source::Important, &own, &[3, 4, 5], 500), [0; 0]);
    assert_eq!(room.position().map(|at| at.important), Some(5));
}

#[test]
fn what_was_asked_across_a_hole_is_acknowledged_when_it_is_filled() {
    let mut room = room(true);
    let own = asking(1, 0, header((5, 4), 4));
    take_from(&mut room, Source::Important, &own, &[4], 0);
    assert_eq!(say(&mut room, 0), None);
    assert_eq!(take(&mut room, &header((5, 4), 4), &[3], 5), [3, 4]);
    assert_eq!(say(&mut room, 5), Some(Say::Ack(4)));
}

#[test]
fn told_that_it_missed_what_it_has_it_says_so_again() {
    let mut room = room(false);
    room.missed(2, 100, at(5), &mut half);
    assert_eq!(say(&mut room, 5), Some(Say::Ack(2)));
    room.missed(4, 100, at(5), &mut half);
    assert_eq!(next(&mut room), Some((55, Say::Pull(3, 4))));
}

#[test]
fn a_digest_covers_what_came_here_without_a_hole() {
    let mut room = room(false);
    assert_eq!(room.farewell(), None, "nothing came");
    let asked = Asked { one_in: 1, within_ms: 0, digest_from: Some(1) };
    let frame = Header { ack: Some(asked), ..header((5, 9), 6) };
    take(&mut room, &frame, &[3, 4, 6], 0);
    let mut digest = Digest::default();
    digest.add(ImportantNo(3), "3");
    digest.add(ImportantNo(4), "4");
    assert_eq!(say(&mut room, 0), Some(Say::Digest { from: 3, to: 4, digest }));
    assert_eq!(room.farewell(), Some(Say::Digest { from: 3, to: 4, digest }));
    for number in 5..2_000 {
        take(&mut room, &header((10, 9), number), &[number], 1);
    }
    let Some(Say::Digest { from: 1_900, to: 1_999, digest }) = room.farewell() else { panic!() };
    assert_eq!(digest.count, 100);
    assert_eq!(room.receipts.hashes.len() as u64, crate::engine::digest::MAX_RANGE);
}

#[test]
fn it_comes_back_to_where_it_was() {
    let mut room = room(false);
    take(&mut room, &header((5, 6), 4), &[4], 1);
    let from = room.position().unwrap();
    assert_eq!((from.seq, from.important), (6, 2), "what is held was not shown");
    room.connected(0, false);
    assert_eq!((room.is_joined(), room.next_deadline()), (false, None));
    assert_eq!(enter(&mut room, &joined(8, 5, true), 2).0, Entry::Recovered);
    assert_eq!(take(&mut room, &header((7, 8), 5), &[3, 4, 5], 3), [3, 4, 5]);
    room.connected(0, false);
    assert_eq!(enter(&mut room, &joined(9, 5, false), 4).0, Entry::Behind(Some((9, 9))));
    let missed = Joined { missed: true, ..joined(9, 8, false) };
    room.connected(0, false);
    assert_eq!(enter(&mut room, &missed, 5).0, Entry::Behind(None));
    assert_eq!(next(&mut room), Some((505, Say::Pull(6, 8))), "spread over a second");
    assert_eq!((room.tally.recovered, room.tally.fresh, room.tally.renumbered), (1, 2, 0));
}

#[test]
fn a_numbering_that_goes_back_is_noticed_and_followed() {
    let mut room = room(false);
    take(&mut room, &header((5, 6), 4), &[3, 4], 1);
    room.connected(0, false);
    assert_eq!(enter(&mut room, &joined(6, 3, false), 4).0, Entry::Behind(None));
    assert_eq!(room.tally.renumbered, 1);
    assert_eq!(take(&mut room, &header((7, 7), 4), &[4], 5), [4], "it is another event");
}

#[test]
fn of_a_numbering_that_began_later_it_has_nothing() {
    let mut room: Model<u64> = Model::default();
    room.connected(0, false);
    enter(&mut room, &joined(0, 0, false), 0);
    room.connected(0, false);
    let next_room = Joined { epoch: 8, ..joined(3, 2, false) };
    assert_eq!(enter(&mut room, &next_room, 5).0, Entry::Renumbered);
    assert_eq!((room.tally.reborn, room.tally.renumbered), (1, 0));
    assert_eq!(next(&mut room), Some((505, Say::Pull(1, 2))));
    let pulled = Header { epoch: 8, ..header((4, 3), 2) };
    assert_eq!(take(&mut room, &pulled, &[1, 2], 600), [1, 2]);
    room.connected(0, false);
    enter(&mut room, &Joined { epoch: 6, ..joined(1, 1, false) }, 700);
    assert_eq!((room.tally.reborn, room.tally.renumbered), (1, 1), "what it showed is gone");
    assert_eq!(room.position().unwrap().important, 1, "an older one begins here");
}

#[test]
fn an_important_frame_that_overtakes_its_join_waits_for_it() {
    let mut room: Model<u64> = Model::default();
    room.connected(0, true);
    let early = header((5, 4), 4);
    assert_eq!(take_from(&mut room, Source::Important, &early, &[2, 3, 4], 0), [0; 0]);
    assert_eq!(take_from(&mut room, Source::Datagram, &early, &[], 0), [0; 0]);
    assert_eq!(room.tally.stray, 1, "a datagram for a room that is not joined");
    assert_eq!(enter(&mut room, &joined(4, 2, false), 1), (Entry::First, vec![3, 4]));
    assert!(room.caught_up());
    room.connected(0, true);
    for number in 5..2_000 {
        take_from(&mut room, Source::Important, &header((5, 4), number), &[number], 2);
    }
    assert_eq!(room.early.len(), MAX_EARLY, "bounded");
}

#[test]
fn skipping_ahead_moves_neither_the_baseline_nor_anything_unannounced() {
    let mut room = room(false);
    room.gap(5, 9);
    // What is owed comes without numbers, then the state.
    take(&mut room, &header((10, 9), 3), &[3], 1);
    let rebased = Joined { rebased: true, ..joined(9, 3, false) };
    assert_eq!(enter(&mut room, &rebased, 2).0, Entry::Rebased);
    take(&mut room, &header((10, 11), 3), &[], 3);
    assert_eq!((room.tally.skipped, room.next_deadline()), (0, None));
    let unpaid = Joined { rebased: true, ..joined(12, 5, false) };
    enter(&mut room, &unpaid, 4);
    assert_eq!(next(&mut room), Some((4, Say::Pull(4, 5))));
}

#[test]
fn a_skipped_number_is_told_unless_a_notice_names_it() {
    let mut room = room(false);
    take(&mut room, &header((7, 8), 2), &[], 0);
    assert_eq!(room.tally.skipped, 2);
    room.gap(9, 10);
    take(&mut room, &header((11, 11), 2), &[], 0);
    assert_eq!(room.tally.skipped, 2);
}

#[test]
fn ordered_events_that_come_again_are_dropped_and_sampled_ones_never() {
    let mut room = room(false);
    let chat = |seq: Option<u64>| Incoming { seq, important: None, hash: 0, event: 0 };
    let mut shown = Vec::new();
    for (first, last) in [(5, 6), (6, 7)] {
        let events = [chat(Some(first)), chat(Some(last)), chat(None)];
        let header = header((first, last), 2);
        let mut show = shown_as(&mut shown);
        room.frame(&header, Source::Control, events, at(0), &mut half, &mut show);
    }
    assert_eq!((shown.len(), room.tally.dropped), (5, 1));
}

#[test]
fn what_is_beyond_a_hole_is_bounded() {
    let mut room = room(true);
    let numbers: Vec<u64> = (4..4_000).collect();
    take_from(&mut room, Source::Important, &header((5, 4), 4_000), &numbers, 0);
    assert_eq!(room.held.len(), MAX_HELD);
    assert_eq!(next(&mut room), Some((1_000, Say::Pull(3, 3))));
    let upto = 3 + MAX_HELD as u64;
    assert_eq!(take(&mut room, &header((5, 4), 4_000), &[3], 1_050).len() as u64, upto - 2);
    assert_eq!(next(&mut room), Some((2_050, Say::Pull(upto + 1, upto + 200))));
}

#[test]
fn another_numbering_without_a_join_is_ignored() {
    let mut room = room(false);
    assert_eq!(take(&mut room, &Header { epoch: 9, ..header((1, 2), 9) }, &[3], 0), [0; 0]);
    assert_eq!((room.tally.stray, room.tally.renumbered), (1, 1));
}
