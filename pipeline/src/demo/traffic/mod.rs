//! Sells: several tills write what a chain of restaurants writes, at a given rate with a lunch peak.
//!
//! The traffic never counts what arrived: a commit whose answer was lost with the server may have happened or not. The
//! history that triggers write in the database knows (`schemas/pos/history.sql`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::Instant;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use self::shop::{Shop, Transaction};
use super::DemoError;

mod shop;

/// How the traffic is shaped.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The database with the reference schema, as postgres://user@host:port/database.
    #[arg(long)]
    pub url: String,
    /// Mean rate in row changes a second, over all tills.
    #[arg(long, default_value_t = 800)]
    pub rate: u32,
    /// How long to sell, in seconds; until stopped when absent.
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Tills that sell at once, each on a connection of its own.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub tills: u16,
    /// Seed of everything random; the same seed sells the same dishes.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Sell evenly, without a lunch peak.
    #[arg(long)]
    pub even: bool,
    /// Register one customer whom the pretend engagement API refuses until it is told to accept.
    #[arg(long)]
    pub plant_refused: bool,
}

/// What marks the planted customer: the pretend API refuses every body that holds it.
pub const REFUSED_MARK: &str = "refuse-me";

#[derive(Debug, Default)]
struct Counts {
    transactions: AtomicU64,
    rows: AtomicU64,
    rolled_back: AtomicU64,
    failed: AtomicU64,
    reconnects: AtomicU64,
}

/// Sells until the time is up or the process is told to stop; then prints what it did as one JSON line.
///
/// # Errors
/// When the first connection fails: later ones are tried until they succeed.
pub async fn run(arguments: Arguments) -> Result<(), DemoError> {
    let probe = connect(&arguments.url).await.map_err(|error| DemoError::unavailable("connect to the point of sale", error))?;
    let stop = CancellationToken::new();
    let started = Instant::now();
    let seconds = arguments.seconds;
    let ended_by = stop.clone();
    tokio::spawn(async move {
        let time_up = async {
            match seconds {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = time_up => {}
            () = super::terminated() => {}
        }
        ended_by.cancel();
    });
    if arguments.plant_refused {
        let statement = format!(
            "INSERT INTO customer (external_ref, name, email, consent) VALUES ('{REFUSED_MARK}-{}', 'Planted Guest', 'planted@example.com', '{{}}')",
            shop::uuid(&mut StdRng::from_rng(&mut rand::rng()))
        );
        probe.batch_execute(&statement).await.map_err(|error| DemoError::unavailable("register the planted customer", error))?;
    }
    drop(probe);
    let counts = Arc::new(Counts::default());
    let mut tills = tokio::task::JoinSet::new();
    for number in 0..arguments.tills {
        let till = Till { number, arguments: arguments.clone(), started, stop: stop.clone(), counts: counts.clone() };
        tills.spawn(till.sell());
    }
    while let Some(ended) = tills.join_next().await {
        ended.map_err(|error| DemoError::internal("a till ended", error))?;
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{}",
        serde_json::json!({
            "seconds": started.elapsed().as_secs_f64(), "transactions": count(&counts.transactions), "rows_intended": count(&counts.rows),
            "rolled_back": count(&counts.rolled_back), "failed": count(&counts.failed), "reconnects": count(&counts.reconnects),
        })
    );
    Ok(())
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // The connection's own error is seen by every statement of the client.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

struct Till {
    number: u16,
    arguments: Arguments,
    started: Instant,
    stop: CancellationToken,
    counts: Arc<Counts>,
}

impl Till {
    async fn sell(self) {
        let mut rng = StdRng::seed_from_u64(self.arguments.seed.wrapping_mul(1_000_003).wrapping_add(u64::from(self.number)));
        let mut shop = Shop::new(self.number, self.arguments.tills);
        let mut client = None;
        let mut due = Instant::now();
        while !self.stop.is_cancelled() {
            let connected = match client.take() {
                Some(connected) => connected,
                None => match connect(&self.arguments.url).await {
                    Ok(connected) => connected,
                    Err(_) => {
                        self.pause(Duration::from_millis(200)).await;
                        continue;
                    }
                },
            };
            let transaction = shop.next(&mut rng);
            let rows = transaction.rows;
            let connected = client.insert(connected);
            match execute(connected, &transaction).await {
                Ok(()) if transaction.roll_back => {
                    self.counts.rolled_back.fetch_add(1, Ordering::Relaxed);
                    shop.forget(transaction);
                }
                Ok(()) => {
                    self.counts.transactions.fetch_add(1, Ordering::Relaxed);
                    self.counts.rows.fetch_add(u64::from(rows), Ordering::Relaxed);
                    shop.committed(transaction);
                }
                Err(error) => {
                    self.counts.failed.fetch_add(1, Ordering::Relaxed);
                    shop.forget(transaction);
                    if error.as_db_error().is_none() || connected.is_closed() || connected.batch_execute("ROLLBACK").await.is_err() {
                        self.counts.reconnects.fetch_add(1, Ordering::Relaxed);
                        client = None;
                    }
                }
            }
            let rate = f64::from(self.arguments.rate) / f64::from(self.arguments.tills) * self.shape();
            due += Duration::from_secs_f64(f64::from(rows) / rate);
            let now = Instant::now();
            if due > now {
                self.pause(due - now).await;
            } else if now - due > Duration::from_secs(2) {
                // What an outage kept us from selling stays unsold, else every restart would be followed by a rush.
                due = now;
            }
        }
    }

    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// The lunch peak: 0.6 of the rate at the ends, 1.4 in the middle; the mean is 1.
    fn shape(&self) -> f64 {
        if self.arguments.even {
            return 1.0;
        }
        let day = self.arguments.seconds.unwrap_or(120) as f64;
        0.6 + 0.8 * (std::f64::consts::PI * self.started.elapsed().as_secs_f64() / day).sin().powi(2)
    }
}

/// Statement by statement, as a till does it: a kill can land inside.
async fn execute(client: &Client, transaction: &Transaction) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("BEGIN").await?;
    for statement in &transaction.statements {
        client.batch_execute(statement).await?;
    }
    client.batch_execute(if transaction.roll_back { "ROLLBACK" } else { "COMMIT" }).await
}
