//! A conversation in OpenAI's form, made ready for the model's chat template.

use std::sync::Arc;

use ferrum_models::text::{ChatOptions, EncodeOptions};
use serde_json::{Map, Value, json};

use crate::{
    app::{App, Served},
    call_grammar,
    error::{ApiError, Result},
    explain_tools,
    fields::{Fields, wrong},
    output::ToolFormat,
    sampling::hash,
    structured::Wanted,
    tools::ToolChoice,
};

/// What the template renders.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatPrompt {
    /// `{"role", "content", …}`, contents as plain text
    pub messages: Vec<Value>,
    pub tools: Option<Vec<Value>>,
    /// Variables of the template
    pub arguments: Map<String, Value>,
    /// Whether the answer begins a new message, or goes on with the last one
    pub add_generation_prompt: bool,
}

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
/// Most messages of a request.
const MAX_MESSAGES: usize = 65_536;

impl ChatPrompt {
    /// Reads `messages`, `tools` and the fields about the template.
    ///
    /// # Errors
    /// Naming the field that is wrong or not supported.
    pub fn read(fields: &mut Fields) -> Result<Self> {
        let messages = match fields.take("messages") {
            Some(Value::Array(messages)) if (1..=MAX_MESSAGES).contains(&messages.len()) => messages,
            Some(other) => return Err(wrong("messages", &other, "a list of at least one message")),
            None => return Err(ApiError::invalid("messages", "`messages` is missing: it must be a list of at least one message")),
        };
        let messages =
            messages.into_iter().enumerate().map(|(i, m)| read_message(m, &format!("messages[{i}]"))).collect::<Result<Vec<_>>>()?;
        let tools = match fields.take("tools") {
            Some(Value::Array(tools)) if tools.is_empty() => None,
            Some(Value::Array(tools)) => {
                for (i, tool) in tools.iter().enumerate() {
                    check_tool(tool, &format!("tools[{i}]"))?;
                }
                Some(tools)
            }
            Some(other) => return Err(wrong("tools", &other, "a list of tools")),
            None => None,
        };
        let mut arguments = match fields.take("chat_template_kwargs") {
            Some(Value::Object(arguments)) => arguments,
            Some(other) => return Err(wrong("chat_template_kwargs", &other, "an object")),
            None => Map::new(),
        };
        if let Some(effort) = fields.string("reasoning_effort")? {
            arguments.insert("reasoning_effort".into(), effort.into());
        }
        let add_generation_prompt = fields.bool("add_generation_prompt")?.unwrap_or(true);
        Ok(Self { messages, tools, arguments, add_generation_prompt })
    }

    pub fn tool_names(&self) -> Vec<String> {
        let name = |tool: &Value| tool.pointer("/function/name").and_then(Value::as_str).map(str::to_owned);
        self.tools.iter().flatten().filter_map(name).collect()
    }

    /// Renders and encodes, off the threads that serve connections: templates take time.
    ///
    /// # Errors
    /// When the model has no template, or the template refuses the conversation.
    pub async fn render(self, app: &Arc<App>) -> Result<Rendered> {
        let app = Arc::clone(app);
        let task = tokio::task::spawn_blocking(move || self.encode(app.model()?));
        task.await.map_err(|_| ApiError::internal("rendering the conversation failed"))?
    }

    fn encode(&self, model: &Served) -> Result<Rendered> {
        let template = model.template.as_ref().ok_or(ferrum_models::text::TextError::NoChatTemplate)?;
        let explained = (model.tool_format == Some(ToolFormat::Json))
            .then(|| explain_tools::in_messages(&self.messages, self.tools.as_deref().unwrap_or_default()));
        let renamed = (model.tool_format == Some(ToolFormat::Mistral)).then(|| with_short_ids(&self.messages));
        let messages = explained.as_deref().or(renamed.as_deref()).unwrap_or(&self.messages);
        let options = ChatOptions {
            tools: self.tools.as_deref(),
            add_generation_prompt: self.add_generation_prompt,
            arguments: self.arguments.clone(),
            now_s: None,
        };
        let text = template.render(messages, &options)?;
        // Templates write BOS themselves.
        let tokens = model.tokenizer.encode(&text, EncodeOptions { add_special: false, parse_special: true })?;
        let end = text.char_indices().rev().nth(END_CHARS - 1).map_or(0, |(at, _)| at);
        Ok(Rendered { tokens, end: text[end..].to_owned() })
    }

    /// Whether the model may call tools, and how it writes that.
    ///
    /// # Errors
    /// When the model's template takes no tools.
    pub fn tool_format(&mut self, model: &Served, choice: &ToolChoice) -> Result<Option<ToolFormat>> {
        if *choice == ToolChoice::None {
            self.tools = None;
        }
        if self.tools.is_none() {
            return Ok(None);
        }
        let format = model.tool_format;
        format
            .map(Some)
            .ok_or_else(|| ApiError::invalid("tools", "this model's chat template takes no tools in a form known to this server"))
    }

