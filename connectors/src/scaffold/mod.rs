//! Connector files to begin with, one for each kind: each is valid as it stands, and its tests pass.

/// What `tillstream connector new` writes.
#[derive(Clone, Copy, Debug)]
pub struct Scaffold {
    /// The connector file, in which `NAME` stands for the connector's name.
    pub file: &'static str,
    /// What the file refers to as `${file:NAME.secret}`.
    pub secret: Option<Secret>,
    /// A further file, by its extension: what the target needs before anything can be delivered.
    pub beside: Option<(&'static str, &'static str)>,
}

/// What a new secret file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secret {
    /// A text to be replaced by what the target's owner hands out.
    Placeholder,
    /// A random signing secret of Standard Webhooks, to be handed to the receiver.
    Webhook,
}

/// The placeholder of secrets that somebody else hands out.
pub const PLACEHOLDER: &str = "replace-me";

const fn scaffold(file: &'static str, secret: Option<Secret>) -> Scaffold {
    Scaffold { file, secret, beside: None }
}

/// `sql`, with the table that it writes to.
pub(crate) const SQL: Scaffold =
    Scaffold { file: include_str!("sql.yaml"), secret: None, beside: Some(("sql", include_str!("stock_level.sql"))) };
/// `http`.
pub(crate) const HTTP: Scaffold = scaffold(include_str!("http.yaml"), Some(Secret::Placeholder));
/// `jsonl`.
pub(crate) const JSONL: Scaffold = scaffold(include_str!("jsonl.yaml"), None);
/// `webhook`.
pub(crate) const WEBHOOK: Scaffold = scaffold(include_str!("webhook.yaml"), Some(Secret::Webhook));
/// `klaviyo`.
pub(crate) const KLAVIYO: Scaffold = scaffold(include_str!("klaviyo.yaml"), Some(Secret::Placeholder));
/// `segment`.
pub(crate) const SEGMENT: Scaffold = scaffold(include_str!("segment.yaml"), Some(Secret::Placeholder));
/// `square-inventory`.
pub(crate) const SQUARE: Scaffold = scaffold(include_str!("square-inventory.yaml"), Some(Secret::Placeholder));
