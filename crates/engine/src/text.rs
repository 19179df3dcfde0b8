//! Answers as text.

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use ferrum_models::text::{Detokenizer, Position, Tokenizer};

use crate::{
    engine::{Engine, Event},
    error::{Error, Result, SubmitError},
    logprobs::TokenLogprobs,
    request::Request,
    sequence::{FinishReason, Finished},
    stop::StopStrings,
};

/// The text of one answer while its tokens arrive: whole characters, and nothing of a stop string.
pub struct TextStream {
    detokenizer: Detokenizer,
    stops: StopStrings,
}

impl TextStream {
    /// Special tokens are left out of the text.
    ///
    /// # Errors
    /// When a stop string is not valid.
    pub fn new(tokenizer: Arc<Tokenizer>, stops: &[String]) -> Result<Self, SubmitError> {
        Ok(Self { detokenizer: Detokenizer::new(tokenizer, Position::Continuation, true), stops: StopStrings::new(stops)? })
    }

    /// Takes the next token and returns the text that can be shown now, which may be empty.
    pub fn push(&mut self, token: u32) -> String {
        self.stops.push(&self.detokenizer.push(token))
    }

    /// Whether a stop string has come: the request should be cancelled, and its finish reason is `stop`.
    pub fn stopped(&self) -> bool {
        self.stops.stopped()
    }

    /// Ends the answer and returns the text that was held back.
    pub fn finish(&mut self) -> String {
        let mut text = self.stops.push(&self.detokenizer.finish());
        text += &self.stops.finish();
        text
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Without the stop string and what came behind it
    pub text: String,
    /// Without the stop token
    pub tokens: Vec<u32>,
    /// One per token, when the request asked for them
    pub logprobs: Vec<TokenLogprobs>,
    pub finished: Finished,
    /// From submission to the first token
    pub first_token_time: Duration,
    /// From submission to the end
    pub total_time: Duration,
}

impl Engine {
    /// Runs one request to its end, in an engine that has no other work. `on_step` sees the new text after every step, which
    /// may be empty, and can cancel.
    ///
    /// # Errors
    /// When the engine has other work, request or stop strings are not valid, or the device fails.
    pub fn generate(
        &mut self,
        tokenizer: &Arc<Tokenizer>,
        request: Request,
        stops: &[String],
        mut on_step: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer> {
        if self.has_work() {
            return Err(Error::InUse);
        }
        let mut stream = TextStream::new(tokenizer.clone(), stops)?;
        let started = Instant::now();
        let id = self.submit(request)?;
        let (mut text, mut tokens, mut logprobs, mut finished) = (String::new(), Vec::new(), Vec::new(), None);
        let mut first_token_time = None;
        let mut events = Vec::new();
        let finished = loop {
            events.clear();
            self.step_into(&mut events)?;
            let mut new = String::new();
            for event in events.drain(..) {
                match event {
                    Event::Token { token, logprobs: l, .. } => {
                        first_token_time.get_or_insert_with(|| started.elapsed());
                        tokens.push(token);
                        logprobs.extend(l);
                        new += &stream.push(token);
                    }
                    Event::Finished { finished: f, .. } => finished = Some(f),
                }
            }
            if stream.stopped() {
                let ended = finished.or_else(|| self.cancel(id));
                finished = ended.map(|f| Finished { reason: FinishReason::Stop, ..f });
            } else if finished.is_some() {
                new += &stream.finish();
            }
            text += &new;
            let flow = on_step(&new);
            if let Some(finished) = finished {
                break finished;
            }
            if flow.is_break()
                && let Some(finished) = self.cancel(id)
            {
                text += &stream.finish();
                break finished;
            }
        };
        let total_time = started.elapsed();
        Ok(Answer { text, tokens, logprobs, finished, first_token_time: first_token_time.unwrap_or(total_time), total_time })
    }
}
