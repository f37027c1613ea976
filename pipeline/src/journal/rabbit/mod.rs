//! rabbit
