//! What a model writes, taken apart: text to show, reasoning, and tool calls in the model family's own form.

mod call;
mod format;
mod gemma;
mod marks;

use call::Call;
pub use format::ToolFormat;
pub use gemma::QUOTE as GEMMA_QUOTE;
use marks::{Found, find};

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    Content(String),
    Reasoning(String),
    /// The `index`-th call begins
    CallStart {
        index: usize,
        name: String,
    },
    /// More of the JSON text of its arguments
    CallArguments {
        index: usize,
        text: String,
    },
}

/// Marks around reasoning text, which is what they are at the start of an answer alone.
pub const REASONING: [(&str, &str); 2] = [("<think>", "</think>"), ("[THINK]", "[/THINK]")];
/// Ends a block of code.
const FENCE: &str = "```";
/// What begins calls without marks.
const BARE: &[&str] = &["{", "```json\n"];
/// Longest text of a tool call; more is content.
const MAX_CALL_BYTES: usize = 1 << 20;

/// The mark that ends the reasoning which a prompt has opened.
pub fn open_reasoning(prompt_end: &str) -> Option<&'static str> {
    REASONING.iter().find(|(opening, _)| prompt_end.trim_end().ends_with(opening)).map(|(_, closing)| *closing)
}

/// Reads one answer as it comes. The deltas do not depend on how the text is cut, but for where they are cut themselves.
#[derive(Debug)]
pub struct OutputParser {
    tools: Option<ToolFormat>,
    /// Whether reasoning is told apart from the text, with its marks; no call is looked for in it
    split_reasoning: bool,
    state: State,
    /// Text that cannot be told apart yet
    held: String,
    /// What was taken for the opening of calls; text to show if no call comes
    opening: String,
    calls: usize,
    /// Whether anything but white space was shown, beside reasoning
    shown: bool,
    /// Whether reasoning was shown as text: white space behind it is part of the text
    thought: bool,
    /// Calls that are reported; more are left out
    most_calls: usize,
    /// Tools that an answer which begins with a call in JSON calls without the marks of its form too
    bare: Option<Vec<String>>,
}

#[derive(Debug)]
enum State {
    Content,
    /// Until this mark
    Reasoning(&'static str),
    /// Inside a call; the text of it so far is held
    Call(Call),
    /// Calls, one after the other, some of which have come or not
    Calls {
        some: bool,
    },
}

impl OutputParser {
    /// `tools`: look for calls of this form. `prompt_end`: the end of the rendered prompt, which may have opened the reasoning.
    pub fn new(tools: Option<ToolFormat>, split_reasoning: bool, prompt_end: &str) -> Self {
        let state = open_reasoning(prompt_end).map_or(State::Content, State::Reasoning);
        Self {
            tools,
            split_reasoning,
            state,
            held: String::new(),
            opening: String::new(),
            calls: 0,
            shown: false,
            thought: false,
            most_calls: usize::MAX,
            bare: None,
        }
    }

    /// Takes an answer that begins with a JSON object of arguments and one of these names, in a fenced block or not, for a call in the
    /// forms that have marks around JSON: small models (Qwen2.5-Coder among them) leave the marks out. With another name it is text:
    /// any JSON may have such members.
    #[must_use]
    pub fn bare_calls(mut self, names: &[String]) -> Self {
        self.bare = (self.tools == Some(ToolFormat::Hermes)).then(|| names.to_vec());
        self
    }

    /// Reports one call at most: `parallel_tool_calls: false`.
    #[must_use]
    pub fn one_call(mut self) -> Self {
        self.most_calls = 1;
        self
    }

    /// Calls seen so far.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Whether the text that comes next is reasoning, as far as is known.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning(_))
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        self.held.push_str(text);
        let mut deltas = Vec::new();
        while self.advance(&mut deltas) {}
        deltas
    }

