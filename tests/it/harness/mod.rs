//! Private servers, databases and child processes for the other tests.
