//! `/openapi.json` says what the server does: its routes, the fields they take, the ranges of these, and what is refused. That
//! nothing else is read is checked where fields are read, in debug builds. Schemathesis tests the rest, nightly.

mod common;

use axum::http::StatusCode;
use common::{calling, get, loaded, post, send, with};
use serde_json::{Value, json};

async fn document(router: &axum::Router) -> Value {
    serde_json::from_str(&get(router, "/openapi.json").await.1).unwrap()
}

/// Requests that are taken, for every POST.
fn valid(path: &str) -> Value {
    let messages = json!([{"role": "user", "content": "x"}]);
    match path {
        "/v1/chat/completions" | "/tokenize" | "/v1/messages/count_tokens" => json!({"messages": messages}),
        "/v1/messages" => json!({"messages": messages, "max_tokens": 1}),
        "/v1/completions" => json!({"prompt": "x"}),
        "/v1/embeddings" | "/v1/responses" => json!({"input": "x"}),
        "/detokenize" => json!({"tokens": [5]}),
        other => panic!("{other} has no example"),
    }
}

#[tokio::test]
async fn every_route_is_in_the_document() {
    let (_app, router) = loaded();
    let document = document(&router).await;
    let paths = document["paths"].as_object().unwrap();
    let source = include_str!("../src/routes.rs");
    let served: Vec<String> =
        source.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap().replace("{*name}", "{name}")).collect();
    let documented: Vec<&str> = paths.keys().map(String::as_str).collect();
    for path in &served {
        assert!(documented.contains(&path.as_str()), "{path} is served and not in the document");
    }
    for path in documented {
        assert!(served.iter().any(|served| served == path), "{path} is in the document and not served");
        if paths[path].get("get").is_none() {
            assert_eq!(get(&router, path).await.0, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        } else if !path.ends_with("kv_events") {
            assert_eq!(get(&router, &path.replace("{name}", "tiny")).await.0, StatusCode::OK, "{path}");
        }
    }
}

/// A value that no field of this schema takes, and its bounds' neighbours.
fn wrong(schema: &Value) -> Vec<Value> {
    let mut wrong = vec![if schema["type"] == json!(["boolean", "null"]) { json!("x") } else { json!(true) }];
    let integer = schema["type"][0] == "integer";
    for (bound, by) in [("minimum", -1.0), ("maximum", 1.0)] {
        match &schema[bound] {
            Value::Number(n) if integer => wrong.extend(n.as_i64().unwrap().checked_add(by as i64).map(Value::from)),
            Value::Number(n) => wrong.push((n.as_f64().unwrap() + by).into()),
            _ => {}
        }
    }
    wrong
}

