//! What a room does without while its shard is short of time.

use super::*;

const TRIM: Strain = Strain { stretch: 4, sample_divisor: 4, frame_percent: 50 };

/// A strained room in a flood of 4 chat messages per millisecond, and a red packet every
/// half second: its frames, each out at once.
fn flood(change: impl FnOnce(&mut RoomSettings), millis: u64) -> Vec<(Time, Frame)> {
    let mut room = room(|s| {
        (s.flush_events, s.frame_events, s.buffer_events) = (20, 40, 400);
        change(s);
    });
    room.set_online(10, START);
    room.set_strain(TRIM);
    let mut frames = Vec::new();
    for at in 0..millis {
        for i in 0..4 {
            put_at(&mut room, chat(&format!("{at}.{i}")), ms(at));
        }
        if at % 500 == 499 {
            put_at(&mut room, red_packet(&format!("r{at}")), ms(at));
        }
        if let Some(frame) = room.flush(ms(at)) {
            room.frame_out(ms(at));
            frames.push((ms(at), frame));
        }
    }
    frames
}

fn chats(frame: &Frame) -> usize {
    frame.events.iter().filter(|e| e.event.kind.lane == Lane::Ordered).count()
}

#[test]
fn a_strained_room_says_what_one_frame_holds_in_as_long_as_its_intervals_are_stretched() {
    let frames = flood(|_| {}, 4_000);
    let important = frames.iter().filter(|(_, frame)| frame.events.len() > chats(frame));
    assert_eq!(important.count(), 8, "red packets go at once, and all");
    for pair in frames.windows(2).filter(|pair| pair[1].1.events.len() == chats(&pair[1].1)) {
        assert!(pair[1].0.since(pair[0].0) >= Duration::from_millis(100), "flush_interval");
    }
    // Half of a frame's 40 in four intervals of 100 ms, and one full bucket to begin with.
    let carried: usize = frames.iter().map(|(_, frame)| chats(frame)).sum();
    assert!((20 * 9..=20 * 11).contains(&carried), "{carried}");
    let shed: u64 = frames.iter().flat_map(|(_, frame)| &frame.dropped).map(|d| d.count).sum();
    let last = frames.last().map_or(0, |(_, frame)| frame.last_seq.0);
    assert_eq!(carried as u64 + shed + 8, last, "every one is carried or counted");
}

#[test]
fn in_a_strained_rooms_flood_the_first_tiers_find_what_is_reserved_for_them() {
    let mut room = room(|s| {
        (s.flush_events, s.frame_events, s.buffer_events) = (20, 40, 400);
        (s.reserved_percent, s.reserved_tier) = (25, 1);
    });
    room.set_online(10, START);
    room.set_strain(TRIM);
    let gift = |at: u64| chat(&format!("g{at}")).kind(|k| k.tier = Tier(1));
    let (mut gifts, mut chats) = (0, 0);
    for at in 0..4_000 {
        for i in 0..4 {
            put_at(&mut room, chat(&format!("{at}.{i}")), ms(at));
        }
        // 8 of them after one another, of 20 events in four intervals.
        if at % 800 >= 792 {
            put_at(&mut room, gift(at), ms(at));
        }
        if let Some(frame) = room.flush(ms(at)) {
            room.frame_out(ms(at));
            let tiers = frame.events.iter().map(|e| e.event.kind.tier);
            gifts += tiers.clone().filter(|tier| *tier == Tier(1)).count();
            chats += tiers.filter(|tier| *tier == Tier(2)).count();
        }
    }
    assert!((32..=40).contains(&gifts), "{gifts} of 40; the last 8 may still wait");
    assert!((140..=180).contains(&chats), "{chats}: 200 in all");
}

#[test]
fn rooms_too_small_to_wait_say_as_much_as_ever_under_strain() {
    let carried = |frames: &[(Time, Frame)]| frames.iter().map(|(_, f)| chats(f)).sum::<usize>();
    assert_eq!(carried(&flood(|s| s.small_room_viewers = 11, 300)), 4 * 300);
    assert!(carried(&flood(|s| s.small_room_viewers = 10, 300)) < 50);
}

#[test]
fn a_strained_room_that_says_little_loses_nothing_of_it() {
    let mut room = room(|s| (s.frame_events, s.flush_interval) = (40, Duration::from_secs(1)));
    room.set_online(10, START);
    room.set_strain(TRIM);
    // 4 chat messages a second, below the 5 that it may say.
    for i in 0..100 {
        put_at(&mut room, chat(&format!("c{i}")), ms(i * 250));
        put_at(&mut room, red_packet(&format!("r{i}")), ms(i * 250));
        let frame = room.flush(ms(i * 250)).expect("the red packet makes one");
        room.frame_out(ms(i * 250));
        assert_eq!((frame.events.len(), frame.dropped.len()), (2, 0), "at {i}");
    }
}

#[test]
fn a_strained_rooms_totals_come_once_in_that_time_and_lose_nothing() {
    let mut room = room(|_| {});
    room.set_online(10, START);
    room.set_strain(TRIM);
    let (mut frames, mut with_totals, mut told, mut stood_for) = (0, 0, 0, 0);
    let mut deltas = |frame: Frame, now: Time| {
        frames += 1;
        with_totals += u64::from(!frame.totals.is_empty());
        told += frame.totals.iter().map(|total| total.delta).sum::<i64>();
        stood_for += frame.represents;
        assert!(frame.totals.iter().all(|total| total.sum == told), "{now:?}");
    };
    for at in 0..4_000 {
        put_at(&mut room, combo(&format!("{at}")).key("rose"), ms(at));
        if at % 50 == 0 {
            put_at(&mut room, red_packet(&format!("r{at}")), ms(at));
        }
        if let Some(frame) = room.flush(ms(at)) {
            room.frame_out(ms(at));
            deltas(frame, ms(at));
        }
        assert!(room.next_flush().is_none_or(|due| due > ms(at)), "it asks for another at once");
    }
    deltas(flush(&mut room, ms(4_000)), ms(4_000));
    assert!((80..=100).contains(&frames), "{frames}: red packets go at once");
    // One in four intervals of 100 ms.
    assert!((8..=14).contains(&with_totals), "{with_totals}");
    assert_eq!((told, stood_for), (4_000, 4_080), "each counts once");
}

#[test]
fn a_viewer_that_joins_between_a_strained_rooms_totals_is_told_the_same_sum() {
    let mut room = room(|_| {});
    room.set_online(10, START);
    room.set_strain(TRIM);
    put(&mut room, combo("a").key("rose").amount(5));
    put(&mut room, red_packet("b"));
    let frame = room.flush(START).expect("the red packet makes one");
    room.frame_out(START);
    assert_eq!((frame.totals.len(), frame.last_seq), (0, Seq(2)));
    let known = room.snapshot(START).totals.first().map_or(0, |total| total.sum);
    let due = room.next_flush().expect("the total waits");
    assert!(due > ms(300) && due <= ms(400), "four intervals");
    let later = room.flush(due).expect("due");
    assert_eq!((later.totals[0].sum, later.totals[0].delta + known), (5, 5));
    room.frame_out(due);
    assert_eq!(room.next_flush(), None);
}
