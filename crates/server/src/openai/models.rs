//! `GET /v1/models` and `GET /v1/models/{name}`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::{Value, json};

use crate::{
    app::{App, Served},
    error::Result,
};

pub async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>> {
    let model = app.model()?;
    Ok(Json(json!({"object": "list", "data": [card(&app, model)]})))
}

pub async fn get(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Value>> {
    let model = app.model_named(Some(&name))?;
    Ok(Json(card(&app, model)))
}

fn card(app: &App, model: &Served) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": app.created,
        "owned_by": "ferrum",
        "root": model.name,
        "parent": null,
        "max_model_len": model.max_context,
    })
}
