//! Delivery against real sinks.
