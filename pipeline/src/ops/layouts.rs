//! What changed between two layouts of a table, in words. Pure.

use crate::control::{LayoutColumn, TableLayout};

/// What changed, one sentence each; never empty for layouts that differ.
#[must_use]
pub fn changes(before: &TableLayout, after: &TableLayout) -> Vec<String> {
    let mut found = Vec::new();
    if before.oid != after.oid {
        found.push(format!("another table under this name: OID {} became {}", before.oid, after.oid));
    }
    match (&before.renamed, &after.renamed) {
        (was, is) if was == is => {}
        (_, Some(name)) => found.push(format!("renamed to {name} in the database")),
        (_, None) => found.push("renamed back in the database".to_owned()),
    }
    let column = |layout: &TableLayout, name: &str| layout.columns.iter().find(|c| c.name == name).cloned();
    for gone in before.columns.iter().filter(|c| column(after, &c.name).is_none()) {
        found.push(format!("- {} {}", gone.name, gone.type_name));
    }
    for is in &after.columns {
        match column(before, &is.name) {
            None => found.push(format!("+ {} {}", is.name, is.type_name)),
            Some(was) => found.extend(column_changes(&was, is)),
        }
    }
    if before.identity != after.identity {
        found.push(format!("identity {} became {}", before.identity, after.identity));
    }
    if found.is_empty() {
        let order = |l: &TableLayout| l.columns.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
        let what = if order(before) == order(after) { "another type of the same name" } else { "columns in another order" };
        found.push(what.to_owned());
    }
    found
}

fn column_changes(was: &LayoutColumn, is: &LayoutColumn) -> Vec<String> {
    let mut found = Vec::new();
    if was.type_name != is.type_name {
        found.push(format!("{}: {} became {}", is.name, was.type_name, is.type_name));
    }
    match (was.key, is.key) {
        (false, true) => found.push(format!("{} joined the key", is.name)),
        (true, false) => found.push(format!("{} left the key", is.name)),
        _ => {}
    }
    if was.policy != is.policy {
        let word = |policy: &Option<String>| policy.clone().unwrap_or_else(|| "pass".to_owned());
        found.push(format!("{}: policy {} became {}", is.name, word(&was.policy), word(&is.policy)));
    }
    found
}

#[cfg(test)]
mod tests {
    use tillstream_schemas::Position;

    use super::*;

    fn layout(oid: u32, identity: &str, columns: &[(&str, &str, bool)]) -> TableLayout {
        let column = |(name, type_name, key): &(&str, &str, bool)| LayoutColumn {
            name: (*name).to_owned(),
            type_name: (*type_name).to_owned(),
            key: *key,
            policy: None,
        };
        TableLayout {
            table: "public.t".to_owned(),
            layout: String::new(),
            since: Position::NONE,
            oid,
            renamed: None,
            identity: identity.to_owned(),
            columns: columns.iter().map(column).collect(),
            at_ms: 0,
        }
    }

    #[test]
    fn every_difference_is_told() {
        let before = layout(1, "default", &[("id", "integer", true), ("qty", "integer", false), ("note", "text", false)]);
        let after = layout(2, "full", &[("id", "integer", false), ("qty", "bigint", true), ("loyalty", "text", false)]);
        assert_eq!(
            changes(&before, &after),
            [
                "another table under this name: OID 1 became 2",
                "- note text",
                "id left the key",
                "qty: integer became bigint",
                "qty joined the key",
                "+ loyalty text",
                "identity default became full"
            ]
        );
        let mut renamed = TableLayout { renamed: Some("public.u".to_owned()), ..before.clone() };
        assert_eq!(changes(&before, &renamed), ["renamed to public.u in the database"]);
        assert_eq!(changes(&renamed, &before), ["renamed back in the database"]);
        renamed = before.clone();
        renamed.columns[2].policy = Some("drop".to_owned());
        assert_eq!(changes(&before, &renamed), ["note: policy pass became drop"]);
        renamed = before.clone();
        renamed.columns.swap(1, 2);
        assert_eq!(changes(&before, &renamed), ["columns in another order"]);
    }
}
