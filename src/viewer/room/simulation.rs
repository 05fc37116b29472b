//! A room's model against a server, a network and a viewer's life drawn at
//! random, in virtual time: streams that overtake each other, datagrams that are
//! lost, doubled and late, repetitions, connections that break with everything
//! that is on its way.
//!
//! `TIDEGATE_SEED=n` replays one run, `TIDEGATE_SEEDS=n` makes so many new ones.

use std::collections::{BTreeSet, VecDeque};

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

/// An event of the model server: its place in the room's whole history.
#[derive(Debug, Clone, Copy)]
struct Said {
    seq: u64,
    important: Option<u64>,
}

#[derive(Debug, Clone)]
enum Message {
    Joined(Joined),
    Frame(Header, Vec<Said>),
    Gap(u64, u64),
    Missed(u64),
    Failed(&'static str),
}

/// A server's room and what is on its way to one viewer.
struct World {
    random: SmallRng,
    split: bool,
    said: Vec<Said>,
    important: u64,
    control: VecDeque<Message>,
    own: VecDeque<Message>,
    datagrams: Vec<Message>,
    now: Time,
    /// Important events up to this are not kept any more.
    forgotten: u64,
}

impl World {
    fn seq(&self) -> u64 {
        self.said.len() as u64
    }

    fn frame(&self, first_seq: u64, last_seq: u64) -> Header {
        Header { epoch: 7, first_seq, last_seq, important: self.important, ack: None }
    }

    fn beside(&self) -> Header {
        self.frame(self.seq() + 1, self.seq())
    }

    /// The room says something, and it goes out.
    fn speak(&mut self, connected: bool) {
        let first = self.seq() + 1;
        let mut fresh = Vec::new();
        for _ in 0..self.random.random_range(1..4) {
            let packet = self.random.random_bool(0.4);
            self.important += u64::from(packet);
            let important = packet.then_some(self.important);
            let said = Said { seq: self.seq() + 1, important };
            self.said.push(said);
            fresh.push(said);
        }
        if !connected {
            return;
        }
        if self.split {
            let (own, rest): (Vec<_>, Vec<_>) =
                fresh.into_iter().partition(|said| said.important.is_some());
            if !own.is_empty() {
                let ack = Some(Asked { one_in: 1, within_ms: 50, digest_from: None });
                let frame = Message::Frame(Header { ack, ..self.beside() }, own);
                if self.random.random_bool(0.5) {
                    self.datagrams.push(frame.clone());
                }
                self.own.push_back(frame);
            }
            let header = self.frame(first, self.seq());
            self.control.push_back(Message::Frame(header, rest));
            if self.random.random_bool(0.3) {
                let sampled = Message::Frame(self.beside(), Vec::new());
                self.datagrams.push(sampled);
            }
        } else if self.random.random_bool(0.1) {
            // This viewer's socket took no more: a notice, and what is owed.
            let owed = fresh.into_iter().filter(|said| said.important.is_some()).collect();
            self.control.push_back(Message::Gap(first, self.seq()));
            self.control.push_back(Message::Frame(self.beside(), owed));
        } else {
            self.control.push_back(Message::Frame(self.frame(first, self.seq()), fresh));
        }
    }

    fn after(&self, important: u64, most: usize) -> Vec<Said> {
        let kept = important.max(self.forgotten);
        let after = self.said.iter().filter(|said| said.important > Some(kept));
        after.take(most).copied().collect()
    }

    /// The viewer comes, from a position or anew.
    fn join(&mut self, from: Option<Position>) {
        let now =
            Joined { epoch: 7, seq: self.seq(), important: self.important, ..Joined::default() };
        let Some(from) = from else { return self.control.push_back(Message::Joined(now)) };
        let complete = from.important >= self.forgotten;
        if complete && self.random.random_bool(0.6) {
            self.control.push_back(Message::Joined(Joined { recovered: true, ..now }));
            let missed = self.said.iter().filter(|said| match said.important {
                Some(important) => important > from.important,
                None => said.seq > from.seq,
            });
            let missed = missed.copied().collect();
            let header = self.frame(from.seq + 1, self.seq());
            self.control.push_back(Message::Frame(header, missed));
        } else {
            // Only the newest follow.
            let all = self.after(from.important, usize::MAX);
            let kept = self.random.random_range(0..=all.len());
            let owed = all[all.len() - kept..].to_vec();
            let first = owed.first().and_then(|said| said.important).unwrap_or(self.important + 1);
            let missed = first > from.important + 1;
            self.control.push_back(Message::Joined(Joined { missed, ..now }));
            self.control.push_back(Message::Frame(self.beside(), owed));
        }
    }

    /// The viewer says something; it may be that nobody answers.
    fn hear(&mut self, say: Say) {
        let Say::Pull(from, to) = say else { return };
        match self.random.random_range(0..10) {
            0 => {}
            1 => self.control.push_back(Message::Failed("pull_limited")),
            _ => {
                if from <= self.forgotten {
                    self.control.push_back(Message::Failed("history_gone"));
                }
                let mut events = self.after(from - 1, 200);
                events.retain(|said| said.important <= Some(to));
                self.control.push_back(Message::Frame(self.beside(), events));
            }
        }
    }

