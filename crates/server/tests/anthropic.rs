//! `/v1/messages`, over a tiny model on the CPU.

mod common;

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use common::{calling, load, loaded, post, send, server, with};
use ferrum_server::{KeyLimits, Keys};
use serde_json::{Value, json};
use tower::ServiceExt;

fn question(content: Value) -> Value {
    json!({"model": "tiny", "max_tokens": 24, "temperature": 0, "messages": [{"role": "user", "content": content}]})
}

/// The events of a stream, each named as its data says.
async fn events(router: &axum::Router, body: Value) -> Vec<Value> {
    let (status, body) = send(router, "/v1/messages", Some(body.to_string().into_bytes())).await;
    assert_eq!(status, StatusCode::OK);
    let text = String::from_utf8(body).unwrap();
    let event = |event: &str| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        data
    };
    text.split("\n\n").filter(|e| !e.is_empty()).map(event).collect()
}

/// The message that a client builds of the events.
fn built(events: &[Value]) -> Value {
    let mut message = Value::Null;
    for event in events {
        let index = event["index"].as_u64().unwrap_or_default() as usize;
        match event["type"].as_str().unwrap() {
            "message_start" => message = event["message"].clone(),
            "content_block_start" => message["content"].as_array_mut().unwrap().push(event["content_block"].clone()),
            "content_block_delta" => {
                let (block, delta) = (&mut message["content"][index], &event["delta"]);
                let (field, more) = match delta["type"].as_str().unwrap() {
                    "text_delta" => ("text", &delta["text"]),
                    "thinking_delta" => ("thinking", &delta["thinking"]),
                    "input_json_delta" => ("partial", &delta["partial_json"]),
                    other => panic!("{other}"),
                };
                block[field] = format!("{}{}", block[field].as_str().unwrap_or_default(), more.as_str().unwrap()).into();
            }
            "content_block_stop" => {
                let block = &mut message["content"][index];
                if let Some(input) = block.as_object_mut().unwrap().remove("partial") {
                    block["input"] = serde_json::from_str(input.as_str().unwrap()).unwrap();
                }
            }
            "message_delta" => {
                message["stop_reason"] = event["delta"]["stop_reason"].clone();
                message["stop_sequence"] = event["delta"]["stop_sequence"].clone();
                message["usage"] = event["usage"].clone();
            }
            "message_stop" | "ping" => {}
            other => panic!("{other}"),
        }
    }
    message
}

