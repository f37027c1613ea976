//! Operations: what observes the loops, sends them commands, and says how things stand.

pub mod admin;
pub mod apply;
pub mod audit;
mod backfills;
pub mod codes;
mod connectors;
pub mod coverage;
pub mod docs;
pub mod doctor;
pub mod epoch;
pub mod failure;
pub mod health;
pub mod incident;
pub mod layouts;
pub mod metrics;
pub mod observer;
pub mod process;
pub mod provider;
pub mod publication;
pub mod references;
pub mod setup;
pub mod slots;
pub mod standalone;
pub mod status;
