//! What routers, dashboards and people ask about the server itself: health, metrics, versions, load, tokens.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use bytes::Bytes;
use ferrum_engine::KvEvent;
use ferrum_models::text::EncodeOptions;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use crate::{
    app::App,
    error::{ApiError, Result},
    fields::Fields,
    metrics::prometheus_text,
    openapi::takes,
    prompt::ChatPrompt,
    service::{KvWatch, Snapshot},
};

/// 200 only when the model can answer now.
pub async fn health(State(app): State<Arc<App>>) -> Response {
    match app.health() {
        Ok(()) => (StatusCode::OK, Json(json!({"status": "ok"}))).into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": reason.to_string()}))).into_response(),
    }
}

/// As OpenMetrics for whoever asks for it, as Prometheus does; else in the older format that everybody reads.
pub async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response> {
    let text = app.metrics.text(&app).map_err(|_| ApiError::internal("the metrics cannot be written"))?;
    let accepts = headers.get(header::ACCEPT).is_some_and(|v| v.to_str().is_ok_and(|v| v.contains("application/openmetrics-text")));
    let (kind, text) = if accepts {
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", text)
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", prometheus_text(&text))
    };
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// What can be reused, and how that changes, as server-sent events: for routers that send requests where their beginnings
/// are. A reader that falls too far behind gets `lagged` and the stream ends; connecting again brings everything anew.
pub async fn kv_events(State(app): State<Arc<App>>) -> Result<Response> {
    let KvWatch { contents, changes } = app.model()?.service.watch_kv().await?;
    let changes = stream::unfold(Some(changes), |changes| async {
        let mut changes = changes?;
        match changes.recv().await {
            Ok(events) => Some((events.iter().map(kv_event).collect(), Some(changes))),
            Err(RecvError::Lagged(_)) => Some((vec![Event::default().event("lagged").data("{}")], None)),
            Err(RecvError::Closed) => None,
        }
    });
    let contents: Vec<Event> = contents.iter().map(kv_event).collect();
    let events = stream::once(async { contents }).chain(changes).flat_map(stream::iter).map(Ok::<_, Infallible>);
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

/// Hashes are written in hexadecimal, because not every reader of JSON has 64-bit integers.
fn kv_event(event: &KvEvent) -> Event {
    let hex = |hash: u64| format!("{hash:016x}");
    match event {
        KvEvent::Stored { hash, parent, tokens } => Event::default().event("stored").data(
            json!({"block_hash": hex(*hash), "parent_block_hash": parent.map(hex), "block_size": tokens.len(), "token_ids": tokens})
                .to_string(),
        ),
        KvEvent::Removed { hash } => Event::default().event("removed").data(json!({"block_hash": hex(*hash)}).to_string()),
        KvEvent::Cleared => Event::default().event("cleared").data("{}"),
    }
}

pub async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// What SGLang's and vLLM's routers read of a server.
pub async fn server_info(State(app): State<Arc<App>>) -> Result<Json<Value>> {
    let model = app.model()?;
    Ok(Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model_path": model.name,
        "served_model_name": model.name,
        "backend": model.backend,
        "max_model_len": model.max_context,
        "context_length": model.max_context,
        "max_running_requests": model.max_seqs,
        "tp_size": 1,
        "dp_size": 1,
        "status": "ready",
    })))
}

pub async fn model_info(State(app): State<Arc<App>>) -> Result<Json<Value>> {
    let model = app.model()?;
    Ok(Json(json!({
        "model_path": model.name,
        "tokenizer_path": model.name,
        "is_generation": true,
        "model_type": model.info.family,
        "vocab_size": model.info.vocab,
        "max_context_length": model.max_context,
        "parameters": model.info.parameters,
    })))
}

