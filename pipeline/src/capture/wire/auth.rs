//! Who we are, proven: SCRAM-SHA-256, bound to the server's certificate whenever both sides can.
//!
//! A pure state machine over authentication messages. Cleartext passwords and MD5 are refused unless the configuration
//! allows them, and the server's word that all is well counts only when nothing is still to be proven.

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::config::ChannelBinding as Binding;

use super::errors::{definite, refused};
use crate::capture::CaptureError;

/// How the server made sure of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Not at all (`trust`, `peer` or a client certificate).
    None,
    /// SCRAM-SHA-256.
    Scram,
    /// SCRAM-SHA-256-PLUS: bound to the server's TLS certificate, so that nobody sits in between.
    ScramPlus,
    /// A cleartext password or MD5, explicitly allowed.
    Weak,
}

/// What the connection allows and offers.
pub(super) struct Auth {
    pub(super) host: String,
    pub(super) user: String,
    pub(super) password: Option<SecretString>,
    /// `channel_binding` of the URL.
    pub(super) binding: Binding,
    /// `tls-server-end-point`, where TLS is used and the certificate allows it.
    pub(super) end_point: Option<Vec<u8>>,
    /// Accept cleartext and MD5.
    pub(super) allow_weak: bool,
}

/// Where the exchange stands.
pub(super) enum Exchange {
    Start,
    Scram(Box<ScramSha256>, Method),
    /// Ours is done; only AuthenticationOk is missing.
    Proven(Method),
}

/// What follows from a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Bytes for the server were added.
    Answer,
    /// Nothing to say; go on reading.
    Wait,
    /// Done.
    Done(Method),
}

impl Exchange {
    /// Takes the body of an authentication message and appends the answer to `out`.
    ///
    /// # Errors
    /// `capture.auth_refused` or `capture.auth_weak`.
    pub(super) fn step(&mut self, auth: &Auth, body: &[u8], out: &mut BytesMut) -> Result<Step, CaptureError> {
        let (kind, data) = body.split_first_chunk::<4>().ok_or_else(|| auth.broken("the message is too short"))?;
        match (u32::from_be_bytes(*kind), &mut *self) {
            (0, Exchange::Start) => auth.unbound().map(|()| Step::Done(Method::None)),
            (0, Exchange::Proven(method)) => Ok(Step::Done(*method)),
            (0, Exchange::Scram(..)) => Err(auth.broken("the server accepts us before it has proven that it knows the password")),
            (3, Exchange::Start) => {
                let password = auth.weak("a cleartext password")?;
                frontend::password_message(password.expose_secret().as_bytes(), out)
                    .map_err(|_| auth.broken("the password holds a zero byte"))?;
                *self = Exchange::Proven(Method::Weak);
                Ok(Step::Answer)
            }
            (5, Exchange::Start) => {
                let salt = *data.first_chunk::<4>().ok_or_else(|| auth.broken("the salt is too short"))?;
                let hash = md5_hash(auth.user.as_bytes(), auth.weak("MD5")?.expose_secret().as_bytes(), salt);
                frontend::password_message(hash.as_bytes(), out).map_err(|_| auth.broken("the hash holds a zero byte"))?;
                *self = Exchange::Proven(Method::Weak);
                Ok(Step::Answer)
            }
            (10, Exchange::Start) => {
                let (scram, method) = auth.begin_scram(data)?;
                let name = if method == Method::ScramPlus { SCRAM_SHA_256_PLUS } else { SCRAM_SHA_256 };
                frontend::sasl_initial_response(name, scram.message(), out).map_err(|e| auth.broken(&e.to_string()))?;
                *self = Exchange::Scram(Box::new(scram), method);
                Ok(Step::Answer)
            }
            (11, Exchange::Scram(scram, _)) => {
                scram.update(data).map_err(|e| auth.broken(&e.to_string()))?;
                frontend::sasl_response(scram.message(), out).map_err(|e| auth.broken(&e.to_string()))?;
                Ok(Step::Answer)
            }
            (12, Exchange::Scram(scram, method)) => {
                scram.finish(data).map_err(|_| auth.broken("the server does not know the password itself"))?;
                *self = Exchange::Proven(*method);
                Ok(Step::Wait)
            }
            (2 | 6..=9, _) => Err(auth.broken("the server asks for a method that is not supported (GSSAPI, SSPI or an old one)")),
            _ => Err(auth.broken("an authentication message out of turn")),
        }
    }
}

impl Auth {
    fn begin_scram(&self, mechanisms: &[u8]) -> Result<(ScramSha256, Method), CaptureError> {
        let offers = |name: &str| mechanisms.split(|b| *b == 0).any(|m| m == name.as_bytes());
        let end_point = self.end_point.clone().filter(|_| self.binding != Binding::Disable);
        let (binding, method) = match (end_point, offers(SCRAM_SHA_256_PLUS)) {
            (Some(data), true) => (ChannelBinding::tls_server_end_point(data), Method::ScramPlus),
            // We could and the server did not offer: said so, it will refuse if somebody removed its offer.
            (Some(_), false) => (ChannelBinding::unrequested(), Method::Scram),
            (None, _) => (ChannelBinding::unsupported(), Method::Scram),
        };
        if method != Method::ScramPlus {
            self.unbound()?;
            if !offers(SCRAM_SHA_256) {
                return Err(self.broken("the server offers no SCRAM-SHA-256"));
            }
        }
        Ok((ScramSha256::new(self.needed_password()?.expose_secret().as_bytes(), binding), method))
    }

