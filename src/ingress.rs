//! How events come in from upstream services, by HTTP and gRPC, and how rooms
//! are read.

mod advice;
pub mod answer;
pub mod grpc;
pub mod http;
pub mod intake;
pub mod places;
pub mod stats;
pub mod turns;
