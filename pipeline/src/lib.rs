//! Tillstream: streams the changes of a point-of-sale database into a journal and delivers them to connectors.
//!
//! ```text
//! PostgreSQL ──WAL──▶ capture ──append──▶ JOURNAL ──read──▶ delivery ──deliver──▶ sink ──▶ partner
//!     ▲                 │  ▲                 │                │    ▲                │
//!     └── acknowledge ──┘  └──── confirm ────┘    checkpoint ◀┘    └─── outcomes ───┘
//! ```
//!
//! Capture and delivery never import each other; they meet only at the journal.
//! Imports go one way: `cli → ops → capture | delivery | backfill → control → journal → config | telemetry`.

pub mod backfill;
pub mod capture;
pub mod cli;
pub mod config;
pub mod control;
pub mod delivery;
pub mod demo;
pub mod journal;
pub mod ops;
pub mod retry;
pub mod telemetry;
