//! Delivery against scripted and real sinks.

mod http;
mod pos;
mod runtime;
mod speed;
mod sql;