#[tokio::test]
async fn a_stream_builds_the_whole_message() {
    let router = calling();
    let tools = json!([{"name": "look", "description": "Looks", "input_schema":
        {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"], "additionalProperties": false}}]);
    for (more, stop_reason) in [
        (json!({}), "max_tokens"),
        (json!({"system": [{"type": "text", "text": "short"}], "max_tokens": 3}), "max_tokens"),
        (json!({"tools": tools, "tool_choice": {"type": "any", "disable_parallel_tool_use": true}, "max_tokens": 100}), "tool_use"),
        (
            json!({"tools": tools, "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": true}, "max_tokens": 100}),
            "tool_use",
        ),
        (json!({"tools": tools, "tool_choice": {"type": "none"}}), "max_tokens"),
    ] {
        let body = with(question("the quick".into()), more.clone());
        let (status, mut whole) = post(&router, "/v1/messages", body.clone()).await;
        assert_eq!((status, &whole["stop_reason"]), (StatusCode::OK, &json!(stop_reason)), "{more} {whole}");
        let events = events(&router, with(body, json!({"stream": true}))).await;
        assert_eq!((&events[0]["type"], &events.last().unwrap()["type"]), (&json!("message_start"), &json!("message_stop")));
        let mut built = built(&events);
        // Ids differ, and the second request finds the first one's prompt in the cache.
        for message in [&mut whole, &mut built] {
            message["id"] = Value::Null;
            message["usage"] = message["usage"]["output_tokens"].clone();
            message["content"].as_array_mut().unwrap().iter_mut().for_each(|block| drop(block.as_object_mut().unwrap().remove("id")));
        }
        assert_eq!(whole, built);
        if stop_reason == "tool_use" {
            assert_eq!(whole["content"][0]["name"], "look");
            assert!((0..=9).contains(&whole["content"][0]["input"]["n"].as_i64().unwrap()), "{whole}");
        }
    }
}

/// Anthropic's SDKs read the id of a request from their own header, and from errors.
#[tokio::test]
async fn requests_have_their_id_where_anthropic_has_it() {
    let (_app, router) = loaded();
    for (model, status) in [("tiny", StatusCode::OK), ("other", StatusCode::NOT_FOUND)] {
        let body = with(question("the quick".into()), json!({"model": model}));
        let response = router.clone().oneshot(Request::post("/v1/messages").body(Body::from(body.to_string())).unwrap()).await.unwrap();
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        let (id, theirs) = (header("x-request-id"), header("request-id"));
        assert_eq!((response.status(), &id), (status, &theirs));
        let body: Value = serde_json::from_slice(&axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap()).unwrap();
        assert_eq!(body["type"] == "error", body["request_id"] == theirs, "{body}");
    }
}

#[tokio::test]
async fn stop_sequences_are_named_and_conversations_with_tools_are_counted() {
    let router = calling();
    let (_, whole) = post(&router, "/v1/messages", question("the quick".into())).await;
    let text = whole["content"][0]["text"].as_str().unwrap();
    let stop: String = text.chars().skip(4).take(3).collect();
    let (_, cut) = post(&router, "/v1/messages", with(question("the quick".into()), json!({"stop_sequences": [stop]}))).await;
    assert_eq!((&cut["stop_reason"], &cut["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    assert!(text.starts_with(cut["content"].pointer("/0/text").map_or("", |t| t.as_str().unwrap())));

    let conversation = json!({"model": "tiny", "max_tokens": 4, "tools": [{"name": "look", "input_schema": {"type": "object"}}], "messages": [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "so"},
            {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"n": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "done"}]},
            {"type": "text", "text": "and?"}]},
    ]});
    let (status, counted) = post(&router, "/v1/messages/count_tokens", conversation.clone()).await;
    assert_eq!(status, StatusCode::OK, "{counted}");
    let (status, answer) = post(&router, "/v1/messages", conversation).await;
    let usage = &answer["usage"];
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(
        counted["input_tokens"].as_u64(),
        Some(usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap())
    );
}

#[tokio::test]
async fn answers_follow_the_schema_of_output_config() {
    let (_app, router) = loaded();
    let schema = json!({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false});
    let config = |schema: &Value| json!({"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": schema}}});
    let body = with(with(question("the quick".into()), config(&schema)), json!({"max_tokens": 100}));
    let (status, answer) = post(&router, "/v1/messages", body).await;
    assert_eq!((status, &answer["stop_reason"]), (StatusCode::OK, &json!("end_turn")), "{answer}");
    let object: Value = serde_json::from_str(answer["content"][0]["text"].as_str().unwrap()).unwrap();
    assert!([1, 2].contains(&object["n"].as_i64().unwrap()), "{answer}");
    // What coding clients send beside reasoning.
    let keeping = json!({"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}});
    assert_eq!(post(&router, "/v1/messages", with(question("the quick".into()), keeping)).await.0, StatusCode::OK);
    for (more, part) in [
        (config(&json!({"type": "nothing"})), "output_config.format.schema"),
        (config(&json!([])), "output_config.format.schema"),
        (json!({"output_config": {"format": {"type": "json_schema"}}}), "output_config.format.schema"),
        (json!({"output_config": {"format": {"type": "regex"}}}), "output_config.format.type"),
        (json!({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}), "context_management.edits[0].type"),
        (json!({"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}}), "context_management.edits[0].keep"),
        (json!({"context_management": {"edits": [{"type": null, "keep": "all"}]}}), "context_management.edits[0].type"),
        (json!({"stop_sequences": vec!["a"; 65]}), "stop_sequences"),
    ] {
        let (status, error) = post(&router, "/v1/messages", with(question("a".into()), more.clone())).await;
        assert_eq!((status, &error["error"]["type"]), (StatusCode::BAD_REQUEST, &json!("invalid_request_error")), "{more} {error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(part), "{error}");
    }
}

#[tokio::test]
async fn errors_have_anthropics_shape() {
    let (_app, router) = loaded();
    for (body, status, kind, part) in [
        (json!({"model": "tiny", "messages": []}), 400, "invalid_request_error", "max_tokens"),
        (json!({"model": "other", "max_tokens": 1, "messages": []}), 404, "not_found_error", "other"),
        (question(json!([{"type": "image", "source": {}}])), 400, "invalid_request_error", "messages[0].content[0].type"),
        (with(question("a".into()), json!({"tool_choice": {"type": "some"}})), 400, "invalid_request_error", "tool_choice"),
        (with(question("a".into()), json!({"mcp_servers": []})), 400, "invalid_request_error", "mcp_servers"),
        (with(question("a".into()), json!({"temperature": -1})), 400, "invalid_request_error", "temperature"),
    ] {
        let (got, error) = post(&router, "/v1/messages", body.clone()).await;
        assert_eq!((got.as_u16(), &error["type"], &error["error"]["type"]), (status, &json!("error"), &json!(kind)), "{body} {error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(part), "{error}");
    }
    let (app, router) = server(Keys::new(vec!["secret".into()], KeyLimits::default()).unwrap());
    load(&app);
    let (status, error) = post(&router, "/v1/messages", question("a".into())).await;
    assert_eq!((status, &error["error"]["type"]), (StatusCode::UNAUTHORIZED, &json!("authentication_error")));
    let request = Request::post("/v1/messages").header("x-api-key", "secret").body(Body::from(question("a".into()).to_string())).unwrap();
    assert_eq!(router.oneshot(request).await.unwrap().status(), StatusCode::OK);
}
