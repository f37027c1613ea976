//! Reaching the target database: address, TLS, session.

use std::fmt;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::tls::{self, Asked, Tls};
use super::errors::classify;
use crate::sink::SinkError;

/// A host that does not answer within this is given up for this attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Unacknowledged bytes older than this break the connection, so that a frozen host is noticed.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// A checked connection URL. Never printed with its password.
#[derive(Clone)]
pub(in crate::sql) struct Address {
    config: Config,
    tls: Tls,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `Config` hides the password itself.
        f.debug_struct("Address").field("config", &self.config).field("tls", &self.tls).finish()
    }
}

/// A session and the task that drives it; both end together.
pub(super) struct Connected {
    pub(super) client: Client,
    driver: JoinHandle<()>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Address {
    /// Checks a URL. The error says what is wrong with which key and repeats no value.
    pub(in crate::sql) fn parse(url: &str) -> Result<Address, String> {
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            return Err("must begin with postgres://".into());
        }
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (asked, rest) = Asked::of(query);
        let url = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
        let mut config: Config = url.parse().map_err(|_| "is not a PostgreSQL URL".to_owned())?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err("names no host".into());
        }
        if config.get_user().is_none() {
            return Err("names no user".into());
        }
        let loopback = config.get_hosts().iter().all(|h| match h {
            Host::Tcp(name) => tls::is_loopback(name),
            Host::Unix(_) => true,
        });
        let tls = asked.tls(loopback)?;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        config.tcp_user_timeout(TCP_USER_TIMEOUT);
        let tls_mode =
            if tls == Tls::Disable { tokio_postgres::config::SslMode::Disable } else { tokio_postgres::config::SslMode::Require };
        config.ssl_mode(tls_mode);
        Ok(Address { config, tls })
    }

    /// Connects and prepares the session.
    pub(super) async fn connect(&self, name: &str, statement_timeout: Duration) -> Result<Connected, SinkError> {
        let mut config = self.config.clone();
        config.application_name(name);
        let session = match &self.tls {
            Tls::Disable => {
                let (client, connection) = config.connect(NoTls).await.map_err(|e| classify(&e))?;
                Connected { client, driver: tokio::spawn(async move { drop(connection.await) }) }
            }
            Tls::VerifyFull(root) => {
                let tls = MakeRustlsConnect::new(tls::client(root.as_deref())?);
                let (client, connection) = config.connect(tls).await.map_err(|e| classify(&e))?;
                Connected { client, driver: tokio::spawn(async move { drop(connection.await) }) }
            }
        };
        // Values are text as the source printed it: what a role or database has set must not change their meaning.
        let set = format!(
            "SET datestyle = ISO; SET intervalstyle = postgres; SET timezone = 'UTC'; SET bytea_output = hex; SET statement_timeout = {}",
            statement_timeout.as_millis()
        );
        session.client.batch_execute(&set).await.map_err(|e| classify(&e))?;
        Ok(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_on_and_verified_anywhere_but_on_loopback() {
        let tls = |url: &str| Address::parse(url).map(|a| a.tls);
        assert_eq!(tls("postgres://u@127.0.0.1:5432/d"), Ok(Tls::Disable));
        assert_eq!(tls("postgres://u@db.example/d"), Ok(Tls::VerifyFull(None)));
        assert_eq!(tls("postgres://u@db.example/d?sslmode=disable"), Ok(Tls::Disable));
        assert_eq!(tls("postgres://u@localhost/d?sslrootcert=/ca.pem&sslmode=verify-full"), Ok(Tls::VerifyFull(Some("/ca.pem".into()))));
        assert!(tls("postgres://u@db.example/d?sslmode=require").is_err());
        assert!(tls("mysql://u@db.example/d").is_err());
        assert!(tls("postgres:///d").is_err());
    }

    #[test]
    fn the_password_is_never_shown() {
        let address = Address::parse("postgres://u:hunter2@127.0.0.1/d").expect("valid");
        assert!(!format!("{address:?}").contains("hunter2"));
    }
}