    /// Ends the answer: what was held back is what it looks like.
    pub fn finish(&mut self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        match std::mem::replace(&mut self.state, State::Content) {
            State::Content | State::Calls { some: true } => self.show_held(&mut deltas),
            State::Calls { some: false } => self.no_call(self.held.len(), &mut deltas),
            State::Reasoning(_) => self.reason(self.held.len(), 0, &mut deltas),
            State::Call(mut call) => {
                self.call_deltas(&mut call, &mut deltas);
                if !call.started() {
                    self.calls -= 1;
                    self.no_call(self.held.len(), &mut deltas);
                }
            }
        }
        deltas
    }

    /// One step; `false` when more text is needed.
    fn advance(&mut self, deltas: &mut Vec<Delta>) -> bool {
        match std::mem::replace(&mut self.state, State::Content) {
            State::Content => self.content(deltas),
            State::Reasoning(closing) => self.reasoning(closing, deltas),
            State::Call(call) => self.call(call, deltas),
            State::Calls { some } => self.next_call(some, deltas),
        }
    }

    fn content(&mut self, deltas: &mut Vec<Delta>) -> bool {
        let anywhere = self.tools.map_or(&[][..], ToolFormat::openings);
        let at_start = if self.bare.is_some() { BARE } else { self.tools.map_or(&[][..], ToolFormat::openings_at_start) };
        let at_start = if self.shown { &[] } else { at_start };
        let reasoning = REASONING.iter().filter(|_| !self.shown && self.calls == 0).map(|m| m.0);
        // The closing mark of a call comes behind its object, and may come late.
        let closing = self.tools.and_then(ToolFormat::closing).filter(|_| self.calls > 0);
        let marks: Vec<&str> = reasoning.chain(anywhere.iter().chain(at_start).copied()).chain(closing).collect();
        match find(&self.held, &marks) {
            Found::None { certain } => {
                // White space in front of a call is not shown, so it waits for what comes.
                let certain = if self.tools.is_some() { self.held[..certain].trim_end().len() } else { certain };
                self.show_front(certain, deltas);
                false
            }
            // Text in front of what counts at the start alone: an ordinary answer.
            Found::Mark { start, mark } if !anywhere.contains(&mark) && Some(mark) != closing && !self.held[..start].trim().is_empty() => {
                self.show_front(start, deltas);
                true
            }
            Found::Mark { start, mark } if at_start.contains(&mark) => {
                self.held.drain(..start);
                if mark.starts_with(FENCE) {
                    self.opening = self.held.drain(..mark.len()).collect();
                }
                self.state = State::Calls { some: false };
                true
            }
            Found::Mark { start, mark } => {
                // White space in front of a mark is layout, if it is one.
                let text = self.held[..start].trim_end().len();
                self.show_front(text, deltas);
                let opening: String = self.held.drain(..start - text + mark.len()).collect();
                if Some(mark) == closing {
                    return true;
                }
                self.state = match self.tools.filter(|_| anywhere.contains(&mark)) {
                    None => {
                        if !self.split_reasoning {
                            let text = if self.thought { &opening } else { opening.trim_start() };
                            deltas.push(Delta::Content(text.to_owned()));
                            self.thought = true;
                        }
                        State::Reasoning(REASONING.iter().find(|m| m.0 == mark).map_or("", |m| m.1))
                    }
                    Some(tools) => {
                        self.opening = opening;
                        if tools.is_list() { State::Calls { some: false } } else { self.begin_call() }
                    }
                };
                true
            }
        }
    }

    fn reasoning(&mut self, closing: &'static str, deltas: &mut Vec<Delta>) -> bool {
        match find(&self.held, &[closing]) {
            Found::Mark { start, .. } => {
                self.reason(start, closing.len(), deltas);
                self.state = State::Content;
                true
            }
            Found::None { certain } => {
                self.reason(certain, 0, deltas);
                self.state = State::Reasoning(closing);
                false
            }
        }
    }

