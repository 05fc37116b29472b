//! What happened in the runs: a simulation in which something never happens
//! tests nothing of it.

use tidegate::engine::event::Frame;
use tidegate::engine::outcome::{Outcome, Refusal};
use tidegate::engine::stats::RoomStats;

use super::client::{Heard, Message};

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts over one run or many.
        #[derive(Debug, Default, PartialEq, Eq)]
        pub(crate) struct Seen {
            /// Of the processes that were there at the end.
            pub(crate) stats: RoomStats,
            $($(#[$doc])* pub(crate) $name: u64,)*
        }

        impl Seen {
            pub(crate) fn absorb(&mut self, other: &Seen) {
                self.stats.absorb(&other.stats);
                $(self.$name += other.$name;)*
            }

            /// Each of these is there to happen.
            pub(crate) fn assert_everything_happened(&self) {
                $(assert!(self.$name > 0, "never: {}", stringify!($name));)*
            }
        }
    };
}

counts! {
    accepted,
    duplicates,
    refused_for_the_log,
    refused_for_the_buffer,
    refused_for_good,
    answers_lost,
    floods,
    /// Events whose log took longer than the room's patience.
    late_events,
    stalls,
    sync_failures,
    crashes,
    orderly_ends,
    /// Rooms that fell asleep.
    slept,
    /// Events that a crash left in the log though nobody had been told.
    survivors,
    log_pulls,
    log_resumes,
    cuts,
    left,
    /// Messages that a cut destroyed.
    lost_in_cuts,
    /// Messages with important events lost on a stream of their own.
    lost_on_the_way,
    stalled_streams,
    /// Ways of coming back.
    recovered,
    back_with_important_only,
    back_with_missed,
    new_numberings,
    passed_over,
    duplicates_thrown_away,
    held_back,
    carried,
    told_to_pull,
    pulls,
    given_up,
    lies,
    verdicts,
    /// Viewers that were there at the end.
    stayed,
}

impl Seen {
    pub(crate) fn answered(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Accepted { .. } => self.accepted += 1,
            Outcome::Duplicate { .. } => self.duplicates += 1,
            Outcome::Rejected(Refusal::LogUnavailable) => self.refused_for_the_log += 1,
            Outcome::Rejected(Refusal::BufferFull) => self.refused_for_the_buffer += 1,
            Outcome::Rejected(_) => self.refused_for_good += 1,
        }
    }

    pub(crate) fn framed(&mut self, frame: &Frame) {
        let late = |seq| seq < Some(frame.first_seq);
        let important = frame.events.iter().filter(|event| event.important.is_some());
        self.late_events += important.filter(|event| late(event.seq)).count() as u64;
    }

    /// `knew`: it had been in the room before.
    pub(crate) fn heard(&mut self, message: &Message, heard: &Heard, knew: bool) {
        self.duplicates_thrown_away += heard.duplicates;
        self.held_back += heard.held_back;
        self.passed_over += u64::from(heard.passed_over);
        self.new_numberings += u64::from(heard.new_epoch && knew);
        let Message::Joined { recovered, missed, .. } = message else { return };
        if knew && !heard.new_epoch {
            match (recovered, missed) {
                (true, _) => self.recovered += 1,
                (false, None) => self.back_with_important_only += 1,
                (false, Some(_)) => self.back_with_missed += 1,
            }
        }
    }
}
