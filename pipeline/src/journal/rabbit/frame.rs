//! Frames of the stream protocol: commands, response codes, and reading and writing their fields.
//!
//! Pure functions over bytes; whatever comes from the broker is checked and never panics.
//! The protocol: <https://github.com/rabbitmq/rabbitmq-server/blob/main/deps/rabbitmq_stream/docs/PROTOCOL.adoc>.

use bytes::{BufMut, Bytes, BytesMut};

use crate::journal::JournalError;

/// Command keys. A response has the highest bit set.
pub(super) mod key {
    pub(crate) const DECLARE_PUBLISHER: u16 = 1;
    pub(crate) const PUBLISH: u16 = 2;
    pub(crate) const PUBLISH_CONFIRM: u16 = 3;
    pub(crate) const PUBLISH_ERROR: u16 = 4;
    pub(crate) const QUERY_PUBLISHER_SEQUENCE: u16 = 5;
    pub(crate) const SUBSCRIBE: u16 = 7;
    pub(crate) const DELIVER: u16 = 8;
    pub(crate) const CREDIT: u16 = 9;
    pub(crate) const METADATA: u16 = 15;
    pub(crate) const METADATA_UPDATE: u16 = 16;
    pub(crate) const PEER_PROPERTIES: u16 = 17;
    pub(crate) const SASL_HANDSHAKE: u16 = 18;
    pub(crate) const SASL_AUTHENTICATE: u16 = 19;
    pub(crate) const TUNE: u16 = 20;
    pub(crate) const OPEN: u16 = 21;
    pub(crate) const CLOSE: u16 = 22;
    pub(crate) const HEARTBEAT: u16 = 23;
    pub(crate) const STREAM_STATS: u16 = 28;
    pub(crate) const RESPONSE: u16 = 0x8000;
}

/// Response codes.
pub(super) mod code {
    pub(crate) const OK: u16 = 1;
    pub(crate) const STREAM_DOES_NOT_EXIST: u16 = 2;
    pub(crate) const STREAM_NOT_AVAILABLE: u16 = 6;
    pub(crate) const SASL_MECHANISM_NOT_SUPPORTED: u16 = 7;
    pub(crate) const AUTHENTICATION_FAILURE: u16 = 8;
    pub(crate) const SASL_ERROR: u16 = 9;
    pub(crate) const AUTHENTICATION_FAILURE_LOOPBACK: u16 = 11;
    pub(crate) const VHOST_ACCESS_FAILURE: u16 = 12;
    pub(crate) const UNKNOWN_FRAME: u16 = 13;
    pub(crate) const FRAME_TOO_LARGE: u16 = 14;
    pub(crate) const INTERNAL_ERROR: u16 = 15;
    pub(crate) const ACCESS_REFUSED: u16 = 16;
    pub(crate) const PRECONDITION_FAILED: u16 = 17;
    pub(crate) const PUBLISHER_DOES_NOT_EXIST: u16 = 18;
}

/// What a response code other than OK means to us. `about` names the stream or what else was asked for.
pub(super) fn code_error(code: u16, about: &str) -> JournalError {
    match code {
        code::STREAM_DOES_NOT_EXIST => JournalError::Missing(about.to_owned()),
        code::STREAM_NOT_AVAILABLE => JournalError::Unavailable(format!("{about}: the stream is not available")),
        code::SASL_MECHANISM_NOT_SUPPORTED => JournalError::Unusable(format!("{about}: the broker does not offer PLAIN authentication")),
        code::AUTHENTICATION_FAILURE | code::SASL_ERROR => JournalError::Refused(format!("{about}: wrong user or password")),
        code::AUTHENTICATION_FAILURE_LOOPBACK => {
            JournalError::Refused(format!("{about}: the broker lets this user connect from its own machine only"))
        }
        code::VHOST_ACCESS_FAILURE => JournalError::Refused(format!("{about}: no access to the virtual host")),
        code::FRAME_TOO_LARGE => JournalError::Unusable(format!("{about}: the broker refuses frames of this size")),
        code::UNKNOWN_FRAME => JournalError::Unusable(format!("{about}: the broker does not know a command we sent")),
        code::ACCESS_REFUSED => JournalError::Refused(format!("{about}: the user has no permission")),
        code::PRECONDITION_FAILED => JournalError::Unusable(format!("{about}: the broker reports a failed precondition")),
        code::INTERNAL_ERROR => JournalError::Unavailable(format!("{about}: internal error of the broker")),
        other => JournalError::Unavailable(format!("{about}: the broker answers with code {other}")),
    }
}

/// A frame to be sent.
pub(super) struct Frame(BytesMut);

impl Frame {
    /// Begins a command, version 1.
    pub(super) fn new(key: u16) -> Self {
        let mut bytes = BytesMut::with_capacity(256);
        bytes.put_u32(0);
        bytes.put_u16(key);
        bytes.put_u16(1);
        Frame(bytes)
    }

    /// Begins a command that is answered.
    pub(super) fn request(key: u16, correlation: u32) -> Self {
        Frame::new(key).u32(correlation)
    }

