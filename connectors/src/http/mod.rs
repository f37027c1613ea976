//! The `http` sink: JSON over HTTP, one event a request or a list of them, each with a key that names it.
//!
//! ```text
//!  single   POST {"id": key, "event_id": …, "op": …, "table": …, "key": {…}, "data": {…}, "version": …}
//!  batch    POST {"items": [ … ]}   ◀─ {"results": [{"id": key, "status": 200}, …]} where the target tells
//! ```
//!
//! A repeat sends the same bytes under the same key. The body of an event depends on nothing but the event and the
//! configuration, so this holds over restarts too. Of a list it does not: after a crash the same items may be cut into
//! other lists. Where lists are sent, the target has to know the *items* by their `id`; the header's key, made of the
//! members' keys, only names the request.
//!
//! Never follows redirects, never repeats by itself, and reads answers up to a bound.

mod answer;
mod body;
mod config;
mod sink;

pub use config::HttpKind;
