//! Places of HTTP connections that are no viewers: who gets one when they are
//! all taken.
//!
//! To close a connection that is one too many is no way to be rid of it: a
//! caller that does not listen is back at once, and a connection costs more to
//! open and close than a request to answer (measured: 8,000 connections for
//! 1,024 places, each closed and opened anew, left 11 % of the capacity for
//! events). So who finds no place waits in line for one, which costs nothing but
//! memory. The line is bounded, and so is the wait; when it is full, the application of
//! which most wait has its last sent away.
//!
//! An *application* (the token's `sub`) has a bound of its own, so that none of
//! them, however many connections it opens, shuts out the others; applications
//! take turns at what becomes free.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::stats::EdgeStats;

/// A hash of an application's name, under a key of its own.
type Application = u64;

/// See the module's documentation. One per shard.
#[derive(Debug)]
pub struct Places {
    state: Mutex<State>,
    /// In all, in line, and of one application.
    most: usize,
    most_alike: usize,
    hasher: foldhash::fast::RandomState,
    /// Somebody waits.
    asked: Notify,
    stats: Arc<EdgeStats>,
}

#[derive(Debug, Default)]
struct State {
    held: usize,
    waiting: usize,
    applications: HashMap<Application, Party>,
    /// Applications of which somebody waits. The next turn is the first one's.
    turns: VecDeque<Application>,
}

/// Connections of one application.
#[derive(Debug, Default)]
struct Party {
    held: usize,
    line: VecDeque<oneshot::Sender<Place>>,
}

/// A place. It is free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    application: Application,
}

/// Places that somebody waits for; see [`Places::wanted`].
#[derive(Debug, Default)]
pub struct Wanted {
    of_any: usize,
    alike: HashMap<Application, usize>,
}

impl Wanted {
    /// Whether somebody would have this place, if it became free. Each call counts
    /// as if it did.
    pub fn takes(&mut self, place: &Place) -> bool {
        let left = match self.alike.get_mut(&place.application) {
            Some(left) if *left > 0 => left,
            _ => &mut self.of_any,
        };
        let takes = *left > 0;
        *left = left.saturating_sub(1);
        takes
    }
}

/// There is no place, and none became free in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl Places {
    /// `most` of them, as many in line for one, and `most_alike` for the
    /// connections of one application.
    #[must_use]
    pub fn new(most: usize, most_alike: usize, stats: Arc<EdgeStats>) -> Arc<Self> {
        let most_alike = most_alike.min(most);
        let (state, hasher, asked) = Default::default();
        Arc::new(Self { state, most, most_alike, hasher, asked, stats })
    }

    /// A place, at once or not at all.
    ///
    /// # Errors
    /// All are taken, or all that the application may have.
    pub fn try_take(self: &Arc<Self>, application: &str) -> Result<Place, Full> {
        self.try_take_as(self.hasher.hash_one(application))
    }

    fn try_take_as(self: &Arc<Self>, application: Application) -> Result<Place, Full> {
        let mut state = self.state();
        let State { held, applications, .. } = &mut *state;
        let party = applications.entry(application).or_default();
        if *held < self.most && party.held < self.most_alike {
            *held += 1;
            party.held += 1;
            self.tell(&state);
            return Ok(Place { places: Arc::clone(self), application });
        }
        state.forget_idle(application);
        Err(Full)
    }

    /// A place, now or within `patience`.
    ///
    /// # Errors
    /// None became free, or too many wait already.
    pub async fn take(
        self: &Arc<Self>,
        application: &str,
        patience: Duration,
    ) -> Result<Place, Full> {
        let application = self.hasher.hash_one(application);
        if let Ok(place) = self.try_take_as(application) {
            return Ok(place);
        }
        let (given, place) = oneshot::channel();
        {
            let mut state = self.state();
            if state.waiting >= self.most && !state.crowd_out(application) {
                state.forget_idle(application);
                return Err(Full);
            }
            state.waiting += 1;
            let State { applications, turns, .. } = &mut *state;
            let party = applications.entry(application).or_default();
            if party.line.is_empty() {
                turns.push_back(application);
            }
            party.line.push_back(given);
            self.tell(&state);
        }
        let mut waits = Waits { places: self, application, place };
        self.asked.notify_one();
        match timeout(patience, &mut waits.place).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(Full),
        }
    }

    /// Returns when somebody waits, perhaps since long ago.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// How many are taken, and how many wait for one.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let state = self.state();
        (state.held, state.waiting)
    }

    /// For how many of those that wait it is places that are wanting: in all, and
    /// within each application that has as many as it may.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        let state = self.state();
        let mut wanted = Wanted::default();
        for application in &state.turns {
            let Some(party) = state.applications.get(application) else { continue };
            let free = self.most_alike.saturating_sub(party.held).min(party.line.len());
            wanted.of_any += free;
            if free < party.line.len() {
                wanted.alike.insert(*application, party.line.len() - free);
            }
        }
        wanted
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, state: &State) {
        self.stats.http_held.store(state.held as u64, Ordering::Relaxed);
        self.stats.http_waiting.store(state.waiting as u64, Ordering::Relaxed);
    }

    /// Whose turn it is to have the place that has become free.
    fn next(&self) -> Option<(Application, oneshot::Sender<Place>)> {
        let mut state = self.state();
        for _ in 0..state.turns.len() {
            let application = state.turns.pop_front()?;
            let State { held, applications, turns, .. } = &mut *state;
            let Some(party) = applications.get_mut(&application) else { continue };
            if party.held >= self.most_alike {
                turns.push_back(application);
                continue;
            }
            let next = party.line.pop_front();
            if !party.line.is_empty() {
                turns.push_back(application);
            }
            if let Some(next) = next {
                *held += 1;
                party.held += 1;
                self.tell(&state);
                return Some((application, next));
            }
        }
        None
    }
}

