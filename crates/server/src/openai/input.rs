//! Texts in the four forms that `prompt` and `input` have.

use ferrum_models::text::EncodeOptions;
use serde_json::Value;

use crate::{
    app::Served,
    error::{ApiError, Result},
    fields::{token_ids, wrong},
};

/// A text for the model.
pub struct Text {
    pub tokens: Vec<u32>,
    /// `None` where the client sent token ids
    pub text: Option<String>,
}

/// Most texts of one request; OpenAI takes as many.
const MAX_TEXTS: usize = 2048;

/// A string, a list of strings, a list of token ids, or a list of such lists.
///
/// # Errors
/// When `value`, the value of `field`, is anything else.
pub fn texts(model: &Served, field: &str, value: Option<Value>) -> Result<Vec<Text>> {
    let expected = "a string, a list of strings, a list of token ids or a list of such lists";
    let encode = |text: &str| -> Result<Text> {
        let tokens = model.tokenizer.encode(text, EncodeOptions { add_special: true, parse_special: true })?;
        Ok(Text { tokens, text: Some(text.to_owned()) })
    };
    let value = value.ok_or_else(|| ApiError::invalid(field, format!("`{field}` is missing: it must be {expected}")))?;
    if let Value::String(text) = &value {
        return Ok(vec![encode(text)?]);
    }
    let wrong = || wrong(field, &value, expected);
    let items = value.as_array().filter(|items| !items.is_empty()).ok_or_else(wrong)?;
    if let Some(tokens) = token_ids(&value) {
        return Ok(vec![Text { tokens, text: None }]);
    }
    if items.len() > MAX_TEXTS {
        return Err(ApiError::invalid(field, format!("{} texts; at most {MAX_TEXTS} are allowed in one request", items.len())));
    }
    let one = |item: &Value| match item {
        Value::String(text) => encode(text),
        other => Ok(Text { tokens: token_ids(other).ok_or_else(wrong)?, text: None }),
    };
    items.iter().map(one).collect()
}
