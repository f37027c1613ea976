//! Streams: created and checked through `rabbitmq-stream-client`, which knows the commands; our own connections carry data only.
//!
//! ```text
//! one partition       <stream>                         stream
//! several             <stream>  ─▶  <stream>-0 .. n-1  super stream
//! beside them         <stream>.control                 stream
//! ```
//!
//! Every call has a deadline, and the client is closed before it is dropped: its own waits have none.

use std::collections::HashMap;
use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rabbitmq_stream_client::error::ClientError;
use rabbitmq_stream_client::types::ResponseCode;
use rabbitmq_stream_client::{Client, ClientOptions, TlsConfiguration};
use secrecy::ExposeSecret;
use tokio::time::timeout;

use super::Names;
use super::address::Address;
use super::connection::SharedBroker;
use crate::config::RabbitJournal;
use crate::journal::JournalError;

/// Creating a replicated stream starts a process on every node and elects a leader.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The control log's segments: retention works on whole segments, and a start reads back to the last snapshot only.
const CONTROL_SEGMENT_BYTES: u64 = 8 << 20;

/// How much of the control log is kept. Its owner writes a snapshot that replaces older entries every few MiB, so that this is hundreds of
/// snapshots: retention can not drop what the last one does not hold.
const CONTROL_BYTES_MAX: u64 = 1 << 30;

/// Creates what is missing and checks what is there.
pub(super) async fn set_up(broker: &SharedBroker, names: &Names, config: &RabbitJournal) -> Result<(), JournalError> {
    let data = data_arguments(config)?;
    // Our own connection finds the address that works and says what is wrong with the others; the client could do neither.
    let mut connection = broker.connect().await?;
    let address = connection.address().clone();
    let plain = exists(connection.members(names.super_stream()).await)?;
    connection.close().await;
    let client = Admin::connect(broker, &address).await?;
    let result = async {
        client.check_partitions(names, plain).await?;
        if names.data().len() > 1 {
            client.create_super_stream(names, &data).await?;
        }
        // Also for the partitions of a super stream: it creates one that was deleted, and finds arguments that differ.
        for stream in names.data() {
            client.create_stream(stream, &data).await?;
        }
        client.create_stream(names.control(), &control_arguments(config)).await
    }
    .await;
    client.close().await;
    result
}

fn exists<T>(members: Result<T, JournalError>) -> Result<bool, JournalError> {
    match members {
        Ok(_) => Ok(true),
        Err(JournalError::Missing(_)) => Ok(false),
        // It is there, though it has no leader at the moment.
        Err(JournalError::Unavailable(_)) => Ok(true),
        Err(error) => Err(error),
    }
}

type Arguments = HashMap<String, String>;

fn data_arguments(config: &RabbitJournal) -> Result<Arguments, JournalError> {
    let segment = config.segment_bytes;
    if let Some(bytes) = config.retention.bytes
        && bytes < 2 * segment
    {
        // Retention deletes whole segments: with less than two, the entries before the newest segment go as soon as it begins.
        return Err(JournalError::Unusable(format!("a retention of {bytes} bytes is less than two segments of {segment} bytes")));
    }
    let mut arguments = Arguments::from([("stream-max-segment-size-bytes".into(), segment.to_string())]);
    if let Some(age) = config.retention.age {
        arguments.insert("max-age".into(), format!("{}s", age.as_secs().max(1)));
    }
    if let Some(bytes) = config.retention.bytes {
        arguments.insert("max-length-bytes".into(), bytes.to_string());
    }
    Ok(common(config, arguments))
}

fn control_arguments(config: &RabbitJournal) -> Arguments {
    let arguments = [
        ("stream-max-segment-size-bytes".into(), CONTROL_SEGMENT_BYTES.to_string()),
        ("max-length-bytes".into(), CONTROL_BYTES_MAX.to_string()),
    ];
    common(config, Arguments::from(arguments))
}

fn common(config: &RabbitJournal, mut arguments: Arguments) -> Arguments {
    arguments.insert("queue-leader-locator".into(), "balanced".into());
    if let Some(replicas) = config.replicas {
        arguments.insert("initial-cluster-size".into(), replicas.to_string());
    }
    arguments
}

/// A connection for commands about streams.
struct Admin {
    client: Client,
}

impl Admin {
    async fn connect(broker: &SharedBroker, address: &Address) -> Result<Self, JournalError> {
        let authorities = if address.tls { Some(Authorities::write(broker).await?) } else { None };
        let mut options = ClientOptions::builder()
            .host(&address.host)
            .port(address.port)
            .user(&address.user)
            .password(address.password.expose_secret())
            .v_host(&address.vhost)
            .client_provided_name(format!("{} (set-up)", broker.client()));
        if let Some(authorities) = &authorities {
            // The client takes the process's TLS provider, and verifies only with a file of authorities.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let tls = TlsConfiguration::builder().enable(true).add_root_certificates(authorities.path.clone()).build();
            options = options.tls(tls.map_err(|why| JournalError::Unusable(format!("{address}: {why}")))?);
        }
        let client = call("connect", Client::connect(options.build())).await?;
        Ok(Admin { client })
    }

