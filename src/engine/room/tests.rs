//! One test per promise of a room. `tests/simulation.rs` runs many rooms against
//! a reference model.

mod strain;

use std::time::Duration;

use super::*;
use crate::engine::event::Event;
use crate::engine::ids::Tier;
use crate::engine::kind::{Lane, Merge, MergeBy};
use crate::engine::stats::DropReason;
use crate::engine::testing::*;

const BIG: i64 = (1 << 53) - 1;

fn room(change: impl FnOnce(&mut RoomSettings)) -> Room {
    let mut settings = settings();
    change(&mut settings);
    let id = RoomId::new("live:1").expect("a valid name");
    Room::new(id, Epoch(7), LevelKey::from_seed(3), Arc::new(settings), START)
}

fn ms(ms: u64) -> Time {
    START + Duration::from_millis(ms)
}

fn put(room: &mut Room, build: Build) -> Outcome {
    put_at(room, build, START)
}

fn put_at(room: &mut Room, build: Build, now: Time) -> Outcome {
    room.publish(build.at(now).event(), now)
}

fn flush(room: &mut Room, now: Time) -> Frame {
    let frame = room.flush_now(now).expect("something to flush");
    room.frame_out(now);
    frame
}

fn ids(frame: &Frame) -> Vec<&str> {
    frame.events.iter().map(|e| &*e.event.id).collect()
}

fn dropped(frame: &Frame) -> Vec<(&str, u64)> {
    frame.dropped.iter().map(|d| (&*d.kind.name, d.count)).collect()
}

fn totals(frame: &Frame) -> Vec<(Option<&str>, &str, i64, i64)> {
    frame.totals.iter().map(|t| (t.user.as_deref(), &*t.key, t.sum, t.delta)).collect()
}

fn accepted(seq: u64) -> Outcome {
    Outcome::Accepted { seq: Some(Seq(seq)) }
}

const REFUSED_KEYS: Outcome = Outcome::Rejected(Refusal::TooManyKeys);

// Numbers

#[test]
fn both_lanes_share_one_numbering_and_sampled_events_have_none() {
    let mut room = room(|_| {});
    assert_eq!(put(&mut room, chat("a")), accepted(1));
    assert_eq!(put(&mut room, red_packet("b")), accepted(2));
    assert_eq!(put(&mut room, like("c")), Outcome::Accepted { seq: None });
    assert_eq!(put(&mut room, combo("d")), accepted(3));
    let frame = flush(&mut room, START);
    assert_eq!(
        (frame.first_seq, frame.last_seq, frame.important),
        (Seq(1), Seq(3), ImportantNo(1))
    );
    assert_eq!(frame.events[1].important, Some(ImportantNo(1)));
    assert_eq!((ids(&frame), frame.represents), (vec!["a", "b"], 4));
}

#[test]
fn a_repetition_gets_the_first_number_and_travels_once() {
    let mut room = room(|_| {});
    put(&mut room, chat("a"));
    assert_eq!(put(&mut room, chat("a")), Outcome::Duplicate { seq: Some(Seq(1)) });
    assert_eq!(put(&mut room, like("a")), Outcome::Duplicate { seq: Some(Seq(1)) });
    assert_eq!(ids(&flush(&mut room, START)), ["a"]);
    assert_eq!(put(&mut room, chat("a")), Outcome::Duplicate { seq: Some(Seq(1)) });
    assert_eq!(room.stats().duplicates, 3);
}

#[test]
fn likes_cannot_push_a_numbered_id_out_of_memory() {
    let mut room = room(|s| (s.dedupe_sequenced, s.dedupe_sampled) = (2, 2));
    put(&mut room, red_packet("a"));
    for i in 0..10 {
        put(&mut room, like(&format!("l{i}")));
    }
    assert_eq!(put(&mut room, red_packet("a")), Outcome::Duplicate { seq: Some(Seq(1)) });
    assert_eq!(put(&mut room, like("l9")), Outcome::Duplicate { seq: None });
    assert_eq!(put(&mut room, like("l7")), Outcome::Accepted { seq: None });
}

