//! One request's answers while they are made. Streamed and whole responses are both built from [`Answers`], so they cannot
//! differ.

use std::{sync::Arc, time::Instant};

use ferrum_engine::{FinishReason, Finished, Reading, SubmitError, TextOptions, TextStream, TokenLogprobs};
use ferrum_models::text::{Position, Tokenizer};
use tokio::sync::mpsc;

use crate::{
    app::{App, Served},
    error::{ApiError, Result},
    metrics::Times,
    sampling::Generation,
    service::{Siblings, Ticket, Update},
};

/// What happened to one of the answers.
#[derive(Debug)]
pub enum Piece {
    /// Text that is certain now, and the tokens that came with it. One of them may be empty.
    Text { choice: usize, text: String, tokens: Vec<Token> },
    /// More of what was to be read of the prompt; before all text
    Prompt { choice: usize, reading: Reading },
    /// The last piece of this answer
    Finished {
        choice: usize,
        finished: Finished,
        /// The stop string that ended it
        stop_string: Option<String>,
    },
}

/// A generated token.
#[derive(Clone, Debug)]
pub struct Token {
    pub id: u32,
    pub logprobs: Option<TokenLogprobs>,
}

/// All answers to one request, mixed as they come. Dropping it cancels what is not finished.
pub struct Answers {
    pieces: mpsc::Receiver<Piece>,
    open: usize,
    /// But for the completion tokens
    usage: Usage,
    /// Completion tokens of each answer
    completion_tokens: Vec<usize>,
    failed: bool,
    /// The field that asked for a grammar
    grammar: Option<String>,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    /// Completion tokens that are reasoning, its marks included, where it is told apart
    pub reasoning_tokens: usize,
    /// Prompt tokens that came from the prefix cache
    pub cached_tokens: usize,
}

/// Pieces that may wait for a slow reader before its generation is left to run ahead in the engine's own queue.
const PIECES_AHEAD: usize = 64;

impl Answers {
    /// Submits `generation.n` requests for each prompt; answer `p · n + i` is the `i`-th to prompt `p`.
    ///
    /// The further answers to a prompt are submitted when the first has computed it, so that they share its blocks.
    ///
    /// # Errors
    /// When the engine refuses a request.
    pub async fn start(app: &Arc<App>, model: &Served, prompts: Vec<Vec<u32>>, generation: &Generation) -> Result<Self> {
        let generation = &generation.compiled(app).await?;
        let usage = Usage { prompt_tokens: prompts.iter().map(Vec::len).sum(), ..Usage::default() };
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let open = prompts.len() * generation.n;
        for (index, prompt) in prompts.into_iter().enumerate() {
            let stream = text_stream(&model.tokenizer, generation)?;
            let siblings = (generation.n > 1).then(|| (model.service.siblings(), prompt.clone()));
            let first = model.service.submit(generation.request(prompt, 0)).await?;
            let source = Source {
                app: Arc::clone(app),
                tokenizer: Arc::clone(&model.tokenizer),
                generation: generation.clone(),
                pieces: sender.clone(),
            };
            tokio::spawn(source.run(index * generation.n, first, siblings, stream));
        }
        app.metrics.asked(generation.n, generation.max_tokens);
        let grammar = generation.grammar.as_ref().map(|wanted| wanted.param.clone());
        Ok(Self { pieces, open, usage, completion_tokens: vec![0; open], failed: false, grammar })
    }

    /// The next piece; `None` after the last.
    ///
    /// # Errors
    /// When the engine failed on an answer, or the grammar did: the others have been given up as well.
    pub async fn next(&mut self) -> Result<Option<Piece>> {
        if self.open == 0 || self.failed {
            return Ok(None);
        }
        let piece = self.pieces.recv().await;
        match &piece {
            Some(Piece::Finished { finished, .. }) if finished.reason == FinishReason::Constraint => {
                self.failed = true;
                let param = self.grammar.clone().unwrap_or_default();
                return Err(ApiError::invalid(
                    param,
                    "the answer cannot go on within its grammar, or would exceed the grammar's limits; simplify it",
                ));
            }
            Some(Piece::Finished { choice, finished, .. }) if finished.reason != FinishReason::Failed => {
                self.open -= 1;
                self.completion_tokens[*choice] = finished.generated_tokens + usize::from(finished.stop_token.is_some());
                self.usage.cached_tokens = self.usage.cached_tokens.max(finished.reused_tokens);
            }
            Some(Piece::Text { choice, tokens, .. }) => self.completion_tokens[*choice] += tokens.len(),
            Some(Piece::Prompt { .. }) => {}
            _ => {
                self.failed = true;
                return Err(ApiError::internal("the engine failed while computing this answer; send the request again"));
            }
        }
        Ok(piece)
    }

    /// What has been used so far.
    pub fn usage(&self) -> Usage {
        Usage { completion_tokens: self.completion_tokens.iter().sum(), ..self.usage }
    }
}

/// Turns the engine's updates into pieces, for all answers to one prompt.
#[derive(Clone)]
struct Source {
    app: Arc<App>,
    tokenizer: Arc<Tokenizer>,
    generation: Generation,
    pieces: mpsc::Sender<Piece>,
}

