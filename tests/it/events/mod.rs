//! The change event: golden examples, their schema, and the bytes of the frame.

mod pgoutput;
