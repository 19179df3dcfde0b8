//! Anthropic's routes: `/v1/messages` and `/v1/messages/count_tokens`.

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
    openapi::takes,
    prompt::ChatPrompt,
    tools::ToolChoice,
    turn::{Asked, Turn},
};

/// What errors call fields, and what they are here.
const NAMES: &[(&str, &str)] =
    &[("response_format.json_schema", "output_config.format"), ("response_format", "output_config.format"), ("stop", "stop_sequences")];

pub async fn create(State(app): State<Arc<App>>, Extension(client): Extension<Client>, body: Bytes) -> Result<Response> {
    let mut fields = Fields::parse(&body, &takes::MESSAGE)?;
    let model = app.model_named(fields.string("model")?)?;
    let stream = fields.bool("stream")?.unwrap_or(false);
    if fields.get("max_tokens").is_none() {
        return Err(ApiError::invalid("max_tokens", "`max_tokens` is missing: it must be the most tokens to generate"));
    }
    let mut chat = request::chat(&mut fields)?;
    let turn = Turn::start(&app, model, &mut chat, Asked { client, logprobs: None }).await.map_err(|error| error.renamed(NAMES))?;
    let message = events::Message::new(app.id("msg_"), model.name.clone());
    if stream {
        return Ok(Sse::new(events::stream(message, turn)).keep_alive(KeepAlive::default()).into_response());
    }
    Ok(Json(events::whole(message, turn).await?).into_response())
}

pub async fn count_tokens(State(app): State<Arc<App>>, body: Bytes) -> Result<Response> {
    let mut fields = Fields::parse(&body, &takes::COUNT)?;
    let model = app.model_named(fields.string("model")?)?;
    let mut chat = Fields::from(request::prompt(&mut fields)?);
    let mut prompt = ChatPrompt::read(&mut chat)?;
    prompt.tool_format(model, &ToolChoice::read(chat.take("tool_choice").as_ref())?)?;
    let tokens = prompt.render(&app).await?.tokens.len();
    Ok(Json(json!({"input_tokens": tokens})).into_response())
}
