//! A server over a tiny model, and how tests talk to it.
#![allow(dead_code)]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
};
use ferrum_cpu::{CpuBackend, CpuOptions};
use ferrum_engine::{Engine, EngineOptions, SamplingParams};
use ferrum_models::{Checkpoint, text::ChatTemplate};
use ferrum_server::{App, HttpOptions, Keys, Served, Service, ToolFormat, router};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

/// A server with the fixture `llama3`, four sequences and a context of 256.
pub fn server(keys: Keys) -> (Arc<App>, Router) {
    let app = Arc::new(App::new(keys, Duration::from_secs(60)));
    let router = router(Arc::clone(&app), &HttpOptions { max_body_bytes: 1 << 16, ..HttpOptions::default() });
    (app, router)
}

/// Lets requests in.
pub fn load(app: &App) {
    load_as(app, None, None);
}

/// The same with another way to write tool calls and another chat template.
pub fn load_as(app: &App, tool_format: Option<ToolFormat>, template: Option<&str>) {
    load_with(app, Load { tool_format, template, ..Load::default() });
}

/// What is loaded, and how.
pub struct Load<'a> {
    pub folder: PathBuf,
    pub tool_format: Option<ToolFormat>,
    /// The model's own where there is none
    pub template: Option<&'a str>,
    /// Bound on the requests that wait
    pub max_waiting: usize,
}

impl Default for Load<'_> {
    fn default() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/llama3");
        Self { folder, tool_format: None, template: None, max_waiting: EngineOptions::default().max_waiting }
    }
}

pub fn load_with(app: &App, Load { folder, tool_format, template, max_waiting }: Load<'_>) {
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let tokenizer = Arc::new(checkpoint.tokenizer().unwrap());
    let backend: Arc<CpuBackend> = Arc::new(CpuBackend::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap());
    let model = checkpoint.load(&*backend, 256).unwrap();
    let options = EngineOptions {
        max_context: Some(256),
        max_seqs: 4,
        max_waiting,
        end_tokens: tokenizer.end_ids().to_vec(),
        ..EngineOptions::default()
    };
    let engine = Engine::new(backend, model, options).unwrap();
    let (info, max_context) = (engine.model_info().clone(), engine.max_context());
    let (service, _thread) = Service::start(engine).unwrap();
    app.ready(Served {
        name: "tiny".into(),
        info,
        pooling: checkpoint.pooling().unwrap(),
        tool_format,
        template: Some(template.map_or_else(|| tokenizer.chat_template().unwrap(), |source| ChatTemplate::new(source, vec![]).unwrap())),
        tokenizer,
        sampling: SamplingParams::default(),
        max_context,
        max_seqs: 4,
        backend: "cpu".into(),
        service,
    });
}

pub fn loaded() -> (Arc<App>, Router) {
    let (app, router) = server(Keys::default());
    load(&app);
    (app, router)
}

/// A server whose model calls tools as Hermes does.
pub fn calling() -> Router {
    let (app, router) = server(Keys::default());
    let template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ m['tool_calls'] }}\n{% endfor %}{% if tools %}{{ tools | length }} tools\n{% endif %}";
    load_as(&app, Some(ToolFormat::Hermes), Some(template));
    router
}

pub async fn send(router: &Router, path: &str, body: Option<Vec<u8>>) -> (StatusCode, Vec<u8>) {
    let request = Request::builder().uri(path).method(if body.is_some() { "POST" } else { "GET" });
    let response = router.clone().oneshot(request.body(Body::from(body.unwrap_or_default())).unwrap()).await.unwrap();
    let status = response.status();
    (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

pub async fn post(router: &Router, path: &str, body: Value) -> (StatusCode, Value) {
    let (status, body) = send(router, path, Some(body.to_string().into_bytes())).await;
    (status, serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{path}: {}", String::from_utf8_lossy(&body))))
}

pub async fn get(router: &Router, path: &str) -> (StatusCode, String) {
    let (status, body) = send(router, path, None).await;
    (status, String::from_utf8(body).unwrap())
}

/// The JSON values of a stream; it ends with `[DONE]`.
pub async fn stream(router: &Router, path: &str, body: Value) -> Vec<Value> {
    let (status, body) = send(router, path, Some(body.to_string().into_bytes())).await;
    assert_eq!(status, StatusCode::OK);
    let text = String::from_utf8(body).unwrap();
    let mut events: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(events.pop(), Some("[DONE]"));
    events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

pub fn question(text: &str) -> Value {
    json!({"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 24, "ignore_eos": true})
}

pub fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}
