//! The fields of a request body, read by name: of the right type, or an error that names the field.
//!
//! Routers and SDKs add fields of their own, so unknown ones are ignored. A field of the API that this server does not honour
//! is refused by name, never ignored.

use serde_json::{Map, Value};

use crate::{
    error::{ApiError, Result},
    openapi::takes::Request,
};

/// A JSON object from a client. `null` is the same as absent.
#[derive(Debug, Default)]
pub struct Fields {
    map: Map<String, Value>,
    /// In front of names in errors, e.g. `messages[2].`
    path: String,
    /// Of a whole body: what its route takes
    takes: Option<&'static Request>,
}

impl From<Map<String, Value>> for Fields {
    fn from(map: Map<String, Value>) -> Self {
        Self { map, ..Self::default() }
    }
}

impl Fields {
    /// Parses the body of a request.
    ///
    /// # Errors
    /// When it is not a JSON object, with the place; when a field is wrong or not honoured, with its name.
    pub fn parse(body: &[u8], takes: &'static Request) -> Result<Self> {
        let map = match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => map,
            Ok(_) => return Err(ApiError::body("the body must be a JSON object")),
            Err(error) => return Err(ApiError::body(format!("the body is not valid JSON: {error}"))),
        };
        let fields = Self { map, path: String::new(), takes: Some(takes) };
        takes.fields().try_for_each(|field| fields.get(field.0).map_or(Ok(()), |value| field.check(value)))?;
        Ok(fields)
    }

    /// The object `value`, found at `path` of the body.
    ///
    /// # Errors
    /// When it is no object.
    pub fn of(value: Value, path: &str) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { map, path: format!("{path}."), takes: None }),
            other => Err(wrong(path, &other, "an object")),
        }
    }

    /// The full name of a field, as errors show it.
    pub fn name(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    pub fn get(&self, field: &str) -> Option<&Value> {
        self.expect(field);
        self.map.get(field).filter(|value| !value.is_null())
    }

    pub fn take(&mut self, field: &str) -> Option<Value> {
        self.expect(field);
        self.map.remove(field).filter(|value| !value.is_null())
    }

    /// What is read must be in the document.
    fn expect(&self, field: &str) {
        let known = self.takes.is_none_or(|takes| takes.fields().any(|known| known.0 == field));
        debug_assert!(known, "`{field}` is not in openapi/takes.rs");
    }

    /// Those of `fields` that are given, under their names.
    pub fn take_all(&mut self, fields: &[&str]) -> Map<String, Value> {
        fields.iter().filter_map(|&field| Some((field.to_owned(), self.take(field)?))).collect()
    }

    /// # Errors
    /// When it is there and no object.
    pub fn take_object(&mut self, field: &str) -> Result<Option<Map<String, Value>>> {
        match self.take(field) {
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(wrong(&self.name(field), &other, "an object")),
            None => Ok(None),
        }
    }

    /// A list of `expected`, its items read by `read`, which gets the name of each.
    ///
    /// # Errors
    /// When it is there and no list, and those of `read`.
    pub fn take_list<T>(&mut self, field: &str, expected: &str, mut read: impl FnMut(Value, &str) -> Result<T>) -> Result<Option<Vec<T>>> {
        let name = self.name(field);
        match self.take(field) {
            Some(Value::Array(items)) => {
                items.into_iter().enumerate().map(|(i, item)| read(item, &format!("{name}[{i}]"))).collect::<Result<_>>().map(Some)
            }
            Some(other) => Err(wrong(&name, &other, &format!("a list of {expected}"))),
            None => Ok(None),
        }
    }

    /// Fails when one of `fields` is given: it would change the answer and is not honoured.
    ///
    /// # Errors
    /// Naming the first of them.
    pub fn refuse(&self, fields: &[&str]) -> Result<()> {
        match fields.iter().find(|field| self.get(field).is_some()) {
            Some(field) => Err(ApiError::unsupported(&self.name(field))),
            None => Ok(()),
        }
    }

    /// Fails when `field` has another value than `only`, the one that is honoured.
    ///
    /// # Errors
    /// Naming it.
    pub fn only(&self, field: &str, only: &Value) -> Result<()> {
        match self.get(field) {
            Some(value) if value != only => {
                let message = format!("`{}` must be {only} or left out; this server does not support {value}", self.name(field));
                Err(ApiError { code: Some("unsupported_parameter"), ..ApiError::invalid(self.name(field), message) })
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// When it is there and no number.
    pub fn f64(&self, field: &str) -> Result<Option<f64>> {
        self.typed(field, "a number", Value::as_f64)
    }

    /// # Errors
    /// When it is there and no 64-bit integer.
    pub fn i64(&self, field: &str) -> Result<Option<i64>> {
        self.typed(field, "an integer", Value::as_i64)
    }

    /// # Errors
    /// When it is there and no integer of at least 0.
    pub fn u64(&self, field: &str) -> Result<Option<u64>> {
        self.typed(field, "an integer of at least 0", Value::as_u64)
    }

    /// An integer in `least..=most`.
    ///
    /// # Errors
    /// When it is there and anything else.
    pub fn count(&self, field: &str, least: u64, most: u64) -> Result<Option<usize>> {
        let in_range = |value: &Value| value.as_u64().filter(|n| (least..=most).contains(n));
        Ok(self.typed(field, &format!("an integer from {least} to {most}"), in_range)?.map(|n| n as usize))
    }

    /// # Errors
    /// When it is there and no boolean.
    pub fn bool(&self, field: &str) -> Result<Option<bool>> {
        self.typed(field, "true or false", Value::as_bool)
    }

    /// # Errors
    /// When it is there and no string.
    pub fn string(&self, field: &str) -> Result<Option<&str>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.name(field), other, "a string")),
        }
    }

    /// # Errors
    /// When it is missing or no string.
    pub fn required_string(&self, field: &str) -> Result<&str> {
        let missing = || ApiError::invalid(self.name(field), format!("`{}` is missing: it must be a string", self.name(field)));
        self.string(field)?.ok_or_else(missing)
    }

    /// Token ids.
    ///
    /// # Errors
    /// When it is there and no list of integers from 0 to 2³² − 1.
    pub fn ids(&self, field: &str) -> Result<Option<Vec<u32>>> {
        self.typed(field, "a list of token ids", token_ids)
    }

    /// A string or a list of strings.
    ///
    /// # Errors
    /// When it is there and neither.
    pub fn strings(&self, field: &str) -> Result<Vec<String>> {
        let read = |value: &Value| match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        Ok(self.typed(field, "a string or a list of strings", read)?.unwrap_or_default())
    }

    fn typed<T>(&self, field: &str, expected: &str, read: impl FnOnce(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| wrong(&self.name(field), value, expected))
    }
}

