//! `POST /v1/responses`, without state: every request brings its whole conversation, and nothing is stored.
//!
//! `store: true` is what routers send where a client says nothing (SMG among them) and what many clients send by habit, so it is taken,
//! as the one field that is not honoured and not refused, and every response says `store: false`. What counts on a stored response is refused: `previous_response_id`, `conversation`,
//! `background`, and items that are references.

mod events;
mod request;

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response, Sse, sse::KeepAlive},
};
use bytes::Bytes;

use crate::{
    app::App,
    error::Result,
    fields::Fields,
    limits::Client,
    openapi::takes,
    turn::{Asked, Turn},
};

/// What errors call fields, and what they are here.
const NAMES: &[(&str, &str)] = &[("messages", "input"), ("response_format.json_schema", "text.format"), ("response_format", "text.format")];

pub async fn create(State(app): State<Arc<App>>, Extension(client): Extension<Client>, body: Bytes) -> Result<Response> {
    let mut fields = Fields::parse(&body, &takes::RESPONSE)?;
    let model = app.model_named(fields.string("model")?)?;
    let stream = fields.bool("stream")?.unwrap_or(false);
    let head = events::Head::new(&app, &model.name, &fields);
    let mut chat = request::chat(&mut fields)?;
    let turn = Turn::start(&app, model, &mut chat, Asked { client, logprobs: None }).await.map_err(|error| error.renamed(NAMES))?;
    let response = events::Answer::new(head);
    if stream {
        return Ok(Sse::new(events::stream(response, turn)).keep_alive(KeepAlive::default()).into_response());
    }
    Ok(Json(events::whole(response, turn).await?).into_response())
}
