//! What a connector's map made for a vendor, looked at before it is sent: held against the vendor's table, and taken by name. Problems hold no value.

use serde_json::{Map, Value};

use crate::http::sink::{Unsendable, refuse};
use crate::shape::Shape;
use crate::sink::Item;

/// The object that the map made. `code` is that of a refusal.
pub(crate) struct Fields {
    code: &'static str,
    fields: Map<String, Value>,
}

impl Fields {
    pub(crate) fn of(item: &Item, code: &'static str) -> Result<Fields, Unsendable> {
        let mapped = item.mapped.as_ref().and_then(|mapped| mapped.as_ref().ok());
        match mapped.map(|text| serde_json::from_str(text)) {
            Some(Ok(Value::Object(fields))) => Ok(Fields { code, fields }),
            _ => Err(refuse(code, "the connector's map made no object")),
        }
    }

    /// Whether it is what the vendor takes.
    pub(crate) fn fit(&self, shape: &Shape) -> Result<(), Unsendable> {
        let Some(misfit) = shape.misfit(&self.fields) else { return Ok(()) };
        let name = misfit.path.rsplit('.').next().unwrap_or_default();
        // The map's own name, unless it gave a whole object of the row away.
        let is_ours = !misfit.is_unknown || (name.len() <= 40 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        Err(match misfit.path.as_str() {
            "" => refuse(self.code, format!("the connector's map {}", misfit.what)),
            path if is_ours => self.refuse(path, &misfit.what),
            _ => refuse(self.code, format!("a field {}", misfit.what)),
        })
    }

    /// The fields as they are.
    pub(crate) fn all(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// Those of a field that is an object itself; empty when it is not there.
    pub(crate) fn within(&mut self, name: &str) -> Result<Fields, Unsendable> {
        match self.fields.remove(name) {
            None | Some(Value::Null) => Ok(Fields { code: self.code, fields: Map::new() }),
            Some(Value::Object(fields)) => Ok(Fields { code: self.code, fields }),
            Some(_) => Err(self.refuse(name, "must be an object")),
        }
    }

    pub(crate) fn refuse(&self, name: &str, what: &str) -> Unsendable {
        refuse(self.code, format!("`{name}` {what}"))
    }

    /// Takes a text that is not empty.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, Unsendable> {
        match self.fields.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
            // Ids are numbers as often as not.
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(_) => Err(self.refuse(name, "must be a text that is not empty")),
        }
    }

    /// Takes a text that has to be there.
    pub(crate) fn required(&mut self, name: &str) -> Result<String, Unsendable> {
        self.text(name)?.ok_or_else(|| self.refuse(name, "is missing"))
    }

    /// What is left.
    pub(crate) fn rest(self) -> Map<String, Value> {
        self.fields
    }
}
