//! The `http` sink: JSON over HTTP, one event a request or a batch of them.
