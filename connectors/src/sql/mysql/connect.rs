//! Reaching the target: address, TLS, settings of a session.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts, OptsBuilder, SslOpts};

use super::super::compare::ReadCompare;
use super::super::config::SqlConfig;
use super::super::dialect::{Database, ReadBack, Readable, Session};
use super::super::tls::{self, Asked, Tls};
use super::errors::failure;
use super::session::MysqlSession;
use crate::sink::{Class, Compare, SinkError};

/// A host that does not answer within this is given up for this attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A checked connection URL. Never printed with its password.
#[derive(Clone)]
pub(in crate::sql) struct Address {
    opts: Opts,
    tls: Tls,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("host", &self.opts.ip_or_hostname()).field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl Address {
    /// Checks a URL. The error says what is wrong with which key and repeats no value.
    pub(in crate::sql) fn parse(url: &str) -> Result<Address, String> {
        let url = url.replacen("mariadb://", "mysql://", 1);
        let (base, query) = url.split_once('?').unwrap_or((&url, ""));
        let (asked, others) = Asked::of(query);
        if !others.is_empty() {
            return Err("has a parameter other than sslmode and sslrootcert".into());
        }
        let opts = Opts::from_url(base).map_err(|_| "is not a MySQL URL".to_owned())?;
        if opts.ip_or_hostname().is_empty() {
            return Err("names no host".into());
        }
        if opts.user().is_none_or(str::is_empty) {
            return Err("names no user".into());
        }
        if opts.db_name().is_none_or(str::is_empty) {
            return Err("names no database".into());
        }
        let tls = asked.tls(tls::is_loopback(opts.ip_or_hostname()))?;
        Ok(Address { opts, tls })
    }

    async fn open(&self, timeout: Duration) -> Result<MysqlSession, SinkError> {
        let tls = match &self.tls {
            Tls::Disable => None,
            Tls::VerifyFull(root) => {
                // The client takes the process's provider; whoever comes first installs it.
                let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
                let roots = tls::roots(root.as_deref())?.into_iter().map(|c| c.as_ref().to_vec().into());
                Some(SslOpts::default().with_root_certs(roots.collect()).with_disable_built_in_roots(true))
            }
        };
        let lock_wait = timeout.as_secs().clamp(1, 60);
        // Strict, so that a value is refused and not bent; what a server or user has set must not change a value's meaning.
        let init = vec![
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED".to_owned(),
            format!(
                "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', \
                 time_zone = '+00:00', autocommit = 1, innodb_lock_wait_timeout = {lock_wait}"
            ),
        ];
        let opts = OptsBuilder::from_opts(self.opts.clone())
            .ssl_opts(tls)
            .prefer_socket(false)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(15)))
            .stmt_cache_size(256_usize)
            .init(init);
        match tokio::time::timeout(CONNECT_TIMEOUT, Conn::new(opts)).await {
            Ok(Ok(mut conn)) => {
                // Names of tables and columns are looked up once; this also tells a server that only accepts and says nothing.
                conn.ping().await.map_err(|e| failure(&e).whole())?;
                Ok(MysqlSession::new(conn))
            }
            Ok(Err(error)) => Err(failure(&error).whole()),
            Err(_) => {
                let message = format!("no session within {CONNECT_TIMEOUT:?}");
                Err(SinkError { code: "sql.connection".into(), message, class: Class::Transient, after: None })
            }
        }
    }
}

#[async_trait]
impl Database for Address {
    async fn connect(&self, _name: &str, config: &SqlConfig) -> Result<Box<dyn Session>, SinkError> {
        Ok(Box::new(self.open(config.timeout).await?))
    }

    fn compare(&self, config: Arc<SqlConfig>) -> Box<dyn Compare> {
        Box::new(ReadCompare::new(config, Box::new(self.clone())))
    }
}

#[async_trait]
impl Readable for Address {
    async fn read_back(&self, config: &SqlConfig) -> Result<Box<dyn ReadBack>, SinkError> {
        Ok(Box::new(self.open(config.timeout).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_on_and_verified_anywhere_but_on_loopback() {
        let tls = |url: &str| Address::parse(url).map(|a| a.tls);
        assert_eq!(tls("mysql://u@127.0.0.1:3306/d"), Ok(Tls::Disable));
        assert_eq!(tls("mariadb://u@db.example/d"), Ok(Tls::VerifyFull(None)));
        assert_eq!(tls("mysql://u@db.example/d?sslmode=disable"), Ok(Tls::Disable));
        assert_eq!(tls("mysql://u@localhost/d?sslrootcert=/ca.pem&sslmode=verify-full"), Ok(Tls::VerifyFull(Some("/ca.pem".into()))));
        for wrong in
            ["mysql://u@db.example/d?sslmode=require", "mysql://u@db.example/d?require_ssl=true", "mysql://db.example/d", "mysql://u@h"]
        {
            assert!(tls(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_password_is_never_shown() {
        let address = Address::parse("mysql://u:hunter2@127.0.0.1/d").expect("valid");
        assert!(!format!("{address:?}").contains("hunter2"));
    }
}
