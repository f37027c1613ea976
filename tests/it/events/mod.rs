//! The change event: its golden examples and their schemas, the bytes of the frame, and the messages it is made from.

mod golden;
mod pgoutput;
mod samples;
