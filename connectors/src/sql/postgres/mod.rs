//! PostgreSQL. Values travel as texts in arrays, and the server reads them as the column's type.

mod compare;
mod connect;
mod errors;
mod layout;
mod session;
mod statements;

pub(super) use connect::Address;