/// The ids in a list of integers from 0 to 2³² − 1.
pub fn token_ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// The error for a value of the wrong type or range.
pub fn wrong(name: &str, got: &Value, expected: &str) -> ApiError {
    let mut shown = got.to_string();
    if shown.len() > 80 {
        let cut = (0..=80).rev().find(|&at| shown.is_char_boundary(at)).unwrap_or(0);
        shown.truncate(cut);
        shown.push('…');
    }
    ApiError::invalid(name, format!("`{name}` is {shown}; it must be {expected}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::openapi::takes;

    fn fields(value: Value) -> Fields {
        Fields { map: value.as_object().unwrap().clone(), ..Fields::default() }
    }

    #[test]
    fn values_of_the_wrong_type_are_named() {
        let f = fields(json!({"n": -1, "t": "hot", "b": 1, "s": [1], "ids": [1, -2], "big": 9_223_372_036_854_775_808u64, "none": null}));
        let param = |error: ApiError| error.param.unwrap();
        assert_eq!(param(f.u64("n").unwrap_err()), "n");
        assert_eq!(param(f.f64("t").unwrap_err()), "t");
        assert_eq!(param(f.bool("b").unwrap_err()), "b");
        assert_eq!(param(f.strings("s").unwrap_err()), "s");
        assert_eq!(param(f.ids("ids").unwrap_err()), "ids");
        assert_eq!(param(f.i64("big").unwrap_err()), "big");
        assert_eq!(f.u64("big").unwrap(), Some(1 << 63));
        assert_eq!(param(f.count("n", 1, 8).unwrap_err()), "n");
        assert!(f.f64("none").unwrap().is_none() && f.refuse(&["none", "absent"]).is_ok());
        assert_eq!(param(f.refuse(&["t"]).unwrap_err()), "t");
    }

    #[test]
    fn a_body_must_be_an_object() {
        for body in ["", "[]", "{", "\u{7f}", "{\"a\":1}}", &"[".repeat(100_000)] {
            assert!(Fields::parse(body.as_bytes(), &takes::DETOKENIZE).is_err(), "{body:.20}");
        }
        assert!(Fields::parse(b"{\"a\":\"\xff\"}", &takes::DETOKENIZE).is_err());
    }
}
