//! Certificates: ours for a target that wants one, and the authority that vouches for the target.

use std::sync::Arc;

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{Server, deliver, item, lane, said};

/// Ends TLS in front of a server, for clients with this certificate alone. Returns its port.
async fn mutual_tls(port: u16, own: &CertifiedKey<KeyPair>, client: &CertifiedKey<KeyPair>) -> u16 {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut clients = RootCertStore::empty();
    clients.add(client.cert.der().clone()).expect("a certificate");
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(clients), provider.clone()).build().expect("a verifier");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![own.cert.der().clone()], key)
        .expect("a certificate");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let outer = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let (Ok(mut client), Ok(mut server)) = (acceptor.accept(client).await, TcpStream::connect(("127.0.0.1", port)).await)
                else {
                    return;
                };
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    outer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_wants_a_certificate_gets_ours() {
    let certificate = |name: &str| generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
    let (own, client, other) = (certificate("localhost"), certificate("till"), certificate("till"));
    let server = Server::taking().await;
    let url = format!("https://localhost:{}/", mutual_tls(server.port, &own, &client).await);
    let tls = |ca: &CertifiedKey<KeyPair>, who: Option<&CertifiedKey<KeyPair>>| {
        let mut tls = json!({"ca": ca.cert.pem()});
        if let Some(who) = who {
            tls["certificate"] = who.cert.pem().into();
            tls["key"] = who.signing_key.serialize_pem().into();
        }
        lane("http", json!({"url": url, "tls": tls}), true)
    };
    assert_eq!(said(&deliver(&mut tls(&own, Some(&client)), vec![item(1, &json!({}))]).await.expect("answers")), ["delivered"]);
    for mut refused in [tls(&own, None), tls(&own, Some(&other)), tls(&other, Some(&client))] {
        let error = deliver(&mut refused, vec![item(1, &json!({}))]).await.expect_err("no connection");
        assert!(["http.connect", "http.connection"].contains(&error.code.as_str()), "{error:?}");
    }
    assert_eq!(server.seen().len(), 1);
}