/// The load as routers balance by it, in SGLang's names.
pub async fn loads(State(app): State<Arc<App>>) -> Result<Json<Value>> {
    let (model, snapshot) = (app.model()?, running(&app)?);
    let counts = snapshot.stats.counts;
    let (used, all) = snapshot.used_tokens();
    let part = |of: u64, all: u64| of as f64 / all.max(1) as f64;
    Ok(Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "dp_rank_count": 1,
        "loads": [{
            "dp_rank": 0,
            "num_running_reqs": snapshot.running,
            "num_waiting_reqs": snapshot.waiting,
            "num_total_reqs": snapshot.running + snapshot.waiting,
            "num_used_tokens": used,
            "max_total_num_tokens": all,
            "max_running_requests": model.max_seqs,
            "token_usage": part(used as u64, all as u64),
            "utilization": part(snapshot.running as u64, model.max_seqs as u64),
            "cache_hit_rate": part(counts.reused_tokens, counts.prompt_tokens),
        }],
    })))
}

/// The same as SGLang's routers read it, who take nothing but a list. vLLM's asks for an object here, which vLLM does not answer
/// either, and balances by its own counts.
pub async fn load(State(app): State<Arc<App>>) -> Result<Json<Value>> {
    let snapshot = running(&app)?;
    Ok(Json(json!([{
        "dp_rank": 0,
        "num_reqs": snapshot.running + snapshot.waiting,
        "num_waiting_reqs": snapshot.waiting,
        "num_tokens": snapshot.used_tokens().0,
    }])))
}

fn running(app: &App) -> Result<Snapshot> {
    app.snapshot().ok_or_else(|| ApiError::unavailable("the engine is not running"))
}

/// Special tokens and the chat template, as vLLM shows them: `lm-eval` tokenizes by this server then.
pub async fn tokenizer_info(State(app): State<Arc<App>>) -> Result<Json<Value>> {
    let model = app.model()?;
    let tokenizer = &model.tokenizer;
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id));
    Ok(Json(json!({
        "bos_token": text(tokenizer.bos()),
        "eos_token": text(tokenizer.eos()),
        "pad_token": text(tokenizer.pad()),
        "unk_token": text(tokenizer.unknown()),
        "chat_template": tokenizer.chat_template_source(),
        "model_max_length": model.max_context,
    })))
}

/// `{"prompt"}` or `{"messages"}` to `{"tokens", "count", "max_model_len"}`.
pub async fn tokenize(State(app): State<Arc<App>>, body: Bytes) -> Result<Json<Value>> {
    let mut fields = Fields::parse(&body, &takes::TOKENIZE)?;
    let model = app.model_named(fields.string("model")?)?;
    let tokens = match fields.string("prompt")? {
        Some(_) if ["messages", "tools"].iter().any(|field| fields.get(field).is_some()) => {
            return Err(ApiError::invalid("messages", "`messages` and `prompt` exclude each other"));
        }
        Some(text) => {
            let add_special = fields.bool("add_special_tokens")?.unwrap_or(true);
            model.tokenizer.encode(text, EncodeOptions { add_special, parse_special: true })?
        }
        None => ChatPrompt::read(&mut fields)?.render(&app).await?.tokens,
    };
    let texts = fields.bool("return_token_strs")?.unwrap_or(false);
    let texts = texts.then(|| tokens.iter().map(|&id| model.tokenizer.token_text(id)).collect::<Vec<_>>());
    Ok(Json(json!({"tokens": tokens, "count": tokens.len(), "max_model_len": model.max_context, "token_strs": texts})))
}

/// `{"tokens"}` to `{"prompt"}`.
pub async fn detokenize(State(app): State<Arc<App>>, body: Bytes) -> Result<Json<Value>> {
    let fields = Fields::parse(&body, &takes::DETOKENIZE)?;
    let model = app.model_named(fields.string("model")?)?;
    let tokens = fields.ids("tokens")?.ok_or_else(|| ApiError::invalid("tokens", "`tokens` is missing: it must be a list of token ids"))?;
    let vocab = model.tokenizer.vocab_size();
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
        return Err(ApiError::invalid("tokens", format!("token id {id}: ids must be below the vocabulary of {vocab}")));
    }
    Ok(Json(json!({"prompt": model.tokenizer.decode(&tokens, false)})))
}
