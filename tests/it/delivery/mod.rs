//! Delivery against scripted and real sinks.

mod apart;
mod apply;
mod bottleneck;
mod capacity;
mod facts;
mod http;
mod jsonl;
mod ledger;
mod lunch;
mod mapping;
mod pause;
pub(crate) mod pos;
mod preview;
mod replay;
mod runtime;
mod schema_change;
mod series;
mod speed;
mod sql;
mod sql_dialects;
mod stock;
