//! Traces fitted to recorded live rooms, so that anyone can replay something
//! like them. Four shapes, named after what they resemble:
//!
//! * `flood`: the chat of a championship match (10 events/s on average, 38 in
//!   the 99th percentile second), with moderators' bans.
//! * `steady`: a large room with a flat rate.
//! * `gifts`: a small live-commerce room: entrances, gift combos, likes, counts,
//!   arriving in batches 0.6 s apart.
//! * `combos`: one cheap gift, over and over, from two senders (a hot key).
//!
//! Law: the rate of a second is the mean times a log-normal factor whose
//! logarithm is a first-order autoregression (its spread and memory fitted to
//! the variance and autocorrelation of the recordings), counts in a second are
//! Poisson. New users appear as `a·n^d` of n events (Heaps), the others repeat
//! someone of the recent past, so that the active stay active; texts repeat in
//! the same way, besides a few that everybody writes.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::value::RawValue;

use crate::trace::{self, TraceEvent};

/// How far back a repetition reaches, in events of the kind.
const MEMORY: usize = 20_000;

/// What to generate.
#[derive(Args, Debug)]
pub(crate) struct GenerateOptions {
    /// Which room to resemble.
    #[arg(long, value_enum)]
    shape: Shape,
    /// Length in seconds.
    #[arg(long, default_value_t = 600)]
    seconds: u32,
    /// Times as many events per second as recorded.
    #[arg(long, default_value_t = 1.0)]
    rate_scale: f64,
    /// The same seed gives the same trace.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File to write; gzip if it ends in .gz.
    #[arg(long)]
    out: PathBuf,
}

/// A sort of room.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shape {
    /// Chat in bursts, and bans.
    Flood,
    /// Chat at a flat rate.
    Steady,
    /// Entrances, gifts, likes, counts.
    Gifts,
    /// Gifts on a hot key, and chat.
    Combos,
}

/// The rate of a room.
struct Rate {
    mean: f64,
    /// Standard deviation of the logarithm of the rate.
    sigma: f64,
    /// Correlation of that from one second to the next.
    memory: f64,
    /// Chance of a second three times as busy.
    spike: f64,
    /// Milliseconds between arrivals in batches; 1: none.
    batch_ms: u64,
}

/// A kind's part in a room.
struct Part {
    kind: &'static str,
    share: f64,
    /// After n events there are about `a * n^d` users; 0: events have no user.
    users: (f64, f64),
    /// Chances of a few users who do most of it.
    hot: &'static [f64],
    /// Keys with their weights.
    keys: &'static [(&'static str, f64)],
    amount: Amount,
    payload: Payload,
}

enum Amount {
    None,
    One,
    /// Seconds of a ban.
    Ban,
    /// Counter of a running combo: mostly one, now and then long.
    Combo,
    /// Mean and spread of a batch.
    Batch(f64, f64),
}

enum Payload {
    None,
    /// Median bytes, spread of their logarithm, chance of repeating a text,
    /// chance of one that everybody writes.
    Text(f64, f64, f64, f64),
    /// Viewers in the room.
    Online,
    /// Likes so far.
    Likes,
    /// What a gift is worth.
    Gift,
}

/// The command.
pub(crate) fn command(options: &GenerateOptions) -> Result<()> {
    let events = generate(options.shape, options.seconds, options.rate_scale, options.seed)?;
    trace::write(&options.out, &events)?;
    let mut bins = vec![0_u32; options.seconds.max(1) as usize];
    for event in &events {
        if let Some(bin) = bins.get_mut(usize::try_from(event.t_ms / 1_000)?) {
            *bin += 1;
        }
    }
    bins.sort_unstable();
    println!(
        "{}: {} events, {:.1}/s, p99 {}/s, peak {}/s",
        options.out.display(),
        events.len(),
        events.len() as f64 / f64::from(options.seconds.max(1)),
        bins[bins.len() * 99 / 100],
        bins[bins.len() - 1]
    );
    Ok(())
}

