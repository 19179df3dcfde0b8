//! One turn of a conversation: from a request's fields to the parts of its answers. All chat interfaces are shapes of it.

use std::sync::Arc;

use ferrum_engine::{FinishReason, Finished};

use crate::{
    app::{App, Served},
    error::Result,
    fields::Fields,
    generate::{Answers, Piece, Token, Usage},
    limits::Client,
    output::{Delta, OutputParser, ToolFormat, open_reasoning},
    prompt::ChatPrompt,
    sampling::Generation,
    structured::{self, Wanted},
    tools::ToolChoice,
};

/// The answers to a conversation while they are made.
pub struct Turn {
    answers: Answers,
    /// One per choice
    parsers: Vec<OutputParser>,
    reasoning_tokens: usize,
}

/// What one piece brought to one choice.
pub struct Part {
    pub choice: usize,
    pub deltas: Vec<Delta>,
    pub tokens: Vec<Token>,
    /// With the last part of a choice
    pub end: Option<End>,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    pub finished: Finished,
    /// Whether the model wants tools to be called
    pub calls_tools: bool,
    /// The stop string that ended it
    pub stop_string: Option<String>,
}

/// A message put together from its deltas: text of one kind that follows on itself is one block, and so is every call.
#[derive(Default)]
pub struct Blocks(Vec<Block>);

pub enum Block {
    Text(String),
    Reasoning(String),
    Call {
        name: String,
        /// JSON text
        arguments: String,
    },
}

impl Blocks {
    pub fn all(&self) -> &[Block] {
        &self.0
    }

    /// The index of the block that grows.
    pub fn last(&self) -> Option<usize> {
        self.0.len().checked_sub(1)
    }

    /// Whether the delta belongs to a block that is not there yet: [`Blocks::begin`] comes before [`Blocks::add`] then.
    pub fn is_beginning(&self, delta: &Delta) -> bool {
        match (delta, self.0.last()) {
            (Delta::CallStart { .. }, _) => true,
            (Delta::Content(_), last) => !matches!(last, Some(Block::Text(_))),
            (Delta::Reasoning(_), last) => !matches!(last, Some(Block::Reasoning(_))),
            (Delta::CallArguments { .. }, _) => false,
        }
    }

    /// Adds the delta's block, still empty.
    pub fn begin(&mut self, delta: &Delta) {
        self.0.push(match delta {
            Delta::Content(_) => Block::Text(String::new()),
            Delta::Reasoning(_) => Block::Reasoning(String::new()),
            Delta::CallStart { name, .. } | Delta::CallArguments { text: name, .. } => {
                Block::Call { name: name.clone(), arguments: String::new() }
            }
        });
    }

    /// Adds the delta's text to the last block and returns it; the start of a call has none.
    pub fn add(&mut self, delta: Delta) -> Option<String> {
        let (text, more) = match (self.0.last_mut()?, delta) {
            (Block::Text(text), Delta::Content(more))
            | (Block::Reasoning(text), Delta::Reasoning(more))
            | (Block::Call { arguments: text, .. }, Delta::CallArguments { text: more, .. }) => (text, more),
            _ => return None,
        };
        *text += &more;
        Some(more)
    }
}

/// What is known of a turn beside its fields.
#[derive(Clone, Debug)]
pub struct Asked {
    pub client: Client,
    /// Alternatives whose log-probabilities are shown with every token's
    pub logprobs: Option<usize>,
}

impl Turn {
    /// Reads the fields that make the prompt and the generation, in the names of `/v1/chat/completions`, and begins to answer.
    ///
    /// # Errors
    /// Naming the field that is wrong or not supported; when the engine refuses the request.
    pub async fn start(app: &Arc<App>, model: &Served, fields: &mut Fields, asked: Asked) -> Result<Self> {
        let Asked { client, logprobs } = asked;
        let mut generation = Generation { logprobs, ..Generation::read(fields, &model.sampling, client)? };
        let mut prompt = ChatPrompt::read(fields)?;
        let choice = ToolChoice::read(fields.take("tool_choice").as_ref())?;
        let tools = prompt.tool_format(model, &choice)?;
        let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        if let Some(calls) = prompt.forced_calls(model, &choice, tools, parallel)? {
            match generation.grammar.take() {
                Some(wanted) if choice.is_forced() => return Err(structured::excluded(&wanted.param, "tool_choice")),
                // What the answer must look like leaves no room for calls.
                Some(wanted) => generation.grammar = Some(wanted),
                None => generation.grammar = Some(calls),
            }
        }
        generation.skip_special &= !tools.is_some_and(ToolFormat::needs_special_tokens);
        if tools == Some(ToolFormat::FunctionGemma) {
            // Behind a call the model would go on with what it takes for the result.
            generation.stop_token_ids.extend(model.tokenizer.token_id("<start_function_response>"));
        }
        let split_reasoning = fields.bool("separate_reasoning")?.unwrap_or(true);
        let names = prompt.tool_names();
        let rendered = prompt.render(app).await?;
        if let Some(mark) = open_reasoning(&rendered.end) {
            generation.grammar = generation.grammar.map(|wanted| Wanted { grammar: wanted.grammar.after(mark), ..wanted });
        }
        // Whoever asks for JSON, or for calls that are valid, gets them with the marks of the model's form.
        let is_free = generation.grammar.is_none();
        let parser = || {
            let parser = OutputParser::new(tools, split_reasoning, &rendered.end);
            let parser = if is_free { parser.bare_calls(&names) } else { parser };
            if parallel { parser } else { parser.one_call() }
        };
        let parsers = (0..generation.n).map(|_| parser()).collect();
        let answers = Answers::start(app, model, vec![rendered.tokens], &generation).await?;
        Ok(Self { answers, parsers, reasoning_tokens: 0 })
    }

    pub fn choices(&self) -> usize {
        self.parsers.len()
    }

    pub fn usage(&self) -> Usage {
        Usage { reasoning_tokens: self.reasoning_tokens, ..self.answers.usage() }
    }

    /// The next piece of the answers, taken apart; `None` after the last.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn next(&mut self) -> Result<Option<Part>> {
        Ok(match self.answers.next().await? {
            // Nothing is read of a conversation's prompt.
            None | Some(Piece::Prompt { .. }) => None,
            Some(Piece::Text { choice, text, tokens }) => {
                let parser = &mut self.parsers[choice];
                let reasoned = parser.is_reasoning();
                let deltas = parser.push(&text);
                if reasoned || parser.is_reasoning() {
                    self.reasoning_tokens += tokens.len();
                }
                Some(Part { choice, deltas, tokens, end: None })
            }
            Some(Piece::Finished { choice, finished, stop_string }) => {
                let parser = &mut self.parsers[choice];
                let deltas = parser.finish();
                let calls_tools = parser.calls() > 0 && finished.reason == FinishReason::Stop;
                Some(Part { choice, deltas, tokens: Vec::new(), end: Some(End { finished, calls_tools, stop_string }) })
            }
        })
    }
}
