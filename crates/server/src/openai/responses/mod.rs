//! `POST /v1/responses`, without state: every request brings its whole conversation, and nothing is stored.

mod events;
mod request;

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response, Sse, sse::KeepAlive},
};
use bytes::Bytes;
use serde_json::json;

use crate::{
    app::App,
    error::{ApiError, Result},
    fields::Fields,
    limits::Client,
    turn::{Asked, Turn},
};

/// Fields that change the answer and are not honoured.
const REFUSED: &[&str] = &["previous_response_id", "conversation", "background", "prompt", "max_tool_calls", "top_logprobs"];

pub async fn create(State(app): State<Arc<App>>, Extension(client): Extension<Client>, body: Bytes) -> Result<Response> {
    let mut fields = Fields::parse(&body)?;
    let model = app.model_named(fields.string("model")?)?;
    fields.refuse(REFUSED)?;
    if fields.bool("store")?.unwrap_or(false) {
        let message = "this server stores no responses: leave `store` out or send false, and send the whole conversation as `input`";
        return Err(ApiError { code: Some("unsupported_parameter"), ..ApiError::invalid("store", message) });
    }
    fields.only("truncation", &json!("disabled"))?;
    let stream = fields.bool("stream")?.unwrap_or(false);
    let head = events::Head::new(&app, &model.name, &fields);
    let mut chat = request::chat(&mut fields)?;
    let turn = Turn::start(&app, model, &mut chat, Asked { client, logprobs: None }).await?;
    let response = events::Answer::new(head);
    if stream {
        return Ok(Sse::new(events::stream(response, turn)).keep_alive(KeepAlive::default()).into_response());
    }
    Ok(Json(events::whole(response, turn).await?).into_response())
}
