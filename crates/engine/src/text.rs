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

/// How tokens become text.
#[derive(Clone, Copy, Debug)]
pub struct TextOptions<'a> {
    pub position: Position,
    /// Texts that end the answer and are not part of it
    pub stops: &'a [String],
    /// Whether special tokens are left out of the text
    pub skip_special: bool,
}

/// The text of one answer while its tokens arrive: whole characters, and nothing of a stop string.
pub struct TextStream {
    detokenizer: Detokenizer,
    stops: StopStrings,
}

impl TextStream {
    /// # Errors
    /// When a stop string is not valid.
    pub fn new(tokenizer: Arc<Tokenizer>, options: TextOptions) -> Result<Self, SubmitError> {
        let detokenizer = Detokenizer::new(tokenizer, options.position, options.skip_special);
        Ok(Self { detokenizer, stops: StopStrings::new(options.stops)? })
    }

    /// Takes the next token and returns the text that can be shown now, which may be empty.
    pub fn push(&mut self, token: u32) -> String {
        self.stops.push(&self.detokenizer.push(token))
    }

    /// Whether a stop string has come: the request should be cancelled, and its finish reason is `stop`.
    pub fn stopped(&self) -> bool {
        self.stops.stopped()
    }

    /// The stop string that has come.
    pub fn stop_string(&self) -> Option<&str> {
        self.stops.stop()
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
    /// What was shown: without the stop string and what came behind it
    pub text: String,
    /// Without the stop token
    pub tokens: Vec<u32>,
    /// One per token, when the request asked for them
    pub logprobs: Vec<TokenLogprobs>,
    pub finished: Finished,
    /// From submission to the first token, or to the end where there is none
    pub prompt_time: Duration,
    /// From the first token to the last
    pub generation_time: Duration,
}

impl Answer {
    /// Prompt tokens computed per second.
    pub fn prompt_rate(&self) -> f64 {
        rate(self.finished.prompt_tokens - self.finished.reused_tokens, self.prompt_time)
    }

    /// Tokens generated per second, not counting the first, which the prompt brings.
    pub fn generation_rate(&self) -> f64 {
        rate(self.tokens.len().saturating_sub(1), self.generation_time)
    }
}

/// Things per second; 0 where no time passed.
fn rate(count: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

impl Engine {
    /// Runs one request to its end, in an engine that has no other work. `on_step` sees the new text after every step, which
    /// may be empty, and can cancel; what is held back then is never shown.
    ///
    /// # Errors
    /// When the engine has other work, request or stop strings are not valid, or the device fails.
    pub fn generate(
        &mut self,
        tokenizer: &Arc<Tokenizer>,
        request: Request,
        options: TextOptions,
        mut on_step: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer> {
        if self.has_work() {
            return Err(Error::InUse);
        }
        let mut stream = TextStream::new(tokenizer.clone(), options)?;
        let started = Instant::now();
        let id = self.submit(request)?;
        let (mut text, mut tokens, mut logprobs, mut finished) = (String::new(), Vec::new(), Vec::new(), None);
        let (mut first, mut last) = (None, started);
        let mut events = Vec::new();
        let finished = loop {
            self.step_into(&mut events)?;
            let mut new = String::new();
            for event in events.drain(..) {
                match event {
                    // What a step brings behind a stop string is not part of the answer.
                    Event::Token { .. } if stream.stopped() => {}
                    Event::Token { token, logprobs: l, .. } => {
                        last = Instant::now();
                        first.get_or_insert(last);
                        tokens.push(token);
                        logprobs.extend(l);
                        new += &stream.push(token);
                    }
                    Event::Prompt { .. } => {}
                    Event::Finished { finished: f, .. } => finished = Some(f),
                }
            }
            if finished.is_some() && !stream.stopped() {
                new += &stream.finish();
            }
            if stream.stopped() {
                let ended = finished.or_else(|| self.cancel(id));
                finished = ended.map(|f| Finished { reason: FinishReason::Stop, ..f });
            }
            text += &new;
            let flow = on_step(&new);
            if let Some(finished) = finished.or_else(|| flow.is_break().then(|| self.cancel(id)).flatten()) {
                break finished;
            }
        };
        let first = first.unwrap_or_else(Instant::now);
        let (prompt_time, generation_time) = (first - started, last.saturating_duration_since(first));
        Ok(Answer { text, tokens, logprobs, finished, prompt_time, generation_time })
    }
}
