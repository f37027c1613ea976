//! PostgreSQL's text of a value, written as JSON.
