//! Where a preview begins: a place in the journal, a table, a file.

use std::path::PathBuf;

use crate::delivery::place;

/// What `--from` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// What is stored from now on.
    Live,
    /// What is stored from this place on.
    Stored(place::Place),
    /// Rows of a table; without a name the connector has but one.
    Table(Option<(String, String)>),
    /// Events, one a line.
    File(PathBuf),
}

pub(super) fn parse(text: &str) -> Result<Place, String> {
    if text == "live" {
        return Ok(Place::Live);
    }
    if let Some(path) = text.strip_prefix("file:") {
        return if path.is_empty() { Err("write `file:events.ndjson`".to_owned()) } else { Ok(Place::File(path.into())) };
    }
    if text == "table" {
        return Ok(Place::Table(None));
    }
    if let Some(table) = text.strip_prefix("table:") {
        return match table.split_once('.') {
            Some((schema, table)) if !schema.is_empty() && !table.is_empty() => {
                Ok(Place::Table(Some((schema.to_owned(), table.to_owned()))))
            }
            _ => Err("write the table with its schema, as `table:public.orders`".to_owned()),
        };
    }
    match text.parse() {
        Ok(place) if place != place::Place::Next => Ok(Place::Stored(place)),
        _ => Err("write `live`, `first`, an offset as 1234 or p2@1234, a moment as 2026-11-22T10:00:00Z, a duration as 10m, an LSN as 0/16B3748, \
                  `table`, `table:public.orders` or `file:events.ndjson`"
            .to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Offset;

    #[test]
    fn places_are_told_apart() {
        let table = || Some(("public".to_owned(), "orders".to_owned()));
        for (text, place) in [
            ("live", Place::Live),
            ("first", Place::Stored(place::Place::First)),
            ("p2@1234", Place::Stored(place::Place::Offset(Some(2), Offset(1234)))),
            ("2026-11-22T10:00:00Z", Place::Stored(place::Place::Time(1_795_341_600_000))),
            ("table", Place::Table(None)),
            ("table:public.orders", Place::Table(table())),
            ("file:a/b.ndjson", Place::File("a/b.ndjson".into())),
        ] {
            assert_eq!(parse(text), Ok(place), "{text}");
        }
        for bad in ["next", "p2@", "px@1", "table:orders", "file:", "yesterday", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