fn model(shape: Shape) -> (Rate, Vec<Part>) {
    let rate = |mean, sigma, memory, spike, batch_ms| Rate { mean, sigma, memory, spike, batch_ms };
    let part = |kind, share, users, payload| Part {
        kind,
        share,
        users,
        hot: &[],
        keys: &[],
        amount: Amount::None,
        payload,
    };
    match shape {
        Shape::Flood => (
            rate(10.06, 0.61, 0.25, 0.0, 1),
            vec![
                part("chat", 0.9617, (4.07, 0.75), Payload::Text(9.0, 1.07, 0.34, 0.14)),
                Part { amount: Amount::Ban, ..part("ban", 0.0383, (1.9, 0.81), Payload::None) },
            ],
        ),
        Shape::Steady => (
            rate(12.93, 0.16, 0.3, 0.001, 1),
            vec![part("chat", 1.0, (3.9, 0.8), Payload::Text(12.0, 1.25, 0.35, 0.12))],
        ),
        Shape::Gifts => (
            rate(2.86, 0.52, 0.98, 0.004, 600),
            vec![
                part("enter", 0.4883, (3.4, 0.7), Payload::None),
                Part {
                    keys: &[("item5", 0.784), ("item3", 0.096), ("item4", 0.055), ("item1", 0.065)],
                    amount: Amount::Combo,
                    ..part("gift", 0.17, (1.1, 0.6), Payload::Gift)
                },
                part("stats", 0.1685, (0.0, 0.0), Payload::Online),
                Part {
                    hot: &[0.35, 0.23],
                    amount: Amount::Batch(7.6, 4.5),
                    ..part("like", 0.0933, (1.3, 0.6), Payload::Likes)
                },
                part("control", 0.0433, (0.0, 0.0), Payload::None),
                part("chat", 0.0177, (1.6, 0.75), Payload::Text(3.0, 1.1, 0.4, 0.3)),
                part("follow", 0.0174, (1.6, 0.86), Payload::None),
                part("fansclub", 0.0015, (1.0, 1.0), Payload::None),
            ],
        ),
        Shape::Combos => (
            rate(0.619, 0.9, 0.98, 0.0, 1),
            vec![
                part("chat", 0.633, (2.9, 0.6), Payload::Text(15.0, 0.7, 0.35, 0.1)),
                Part {
                    hot: &[0.555, 0.378],
                    keys: &[("item4", 0.94), ("item1", 0.02), ("item5", 0.02), ("item7", 0.02)],
                    amount: Amount::One,
                    ..part("gift", 0.357, (1.9, 0.86), Payload::Gift)
                },
                Part {
                    keys: &[("item11", 0.82), ("item10", 0.15), ("item12", 0.03)],
                    amount: Amount::One,
                    ..part("guard", 0.0068, (1.0, 1.0), Payload::Gift)
                },
                part("super_chat", 0.003, (1.0, 0.95), Payload::Text(46.0, 0.7, 0.0, 0.0)),
            ],
        ),
    }
}

/// The state of a part while a trace is made.
#[derive(Default)]
struct PartState {
    events: u64,
    users: u64,
    recent_users: Vec<u64>,
    recent_texts: Vec<String>,
    combo: i64,
    likes: i64,
}

fn generate(shape: Shape, seconds: u32, scale: f64, seed: u64) -> Result<Vec<TraceEvent>> {
    let (rate, parts) = model(shape);
    let mut random = Random(seed);
    let mut states: Vec<PartState> = parts.iter().map(|_| PartState::default()).collect();
    let mut events = Vec::new();
    let mut level = random.normal();
    let mut online = 1_000.0_f64;
    for second in 0..u64::from(seconds) {
        level = rate.memory * level + (1.0 - rate.memory * rate.memory).sqrt() * random.normal();
        let mut factor = (rate.sigma * level - rate.sigma * rate.sigma / 2.0).exp();
        if random.chance(rate.spike) {
            factor *= 3.0;
        }
        online = (online + 8.0 * random.normal()).clamp(100.0, 10_000.0);
        let count = random.poisson(rate.mean * factor * scale);
        let mut stamps: Vec<u64> = (0..count)
            .map(|_| {
                let at = second * 1_000 + random.below(1_000);
                at - at % rate.batch_ms
            })
            .collect();
        stamps.sort_unstable();
        for t_ms in stamps {
            let index = random.weighted(parts.iter().map(|part| part.share));
            events.push(event(t_ms, &parts[index], &mut states[index], online, &mut random)?);
        }
    }
    // Batches may begin in the second before theirs.
    events.sort_by_key(|event: &TraceEvent| event.t_ms);
    Ok(events)
}

