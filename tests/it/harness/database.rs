//! Databases with the reference schema, made quickly from a template.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio_postgres::Client;

use super::{Postgres, root};

/// A database of one test.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) name: String,
    /// URL of the superuser.
    pub(crate) url: String,
    address: String,
}

/// Executes files of `schemas/pos/` in order.
async fn load(client: &Client, files: &[&str]) {
    for file in files {
        let path = root().join("schemas").join("pos").join(file);
        let sql = std::fs::read_to_string(&path).expect("the reference schema is there");
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{file}: {error:?}"));
    }
}

impl Database {
    /// An empty database.
    pub(crate) async fn empty(server: &Postgres, prefix: &str) -> Database {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        server.connect("postgres").await.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("creates");
        Database { url: server.url(&name), address: server.address().to_owned(), name }
    }

    /// An empty database with another encoding than UTF-8.
    pub(crate) async fn encoded(server: &Postgres, prefix: &str, encoding: &str) -> Database {
        let database = Database::empty(server, prefix).await;
        let name = &database.name;
        let client = server.connect("postgres").await;
        client.batch_execute(&format!("DROP DATABASE {name}")).await.expect("drops");
        let sql = format!("CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
        client.batch_execute(&sql).await.expect("creates");
        database
    }

    /// A point of sale: schema, master data, the oracle's triggers.
    pub(crate) async fn pos(server: &Postgres, prefix: &str) -> Database {
        let database = Database::empty(server, prefix).await;
        load(&database.connect().await, &["schema.sql", "seed.sql", "history.sql"]).await;
        database
    }

    /// An inventory, still empty.
    pub(crate) async fn inventory(server: &Postgres, prefix: &str) -> Database {
        let database = Database::empty(server, prefix).await;
        load(&database.connect().await, &["inventory.sql"]).await;
        database
    }

    /// The same database on another server: a standby that became the primary.
    pub(crate) fn move_to(&mut self, server: &Postgres) {
        self.url = server.url(&self.name);
        self.address = server.address().to_owned();
    }

    /// A superuser's session.
    pub(crate) async fn connect(&self) -> Client {
        super::server::connect(&self.url).await
    }

    /// A URL for a role (`name` or `name:password`).
    pub(crate) fn url_as(&self, role: &str) -> String {
        format!("postgres://{role}@{}/{}", self.address, self.name)
    }

    /// Drops the database and every slot in it. Ends who still uses them.
    pub(crate) async fn drop(self, server: &Postgres) {
        let client = server.connect("postgres").await;
        let slots =
            client.query("SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = $1", &[&self.name]).await.expect("lists");
        for slot in slots {
            let (name, pid): (String, Option<i32>) = (slot.get(0), slot.get(1));
            if let Some(pid) = pid {
                let _ = client.execute("SELECT pg_terminate_backend($1, 5000)", &[&pid]).await;
            }
            client.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await.expect("the slot is free");
        }
        client.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await.expect("drops");
    }
}
