//! `/v1/completions` and `/v1/embeddings`, over a tiny model on the CPU.

mod common;

use axum::http::StatusCode;
use common::{loaded, post, stream, with};
use serde_json::{Value, json};

/// What `lm-eval`'s `local-completions` sends to score a continuation, and how it reads the answer.
#[tokio::test]
async fn a_prompt_is_scored_token_by_token() {
    let (_app, router) = loaded();
    let (_, ids) = post(&router, "/tokenize", json!({"prompt": "the cat sat on the mat and the dog"})).await;
    let ids: Vec<u64> = ids["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    let ask = |prompt: Value, more: Value| {
        let body = json!({"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true});
        post(&router, "/v1/completions", with(body, more))
    };
    let (status, scored) = ask(json!([ids, ids[..3].to_vec()]), json!({})).await;
    assert_eq!(status, StatusCode::OK, "{scored}");
    let logprobs = &scored["choices"][0]["logprobs"];
    let values = logprobs["token_logprobs"].as_array().unwrap();
    let top = logprobs["top_logprobs"].as_array().unwrap();
    assert_eq!((values.len(), top.len()), (ids.len() + 1, ids.len() + 1));
    assert!(values[0].is_null() && top[0].is_null());
    for (value, top) in values[1..].iter().zip(&top[1..]) {
        let best = top.as_object().unwrap().values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert!(value.as_f64().unwrap() <= best && best <= 0.0);
    }
    // Each value is what the model says of that token as the next one of the prompt before it.
    for end in [1, 4, ids.len() - 1] {
        let (_, next) =
            post(&router, "/v1/completions", json!({"prompt": ids[..end], "max_tokens": 1, "logprobs": 100, "ignore_eos": true})).await;
        let token = logprobs["tokens"][end].as_str().unwrap();
        let want = next["choices"][0]["logprobs"]["top_logprobs"][0][token].as_f64();
        assert!(want.is_none_or(|want| (want - values[end].as_f64().unwrap()).abs() < 0.02), "{want:?} {}", values[end]);
    }
    assert_eq!(scored["choices"][1]["logprobs"]["token_logprobs"].as_array().unwrap().len(), 4);
    // Without an answer the prompt is all there is.
    let (_, only) = ask(json!(ids), json!({"max_tokens": 0})).await;
    let choice = &only["choices"][0];
    assert_eq!(choice["logprobs"]["token_logprobs"].as_array().unwrap().len(), ids.len());
    assert_eq!((&choice["finish_reason"], &only["usage"]["completion_tokens"]), (&json!("length"), &json!(0)));
    let (_, text) = post(&router, "/detokenize", json!({"tokens": ids})).await;
    assert_eq!(scored["choices"][0]["logprobs"]["text_offset"][0], 0);
    assert!(text["prompt"].as_str().unwrap().ends_with(choice["text"].as_str().unwrap()));
}

#[tokio::test]
async fn echoes_stream_as_they_come_whole() {
    let (_app, router) = loaded();
    for more in [json!({}), json!({"logprobs": 2}), json!({"max_tokens": 0, "logprobs": 0}), json!({"n": 3, "temperature": 1, "seed": 3})] {
        let body = with(json!({"prompt": ["Once upon", "a time"], "max_tokens": 7, "echo": true, "ignore_eos": true}), more);
        let (status, whole) = post(&router, "/v1/completions", body.clone()).await;
        assert_eq!(status, StatusCode::OK, "{whole}");
        let parts = stream(&router, "/v1/completions", with(body, json!({"stream": true}))).await;
        for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
            let of = || parts.iter().map(|p| &p["choices"][0]).filter(|c| c["index"] == index);
            let text: String = of().filter_map(|c| c["text"].as_str()).collect();
            assert_eq!(choice["text"], text.as_str());
            assert!(text.starts_with(if index < whole["choices"].as_array().unwrap().len() / 2 { "Once upon" } else { "a time" }));
            for field in ["tokens", "token_logprobs", "text_offset"] {
                let list = |c: &Value| c["logprobs"][field].as_array().cloned().unwrap_or_default();
                assert_eq!(list(choice).len(), of().flat_map(&list).count(), "{field}");
            }
            assert_eq!(of().filter_map(|c| c["finish_reason"].as_str()).collect::<Vec<_>>(), [choice["finish_reason"].as_str().unwrap()]);
        }
    }
}

#[tokio::test]
async fn the_best_answers_are_kept() {
    let (_app, router) = loaded();
    let body = json!({"prompt": ["Once", "Twice"], "max_tokens": 6, "temperature": 1.5, "seed": 5, "logprobs": 0, "ignore_eos": true});
    let (_, all) = post(&router, "/v1/completions", with(body.clone(), json!({"n": 6}))).await;
    let (status, best) = post(&router, "/v1/completions", with(body.clone(), json!({"n": 2, "best_of": 6}))).await;
    assert_eq!(status, StatusCode::OK, "{best}");
    assert_eq!(best["choices"].as_array().unwrap().len(), 4);
    let score = |c: &Value| c["logprobs"]["token_logprobs"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).sum::<f64>();
    for prompt in 0..2 {
        let mut of_all: Vec<&Value> = all["choices"].as_array().unwrap()[prompt * 6..][..6].iter().collect();
        of_all.sort_by(|a, b| score(b).total_cmp(&score(a)));
        for place in 0..2 {
            let kept = &best["choices"][prompt * 2 + place];
            assert_eq!((&kept["text"], &kept["index"]), (&of_all[place]["text"], &json!(prompt * 2 + place)));
        }
    }
    assert_eq!(best["usage"]["completion_tokens"], 72);
    for more in [json!({"n": 3, "best_of": 2}), json!({"best_of": 2, "stream": true})] {
        let (status, error) = post(&router, "/v1/completions", with(body.clone(), more)).await;
        assert_eq!((status, &error["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("best_of")));
    }
    let (_, error) = post(&router, "/v1/completions", json!({"prompt": "a", "suffix": "b"})).await;
    assert_eq!(error["error"]["param"], "suffix");
    let (_, error) = post(&router, "/v1/completions", json!({"prompt": "a", "max_tokens": 0})).await;
    assert_eq!(error["error"]["param"], "max_tokens");
}

fn vector(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[tokio::test]
async fn embeddings_are_the_same_in_every_form() {
    let (app, router) = loaded();
    let (_, ids) = post(&router, "/tokenize", json!({"prompt": "the cat"})).await;
    let ask = |input: Value, more: Value| post(&router, "/v1/embeddings", with(json!({"model": "tiny", "input": input}), more));
    let (status, one) = ask(json!("the cat"), json!({})).await;
    assert_eq!(status, StatusCode::OK, "{one}");
    let cat = vector(&one["data"][0]["embedding"]);
    assert!((cat.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    let close = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
    let (_, many) = ask(json!(["a dog", "the cat"]), json!({})).await;
    assert!(close(&vector(&many["data"][1]["embedding"]), &cat) && !close(&vector(&many["data"][0]["embedding"]), &cat));
    let (_, by_ids) = ask(ids["tokens"].clone(), json!({})).await;
    assert!(close(&vector(&by_ids["data"][0]["embedding"]), &cat));
    assert_eq!(one["usage"]["prompt_tokens"], ids["count"]);
    let (_, short) = ask(json!("the cat"), json!({"dimensions": 4})).await;
    let length = cat[..4].iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!(close(&vector(&short["data"][0]["embedding"]), &cat[..4].iter().map(|x| x / length).collect::<Vec<_>>()));
    let (_, coded) = ask(json!("the cat"), json!({"encoding_format": "base64"})).await;
    assert_eq!(coded["data"][0]["embedding"].as_str().unwrap().len(), (cat.len() * 4).div_ceil(3) * 4);
    for (input, more, param) in [
        (json!([]), json!({}), "input"),
        (json!(""), json!({"dimensions": 0}), "dimensions"),
        (json!("x"), json!({"dimensions": 1 << 20}), "dimensions"),
        (json!("x"), json!({"encoding_format": "int8"}), "encoding_format"),
        (json!([[1 << 30]]), json!({}), "prompt"),
    ] {
        let (status, error) = ask(input, more).await;
        assert_eq!((status, &error["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(param)), "{error}");
    }
    assert_eq!(app.health(), Ok(()));
}
