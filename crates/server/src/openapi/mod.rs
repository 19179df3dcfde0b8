//! `GET /openapi.json`: the routes, what they take and what they answer. The fields of requests come from the tables that the
//! parser is held to (`takes.rs`), their deeper parts and the answers from `schemas.json`.

pub mod takes;

use std::sync::Arc;

use axum::{Json, extract::State};
use serde_json::{Map, Value, json};

use self::takes::{Field, Kind, Request};
use crate::app::App;

/// One way to ask.
struct Route {
    path: &'static str,
    what: &'static str,
    /// What it takes; `None`: it is a GET
    takes: Option<&'static Request>,
    gives: Gives,
}

enum Gives {
    /// JSON in this schema
    Json(&'static str),
    /// The same, or server-sent events
    Streamed(&'static str),
    /// Text of this type
    Text(&'static str),
}

use Gives::{Json as Whole, Streamed, Text};

const fn get(path: &'static str, what: &'static str, gives: Gives) -> Route {
    Route { path, what, takes: None, gives }
}

const fn post(path: &'static str, what: &'static str, takes: &'static Request, gives: Gives) -> Route {
    Route { path, what, takes: Some(takes), gives }
}

const ROUTES: &[Route] = &[
    post("/v1/chat/completions", "Goes on with a conversation", &takes::CHAT, Streamed("ChatCompletion")),
    post("/v1/completions", "Goes on with a text", &takes::COMPLETION, Streamed("Completion")),
    post("/v1/responses", "Goes on with a conversation, in OpenAI's newer form", &takes::RESPONSE, Streamed("Response")),
    post("/v1/embeddings", "Makes vectors of texts", &takes::EMBEDDING, Whole("Embeddings")),
    post("/v1/messages", "Goes on with a conversation, in Anthropic's form", &takes::MESSAGE, Streamed("Message")),
    post("/v1/messages/count_tokens", "How long a conversation is", &takes::COUNT, Whole("Count")),
    get("/v1/models", "The one model of this server", Whole("Models")),
    get("/v1/models/{name}", "The model, if this is its name", Whole("Model")),
    post("/tokenize", "The tokens of a text or of a conversation", &takes::TOKENIZE, Whole("Tokenized")),
    post("/detokenize", "The text of tokens", &takes::DETOKENIZE, Whole("Detokenized")),
    get("/tokenizer_info", "Special tokens and the chat template", Whole("TokenizerInfo")),
    get("/health", "200 only when the model can answer now", Whole("Health")),
    get("/ping", "The same", Whole("Health")),
    get("/metrics", "vLLM's names and our own", Text("text/plain")),
    get("/version", "The version of the server", Whole("Version")),
    get("/server_info", "What routers read of a server", Whole("ServerInfo")),
    get("/get_server_info", "The same", Whole("ServerInfo")),
    get("/model_info", "What routers read of a model", Whole("ModelInfo")),
    get("/get_model_info", "The same", Whole("ModelInfo")),
    get("/v1/loads", "What routers balance by", Whole("Loads")),
    get("/get_load", "The same, as older routers read it", Whole("Load")),
    get("/v1/kv_events", "Which beginnings of texts can be reused here, and every change; it does not end", Text("text/event-stream")),
    get("/openapi.json", "This document", Whole("Object")),
];

pub async fn document(State(app): State<Arc<App>>) -> Json<Value> {
    let mut schemas: Map<String, Value> = serde_json::from_str(include_str!("schemas.json")).unwrap_or_default();
    let model = app.model().ok();
    let name = model.map_or_else(|| json!({"type": "string"}), |model| json!({"const": model.name}));
    let ids = model.map_or(1 << 32, |model| model.info.vocab as u64);
    schemas.insert("ModelName".into(), name);
    schemas.insert("TokenId".into(), json!({"type": "integer", "minimum": 0, "maximum": ids - 1}));
    let mut paths = Map::new();
    for route in ROUTES {
        let method = if route.takes.is_some() { "post" } else { "get" };
        let mut methods = json!({method: operation(route)});
        if route.path == "/ping" {
            methods["post"] = methods["get"].clone();
        }
        paths.insert(route.path.into(), methods);
    }
    Json(json!({
        "openapi": "3.1.0",
        "info": {"title": "Ferrum", "version": env!("CARGO_PKG_VERSION"), "description": "Fields that are not named here are ignored."},
        "security": [{}, {"bearer": []}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }))
}

fn operation(route: &Route) -> Value {
    let ok = match route.gives {
        Whole(schema) => json!({"application/json": {"schema": reference(schema)}}),
        Streamed(schema) => json!({
            "application/json": {"schema": reference(schema)},
            "text/event-stream": {"schema": reference("Event")},
        }),
        Text(content_type) => json!({content_type: {"schema": {"type": "string"}}}),
    };
    let mut responses = json!({"200": {"description": "The answer", "content": ok}});
    let error = if route.path.starts_with("/v1/messages") { "MessageError" } else { "Error" };
    let mut fails = |status: &str, description: &str, schema: &str| {
        responses[status] = json!({"description": description, "content": {"application/json": {"schema": reference(schema)}}});
    };
    if matches!(route.path, "/health" | "/ping") {
        fails("503", "The model cannot answer now", "Health");
    } else {
        fails("401", "No valid key", error);
        fails("503", "Loading, full or shutting down; `retry-after` says when to ask again", error);
    }
    if route.takes.is_some() {
        fails("400", "A field is wrong, or asks for something that this server does not do", error);
        fails("408", "The body did not come in time", error);
        fails("413", "The body is too large", error);
        fails("429", "The key has reached its limit; `retry-after` says for how long", error);
    }
    if route.takes.is_some() || route.path.contains('{') {
        fails("404", "No such model", error);
    }
    let mut operation = json!({"summary": route.what, "responses": responses});
    if let Some(request) = route.takes {
        // `null` is the same as leaving a field out.
        let properties: Map<String, Value> = request.fields().map(|field| (field.0.to_owned(), property(field, request))).collect();
        let schema = json!({"type": "object", "required": request.required, "properties": properties});
        operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    if route.path.contains("{name}") {
        operation["parameters"] = json!([{"name": "name", "in": "path", "required": true, "schema": {"type": "string"}}]);
    }
    operation
}

fn property(Field(name, kind, what): &Field, of: &Request) -> Value {
    let mut property = match kind {
        Kind::Number(least, most) => json!({"type": ["number", "null"], "minimum": least, "maximum": most}),
        Kind::Integer(least, most) => json!({"type": ["integer", "null"], "minimum": least, "maximum": most}),
        Kind::Boolean => json!({"type": ["boolean", "null"]}),
        Kind::Text => json!({"type": ["string", "null"]}),
        Kind::OneOf(texts) => json!({"enum": texts.iter().copied().map(Some).chain([None]).collect::<Vec<_>>()}),
        Kind::False => json!({"enum": [false, null]}),
        Kind::Object => json!({"type": ["object", "null"]}),
        Kind::Schema(schema) if of.required.contains(name) => reference(schema),
        Kind::Schema(schema) => json!({"anyOf": [reference(schema), {"type": "null"}]}),
        Kind::Refused => json!({"type": "null", "description": "Not honoured, so refused"}),
    };
    if !what.is_empty() {
        property["description"] = (*what).into();
    }
    property
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}
