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
//! The other kinds of this family (`webhook`, `klaviyo`, `segment`, `square-inventory`) bring what is particular to their target as an [`sink::Api`]
//! and share everything else:
//!
//! | module | owns |
//! | --- | --- |
//! | `client` | the way to a target: time, size of answers, TLS, no redirects |
//! | `balance` | several endpoints of one target |
//! | `egress` | which addresses may be reached |
//! | `auth`, `oauth`, `signature` | how a request shows whose it is |
//! | `sink` | lists, limits, halving, outcomes |
//! | `answer` | what an answer means |
//! | `template`, `form`, `body` | what is sent |

pub(crate) mod answer;
pub(crate) mod auth;
mod balance;
pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod config;
pub(crate) mod egress;
pub(crate) mod form;
mod oauth;
pub(crate) mod signature;
pub(crate) mod sink;
pub(crate) mod template;

pub use config::HttpKind;
