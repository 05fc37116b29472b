//! Tidegate: a live-room broadcast and overload-control edge server.
//!
//! The walk of an event: a publisher's bytes come in through [`ingress`], which
//! decodes, authenticates and checks limits; the event goes to the home shard
//! of its room, where [`engine`] numbers, merges and buffers it; [`wire`]
//! encodes the room's frame once; every [`shard`] that has viewers of the room
//! fans it out; [`transport`] speaks to the viewers.
//!
//! Who the server is towards them, and TLS, is in [`tls`].
//!
//! One thread per shard, each with its own single-threaded runtime, listening
//! socket, viewers and rooms ([`worker`]). [`server`] starts and drains them,
//! [`admin`] shows operators what they do ([`telemetry`] names the numbers).
//! ARCHITECTURE.md tells the reasons. [`client`] and [`viewer`] are the other
//! ends: libraries for publishers and for viewers; [`trust`] says which servers
//! they believe.

pub mod admin;
pub mod auth;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
mod connector;
pub mod demo;
pub mod engine;
pub mod ingress;
pub mod limits;
pub mod log;
pub mod server;
pub mod shard;
pub mod telemetry;
pub mod tls;
pub mod trace;
pub mod transport;
pub mod trust;
pub mod viewer;
pub mod wire;
pub mod worker;