    /// The grammar of the calls that `tool_choice` and `strict` force.
    ///
    /// # Errors
    /// When there is no such tool.
    pub fn forced_calls(&self, model: &Served, choice: &ToolChoice, format: Option<ToolFormat>, several: bool) -> Result<Option<Wanted>> {
        let (Some(tools), Some(format)) = (&self.tools, format) else {
            if choice.is_forced() {
                return Err(ApiError::invalid("tool_choice", "`tool_choice` forces a call, but there are no `tools`"));
            }
            return Ok(None);
        };
        let Some(forced) = choice.forced(tools)? else { return Ok(None) };
        Ok(Some(Wanted { param: "tools".into(), grammar: call_grammar::calls(&forced, format, several, &model.tokenizer) }))
    }
}

/// A prompt ready for the model.
#[derive(Clone, Debug)]
pub struct Rendered {
    pub tokens: Vec<u32>,
    /// The last characters of the text: they may have opened the reasoning
    pub end: String,
}

/// Enough for every mark that opens reasoning.
const END_CHARS: usize = 32;

/// One message, its content as plain text and the arguments of its tool calls as JSON values, which is what templates take.
fn read_message(message: Value, path: &str) -> Result<Value> {
    let mut fields = Fields::of(message, path)?;
    let role = fields.string("role")?.unwrap_or_default();
    let role = match role {
        "developer" => "system",
        role if ROLES.contains(&role) => role,
        other => return Err(wrong(&fields.name("role"), &other.into(), "system, developer, user, assistant or tool")),
    }
    .to_owned();
    fields.refuse(&["audio", "function_call"])?;
    let content = match fields.take("content") {
        Some(content) => Some(read_text(content, &fields.name("content"))?),
        None if role == "assistant" => None,
        None => return Err(ApiError::invalid(fields.name("content"), format!("`{}` is missing", fields.name("content")))),
    };
    let mut out =
        Map::from_iter([("role".to_owned(), Value::from(role)), ("content".to_owned(), content.map_or(Value::Null, Value::from))]);
    if let Some(calls) = fields.take_list("tool_calls", "tool calls", read_tool_call)? {
        out.insert("tool_calls".into(), calls.into());
    }
    for field in ["name", "tool_call_id", "reasoning_content"] {
        if let Some(text) = fields.string(field)? {
            out.insert(field.into(), text.into());
        }
    }
    Ok(out.into())
}

/// The messages with ids of tool calls as Mistral's templates take them and no others: nine letters and digits. Equal ids stay
/// equal.
fn with_short_ids(messages: &[Value]) -> Vec<Value> {
    let mut messages = messages.to_vec();
    for message in &mut messages {
        // Indexing would add what is missing: templates ask whether there are calls by whether the key is there.
        let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten();
        calls.filter_map(|call| call.get_mut("id")).for_each(shorten);
        if let Some(id) = message.get_mut("tool_call_id") {
            shorten(id);
        }
    }
    messages
}

fn shorten(id: &mut Value) {
    let Some(text) = id.as_str().filter(|id| id.len() != 9 || !id.bytes().all(|b| b.is_ascii_alphanumeric())) else { return };
    let mut rest = hash(text);
    let mut digit = || {
        let digit = char::from_digit((rest % 36) as u32, 36);
        rest /= 36;
        digit
    };
    *id = (0..9).filter_map(|_| digit()).collect::<String>().into();
}

/// Text, or a list of text parts.
///
/// # Errors
/// Naming the part of `path` that is anything else.
pub fn read_text(content: Value, path: &str) -> Result<String> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong(path, &other, "a string or a list of parts")),
    };
    let mut text = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let part = Fields::of(part, &format!("{path}[{i}]"))?;
        match part.string("type")?.unwrap_or_default() {
            "text" | "input_text" | "output_text" => text += part.required_string("text")?,
            "refusal" => text += part.required_string("refusal")?,
            other => return Err(wrong(&part.name("type"), &other.into(), "text: this server takes no images, audio or files")),
        }
    }
    Ok(text)
}

fn read_tool_call(call: Value, path: &str) -> Result<Value> {
    let mut call = Fields::of(call, path)?;
    let id = call.string("id")?.unwrap_or_default().to_owned();
    let function = call.take("function").unwrap_or_default();
    let mut function = Fields::of(function, &call.name("function"))?;
    let name = function.string("name")?.ok_or_else(|| ApiError::invalid(function.name("name"), "a tool call needs a name"))?.to_owned();
    let arguments = match function.take("arguments") {
        // Templates walk through arguments; text that is no JSON goes through as it is.
        Some(Value::String(text)) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        Some(value) => value,
        None => json!({}),
    };
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

fn check_tool(tool: &Value, path: &str) -> Result<()> {
    if tool.get("type").and_then(Value::as_str) != Some("function") {
        return Err(ApiError::invalid(format!("{path}.type"), "only tools of type `function` are supported"));
    }
    match tool.pointer("/function/description") {
        None | Some(Value::Null | Value::String(_)) => {}
        Some(other) => return Err(wrong(&format!("{path}.function.description"), other, "a string")),
    }
    match tool.pointer("/function/parameters") {
        None | Some(Value::Null | Value::Object(_)) => {}
        Some(other) => return Err(wrong(&format!("{path}.function.parameters"), other, "a JSON schema: an object")),
    }
    match tool.pointer("/function/name").and_then(Value::as_str) {
        Some(name) if !name.is_empty() && name.len() <= 128 => Ok(()),
        _ => Err(ApiError::invalid(format!("{path}.function.name"), "a tool needs a name of at most 128 characters")),
    }
}
