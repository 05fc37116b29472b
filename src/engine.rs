//! The core: state machines that read no clock, no socket, no randomness of
//! their own and no async runtime. `now` and seeds come in, effects go out as
//! data, so a simulation can run rooms, viewers, stalls and bursts under
//! virtual time and a seed replays a failure.
//!
//! In the order in which an event walks: [`draft`] checks what somebody wrote,
//! [`event`] and [`kind`] say what it is; [`room`] asks `dedupe` whether it knows
//! the id, numbers the event and answers with an [`outcome`]; [`merge`] makes
//! many into few; `pending` holds the rest until `schedule` says that a flush is
//! due, and gives way by [`level`]; `budget` trims the frame and [`drops`] names
//! what went; [`history`] remembers what travelled; [`delivery`] carries the
//! frame for one viewer that cannot keep up. [`stats`] counts all of it in plain
//! structs.

pub mod event;
pub mod ids;
pub mod kind;
pub mod ladder;
pub mod mark;
pub mod settings;
pub mod time;
pub mod turns;
pub mod visitors;

pub mod admission;
mod allowance;
mod budget;
pub mod caller;
pub mod confirm;
mod dedupe;
pub mod delivery;
pub mod digest;
pub mod draft;
pub mod drops;
pub mod history;
pub mod level;
pub mod merge;
pub mod outcome;
mod pending;
pub mod priority;
pub mod room;
mod schedule;
pub mod stats;

#[cfg(test)]
pub(crate) mod testing;
