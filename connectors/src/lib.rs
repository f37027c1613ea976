//! Connectors: the [`Sink`](sink::Sink) trait, the registry of kinds and the built-in sinks.
//!
//! A connector's life has three steps that stay apart: *validate* is pure, *build* starts nothing, *deliver* acts.
//! Nothing here retries, waits, keeps a checkpoint or knows where events come from: that is delivery's, in `tillstream`.

mod block;
pub mod conformance;
mod fields;
pub mod http;
pub mod idempotency;
pub mod jsonl;
pub mod klaviyo;
pub mod mapping;
mod own;
pub mod registry;
pub mod sandbox;
pub mod scaffold;
pub mod scripted;
pub mod segment;
mod shape;
pub mod show;
pub mod sink;
pub mod sql;
pub mod square;
pub mod webhook;
