//! Who comes, and what this one may do: tokens from the configuration, and the console's sessions that a token opens.
//!
//! Tokens are kept as digests and compared in constant time; a session is known by 256 random bits in a cookie, and only its digest is kept. Without
//! tokens everybody who reaches the (loopback) address may do everything, as on the command line.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use secrecy::ExposeSecret as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::config::{self, Role};

/// A working day; then the token is asked for again.
const SESSION_FOR: Duration = Duration::from_secs(12 * 3600);
/// People and their tablets. The oldest session ends for one more.
const SESSIONS_MAX: usize = 256;
/// The cookie of the console.
pub(crate) const COOKIE: &str = "tillstream";

type Digest = [u8; 32];

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// As the configuration names it; `local` where nobody is asked.
    pub(crate) name: String,
    /// What this one may do.
    pub(crate) role: Role,
    /// What forms of the console have to carry.
    pub(crate) form_token: String,
    /// Whether nobody is asked who they are.
    pub(crate) open: bool,
}

impl Caller {
    /// Who stands in the audit. Where nobody is asked, the name that a request gives is all there is; else it is only an addition.
    pub(crate) fn by(&self, given: &str) -> String {
        // A name is for people: more of it than this helps nobody.
        let given: String = given.trim().chars().filter(|c| !c.is_control()).take(120).collect();
        match (self.open, given.is_empty()) {
            (true, false) => given,
            (_, true) => self.name.clone(),
            (false, false) => format!("{} ({given})", self.name),
        }
    }
}

struct Token {
    name: String,
    role: Role,
    digest: Digest,
}

struct Session {
    name: String,
    role: Role,
    ends: Instant,
}

/// Who is let in.
pub(crate) struct Access {
    tokens: Vec<Token>,
    /// Makes the forms' tokens; of this process alone.
    secret: [u8; 32],
    sessions: Mutex<BTreeMap<Digest, Session>>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("tokens", &self.tokens.len()).finish_non_exhaustive()
    }
}

fn digest(text: &[u8]) -> Digest {
    Sha256::digest(text).into()
}

impl Access {
    pub(crate) fn new(tokens: &[config::AdminToken]) -> Access {
        let token =
            |t: &config::AdminToken| Token { name: t.name.clone(), role: t.role, digest: digest(t.token.expose_secret().as_bytes()) };
        Access { tokens: tokens.iter().map(token).collect(), secret: rand::random(), sessions: Mutex::default() }
    }

    /// Whether nobody is asked.
    pub(crate) fn is_open(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Whoever comes where nobody is asked.
    pub(crate) fn anybody(&self) -> Option<Caller> {
        self.is_open().then(|| Caller { name: "local".to_owned(), role: Role::Admin, form_token: self.form_token(b"open"), open: true })
    }

    /// Whose token this is. Looks at all of them, so that the time tells nothing.
    pub(crate) fn by_token(&self, token: &str) -> Option<Caller> {
        let given = digest(token.as_bytes());
        let mut found = None;
        for token in &self.tokens {
            if bool::from(token.digest.ct_eq(&given)) {
                found = Some(token);
            }
        }
        found.map(|token| Caller { name: token.name.clone(), role: token.role, form_token: self.form_token(&given), open: false })
    }

    /// Begins a session and answers what its cookie holds; `None` for a wrong token.
    pub(crate) fn open(&self, token: &str) -> Option<String> {
        let caller = self.by_token(token)?;
        let secret: [u8; 32] = rand::random();
        let cookie = BASE64.encode(secret);
        let now = Instant::now();
        let mut sessions = self.sessions();
        sessions.retain(|_, session| session.ends > now);
        if sessions.len() >= SESSIONS_MAX
            && let Some(oldest) = sessions.iter().min_by_key(|(_, session)| session.ends).map(|(id, _)| *id)
        {
            sessions.remove(&oldest);
        }
        sessions.insert(digest(cookie.as_bytes()), Session { name: caller.name, role: caller.role, ends: now + SESSION_FOR });
        Some(cookie)
    }

    /// Whose session this cookie is.
    pub(crate) fn by_cookie(&self, cookie: &str) -> Option<Caller> {
        // Found by its digest: how long that takes tells nothing of the cookie.
        let id = digest(cookie.as_bytes());
        let sessions = self.sessions();
        let session = sessions.get(&id).filter(|session| session.ends > Instant::now())?;
        Some(Caller { name: session.name.clone(), role: session.role, form_token: self.form_token(&id), open: false })
    }

    /// Ends a session.
    pub(crate) fn close(&self, cookie: &str) {
        self.sessions().remove(&digest(cookie.as_bytes()));
    }

    /// Whether a form carries what it has to.
    pub(crate) fn is_own_form(caller: &Caller, carried: &str) -> bool {
        caller.form_token.as_bytes().ct_eq(carried.as_bytes()).into()
    }

    fn form_token(&self, of: &[u8]) -> String {
        let mut hash = Sha256::new();
        hash.update(self.secret);
        hash.update(of);
        BASE64.encode(hash.finalize())
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<Digest, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        let token = |name: &str, role| config::AdminToken { name: name.to_owned(), role, token: format!("{name}-0123456789abcdef").into() };
        Access::new(&[token("ines", Role::Operator), token("dana", Role::Viewer)])
    }

    #[test]
    fn a_token_is_whole_or_nothing() {
        let access = access();
        let of = |token: &str| access.by_token(token).map(|c| (c.name, c.role));
        assert_eq!(of("ines-0123456789abcdef"), Some(("ines".to_owned(), Role::Operator)));
        for wrong in ["", "ines", "ines-0123456789abcde", "ines-0123456789abcdef ", "INES-0123456789abcdef"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert!(access.anybody().is_none() && !format!("{access:?}").contains("0123"));
        assert!(Access::new(&[]).anybody().is_some_and(|c| c.role == Role::Admin && c.open));
    }

    #[test]
    fn a_session_has_its_own_form_token_and_ends() {
        let access = access();
        assert_eq!(access.open("wrong"), None);
        let (one, two) = (access.open("dana-0123456789abcdef").expect("opens"), access.open("dana-0123456789abcdef").expect("opens"));
        let (first, second) = (access.by_cookie(&one).expect("known"), access.by_cookie(&two).expect("known"));
        assert_eq!((first.name.as_str(), first.role), ("dana", Role::Viewer));
        assert_ne!(first.form_token, second.form_token);
        assert!(Access::is_own_form(&first, &first.form_token) && !Access::is_own_form(&first, &second.form_token));
        access.close(&one);
        assert!(access.by_cookie(&one).is_none() && access.by_cookie(&two).is_some() && access.by_cookie("x").is_none());
        for _ in 0..SESSIONS_MAX {
            access.open("ines-0123456789abcdef").expect("opens");
        }
        assert_eq!(access.sessions().len(), SESSIONS_MAX);
        assert!(access.by_cookie(&two).is_none(), "the oldest ended");
    }

    #[test]
    fn the_audit_names_whoever_has_the_token() {
        let caller = Caller { name: "dana".to_owned(), role: Role::Viewer, form_token: String::new(), open: false };
        assert_eq!((caller.by(""), caller.by("root pid 7\n")), ("dana".to_owned(), "dana (root pid 7)".to_owned()));
        let anybody = Caller { open: true, name: "local".to_owned(), ..caller };
        assert_eq!((anybody.by(""), anybody.by("root pid 7")), ("local".to_owned(), "root pid 7".to_owned()));
    }
}
