//! A request of `/v1/messages` in the fields of `/v1/chat/completions`.

use serde_json::{Map, Value, json};

use crate::{
    error::{ApiError, Result},
    fields::{Fields, wrong},
};

/// Fields that mean the same in both.
const SAME: &[&str] = &["max_tokens", "temperature", "top_p", "top_k", "priority", "seed", "min_p", "ignore_eos"];

/// # Errors
/// Naming the field that is wrong or not supported.
pub fn chat(fields: &mut Fields) -> Result<Fields> {
    let mut out = prompt(fields)?;
    out.extend(fields.take_all(SAME));
    out.insert("stop".into(), fields.strings("stop_sequences")?.into());
    if let Some(metadata) = fields.take("metadata")
        && let Some(user) = Fields::of(metadata, "metadata")?.string("user_id")?
    {
        out.insert("user".into(), user.into());
    }
    Ok(Fields::from(out))
}

/// Reasoning effort and the form of the answer.
fn read_output_config(config: Value, out: &mut Map<String, Value>) -> Result<()> {
    let mut config = Fields::of(config, "output_config")?;
    out.extend(config.string("effort")?.map(|effort| ("reasoning_effort".to_owned(), effort.into())));
    if let Some(format) = config.take("format") {
        let mut format = Fields::of(format, "output_config.format")?;
        match format.string("type")? {
            Some("json_schema") => {}
            other => return Err(wrong("output_config.format.type", &other.into(), "json_schema")),
        }
        let missing = || ApiError::invalid("output_config.format.schema", "`output_config.format.schema` is missing");
        let schema = format.take_object("schema")?.ok_or_else(missing)?;
        out.insert("response_format".into(), json!({"type": "json_schema", "json_schema": {"schema": schema}}));
    }
    Ok(())
}

