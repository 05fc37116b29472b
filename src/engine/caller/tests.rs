//! Levels, probes and the budget of retries, alone and over random steps.

use proptest::prelude::*;

use super::*;
use crate::engine::ids::Tier;

const START: Time = Time::from_millis(1_700_000_000_000);
const SECOND: Duration = Duration::from_secs(1);

fn caller() -> Caller {
    Caller::new(CallerSettings::default(), START)
}

fn tier(tier: u8) -> Priority {
    Priority::new(Tier(tier), 64, 0)
}

/// Everything below tier 3.
fn tier_three() -> AdmissionLevel {
    AdmissionLevel::from_wire(3, 0, Some(0.0))
}

/// Spreads consecutive numbers over 64 bits (SplitMix64's finalizer).
fn mixed(n: u64) -> u64 {
    let z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn a_level_is_kept_to_until_its_time_is_over() {
    let mut caller = caller();
    assert_eq!(caller.send(Priority::LOWEST, START, u64::MAX), Verdict::Send);
    caller.learn(tier_three(), SECOND, START);
    assert_eq!(caller.send(tier(2), START, u64::MAX), Verdict::Send);
    let first = caller.send(tier(3), START, u64::MAX);
    assert_eq!(first, Verdict::Probe, "so little is shed that all of it may be probes");
    for _ in 0..50 {
        caller.send(tier(3), START, u64::MAX);
    }
    assert_eq!(caller.send(tier(3), START + SECOND / 2, u64::MAX), Verdict::Shed);
    assert_eq!(caller.send(tier(3), START + SECOND, u64::MAX), Verdict::Send);
    assert_eq!(caller.level(START + SECOND), AdmissionLevel::OPEN);
    let stats = *caller.stats();
    assert_eq!((stats.sent, stats.shed + stats.probes), (3, 52));
}

#[test]
fn nobody_is_silenced_for_long_by_a_forged_time_to_live() {
    let mut caller = caller();
    caller.learn(AdmissionLevel::SHUT, Duration::MAX, START);
    let believed = CallerSettings::default().max_ttl;
    assert_eq!(caller.level(START + believed - SECOND), AdmissionLevel::SHUT);
    assert_eq!(caller.level(START + believed), AdmissionLevel::OPEN);
}

/// Sends `count` batches of `size`, one each 100 ms, nothing of it admitted;
/// returns how often each place in the batch was probed.
fn probed(caller: &mut Caller, count: u64, size: u64) -> Vec<u64> {
    let mut places = vec![0; size as usize];
    for batch in 0..count {
        let now = START + Duration::from_millis(100 * batch);
        caller.learn(AdmissionLevel::SHUT, SECOND, now);
        for (place, probes) in places.iter_mut().enumerate() {
            let draw = mixed(batch * size + place as u64);
            *probes += u64::from(caller.send(tier(0), now, draw) == Verdict::Probe);
        }
    }
    places
}

#[test]
fn probes_are_ten_a_second_or_one_in_a_hundred() {
    for (size, least, most) in [(1, 590, 600), (10, 540, 680), (1_000, 5_400, 6_700)] {
        let mut caller = caller();
        let probes: u64 = probed(&mut caller, 600, size).iter().sum();
        assert!((least..=most).contains(&probes), "batches of {size}: {probes} in a minute");
        assert_eq!(caller.stats().shed, 600 * size - probes);
    }
}

#[test]
fn every_place_in_a_batch_is_probed() {
    let places = probed(&mut caller(), 6_000, 100);
    let tenths: Vec<u64> = places.chunks(10).map(|tenth| tenth.iter().sum()).collect();
    let mean = tenths.iter().sum::<u64>() / 10;
    assert!(mean > 500, "{tenths:?}");
    assert!(tenths.iter().all(|&n| n > mean / 2 && n < mean * 2), "{tenths:?}");
}

#[test]
fn a_retry_that_would_be_refused_costs_no_budget() {
    let mut caller = caller();
    caller.learn(AdmissionLevel::SHUT, SECOND, START);
    caller.learn(tier_three(), SECOND, START);
    for _ in 0..1_000 {
        assert!(!caller.retry(tier(3), START));
    }
    let allowed = (0..1_000).filter(|_| caller.retry(tier(2), START)).count();
    assert_eq!(allowed, 15, "half of three seconds of ten");
    let begun = (0..1_000).filter(|_| caller.proceed_again(tier(2), START)).count();
    assert_eq!(begun, 12, "all but a tenth");
    assert_eq!(caller.stats().retries_shed, 1_000);
    assert_eq!(caller.stats().retries_exhausted, 1_973);
}

#[test]
fn the_last_of_the_budget_is_for_what_every_level_of_late_admits() {
    let mut caller = caller();
    let tier_one = AdmissionLevel::from_wire(1, 0, Some(0.0));
    caller.learn(tier_one, SECOND, START);
    caller.learn(tier_three(), SECOND, START);
    let retries = |caller: &mut Caller, priority| {
        (0..1_000).filter(|_| caller.retry(priority, START)).count()
    };
    assert_eq!(retries(&mut caller, tier(2)), 15);
    assert_eq!(retries(&mut caller, tier(0)), 15, "the narrowest level admits it");
    // An open level says nothing of what matters.
    let mut calm = Caller::new(CallerSettings::default(), START);
    calm.learn(AdmissionLevel::OPEN, SECOND, START);
    assert_eq!(retries(&mut calm, tier(0)), 15);
    // And half a second later the narrow one is forgotten.
    caller.learn(tier_three(), SECOND, START + SECOND / 2);
    let later = START + SECOND * 4 / 5;
    let paid = (0..1_000).filter(|_| caller.retry(tier(2), later)).count();
    assert_eq!(paid, 8, "all that 0.8 s have paid, ten a second");
}

#[test]
fn retries_add_a_fifth_to_a_steady_load_and_what_is_unused_fades() {
    let mut caller = caller();
    let mut retries = 0;
    for n in 0..60_000u64 {
        let now = START + Duration::from_millis(n);
        caller.send(tier(1), now, 0);
        caller.accepted(1, now);
        retries += u64::from(caller.retry(tier(1), now));
    }
    // A fifth of 60,000, ten for each of 60 s, and thirty to begin with; half of
    // a full budget of 630 is still there.
    assert!((12_300..=12_331).contains(&retries), "{retries}");
    for n in 60_000..90_000u64 {
        caller.accepted(1, START + Duration::from_millis(n));
    }
    let mut at_once = caller.clone();
    let now = START + Duration::from_secs(90);
    let burst = (0..10_000).filter(|_| at_once.retry(tier(1), now)).count();
    assert!((300..=316).contains(&burst), "half of three seconds' worth, not thirty: {burst}");
    let now = START + Duration::from_secs(120);
    let left = (0..10_000).filter(|_| caller.retry(tier(1), now)).count();
    assert_eq!(left, 15, "what was accepted half a minute ago pays for nothing");
}

#[test]
fn what_is_refused_pays_for_no_retry() {
    let mut caller = caller();
    let mut retries = 0;
    for n in 0..60_000u64 {
        let now = START + Duration::from_millis(n);
        caller.send(tier(1), now, 0);
        retries += u64::from(caller.proceed_again(tier(1), now));
    }
    assert!((620..=631).contains(&retries), "ten a second and thirty: {retries}");
}

#[test]
fn work_that_has_begun_keeps_to_the_widest_level_of_late() {
    let mut caller = caller();
    let wide = AdmissionLevel::from_wire(5, 0, Some(0.0));
    caller.learn(wide, SECOND, START);
    caller.learn(tier_three(), SECOND, START + SECOND / 10);
    let now = START + SECOND / 5;
    assert_ne!(caller.send(tier(4), now, u64::MAX), Verdict::Send);
    assert_eq!(caller.proceed(tier(4), now, u64::MAX), Verdict::Send);
    assert!(caller.proceed_again(tier(4), now) && !caller.retry(tier(4), now));
    assert_ne!(caller.proceed(tier(5), now, u64::MAX), Verdict::Send);
    let later = START + SECOND * 3 / 5;
    assert_ne!(caller.proceed(tier(4), later, u64::MAX), Verdict::Send, "half a second");
    assert_eq!(caller.proceed(tier(2), later, u64::MAX), Verdict::Send);
}

#[test]
fn odd_settings_do_no_harm() {
    let settings = CallerSettings {
        probe_share: f64::NAN,
        probes_per_second: -1.0,
        retry_share: f64::INFINITY,
        retries_per_second: f64::NAN,
        retry_span: Duration::ZERO,
        max_ttl: Duration::MAX,
    };
    let mut caller = Caller::new(settings, START);
    caller.learn(AdmissionLevel::SHUT, Duration::MAX, START);
    let later = START + SECOND;
    assert!((0..100).all(|_| caller.send(tier(0), later, 0) == Verdict::Shed));
    caller.learn(AdmissionLevel::OPEN, SECOND, later);
    for _ in 0..10 {
        caller.send(tier(0), later, 0);
        caller.accepted(1, later);
    }
    let allowed = (0..100).filter(|_| caller.retry(tier(0), later)).count();
    assert!(allowed <= 11, "at most one for each that was accepted: {allowed}");
}

#[derive(Debug, Clone)]
enum Step {
    Learn(u32, u64),
    Send(u8, u8, u64),
    Retry(u8, u8),
}

/// A step, and by how many milliseconds the clock moves before it; it may
/// stand still or go back.
fn steps() -> impl Strategy<Value = Vec<(i64, Step)>> {
    let step = prop_oneof![
        1 => (any::<u32>(), 0..20_000u64).prop_map(|(level, ttl)| Step::Learn(level, ttl)),
        6 => (0..8u8, any::<u8>(), any::<u64>()).prop_map(|(t, u, d)| Step::Send(t, u, d)),
        4 => (0..8u8, any::<u8>()).prop_map(|(t, u)| Step::Retry(t, u)),
    ];
    let passes = prop_oneof![6 => Just(0i64), 3 => 0..50i64, 1 => -5_000..5_000i64];
    prop::collection::vec((passes, step), 1..300)
}

/// What one step amounted to.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    /// Seconds, never going backwards.
    at: f64,
    first: f64,
    retry: f64,
    probe: f64,
    refusable: f64,
}

