//! appender
