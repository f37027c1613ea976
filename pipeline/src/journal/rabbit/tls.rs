//! TLS towards the broker: always verified, against the system's authorities and the configured one.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::address::Address;
use crate::journal::JournalError;

/// Trust, loaded when it is first needed.
pub(super) struct Tls {
    ca: Option<PathBuf>,
    connector: OnceCell<TlsConnector>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("ca", &self.ca).finish_non_exhaustive()
    }
}

impl Tls {
    /// `ca` is a PEM file with more authorities.
    pub(super) fn new(ca: Option<PathBuf>) -> Self {
        Tls { ca, connector: OnceCell::new() }
    }

    pub(super) async fn connect(&self, address: &Address, tcp: TcpStream) -> Result<TlsStream<TcpStream>, JournalError> {
        let connector = self
            .connector
            .get_or_try_init(|| async {
                let roots = self.roots().await?;
                let mut store = RootCertStore::empty();
                store.add_parsable_certificates(roots);
                // The provider is named: several may be linked in, and then there is no default.
                let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                    .with_safe_default_protocol_versions()
                    .map_err(|error| JournalError::Unusable(error.to_string()))?
                    .with_root_certificates(store)
                    .with_no_client_auth();
                Ok::<_, JournalError>(TlsConnector::from(Arc::new(config)))
            })
            .await?;
        let name = ServerName::try_from(address.host.clone())
            .map_err(|_| JournalError::Unusable(format!("{address}: the host is no name that a certificate could hold")))?;
        connector.connect(name, tcp).await.map_err(|error| match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(why)) => JournalError::Refused(format!("{address}: certificate not accepted: {why}")),
            _ => JournalError::Unavailable(format!("{address}: {error}")),
        })
    }

    /// The authorities that are trusted.
    pub(super) async fn roots(&self) -> Result<Vec<CertificateDer<'static>>, JournalError> {
        let ca = self.ca.clone();
        let load = move || {
            let mut roots = rustls_native_certs::load_native_certs().certs;
            if let Some(path) = ca {
                let unusable = |error: rustls::pki_types::pem::Error| JournalError::Unusable(format!("{}: {error}", path.display()));
                let own = CertificateDer::pem_file_iter(&path).map_err(unusable)?.collect::<Result<Vec<_>, _>>().map_err(unusable)?;
                if own.is_empty() {
                    return Err(JournalError::Unusable(format!("{} holds no certificate", path.display())));
                }
                roots.extend(own);
            }
            Ok(roots)
        };
        tokio::task::spawn_blocking(load).await.map_err(|_| JournalError::Unavailable("the process is ending".into()))?
    }
}