    /// Shows `len` bytes of reasoning and takes the `mark_len` bytes of the mark behind them.
    fn reason(&mut self, len: usize, mark_len: usize, deltas: &mut Vec<Delta>) {
        let mut text: String = self.held.drain(..len + mark_len).collect();
        if self.split_reasoning {
            text.truncate(len);
        }
        self.thought |= !self.split_reasoning;
        if !text.is_empty() {
            deltas.push(if self.split_reasoning { Delta::Reasoning(text) } else { Delta::Content(text) });
        }
    }

    fn begin_call(&mut self) -> State {
        self.calls += 1;
        State::Call(Call::default())
    }

    fn next_call(&mut self, some: bool, deltas: &mut Vec<Delta>) -> bool {
        let rest = self.held.trim_start_matches(|c: char| c.is_whitespace() || "[],;".contains(c));
        let skipped = self.held.drain(..self.held.len() - rest.len());
        if some {
            drop(skipped)
        } else {
            self.opening.extend(skipped)
        }
        let is_fenced = some && (self.bare.is_some() || self.tools == Some(ToolFormat::Json));
        if self.held.starts_with('{') {
            self.state = self.begin_call();
            true
        } else if self.held.is_empty() || is_fenced && self.held.len() < FENCE.len() && FENCE.starts_with(&self.held) {
            self.state = State::Calls { some };
            false
        } else if is_fenced && self.held.starts_with(FENCE) {
            self.held.drain(..FENCE.len());
            true
        } else if some {
            true
        } else {
            self.no_call(0, deltas);
            true
        }
    }

    fn call(&mut self, mut call: Call, deltas: &mut Vec<Delta>) -> bool {
        match self.call_deltas(&mut call, deltas) {
            Some(end) if call.started() => {
                self.held.drain(..end);
                self.opening.clear();
                if self.bare.is_some() || self.tools.is_some_and(ToolFormat::is_list) {
                    self.state = State::Calls { some: true };
                }
                true
            }
            // An object that is no call, or never ends: ordinary text.
            Some(end) => {
                self.calls -= 1;
                self.no_call(end, deltas);
                true
            }
            None if self.held.len() > MAX_CALL_BYTES && !call.started() => {
                self.calls -= 1;
                self.no_call(self.held.len(), deltas);
                false
            }
            None => {
                self.state = State::Call(call);
                false
            }
        }
    }

    /// What opened a call, and `len` bytes behind it, are text.
    fn no_call(&mut self, len: usize, deltas: &mut Vec<Delta>) {
        self.held.insert_str(0, &self.opening);
        let len = len + std::mem::take(&mut self.opening).len();
        self.show_front(len, deltas);
    }

    /// What more text adds to the call, and where the call ends in it.
    fn call_deltas(&self, call: &mut Call, deltas: &mut Vec<Delta>) -> Option<usize> {
        let index = self.calls - 1;
        let tools = self.tools?;
        let names = self.bare.as_deref().filter(|_| !tools.openings().iter().any(|mark| self.opening.contains(mark)));
        let (update, end) = call.read(tools, names, &self.held);
        if index >= self.most_calls {
            return end;
        }
        if let Some(name) = update.name {
            deltas.push(Delta::CallStart { index, name });
        }
        if !update.arguments.is_empty() {
            deltas.push(Delta::CallArguments { index, text: update.arguments });
        }
        end
    }

    fn show_held(&mut self, deltas: &mut Vec<Delta>) {
        self.show_front(self.held.len(), deltas);
    }

    fn show_front(&mut self, len: usize, deltas: &mut Vec<Delta>) {
        let rest = self.held.split_off(len);
        let text = std::mem::replace(&mut self.held, rest);
        self.show(text, deltas);
    }

    fn show(&mut self, text: String, deltas: &mut Vec<Delta>) {
        // White space before the first word, and around calls, is layout.
        let text = if self.shown || self.thought { text } else { text.trim_start().to_owned() };
        let is_blank = text.trim().is_empty();
        if text.is_empty() || self.calls > 0 && is_blank {
            return;
        }
        self.shown |= !is_blank;
        deltas.push(Delta::Content(text));
    }
}

#[cfg(test)]
mod tests;
