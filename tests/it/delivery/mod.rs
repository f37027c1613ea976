//! Delivery against scripted and real sinks.

mod apply;
mod facts;
mod http;
mod jsonl;
mod mapping;
mod pos;
mod runtime;
mod speed;
mod sql;
mod sql_dialects;
mod stock;