    async fn close(self) {
        let _ = timeout(CALL_TIMEOUT, self.client.close()).await;
    }

    /// The number of partitions is fixed when a super stream is created: keys would change their partition.
    async fn check_partitions(&self, names: &Names, plain: bool) -> Result<(), JournalError> {
        let name = names.super_stream();
        let found = call("look for partitions", self.client.partitions(name.to_owned())).await?;
        let found = if found.is_ok() { found.streams.len() } else { 0 };
        let wanted = names.data().len();
        match (wanted, found, plain) {
            (1, 0, _) | (2.., 0, false) => Ok(()),
            (2.., n, false) if n == wanted => Ok(()),
            (_, 0, true) => Err(JournalError::Unusable(format!(
                "{name} is a stream with one partition, the configuration says {wanted}; the number is fixed when it is created"
            ))),
            (_, n, _) => Err(JournalError::Unusable(format!(
                "{name} is a super stream with {n} partitions, the configuration says {wanted}; the number is fixed when it is created"
            ))),
        }
    }

    async fn create_super_stream(&self, names: &Names, arguments: &Arguments) -> Result<(), JournalError> {
        let keys = (0..names.data().len()).map(|n| n.to_string()).collect();
        let created = self.client.create_super_stream(names.super_stream(), names.data().to_vec(), keys, arguments.clone());
        let created = call("create a super stream", created).await?;
        // A name that is taken is told in either way; what stands behind it was checked before.
        match created.code() {
            ResponseCode::Ok | ResponseCode::StreamAlreadyExists | ResponseCode::PreconditionFailed => Ok(()),
            code => Err(refusal(names.super_stream(), code, arguments)),
        }
    }

    async fn create_stream(&self, stream: &str, arguments: &Arguments) -> Result<(), JournalError> {
        let created = call("create a stream", self.client.create_stream(stream, arguments.clone())).await?;
        match created.code() {
            ResponseCode::Ok | ResponseCode::StreamAlreadyExists => Ok(()),
            code => Err(refusal(stream, code, arguments)),
        }
    }
}

fn refusal(stream: &str, code: &ResponseCode, arguments: &Arguments) -> JournalError {
    match code {
        ResponseCode::PreconditionFailed => {
            let mut wanted: Vec<String> = arguments.iter().map(|(key, value)| format!("{key}={value}")).collect();
            wanted.sort();
            JournalError::Unusable(format!(
                "stream {stream} exists with other arguments than {}; arguments are fixed at creation: put the configuration back to what the \
                 stream has (a policy of the broker can shorten its retention, never lengthen it)",
                wanted.join(", ")
            ))
        }
        ResponseCode::AccessRefused => JournalError::Refused(format!("the user may not create stream {stream}")),
        other => JournalError::Unavailable(format!("stream {stream} can not be created: {other:?}")),
    }
}

async fn call<T>(what: &str, work: impl Future<Output = Result<T, ClientError>>) -> Result<T, JournalError> {
    match timeout(CALL_TIMEOUT, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(JournalError::Unavailable(format!("{what}: {error}"))),
        Err(_) => Err(JournalError::Unavailable(format!("{what}: no answer within {CALL_TIMEOUT:?}"))),
    }
}

/// The trusted authorities as a file, for the client; removed when dropped.
struct Authorities {
    path: PathBuf,
}

impl Authorities {
    async fn write(broker: &SharedBroker) -> Result<Self, JournalError> {
        // The client panics on a certificate it can not use, so that only usable ones are written.
        let mut store = rustls::RootCertStore::empty();
        let roots: Vec<_> = broker.tls().roots().await?.into_iter().filter(|root| store.add(root.clone()).is_ok()).collect();
        let path = std::env::temp_dir().join(format!("tillstream-{}-{:016x}.pem", std::process::id(), rand::random::<u64>()));
        let write = {
            let path = path.clone();
            move || {
                let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
                for root in roots {
                    writeln!(file, "-----BEGIN CERTIFICATE-----")?;
                    for line in STANDARD.encode(&root).as_bytes().chunks(64) {
                        file.write_all(line)?;
                        file.write_all(b"\n")?;
                    }
                    writeln!(file, "-----END CERTIFICATE-----")?;
                }
                Ok::<_, std::io::Error>(())
            }
        };
        let authorities = Authorities { path };
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => Ok(authorities),
            Ok(Err(error)) => Err(JournalError::Unavailable(format!("{}: {error}", authorities.path.display()))),
            Err(_) => Err(JournalError::Unavailable("the process is ending".into())),
        }
    }
}

impl Drop for Authorities {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