    pub(super) fn u8(mut self, n: u8) -> Self {
        self.0.put_u8(n);
        self
    }

    pub(super) fn u16(mut self, n: u16) -> Self {
        self.0.put_u16(n);
        self
    }

    pub(super) fn u32(mut self, n: u32) -> Self {
        self.0.put_u32(n);
        self
    }

    pub(super) fn u64(mut self, n: u64) -> Self {
        self.0.put_u64(n);
        self
    }

    /// # Panics
    /// When the text is longer than a stream, producer or user name may be: those are checked where they come in.
    pub(super) fn string(mut self, text: &str) -> Self {
        self.0.put_u16(u16::try_from(text.len()).ok().filter(|len| *len < 0x8000).expect("names are checked where they come in"));
        self.0.put_slice(text.as_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.put_u32(u32::try_from(bytes.len()).expect("only credentials are sent this way"));
        self.0.put_slice(bytes);
        self
    }

    pub(super) fn properties(mut self, properties: &[(&str, &str)]) -> Self {
        self.0.put_u32(u32::try_from(properties.len()).expect("a few properties"));
        for (key, value) in properties {
            self = self.string(key).string(value);
        }
        self
    }

    /// The frame's bytes; `more` bytes will be sent behind them and belong to it.
    pub(super) fn finish(mut self, more: usize) -> Bytes {
        let len = u32::try_from(self.0.len() - 4 + more).expect("frames are kept below the negotiated size");
        self.0[..4].copy_from_slice(&len.to_be_bytes());
        self.0.freeze()
    }
}

/// Reads the fields of a received frame.
#[derive(Clone, Debug)]
pub(super) struct Fields(Bytes);

impl Fields {
    /// `bytes` are a frame without its size.
    pub(super) fn new(bytes: Bytes) -> Self {
        Fields(bytes)
    }

    fn take(&mut self, len: usize) -> Result<Bytes, JournalError> {
        if self.0.len() < len {
            return Err(truncated());
        }
        Ok(self.0.split_to(len))
    }

