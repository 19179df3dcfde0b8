//! One request through the engine, streamed as text.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use ferrum_engine::{Event, FinishReason, Request, StopStrings, TokenLogprobs};
use ferrum_models::text::{Detokenizer, Position};

use crate::{interrupt, open::Session};

/// What became of a request.
#[derive(Debug)]
pub struct Answer {
    pub text: String,
    /// Without the stop token
    pub tokens: Vec<u32>,
    pub logprobs: Vec<TokenLogprobs>,
    pub finish: FinishReason,
    pub prompt_tokens: usize,
    /// Prompt tokens that were in the cache already
    pub reused_tokens: usize,
    /// From submitting to the first token
    pub prompt_time: Duration,
    /// From the first token to the last
    pub generation_time: Duration,
    /// When the first token was there
    pub first_token: Instant,
}

impl Answer {
    /// Prompt tokens computed per second.
    pub fn prompt_rate(&self) -> f64 {
        rate(self.prompt_tokens.saturating_sub(self.reused_tokens), self.prompt_time)
    }

    /// Tokens generated per second, not counting the first, which the prompt brings.
    pub fn generation_rate(&self) -> f64 {
        rate(self.tokens.len().saturating_sub(1), self.generation_time)
    }
}

/// Things per second; 0 where no time passed.
pub fn rate(count: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

/// How an answer becomes text.
#[derive(Clone, Copy, Debug)]
pub struct TextOptions<'a> {
    pub position: Position,
    pub stops: &'a [String],
}

/// Runs `request` to its end; `show` gets text as soon as it is certain.
///
/// # Errors
/// When the request is refused, the device fails, the file of the weights shrank, or `show` fails.
pub fn answer(
    session: &mut Session,
    request: Request,
    options: TextOptions,
    show: &mut dyn FnMut(&str) -> io::Result<()>,
) -> anyhow::Result<Answer> {
    let mut detokenizer = Detokenizer::new(Arc::clone(&session.tokenizer), options.position, true);
    let mut stops = StopStrings::new(options.stops)?;
    let submitted = Instant::now();
    let prompt_tokens = request.prompt.len();
    let mut answer = Answer {
        text: String::new(),
        tokens: Vec::new(),
        logprobs: Vec::new(),
        finish: FinishReason::Cancelled,
        prompt_tokens,
        reused_tokens: 0,
        prompt_time: Duration::ZERO,
        generation_time: Duration::ZERO,
        first_token: submitted,
    };
    let id = session.engine.submit(request)?;
    let mut emit = |answer: &mut Answer, text: String| -> io::Result<()> {
        if !text.is_empty() {
            show(&text)?;
            answer.text.push_str(&text);
        }
        Ok(())
    };
    let mut events = Vec::new();
    let mut running = true;
    while running {
        let step = session.engine.step_into(&mut events);
        // Before the tokens are used: those of a file that lost its end are not the model's.
        session.checkpoint.weights().check()?;
        step?;
        for event in events.drain(..) {
            match event {
                Event::Token { token, logprobs, .. } if !stops.stopped() => {
                    if answer.tokens.is_empty() {
                        answer.first_token = Instant::now();
                        answer.prompt_time = answer.first_token - submitted;
                    }
                    answer.generation_time = answer.first_token.elapsed();
                    answer.tokens.push(token);
                    answer.logprobs.extend(logprobs);
                    emit(&mut answer, stops.push(&detokenizer.push(token)))?;
                }
                Event::Token { .. } => {}
                Event::Finished { finished, .. } => {
                    answer.reused_tokens = finished.reused_tokens;
                    answer.finish = finished.reason;
                    running = false;
                }
            }
        }
        if running && (stops.stopped() || interrupt::pressed()) {
            if let Some(finished) = session.engine.cancel(id) {
                answer.reused_tokens = finished.reused_tokens;
            }
            running = false;
        }
    }
    if answer.tokens.is_empty() {
        answer.first_token = Instant::now();
        answer.prompt_time = answer.first_token - submitted;
    }
    emit(&mut answer, stops.push(&detokenizer.finish()))?;
    if stops.stopped() {
        answer.finish = FinishReason::Stop;
    } else {
        emit(&mut answer, stops.finish())?;
    }
    Ok(answer)
}