fn event(
    t_ms: u64,
    part: &Part,
    state: &mut PartState,
    online: f64,
    random: &mut Random,
) -> Result<TraceEvent> {
    state.events += 1;
    let amount = match part.amount {
        Amount::None => None,
        Amount::One => Some(1),
        Amount::Ban => Some(if random.chance(0.7) { 600 } else { 60 }),
        Amount::Combo => {
            // A combo goes on with 0.58, which gives the recorded share of ones.
            state.combo = if random.chance(0.58) && state.combo < 91 { state.combo + 1 } else { 1 };
            Some(state.combo)
        }
        Amount::Batch(mean, spread) => {
            Some((mean + spread * random.normal()).round().clamp(1.0, 18.0) as i64)
        }
    };
    state.likes += amount.unwrap_or(0);
    let payload = match part.payload {
        Payload::None => None,
        Payload::Text(median, spread, repeat, common) => {
            let text = text(state, random, median, spread, repeat, common);
            Some(serde_json::to_string(&text)?)
        }
        Payload::Online => Some(format!("{{\"online\":{online:.0}}}")),
        Payload::Likes => Some(format!("{{\"total\":{}}}", state.likes)),
        Payload::Gift => Some("{\"price\":100,\"total\":100}".into()),
    };
    let key = match part.keys {
        [] => None,
        keys => Some(keys[random.weighted(keys.iter().map(|key| key.1))].0.to_owned()),
    };
    Ok(TraceEvent {
        t_ms,
        kind: part.kind.into(),
        user: user(part, state, random),
        payload: payload.map(RawValue::from_string).transpose()?,
        key,
        amount,
    })
}

fn user(part: &Part, state: &mut PartState, random: &mut Random) -> Option<String> {
    let (a, d) = part.users;
    if a == 0.0 {
        return None;
    }
    let mut pick = random.unit();
    for (index, chance) in part.hot.iter().enumerate() {
        if pick < *chance {
            return Some(format!("h{index}"));
        }
        pick -= chance;
    }
    let known = a * (state.events as f64).powf(d);
    let user = if (state.users as f64) < known || state.recent_users.is_empty() {
        state.users += 1;
        state.users
    } else {
        state.recent_users[random.index(state.recent_users.len())]
    };
    remember(&mut state.recent_users, user, random);
    // Who chats also enters and likes: numbers are shared between kinds.
    Some(format!("u{user}"))
}

fn text(
    state: &mut PartState,
    random: &mut Random,
    median: f64,
    spread: f64,
    repeat: f64,
    common: f64,
) -> String {
    const COMMON: [&str; 8] = ["666", "LUL", "gg", "hahaha", "Kreygasm", "1", "wow", "nice!!"];
    let pick = random.unit();
    if pick < common {
        let index = random.weighted((1..=COMMON.len()).map(|rank| 1.0 / rank as f64));
        return COMMON[index].to_owned();
    }
    if pick < common + repeat && !state.recent_texts.is_empty() {
        return state.recent_texts[random.index(state.recent_texts.len())].clone();
    }
    let length = (median * (spread * random.normal()).exp()).clamp(1.0, 1_000.0) as usize;
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let letter = b"etaoinshrdlu  kEOS!?w4"[random.index(22)];
        text.push(char::from(letter));
    }
    remember(&mut state.recent_texts, text.clone(), random);
    text
}

