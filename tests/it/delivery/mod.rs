//! Delivery against scripted and real sinks.

mod pos;
mod runtime;