/// Runs the steps and checks each verdict against the level.
fn run(steps: &[(i64, Step)]) -> Result<Vec<Done>, TestCaseError> {
    let mut caller = caller();
    let (mut clock, mut latest) = (START.as_millis() as i64, START);
    let mut done = Vec::new();
    for (passes, step) in steps {
        clock += passes;
        let now = Time::from_millis(clock as u64);
        latest = latest.max(now);
        let mut this = Done { at: latest.since(START).as_secs_f64(), ..Done::default() };
        let level = caller.level(now);
        match *step {
            Step::Learn(bits, ttl) => {
                let level = AdmissionLevel::from_bits(bits % (1 << 26));
                caller.learn(level, Duration::from_millis(ttl), now);
            }
            Step::Send(tier, user, draw) => {
                let priority = Priority::new(Tier(tier * 9), user, 7);
                let verdict = caller.send(priority, now, draw);
                prop_assert_eq!(verdict == Verdict::Send, level.admits(priority));
                caller.accepted(u32::from(verdict != Verdict::Shed), now);
                this.first = f64::from(u8::from(verdict != Verdict::Shed));
                this.probe = f64::from(u8::from(verdict == Verdict::Probe));
                this.refusable = f64::from(u8::from(verdict != Verdict::Send));
            }
            Step::Retry(tier, user) => {
                let priority = Priority::new(Tier(tier * 9), user, 7);
                let retried = caller.retry(priority, now);
                prop_assert!(!retried || level.admits(priority));
                this.retry = f64::from(u8::from(retried));
            }
        }
        done.push(this);
    }
    Ok(done)
}

