//! The routes, over a tiny model on the CPU.

mod common;

use std::time::Duration;

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use common::{get, load, loaded, post, question, send, server, stream, with};
use ferrum_server::{KeyLimits, Keys, Refused, Ticket, Unhealthy, Update};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tower::ServiceExt;

#[tokio::test]
async fn a_stream_says_what_the_whole_says() {
    let (_app, router) = loaded();
    for more in [json!({}), json!({"temperature": 1.0, "seed": 7, "n": 3}), json!({"stop": ["e"], "logprobs": true, "top_logprobs": 2})] {
        let body = with(question("Tell me"), more);
        let (status, whole) = post(&router, "/v1/chat/completions", body.clone()).await;
        assert_eq!(status, StatusCode::OK, "{whole}");
        let parts =
            stream(&router, "/v1/chat/completions", with(body, json!({"stream": true, "stream_options": {"include_usage": true}}))).await;
        let n = whole["choices"].as_array().unwrap().len();
        for choice in 0..n {
            let of = |p: &&Value| p["choices"][0]["index"] == choice;
            let text: String = parts.iter().filter(of).filter_map(|p| p["choices"][0]["delta"]["content"].as_str()).collect();
            assert_eq!(whole["choices"][choice]["message"]["content"], text.as_str());
            let reasons: Vec<&Value> =
                parts.iter().filter(of).map(|p| &p["choices"][0]["finish_reason"]).filter(|r| !r.is_null()).collect();
            assert_eq!(reasons, [&whole["choices"][choice]["finish_reason"]]);
            let tokens = |v: &Value| v["logprobs"]["content"].as_array().cloned().unwrap_or_default();
            let streamed: Vec<Value> = parts.iter().filter(of).flat_map(|p| tokens(&p["choices"][0])).collect();
            assert_eq!(tokens(&whole["choices"][choice]), streamed);
        }
        assert_eq!(parts.last().unwrap()["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    }
}

#[tokio::test]
async fn a_stream_says_the_usage_where_it_is_asked_to() {
    let (_app, router) = loaded();
    let completion = json!({"prompt": "the cat", "max_tokens": 9, "ignore_eos": true});
    for (path, body, tokens) in [("/v1/chat/completions", question("Tell me"), 24), ("/v1/completions", completion, 9)] {
        let parts = |options: Value| stream(&router, path, with(body.clone(), json!({"stream": true, "n": 2, "stream_options": options})));
        let says = |parts: &[Value]| parts.iter().filter(|p| p.get("usage").is_some()).count();
        assert_eq!(says(&parts(Value::Null).await), 0, "{path}");

        let at_the_end = parts(json!({"include_usage": true})).await;
        let (last, others) = at_the_end.split_last().unwrap();
        assert!(others.iter().all(|p| p.get("usage") == Some(&Value::Null)), "{path}: {others:?}");
        assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(2 * tokens)), "{path}");

        // As vLLM's GuideLLM asks.
        let always = parts(json!({"include_usage": true, "continuous_usage_stats": true})).await;
        let counts: Vec<u64> = always.iter().map(|p| p["usage"]["completion_tokens"].as_u64().unwrap()).collect();
        assert!(counts.is_sorted() && counts[0] <= 1 && counts.last() == Some(&(2 * tokens)), "{path}: {counts:?}");
        assert!(always.iter().all(|p| p["usage"]["prompt_tokens"] == last["usage"]["prompt_tokens"]), "{path}");
        let only_there = parts(json!({"continuous_usage_stats": true})).await;
        assert_eq!((says(&only_there), only_there.len()), (only_there.len(), always.len() - 1), "{path}");
    }
}

#[tokio::test]
async fn an_answer_is_the_same_among_others() {
    let (_app, router) = loaded();
    let (_, alone) = post(&router, "/v1/chat/completions", question("What is it?")).await;
    let crowd = (0..24).map(|i| post(&router, "/v1/chat/completions", question(if i == 11 { "What is it?" } else { "Something else" })));
    let answers = futures_util::future::join_all(crowd).await;
    assert_eq!(answers[11].1["choices"], alone["choices"]);
}

#[tokio::test]
async fn completions_take_text_and_ids() {
    let (_app, router) = loaded();
    let (_, ids) = post(&router, "/tokenize", json!({"prompt": "the cat"})).await;
    let ask =
        |prompt: Value| post(&router, "/v1/completions", json!({"prompt": prompt, "max_tokens": 5, "logprobs": 1, "ignore_eos": true}));
    let (_, by_text) = ask(json!("the cat")).await;
    let (_, by_ids) = ask(ids["tokens"].clone()).await;
    // The second finds the prompt in the cache and computes it in other steps, which can move the last bits.
    for field in ["/text", "/finish_reason", "/logprobs/tokens", "/logprobs/text_offset"] {
        assert_eq!(by_text["choices"][0].pointer(field), by_ids["choices"][0].pointer(field), "{field}");
    }
    assert_eq!(by_text["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 5);
    let (_, several) = ask(json!([ids["tokens"], ids["tokens"]])).await;
    assert_eq!(several["choices"][1]["text"], by_text["choices"][0]["text"]);
    let (_, text) = post(&router, "/detokenize", json!({"tokens": ids["tokens"]})).await;
    assert!(text["prompt"].as_str().unwrap().ends_with("the cat"));
}

#[tokio::test]
async fn bad_requests_name_the_field() {
    let (app, router) = loaded();
    let huge = 1u64 << 63;
    for (more, param) in [
        (json!({"temperature": -1}), "temperature"),
        (json!({"temperature": 1e308}), "temperature"),
        (json!({"top_p": 2}), "top_p"),
        (json!({"max_tokens": huge}), "max_tokens"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -5}), "max_tokens"),
        (json!({"n": 1_000_000}), "n"),
        (json!({"logprobs": true, "top_logprobs": 129}), "top_logprobs"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"stop": [""]}), "stop"),
        (json!({"stop_token_ids": [1 << 30]}), "stop_token_ids"),
        (json!({"seed": "x"}), "seed"),
        (json!({"logit_bias": {"5": 1000}}), "logit_bias"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"stream_options": {}}), "stream_options"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages[0].content[0].type"),
        (json!({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs"),
        (json!({"priority": 1u64 << 40}), "priority"),
    ] {
        let (status, body) = post(&router, "/v1/chat/completions", with(question("x"), more.clone())).await;
        assert_eq!((status, &body["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(param)), "{more}: {body}");
        assert!(!body["error"]["message"].as_str().unwrap().is_empty());
    }
    let (status, body) = post(&router, "/v1/chat/completions", with(question("x"), json!({"model": "other"}))).await;
    assert_eq!((status, &body["error"]["code"]), (StatusCode::NOT_FOUND, &json!("model_not_found")));
    let long = "the ".repeat(2000);
    let (status, body) = post(&router, "/v1/chat/completions", question(&long)).await;
    assert_eq!((status, &body["error"]["code"]), (StatusCode::BAD_REQUEST, &json!("context_length_exceeded")));
    for body in [
        "{",
        "[1]",
        "\"x\"",
        "{\"messages\": \"\u{0}\"}",
        &"[".repeat(50_000),
        "{\"messages\":[{\"role\":\"user\",\"content\":\"\\ud800\"}]}",
    ] {
        let (status, _) = send(&router, "/v1/chat/completions", Some(body.as_bytes().to_vec())).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body:.30}");
    }
    let (status, _) = send(&router, "/v1/chat/completions", Some(vec![b' '; 1 << 17])).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(get(&router, "/v1/nothing").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(&router, "/v1/completions").await.0, StatusCode::METHOD_NOT_ALLOWED);
    // Nobody was harmed.
    assert_eq!(app.health(), Ok(()));
    assert_eq!(post(&router, "/v1/chat/completions", question("x")).await.0, StatusCode::OK);
}

#[tokio::test]
async fn whoever_goes_away_leaves_nothing_behind() {
    let (app, router) = loaded();
    for _ in 0..8 {
        let body = with(question("Tell me"), json!({"stream": true, "max_tokens": 200})).to_string();
        let request = Request::post("/v1/chat/completions").body(Body::from(body)).unwrap();
        let mut stream = router.clone().oneshot(request).await.unwrap().into_body().into_data_stream();
        assert!(stream.next().await.unwrap().is_ok());
    }
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let snapshot = app.snapshot().unwrap();
        if (snapshot.running, snapshot.waiting) == (0, 0) {
            assert_eq!(snapshot.blocks.0, snapshot.blocks.1, "blocks are still in use");
            let (_, metrics) = get(&router, "/metrics").await;
            assert!(metrics.contains("finished_reason=\"abort\"} 8\n"), "{metrics}");
            return;
        }
    }
    panic!("requests still run: {:?}", app.snapshot());
}

#[tokio::test]
async fn health_tells_what_the_server_can_do() {
    let (app, router) = server(Keys::default());
    assert_eq!(app.health(), Err(Unhealthy::Loading));
    assert_eq!(get(&router, "/health").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&router, "/v1/models").await.0, StatusCode::SERVICE_UNAVAILABLE);
    load(&app);
    assert_eq!(get(&router, "/health").await.0, StatusCode::OK);
    assert_eq!(post(&router, "/v1/completions", json!({"prompt": "a"})).await.0, StatusCode::OK);
    let (_, metrics) = get(&router, "/metrics").await;
    assert!(metrics.contains("vllm:num_requests_running{model_name=\"tiny\",engine=\"0\"} 0"), "{metrics}");
    app.drain();
    assert_eq!(get(&router, "/health").await.0, StatusCode::SERVICE_UNAVAILABLE);
    let (status, body) = post(&router, "/v1/completions", json!({"prompt": "a"})).await;
    assert_eq!((status, &body["error"]["type"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("service_unavailable_error")));
}

/// Further answers to a prompt are submitted behind the first, however long that takes: the engine waits for them, and only for them.
#[tokio::test]
async fn an_engine_that_drains_waits_for_answers_that_belong_to_its_last() {
    async fn is_whole(mut ticket: Ticket) -> bool {
        while let Some(update) = ticket.next().await {
            if let Update::Finished(finished) = update {
                return finished.generated_tokens == 2;
            }
        }
        false
    }
    let (app, _router) = loaded();
    let service = app.model().unwrap().service.clone();
    let request = || ferrum_engine::Request { max_tokens: Some(2), ignore_eos: true, ..ferrum_engine::Request::new(vec![3, 4, 5]) };
    let (siblings, forgone) = (service.siblings(), service.siblings());
    let first = service.submit(request()).await.unwrap();
    service.drain();
    assert!(is_whole(first).await);
    drop(forgone);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(matches!(service.submit(request()).await, Err(Refused::Draining)));
    let second = siblings.submit(request()).await.unwrap();
    drop(siblings);
    assert!(is_whole(second).await);
    for _ in 0..500 {
        if service.snapshot().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the engine has not ended: {:?}", service.snapshot());
}

#[tokio::test]
async fn keys_guard_everything_but_health() {
    let (app, router) = server(Keys::new(vec!["secret".into()], KeyLimits::default()).unwrap());
    load(&app);
    for path in ["/", "/page.css", "/page.js", "/health"] {
        assert_eq!(send(&router, path, None).await.0, StatusCode::OK, "{path} asks for no key");
    }
    for path in ["/v1/models", "/metrics", "/version", "/server_info", "/v1/loads"] {
        assert_eq!(get(&router, path).await.0, StatusCode::UNAUTHORIZED, "{path}");
    }
    assert_eq!(get(&router, "/health").await.0, StatusCode::OK);
    let request = Request::get("/v1/models").header("authorization", "Bearer secret").body(Body::empty()).unwrap();
    assert_eq!(router.oneshot(request).await.unwrap().status(), StatusCode::OK);
}

/// What dashboards, autoscalers and routers made for vLLM ask for, with the types that they take it for.
#[tokio::test]
async fn metrics_are_those_of_vllm() {
    let (_app, router) = loaded();
    post(&router, "/v1/completions", json!({"prompt": (3..73).collect::<Vec<_>>(), "max_tokens": 5, "ignore_eos": true, "n": 2})).await;
    let (_, text) = get(&router, "/metrics").await;
    let value = |sample: &str| {
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")) && line.contains(labels.trim_end_matches('}')));
        let line = line.unwrap_or_else(|| panic!("{sample} in {text}"));
        line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    for (kind, names) in [
        ("gauge", &["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info"][..]),
        (
            "counter",
            &["num_preemptions", "prompt_tokens", "generation_tokens", "request_success", "prefix_cache_queries", "prefix_cache_hits"],
        ),
        ("counter", &["prompt_tokens_cached", "spec_decode_num_drafts", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens"]),
        ("histogram", &["time_to_first_token_seconds", "inter_token_latency_seconds", "time_per_output_token_seconds"]),
        ("histogram", &["request_time_per_output_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds"]),
        ("histogram", &["request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds"]),
        ("histogram", &["request_prompt_tokens", "request_generation_tokens", "request_prefill_kv_computed_tokens"]),
        ("histogram", &["request_params_n", "request_params_max_tokens", "iteration_tokens_total"]),
    ] {
        for name in names {
            let (total, sample) = match kind {
                "counter" => ("_total", "_total"),
                "histogram" => ("", "_sum"),
                _ => ("", ""),
            };
            assert!(text.contains(&format!("# TYPE vllm:{name}{total} {kind}\n")), "{name} in {text}");
            assert!(text.contains(&format!("# HELP vllm:{name}{total} ")), "{name} in {text}");
            assert!(text.contains(&format!("\nvllm:{name}{sample}{{model_name=\"tiny\",engine=\"0\"")), "{name} in {text}");
        }
    }
    for (sample, want) in [
        ("vllm:request_success_total{finished_reason=\"length\"}", 2.0),
        ("vllm:prompt_tokens_total", 140.0),
        ("vllm:request_prompt_tokens_sum", 140.0),
        ("vllm:prefix_cache_queries_total", 140.0),
        ("vllm:generation_tokens_total", 10.0),
        ("vllm:request_generation_tokens_sum", 10.0),
        ("vllm:request_generation_tokens_count", 2.0),
        ("vllm:request_params_n_sum", 2.0),
        ("vllm:request_params_max_tokens_sum", 5.0),
        ("vllm:time_to_first_token_seconds_count", 2.0),
        ("vllm:inter_token_latency_seconds_count", 8.0),
        ("vllm:request_time_per_output_token_seconds_count", 2.0),
        ("vllm:request_queue_time_seconds_count", 2.0),
        ("vllm:request_prefill_time_seconds_count", 2.0),
        ("vllm:cache_config_info{block_size=\"32\"", 1.0),
    ] {
        assert_eq!(value(sample), want, "{sample}");
    }
    // A request's time is what it waited, the time to its first token, and the rest; the end is told behind the last token.
    let sums = ["queue", "prefill", "decode"].map(|part| value(&format!("vllm:request_{part}_time_seconds_sum")));
    let (parts, whole) = (sums.iter().sum::<f64>(), value("vllm:e2e_request_latency_seconds_sum"));
    assert!(parts <= whole && sums[1] > 0.0 && sums[2] > 0.0, "{sums:?}, {whole}");
    // The two answers share their prompt.
    assert!(value("vllm:request_prefill_kv_computed_tokens_sum") < value("vllm:request_prompt_tokens_sum"));
    assert!(value("vllm:iteration_tokens_total_sum") >= 10.0);
    assert!(value("ferrum:engine_host_seconds_count{step=\"decode\"}") >= 2.0);
    assert!(value("ferrum:engine_host_seconds_sum{step=\"prompt\"}") > 0.0);
    let request = Request::get("/metrics").header("accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(text.contains("# TYPE vllm:prompt_tokens counter\n") && text.ends_with("# EOF\n"), "{text}");
}

#[tokio::test]
async fn a_trace_goes_on_in_the_response() {
    let (_app, router) = loaded();
    let ask = |parents: &[&str]| {
        let request = parents.iter().fold(Request::get("/health"), |request, parent| request.header("traceparent", *parent));
        router.clone().oneshot(request.body(Body::empty()).unwrap())
    };
    let answered = |response: axum::response::Response| response.headers().get("traceparent").map(|v| v.to_str().unwrap().to_owned());
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-1122334455667788-01";
    let mut spans = Vec::new();
    for _ in 0..3 {
        let child = answered(ask(&[parent]).await.unwrap()).unwrap();
        let (front, back) = (child.strip_prefix(&parent[..36]).unwrap(), "-01");
        let span = front.strip_suffix(back).unwrap().to_owned();
        assert!(span.len() == 16 && span.bytes().all(|b| b.is_ascii_hexdigit()) && !parent.contains(&span), "{child}");
        spans.push(span);
    }
    assert!(spans[0] != spans[1] && spans[1] != spans[2], "{spans:?}");
    for parents in [&[][..], &["x"], &["00-0-0-00"], &[parent, parent]] {
        let response = ask(parents).await.unwrap();
        assert_eq!((response.status(), answered(response)), (StatusCode::OK, None), "{parents:?}");
    }
}

#[tokio::test]
async fn work_is_limited_per_key_and_questions_about_the_server_are_not() {
    let limits = KeyLimits { tokens_per_minute: Some(20), requests_per_minute: Some(3), ..KeyLimits::default() };
    let (app, router) = server(Keys::new(vec!["a".into(), "b".into()], limits).unwrap());
    load(&app);
    let send = |key: &str, method: &str, path: &str, body: Value| {
        let request = Request::builder().method(method).uri(path).header("x-api-key", key);
        router.clone().oneshot(request.body(Body::from(body.to_string())).unwrap())
    };
    let left = |response: &axum::response::Response, of: &str| {
        response.headers()[format!("x-ratelimit-remaining-{of}")].to_str().unwrap().to_owned()
    };
    let work = json!({"prompt": "the cat", "max_tokens": 30, "ignore_eos": true});
    let first = send("a", "POST", "/v1/completions", work.clone()).await.unwrap();
    assert_eq!((first.status(), left(&first, "requests")), (StatusCode::OK, "2".into()));
    // What was used is known at the end of the answer, and too much here.
    let second = send("a", "POST", "/v1/messages", work.clone()).await.unwrap();
    assert_eq!((second.status(), left(&second, "tokens")), (StatusCode::TOO_MANY_REQUESTS, "0".into()));
    let wait: u32 = second.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((30..60).contains(&wait), "about 15 tokens too many at one in three seconds: {wait} s");
    let body = axum::body::to_bytes(second.into_body(), 1 << 16).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!("rate_limit_error")));
    for _ in 0..5 {
        assert_eq!(send("a", "GET", "/metrics", Value::Null).await.unwrap().status(), StatusCode::OK);
    }
    for status in [StatusCode::OK, StatusCode::OK, StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        let answer = send("b", "POST", "/tokenize", json!({"prompt": "x"})).await.unwrap();
        assert_eq!(answer.status(), status, "{}", left(&answer, "requests"));
    }
}

/// What the cache had is not computed, and not counted.
#[tokio::test]
async fn what_the_cache_has_is_no_work_of_a_key() {
    let limits = KeyLimits { tokens_per_minute: Some(300), ..KeyLimits::default() };
    let (app, router) = server(Keys::new(vec!["a".into()], limits).unwrap());
    load(&app);
    let ids: Vec<u32> = (0..200).map(|n| n % 90 + 5).collect();
    let body = json!({"prompt": ids, "max_tokens": 1});
    let mut left = Vec::new();
    for turn in 0..4 {
        let request = Request::builder().method("POST").uri("/v1/completions").header("x-api-key", "a");
        let response = router.clone().oneshot(request.body(Body::from(body.to_string())).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        left.push(response.headers()["x-ratelimit-remaining-tokens"].to_str().unwrap().parse::<u32>().unwrap());
        let answer = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert_eq!(cached > 150, turn > 0, "{answer}");
    }
    // Behind the first answer 201 tokens fewer, behind the others a few each; five a second come back.
    assert!(left[3] > 40 && left[3] < 250, "{left:?}");
}

/// The events of `/v1/kv_events` that come within 300 ms.
async fn kv_events(body: &mut axum::body::BodyDataStream) -> Vec<(String, Value)> {
    let mut text = String::new();
    while let Ok(Some(chunk)) = tokio::time::timeout(Duration::from_millis(300), body.next()).await {
        text += std::str::from_utf8(&chunk.unwrap()).unwrap();
    }
    let event = |event: &str| {
        let (name, data) = event.strip_prefix("event: ")?.split_once("\ndata: ")?;
        Some((name.to_owned(), serde_json::from_str(data).unwrap()))
    };
    text.split("\n\n").filter_map(event).collect()
}

#[tokio::test]
async fn kv_events_tell_which_beginnings_are_here() {
    let (_app, router) = loaded();
    let ask = |from: u32| post(&router, "/v1/completions", json!({"prompt": (from..from + 70).collect::<Vec<_>>(), "max_tokens": 1}));
    let watch = || async {
        let request = Request::get("/v1/kv_events").body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap().into_body().into_data_stream()
    };
    ask(3).await;
    let mut first = watch().await;
    // Two whole blocks of 32 tokens, which were there before somebody watched.
    let before = kv_events(&mut first).await;
    assert_eq!(before.len(), 2, "{before:?}");
    let (hash, ids) = (&before[0].1["block_hash"], (3..35).collect::<Vec<_>>());
    assert_eq!((before[0].0.as_str(), &before[0].1["token_ids"], &before[0].1["parent_block_hash"]), ("stored", &json!(ids), &Value::Null));
    assert_eq!((&before[1].1["parent_block_hash"], &before[1].1["block_size"]), (hash, &json!(32)));
    ask(100).await;
    let changes = kv_events(&mut first).await;
    assert_eq!(changes.iter().filter(|(name, _)| name == "stored").count(), 2);
    // 32 blocks hold ten of these texts at most; whoever follows the events knows what a newcomer is told.
    let mut known: Vec<Value> = before.iter().chain(&changes).map(|(_, event)| event["block_hash"].clone()).collect();
    for from in 0..20 {
        ask(200 - 7 * from).await;
    }
    let changes = kv_events(&mut first).await;
    assert!(changes.iter().any(|(name, _)| name == "removed"));
    for (name, event) in changes {
        let hash = event["block_hash"].clone();
        if name == "stored" { known.push(hash) } else { known.retain(|h| *h != hash) }
    }
    let mut told: Vec<Value> = kv_events(&mut watch().await).await.iter().map(|(_, event)| event["block_hash"].clone()).collect();
    known.sort_by_key(Value::to_string);
    told.sort_by_key(Value::to_string);
    assert_eq!(known, told);
}
