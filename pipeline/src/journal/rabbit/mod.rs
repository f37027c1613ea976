//! The journal in RabbitMQ streams.
//!
//! The data path is our own: [`connection`] (frames, heartbeats), [`publish`] (sub-entry batches, confirms, re-sending) and [`deliver`]
//! (credits, chunks). Streams are created and checked in [`topology`]. RabbitMQ 3.13 or newer.
//!
//! RabbitMQ confirms what it drops: a batch whose id is not above the highest stored one of its producer is confirmed like one that was
//! stored. Whether something is there, only reading tells.

mod address;
mod chunk;
mod connection;
mod deliver;
mod frame;
mod patience;
mod publish;
mod tls;
mod topology;

use std::sync::Arc;

use async_trait::async_trait;

use super::{Bounds, Chunk, Copies, From, Journal, JournalError, Log, Offset, ProducerName, Reader, Writer};
use crate::config;
use address::Address;
use connection::{Broker, SharedBroker};

/// A journal in RabbitMQ streams.
#[derive(Debug)]
pub struct RabbitJournal {
    config: config::RabbitJournal,
    names: Arc<Names>,
    broker: SharedBroker,
}

/// The names of the journal's streams.
#[derive(Debug)]
struct Names {
    super_stream: String,
    data: Vec<String>,
    control: String,
}

impl Names {
    fn new(stream: &str, partitions: u16) -> Result<Self, JournalError> {
        let data = match partitions {
            1 => vec![stream.to_owned()],
            n => (0..n).map(|n| format!("{stream}-{n}")).collect(),
        };
        let names = Names { super_stream: stream.to_owned(), data, control: format!("{stream}.control") };
        if stream.is_empty() || names.control.len() > 255 {
            return Err(JournalError::Unusable(format!("a stream name has 1 to 247 bytes, not {}", stream.len())));
        }
        Ok(names)
    }

    /// The configured name: of the super stream, or of the only data stream.
    fn super_stream(&self) -> &str {
        &self.super_stream
    }

    fn data(&self) -> &[String] {
        &self.data
    }

    fn control(&self) -> &str {
        &self.control
    }

    fn stream(&self, log: Log) -> Result<&str, JournalError> {
        match log {
            Log::Data(n) => self
                .data
                .get(usize::from(n))
                .map(String::as_str)
                .ok_or_else(|| JournalError::Missing(format!("partition {n} of {}", self.data.len()))),
            Log::Control => Ok(&self.control),
        }
    }
}

impl RabbitJournal {
    /// A journal as configured. Connects to nothing yet. `client` names this process in the broker's connection list.
    ///
    /// # Errors
    /// [`JournalError::Unusable`] when a URL or a name can not work.
    pub fn new(config: &config::RabbitJournal, client: &str) -> Result<Self, JournalError> {
        let addresses = config.urls.iter().map(Address::parse).collect::<Result<Vec<_>, _>>()?;
        let names = Names::new(&config.stream, config.partitions.get())?;
        let broker = Broker::new(addresses, tls::Tls::new(config.tls_ca.clone()), client, config.frame_max);
        Ok(RabbitJournal { config: config.clone(), names: Arc::new(names), broker: Arc::new(broker) })
    }
}

#[async_trait]
impl Journal for RabbitJournal {
    async fn set_up(&self) -> Result<(), JournalError> {
        // The client's futures are large.
        Box::pin(topology::set_up(&self.broker, &self.names, &self.config)).await
    }

    fn partitions(&self) -> u16 {
        self.config.partitions.get()
    }

    async fn describe(&self) -> Result<String, JournalError> {
        let connection = self.broker.connect().await?;
        let version = format!("rabbitmq {}", connection.version());
        connection.close().await;
        Ok(version)
    }

    fn batch_bytes_max(&self) -> usize {
        publish::batch_bytes_max(self.broker.frame_max())
    }

    async fn writer(&self, name: &ProducerName) -> Result<Box<dyn Writer>, JournalError> {
        let (broker, names) = (Arc::clone(&self.broker), Arc::clone(&self.names));
        let writer = publish::RabbitWriter::new(broker, names, name.clone(), self.config.compression, self.batch_bytes_max())?;
        Ok(Box::new(writer))
    }

    async fn reader(&self, log: Log, from: From) -> Result<Box<dyn Reader>, JournalError> {
        let stream = self.names.stream(log)?.to_owned();
        Ok(Box::new(deliver::RabbitReader::open(Arc::clone(&self.broker), stream, from).await?))
    }

    async fn tail(&self, log: Log) -> Result<Option<Chunk>, JournalError> {
        let stream = self.names.stream(log)?;
        let connection = self.broker.connect_to_leader(stream).await?;
        Ok(deliver::last(connection, stream).await?.1)
    }

    async fn bounds(&self, log: Log) -> Result<Option<Bounds>, JournalError> {
        let stream = self.names.stream(log)?;
        let connection = self.broker.connect_to_leader(stream).await?;
        let (stats, last) = deliver::last(connection, stream).await?;
        let first = stats.first.unwrap_or(Offset(0));
        Ok(last.map(|last| Bounds { first, last: Offset(last.next_offset().0 - 1) }))
    }

    async fn copies(&self) -> Result<Vec<Copies>, JournalError> {
        let mut connection = self.broker.connect().await?;
        let mut found = Vec::new();
        for log in (0..self.partitions()).map(Log::Data).chain([Log::Control]) {
            let members = connection.members(self.names.stream(log)?).await?;
            let node = |node: address::Node| format!("{}:{}", node.host, node.port);
            let leader = members.leader.map(node);
            let replicas = members.replicas.into_iter().map(node).filter(|n| Some(n) != leader.as_ref()).collect();
            found.push(Copies { log, leader, replicas });
        }
        connection.close().await;
        Ok(found)
    }
}
