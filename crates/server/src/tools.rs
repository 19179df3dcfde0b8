//! `tool_choice`, and what it and `strict` force.

use serde_json::{Value, json};

use crate::{
    error::{ApiError, Result},
    fields::wrong,
};

/// What `tool_choice` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    None,
    Auto,
    /// Some tool must be called
    Required,
    /// This tool must be called
    Named(String),
}

impl ToolChoice {
    /// # Errors
    /// When it is none of the API's forms.
    pub fn read(choice: Option<&Value>) -> Result<Self> {
        let Some(choice) = choice else { return Ok(Self::Auto) };
        match choice.as_str() {
            Some("auto") => return Ok(Self::Auto),
            Some("none") => return Ok(Self::None),
            Some("required") => return Ok(Self::Required),
            _ => {}
        }
        // `/v1/responses` has the name one level higher.
        let name = choice.pointer("/function/name").or_else(|| choice.get("name")).and_then(Value::as_str);
        match name.filter(|_| choice.get("type").and_then(Value::as_str) == Some("function")) {
            Some(name) => Ok(Self::Named(name.to_owned())),
            None => Err(wrong("tool_choice", choice, "auto, none, required or {\"type\": \"function\", \"function\": {\"name\": …}}")),
        }
    }

    pub fn is_forced(&self) -> bool {
        matches!(self, Self::Required | Self::Named(_))
    }

    /// What of `tools` a grammar must force; `None` where there is nothing.
    ///
    /// # Errors
    /// When there is no such tool.
    pub fn forced(&self, tools: &[Value]) -> Result<Option<Forced>> {
        let is_strict = |tool: &Value| tool.pointer("/function/strict") == Some(&Value::Bool(true));
        if !self.is_forced() && (*self == Self::None || !tools.iter().any(is_strict)) {
            return Ok(None);
        }
        let mut functions = Vec::new();
        for tool in tools {
            let name = tool.pointer("/function/name").and_then(Value::as_str).unwrap_or_default();
            if matches!(self, Self::Named(only) if only != name) {
                continue;
            }
            let parameters = match tool.pointer("/function/parameters") {
                Some(Value::Object(schema)) => {
                    let mut schema = schema.clone();
                    schema.entry("type").or_insert_with(|| "object".into());
                    Value::Object(schema)
                }
                _ => json!({"type": "object", "properties": {}, "additionalProperties": false}),
            };
            // Beside strict tools, those that are not take what the model writes.
            let is_free = !self.is_forced() && !is_strict(tool);
            let parameters = if is_free { json!({"type": "object"}) } else { parameters };
            functions.push(Function { name: name.to_owned(), parameters });
        }
        if functions.is_empty() {
            return Err(ApiError::invalid("tool_choice", "`tool_choice` asks for a tool that is not among `tools`"));
        }
        Ok(Some(Forced { functions, call: self.is_forced() }))
    }
}

/// A function, and the schema of its arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    pub name: String,
    pub parameters: Value,
}

/// What a grammar must force.
#[derive(Clone, Debug, PartialEq)]
pub struct Forced {
    /// The functions that may be called
    pub functions: Vec<Function>,
    /// Whether one must be called; else there may be text, and calls behind it
    pub call: bool,
}
