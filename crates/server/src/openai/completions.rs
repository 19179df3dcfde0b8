//! `POST /v1/completions`.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json,
    extract::State,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use bytes::Bytes;
use ferrum_engine::MAX_LOGPROBS;
use ferrum_models::text::{EncodeOptions, Tokenizer};
use futures_util::{
    StreamExt,
    stream::{self, Stream},
};
use serde_json::{Value, json};

use super::{
    chat::{data, done},
    logprobs, usage,
};
use crate::{
    app::{App, Served},
    error::{ApiError, Result},
    fields::{Fields, token_ids, wrong},
    generate::{Answers, Piece, Token},
    sampling::{Generation, Streaming},
};

/// Most prompts of one request.
const MAX_PROMPTS: usize = 1024;
/// Tokens when the request does not say, as OpenAI documents it.
const DEFAULT_MAX_TOKENS: u64 = 16;

pub async fn create(State(app): State<Arc<App>>, body: Bytes) -> Result<Response> {
    let mut fields = Fields::parse(&body)?;
    let model = app.model_named(fields.string("model")?)?;
    fields.refuse(&["suffix"])?;
    fields.only("echo", &json!(false))?;
    let logprobs = fields.count("logprobs", 0, MAX_LOGPROBS as u64)?;
    let streaming = Streaming::read(&mut fields)?;
    let mut generation = Generation::read(&mut fields, &model.sampling)?;
    generation.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
    let prompts = prompts(model, fields.take("prompt"))?;
    let choices = prompts.len() * generation.n;
    let answers = Answers::start(&app, model, prompts, &generation, logprobs).await?;
    let head = Head {
        id: app.id("cmpl-"),
        created: crate::now_s(),
        model: model.name.clone(),
        tokenizer: Arc::clone(&model.tokenizer),
        logprobs: logprobs.is_some(),
    };
    if streaming.stream {
        let events = chunks(head, answers, choices, streaming.include_usage);
        return Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response());
    }
    whole(&head, answers, choices).await
}

/// A string, a list of strings, a list of token ids, or a list of such lists.
fn prompts(model: &Served, value: Option<Value>) -> Result<Vec<Vec<u32>>> {
    let expected = "a string, a list of strings, a list of token ids or a list of such lists";
    let encode = |text: &str| Ok(model.tokenizer.encode(text, EncodeOptions { add_special: true, parse_special: true })?);
    let value = value.ok_or_else(|| ApiError::invalid("prompt", format!("`prompt` is missing: it must be {expected}")))?;
    if let Value::String(text) = &value {
        return Ok(vec![encode(text)?]);
    }
    let wrong = || wrong("prompt", &value, expected);
    let items = value.as_array().filter(|items| !items.is_empty()).ok_or_else(wrong)?;
    if let Some(ids) = token_ids(&value) {
        return Ok(vec![ids]);
    }
    if items.len() > MAX_PROMPTS {
        return Err(ApiError::invalid("prompt", format!("{} prompts; at most {MAX_PROMPTS} are allowed in one request", items.len())));
    }
    let one = |item: &Value| match item {
        Value::String(text) => encode(text),
        other => token_ids(other).ok_or_else(wrong),
    };
    items.iter().map(one).collect()
}

struct Head {
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    logprobs: bool,
}

impl Head {
    fn choice(&self, index: usize, text: &str, tokens: &[Token], offset: &mut usize, finish_reason: Value) -> Value {
        let logprobs = if self.logprobs { logprobs::completion(&self.tokenizer, tokens, offset) } else { Value::Null };
        json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason})
    }

    fn object(&self, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": "text_completion", "created": self.created, "model": self.model, "choices": choices})
    }
}

async fn whole(head: &Head, mut answers: Answers, count: usize) -> Result<Response> {
    let mut choices: Vec<(String, Vec<Token>, Value)> = vec![(String::new(), Vec::new(), Value::Null); count];
    while let Some(piece) = answers.next().await? {
        match piece {
            Piece::Text { choice, text, tokens } => {
                choices[choice].0 += &text;
                choices[choice].1.extend(tokens);
            }
            Piece::Finished { choice, finished } => choices[choice].2 = finished.reason.as_str().into(),
        }
    }
    let choices = choices.into_iter().enumerate();
    let mut body = head.object(choices.map(|(i, (text, tokens, reason))| head.choice(i, &text, &tokens, &mut 0, reason)).collect());
    body["usage"] = usage(answers.usage());
    Ok(Json(body).into_response())
}

fn chunks(head: Head, answers: Answers, count: usize, include_usage: bool) -> impl Stream<Item = Result<Event, Infallible>> {
    let offsets = vec![0; count];
    let events = stream::unfold(Some((head, answers, offsets)), move |state| async move {
        let (head, mut answers, mut offsets) = state?;
        let choice = match answers.next().await {
            Ok(Some(Piece::Text { choice, text, tokens })) => head.choice(choice, &text, &tokens, &mut offsets[choice], Value::Null),
            Ok(Some(Piece::Finished { choice, finished })) => {
                head.choice(choice, "", &[], &mut offsets[choice], finished.reason.as_str().into())
            }
            Ok(None) => {
                let mut last = Vec::new();
                if include_usage {
                    let mut body = head.object(vec![]);
                    body["usage"] = usage(answers.usage());
                    last.push(data(&body));
                }
                last.push(done());
                return Some((last, None));
            }
            Err(error) => return Some((vec![data(&error.openai()), done()], None)),
        };
        Some((vec![data(&head.object(vec![choice]))], Some((head, answers, offsets))))
    });
    events.flat_map(stream::iter).map(Ok)
}
