//! Answers that must look like something: grammars in every field that takes one, forced tool calls, biases; and what hostile
//! clients send in these fields (the rows are those of the project's list of hostile inputs).

mod common;

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use common::{Load, get, load_as, load_with, loaded, post, question, server, stream, with};
use ferrum_server::{App, Keys, ToolFormat};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
/// Makes a random model write JSON without the white space that it may write anywhere.
async fn tight(router: &axum::Router) -> Value {
    let mut bias = serde_json::Map::new();
    for text in [" ", "\n", "\t"] {
        let (_, ids) = post(router, "/tokenize", json!({"prompt": text, "add_special_tokens": false})).await;
        bias.insert(ids["tokens"][0].to_string(), json!(-100));
    }
    json!({"logit_bias": bias})
}

/// A template that takes tools, for a tokenizer whose own does not.
const TEMPLATE: &str = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if tools %}{{ tools | length }} tools\n{% endif %}";

/// Asks for what a random model can finish: everything in it is short.
fn ask(more: Value) -> Value {
    let body = json!({"messages": [{"role": "user", "content": "Go"}], "prompt": "Go", "max_tokens": 120, "temperature": 1.0, "seed": 5});
    with(body, more)
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"enum": ["Ann", "Bob \"é\"", "🦀"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
        "$defs": {"tag": {"type": "string", "pattern": "^[a-c]{1,3}$"}},
    })
}

fn assert_valid(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(value.as_object().unwrap().len(), 3, "{text}");
    assert!(["Ann", "Bob \"é\"", "🦀"].contains(&value["name"].as_str().unwrap()), "{text}");
    assert!((0..=150).contains(&value["age"].as_i64().unwrap()), "{text}");
    let tags = value["tags"].as_array().unwrap();
    let short =
        |tag: &Value| (1..=3).contains(&tag.as_str().unwrap().len()) && tag.as_str().unwrap().bytes().all(|b| (b'a'..=b'c').contains(&b));
    assert!(tags.len() <= 2 && tags.iter().all(short), "{text}");
}

fn content(answer: &Value, n: usize) -> (String, String) {
    let choice = &answer["choices"][n];
    let text = choice.pointer("/message/content").or_else(|| choice.get("text")).and_then(Value::as_str);
    (text.unwrap_or_else(|| panic!("{answer}")).to_owned(), choice["finish_reason"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn every_field_shapes_the_answer() {
    let (_app, router) = loaded();
    for path in [CHAT, COMPLETIONS] {
        for (more, ok) in [
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "p", "strict": true, "schema": schema()}}}),
                assert_valid as fn(&str),
            ),
            (json!({"guided_json": schema(), "temperature": 0}), assert_valid),
            (json!({"structured_outputs": {"json": schema()}, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.3}), assert_valid),
            (json!({"guided_regex": "(0|1){4}-[x-z]+!"}), |text| {
                let (bits, rest) = text.split_once('-').unwrap();
                assert!(bits.len() == 4 && bits.bytes().all(|b| b == b'0' || b == b'1') && rest.ends_with('!'), "{text}");
            }),
            (json!({"guided_choice": ["yes", "no", "per\"haps\n"]}), |text| {
                assert!(["yes", "no", "per\"haps\n"].contains(&text), "{text}")
            }),
            (json!({"guided_grammar": "start: \"a\" pair \"z\"\npair: \"(\" pair? \")\""}), |text| {
                let inner = text.strip_prefix('a').and_then(|t| t.strip_suffix('z')).unwrap();
                let half = inner.len() / 2;
                assert_eq!(inner, "(".repeat(half) + &")".repeat(half));
            }),
        ] {
            let body = with(with(ask(json!({"n": 3})), tight(&router).await), more.clone());
            let (status, answer) = post(&router, path, body.clone()).await;
            assert_eq!(status, StatusCode::OK, "{more}: {answer}");
            let parts = stream(&router, path, with(body, json!({"stream": true}))).await;
            for n in 0..3 {
                let (text, reason) = content(&answer, n);
                // A text that the random model did not end in time is the beginning of one.
                if reason == "stop" {
                    ok(&text)
                } else {
                    assert_eq!(reason, "length")
                }
                let of = |p: &&Value| p["choices"][0]["index"] == n;
                let piece = |p: &Value| {
                    p.pointer("/choices/0/delta/content")
                        .or_else(|| p.pointer("/choices/0/text"))
                        .and_then(Value::as_str)
                        .unwrap_or("")
                        .to_owned()
                };
                let streamed: String = parts.iter().filter(of).map(piece).collect();
                assert_eq!(streamed, text, "{more}");
            }
            let ended = (0..3).filter(|&n| content(&answer, n).1 == "stop").count();
            assert!(ended > 0, "{more}: {answer}");
        }
    }
}