#[test]
fn a_refused_event_takes_no_number_and_may_be_tried_again() {
    let mut room = room(|_| {});
    let large = chat("a").kind(|k| k.max_payload_bytes = 2);
    assert_eq!(put(&mut room, large), Outcome::Rejected(Refusal::PayloadTooLarge(2)));
    let late = chat("a").ttl_ms(5).event();
    assert_eq!(room.publish(late, ms(5)), Outcome::Rejected(Refusal::Expired));
    assert_eq!(put_at(&mut room, chat("a"), ms(6)), accepted(1));
    assert_eq!(room.stats().refused.iter().sum::<u64>(), 2);
}

// When a frame is due

#[test]
fn an_event_waits_for_the_rooms_next_tick_and_no_longer() {
    let mut room = room(|_| {});
    put(&mut room, chat("a"));
    let due = room.next_flush().expect("something is pending");
    assert!(due > START && due <= ms(100));
    assert_eq!(room.flush(due - Duration::from_micros(1)), None);
    assert_eq!(ids(&room.flush(due).expect("due")), ["a"]);
}

#[test]
fn importance_smallness_and_amount_flush_at_once() {
    let at_once = |room: &Room| room.next_flush() == Some(START);
    let mut normal = room(|_| {});
    put(&mut normal, chat("a"));
    assert!(!at_once(&normal));
    put(&mut normal, red_packet("b"));
    assert!(at_once(&normal));

    let mut small = room(|s| s.small_room_viewers = 3);
    small.set_online(2, START);
    put(&mut small, chat("a"));
    assert!(at_once(&small));
    small.set_online(3, START);
    assert!(!at_once(&small));

    let mut many = room(|s| s.flush_events = 3);
    put(&mut many, chat("a"));
    put(&mut many, like("b").key("x"));
    put(&mut many, like("c").key("x"));
    assert!(!at_once(&many), "one total, however many likes");
    put(&mut many, like("d").key("y"));
    assert!(at_once(&many));

    let mut heavy = room(|s| s.flush_bytes = 1_000);
    put(&mut heavy, chat("a"));
    assert!(!at_once(&heavy));
    put(&mut heavy, chat("b").payload(&"x".repeat(900)));
    assert!(at_once(&heavy));
}

#[test]
fn while_a_frame_goes_out_no_other_is_made_and_what_arrives_is_merged() {
    let mut room = room(|_| {});
    put(&mut room, red_packet("a"));
    assert!(room.flush(START).is_some() && room.is_going_out());
    put_at(&mut room, red_packet("b"), ms(1));
    put_at(&mut room, like("c"), ms(2));
    put_at(&mut room, like("d"), ms(3));
    assert_eq!(room.next_flush(), None);
    assert_eq!((room.flush(ms(900)), room.flush_now(ms(900))), (None, None));
    room.frame_out(ms(900));
    assert!(room.next_flush().is_some_and(|at| at <= ms(900)));
    let frame = room.flush(ms(900)).expect("due");
    assert_eq!((frame.first_seq, frame.last_seq, frame.oldest), (Seq(2), Seq(2), ms(1)));
    assert_eq!((ids(&frame), frame.represents), (vec!["b"], 3));
}

#[test]
fn a_viewer_count_alone_makes_a_frame_once_per_interval() {
    let mut room = room(|s| s.online_interval = Duration::from_secs(2));
    room.set_online(5, START);
    let first = room.next_flush().expect("a change to tell");
    assert!(first <= ms(100));
    let frame = room.flush(first).expect("due");
    assert_eq!((frame.online, frame.represents), (Some(5), 0));
    assert_eq!((frame.first_seq, frame.last_seq), (Seq(1), Seq(0)));
    room.frame_out(first);
    room.set_online(6, first);
    assert_eq!(room.next_flush(), Some(first + Duration::from_secs(2)));
    put_at(&mut room, red_packet("a"), first);
    assert_eq!(flush(&mut room, first).online, Some(6), "any frame takes it along");
    room.set_online(7, first);
    room.set_online(6, first);
    assert_eq!(room.next_flush(), None, "back to what viewers know");
    room.set_online(0, first);
    assert_eq!(room.next_flush(), None, "nobody to tell");
}

#[test]
fn viewer_counts_never_make_a_frame_when_the_interval_is_zero() {
    let mut room = room(|s| s.online_interval = Duration::ZERO);
    room.set_online(5, START);
    assert_eq!(room.next_flush(), None);
}

