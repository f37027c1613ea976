//! Who runs the source's server: managed clouds say it by their roles, settings and functions.
//!
//! Only what the server shows to any login is looked at; an unknown service counts as self-hosted.

use serde::Serialize;

/// A service that runs PostgreSQL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// Somebody's own server, or a service that does not show itself.
    #[default]
    #[serde(rename = "self")]
    SelfHosted,
    /// Self-hosted under Patroni.
    Patroni,
    /// Amazon RDS.
    Rds,
    /// Amazon Aurora.
    Aurora,
    /// Google Cloud SQL or AlloyDB.
    CloudSql,
    /// Azure Database for PostgreSQL, flexible server.
    Azure,
    /// Supabase.
    Supabase,
    /// Neon.
    Neon,
}

/// What a server shows of whoever runs it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Signs<'a> {
    /// Names of roles.
    pub roles: &'a [String],
    /// Names of settings, or the part before their dot.
    pub settings: &'a [String],
    /// Whether there is a function `aurora_version`.
    pub aurora: bool,
    /// Whether a session calls itself Patroni.
    pub patroni: bool,
}

impl Provider {
    /// All of them, for people to choose from.
    pub const ALL: [Provider; 8] = [
        Provider::SelfHosted,
        Provider::Patroni,
        Provider::Rds,
        Provider::Aurora,
        Provider::CloudSql,
        Provider::Azure,
        Provider::Supabase,
        Provider::Neon,
    ];

