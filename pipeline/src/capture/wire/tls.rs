//! TLS to the source: whom to trust, and the channel binding that ties the password exchange to the certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::der::Decode;

use crate::capture::CaptureError;

/// libpq's `sslmode`, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TlsMode {
    /// No TLS.
    Disable,
    /// TLS when the server has it, whoever it is. `allow` means the same here.
    Prefer,
    /// TLS, whoever the server is; with `sslrootcert` as `verify-ca`, as libpq does.
    Require,
    /// The certificate must come from a trusted CA.
    VerifyCa,
    /// The certificate must come from a trusted CA and carry the host's name.
    VerifyFull,
}

impl TlsMode {
    /// By libpq's name.
    pub(crate) fn parse(name: &str) -> Option<TlsMode> {
        Some(match name {
            "disable" => TlsMode::Disable,
            "allow" | "prefer" => TlsMode::Prefer,
            "require" => TlsMode::Require,
            "verify-ca" => TlsMode::VerifyCa,
            "verify-full" => TlsMode::VerifyFull,
            _ => return None,
        })
    }
}

/// Whose certificates are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The system's CAs, for the verifying modes; not asked for explicitly.
    #[default]
    Default,
    /// The system's CAs, asked for by `sslrootcert=system`.
    System,
    /// The CAs of a PEM file.
    File(PathBuf),
}

/// The TLS keys of a URL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsSettings {
    /// `sslmode`, when given.
    pub(crate) mode: Option<TlsMode>,
    /// `sslrootcert`.
    pub(crate) trust: Trust,
    /// `sslcert`: PEM.
    pub(crate) certificate: Option<PathBuf>,
    /// `sslkey`: PEM.
    pub(crate) key: Option<PathBuf>,
    /// `sslnegotiation=direct`: TLS from the first byte (PostgreSQL 17 and later).
    pub(crate) direct: bool,
}

impl TlsSettings {
    /// The configuration for a handshake. Uses its own crypto provider and leaves the process' default alone.
    ///
    /// # Errors
    /// `config.source_tls` when a file is missing or unusable, or no CA is trusted.
    pub(crate) fn client_config(&self, mode: TlsMode) -> Result<Arc<ClientConfig>, CaptureError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| refuse(&format!("no TLS version to offer: {e}")))?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(mode, &provider)?);
        let mut config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let key = PrivateKeyDer::from_pem_file(key).map_err(|e| refuse(&format!("sslkey {}: {e}", key.display())))?;
                builder
                    .with_client_auth_cert(read_certificates("sslcert", certificate)?, key)
                    .map_err(|e| refuse(&format!("sslcert and sslkey: {e}")))?
            }
            _ => builder.with_no_client_auth(),
        };
        if self.direct {
            // Required by the server for direct TLS: it proves that no other protocol is spoken on this port.
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(Arc::new(config))
    }

    fn verifier(&self, mode: TlsMode, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, CaptureError> {
        let mode = if mode == TlsMode::Require && self.trust != Trust::Default { TlsMode::VerifyCa } else { mode };
        if mode < TlsMode::VerifyCa {
            return Ok(Arc::new(Unverified(Arc::clone(provider))));
        }
        let mut roots = RootCertStore::empty();
        match &self.trust {
            Trust::File(path) => {
                for certificate in read_certificates("sslrootcert", path)? {
                    roots.add(certificate).map_err(|e| refuse(&format!("sslrootcert {}: {e}", path.display())))?;
                }
            }
            Trust::Default | Trust::System => {
                // A broken certificate in the system's store is the system's affair; that none is left is ours.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if roots.is_empty() {
            return Err(refuse("no CA certificate is trusted: set sslrootcert"));
        }
        let full = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|e| refuse(&format!("CA certificates: {e}")))?;
        Ok(if mode == TlsMode::VerifyCa { Arc::new(AnyName(full)) } else { full })
    }
}

fn read_certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, CaptureError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(refuse(&format!("{key} {} holds no certificate", path.display()))),
        Err(e) => Err(refuse(&format!("{key} {}: {e}", path.display()))),
    }
}

fn refuse(what: &str) -> CaptureError {
    CaptureError::Definite {
        code: "config.source_tls",
        what: format!("TLS to the source cannot be set up: {what}"),
        why: "the connection must be encrypted and the server known".to_owned(),
        fix: "set sslrootcert in the source's URL to the PEM file of the CA that signed the server's certificate".to_owned(),
    }
}

/// `tls-server-end-point` (RFC 5929): the hash of the server's certificate under the hash of its own signature, but never
/// a weaker one than SHA-256. `None` where the signature names no hash (Ed25519, RSA-PSS): such servers cannot bind.
pub(crate) fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    Some(match parsed.signature_algorithm.oid.to_string().as_str() {
        // With RSA: MD5, SHA-1, SHA-256; with ECDSA: SHA-1, SHA-256.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.113549.1.1.11" | "1.2.840.10045.4.1" | "1.2.840.10045.4.3.2" => {
            Sha256::digest(certificate).to_vec()
        }
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Sha384::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Sha512::digest(certificate).to_vec(),
        _ => return None,
    })
}

/// `verify-ca`: the chain must hold, the name may differ.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The chain is verified before the name: this error says that only the name is wrong.
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })) => {
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// `prefer` and `require`: any certificate, but its holder must prove to have its key.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
