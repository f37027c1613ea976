//! TLS to a target database: the certificate must come from a trusted CA and carry the host's name.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::dialect::definite;
use crate::sink::SinkError;

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
