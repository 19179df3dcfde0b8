//! Tools for models whose template knows none: the prompt says what there is and how to call it, and calls and results that are
//! part of the conversation become plain messages.

use std::collections::HashMap;

use serde_json::{Value, json};

/// The conversation without tool calls and results, with `tools` explained at its beginning.
pub fn in_messages(messages: &[Value], tools: &[Value]) -> Vec<Value> {
    let mut plain: Vec<Value> = Vec::with_capacity(messages.len());
    // Names by ids of calls
    let mut names: HashMap<&str, &str> = HashMap::new();
    let mut behind_result = false;
    for message in messages {
        let text = message["content"].as_str().unwrap_or_default();
        let calls = message["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
        names.extend(calls.iter().filter_map(|call| Some((call["id"].as_str()?, name_of(call)))));
        match message["role"].as_str().unwrap_or_default() {
            "tool" => {
                let id = message["tool_call_id"].as_str().unwrap_or_default();
                let name = names.get(id).copied().or(message["name"].as_str()).unwrap_or("the function");
                user(&mut plain, &format!("{name} returned:\n{text}"), behind_result);
                behind_result = true;
                continue;
            }
            "user" if behind_result => user(&mut plain, text, true),
            "assistant" if !calls.is_empty() => {
                let lines = calls.iter().map(|call| call_line(name_of(call), &call["function"]["arguments"]));
                let front = Some(text.to_owned()).filter(|text| !text.is_empty());
                let text = front.into_iter().chain(lines).collect::<Vec<_>>().join("\n");
                plain.push(json!({"role": "assistant", "content": text}));
            }
            _ => plain.push(message.clone()),
        }
        behind_result = false;
    }
    if !tools.is_empty() {
        put_in_front(&mut plain, &explanation(tools));
    }
    plain
}

fn name_of(call: &Value) -> &str {
    call["function"]["name"].as_str().unwrap_or_default()
}

/// A call in the form that [`explanation`] asks for.
fn call_line(name: &str, arguments: &Value) -> String {
    json!({"name": name, "parameters": arguments}).to_string()
}

/// Adds a message of the user. Templates want roles to alternate, so one behind a result goes on with its message.
fn user(plain: &mut Vec<Value>, text: &str, joined: bool) {
    match plain.last_mut().and_then(|last| last.get_mut("content")) {
        // In place: there may be any number of results.
        Some(Value::String(content)) if joined => {
            content.push_str("\n\n");
            content.push_str(text);
        }
        _ => plain.push(json!({"role": "user", "content": text})),
    }
}

/// In front of the system message, or of the user's first where there is none: not every template takes a system message.
fn put_in_front(plain: &mut Vec<Value>, text: &str) {
    match plain.first_mut() {
        Some(first) if first["role"] != "assistant" => {
            first["content"] = format!("{text}\n\n{}", first["content"].as_str().unwrap_or_default()).into();
        }
        _ => plain.insert(0, json!({"role": "user", "content": text})),
    }
}

fn explanation(tools: &[Value]) -> String {
    let functions: Vec<String> = tools.iter().map(|tool| tool["function"].to_string()).collect();
    let form = call_line("NAME", &json!({"ARGUMENT": "VALUE"}));
    format!(
        "Functions you can call, with the JSON schema of their parameters:\n{}\nTo call some, answer with nothing but JSON, one line for \
         each call: {form}\nYou are told then what they return. Where none helps, answer in words.",
        functions.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_with_tools_become_plain_and_keep_alternating() {
        let tool = json!({"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}});
        let call = |id: &str, name: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": {"a": 1}}});
        let messages = [
            json!({"role": "user", "content": "Hi"}),
            json!({"role": "assistant", "content": null, "tool_calls": [call("1", "now"), call("2", "then")]}),
            json!({"role": "tool", "content": "12:00", "tool_call_id": "1"}),
            json!({"role": "tool", "content": "13:00", "tool_call_id": "2"}),
            json!({"role": "user", "content": "And?"}),
            json!({"role": "assistant", "content": "Noon."}),
            json!({"role": "user", "content": "Thanks"}),
        ];
        let plain = in_messages(&messages, std::slice::from_ref(&tool));
        let roles: Vec<&str> = plain.iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["user", "assistant", "user", "assistant", "user"]);
        let first = plain[0]["content"].as_str().unwrap();
        assert!(first.contains(&tool["function"].to_string()) && first.ends_with("\n\nHi"), "{first}");
        let calls = "{\"name\":\"now\",\"parameters\":{\"a\":1}}\n{\"name\":\"then\",\"parameters\":{\"a\":1}}";
        assert_eq!(plain[1], json!({"role": "assistant", "content": calls}));
        assert_eq!(plain[2]["content"], "now returned:\n12:00\n\nthen returned:\n13:00\n\nAnd?");
        assert_eq!(in_messages(&messages[..1], &[]), messages[..1]);
    }
}
