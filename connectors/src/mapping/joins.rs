//! What expressions find in kept rows: `lookup('item', after.item_id)` and `rows | with('lines', 'recipe.id')`.

use std::collections::BTreeMap;
use std::fmt;

use minijinja::value::{Rest, merge_maps};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::lookup::{FOUND_MAX, Lookup, Tables};

/// The hidden variable that holds the kept rows.
pub(super) const TABLES: &str = "__tables";

/// Marks an error: nothing was found.
#[derive(Debug)]
pub(super) struct Missing;

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing found")
    }
}

impl std::error::Error for Missing {}

pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_function("lookup", lookup);
    environment.add_filter("with", with);
    environment.add_filter("valid_at", valid_at);
}

fn lookup(state: &State<'_, '_>, name: &str, asked: Rest<Value>) -> Result<Value, Error> {
    let mut rows = Vec::new();
    let many = find(state, name, &asked, |lookup, found| {
        rows = found;
        lookup.many
    })?;
    Ok(if many { Value::from(rows) } else { rows.into_iter().next().unwrap_or_else(|| Value::from(())) })
}

/// Of each row as many as there are rows that its columns (by default those that the lookup is asked by) lead to, with that row under the lookup's
/// name. A row that leads to none is left out, unless the lookup has to find something.
fn with(state: &State<'_, '_>, rows: &Value, name: &str, columns: Rest<String>) -> Result<Value, Error> {
    if rows.is_none() {
        return Ok(Value::from(()));
    }
    let mut out: Vec<Value> = Vec::new();
    for row in rows.try_iter()? {
        let by: Vec<String> = match columns.as_slice() {
            [] => tables(state)?.lookup(name).ok_or_else(|| unknown(name))?.by.clone(),
            columns => columns.to_vec(),
        };
        let asked = by.iter().map(|column| at(&row, column)).collect::<Result<Vec<_>, _>>()?;
        find(state, name, &asked, |_, found| {
            let joined = |found| merge_maps([row.clone(), Value::from(BTreeMap::from([(name, found)]))]);
            out.extend(found.into_iter().map(joined));
            true
        })?;
        if out.len() > FOUND_MAX {
            return Err(too_many());
        }
    }
    Ok(Value::from(out))
}

/// The rows of a list that are valid on the day (or at the moment) that their column `day` holds: from `from` on and before `to`, if there is one.
/// Days are compared as texts, as 2026-11-22.
fn valid_at(rows: &Value, day: &str, from: &str, to: Option<&str>) -> Result<Value, Error> {
    let mut valid = Vec::new();
    for row in rows.try_iter()? {
        let (day, begins) = (at(&row, day)?, at(&row, from)?);
        let ends = to.map(|to| at(&row, to)).transpose()?.unwrap_or_default();
        let Some(day) = day.as_str().and_then(|day| day.get(..10)) else {
            return Err(Error::new(ErrorKind::InvalidOperation, "`valid_at` is asked for what is no day"));
        };
        if begins.as_str().is_none_or(|begins| begins <= day) && ends.as_str().is_none_or(|ends| day < ends) {
            valid.push(row);
        }
    }
    Ok(Value::from(valid))
}

/// What a dotted path leads to.
fn at(row: &Value, path: &str) -> Result<Value, Error> {
    let mut value = row.clone();
    for name in path.split('.') {
        value = value.get_attr(name)?;
    }
    if value.is_undefined() { Err(ErrorKind::UndefinedError.into()) } else { Ok(value) }
}

fn find<T>(state: &State<'_, '_>, name: &str, asked: &[Value], then: impl FnOnce(&Lookup, Vec<Value>) -> T) -> Result<T, Error> {
    if asked.iter().any(Value::is_undefined) {
        return Err(ErrorKind::UndefinedError.into());
    }
    let tables = tables(state)?;
    let lookup = tables.lookup(name).ok_or_else(|| unknown(name))?;
    if lookup.by.len() != asked.len() {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("lookup `{name}` is asked by {} values", lookup.by.len())));
    }
    let found = tables.find(lookup, asked).ok_or_else(too_many)?;
    if found.is_empty() && lookup.required {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("lookup `{name}` finds nothing")).with_source(Missing));
    }
    if found.len() > 1 && !lookup.many {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("lookup `{name}` finds several rows: write `many: true`")));
    }
    Ok(then(lookup, found))
}

fn tables(state: &State<'_, '_>) -> Result<std::sync::Arc<Tables>, Error> {
    let hidden = state.lookup(TABLES).unwrap_or_default();
    hidden.downcast_object::<Tables>().ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "there is no `lookup` in this file"))
}

fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("there is no lookup `{name}`"))
}

fn too_many() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("finds more than {FOUND_MAX} rows"))
}
