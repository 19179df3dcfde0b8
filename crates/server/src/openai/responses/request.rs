//! A request of `/v1/responses` in the fields of `/v1/chat/completions`.

use serde_json::{Value, json};

use crate::{
    error::{ApiError, Result},
    fields::{Fields, wrong},
    prompt::read_text,
};

/// Fields that mean the same in both.
const SAME: &[&str] = &[
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "priority",
    "user",
    "ignore_eos",
    "parallel_tool_calls",
    "tool_choice",
    "chat_template_kwargs",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
];

/// # Errors
/// Naming the field that is wrong or not supported.
pub fn chat(fields: &mut Fields) -> Result<Fields> {
    let mut out = fields.take_all(SAME);
    out.extend(fields.take("max_output_tokens").map(|n| ("max_tokens".to_owned(), n)));
    let mut messages = Vec::new();
    if let Some(instructions) = fields.string("instructions")? {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    match fields.take("input") {
        Some(Value::String(text)) => messages.push(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) => {
            for (i, item) in items.into_iter().enumerate() {
                read_item(item, &format!("input[{i}]"), &mut messages)?;
            }
        }
        Some(other) => return Err(wrong("input", &other, "a string or a list of items")),
        None => return Err(ApiError::invalid("input", "`input` is missing: it must be a string or a list of items")),
    }
    out.insert("messages".into(), messages.into());
    if let Some(tools) = fields.take_list("tools", "tools", read_tool)? {
        out.insert("tools".into(), tools.into());
    }
    if let Some(reasoning) = fields.take("reasoning") {
        let reasoning = Fields::of(reasoning, "reasoning")?;
        out.extend(reasoning.string("effort")?.map(|effort| ("reasoning_effort".to_owned(), effort.into())));
    }
    if let Some(text) = fields.take("text") {
        let mut text = Fields::of(text, "text")?;
        text.only("verbosity", &json!("medium"))?;
        if let Some(format) = text.take("format") {
            let mut format = Fields::of(format, "text.format")?;
            let kind = format.required_string("type")?.to_owned();
            let mut format_out = json!({"type": kind});
            if kind == "json_schema" {
                format_out["json_schema"] = json!({
                    "name": format.take("name"), "schema": format.take("schema"), "strict": format.take("strict"),
                });
            }
            out.insert("response_format".into(), format_out);
        }
    }
    fields.take_list("include", "texts", check_include)?;
    if let Some(options) = fields.take("stream_options") {
        Fields::of(options, "stream_options")?.only("include_obfuscation", &json!(false))?;
    }
    Ok(Fields::from(out))
}

/// What a response is to have besides. Most of it belongs to tools of OpenAI's own, which no answer here calls.
fn check_include(wanted: Value, path: &str) -> Result<()> {
    match wanted.as_str() {
        Some("message.output_text.logprobs") => {
            Err(ApiError { code: Some("unsupported_parameter"), ..wrong(path, &wanted, "left out: /v1/chat/completions has `logprobs`") })
        }
        Some(_) => Ok(()),
        None => Err(wrong(path, &wanted, "a string")),
    }
}

/// One item: a message, a call of a tool, or what the tool gave. Calls join the assistant's message in front of them.
fn read_item(item: Value, path: &str, messages: &mut Vec<Value>) -> Result<()> {
    let mut item = Fields::of(item, path)?;
    match item.string("type")? {
        None | Some("message") => {
            // The names of what is wrong are known here.
            let role = item.required_string("role")?.to_owned();
            let content = item.take("content").map(|content| read_text(content, &item.name("content"))).transpose()?;
            messages.push(json!({"role": role, "content": content}));
        }
        Some("function_call") => {
            let (id, name, arguments) =
                (item.required_string("call_id")?, item.required_string("name")?, item.required_string("arguments")?);
            let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
            match messages.last_mut().filter(|m| m["role"] == "assistant") {
                Some(message) => match message["tool_calls"].as_array_mut() {
                    Some(calls) => calls.push(call),
                    None => message["tool_calls"] = json!([call]),
                },
                None => messages.push(json!({"role": "assistant", "content": "", "tool_calls": [call]})),
            }
        }
        Some("function_call_output") => {
            let (id, output) = (item.required_string("call_id")?.to_owned(), item.take("output").unwrap_or_default());
            let output = read_text(output, &item.name("output"))?;
            messages.push(json!({"role": "tool", "tool_call_id": id, "content": output}));
        }
        // Templates leave earlier reasoning out.
        Some("reasoning") => {}
        Some("item_reference") => {
            let message = "nothing is stored here, so items must be sent whole; clients do that when they are told `store: false`";
            return Err(ApiError::invalid(item.name("type"), message));
        }
        other => {
            return Err(wrong(&item.name("type"), &other.into(), "message, function_call, function_call_output or reasoning"));
        }
    }
    Ok(())
}

fn read_tool(tool: Value, path: &str) -> Result<Value> {
    let mut tool = Fields::of(tool, path)?;
    if tool.string("type")? != Some("function") {
        return Err(ApiError::invalid(tool.name("type"), "only tools of type `function` are supported"));
    }
    tool.required_string("name")?;
    let parameters = tool.take_object("parameters")?.map(Value::from);
    let mut function = tool.take_all(&["name", "description", "strict"]);
    function.extend(parameters.map(|schema| ("parameters".to_owned(), schema)));
    Ok(json!({"type": "function", "function": function}))
}
