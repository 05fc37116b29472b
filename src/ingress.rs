//! How events come in from upstream services, and how rooms are read: by HTTP.

pub mod answer;
pub mod http;
pub mod intake;
pub mod stats;