    /// Something comes again, or is told to have been missed.
    fn repeat(&mut self) {
        if self.important == 0 {
            return;
        }
        let after = self.random.random_range(0..=self.important);
        let message = match self.random.random_range(0..3) {
            0 => Message::Missed(after),
            _ => Message::Frame(self.beside(), self.after(after, 5)),
        };
        match self.random.random_bool(0.5) && self.split {
            true => self.own.push_back(message),
            false => self.control.push_back(message),
        }
    }

    fn next(&mut self) -> Option<(Source, Message)> {
        match self.random.random_range(0..3) {
            0 => Some((Source::Control, self.control.pop_front()?)),
            1 => Some((Source::Important, self.own.pop_front()?)),
            _ if self.datagrams.is_empty() => None,
            _ => {
                let any = self.random.random_range(0..self.datagrams.len());
                let lost = self.random.random_bool(0.2);
                let twice = self.random.random_bool(0.2);
                let datagram = if twice {
                    self.datagrams[any].clone()
                } else {
                    self.datagrams.swap_remove(any)
                };
                (!lost).then_some((Source::Datagram, datagram))
            }
        }
    }
}

/// A viewer, and what it was shown.
struct Watcher {
    model: Model<Said>,
    baseline: Option<u64>,
    packets: Vec<u64>,
    talk: Vec<u64>,
    gaps: BTreeSet<u64>,
    lost: BTreeSet<u64>,
}

impl Watcher {
    fn take(&mut self, world: &mut World, source: Source, message: Message) {
        let now = world.now;
        let mut random = SmallRng::seed_from_u64(world.random.random());
        let mut draw = |end: u64| if end == 0 { 0 } else { random.random_range(0..end) };
        let mut shown = Vec::new();
        let mut show = |what| shown.push(what);
        match message {
            Message::Joined(joined) => {
                let entry = self.model.joined(&joined, now, &mut draw, &mut show);
                match entry {
                    Entry::First => self.baseline = Some(joined.important),
                    Entry::Behind(Some((first, last))) => self.gaps.extend(first..=last),
                    _ => {}
                }
            }
            Message::Frame(header, said) => {
                let events = said.into_iter().map(|said| Incoming {
                    seq: Some(said.seq),
                    important: said.important,
                    hash: 0,
                    event: said,
                });
                self.model.frame(&header, source, events, now, &mut draw, &mut show);
            }
            Message::Gap(first, last) => {
                self.gaps.extend(first..=last);
                self.model.gap(first, last);
            }
            Message::Missed(to) => self.model.missed(to, 300, now, &mut draw),
            Message::Failed(code) => self.model.failed(code, None, now),
        }
        for what in shown {
            self.show(what);
        }
        while let Some(say) = self.model.say(now, &mut draw) {
            world.hear(say);
        }
    }

