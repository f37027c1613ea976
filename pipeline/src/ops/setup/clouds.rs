//! What is done differently where somebody else runs the server: who gives which right, who lets connections in, what surprises about the
//! slot. Pure, but for the query that recognises the service.
//!
//! What services do is theirs to change; each line was taken from their documentation as of November 2026: Amazon's guides to RDS and
//! Aurora ("logical replication"), Google's "Set up logical replication and decoding", Microsoft's "Logical replication and logical
//! decoding" and its table of sending servers' parameters, Supabase's "Manual replication", Neon's "Logical replication in Neon".

use tokio_postgres::Client;

use crate::capture::CaptureError;
use crate::capture::catalog::sql_error;
use crate::ops::provider::{Provider, Signs};

/// What any login is shown of whoever runs the server.
const SIGNS: &str = "SELECT ARRAY(SELECT rolname::text FROM pg_roles WHERE rolname = ANY($1::text[])), \
     ARRAY(SELECT name FROM pg_settings WHERE name LIKE '%.%'), EXISTS (SELECT FROM pg_proc WHERE proname = 'aurora_version'), \
     EXISTS (SELECT FROM pg_stat_activity WHERE application_name ILIKE 'patroni%')";

/// Asks a server who runs it.
pub(super) async fn recognise(client: &Client) -> Result<Provider, CaptureError> {
    let known: Vec<&str> = Provider::ROLES.to_vec();
    let row = client.query_one(SIGNS, &[&known]).await.map_err(sql_error)?;
    let (roles, settings): (Vec<String>, Vec<String>) = (row.get(0), row.get(1));
    Ok(Provider::detect(Signs { roles: &roles, settings: &settings, aurora: row.get(2), patroni: row.get(3) }))
}

/// Whether the right to stream comes by membership of `rds_replication` and not by the attribute REPLICATION.
pub(super) fn grants_by_membership(provider: Provider) -> bool {
    matches!(provider, Provider::Rds | Provider::Aurora)
}

/// Whether only the database's owner may stream, so that a role of one's own would be of no use.
pub(super) fn streams_as_owner(provider: Provider, major: i32) -> bool {
    provider == Provider::Supabase && major < 17
}

/// Whether `max_slot_wal_keep_size` can be set.
pub(super) fn can_bound_wal(provider: Provider) -> bool {
    !matches!(provider, Provider::Azure | Provider::Neon)
}

/// Who lets the pipeline's connection in; nothing where pg_hba.conf does.
pub(super) fn network(provider: Provider) -> &'static [&'static str] {
    match provider {
        Provider::SelfHosted | Provider::Patroni => &[],
        Provider::Rds | Provider::Aurora => &[
            "nothing in pg_hba.conf: open the security group for the pipeline's address, port 5432",
            "sslmode=verify-full with Amazon's bundle of authorities (global-bundle.pem) as sslrootcert; not through RDS Proxy, which passes no replication",
        ],
        Provider::CloudSql => &[
            "nothing in pg_hba.conf: an authorised network or a private address; no pooler in between",
            "sslmode=verify-ca with the instance's server-ca.pem as sslrootcert",
        ],
        Provider::Azure => &[
            "nothing in pg_hba.conf: a firewall rule or private access for the pipeline's address",
            "port 5432, not the built-in PgBouncer's 6432; sslmode=verify-full",
        ],
        Provider::Supabase => &[
            "the direct connection (db.PROJECT.supabase.co:5432): no replication passes the pooler (pooler.supabase.com)",
            "that address is IPv6; where the pipeline has none, the IPv4 add-on",
        ],
        Provider::Neon => &[
            "the direct host name, the one without -pooler",
            "a reader that is connected keeps the compute awake: it never scales to zero, and is billed",
        ],
    }
}

/// What surprises about roles.
pub(super) fn roles(provider: Provider, major: i32) -> &'static [&'static str] {
    match provider {
        Provider::SelfHosted | Provider::Patroni => &[],
        Provider::Rds | Provider::Aurora => &[
            "run as the master user (rds_superuser); the attribute REPLICATION cannot be given here, membership of rds_replication stands for it",
        ],
        Provider::CloudSql => &["run as a user of cloudsqlsuperuser that has REPLICATION itself: ALTER USER postgres WITH REPLICATION;"],
        Provider::Azure => &["run as the server's admin, which needs REPLICATION itself to give it: ALTER ROLE <admin> WITH REPLICATION;"],
        Provider::Supabase if streams_as_owner(provider, major) => {
            &["before PostgreSQL 17 Supabase lets no other role than postgres stream: name postgres in source.url"]
        }
        Provider::Supabase => &["run as postgres"],
        Provider::Neon => &["run as a role that was made in the console (a member of neon_superuser)"],
    }
}

/// What surprises about the slot.
pub(super) fn slot(provider: Provider) -> &'static [&'static str] {
    match provider {
        Provider::SelfHosted => &[],
        Provider::Patroni => &[
            "Patroni drops slots that it does not know: name this one under `slots:` of its configuration, or use failover slots (17), never both",
        ],
        Provider::Rds => &[
            "a Multi-AZ cluster copies slots to its readers asynchronously: after a failover compare with `tillstream epoch show` before going on",
            "the ceiling that counts is free storage: alarm on FreeStorageSpace and TransactionLogsDiskUsage",
        ],
        Provider::Aurora => &[
            "a blue/green switch-over does not take slots along: drop and create, then `tillstream epoch bump`; look at the slot after a failover too",
            "alarm on OldestReplicationSlotLag and TransactionLogsDiskUsage",
        ],
        Provider::CloudSql => {
            &["a clone and a point-in-time recovery have no slots and are another history: `tillstream epoch bump` after either"]
        }
        Provider::Azure => &[
            "with high availability leave four slots free; before PostgreSQL 17 the slot follows a failover only by the extension pg_failover_slots",
            "the server turns read-only when its storage is nearly full: alarm on storage percent",
        ],
        Provider::Supabase => &["slots, walsenders and disk are limited by the compute size: SHOW max_replication_slots"],
        Provider::Neon => &[
            "Neon removes a slot that nobody has read for about 40 hours: a longer stop means a new slot, `tillstream epoch bump` and a load",
            "restoring a branch deletes its slots",
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_no_pg_hba_is_told_the_way_in() {
        for provider in Provider::ALL {
            let own = matches!(provider, Provider::SelfHosted | Provider::Patroni);
            assert_eq!(network(provider).is_empty(), own, "{provider:?}");
            assert_eq!(provider.set("max_slot_wal_keep_size", "20GB").contains("ALTER SYSTEM"), provider == Provider::SelfHosted);
            assert!(own || !slot(provider).is_empty(), "{provider:?}");
        }
    }
}
