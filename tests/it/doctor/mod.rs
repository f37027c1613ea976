//! The doctor: faults that are sown are found, by a login that may only read; and the load of a database.

mod queries;
mod seeded;