impl State {
    /// Sends away the last in the longest line, if that is longer than the line of this
    /// application would be (McKenney, *Stochastic fairness queueing*, INFOCOM 1990).
    /// Returns whether it did.
    fn crowd_out(&mut self, application: Application) -> bool {
        let length = |application: &Application| {
            self.applications.get(application).map_or(0, |party| party.line.len())
        };
        let Some(longest) = self.turns.iter().max_by_key(|other| length(other)) else {
            return false;
        };
        if length(longest) <= length(&application) + 1 {
            return false;
        }
        let longest = *longest;
        self.applications.get_mut(&longest).and_then(|party| party.line.pop_back()).is_some()
    }

    /// Memory is not to grow with the names of those who came once.
    fn forget_idle(&mut self, application: Application) {
        let idle = |party: &Party| party.held == 0 && party.line.is_empty();
        if self.applications.get(&application).is_some_and(idle) {
            self.applications.remove(&application);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut state = self.places.state();
            state.held -= 1;
            if let Some(party) = state.applications.get_mut(&self.application) {
                party.held -= 1;
            }
            state.forget_idle(self.application);
            self.places.tell(&state);
        }
        if let Some((application, next)) = self.places.next() {
            let place = Place { places: Arc::clone(&self.places), application };
            // Whoever no longer waits hands it on by dropping it.
            let _ = next.send(place);
        }
    }
}

