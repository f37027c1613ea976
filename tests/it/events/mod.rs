//! Events: schemas, golden examples, round trips.