proptest! {
    #[test]
    fn no_interval_has_more_retries_or_probes_than_its_budget(steps in steps()) {
        let done = run(&steps)?;
        for (i, start) in done.iter().enumerate() {
            let before = done[..i].iter().map(|d| d.first * ((d.at - start.at) / 3.0).exp());
            let (mut retries, mut probes) = (30.0 + 0.2 * before.sum::<f64>(), PROBE_BURST);
            for end in &done[i..] {
                retries += 0.2 * end.first - end.retry;
                probes += 0.01 * end.refusable - end.probe;
                let grown = 10.0 * (end.at - start.at) + 1e-6;
                prop_assert!(retries + grown >= 0.0, "retries from {start:?} to {end:?}");
                prop_assert!(probes + grown >= 0.0, "probes from {start:?} to {end:?}");
            }
        }
    }

    #[test]
    fn what_a_level_admits_a_wider_one_admits_too(
        bits in any::<[u32; 2]>(), tier in 0..64u8, user in any::<u8>(), fine in any::<u16>(),
    ) {
        let [narrow, wide] = [bits[0].min(bits[1]), bits[0].max(bits[1])];
        let priority = Priority::new(Tier(tier), user, fine);
        let verdict = |bits| {
            let mut caller = caller();
            caller.learn(AdmissionLevel::from_bits(bits), SECOND, START);
            caller.send(priority, START, u64::MAX)
        };
        prop_assert!(verdict(narrow) != Verdict::Send || verdict(wide) == Verdict::Send);
    }
}
