//! Where requests come in: one address, with TLS or without, a bounded number of connections, none of which may dawdle.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

use crate::config::AdminTls;
use crate::ops::failure::Failure;

/// Browsers hold six each; operators, scrapers and commands share the rest.
const CONNECTIONS_MAX: usize = 256;
/// A client that has not shaken hands within this never will.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// A connection on which no request comes for this long is ended; a request is small, and comes at once.
const HEADERS_WITHIN: Duration = Duration::from_secs(60);

/// The other end's address; stands in each request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Reads certificate and key.
///
/// # Errors
/// They cannot be read, or do not belong together.
pub(super) fn acceptor(tls: &AdminTls) -> Result<TlsAcceptor, Failure> {
    let failed = |path: &std::path::Path, why: String| Failure::new("admin.tls", format!("{}: {why}", path.display()));
    let certificates = CertificateDer::pem_file_iter(&tls.certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|e| failed(&tls.certificate, e.to_string()))?;
    // What a key file holds is never part of a message.
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|_| failed(&tls.key, "holds no private key that can be read".to_owned()))?;
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key);
    let mut config = config.map_err(|e| failed(&tls.certificate, e.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until it is dropped; its connections end with it.
pub(super) async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, router: Router) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a client that is gone already.
                tracing::debug!(%error, "accept a connection of the admin endpoint");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (tls, router) = (tls.clone(), router.clone());
        connections.spawn(async move {
            let _permit = permit;
            match tls {
                None => speak(stream, Peer(peer), router).await,
                Some(tls) => {
                    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_WITHIN, tls.accept(stream)).await {
                        speak(stream, Peer(peer), router).await;
                    }
                }
            }
        });
    }
}

/// One connection, to its end.
async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer, router: Router) {
    let answer = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        // Routers are always ready.
        router.clone().call(request)
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN).max_headers(64);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), answer).await {
        tracing::debug!(%error, "a connection of the admin endpoint ended");
    }
}
