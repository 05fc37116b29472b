//! When to pull, and what.
//!
//! Over one ordered connection a number that is named and not there is a hole, and
//! is asked for at once. Where important events have a stream of their own it may
//! be on its way: then it is a hole when that stream has not moved for
//! [`PATIENCE`], a few round trips of a bad mobile line.

use std::collections::VecDeque;
use std::time::Duration;

use super::Draw;
use crate::engine::time::Time;

/// Important events that one `pull` asks for: the server brings no more.
const PULL_EVENTS: u64 = 200;
/// How long a stream of important events may stand still before what is missing
/// from it is asked for.
const PATIENCE: Duration = Duration::from_secs(1);
/// An unanswered pull is repeated after this, and up to as long again.
const AGAIN: Duration = Duration::from_secs(2);
/// Pulls that an answer may still be for.
const MAX_ASKED: usize = 16;
/// No answer takes longer.
const REMEMBERED: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Nothing is missing.
    #[default]
    Whole,
    /// Something is, and may be on its way until then.
    Hole { due: Time },
    /// The server said when to ask.
    Told { due: Time },
    /// Asked for, up to `to`; what is known to be missing ends at `known`.
    Asked { to: u64, known: u64, again: Time },
}

#[derive(Debug, Default)]
pub(super) struct Pulls {
    state: State,
    /// Pulls of late, when and up to where: an answer that holds nothing does not
    /// say which of them it is for, so it is taken for the oldest.
    asked: VecDeque<(Time, u64)>,
    /// The server no longer has the beginning of what was asked for.
    gone: bool,
}

impl Pulls {
    /// Nothing is under way on a new connection.
    pub(super) fn void(&mut self) {
        *self = Self::default();
    }

    /// Something has come. `moved`: what there is without a hole has grown.
    pub(super) fn look(
        &mut self,
        important: u64,
        newest: u64,
        moved: bool,
        split: bool,
        now: Time,
    ) {
        let patience = if split { PATIENCE } else { Duration::ZERO };
        self.state = match self.state {
            _ if important >= newest => State::Whole,
            State::Whole => State::Hole { due: now + patience },
            State::Hole { .. } if moved => State::Hole { due: now + patience },
            State::Asked { to, known, .. } if important >= to => {
                // The answer has come; of a long hole the rest is asked for at once.
                let wait = if important < known { Duration::ZERO } else { patience };
                State::Hole { due: now + wait }
            }
            State::Asked { to, known, .. } if moved => {
                State::Asked { to, known, again: now + AGAIN }
            }
            state => state,
        };
    }

    /// The server says when to ask.
    pub(super) fn told(&mut self, due: Time) {
        self.state = State::Told { due };
    }

    /// The server answers no pull before that.
    pub(super) fn limited(&mut self, due: Time) {
        if let State::Asked { .. } = self.state {
            self.told(due);
        }
    }

    /// The server no longer has all that was asked for. The answer with what is
    /// left comes next.
    pub(super) fn gone(&mut self) {
        self.gone |= matches!(self.state, State::Asked { .. });
    }

    /// A frame that may be the answer begins with `first`: up to which number
    /// nothing will come any more, if the server said that something is gone.
    pub(super) fn given_up(&mut self, first: Option<u64>, important: u64) -> Option<u64> {
        if !std::mem::take(&mut self.gone) {
            return None;
        }
        let (_, to) = self.asked.pop_front()?;
        // What is held can make a later pull the shorter one.
        let later = self.asked.iter().map(|(_, to)| *to).filter(|to| *to > important);
        let to = later.fold(to, u64::min);
        Some(first.map_or(to, |first| first.saturating_sub(1)))
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        match self.state {
            State::Whole => None,
            State::Hole { due } | State::Told { due } | State::Asked { again: due, .. } => {
                Some(due)
            }
        }
    }

    /// What to ask for now, first and last.
    pub(super) fn due(
        &mut self,
        important: u64,
        newest: u64,
        first_held: Option<u64>,
        now: Time,
        draw: Draw<'_>,
    ) -> Option<(u64, u64)> {
        if self.next_deadline().is_none_or(|due| due > now) {
            return None;
        }
        if important >= newest {
            self.state = State::Whole;
            return None;
        }
        let from = important + 1;
        let before_held = first_held.map_or(newest, |first| first - 1);
        let to = before_held.min(important + PULL_EVENTS).max(from);
        self.asked.retain(|(at, _)| now.since(*at) < REMEMBERED);
        self.asked.truncate(MAX_ASKED - 1);
        self.asked.push_back((now, to));
        let again = now + AGAIN + super::spread(draw, AGAIN);
        self.state = State::Asked { to, known: before_held, again };
        Some((from, to))
    }
}
