//! TLS to a target database: what a URL asks for, and the trust it takes. The certificate must come from a trusted CA and carry the host's name.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::dialect::definite;
use crate::sink::SinkError;

/// How a connection is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    Disable,
    /// The certificate must come from this file's CA (or the system's) and carry the host's name.
    VerifyFull(Option<PathBuf>),
}

/// `sslmode` and `sslrootcert` of a URL.
#[derive(Debug, Default)]
pub(super) struct Asked<'a> {
    mode: Option<&'a str>,
    root: Option<PathBuf>,
}

impl<'a> Asked<'a> {
    /// Takes them out of a URL's query; answers the other parameters too.
    pub(super) fn of(query: &'a str) -> (Asked<'a>, Vec<&'a str>) {
        let (mut asked, mut rest) = (Asked::default(), Vec::new());
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            match pair.split_once('=') {
                Some(("sslmode", value)) => asked.mode = Some(value),
                Some(("sslrootcert", value)) => asked.root = Some(PathBuf::from(value)),
                _ => rest.push(pair),
            }
        }
        (asked, rest)
    }

    /// What that comes to for a target on this machine, or elsewhere.
    pub(super) fn tls(self, loopback: bool) -> Result<Tls, String> {
        match self.mode {
            Some("disable") => Ok(Tls::Disable),
            Some("verify-full") => Ok(Tls::VerifyFull(self.root)),
            // Nothing leaves the machine on loopback; anywhere else encryption without verification would only look safe.
            None if loopback => Ok(Tls::Disable),
            None => Ok(Tls::VerifyFull(self.root)),
            Some(_) => Err("has an sslmode other than disable and verify-full".into()),
        }
    }
}

/// Whether a host is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn refuse(message: String) -> SinkError {
    definite("sql.tls", message)
}

/// The certificates that are trusted: of this file, or the system's.
pub(super) fn roots(root: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, SinkError> {
    let mut certificates = match root {
        Some(path) => {
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            read.map_err(|e| refuse(format!("sslrootcert cannot be read: {e}")))?
        }
        None => rustls_native_certs::load_native_certs().certs,
    };
    // A system's collection may hold some that nobody understands.
    certificates.retain(|c| RootCertStore::empty().add(c.clone()).is_ok());
    if certificates.is_empty() {
        return Err(refuse("no CA certificate is trusted: set sslrootcert in the url".into()));
    }
    Ok(certificates)
}

/// Settings of a client.
pub(super) fn client(root: Option<&Path>) -> Result<rustls::ClientConfig, SinkError> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots(root)?);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| refuse(format!("no TLS version to offer: {e}")))?;
    Ok(builder.with_root_certificates(store).with_no_client_auth())
}