#[tokio::test]
async fn every_field_is_read_and_its_range_holds() {
    let (_app, router) = loaded();
    let document = document(&router).await;
    let mut bad = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let Some(body) = methods.pointer("/post/requestBody/content/application~1json/schema") else { continue };
        let (status, answer) = post(&router, path, valid(path)).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        for (field, schema) in body["properties"].as_object().unwrap() {
            for value in wrong(schema) {
                let (status, answer) = post(&router, path, with(valid(path), json!({field: value}))).await;
                let error = &answer["error"];
                let named = match error["param"].as_str() {
                    Some(param) => param.starts_with(field.as_str()),
                    None => error["message"].as_str().unwrap_or_default().contains(field.as_str()),
                };
                let refused = status == StatusCode::BAD_REQUEST || field == "model" && status == StatusCode::NOT_FOUND;
                if !(refused && named) {
                    bad.push(format!("{path}: {field} = {value}: {status} {answer}"));
                }
            }
            let with_null = with(valid(path), json!({field: null}));
            let required = body["required"].as_array().unwrap().contains(&json!(field));
            let expected = if required || path == "/tokenize" && field == "messages" { StatusCode::BAD_REQUEST } else { StatusCode::OK };
            let (status, answer) = post(&router, path, with_null).await;
            if status != expected {
                bad.push(format!("{path}: {field} = null: {status} {answer}"));
            }
        }
        let (status, answer) = send(&router, path, Some(b"[]".to_vec())).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {}", String::from_utf8_lossy(&answer));
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Bodies that were taken until Schemathesis sent them, or refused in another field's name.
#[tokio::test]
async fn what_is_wrong_deeper_down_is_named() {
    let router = calling();
    let block = |block: Value| json!({"messages": [{"role": "assistant", "content": [block]}]});
    let function = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    for (path, more, param) in [
        ("/v1/chat/completions", block(json!({"type": "text"})), "messages[0].content[0].text"),
        ("/v1/chat/completions", function(json!({"name": "f", "parameters": []})), "tools[0].function.parameters"),
        ("/v1/chat/completions", function(json!({"name": "f", "description": 1})), "tools[0].function.description"),
        ("/v1/messages", json!({"system": [{"type": "text", "text": null}]}), "system[0].text"),
        ("/v1/messages", block(json!({"type": "tool_use", "id": "t", "name": "f", "input": 1})), "messages[0].content[0].input"),
        ("/v1/messages/count_tokens", json!({"tools": [{"name": "f", "input_schema": [null]}]}), "tools[0].input_schema"),
        ("/v1/responses", json!({"text": {"format": {"schema": {}}}}), "text.format.type"),
        ("/v1/responses", json!({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}), "input[0].call_id"),
        ("/v1/responses", json!({"tools": [{"type": "function", "name": "f", "parameters": 1}]}), "tools[0].parameters"),
        ("/v1/responses", json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}), "input[0].content[0].type"),
        ("/v1/responses", json!({"input": "the ".repeat(2000)}), "input"),
        ("/v1/responses", json!({"text": {"format": {"type": "json_schema", "schema": {"$ref": "#/no"}}}}), "text.format.schema"),
        ("/v1/responses", json!({"text": {"verbosity": "low"}}), "text.verbosity"),
        ("/v1/responses", json!({"include": ["reasoning.encrypted_content", "message.output_text.logprobs"]}), "include[1]"),
        ("/v1/responses", json!({"include": [1]}), "include[0]"),
        ("/v1/responses", json!({"stream_options": {"include_obfuscation": true}}), "stream_options.include_obfuscation"),
        (
            "/v1/chat/completions",
            json!({"stream": true, "stream_options": {"include_obfuscation": true}}),
            "stream_options.include_obfuscation",
        ),
        ("/v1/chat/completions", json!({"messages": [{"role": "assistant", "content": "x", "tool_calls": "f"}]}), "messages[0].tool_calls"),
        ("/v1/messages", json!({"thinking": {"type": "enabled", "budget_tokens": -1}}), "thinking.budget_tokens"),
        ("/v1/completions", json!({"prompt": "the ".repeat(2000)}), "prompt"),
        ("/v1/embeddings", json!({"input": "the ".repeat(2000)}), "input"),
        ("/tokenize", json!({"prompt": "x"}), "messages"),
    ] {
        let (status, answer) = post(&router, path, with(valid(path), more.clone())).await;
        let error = &answer["error"];
        let named = error["param"] == param || error["message"].as_str().is_some_and(|message| message.contains(param));
        assert!(status == StatusCode::BAD_REQUEST && named, "{path}: {more}: {status} {answer}");
    }
}

/// What clients send that changes no answer, and the only values that are honoured of what would change one.
#[tokio::test]
async fn what_changes_nothing_is_taken() {
    let router = calling();
    let hints = json!({"service_tier": "auto", "safety_identifier": "u", "prompt_cache_key": "k", "prompt_cache_retention": "24h"});
    let thinking = json!({"type": "enabled", "budget_tokens": 1024});
    let marked = json!([{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}]);
    for (path, more) in [
        ("/v1/chat/completions", hints.clone()),
        ("/v1/chat/completions", json!({"verbosity": "medium", "metadata": {"a": "b"}, "store": false, "return_token_ids": false})),
        ("/v1/responses", hints),
        ("/v1/responses", json!({"text": {"verbosity": "medium"}, "include": ["reasoning.encrypted_content"], "background": false})),
        ("/v1/responses", json!({"stream_options": {"include_obfuscation": false}})),
        ("/v1/messages", json!({"messages": marked, "thinking": thinking, "service_tier": "standard_only"})),
        ("/v1/messages/count_tokens", json!({"messages": marked, "thinking": thinking})),
    ] {
        let (status, answer) = post(&router, path, with(valid(path), more.clone())).await;
        assert_eq!(status, StatusCode::OK, "{path}: {more}: {answer}");
    }
}

#[tokio::test]
async fn routers_and_evaluation_harnesses_read_what_they_ask_for() {
    let (_app, router) = loaded();
    let read = async |path| serde_json::from_str::<Value>(&get(&router, path).await.1).unwrap();
    let load = read("/v1/loads").await["loads"][0].clone();
    // 32 blocks of 32 tokens, and room for four requests.
    assert_eq!((&load["max_total_num_tokens"], &load["max_running_requests"]), (&json!(1024), &json!(4)));
    assert_eq!((&load["num_total_reqs"], &load["num_used_tokens"], &load["utilization"]), (&json!(0), &json!(0), &json!(0.0)));
    assert_eq!(read("/get_load").await, json!([{"dp_rank": 0, "num_reqs": 0, "num_waiting_reqs": 0, "num_tokens": 0}]));
    let info = read("/tokenizer_info").await;
    let (_, tokens) = post(&router, "/tokenize", json!({"prompt": info["eos_token"], "add_special_tokens": false})).await;
    assert_eq!(tokens["count"], 1, "{info}: one token is what the harness takes for the end");
    assert!(info["chat_template"].as_str().unwrap().contains("message"), "{info}");
}