    /// The roles that tell a service from another.
    pub const ROLES: [&'static str; 6] =
        ["rds_superuser", "rds_replication", "cloudsqlsuperuser", "azure_pg_admin", "supabase_admin", "neon_superuser"];

    /// Who runs a server that shows this. Aurora has the roles of RDS, so that its function decides.
    #[must_use]
    pub fn detect(signs: Signs<'_>) -> Provider {
        let role = |name: &str| signs.roles.iter().any(|r| r == name);
        let setting = |prefix: &str| signs.settings.iter().any(|s| s.split('.').next() == Some(prefix));
        if signs.aurora {
            Provider::Aurora
        } else if setting("rds") || role("rds_superuser") {
            Provider::Rds
        } else if setting("cloudsql") || setting("alloydb") || role("cloudsqlsuperuser") {
            Provider::CloudSql
        } else if setting("azure") || role("azure_pg_admin") {
            Provider::Azure
        } else if setting("neon") || role("neon_superuser") {
            Provider::Neon
        } else if role("supabase_admin") {
            Provider::Supabase
        } else if signs.patroni {
            Provider::Patroni
        } else {
            Provider::SelfHosted
        }
    }

    /// The word of `--provider`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Provider::SelfHosted => "self",
            Provider::Patroni => "patroni",
            Provider::Rds => "rds",
            Provider::Aurora => "aurora",
            Provider::CloudSql => "cloudsql",
            Provider::Azure => "azure",
            Provider::Supabase => "supabase",
            Provider::Neon => "neon",
        }
    }

    /// The name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Provider::SelfHosted => "self-hosted",
            Provider::Patroni => "self-hosted under Patroni",
            Provider::Rds => "Amazon RDS",
            Provider::Aurora => "Amazon Aurora",
            Provider::CloudSql => "Google Cloud SQL",
            Provider::Azure => "Azure Flexible Server",
            Provider::Supabase => "Supabase",
            Provider::Neon => "Neon",
        }
    }

    /// How `wal_level = logical` is had there; everywhere but on Neon the server restarts for it.
    #[must_use]
    pub fn logical_wal(self) -> &'static str {
        match self {
            Provider::SelfHosted => "ALTER SYSTEM SET wal_level = 'logical'; then restart the server",
            Provider::Patroni => "patronictl edit-config: postgresql.parameters.wal_level: logical; then patronictl restart",
            Provider::Rds => "set rds.logical_replication = 1 in the instance's parameter group and reboot it",
            Provider::Aurora => "set rds.logical_replication = 1 in the cluster's parameter group and reboot the writer",
            Provider::CloudSql => "set the flag cloudsql.logical_decoding = on; the instance restarts",
            Provider::Azure => "set the server parameter wal_level = logical and restart",
            Provider::Supabase => "nothing is to be set: Supabase has it on; ask its support",
            Provider::Neon => "enable logical replication in the project's settings; that cannot be taken back",
        }
    }

    /// How a setting is changed there; `ALTER SYSTEM` is for those who own the server.
    #[must_use]
    pub fn set(self, name: &str, value: &str) -> String {
        match self {
            Provider::SelfHosted => format!("ALTER SYSTEM SET {name} = '{value}'; SELECT pg_reload_conf();"),
            Provider::Patroni => format!("patronictl edit-config: postgresql.parameters.{name}: {value}"),
            Provider::Rds | Provider::Aurora => format!("set {name} = {value} in the parameter group (in the setting's own unit)"),
            Provider::CloudSql => format!("set the flag {name} = {value} (in the setting's own unit)"),
            Provider::Azure => format!("set the server parameter {name} = {value} (in the setting's own unit)"),
            Provider::Supabase | Provider::Neon => format!("{name} = {value}: ask the service's support, it is not yours to set"),
        }
    }

    /// What surprises those who capture from there; `None` where nothing is known.
    #[must_use]
    pub fn trap(self) -> Option<&'static str> {
        match self {
            Provider::SelfHosted => None,
            Provider::Patroni => Some(
                "Patroni drops slots that it does not know: name the slot under `slots:` of its configuration, or use failover slots (17), never both",
            ),
            Provider::Rds => Some(
                "the instance's free storage is the real ceiling of kept WAL: alarm on FreeStorageSpace; a Multi-AZ cluster copies slots late",
            ),
            Provider::Aurora => Some("a blue/green deployment and a failover can leave the slot behind: look at the slot after each"),
            Provider::CloudSql => Some("a clone and a point-in-time recovery begin another history: `tillstream epoch bump` after either"),
            Provider::Azure => Some(
                "max_slot_wal_keep_size is fixed at -1 there, so that only wal_budget guards the disk; HA before 17 needs the extension pg_failover_slots",
            ),
            Provider::Supabase => Some(
                "poolers do not carry replication: use the direct connection (IPv6, or the IPv4 add-on); slots and disk are limited by plan",
            ),
            Provider::Neon => Some(
                "a slot that is idle for about 40 h is removed, a restored branch has none, and a connected pipeline keeps the compute from scaling to zero",
            ),
        }
    }

    /// Slots and walsenders that the service takes for itself and wants to stay free.
    #[must_use]
    pub fn spare(self) -> i64 {
        match self {
            // Its high availability needs four.
            Provider::Azure => 4,
            _ => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_told_by_what_they_show() {
        let texts = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        for (roles, settings, aurora, patroni, expected) in [
            (&[][..], &[][..], false, false, Provider::SelfHosted),
            (&[], &[], false, true, Provider::Patroni),
            (&["rds_superuser"], &["rds.logical_replication"], false, false, Provider::Rds),
            (&["rds_superuser"], &["rds.logical_replication"], true, false, Provider::Aurora),
            (&["cloudsqlsuperuser"], &["cloudsql.logical_decoding"], false, false, Provider::CloudSql),
            (&[], &["azure.extensions"], false, false, Provider::Azure),
            (&["supabase_admin"], &[], false, false, Provider::Supabase),
            (&["neon_superuser"], &["neon.timeline_id"], false, false, Provider::Neon),
        ] {
            let (roles, settings) = (texts(roles), texts(settings));
            let found = Provider::detect(Signs { roles: &roles, settings: &settings, aurora, patroni });
            assert_eq!(found, expected);
            assert!(!found.name().is_empty() && Provider::ALL.contains(&found));
        }
    }
}