    fn show(&mut self, what: Shown<Said>) {
        match what {
            Shown::Event(Said { important: Some(number), .. }) => {
                let last = self.packets.last().copied().or(self.baseline);
                let skipped = last.map_or(number, |last| last + 1)..number;
                assert!(skipped.clone().all(|no| self.lost.contains(&no)), "{skipped:?}");
                assert!(last.is_none_or(|last| number > last), "{number} after {last:?}");
                self.packets.push(number);
            }
            Shown::Event(Said { seq, .. }) => {
                assert!(self.talk.last().is_none_or(|last| seq > *last), "{seq} out of order");
                self.talk.push(seq);
            }
            Shown::Skipped { first_seq, last_seq } => panic!("{first_seq} to {last_seq} skipped"),
            Shown::Lost { from, to } => self.lost.extend(from..=to),
        }
    }
}

fn live(seed: u64) {
    println!("TIDEGATE_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let split = random.random_bool(0.7);
    let mut world = World {
        random,
        split,
        said: Vec::new(),
        important: 0,
        control: VecDeque::new(),
        own: VecDeque::new(),
        datagrams: Vec::new(),
        now: Time::from_millis(1_000_000),
        forgotten: 0,
    };
    let mut watcher = Watcher {
        model: Model::default(),
        baseline: None,
        packets: Vec::new(),
        talk: Vec::new(),
        gaps: BTreeSet::new(),
        lost: BTreeSet::new(),
    };
    let (mut connected, mut asked) = (false, false);
    for step in 0.. {
        let ending = step > 2_000;
        let speaking = if ending { 0.0 } else { 0.3 };
        if world.random.random_bool(speaking) {
            world.speak(asked);
        }
        if !connected {
            world.split = world.random.random_bool(0.7);
            watcher.model.connected(world.random.random_range(0..4) * 16_384, world.split);
            (connected, asked) = (true, false);
        } else if !asked {
            world.join(watcher.model.position());
            asked = true;
        } else if !ending && world.random.random_bool(0.01) {
            world.control.clear();
            world.own.clear();
            world.datagrams.clear();
            (connected, asked) = (false, false);
            // It may be long until it is back.
            for _ in 0..world.random.random_range(0..30) {
                world.speak(false);
            }
            continue;
        } else if !ending && world.random.random_bool(0.05) {
            world.repeat();
        } else if !ending && world.random.random_bool(0.005) {
            let kept = world.random.random_range(0..20);
            world.forgotten = world.forgotten.max(world.important.saturating_sub(kept));
        }
        if let Some((source, message)) = world.next() {
            watcher.take(&mut world, source, message);
        }
        world.now = world.now + Duration::from_millis(world.random.random_range(0..60));
        let mut random = SmallRng::seed_from_u64(world.random.random());
        let mut draw = |end: u64| if end == 0 { 0 } else { random.random_range(0..end) };
        while let Some(say) = watcher.model.say(world.now, &mut draw) {
            world.hear(say);
        }
        let quiet = world.control.is_empty() && world.own.is_empty();
        let whole = watcher.model.position().is_some_and(|at| at.important == world.important);
        if ending && quiet && whole && asked {
            break;
        }
        assert!(step < 20_000, "it never comes to rest: {:?}", watcher.model);
    }
    judge(&world, &watcher);
}

/// Nothing is missing without a word.
fn judge(world: &World, watcher: &Watcher) {
    let baseline = watcher.baseline.expect("it joined");
    let packets: BTreeSet<u64> = watcher.packets.iter().chain(&watcher.lost).copied().collect();
    assert_eq!(packets, (baseline + 1..=world.important).collect(), "important events");
    assert!(watcher.lost.last() <= Some(&world.forgotten), "lost what the server has");
    let first = watcher.talk.first().copied().unwrap_or(u64::MAX);
    let talk: BTreeSet<u64> = watcher.talk.iter().copied().collect();
    for said in world.said.iter().filter(|said| said.important.is_none() && said.seq >= first) {
        let told = talk.contains(&said.seq) || watcher.gaps.contains(&said.seq);
        assert!(told, "{} neither came nor was told of", said.seq);
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn important_events_are_shown_once_in_order_and_without_a_hole_whatever_the_network_does() {
    if let Some(seed) = number("TIDEGATE_SEED") {
        return live(seed);
    }
    (0..60).for_each(live);
    (0..number("TIDEGATE_SEEDS").unwrap_or(20)).for_each(|_| live(rand::random()));
}

/// Messages that no server of ours sends.
#[test]
fn no_sequence_of_messages_breaks_it() {
    use proptest::prelude::*;
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &rand::random::<[u8; 32]>());
    let mut runner = TestRunner::new_with_rng(Config::with_cases(300), rng);
    let small = 0..6u64;
    let message = (0..6u8, small.clone(), small.clone(), small.clone(), any::<u64>());
    let messages = proptest::collection::vec(message, 0..60);
    let outcome = runner.run(&messages, |messages| {
        let mut model: Model<u64> = Model::default();
        let mut draw = |end: u64| end / 2;
        let last = std::cell::Cell::new(None::<u64>);
        for (step, (sort, a, b, c, huge)) in messages.into_iter().enumerate() {
            let now = Time::from_millis(step as u64 * 700);
            let mut show = |shown| {
                if let Shown::Event(number) = shown {
                    assert!(number == 0 || last.get().is_none_or(|last| number > last));
                    last.set(Some(number).filter(|number| *number > 0).or(last.get()));
                }
            };
            let big = if huge % 7 == 0 { huge } else { c };
            match sort {
                0 => model.connected((huge % 65_536) as u16, a % 2 == 0),
                1 => {
                    let joined = Joined {
                        epoch: 1,
                        seq: big,
                        important: last.get().unwrap_or(0).max(b),
                        recovered: a % 2 == 0,
                        rebased: a % 3 == 0,
                        missed: a % 5 == 0,
                    };
                    model.joined(&joined, now, &mut draw, &mut show);
                }
                2 => model.gap(a, big),
                3 => model.missed(big, u32::MAX, now, &mut draw),
                4 => model.failed(if a > 2 { "history_gone" } else { "pull_limited" }, None, now),
                _ => {
                    let sources = [Source::Control, Source::Important, Source::Datagram];
                    let ack = Some(Asked { one_in: 0, within_ms: 9, digest_from: Some(c) });
                    let header =
                        Header { epoch: 1, first_seq: a, last_seq: big, important: big, ack };
                    let event = |no: u64| Incoming {
                        seq: Some(no),
                        important: (no > 0).then_some(no),
                        hash: 1,
                        event: no,
                    };
                    let events = [event(b), event(c)];
                    let source = sources[(huge % 3) as usize];
                    model.frame(&header, source, events, now, &mut draw, &mut show);
                }
            }
            for _ in 0..10 {
                model.say(now, &mut draw);
            }
            let _ = (model.farewell(), model.next_deadline(), model.caught_up());
        }
        Ok(())
    });
    outcome.unwrap();
}
