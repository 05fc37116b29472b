//! Events that waited before they were read.

use super::*;

/// A shard that reads for the rooms of others, or shares its processor: what its
/// own few rooms ask for waits, and is not why.
#[test]
fn a_trickle_is_not_refused_for_what_keeps_it_waiting() {
    let mut admission: Admission<()> = Admission::new(AdmissionSettings::default(), START);
    let mut shed = Vec::new();
    for n in 0..1_000_u64 {
        let now = START + Duration::from_millis(10 * n);
        let entry = |k: u64| Entry {
            item: (),
            priority: Priority::new(Tier((n % 6) as u8), (k % 128) as u8, 0),
            room: n % 10,
            cost: 50.0,
            arrived: now - Duration::from_millis(60),
            deadline: None,
        };
        admission.wake(now);
        (0..2).for_each(|k| admission.offer(entry(n * 7 + k), now, &mut shed));
        let mut done = now;
        while admission.take(done, &mut shed).is_some() {
            done = done + Duration::from_micros(50);
        }
        // The rest of the time the thread is busy with something else.
        admission.tick(done);
    }
    assert!(shed.is_empty(), "{} of 2000 refused, {:?}", shed.len(), admission.verdict());
}

/// What is refused of 600,000 events, 2,000 in each turn of 10 ms, that waited for this
/// long, in milliseconds, before they were read, in every second turn for the one.
fn refused_of_what_waited(waits: [u64; 2]) -> usize {
    let mut admission: Admission<()> = Admission::new(AdmissionSettings::default(), START);
    let mut shed = Vec::new();
    for turn in 0..300_u64 {
        let now = START + Duration::from_millis(10 * turn);
        let waited = Duration::from_millis(waits[(turn % 2) as usize]);
        admission.wake(now);
        let mut done = now;
        for n in 0..2_000_u64 {
            let entry = Entry {
                item: (),
                priority: Priority::new(Tier((n % 6) as u8), (n * 37 % 128) as u8, 0),
                room: 7,
                cost: 4.0,
                arrived: now - waited,
                deadline: None,
            };
            admission.offer(entry, now, &mut shed);
            if admission.take(done, &mut shed).is_some() {
                done = done + Duration::from_micros(4);
            }
        }
        admission.tick(done);
    }
    shed.len()
}

#[test]
fn waits_that_are_short_in_the_mean_are_no_reason_to_refuse() {
    assert_eq!(refused_of_what_waited([18, 18]), 0);
    assert_eq!(refused_of_what_waited([8, 28]), 0, "a round of the thread, and the next");
    assert!(refused_of_what_waited([28, 48]) > 1_000, "too long in the mean");
}

#[test]
fn what_was_read_late_is_not_taken_for_a_flood() {
    let mut admission: Admission<()> = Admission::new(AdmissionSettings::default(), START);
    let mut shed = Vec::new();
    let mut now = START;
    let mut number = 0_u64;
    for turn in 0..1_000_u64 {
        // One turn in a hundred comes late, with all that should have been read meanwhile.
        let late = if turn % 100 == 99 { 30 } else { 1 };
        let before = now;
        now = now + Duration::from_millis(10 * late);
        admission.wake(now);
        for n in 0..late * 12 {
            number += 1;
            let entry = Entry {
                item: (),
                priority: Priority::new(Tier((number % 10) as u8), (number * 37 % 128) as u8, 0),
                room: 7,
                cost: 500.0,
                arrived: before + Duration::from_micros(n * 10_000 / 12),
                deadline: None,
            };
            admission.offer(entry, now, &mut shed);
        }
        let tight = admission.level();
        assert!(tight.business() >= 4, "turn {turn}: six tenths are offered, {tight:?}");
        let mut done = now;
        while admission.take(done, &mut shed).is_some() {
            done = done + Duration::from_micros(500);
        }
        admission.tick(done);
        let tight = admission.level();
        assert!(tight.business() >= 4, "turn {turn}: six tenths are offered, {tight:?}");
        now = now.max(done);
    }
}