fn remember<T>(recent: &mut Vec<T>, one: T, random: &mut Random) {
    if recent.len() < MEMORY {
        recent.push(one);
    } else {
        let index = random.index(MEMORY);
        recent[index] = one;
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.unit() * end as f64) as u64
    }

    fn index(&mut self, length: usize) -> usize {
        (self.unit() * length as f64) as usize
    }

    /// Standard normal (Box and Muller 1958).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    fn poisson(&mut self, mean: f64) -> u64 {
        if mean > 60.0 {
            return (mean + mean.sqrt() * self.normal()).round().max(0.0) as u64;
        }
        let limit = (-mean).exp();
        let mut product = self.unit();
        let mut count = 0;
        while product > limit {
            product *= self.unit();
            count += 1;
        }
        count
    }

    fn weighted(&mut self, weights: impl Iterator<Item = f64> + Clone) -> usize {
        let mut pick = self.unit() * weights.clone().sum::<f64>();
        let mut last = 0;
        for (index, weight) in weights.enumerate() {
            last = index;
            if pick < weight {
                break;
            }
            pick -= weight;
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn figures(events: &[TraceEvent], seconds: u32) -> (f64, u32, u32, f64) {
        let mut bins = vec![0_u32; seconds as usize];
        for event in events {
            bins[(event.t_ms / 1_000) as usize] += 1;
        }
        bins.sort_unstable();
        let mean = events.len() as f64 / f64::from(seconds);
        let variance =
            bins.iter().map(|&n| (f64::from(n) - mean).powi(2)).sum::<f64>() / f64::from(seconds);
        (mean, bins[bins.len() * 99 / 100], bins[bins.len() - 1], variance / mean)
    }

    #[test]
    fn shapes_have_the_figures_of_the_recordings() {
        // (shape, seconds, mean, p99, peak, variance/mean) as recorded.
        for (shape, seconds, mean, p99, peak, fano) in [
            (Shape::Flood, 9_660, 10.1, 38.0, 83.0, 5.6),
            (Shape::Steady, 2_160, 12.9, 23.0, 50.0, 1.4),
            (Shape::Gifts, 4_380, 2.9, 11.0, 37.0, 2.7),
            (Shape::Combos, 14_700, 0.6, 5.0, 15.0, 2.1),
        ] {
            let got = figures(&generate(shape, seconds, 1.0, 7).unwrap(), seconds);
            let near = |got: f64, wanted: f64, by: f64| got > wanted / by && got < wanted * by;
            assert!(near(got.0, mean, 1.25), "{shape:?} mean {}", got.0);
            assert!(near(f64::from(got.1), p99, 1.4), "{shape:?} p99 {}", got.1);
            assert!(near(f64::from(got.2), peak, 1.8), "{shape:?} peak {}", got.2);
            assert!(near(got.3, fano, 1.5), "{shape:?} variance/mean {}", got.3);
        }
    }

    #[test]
    fn users_repeat_as_recorded() {
        let events = generate(Shape::Flood, 9_660, 1.0, 3).unwrap();
        let chats: Vec<_> = events.iter().filter(|event| event.kind == "chat").collect();
        let users: HashSet<_> = chats.iter().map(|event| &event.user).collect();
        let per_user = chats.len() as f64 / users.len() as f64;
        assert!((3.5..5.5).contains(&per_user), "{per_user}");
        let texts: HashSet<_> =
            chats.iter().map(|event| event.payload.as_ref().unwrap().get()).collect();
        let distinct = texts.len() as f64 / chats.len() as f64;
        assert!((0.35..0.55).contains(&distinct), "{distinct}");
    }

    #[test]
    fn a_seed_gives_the_same_trace_and_times_are_sorted() {
        for shape in [Shape::Gifts, Shape::Combos] {
            let one = generate(shape, 300, 2.0, 5).unwrap();
            let two = generate(shape, 300, 2.0, 5).unwrap();
            assert_eq!(serde_json::to_string(&one).unwrap(), serde_json::to_string(&two).unwrap());
            assert!(one.is_sorted_by_key(|event| event.t_ms));
        }
    }
}
