//! `tool_choice`, and the grammar of a call that is forced: the model family's own form around arguments that are valid under the
//! tool's schema.

use ferrum_engine::Grammar;
use ferrum_models::text::Tokenizer;
use serde_json::{Value, json};

use crate::{
    error::{ApiError, Result},
    fields::wrong,
    output::ToolFormat,
    structured::Wanted,
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

    /// The grammar of a forced call to one of `tools`, or of several calls; `None` where nothing is forced.
    ///
    /// # Errors
    /// When there is no such tool, or a tool's parameters are no schema.
    pub fn grammar(&self, tools: &[Value], format: ToolFormat, several: bool, tokenizer: &Tokenizer) -> Result<Option<Wanted>> {
        if !self.is_forced() {
            return Ok(None);
        }
        let name_of = |tool: &Value| tool.pointer("/function/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let allowed = |name: &str| !matches!(self, Self::Named(only) if only != name);
        let mut functions = Vec::new();
        for (n, tool) in tools.iter().enumerate().filter(|(_, tool)| allowed(&name_of(tool))) {
            let schema = match tool.pointer("/function/parameters") {
                None | Some(Value::Null) => json!({"type": "object", "properties": {}, "additionalProperties": false}),
                Some(Value::Object(schema)) => {
                    let mut schema = schema.clone();
                    schema.entry("type").or_insert_with(|| "object".into());
                    Value::Object(schema)
                }
                Some(other) => return Err(wrong(&format!("tools[{n}].function.parameters"), other, "a JSON schema: an object")),
            };
            functions.push((name_of(tool), schema));
        }
        if functions.is_empty() {
            return Err(ApiError::invalid("tool_choice", "`tool_choice` asks for a tool that is not among `tools`"));
        }
        // Text that the tokenizer has a special token for is that token.
        let mark = |text: &str| match tokenizer.token_id(text) {
            Some(id) if tokenizer.is_special(id) => format!("<[{id}]>"),
            _ => Grammar::literal(text),
        };
        Ok(Some(Wanted { param: "tools".into(), grammar: calls(functions, format, several, mark) }))
    }
}

/// One call, or one and more.
fn calls(functions: Vec<(String, Value)>, format: ToolFormat, several: bool, mark: impl Fn(&str) -> String) -> Grammar {
    let arguments = if format == ToolFormat::Llama3 { "parameters" } else { "arguments" };
    let object = |(n, (name, _)): (usize, &(String, Value))| {
        let head = format!("{{\"name\": {}, \"{arguments}\": ", Grammar::literal(name));
        format!("{} @a{n} \"}}\"", Grammar::literal(&head))
    };
    let objects: Vec<String> = functions.iter().enumerate().map(object).collect();
    let start = match (format, several) {
        (ToolFormat::Hermes, false) => "call".to_owned(),
        (ToolFormat::Hermes, true) => r#"call ("\n" call)*"#.to_owned(),
        (ToolFormat::Mistral, several) => {
            let more = if several { "(\", \" object)*" } else { "" };
            format!("{} \"[\" object {more} \"]\"", mark("[TOOL_CALLS]"))
        }
        // The whole answer is one call.
        (ToolFormat::Llama3, _) => "object".to_owned(),
    };
    let call = format!("{} \"\\n\" object \"\\n\" {}", mark("<tool_call>"), mark("</tool_call>"));
    let call = if format == ToolFormat::Hermes { format!("call: {call}\n") } else { String::new() };
    let lark = format!("start: {start}\n{call}object: {}\n", objects.join(" | "));
    Grammar::with_schemas(&lark, functions.into_iter().enumerate().map(|(n, (_, schema))| (format!("a{n}"), schema)))
}