#[test]
fn a_frame_of_nothing_but_shed_events_is_still_sent() {
    let mut room = room(|_| {});
    put(&mut room, chat("a").ttl_ms(10));
    put(&mut room, entrance("b", 0));
    let frame = flush(&mut room, ms(10));
    assert_eq!(dropped(&frame), [("enter", 1), ("chat", 1)]);
    assert_eq!((frame.first_seq, frame.last_seq), (Seq(1), Seq(1)));
    assert_eq!((frame.represents, frame.oldest), (0, ms(10)));
    assert_eq!(room.flush_now(ms(11)), None);
}

// Sum

#[test]
fn a_total_carries_its_running_sum_beside_the_delta() {
    let mut room = room(|_| {});
    put(&mut room, combo("a").user("ann").key("rose").amount(5));
    put(&mut room, combo("b").user("bob").key("rose"));
    put(&mut room, combo("c").user("ann").key("rose").amount(2));
    let frame = flush(&mut room, START);
    assert_eq!(totals(&frame), [(Some("ann"), "rose", 7, 7), (Some("bob"), "rose", 1, 1)]);
    assert!(frame.events.is_empty());
    put(&mut room, combo("d").user("ann").key("rose").amount(-3));
    assert_eq!(totals(&flush(&mut room, START)), [(Some("ann"), "rose", 4, -3)]);
    assert_eq!(room.stats().merged[Lane::Ordered.index()], 4);
}

#[test]
fn an_important_sum_travels_and_adds_but_stands_for_one() {
    let mut room = room(|_| {});
    put(&mut room, like("a").amount(9).kind(|k| k.lane = Lane::Important));
    let frame = flush(&mut room, START);
    assert_eq!((ids(&frame), frame.represents), (vec!["a"], 1));
    assert_eq!(totals(&frame), [(None, "", 9, 9)]);
    assert_eq!(room.stats().merged, [0; 3]);
}

#[test]
fn a_sum_that_would_leave_53_bits_is_refused_and_changes_nothing() {
    let mut room = room(|_| {});
    assert_eq!(
        put(&mut room, like("z").amount(i64::MAX)),
        Outcome::Rejected(Refusal::AmountOverflow)
    );
    put(&mut room, like("a").amount(BIG));
    for (id, amount) in [("b", 1), ("c", i64::MAX)] {
        let refused = put(&mut room, like(id).amount(amount));
        assert_eq!(refused, Outcome::Rejected(Refusal::AmountOverflow));
    }
    assert_eq!(totals(&flush(&mut room, START)), [(None, "", BIG, BIG)]);
    put(&mut room, like("d").amount(-BIG));
    let refused = put(&mut room, like("e").amount(-1));
    assert_eq!(refused, Outcome::Rejected(Refusal::AmountOverflow), "the delta has a limit too");
    assert_eq!(totals(&flush(&mut room, START)), [(None, "", 0, -BIG)]);
}

#[test]
fn a_combo_is_over_after_the_idle_time() {
    let build = |id: &str| combo(id).kind(|k| k.idle_reset = Some(Duration::from_millis(500)));
    let mut room = room(|_| {});
    put(&mut room, build("a").amount(3));
    flush(&mut room, ms(100));
    put_at(&mut room, build("b"), ms(499));
    assert_eq!(totals(&flush(&mut room, ms(600)))[0].2, 4);
    assert_eq!(room.snapshot(ms(998)).totals.len(), 1);
    put_at(&mut room, build("c"), ms(999));
    assert_eq!(totals(&flush(&mut room, ms(999)))[0].2, 1, "a new combo");
    assert_eq!(room.snapshot(ms(1_499)).totals, []);
}

#[test]
fn a_combo_with_a_pending_delta_is_not_over_however_long_the_frame_takes() {
    let build = |id: &str| combo(id).kind(|k| k.idle_reset = Some(Duration::from_millis(50)));
    let mut room = room(|_| {});
    put(&mut room, build("a"));
    put_at(&mut room, build("b"), ms(300));
    assert_eq!(totals(&flush(&mut room, ms(400))), [(Some("u"), "", 2, 2)]);
    assert_eq!(room.snapshot(ms(400)).totals, []);
}

#[test]
fn at_the_key_limit_only_a_finished_combo_makes_room() {
    let build = |id: &str| combo(id).user(id).kind(|k| k.idle_reset = Some(Duration::from_secs(1)));
    let mut room = room(|s| s.max_keys = 2);
    put(&mut room, build("a"));
    put_at(&mut room, build("b"), ms(500));
    assert_eq!(put_at(&mut room, build("c"), ms(2_000)), REFUSED_KEYS, "both are pending");
    flush(&mut room, ms(600));
    assert_eq!(put_at(&mut room, build("c"), ms(999)), REFUSED_KEYS);
    assert_eq!(put_at(&mut room, build("c"), ms(1_000)), accepted(3));
    assert_eq!(put_at(&mut room, like("x"), ms(1_000)), Outcome::Accepted { seq: None });
}

