//! What a model writes, taken apart: text to show, reasoning, and tool calls in the model family's own form.

mod call;
mod marks;

use call::Call;
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

/// How a model family writes tool calls, told by its chat template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen, SmolLM
    Hermes,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`: Mistral
    Mistral,
    /// The whole answer is `{"name": …, "parameters": {…}}`: Llama 3
    Llama3,
}

impl ToolFormat {
    /// `None` where the template takes no tools, or writes calls in a form that is not known here.
    pub fn of_template(source: &str) -> Option<Self> {
        let has = |text: &str| source.contains(text);
        if !has("tools") || has("<function=") {
            None
        } else if has("<tool_call>") {
            Some(Self::Hermes)
        } else if has("[TOOL_CALLS]") {
            Some(Self::Mistral)
        } else if has("ipython") || has("<|python_tag|>") {
            Some(Self::Llama3)
        } else {
            None
        }
    }

    /// Whether the marks are special tokens, which decoded text usually leaves out.
    pub fn needs_special_tokens(self) -> bool {
        self == Self::Mistral
    }

    const fn opening(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Mistral => "[TOOL_CALLS]",
            Self::Llama3 => "{",
        }
    }
}

const HERMES_CLOSING: &str = "</tool_call>";
/// Marks around reasoning text.
const REASONING: [(&str, &str); 2] = [("<think>", "</think>"), ("[THINK]", "[/THINK]")];
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
    reasoning: bool,
    state: State,
    /// Text that cannot be told apart yet
    held: String,
    calls: usize,
    /// Whether anything but white space was shown
    shown: bool,
    /// Calls that are reported; more are left out
    most_calls: usize,
}

#[derive(Debug)]
enum State {
    Content,
    /// Until this mark
    Reasoning(&'static str),
    /// Inside a call; the text of it so far is held
    Call(Call),
    /// Behind Mistral's mark: calls, one after the other
    Calls,
}

impl OutputParser {
    /// `tools`: look for calls of this form. `prompt_end`: the end of the rendered prompt, which may have opened the reasoning.
    pub fn new(tools: Option<ToolFormat>, split_reasoning: bool, prompt_end: &str) -> Self {
        let open = open_reasoning(prompt_end).filter(|_| split_reasoning);
        let state = open.map_or(State::Content, State::Reasoning);
        Self { tools, reasoning: split_reasoning, state, held: String::new(), calls: 0, shown: false, most_calls: usize::MAX }
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
        let rest = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.state, State::Content) {
            State::Content | State::Calls => self.show(rest, &mut deltas),
            State::Reasoning(_) if rest.is_empty() => {}
            State::Reasoning(_) => deltas.push(Delta::Reasoning(rest)),
            State::Call(mut call) => {
                self.call_deltas(&mut call, &rest, &mut deltas);
                if !call.started() {
                    self.held = rest;
                    self.not_a_call(&mut deltas);
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
            State::Calls => self.next_call(deltas),
        }
    }

    fn content(&mut self, deltas: &mut Vec<Delta>) -> bool {
        // Llama 3 calls only at the very start of an answer.
        let tool_mark = self.tools.filter(|t| *t != ToolFormat::Llama3 || !self.shown).map(ToolFormat::opening);
        let reasoning_marks = REASONING.iter().filter(|_| self.reasoning && !self.shown && self.calls == 0).map(|m| m.0);
        // The closing mark of a call comes behind its object, and may come late.
        let closing_mark = self.tools.filter(|t| *t == ToolFormat::Hermes && self.calls > 0).map(|_| HERMES_CLOSING);
        let marks: Vec<&str> = tool_mark.into_iter().chain(closing_mark).chain(reasoning_marks).collect();
        match find(&self.held, &marks) {
            Found::None { certain } => {
                // White space in front of a call is not shown, so it waits for what comes.
                let certain = if tool_mark.is_some() { self.held[..certain].trim_end().len() } else { certain };
                let rest = self.held.split_off(certain);
                let text = std::mem::replace(&mut self.held, rest);
                self.show(text, deltas);
                false
            }
            Found::Mark { start, mark } => {
                let before = self.held[..start].to_owned();
                if Some(mark) == tool_mark && self.tools == Some(ToolFormat::Llama3) {
                    // Text in front of a brace makes it an ordinary answer.
                    if !before.trim().is_empty() {
                        let text = std::mem::take(&mut self.held);
                        self.show(text, deltas);
                        return false;
                    }
                    self.held.drain(..start);
                    self.begin_call();
                    return true;
                }
                self.held.drain(..start + mark.len());
                if Some(mark) == closing_mark {
                    self.show(before, deltas);
                    return true;
                }
                let is_tool = Some(mark) == tool_mark;
                // White space in front of a call or of reasoning is layout.
                self.show(if is_tool || !self.shown { before.trim_end().to_owned() } else { before }, deltas);
                match self.tools {
                    Some(ToolFormat::Mistral) if is_tool => self.state = State::Calls,
                    _ if is_tool => self.begin_call(),
                    _ => {
                        let closing = REASONING.iter().find(|m| m.0 == mark).map_or("", |m| m.1);
                        self.state = State::Reasoning(closing);
                    }
                }
                true
            }
        }
    }

    fn reasoning(&mut self, closing: &'static str, deltas: &mut Vec<Delta>) -> bool {
        match find(&self.held, &[closing]) {
            Found::Mark { start, .. } => {
                let text = self.held[..start].to_owned();
                self.held.drain(..start + closing.len());
                if !text.is_empty() {
                    deltas.push(Delta::Reasoning(text));
                }
                self.state = State::Content;
                true
            }
            Found::None { certain } => {
                let rest = self.held.split_off(certain);
                let text = std::mem::replace(&mut self.held, rest);
                if !text.is_empty() {
                    deltas.push(Delta::Reasoning(text));
                }
                self.state = State::Reasoning(closing);
                false
            }
        }
    }

    fn begin_call(&mut self) {
        self.state = State::Call(Call::default());
        self.calls += 1;
    }

    fn next_call(&mut self, deltas: &mut Vec<Delta>) -> bool {
        let skipped = self.held.trim_start_matches(|c: char| c.is_whitespace() || "[],".contains(c));
        let skip = self.held.len() - skipped.len();
        self.held.drain(..skip);
        match self.held.chars().next() {
            Some('{') => {
                self.begin_call();
                true
            }
            None => {
                self.state = State::Calls;
                false
            }
            Some(_) => {
                let text = std::mem::take(&mut self.held);
                self.show(text, deltas);
                false
            }
        }
    }

    fn call(&mut self, mut call: Call, deltas: &mut Vec<Delta>) -> bool {
        let held = std::mem::take(&mut self.held);
        let end = self.call_deltas(&mut call, &held, deltas);
        self.held = held;
        match end {
            Some(end) if call.started() => {
                self.held.drain(..end);
                self.state = if self.tools == Some(ToolFormat::Mistral) { State::Calls } else { State::Content };
                true
            }
            // An object that is no call, or never ends: ordinary text.
            Some(_) => self.not_a_call(deltas),
            None if self.held.len() > MAX_CALL_BYTES && !call.started() => self.not_a_call(deltas),
            None => {
                self.state = State::Call(call);
                false
            }
        }
    }

    fn not_a_call(&mut self, deltas: &mut Vec<Delta>) -> bool {
        self.calls -= 1;
        let opening = if self.tools == Some(ToolFormat::Hermes) { ToolFormat::Hermes.opening() } else { "" };
        let text = format!("{opening}{}", std::mem::take(&mut self.held));
        self.show(text, deltas);
        false
    }

    /// What `text` adds to the call, and where the call's object ends in it.
    fn call_deltas(&self, call: &mut Call, text: &str, deltas: &mut Vec<Delta>) -> Option<usize> {
        let index = self.calls - 1;
        let (update, end) = call.read(text);
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

    fn show(&mut self, text: String, deltas: &mut Vec<Delta>) {
        // White space before the first word, and around calls, is layout.
        let text = if self.shown { text } else { text.trim_start().to_owned() };
        if text.is_empty() || self.calls > 0 && text.trim().is_empty() {
            return;
        }
        self.shown = true;
        deltas.push(Delta::Content(text));
    }
}

#[cfg(test)]
mod tests;