impl Source {
    /// `siblings`: the way for further answers, and their prompt.
    async fn run(self, choice: usize, first: Ticket, mut siblings: Option<(Siblings, Vec<u32>)>, stream: TextStream) {
        let mut answer = Answer { source: &self, choice, stream, times: Times::since(first.submitted()), tokens: 0 };
        let mut ticket = first;
        loop {
            let more = answer.forward(&mut ticket).await;
            if let Some((siblings, prompt)) = siblings.take() {
                self.start_siblings(&siblings, &prompt, choice).await;
            }
            if !more {
                break;
            }
        }
    }

    async fn start_siblings(&self, siblings: &Siblings, prompt: &[u32], choice: usize) {
        for index in 1..self.generation.n {
            let source = self.clone();
            // What was valid for the first answer is valid for all.
            let submitted = siblings.submit(self.generation.request(prompt.to_vec(), index)).await;
            let stream = text_stream(&self.tokenizer, &self.generation);
            let (Ok(mut ticket), Ok(stream)) = (submitted, stream) else {
                // Closing the channel without a last piece is the failure that `Answers::next` reports.
                let _ = self.pieces.send(failed(choice + index)).await;
                return;
            };
            tokio::spawn(async move {
                let mut answer =
                    Answer { source: &source, choice: choice + index, stream, times: Times::since(ticket.submitted()), tokens: 0 };
                while answer.forward(&mut ticket).await {}
            });
        }
    }
}

/// One answer on its way.
struct Answer<'a> {
    source: &'a Source,
    choice: usize,
    stream: TextStream,
    times: Times,
    tokens: usize,
}

impl Answer<'_> {
    /// Passes one update on. `false` after the last, or when nobody listens any more.
    async fn forward(&mut self, ticket: &mut Ticket) -> bool {
        let update = loop {
            let update = tokio::select! {
                update = ticket.next() => update,
                () = self.source.pieces.closed() => {
                    self.give_up(ticket).await;
                    return false;
                }
            };
            match update {
                Some(Update::Started(at)) => self.times.started = Some(at),
                update => break update,
            }
        };
        let Some(update) = update else {
            self.send(failed(self.choice)).await;
            return false;
        };
        match update {
            // Came and went above.
            Update::Started(_) => true,
            Update::Token { token, logprobs } => {
                self.time_token();
                self.tokens += 1;
                let text = self.stream.push(token);
                let stopped = self.stream.stopped();
                let piece = Piece::Text { choice: self.choice, text, tokens: vec![Token { id: token, logprobs }] };
                if !self.send(piece).await {
                    self.give_up(ticket).await;
                    return false;
                }
                if stopped {
                    self.end_at_stop_string(ticket).await;
                }
                !stopped
            }
            Update::Prompt(reading) => self.send(Piece::Prompt { choice: self.choice, reading }).await,
            Update::Finished(finished) => {
                let text = self.stream.finish();
                if !text.is_empty() {
                    self.send(Piece::Text { choice: self.choice, text, tokens: Vec::new() }).await;
                }
                self.observe(&finished);
                self.send(Piece::Finished { choice: self.choice, finished, stop_string: self.stream.stop_string().map(str::to_owned) })
                    .await;
                false
            }
        }
    }

    /// Nobody listens any more. What has been computed counts all the same.
    async fn give_up(&self, ticket: &mut Ticket) {
        if let Some(finished) = ticket.stop().await {
            self.observe(&finished);
        }
    }

    /// A stop string has come. What the engine has computed on top is not counted.
    async fn end_at_stop_string(&mut self, ticket: &mut Ticket) {
        let Some(finished) = ticket.stop().await else {
            self.send(failed(self.choice)).await;
            return;
        };
        let finished = Finished { reason: FinishReason::Stop, stop_token: None, generated_tokens: self.tokens, ..finished };
        self.observe(&finished);
        self.send(Piece::Finished { choice: self.choice, finished, stop_string: self.stream.stop_string().map(str::to_owned) }).await;
    }

    async fn send(&self, piece: Piece) -> bool {
        self.source.pieces.send(piece).await.is_ok()
    }

    fn time_token(&mut self) {
        let now = Instant::now();
        let metrics = &self.source.app.metrics;
        self.times.first_token.get_or_insert(now);
        match self.times.last_token.replace(now) {
            None => metrics.first_token(now - self.times.submitted),
            Some(before) => metrics.next_token(now - before),
        }
    }

    fn observe(&self, finished: &Finished) {
        self.source.app.metrics.finished(finished, &self.times);
        let prompt = finished.prompt_tokens.saturating_sub(finished.reused_tokens);
        self.source.generation.client.charge(prompt + finished.generated_tokens);
    }
}

fn text_stream(tokenizer: &Arc<Tokenizer>, generation: &Generation) -> Result<TextStream, SubmitError> {
    let options = TextOptions { position: Position::Continuation, stops: &generation.stops, skip_special: generation.skip_special };
    TextStream::new(Arc::clone(tokenizer), options)
}

fn failed(choice: usize) -> Piece {
    let finished = Finished { reason: FinishReason::Failed, stop_token: None, prompt_tokens: 0, reused_tokens: 0, generated_tokens: 0 };
    Piece::Finished { choice, finished, stop_string: None }
}
