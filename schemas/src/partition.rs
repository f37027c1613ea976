//! Which partition a row belongs to.
