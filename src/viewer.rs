//! x
pub mod room;