#[test]
fn keyed_state_has_a_limit_in_bytes() {
    let mut room = room(|s| s.state_bytes = 4_000);
    let value = |id: &str, key: &str, len| card(id).key(key).payload(&"x".repeat(len));
    assert_eq!(put(&mut room, value("a", "k", 3_000)), accepted(1));
    assert_eq!(put(&mut room, value("b", "l", 100)), REFUSED_KEYS);
    assert_eq!(put(&mut room, like("c")), Outcome::Accepted { seq: None });
    assert_eq!(put(&mut room, like("d").key("x")), REFUSED_KEYS);
    flush(&mut room, START);
    assert_eq!(put(&mut room, value("e", "k", 10)), accepted(2));
    flush(&mut room, START);
    assert_eq!(put(&mut room, value("b", "l", 100)), accepted(3), "the state became smaller");
}

// Latest

#[test]
fn the_newest_value_travels_in_its_own_place_and_stands_for_those_it_overtook() {
    let mut room = room(|_| {});
    put(&mut room, card("a").key("k"));
    put(&mut room, chat("b"));
    put_at(&mut room, card("c").key("k"), ms(5));
    put(&mut room, card("d").key("other"));
    let frame = flush(&mut room, ms(50));
    assert_eq!(ids(&frame), ["b", "c", "d"]);
    assert_eq!((frame.represents, frame.oldest), (4, START));
    assert_eq!(room.stats().merged[Lane::Ordered.index()], 1);
    let state = room.snapshot(ms(50)).state;
    assert_eq!(state.iter().map(|e| &*e.event.id).collect::<Vec<_>>(), ["c", "d"]);
}

#[test]
fn a_null_value_travels_and_clears_the_state() {
    let mut room = room(|s| s.max_keys = 1);
    put(&mut room, card("a").key("k"));
    flush(&mut room, START);
    put(&mut room, card("b").key("k").payload("null"));
    assert_eq!(room.snapshot(START).state.len(), 1, "as of the last frame");
    assert_eq!(ids(&flush(&mut room, START)), ["b"]);
    assert_eq!(room.snapshot(START).state, []);
    assert_eq!(put(&mut room, card("c").key("new")), accepted(3), "its key is free again");
}

#[test]
fn important_values_overtake_nobody_and_the_last_is_the_state() {
    let stream = |id: &str| card(id).kind(|k| k.lane = Lane::Important);
    let mut room = room(|_| {});
    put(&mut room, stream("a"));
    put(&mut room, stream("b"));
    let frame = flush(&mut room, START);
    assert_eq!((ids(&frame), frame.represents), (vec!["a", "b"], 2));
    assert_eq!(&*room.snapshot(START).state[0].event.id, "b");
}

#[test]
fn state_expires_and_makes_room_for_another_key() {
    let mut room = room(|s| s.max_keys = 1);
    put(&mut room, card("a").key("k").ttl_ms(100));
    flush(&mut room, ms(10));
    assert_eq!(room.snapshot(ms(99)).state.len(), 1);
    assert_eq!(put_at(&mut room, card("b").key("l"), ms(99)), REFUSED_KEYS);
    assert_eq!(put_at(&mut room, card("b").key("l"), ms(100)), accepted(2));
    assert_eq!(room.snapshot(ms(100)).state, []);
}

#[test]
fn a_value_that_was_shed_leaves_the_state_and_takes_along_those_it_overtook() {
    let mut room = room(|_| {});
    put(&mut room, card("a"));
    flush(&mut room, START);
    put_at(&mut room, card("b"), ms(1));
    put_at(&mut room, card("c").ttl_ms(10), ms(2));
    let frame = flush(&mut room, ms(50));
    assert_eq!((dropped(&frame), frame.represents), (vec![("card", 2)], 0));
    assert_eq!(room.stats().dropped[DropReason::Expired.index()], [0, 2, 0]);
    assert_eq!(&*room.snapshot(ms(50)).state[0].event.id, "a");
}

// Sample, budget, buffer