    /// Going on without channel binding.
    fn unbound(&self) -> Result<(), CaptureError> {
        if self.binding == Binding::Require {
            return Err(refused(
                format!("{} did not bind the password exchange to its certificate, and channel_binding=require", self.host),
                "use TLS and scram-sha-256 in pg_hba.conf on the server, or take channel_binding=require out of the source's URL",
            ));
        }
        Ok(())
    }

    fn weak(&self, method: &str) -> Result<&SecretString, CaptureError> {
        self.unbound()?;
        if !self.allow_weak {
            return Err(definite(
                "capture.auth_weak",
                format!("{} asks \"{}\" for {method}", self.host, self.user),
                "whoever answers in the server's place would learn the password or what replaces it",
                "use scram-sha-256 in pg_hba.conf, set password_encryption = 'scram-sha-256' and the password anew; \
                 or set source.allow_weak_auth: true",
            ));
        }
        self.needed_password()
    }

    fn needed_password(&self) -> Result<&SecretString, CaptureError> {
        self.password.as_ref().ok_or_else(|| {
            refused(
                format!("{} asks for the password of \"{}\" and the source's URL has none", self.host, self.user),
                "put it in the URL by ${file:PATH} or ${env:NAME}",
            )
        })
    }

    fn broken(&self, what: &str) -> CaptureError {
        refused(
            format!("authentication with {} failed: {what}", self.host),
            "check the password, and that nothing sits between us and the server",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth() -> Auth {
        Auth {
            host: "db:5432".to_owned(),
            user: "u".to_owned(),
            password: Some("pencil".to_owned().into()),
            binding: Binding::Prefer,
            end_point: Some(vec![7; 32]),
            allow_weak: false,
        }
    }

    fn message(kind: u32, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], data].concat()
    }

    const BOTH: &[u8] = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";

    fn first(auth: &Auth, kind: u32, data: &[u8]) -> Result<(Step, Method, BytesMut), CaptureError> {
        let (mut exchange, mut out) = (Exchange::Start, BytesMut::new());
        let step = exchange.step(auth, &message(kind, data), &mut out)?;
        let method = match exchange {
            Exchange::Start => Method::None,
            Exchange::Scram(_, m) | Exchange::Proven(m) => m,
        };
        Ok((step, method, out))
    }

    fn contains(out: &[u8], text: &[u8]) -> bool {
        out.windows(text.len()).any(|w| w == text)
    }

    #[test]
    fn the_certificate_is_bound_whenever_both_sides_can() {
        let (_, method, out) = first(&auth(), 10, BOTH).expect("goes on");
        assert_eq!(method, Method::ScramPlus);
        assert!(contains(&out, b"p=tls-server-end-point,,"));

        let (_, method, out) = first(&auth(), 10, b"SCRAM-SHA-256\0\0").expect("goes on");
        assert_eq!(method, Method::Scram);
        assert!(contains(&out, b"y,,"), "the server must learn that we could have");

        let (_, method, out) = first(&Auth { end_point: None, ..auth() }, 10, BOTH).expect("goes on");
        assert_eq!(method, Method::Scram);
        assert!(contains(&out, b"n,,"));
    }

    #[test]
    fn required_binding_accepts_nothing_less() {
        let required = Auth { binding: Binding::Require, ..auth() };
        assert!(first(&required, 10, BOTH).is_ok());
        assert!(first(&required, 10, b"SCRAM-SHA-256\0\0").is_err());
        assert!(first(&required, 0, b"").is_err());
        assert!(first(&Auth { allow_weak: true, ..required }, 3, b"").is_err());
    }

    #[test]
    fn passwords_in_the_clear_and_md5_need_to_be_allowed() {
        for (kind, data) in [(3, &b""[..]), (5, b"salt")] {
            let error = first(&auth(), kind, data).expect_err("refused");
            assert_eq!(error.code(), "capture.auth_weak");
            let (step, method, _) = first(&Auth { allow_weak: true, ..auth() }, kind, data).expect("allowed");
            assert_eq!((step, method), (Step::Answer, Method::Weak));
        }
    }

    #[test]
    fn an_early_welcome_is_not_believed() {
        let (mut exchange, mut out) = (Exchange::Start, BytesMut::new());
        exchange.step(&auth(), &message(10, BOTH), &mut out).expect("goes on");
        let error = exchange.step(&auth(), &message(0, b""), &mut out).expect_err("too early");
        assert_eq!(error.code(), "capture.auth_refused");
    }

    #[test]
    fn trust_is_accepted_and_needs_no_password() {
        let (step, ..) = first(&Auth { password: None, ..auth() }, 0, b"").expect("trusted");
        assert_eq!(step, Step::Done(Method::None));
        let error = first(&Auth { password: None, ..auth() }, 10, BOTH).expect_err("needs one");
        assert!(error.to_string().contains("has none"));
    }

    #[test]
    fn any_bytes_are_an_answer_not_a_panic() {
        for kind in 0..16 {
            for length in 0..12 {
                let (mut exchange, mut out) = (Exchange::Start, BytesMut::new());
                let bytes = message(kind, &vec![b','; length]);
                for end in 0..=bytes.len() {
                    let _ = exchange.step(&auth(), &bytes[..end], &mut out);
                }
            }
        }
    }
}
