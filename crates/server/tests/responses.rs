//! `/v1/responses`, over a tiny model on the CPU.

mod common;

use axum::http::StatusCode;
use common::{calling, get, post, send, with};
use serde_json::{Value, json};

#[tokio::test]
async fn a_stream_ends_with_the_whole_response() {
    let router = calling();
    let tools = json!([{"type": "function", "name": "look", "parameters":
        {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"], "additionalProperties": false}}]);
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false});
    for (more, status) in [
        (json!({"max_output_tokens": 12}), "incomplete"),
        (json!({"tools": tools, "tool_choice": "required", "parallel_tool_calls": false}), "completed"),
        (json!({"text": {"format": {"type": "json_schema", "name": "s", "schema": schema}}}), "completed"),
    ] {
        let body = with(json!({"model": "tiny", "input": "the quick", "temperature": 0, "max_output_tokens": 100}), more);
        let (code, mut whole) = post(&router, "/v1/responses", body.clone()).await;
        assert_eq!((code, &whole["status"]), (StatusCode::OK, &json!(status)), "{whole}");

        let (_, text) = send(&router, "/v1/responses", Some(with(body, json!({"stream": true})).to_string().into_bytes())).await;
        let text = String::from_utf8(text).unwrap();
        let data = |event: &str| serde_json::from_str::<Value>(event.split_once("\ndata: ").unwrap().1).unwrap();
        let events: Vec<Value> = text.split("\n\n").filter(|e| !e.is_empty()).map(data).collect();
        for (n, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], n);
        }
        // Deltas build what the response ends with, item by item.
        let mut built: Vec<(Value, String)> = Vec::new();
        for event in &events {
            let kind = event["type"].as_str().unwrap();
            if kind == "response.output_item.added" {
                built.push((event["item"]["type"].clone(), String::new()));
            } else if kind.ends_with(".delta") {
                built.last_mut().unwrap().1 += event["delta"].as_str().unwrap();
            }
        }
        let mut last = events.last().unwrap().clone();
        assert_eq!(last["type"], format!("response.{status}"));
        let shown = |item: &Value| {
            let text = item.pointer("/content/0/text").or_else(|| item.get("arguments")).unwrap();
            (item["type"].clone(), text.as_str().unwrap().to_owned())
        };
        assert_eq!(built, last["response"]["output"].as_array().unwrap().iter().map(shown).collect::<Vec<_>>());
        for response in [&mut whole, &mut last["response"]] {
            for field in ["id", "created_at", "usage"] {
                response[field] = Value::Null;
            }
            for item in response["output"].as_array_mut().unwrap() {
                (item["id"], item["call_id"]) = (Value::Null, Value::Null);
            }
        }
        assert_eq!(whole, last["response"]);
    }
}

/// Routers ask for it on their own, so it is no error; and what is not done is not said to have been.
#[tokio::test]
async fn nothing_is_stored_whoever_asks_for_it() {
    let router = calling();
    for more in [json!({}), json!({"store": true}), json!({"store": false}), json!({"store": null})] {
        let body = with(json!({"model": "tiny", "input": "a", "max_output_tokens": 2}), more);
        let (code, response) = post(&router, "/v1/responses", body.clone()).await;
        assert_eq!((code, &response["store"]), (StatusCode::OK, &json!(false)), "{body}: {response}");
        let (code, _) = get(&router, &format!("/v1/responses/{}", response["id"].as_str().unwrap())).await;
        assert_eq!(code, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn conversations_go_on_without_state() {
    let router = calling();
    let input = json!([
        {"role": "user", "content": [{"type": "input_text", "text": "go"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{\"n\": 1}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "done"},
    ]);
    let body = json!({"model": "tiny", "instructions": "short", "input": input, "max_output_tokens": 3, "temperature": 0});
    let (code, response) = post(&router, "/v1/responses", body).await;
    assert_eq!((code, &response["instructions"]), (StatusCode::OK, &json!("short")), "{response}");
    let chat = json!({"model": "tiny", "max_tokens": 3, "temperature": 0, "messages": [
        {"role": "system", "content": "short"}, {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{\"n\": 1}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]});
    let (_, chat) = post(&router, "/v1/chat/completions", chat).await;
    assert_eq!(response["output"][0]["content"][0]["text"], chat["choices"][0]["message"]["content"]);
    assert_eq!(response["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);

    for (more, param) in [
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"store": "yes"}), "store"),
        (json!({"input": [{"type": "item_reference", "id": "msg_1"}]}), "input[0].type"),
        (json!({"background": true}), "background"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"input": [{"type": "image"}]}), "input[0].type"),
        (json!({"input": 3}), "input"),
    ] {
        let (code, error) = post(&router, "/v1/responses", with(json!({"model": "tiny", "input": "a"}), more)).await;
        assert_eq!((code, &error["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(param)), "{error}");
    }
}