/// Clients say that they keep what is kept here in any case; whatever else is to go is refused.
fn read_context_management(management: Value) -> Result<()> {
    let mut management = Fields::of(management, "context_management")?;
    management.take_list("edits", "edits", |edit, path| {
        let edit = Fields::of(edit, path)?;
        for (field, kept) in [("type", "clear_thinking_20251015"), ("keep", "all")] {
            match edit.get(field) {
                Some(value) if value == kept => {}
                other => return Err(wrong(&edit.name(field), other.unwrap_or(&Value::Null), &format!("{kept}: nothing goes here"))),
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Only the fields that make the prompt, and the form of the answer, which stands beside one of them.
///
/// # Errors
/// Naming the field that is wrong.
pub fn prompt(fields: &mut Fields) -> Result<Map<String, Value>> {
    let mut out = fields.take_all(&["chat_template_kwargs"]);
    let mut messages = Vec::new();
    if let Some(system) = fields.take("system") {
        messages.push(json!({"role": "system", "content": text(system, "system")?}));
    }
    fields
        .take_list("messages", "messages", |message, path| read_message(message, path, &mut messages))?
        .ok_or_else(|| ApiError::invalid("messages", "`messages` is missing: it must be a list of messages"))?;
    out.insert("messages".into(), messages.into());
    if let Some(tools) = fields.take_list("tools", "tools", read_tool)? {
        out.insert("tools".into(), tools.into());
    }
    if let Some(choice) = fields.take("tool_choice") {
        read_tool_choice(Fields::of(choice, "tool_choice")?, &mut out)?;
    }
    if let Some(config) = fields.take("output_config") {
        read_output_config(config, &mut out)?;
    }
    if let Some(management) = fields.take("context_management") {
        read_context_management(management)?;
    }
    if let Some(thinking) = fields.take("thinking") {
        let thinking = Fields::of(thinking, "thinking")?;
        // Clients must send one. What bounds reasoning here is `max_tokens`.
        thinking.u64("budget_tokens")?;
        let on = match thinking.string("type")? {
            Some("enabled" | "adaptive") => true,
            Some("disabled") => false,
            other => return Err(wrong("thinking.type", &other.into(), "enabled or disabled")),
        };
        // What the templates of Qwen 3 and its relatives read.
        let arguments = out.entry("chat_template_kwargs").or_insert_with(|| json!({}));
        if let Some(arguments) = arguments.as_object_mut() {
            arguments.entry("enable_thinking").or_insert(on.into());
        }
    }
    Ok(out)
}

/// Text, or a list of text blocks.
fn text(content: Value, path: &str) -> Result<String> {
    let blocks = match content {
        Value::String(text) => return Ok(text),
        Value::Array(blocks) => blocks,
        other => return Err(wrong(path, &other, "a string or a list of text blocks")),
    };
    let mut all = String::new();
    for (i, block) in blocks.into_iter().enumerate() {
        let block = Fields::of(block, &format!("{path}[{i}]"))?;
        match block.string("type")? {
            Some("text") => all += block.required_string("text")?,
            other => return Err(wrong(&block.name("type"), &other.into(), "text: this server takes no images or documents")),
        }
    }
    Ok(all)
}

/// One message becomes one per result of a tool, and one for the rest.
fn read_message(message: Value, path: &str, out: &mut Vec<Value>) -> Result<()> {
    let mut fields = Fields::of(message, path)?;
    let role = match fields.string("role")? {
        Some(role @ ("user" | "assistant" | "system")) => role.to_owned(),
        other => return Err(wrong(&fields.name("role"), &other.into(), "user or assistant")),
    };
    let path = fields.name("content");
    let blocks = match fields.take("content") {
        Some(Value::Array(blocks)) => blocks,
        Some(Value::String(text)) => vec![json!({"type": "text", "text": text})],
        Some(other) => return Err(wrong(&path, &other, "a string or a list of blocks")),
        None => return Err(ApiError::invalid(&path, format!("`{path}` is missing"))),
    };
    let (mut content, mut thinking, mut calls, mut results) = (None::<String>, String::new(), Vec::new(), 0);
    for (i, block) in blocks.into_iter().enumerate() {
        let mut block = Fields::of(block, &format!("{path}[{i}]"))?;
        match (role.as_str(), block.string("type")?) {
            (_, Some("text")) => *content.get_or_insert_default() += block.required_string("text")?,
            ("user", Some("tool_result")) => {
                let id = block.required_string("tool_use_id")?.to_owned();
                let name = block.name("content");
                let result = block.take("content").map_or(Ok(String::new()), |content| text(content, &name))?;
                out.push(json!({"role": "tool", "tool_call_id": id, "content": result}));
                results += 1;
            }
            ("assistant", Some("tool_use")) => {
                let name = block.required_string("name")?.to_owned();
                let id = block.required_string("id")?.to_owned();
                let input = block.take_object("input")?.unwrap_or_default();
                calls.push(json!({"id": id, "type": "function", "function": {"name": name, "arguments": input}}));
            }
            ("assistant", Some("thinking")) => thinking += block.required_string("thinking")?,
            ("assistant", Some("redacted_thinking")) => {}
            (_, other) => {
                return Err(wrong(&block.name("type"), &other.into(), "text, tool_use, tool_result or thinking, where its role has them"));
            }
        }
    }
    if content.is_none() && (results > 0 && calls.is_empty()) {
        return Ok(());
    }
    let mut message = json!({"role": role, "content": content.unwrap_or_default()});
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    if !thinking.is_empty() {
        message["reasoning_content"] = thinking.into();
    }
    out.push(message);
    Ok(())
}

fn read_tool(tool: Value, path: &str) -> Result<Value> {
    let mut tool = Fields::of(tool, path)?;
    tool.only("type", &json!("custom"))?;
    let name = tool.required_string("name")?.to_owned();
    let description = tool.string("description")?.unwrap_or_default().to_owned();
    let strict = tool.bool("strict")?.unwrap_or(false);
    let parameters = tool.take_object("input_schema")?.map_or_else(|| json!({"type": "object"}), Value::from);
    let mut function = json!({"name": name, "description": description, "parameters": parameters});
    if strict {
        function["strict"] = true.into();
    }
    Ok(json!({"type": "function", "function": function}))
}

fn read_tool_choice(choice: Fields, out: &mut Map<String, Value>) -> Result<()> {
    let chosen = match (choice.string("type")?, choice.string("name")?) {
        (Some("auto"), _) => json!("auto"),
        (Some("any"), _) => json!("required"),
        (Some("none"), _) => json!("none"),
        (Some("tool"), Some(name)) => json!({"type": "function", "function": {"name": name}}),
        (other, _) => return Err(wrong("tool_choice.type", &other.into(), "auto, any, none, or tool with a name")),
    };
    out.insert("tool_choice".into(), chosen);
    if choice.bool("disable_parallel_tool_use")?.unwrap_or(false) {
        out.insert("parallel_tool_calls".into(), false.into());
    }
    Ok(())
}