#[test]
fn a_sample_is_the_best_of_a_flush_and_the_rest_are_counted() {
    let mut room = room(|_| {});
    let key = LevelKey::from_seed(3);
    let mut users: Vec<String> = (0..40).map(|i| format!("u{i}")).collect();
    for user in &users {
        put(&mut room, entrance(user, 3).user(user));
    }
    let frame = flush(&mut room, START);
    let order = users.clone();
    users.sort_by_key(|user| (key.user_level(user, START), order.iter().position(|u| u == user)));
    let mut carried = ids(&frame);
    carried.sort_by_key(|id| users.iter().position(|user| user == id));
    assert_eq!(carried, users[..3].iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(dropped(&frame), [("enter", 37)]);
    assert_eq!(room.stats().dropped[DropReason::SampledOut.index()], [0, 0, 37]);
    put(&mut room, entrance("next", 3));
    assert_eq!(ids(&flush(&mut room, START)), ["next"], "each flush samples anew");
}

#[test]
fn a_frame_keeps_its_budget_and_the_order_of_who_stays() {
    let mut room = room(|s| s.frame_events = 3);
    for (id, tier) in [("a", 3), ("b", 1), ("c", 2), ("d", 1), ("e", 3)] {
        put(&mut room, chat(id).kind(|k| k.tier = Tier(tier)));
    }
    put(&mut room, red_packet("r"));
    let frame = flush(&mut room, START);
    assert_eq!(ids(&frame), ["b", "c", "d", "r"]);
    assert_eq!(dropped(&frame), [("chat", 2)]);
    assert_eq!(room.stats().dropped[DropReason::FrameBudget.index()], [0, 2, 0]);
    assert_eq!((frame.first_seq, frame.last_seq), (Seq(1), Seq(6)));
}

#[test]
fn a_full_buffer_sheds_the_worst_newcomer_included_and_important_ones_displace() {
    let mut room = room(|s| s.buffer_events = 3);
    let tier = |id: &str, t| chat(id).kind(|k| k.tier = Tier(t));
    for (id, t) in [("a", 3), ("b", 2), ("c", 2), ("d", 1), ("e", 9)] {
        put(&mut room, tier(id, t));
    }
    put(&mut room, red_packet("r"));
    let frame = flush(&mut room, START);
    assert_eq!(ids(&frame), ["b", "d", "r"]);
    assert_eq!(room.stats().dropped[DropReason::BufferFull.index()], [0, 3, 0]);
}

#[test]
fn important_events_are_refused_rather_than_dropped() {
    let mut room = room(|s| s.buffer_events = 2);
    put(&mut room, chat("c"));
    put(&mut room, red_packet("a"));
    put(&mut room, red_packet("b").ttl_ms(1));
    let refused = put(&mut room, red_packet("d"));
    assert_eq!(refused, Outcome::Rejected(Refusal::BufferFull));
    let frame = flush(&mut room, ms(5));
    assert_eq!(ids(&frame), ["a", "b"], "not even an expired one is dropped");
    assert_eq!(put(&mut room, red_packet("d")), accepted(4));

    let mut room = self::room(|s| s.buffer_bytes = 1_000);
    let refused = put(&mut room, red_packet("a").payload(&"x".repeat(900)));
    assert_eq!(refused, Outcome::Rejected(Refusal::BufferFull));
}

#[test]
fn a_refused_important_event_adds_to_no_total() {
    let mut room = room(|s| s.buffer_events = 1);
    let counted = |id: &str| like(id).kind(|k| k.lane = Lane::Important);
    put(&mut room, counted("a"));
    assert_eq!(put(&mut room, counted("b")), Outcome::Rejected(Refusal::BufferFull));
    assert_eq!(totals(&flush(&mut room, START)), [(None, "", 1, 1)]);
}

// Standing by

#[test]
fn a_snapshot_is_as_of_the_last_frame() {
    let mut room = room(|_| {});
    let gift = |id: &str, user: &str| combo(id).user(user).key("rose").amount(2);
    put(&mut room, gift("a", "bob"));
    put(&mut room, gift("b", "ann"));
    put(&mut room, red_packet("c"));
    flush(&mut room, START);
    put(&mut room, gift("d", "ann"));
    put(&mut room, gift("e", "cyd"));
    put(&mut room, red_packet("f"));
    room.set_online(4, START);
    let now = room.snapshot(START);
    assert_eq!((now.seq, now.important, now.online), (Seq(3), ImportantNo(1), 4));
    let sums: Vec<_> =
        now.totals.iter().map(|t| (t.user.as_deref().unwrap_or(""), t.sum, t.delta)).collect();
    assert_eq!(sums, [("ann", 2, 0), ("bob", 2, 0)]);
    assert_eq!((room.seq(), room.important()), (Seq(6), ImportantNo(2)));
}

#[test]
fn history_holds_what_travelled() {
    let mut room = room(|s| s.frame_events = 1);
    put(&mut room, chat("a"));
    put(&mut room, chat("b"));
    put(&mut room, combo("c"));
    put(&mut room, red_packet("d"));
    assert_eq!(room.history_after_seq(Seq(0), 9).events.len(), 0);
    flush(&mut room, START);
    let replay = room.history_after_seq(Seq(0), 9);
    let replayed: Vec<_> = replay.events.iter().map(|e| &*e.event.id).collect();
    assert_eq!((replayed, replay.complete, replay.more), (vec!["a", "d"], true, false));
    assert_eq!(room.history_after_important(ImportantNo(0), 9).events.len(), 1);
    assert!(!room.history_after_important(ImportantNo(2), 9).complete);
}

#[test]
fn a_room_is_quiet_without_viewers_and_without_anything_on_its_way() {
    let mut room = room(|_| {});
    assert!(room.is_quiet());
    room.set_online(1, START);
    assert!(!room.is_quiet());
    room.set_online(0, ms(1));
    put_at(&mut room, like("a"), ms(2));
    assert!(!room.is_quiet());
    room.flush_now(ms(3));
    assert!(!room.is_quiet());
    room.frame_out(ms(4));
    assert!(room.is_quiet() && room.last_activity() == ms(4));
}

#[test]
fn a_kind_that_changes_its_rules_keeps_the_counts_balanced() {
    let mut room = room(|_| {});
    let latest = |id: &str, lane| card(id).kind(|k| k.lane = lane);
    for (i, lane) in Lane::ALL.into_iter().cycle().take(9).enumerate() {
        put(&mut room, latest(&format!("v{i}"), lane));
        put(&mut room, like(&format!("s{i}")).kind(|k| k.lane = lane));
        put(
            &mut room,
            entrance(&format!("e{i}"), 2).kind(|k| (k.lane, k.tier) = (lane, Tier(i as u8))),
        );
        put(&mut room, card(&format!("u{i}")).kind(|k| k.merge = Merge::Latest(MergeBy::UserKey)));
    }
    let frame = flush(&mut room, START);
    let stats = room.stats();
    for lane in Lane::ALL {
        assert_eq!(stats.pending(lane), 0, "{}", lane.name());
    }
    let stood_for: u64 = stats.carried.iter().chain(&stats.merged).sum();
    assert_eq!(frame.represents, stood_for);
    assert_eq!(stats.carried[0], 9);
}

#[test]
fn a_publisher_cannot_grow_a_room_with_names() {
    let mut room = room(|s| s.buffer_events = 50);
    for i in 0..20_000 {
        let merge = [
            Merge::Append,
            Merge::Sum(MergeBy::UserKey),
            Merge::Latest(MergeBy::Key),
            Merge::Sample(2),
        ][i % 4];
        let named = |k: &mut crate::engine::kind::Kind| {
            (k.name, k.merge) = (format!("kind-{i}").into(), merge);
        };
        let event: Event = chat(&format!("e{i}")).key(&format!("k{i}")).kind(named).event();
        room.publish(event, ms(i as u64 / 100));
        assert!(room.memory_bytes() <= Room::memory_bound(&room.settings), "{i}");
        if i % 3_000 == 0 {
            flush(&mut room, ms(i as u64 / 100));
        }
    }
}

#[test]
fn whoever_joined_between_two_counts_hears_the_right_one() {
    let mut room = room(|s| s.online_interval = Duration::from_secs(1));
    room.set_online(1, ms(0));
    assert_eq!(room.flush_now(ms(10)).and_then(|frame| frame.online), Some(1));
    room.frame_out(ms(10));
    // The viewer leaves, another one's snapshot is taken, and it is counted.
    room.set_online(0, ms(20));
    assert_eq!(room.snapshot(ms(30)).online, 0);
    room.set_online(1, ms(40));
    assert_eq!(room.flush_now(ms(50)).and_then(|frame| frame.online), Some(1));
}