#[tokio::test]
async fn answers_end_where_they_are_told_to() {
    let (_app, router) = loaded();
    let (_, cut) = post(&router, CHAT, ask(json!({"guided_json": schema(), "max_tokens": 3}))).await;
    assert_eq!(content(&cut, 0).1, "length");
    let (_, stopped) = post(&router, CHAT, ask(json!({"guided_regex": "abcd", "stop": "c"}))).await;
    assert_eq!(content(&stopped, 0), ("ab".into(), "stop".into()));
    let (_, whole) = post(&router, CHAT, ask(json!({"guided_regex": "abcd", "logprobs": true, "top_logprobs": 3}))).await;
    assert_eq!(content(&whole, 0), ("abcd".into(), "stop".into()));
    // The model's own probabilities, of which a random one has little to give.
    for token in whole["choices"][0]["logprobs"]["content"].as_array().unwrap() {
        assert!(token["logprob"].as_f64().unwrap() < -0.01 && token["top_logprobs"].as_array().unwrap().len() == 3, "{token}");
    }
}

#[tokio::test]
async fn a_bias_moves_the_answer() {
    let (_app, router) = loaded();
    let (_, ids) = post(&router, "/tokenize", json!({"prompt": "x", "add_special_tokens": false})).await;
    let id = ids["tokens"].as_array().unwrap().last().unwrap().to_string();
    for path in [CHAT, COMPLETIONS] {
        let (status, answer) = post(&router, path, ask(json!({"logit_bias": {id.clone(): 100}, "max_tokens": 5}))).await;
        assert_eq!((status, content(&answer, 0).0), (StatusCode::OK, "xxxxx".to_owned()));
        let body = ask(json!({"logit_bias": {id.clone(): -100}, "guided_choice": ["x", "y"], "max_tokens": 5}));
        assert_eq!(content(&post(&router, path, body).await.1, 0).0, "y");
    }
}