/// One in line, for as long as it waits.
struct Waits<'a> {
    places: &'a Places,
    application: Application,
    place: oneshot::Receiver<Place>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.place.close();
        {
            let mut state = self.places.state();
            state.waiting -= 1;
            self.places.tell(&state);
            if let Some(party) = state.applications.get_mut(&self.application) {
                party.line.retain(|waits| !waits.is_closed());
                if party.line.is_empty() {
                    let application = self.application;
                    state.turns.retain(|turn| *turn != application);
                    state.forget_idle(application);
                }
            }
        }
        // One that came at the last moment goes to the next.
        drop(self.place.try_recv());
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn poll<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ready) => Some(ready),
            Poll::Pending => None,
        }
    }

    fn hold(places: &Arc<Places>, application: &str, count: usize) -> Vec<Place> {
        let take = |_| places.try_take(application).expect("a place");
        (0..count).map(take).collect()
    }

    #[tokio::test]
    async fn who_finds_no_place_has_the_next_that_is_free_or_hears_in_time() {
        let places = Places::new(2, 2, Arc::default());
        let mut held = hold(&places, "im", 2);
        let mut first = Box::pin(places.take("im", PATIENCE));
        let mut second = Box::pin(places.take("im", Duration::from_millis(1)));
        assert!(poll(first.as_mut()).is_none() && poll(second.as_mut()).is_none());
        let third = poll(pin!(places.take("im", PATIENCE)));
        assert_eq!(third.expect("no line").unwrap_err(), Full, "the line is full, too");
        held.pop();
        assert!(poll(second.as_mut()).is_none(), "not its turn");
        held.push(first.await.expect("a place"));
        assert_eq!(second.await.unwrap_err(), Full, "a millisecond later");
        assert_eq!(places.counts(), (2, 0));
        drop(held);
        assert_eq!(places.counts(), (0, 0));
        assert!(places.state().applications.is_empty() && places.state().turns.is_empty());
    }

    #[tokio::test]
    async fn an_application_has_no_more_than_its_part_and_the_others_take_turns() {
        let places = Places::new(4, 3, Arc::default());
        let mut greedy = hold(&places, "greedy", 3);
        assert_eq!(places.try_take("greedy").unwrap_err(), Full);
        let mut more: Vec<_> = (0..3).map(|_| Box::pin(places.take("greedy", PATIENCE))).collect();
        assert!(more.iter_mut().all(|wait| poll(wait.as_mut()).is_none()));
        let modest = places.try_take("modest").expect("the part of others");
        let mut late = Box::pin(places.take("late", PATIENCE));
        assert!(poll(late.as_mut()).is_none());
        greedy.pop();
        // Turns: the greedy one asked first, then the late one.
        let first = poll(more[0].as_mut()).expect("its turn").expect("a place");
        assert!(poll(late.as_mut()).is_none());
        drop(modest);
        assert!(poll(more[1].as_mut()).is_none(), "it has its part");
        let late = poll(late.as_mut()).expect("its turn").expect("a place");
        drop((first, late, greedy));
        let more: Vec<_> = more.into_iter().skip(1).collect();
        assert_eq!(places.counts(), (2, 2), "given, though not yet looked at");
        drop(more);
        assert_eq!(places.counts(), (0, 0));
        assert!(places.state().applications.is_empty() && places.state().turns.is_empty());
    }

    #[tokio::test]
    async fn what_is_wanted_is_told_by_whose_place_would_do() {
        let places = Places::new(3, 2, Arc::default());
        let greedy = hold(&places, "greedy", 2);
        let mut own = Box::pin(places.take("greedy", PATIENCE));
        assert!(poll(own.as_mut()).is_none());
        let other = places.try_take("other").expect("the last");
        assert!(!places.wanted().takes(&other), "the greedy one has its part");
        assert!(places.wanted().takes(&greedy[0]));
        let mut late = Box::pin(places.take("late", PATIENCE));
        assert!(poll(late.as_mut()).is_none());
        let mut wanted = places.wanted();
        assert!(wanted.takes(&other) && !wanted.takes(&other), "one place");
        assert!(wanted.takes(&greedy[1]) && !wanted.takes(&greedy[1]));
    }

    #[tokio::test]
    async fn who_fills_the_line_keeps_nobody_else_out_of_it() {
        let places = Places::new(3, 1, Arc::default());
        let held = ["a", "b", "c"].map(|name| places.try_take(name).expect("a place"));
        let mut line: Vec<_> = (0..3).map(|_| Box::pin(places.take("a", PATIENCE))).collect();
        assert!(line.iter_mut().all(|wait| poll(wait.as_mut()).is_none()));
        let mut modest = Box::pin(places.take("d", PATIENCE));
        assert!(poll(modest.as_mut()).is_none(), "in line");
        let last = poll(line.pop().expect("three").as_mut());
        assert_eq!(last.expect("sent away").unwrap_err(), Full);
        let more = poll(pin!(places.take("a", PATIENCE)));
        assert_eq!(more.expect("no line").unwrap_err(), Full, "it has the longest");
        let [a, b, _c] = held;
        drop(b);
        assert!(line.iter_mut().all(|wait| poll(wait.as_mut()).is_none()), "it has its part");
        let d = poll(modest.as_mut()).expect("its turn").expect("a place");
        drop((a, d));
        assert!(poll(line[0].as_mut()).expect("its turn").is_ok());
        assert_eq!(places.counts(), (2, 1), "given and dropped, and one that is in line");
    }

    #[tokio::test]
    async fn who_leaves_the_line_is_passed_over() {
        let places = Places::new(2, 2, Arc::default());
        let mut held = hold(&places, "im", 2);
        let mut leaves = Box::pin(places.take("a", PATIENCE));
        let mut stays = Box::pin(places.take("b", PATIENCE));
        assert!(poll(leaves.as_mut()).is_none() && poll(stays.as_mut()).is_none());
        held.pop();
        assert_eq!(places.counts(), (2, 2), "given to the first");
        drop(leaves);
        let place = poll(stays.as_mut()).expect("its turn").expect("a place");
        assert_eq!(places.counts(), (2, 0));
        drop((place, held));
        assert_eq!(places.counts(), (0, 0));
        assert!(places.state().applications.is_empty());
    }
}
