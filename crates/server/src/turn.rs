//! One turn of a conversation: from a request's fields to the parts of its answers. All chat interfaces are shapes of it.

use std::sync::Arc;

use ferrum_engine::{FinishReason, Finished};

use crate::{
    app::{App, Served},
    error::Result,
    fields::Fields,
    generate::{Answers, Piece, Token, Usage},
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

impl Turn {
    /// Reads the fields that make the prompt and the generation, in the names of `/v1/chat/completions`, and begins to answer.
    ///
    /// # Errors
    /// Naming the field that is wrong or not supported; when the engine refuses the request.
    pub async fn start(app: &Arc<App>, model: &Served, fields: &mut Fields, logprobs: Option<usize>) -> Result<Self> {
        let mut generation = Generation { logprobs, ..Generation::read(fields, &model.sampling)? };
        let mut prompt = ChatPrompt::read(fields)?;
        let choice = ToolChoice::read(fields.take("tool_choice").as_ref())?;
        let tools = prompt.tool_format(model, &choice)?;
        let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        if let Some(call) = prompt.forced_call(model, &choice, tools, parallel)?
            && let Some(wanted) = generation.grammar.replace(call)
        {
            return Err(structured::excluded(&wanted.param, "tool_choice"));
        }
        generation.skip_special &= !tools.is_some_and(ToolFormat::needs_special_tokens);
        let split_reasoning = fields.bool("separate_reasoning")?.unwrap_or(true);
        let rendered = prompt.render(app).await?;
        if let Some(mark) = open_reasoning(&rendered.end) {
            generation.grammar = generation.grammar.map(|wanted| Wanted { grammar: wanted.grammar.after(mark), ..wanted });
        }
        let parser = || {
            let parser = OutputParser::new(tools, split_reasoning, &rendered.end);
            if parallel { parser } else { parser.one_call() }
        };
        let parsers = (0..generation.n).map(|_| parser()).collect();
        let answers = Answers::start(app, model, vec![rendered.tokens], &generation).await?;
        Ok(Self { answers, parsers })
    }

    pub fn choices(&self) -> usize {
        self.parsers.len()
    }

    pub fn usage(&self) -> Usage {
        self.answers.usage()
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
                Some(Part { choice, deltas: self.parsers[choice].push(&text), tokens, end: None })
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
