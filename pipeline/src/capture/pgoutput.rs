//! pgoutput, decoded from borrowed bytes as pure functions.

/// A row's column values, borrowed from the message.
#[derive(Clone, Copy, Debug)]
pub struct Tuple<'a> {
    /// The undecoded columns.
    pub bytes: &'a [u8],
}