    pub(super) fn u8(&mut self) -> Result<u8, JournalError> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, JournalError> {
        Ok(u16::from_be_bytes(self.take(2)?.as_ref().try_into().map_err(|_| truncated())?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, JournalError> {
        Ok(u32::from_be_bytes(self.take(4)?.as_ref().try_into().map_err(|_| truncated())?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, JournalError> {
        Ok(u64::from_be_bytes(self.take(8)?.as_ref().try_into().map_err(|_| truncated())?))
    }

    /// A string; null reads as empty.
    pub(super) fn string(&mut self) -> Result<String, JournalError> {
        let len = match self.u16()? {
            0xffff => 0,
            len => usize::from(len),
        };
        String::from_utf8(self.take(len)?.to_vec()).map_err(|_| JournalError::Unavailable("the broker sent text that is not UTF-8".into()))
    }

    /// The length of an array whose elements take at least `element_len` bytes: a count that the frame can not hold is refused before
    /// anything is allocated.
    pub(super) fn count(&mut self, element_len: usize) -> Result<usize, JournalError> {
        let count = self.u32()? as usize;
        if count > self.0.len() / element_len {
            return Err(truncated());
        }
        Ok(count)
    }

    pub(super) fn properties(&mut self) -> Result<Vec<(String, String)>, JournalError> {
        let count = self.count(4)?;
        (0..count).map(|_| Ok((self.string()?, self.string()?))).collect()
    }

    /// What is left.
    pub(super) fn rest(self) -> Bytes {
        self.0
    }
}

fn truncated() -> JournalError {
    JournalError::Unavailable("the broker sent a frame that ends too early".into())
}

/// A received frame.
#[derive(Debug)]
pub(super) enum Incoming {
    Response {
        correlation: u32,
        code: u16,
        key: u16,
        fields: Fields,
    },
    Confirm(Vec<u64>),
    /// Publishing ids and why they were not stored.
    PublishError(Vec<(u64, u16)>),
    /// A chunk of a subscription, as [`super::chunk`] reads it.
    Deliver(Bytes),
    MetadataUpdate {
        code: u16,
        stream: String,
    },
    Tune {
        frame_max: u32,
        heartbeat: u32,
    },
    Close {
        code: u16,
        reason: String,
    },
    Heartbeat,
    /// A command that does not concern us.
    Other,
}

impl Incoming {
    /// Reads a frame without its size.
    pub(super) fn parse(frame: Bytes) -> Result<Self, JournalError> {
        let mut fields = Fields::new(frame);
        let (key, _version) = (fields.u16()?, fields.u16()?);
        Ok(match key {
            key::DELIVER => {
                let _subscription = fields.u8()?;
                Incoming::Deliver(fields.rest())
            }
            key::PUBLISH_CONFIRM => {
                let _publisher = fields.u8()?;
                let count = fields.count(8)?;
                Incoming::Confirm((0..count).map(|_| fields.u64()).collect::<Result<_, _>>()?)
            }
            key::PUBLISH_ERROR => {
                let _publisher = fields.u8()?;
                let count = fields.count(10)?;
                Incoming::PublishError((0..count).map(|_| Ok((fields.u64()?, fields.u16()?))).collect::<Result<_, JournalError>>()?)
            }
            key::METADATA_UPDATE => Incoming::MetadataUpdate { code: fields.u16()?, stream: fields.string()? },
            key::TUNE => Incoming::Tune { frame_max: fields.u32()?, heartbeat: fields.u32()? },
            key::CLOSE => {
                let _correlation = fields.u32()?;
                Incoming::Close { code: fields.u16()?, reason: fields.string()? }
            }
            key::HEARTBEAT => Incoming::Heartbeat,
            // The broker answers a credit only when it is wrong, without a correlation: the subscription is gone, and so will be the connection.
            key if key == key::RESPONSE | key::CREDIT => Incoming::Other,
            // A metadata response is the only one without a code.
            key if key == key::RESPONSE | key::METADATA => {
                Incoming::Response { key: key::METADATA, correlation: fields.u32()?, code: code::OK, fields }
            }
            key if key & key::RESPONSE != 0 => {
                Incoming::Response { key: key & !key::RESPONSE, correlation: fields.u32()?, code: fields.u16()?, fields }
            }
            _ => Incoming::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_written_as_the_protocol_says() {
        let frame = Frame::request(key::DECLARE_PUBLISHER, 7).u8(3).string("ab").string("").finish(0);
        assert_eq!(frame.as_ref(), [0, 0, 0, 15, 0, 1, 0, 1, 0, 0, 0, 7, 3, 0, 2, b'a', b'b', 0, 0]);
        assert_eq!(Frame::new(key::PUBLISH).u8(0).finish(100)[..4], [0, 0, 0, 105]);
        let frame = Frame::new(key::OPEN).properties(&[("a", "b")]).u16(1).u64(2).bytes(&[9]).finish(0);
        assert_eq!(frame[8..], [0, 0, 0, 1, 0, 1, b'a', 0, 1, b'b', 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 9]);
    }

    #[test]
    fn what_the_broker_sends_is_read() {
        let confirm = Frame::new(key::PUBLISH_CONFIRM).u8(0).u32(2).u64(5).u64(6).finish(0).slice(4..);
        assert!(matches!(Incoming::parse(confirm), Ok(Incoming::Confirm(ids)) if ids == [5, 6]));
        let error = Frame::new(key::PUBLISH_ERROR).u8(0).u32(1).u64(5).u16(18).finish(0).slice(4..);
        assert!(matches!(Incoming::parse(error), Ok(Incoming::PublishError(ids)) if ids == [(5, 18)]));
        let response = Frame::request(key::RESPONSE | key::SUBSCRIBE, 9).u16(2).finish(0).slice(4..);
        assert!(matches!(Incoming::parse(response), Ok(Incoming::Response { key: key::SUBSCRIBE, correlation: 9, code: 2, .. })));
        let update = Frame::new(key::METADATA_UPDATE).u16(6).string("s").finish(0).slice(4..);
        assert!(matches!(Incoming::parse(update), Ok(Incoming::MetadataUpdate { code: 6, stream }) if stream == "s"));
        assert!(matches!(Incoming::parse(Bytes::from_static(&[0, 99, 0, 1])), Ok(Incoming::Other)));
    }

    #[test]
    fn truncated_and_hostile_frames_are_errors() {
        let frames = [
            Frame::new(key::PUBLISH_CONFIRM).u8(0).u32(2).u64(5).u64(6).finish(0),
            Frame::new(key::PUBLISH_ERROR).u8(0).u32(1).u64(5).u16(18).finish(0),
            Frame::request(key::CLOSE, 1).u16(1).string("bye").finish(0),
            Frame::new(key::METADATA_UPDATE).u16(6).string("s").finish(0),
            Frame::new(key::TUNE).u32(1).u32(2).finish(0),
        ];
        for frame in frames {
            let frame = frame.slice(4..);
            assert!(Incoming::parse(frame.clone()).is_ok());
            for len in 0..frame.len() {
                assert!(Incoming::parse(frame.slice(..len)).is_err(), "{len} bytes of {frame:?}");
            }
        }
        let huge = Frame::new(key::PUBLISH_CONFIRM).u8(0).u32(u32::MAX).u64(5).finish(0).slice(4..);
        assert!(Incoming::parse(huge).is_err());
        let not_text = Bytes::from_static(&[0, 16, 0, 1, 0, 6, 0, 1, 0xff]);
        assert!(Incoming::parse(not_text).is_err());
        assert!(Fields::new(Bytes::from_static(&[0x7f, 0xff, 0xff, 0xff])).properties().is_err());
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        // A small generator with a fixed seed: the same bytes in every run.
        let mut seed = 0x1234_5678_9abc_def0_u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for _ in 0..200_000 {
            let mut bytes: Vec<u8> = (0..next() % 64).map(|_| next() as u8).collect();
            if bytes.len() > 1 {
                bytes[0] = if next() % 2 == 0 { 0 } else { 0x80 };
                bytes[1] %= 32;
            }
            let _ = Incoming::parse(Bytes::from(bytes));
        }
    }
}
