//! Why a command ends without success, in the form every surface prints: code, what, why, how to mend it.

use std::fmt;

use super::codes;
use crate::capture::CaptureError;
use crate::control::ControlError;
use crate::delivery::DeliveryError;
use crate::delivery::place::PlaceError;
use crate::delivery::replay::ReplayError;
use crate::journal::JournalError;

/// What kind of failure it is; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A check found something.
    Check,
    /// The command line is wrong.
    Usage,
    /// Another one holds what this one needs.
    Locked,
    /// Data is damaged or contradicts itself.
    Data,
    /// A server is away.
    Unavailable,
    /// Our own fault.
    Bug,
    /// It may work later.
    Temporary,
    /// A server refuses access.
    Permission,
    /// A file or a server is configured so that it cannot work.
    Config,
}

impl Class {
    /// The process's exit code; stable and documented.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Class::Check => 1,
            Class::Usage => 2,
            Class::Locked => 4,
            Class::Data => 65,
            Class::Unavailable => 69,
            Class::Bug => 70,
            Class::Temporary => 75,
            Class::Permission => 77,
            Class::Config => 78,
        }
    }

    /// The word in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Check => "check",
            Class::Usage => "usage",
            Class::Locked => "locked",
            Class::Data => "data",
            Class::Unavailable => "unavailable",
            Class::Bug => "bug",
            Class::Temporary => "temporary",
            Class::Permission => "permission",
            Class::Config => "config",
        }
    }
}

/// A failure. No part of it holds a row's value or a secret.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Stable dotted code.
    pub code: String,
    /// Its kind.
    pub class: Class,
    /// What happened.
    pub what: String,
    /// Why that matters, or what was expected.
    pub why: Option<String>,
    /// How to mend it.
    pub fix: Option<String>,
}

impl Failure {
    /// A failure with a code; class and fix come from the table of codes.
    #[must_use]
    pub fn new(code: &str, what: impl Into<String>) -> Failure {
        let known = codes::find(code);
        Failure {
            code: code.to_owned(),
            class: known.map_or(Class::Bug, |k| k.class),
            what: what.into(),
            why: None,
            fix: known.map(|k| k.fix.to_owned()),
        }
    }

    /// For machines.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({"error": {
            "code": self.code, "class": self.class.as_str(), "what": self.what, "why": self.why, "fix": self.fix,
            "more": format!("tillstream explain {}", self.code),
        }})
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.what)?;
        if let Some(why) = &self.why {
            write!(f, "\n  why  {}", why.replace('\n', "\n       "))?;
        }
        if let Some(fix) = &self.fix {
            write!(f, "\n  fix  {}", fix.replace('\n', "\n       "))?;
        }
        write!(f, "\n  more: tillstream explain {}", self.code)
    }
}

impl std::error::Error for Failure {}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Failure {
        Failure::new(error.code(), error.to_string())
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Failure {
        Failure::new(error.code(), error.to_string())
    }
}

impl From<CaptureError> for Failure {
    fn from(error: CaptureError) -> Failure {
        match error {
            CaptureError::Definite { code, what, why, fix } => {
                // What a person has to mend is configuration unless the table knows better.
                let class = codes::find(code).map_or(Class::Config, |known| known.class);
                Failure { why: Some(why), fix: Some(fix), class, ..Failure::new(code, what) }
            }
            other => Failure::new(other.code(), other.to_string()),
        }
    }
}

impl From<DeliveryError> for Failure {
    fn from(error: DeliveryError) -> Failure {
        let mut failure = Failure::new(&error.code(), error.to_string());
        if codes::find(&failure.code).is_none() {
            // A sink's own code: a partner's, so it has no entry of ours.
            failure.class = if error.is_transient() { Class::Unavailable } else { Class::Config };
        }
        failure
    }
}

impl From<PlaceError> for Failure {
    fn from(error: PlaceError) -> Failure {
        Failure::new(error.code(), error.to_string())
    }
}

impl From<ReplayError> for Failure {
    fn from(error: ReplayError) -> Failure {
        match error {
            ReplayError::Delivery(error) => error.into(),
            error => Failure::new(&error.code(), error.to_string()),
        }
    }
}

/// A failure of a start-up step, with whether trying again can help.
#[derive(Debug)]
pub struct Retryable {
    /// Whether it can.
    pub transient: bool,
    /// What happened.
    pub failure: Failure,
}

impl From<JournalError> for Retryable {
    fn from(error: JournalError) -> Retryable {
        Retryable { transient: error.is_transient(), failure: error.into() }
    }
}

impl From<ControlError> for Retryable {
    fn from(error: ControlError) -> Retryable {
        Retryable { transient: error.is_transient(), failure: error.into() }
    }
}

impl From<Retryable> for Failure {
    fn from(retryable: Retryable) -> Failure {
        retryable.failure
    }
}
