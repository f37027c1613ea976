//! The journal contract suite, run against both journals.