fn tools() -> Value {
    let place = json!({"type": "object", "properties": {"city": {"enum": ["Oslo", "Bern"]}, "unit": {"$ref": "#/$defs/u"}}, "required": ["city", "unit"], "additionalProperties": false, "$defs": {"u": {"enum": ["C", "F"]}}});
    json!([
        {"type": "function", "function": {"name": "weather", "description": "…", "parameters": place}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

fn served(format: ToolFormat) -> (std::sync::Arc<App>, axum::Router) {
    let (app, router) = server(Keys::default());
    load_as(&app, Some(format), Some(TEMPLATE));
    (app, router)
}

/// The calls of one choice, each checked against its tool.
fn calls(answer: &Value) -> Vec<String> {
    let choice = &answer["choices"][0];
    let calls = choice["message"]["tool_calls"].as_array().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&Value::Null, &json!("tool_calls")), "{answer}");
    let name = |call: &Value| {
        let name = call["function"]["name"].as_str().unwrap();
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        if name == "weather" {
            assert!(
                ["Oslo", "Bern"].contains(&arguments["city"].as_str().unwrap())
                    && ["C", "F"].contains(&arguments["unit"].as_str().unwrap())
            );
        } else {
            assert_eq!((name, arguments), ("now", json!({})));
        }
        name.to_owned()
    };
    calls.iter().map(name).collect()
}

/// Mistral's templates refuse ids of calls that are not nine characters long, which those of no API are.
#[tokio::test]
async fn ids_of_calls_fit_mistrals_templates() {
    let nemo: Value =
        serde_json::from_str(include_str!("../../models/tests/fixtures/text/chat/mistralai-Mistral-Nemo-Instruct-2407.json")).unwrap();
    let template = nemo["template"].as_str().unwrap().replace("bos_token", "''").replace("eos_token", "''");
    let (app, router) = server(Keys::default());
    load_as(&app, Some(ToolFormat::Mistral), Some(&template));
    let text = async |id: &str, answered: &str| {
        let call = json!({"id": id, "type": "function", "function": {"name": "now", "arguments": "{}"}});
        let messages = json!([{"role": "user", "content": "go"}, {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": answered, "content": "noon"}]);
        let (status, tokens) = post(&router, "/tokenize", json!({"messages": messages, "tools": tools()})).await;
        assert_eq!(status, StatusCode::OK, "{tokens}");
        let (_, text) = post(&router, "/detokenize", json!({"tokens": tokens["tokens"]})).await;
        text["prompt"].as_str().unwrap().to_owned()
    };
    let ids = |text: &str| {
        let after = |mark: &str| text.split_once(mark).unwrap().1.split_once('"').unwrap().0.to_owned();
        (after(", \"id\": \""), after("\"call_id\": \""))
    };
    let (called, answered) = ids(&text("call-18eb67eb3fc16c58-0-0", "call-18eb67eb3fc16c58-0-0").await);
    assert!(called == answered && called.len() == 9 && called.bytes().all(|b| b.is_ascii_alphanumeric()), "{called} {answered}");
    let (called, answered) = ids(&text("call-18eb67eb3fc16c58-0-0", "call-18eb67eb3fc16c58-0-1").await);
    assert_ne!(called, answered);
    assert_eq!(ids(&text("a1b2c3d4e", "a1b2c3d4e").await), ("a1b2c3d4e".into(), "a1b2c3d4e".into()), "theirs stay");
}

/// The first revisions of Mistral's templates tell messages with calls by whether they have the key.
#[tokio::test]
async fn a_message_without_calls_has_no_key_of_calls() {
    let (app, router) = server(Keys::default());
    let template = "{% for m in messages %}{% if m.tool_calls is defined %}[{{ m.tool_calls | length }} calls]{% else %}{{ m.content }}{% endif %};{% endfor %}";
    load_as(&app, Some(ToolFormat::Mistral), Some(template));
    let call = json!({"id": "call-1", "type": "function", "function": {"name": "now", "arguments": "{}"}});
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "go"}, {"role": "assistant", "tool_calls": [call]}]);
    let (status, tokens) = post(&router, "/tokenize", json!({"messages": messages})).await;
    assert_eq!(status, StatusCode::OK, "{tokens}");
    let (_, text) = post(&router, "/detokenize", json!({"tokens": tokens["tokens"]})).await;
    assert_eq!(text["prompt"], "hi;hello;go;[1 calls];");
}

#[tokio::test]
async fn calls_are_forced_in_every_form() {
    for format in [ToolFormat::Hermes, ToolFormat::Mistral, ToolFormat::Llama3, ToolFormat::FunctionGemma] {
        let (_app, router) = served(format);
        let (mut seen, mut several) = (Vec::new(), 0);
        for seed in 0..6 {
            let more = json!({"tools": tools(), "tool_choice": "required", "seed": seed, "parallel_tool_calls": seed % 2 == 0});
            let body = with(ask(more), tight(&router).await);
            let (status, answer) = post(&router, CHAT, body.clone()).await;
            assert_eq!(status, StatusCode::OK, "{answer}");
            if answer["choices"][0]["finish_reason"] == "length" {
                // Several calls have no end that the random model must come to.
                assert_eq!(seed % 2, 0, "{answer}");
                continue;
            }
            let calls = calls(&answer);
            several += usize::from(calls.len() > 1);
            assert!(seed % 2 == 0 || calls.len() == 1, "{answer}");
            seen.extend(calls);
            let parts = stream(&router, CHAT, with(body, json!({"stream": true}))).await;
            let streamed: String =
                parts.iter().filter_map(|p| p.pointer("/choices/0/delta/tool_calls/0/function/arguments")?.as_str()).collect();
            let whole = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap().iter();
            assert_eq!(streamed, whole.map(|c| c["function"]["arguments"].as_str().unwrap()).collect::<String>());
        }
        assert!(seen.len() >= 3 && (format != ToolFormat::Llama3 || several == 0), "{format:?}: {seen:?}");
        for name in ["weather", "now"] {
            let only = json!({"type": "function", "function": {"name": name}});
            let more = json!({"tools": tools(), "tool_choice": only, "parallel_tool_calls": false});
            let body = with(ask(more), tight(&router).await);
            assert_eq!(calls(&post(&router, CHAT, body).await.1), [name], "{format:?}");
        }
    }
}

/// A template that knows nothing of tools gets them, calls and results as plain messages.
#[tokio::test]
async fn models_without_tools_of_their_own_are_told_of_them() {
    let (app, router) = server(Keys::default());
    load_as(&app, Some(ToolFormat::Json), Some("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"));
    let messages = json!([
        {"role": "user", "content": "Go"},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "12:00"},
    ]);
    let (_, plain) = post(&router, "/tokenize", json!({"messages": messages})).await;
    let (_, text) = post(&router, "/detokenize", json!({"tokens": plain["tokens"]})).await;
    let want = "user: Go\nassistant: {\"name\":\"now\",\"parameters\":{}}\nuser: now returned:\n12:00\n";
    assert!(text["prompt"].as_str().unwrap().ends_with(want), "{text}");
    let tools = json!([{"type": "function", "function": {"name": "now"}}]);
    let (_, told) = post(&router, "/tokenize", json!({"messages": [{"role": "user", "content": "Go"}], "tools": tools})).await;
    let (_, text) = post(&router, "/detokenize", json!({"tokens": told["tokens"]})).await;
    assert!(text["prompt"].as_str().unwrap().contains("{\"name\":\"now\"}\n"), "{text}");
    let forced = json!({"tools": tools, "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 36});
    assert_eq!(calls(&post(&router, CHAT, with(ask(forced), tight(&router).await)).await.1), ["now"]);
}

/// FunctionGemma's calls are no JSON; what is in them follows the schema all the same, at every depth.
#[tokio::test]
async fn nested_arguments_are_forced_in_every_form() {
    let parameters = json!({
        "type": "object",
        "properties": {
            "to": {"type": "object", "properties": {"y": {"$ref": "#/$defs/digit"}, "x": {"$ref": "#/$defs/digit"}}, "required": ["x", "y"], "additionalProperties": false},
            "by": {"type": "array", "items": {"enum": ["air", "sea"]}, "minItems": 1, "maxItems": 2},
        },
        "required": ["to", "by"],
        "additionalProperties": false,
        "$defs": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
    });
    let tools = json!([{"type": "function", "function": {"name": "go", "parameters": parameters}}]);
    for format in [ToolFormat::Hermes, ToolFormat::FunctionGemma] {
        let (_app, router) = served(format);
        for seed in 0..4 {
            let more = json!({"tools": tools, "tool_choice": "required", "seed": seed, "parallel_tool_calls": false});
            let (status, answer) = post(&router, CHAT, with(ask(more), tight(&router).await)).await;
            assert_eq!(status, StatusCode::OK, "{answer}");
            let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
            let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
            let digit = |name: &str| arguments["to"][name].as_u64().is_some_and(|n| n < 10);
            assert!(call["name"] == "go" && digit("x") && digit("y"), "{format:?}: {answer}");
            let by = arguments["by"].as_array().unwrap();
            assert!((1..=2).contains(&by.len()) && by.iter().all(|v| v == "air" || v == "sea"), "{format:?}: {answer}");
        }
    }
}

/// Where nothing is forced, a model that opens a call to a strict tool gets its arguments from the schema, and says what it
/// wants else.
#[tokio::test]
async fn strict_tools_have_valid_arguments_when_they_are_called() {
    let (_app, router) = served(ToolFormat::Llama3);
    let mut strict = tools();
    strict[0]["function"]["strict"] = json!(true);
    let (_, ids) = post(&router, "/tokenize", json!({"prompt": "{", "add_special_tokens": false})).await;
    let opened = with(ask(json!({"tools": strict, "tool_choice": "auto"})), tight(&router).await);
    let mut opened = opened;
    opened["logit_bias"][ids["tokens"][0].to_string()] = json!(100);
    // The bias opens the call; then it is in the way of nothing that the grammar forbids.
    let (status, answer) = post(&router, CHAT, opened.clone()).await;
    assert_eq!((status, calls(&answer).len()), (StatusCode::OK, 1), "{answer}");
    // Without `strict` the same model writes braces without end.
    opened["tools"] = tools();
    let (_, answer) = post(&router, CHAT, opened).await;
    assert_eq!(answer["choices"][0]["message"].get("tool_calls"), None, "{answer}");
    let (status, answer) = post(&router, CHAT, ask(json!({"tools": strict, "max_tokens": 8}))).await;
    assert_eq!(status, StatusCode::OK);
    assert_ne!(content(&answer, 0).0, "", "{answer}");
    // What the answer must look like wins over what calls must look like.
    let (_, answer) = post(&router, CHAT, ask(json!({"tools": strict, "guided_choice": ["yes"]}))).await;
    assert_eq!(content(&answer, 0).0, "yes");
    // A schema that cannot be followed is refused, as it is where a call is forced.
    strict[0]["function"]["parameters"] = json!({"type": "strange"});
    let (status, answer) = post(&router, CHAT, ask(json!({"tools": strict}))).await;
    assert_eq!((status, &answer["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("tools")), "{answer}");
}

/// A copy of the tiny model whose tokenizer has the marks of reasoning as tokens, as those of models that think have.
fn thinking_model(name: &str) -> std::path::PathBuf {
    let original = Load::default().folder;
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer_config.json"] {
        std::fs::copy(original.join(name), folder.join(name)).unwrap();
    }
    let text = std::fs::read_to_string(original.join("tokenizer.json")).unwrap();
    let text = text.replace("<|im_start|>", "<think>").replace("<|im_end|>", "</think>");
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    for token in &mut tokenizer["added_tokens"].as_array_mut().unwrap()[2..] {
        token["special"] = json!(false);
    }
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

#[tokio::test]
async fn tokens_of_reasoning_are_counted() {
    for (template, reasons) in [(TEMPLATE.to_owned(), false), (format!("{TEMPLATE}<think>\n"), true)] {
        let (app, router) = server(Keys::default());
        load_with(&app, Load { folder: thinking_model("counting"), template: Some(&template), ..Load::default() });
        let mut body = json!({"max_tokens": 9, "ignore_eos": true, "logit_bias": {}, "n": 2, "seed": 3, "temperature": 1});
        for mark in ["<think>", "</think>"] {
            let (_, ids) = post(&router, "/tokenize", json!({"prompt": mark, "add_special_tokens": false})).await;
            body["logit_bias"][ids["tokens"][0].to_string()] = json!(-100);
        }
        let (_, answer) = post(&router, CHAT, with(question("a"), body.clone())).await;
        let (usage, expected) = (&answer["usage"], if reasons { 18 } else { 0 });
        assert_eq!((&usage["completion_tokens"], &usage["completion_tokens_details"]["reasoning_tokens"]), (&json!(18), &json!(expected)));
        let body = json!({"input": "a", "max_output_tokens": 9, "ignore_eos": true, "logit_bias": body["logit_bias"]});
        let (_, answer) = post(&router, "/v1/responses", body).await;
        assert_eq!(answer["usage"]["output_tokens_details"]["reasoning_tokens"], expected / 2, "{answer}");
    }
}

/// Whoever thinks before it calls a strict tool does not get around its schema; nor does a forced call, where the prompt has opened
/// the reasoning.
#[tokio::test]
async fn strict_calls_behind_reasoning_are_valid() {
    let folder = thinking_model("thinking");
    let thinks = |template: &str| {
        let (app, router) = server(Keys::default());
        load_with(
            &app,
            Load { folder: folder.clone(), tool_format: Some(ToolFormat::Llama3), template: Some(template), ..Load::default() },
        );
        (app, router)
    };
    let (_app, router) = thinks(TEMPLATE);
    let loose = json!([tools()[0]]);
    let mut strict = loose.clone();
    strict[0]["function"]["strict"] = json!(true);
    // It writes braces and marks of reasoning, and what a grammar makes it write. It likes to close what it has not opened.
    let mut body = with(ask(json!({"tool_choice": "auto", "max_tokens": 200})), tight(&router).await);
    for (text, bias) in [("{", 97), ("<think>", 100), ("</think>", 97)] {
        let (_, ids) = post(&router, "/tokenize", json!({"prompt": text, "add_special_tokens": false})).await;
        assert_eq!(ids["tokens"].as_array().unwrap().len(), 1, "{text}: {ids}");
        body["logit_bias"][ids["tokens"][0].to_string()] = json!(bias);
    }
    let called = |answer: &Value| answer["choices"][0]["finish_reason"] == "tool_calls";
    let thought_in = |answer: &Value| answer["choices"][0]["message"]["reasoning_content"].as_str().is_some_and(|text| text.contains('{'));
    let mut thought = 0;
    for seed in 0..16 {
        let (status, answer) = post(&router, CHAT, with(body.clone(), json!({"tools": strict, "seed": seed}))).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        if called(&answer) {
            assert_eq!(calls(&answer).len(), 1, "{answer}");
            thought += usize::from(thought_in(&answer));
        }
        // Without `strict` there is no end of braces.
        let (_, answer) = post(&router, CHAT, with(body.clone(), json!({"tools": loose, "seed": seed}))).await;
        assert!(!called(&answer), "{answer}");
    }
    assert!(thought > 0, "no call came behind reasoning");

    let (_app, router) = thinks(&format!("{TEMPLATE}<think>\n"));
    let forced = with(body, json!({"tools": loose, "tool_choice": "required"}));
    let mut thought = 0;
    for seed in 0..4 {
        let (_, answer) = post(&router, CHAT, with(forced.clone(), json!({"seed": seed}))).await;
        if called(&answer) {
            assert_eq!(calls(&answer).len(), 1, "{answer}");
            thought += usize::from(thought_in(&answer));
        }
    }
    assert!(thought > 0, "no forced call came behind reasoning");
}

#[tokio::test]
async fn what_cannot_be_forced_names_the_field() {
    let (_app, router) = served(ToolFormat::Hermes);
    let tool = |parameters: Value| json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    for (more, param) in [
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": tools(), "tool_choice": named("other")}), "tool_choice"),
        (json!({"tools": tools(), "tool_choice": "sometimes"}), "tool_choice"),
        (json!({"tools": tools(), "tool_choice": {"type": "allowed_tools"}}), "tool_choice"),
        (json!({"tools": tool(json!([])), "tool_choice": "required"}), "tools[0].function.parameters"),
        (json!({"tools": tool(json!({"type": "strange"})), "tool_choice": "required"}), "tools"),
        (json!({"tools": tools(), "tool_choice": "required", "guided_regex": "a"}), "guided_regex"),
        (json!({"guided_regex": "(a"}), "guided_regex"),
        (json!({"guided_grammar": "start: nothing"}), "guided_grammar"),
        (json!({"guided_json": {"type": 5}}), "guided_json"),
        (json!({"guided_json": {"$ref": "https://example.com/schema.json"}}), "guided_json"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/a"}}}}),
            "response_format.json_schema.schema",
        ),
        (json!({"guided_regex": "a", "ignore_eos": true}), "ignore_eos"),
        (json!({"guided_regex": "a", "guided_choice": ["b"]}), "guided_choice"),
    ] {
        let (status, body) = post(&router, CHAT, ask(more.clone())).await;
        assert_eq!((status, &body["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(param)), "{more}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_8_bombs_hold_nobody_up() {
    let (app, router) = served(ToolFormat::Hermes);
    let ordinary = question("Tell me");
    let (_, alone) = post(&router, CHAT, ordinary.clone()).await;
    let deep = "(".repeat(30_000) + &")".repeat(30_000);
    let mut nested = json!({"type": "string"});
    for _ in 0..100 {
        nested = json!({"type": "array", "items": nested});
    }
    let tool = |parameters: Value| json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
    let bombs = [
        json!({"guided_regex": deep}),
        json!({"guided_regex": "(a+)+b"}),
        json!({"guided_regex": "(((a{1,99}){1,99}){1,99}){1,99}"}),
        json!({"guided_regex": "(x+x+)+y".repeat(500)}),
        json!({"guided_grammar": format!("start: {deep}")}),
        json!({"guided_grammar": "start: a\na: a a | \"x\" | "}),
        json!({"guided_json": {"$ref": "#"}}),
        json!({"guided_json": nested}),
        json!({"guided_json": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$", "minLength": 1_000_000}}),
        json!({"guided_json": {"type": "array", "minItems": 1_000_000_000, "items": {"type": "integer"}}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"pattern": deep}}}}),
        json!({"tools": tool(json!({"type": "object", "properties": {"a": {"pattern": "(a+)+b"}, "b": {"pattern": "("}}})), "tool_choice": "required"}),
        json!({"tools": tool(json!({"properties": {"a": {"type": ["string", 7]}}})), "tool_choice": "required"}),
    ];
    let sent = bombs.iter().map(|bomb| async {
        let started = Instant::now();
        let (status, body) = post(&router, CHAT, ask(with(json!({"max_tokens": 30}), bomb.clone()))).await;
        let shown: String = bomb.to_string().chars().take(100).collect();
        let known = [StatusCode::OK, StatusCode::BAD_REQUEST, StatusCode::SERVICE_UNAVAILABLE];
        assert!(known.contains(&status), "{shown}: {status} {body}");
        if status != StatusCode::OK {
            assert!(body["error"]["message"].is_string(), "{shown}: {body}");
        }
        assert!(started.elapsed() < Duration::from_secs(45), "{shown}: {:?}", started.elapsed());
    });
    let others = async {
        for _ in 0..10 {
            assert_eq!(get(&router, "/health").await.0, StatusCode::OK);
            let (status, answer) = post(&router, CHAT, ordinary.clone()).await;
            assert_eq!((status, &answer["choices"]), (StatusCode::OK, &alone["choices"]));
        }
    };
    tokio::join!(futures_util::future::join_all(sent), others);
    assert_eq!(app.health(), Ok(()));
}

#[tokio::test]
async fn row_9_unique_grammars_do_not_pile_up() {
    let (app, router) = loaded();
    let resident = || {
        let pages: usize = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
        Some(pages * 4096)
    };
    let mut before = None;
    for n in 0..400 {
        let texts: Vec<String> = (0..20).map(|i| format!("{n} {i} {}", "long ".repeat(40))).collect();
        let (status, body) = post(&router, COMPLETIONS, json!({"prompt": "Go", "max_tokens": 1, "guided_choice": texts})).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        if n == 100 {
            before = resident();
        }
    }
    if let (Some(before), Some(after)) = (before, resident()) {
        assert!(after.saturating_sub(before) < 128 << 20, "300 grammars took {} MiB", (after - before) >> 20);
    }
    assert_eq!(app.health(), Ok(()));
}

#[tokio::test]
async fn row_10_numbers_of_biases_and_choices() {
    let (app, router) = loaded();
    let many: serde_json::Map<String, Value> = (0..5000).map(|id| (id.to_string(), json!(1))).collect();
    for (more, param) in [
        (json!({"logit_bias": {"5": 1e308}}), "logit_bias"),
        (json!({"logit_bias": {"5": -1e308}}), "logit_bias"),
        (json!({"logit_bias": {"5": 100.001}}), "logit_bias"),
        (json!({"logit_bias": {"320": 1}}), "logit_bias"),
        (json!({"logit_bias": {"4294967295": 1}}), "logit_bias"),
        (json!({"logit_bias": {"18446744073709551616": 1}}), "logit_bias"),
        (json!({"logit_bias": {"5": 1, "05": 2}}), "logit_bias"),
        (json!({"logit_bias": {"5": "1"}}), "logit_bias"),
        (json!({"logit_bias": [5]}), "logit_bias"),
        (json!({"logit_bias": many}), "logit_bias"),
        (json!({"guided_choice": vec!["x"; 5000]}), "guided_choice"),
        (json!({"guided_regex": "a", "max_tokens": 0}), "max_tokens"),
        (json!({"guided_regex": "a", "n": 1_000_000}), "n"),
        (json!({"guided_regex": "a", "temperature": 1e308}), "temperature"),
    ] {
        let (status, body) = post(&router, COMPLETIONS, ask(more.clone())).await;
        assert_eq!((status, &body["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(param)), "{more:.80}: {body}");
    }
    assert_eq!(app.health(), Ok(()));
}
