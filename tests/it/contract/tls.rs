//! TLS towards the broker: verified against the configured authority, name included, for data and for set-up alike.

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::harness::scratch;

/// Ends TLS in front of `target`, as a broker's own TLS listener would. Returns its port.
async fn tls_in_front_of(target: &str, certified: &CertifiedKey<rcgen::KeyPair>) -> u16 {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("a certificate");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let target = target.to_owned();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, target) = (acceptor.clone(), target.clone());
            tokio::spawn(async move {
                let (Ok(mut client), Ok(mut server)) = (acceptor.accept(client).await, TcpStream::connect(&target).await) else { return };
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_holds_over_tls_and_only_with_a_certificate_that_fits() {
    let url = &RabbitMq::shared().await.url;
    let certified = generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let port = tls_in_front_of(host_of(url), &certified).await;
    let ca = scratch("tls").join("ca.pem");
    std::fs::write(&ca, certified.cert.pem()).expect("written");

    let good = RabbitJournal { tls_ca: Some(ca.clone()), ..config(&format!("rabbitmq-stream+tls://guest:guest@localhost:{port}")) };
    contract::suite(&Clients { one: journal(&good), other: journal(&good) }).await;
    delete(url, &good).await;

    let untrusted = RabbitJournal { tls_ca: None, ..good.clone() };
    let wrong_name = RabbitJournal { urls: vec![format!("rabbitmq-stream+tls://guest:guest@127.0.0.1:{port}").into()], ..good.clone() };
    for config in [untrusted, wrong_name] {
        for answer in [journal(&config).describe().await.map(drop), journal(&config).set_up().await] {
            assert!(matches!(&answer, Err(JournalError::Refused(why)) if why.contains("certificate")), "{answer:?}");
        }
    }
    let no_file = RabbitJournal { tls_ca: Some(ca.with_extension("missing")), ..good };
    assert!(matches!(journal(&no_file).describe().await, Err(JournalError::Unusable(_))));
}
