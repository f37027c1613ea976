//! The statements that owners of a source database are told to run, each written once: `setup` runs them, errors, the doctor and
//! `publication diff` print them. Pure.

use super::{identifier, literal};

/// The first major version whose slots can follow a failover.
const FAILOVER_MAJOR: i32 = 17;

/// The first major version whose publications know column lists and row filters.
pub(crate) const COLUMN_LISTS_MAJOR: i32 = 15;

/// Creates the slot. From version 17 on it follows a failover to a standby that is set up for it.
pub(crate) fn create_slot(slot: &str, major: i32) -> String {
    format!("SELECT {};", create_slot_call(slot, major))
}

/// As [`create_slot`], and does nothing where the slot is there.
pub(crate) fn create_slot_once(slot: &str, major: i32) -> String {
    let call = create_slot_call(slot, major);
    format!("SELECT {call}\n  WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {});", literal(slot))
}

fn create_slot_call(slot: &str, major: i32) -> String {
    let failover = if major >= FAILOVER_MAJOR { ", false, false, true" } else { "" };
    format!("pg_create_logical_replication_slot({}, 'pgoutput'{failover})", literal(slot))
}

/// Drops the slot.
pub(crate) fn drop_slot(slot: &str) -> String {
    format!("SELECT pg_drop_replication_slot({});", literal(slot))
}

/// As [`drop_slot`], and does nothing where there is none.
pub(crate) fn drop_slot_once(slot: &str) -> String {
    format!("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {};", literal(slot))
}

/// A table of a publication: its SQL name, the columns that may leave (`None`: all, also later ones), the condition on its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    /// `schema.table`, quoted where needed.
    pub(crate) table: String,
    /// Columns, unquoted.
    pub(crate) columns: Option<Vec<String>>,
    /// As the catalogue prints it.
    pub(crate) row_filter: Option<String>,
}

impl Published {
    /// A table with all its columns and rows.
    pub(crate) fn whole(table: String) -> Published {
        Published { table, columns: None, row_filter: None }
    }
}

impl std::fmt::Display for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.table)?;
        if let Some(columns) = &self.columns {
            write!(f, " ({})", columns.iter().map(|c| identifier(c)).collect::<Vec<_>>().join(", "))?;
        }
        self.row_filter.iter().try_for_each(|filter| write!(f, " WHERE {filter}"))
    }
}

fn list(tables: &[Published]) -> String {
    tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Creates the publication; partitions appear as their root.
pub(crate) fn create_publication(publication: &str, tables: &[Published]) -> String {
    let tables = if tables.is_empty() { String::new() } else { format!("FOR TABLE {} ", list(tables)) };
    format!("CREATE PUBLICATION {} {tables}WITH (publish_via_partition_root = true);", identifier(publication))
}

/// Adds tables.
pub(crate) fn add_tables(publication: &str, tables: &[Published]) -> String {
    format!("ALTER PUBLICATION {} ADD TABLE {};", identifier(publication), list(tables))
}

/// Takes tables out.
pub(crate) fn drop_tables(publication: &str, tables: &[String]) -> String {
    format!("ALTER PUBLICATION {} DROP TABLE {};", identifier(publication), tables.join(", "))
}

/// Publishes every operation.
pub(crate) fn publish_all(publication: &str) -> String {
    format!("ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate');", identifier(publication))
}

/// Whether changes of partitions appear under their root's name.
pub(crate) fn via_root(publication: &str, on: bool) -> String {
    format!("ALTER PUBLICATION {} SET (publish_via_partition_root = {on});", identifier(publication))
}

/// Lets a role read columns.
pub(crate) fn grant_columns(role: &str, table: &str, columns: &[String]) -> String {
    format!("GRANT SELECT ({}) ON {table} TO {};", columns.iter().map(|c| identifier(c)).collect::<Vec<_>>().join(", "), identifier(role))
}

/// Takes that back. Once no column has a grant the catalogue is as if there had never been one.
pub(crate) fn revoke_columns(role: &str, table: &str, columns: &[String]) -> String {
    format!(
        "REVOKE SELECT ({}) ON {table} FROM {};",
        columns.iter().map(|c| identifier(c)).collect::<Vec<_>>().join(", "),
        identifier(role)
    )
}

/// A statement that is run when a condition over the catalogue holds, and else is none.
pub(crate) fn only_if(condition: &str, statements: &[String]) -> String {
    let body: String = statements.iter().map(|s| format!("    {s}\n")).collect();
    // A name may hold anything, also what would end the block.
    let mut tag = "$$".to_owned();
    while body.contains(&tag) || condition.contains(&tag) {
        tag.insert(1, 'q');
    }
    format!("DO {tag} BEGIN\n  IF {condition} THEN\n{body}  END IF;\nEND {tag};")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_quote_what_needs_it_and_know_their_version() {
        assert_eq!(create_slot("o'slot", 16), "SELECT pg_create_logical_replication_slot('o''slot', 'pgoutput');");
        assert_eq!(create_slot("s", 17), "SELECT pg_create_logical_replication_slot('s', 'pgoutput', false, false, true);");
        let order = Published {
            table: "public.\"order\"".to_owned(),
            columns: Some(vec!["id".to_owned(), "No".to_owned()]),
            row_filter: Some("(id > 0)".to_owned()),
        };
        assert_eq!(
            create_publication("Pos", &[order, Published::whole("public.t".to_owned())]),
            "CREATE PUBLICATION \"Pos\" FOR TABLE public.\"order\" (id, \"No\") WHERE (id > 0), public.t WITH (publish_via_partition_root = true);"
        );
        assert_eq!(create_publication("p", &[]), "CREATE PUBLICATION p WITH (publish_via_partition_root = true);");
        assert!(only_if("true", &["DROP ROLE \"a$$b\";".to_owned()]).starts_with("DO $q$ BEGIN"));
        assert_eq!(revoke_columns("R", "public.t", &["id".to_owned()]), "REVOKE SELECT (id) ON public.t FROM \"R\";");
    }
}
