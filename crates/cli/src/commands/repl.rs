//! The chat: `ferrum run MODEL` at a terminal.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, bail};
use ferrum_engine::{FinishReason, SamplingParams, TextOptions};
use ferrum_models::{hub::HubOptions, text::Position};
use rustyline::{DefaultEditor, error::ReadlineError};
use serde_json::{Value, json};

use super::run;
use crate::{answer::answer, args::RunArgs, conversation::Conversation, interrupt, open::Session, output};

const HELP: &str = "\
/system [TEXT]       show or set the system message (starts the conversation over)
/clear               start the conversation over
/save FILE           write the conversation as JSON
/load FILE           read a conversation that /save wrote
/params [NAME VALUE] show or set temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty,
                     frequency_penalty, seed, max_tokens
/help                this text
/exit                leave (also Ctrl-D)
A line that ends with \\ goes on in the next; so does everything between \"\"\" at the beginning of a line and \"\"\" at the end of one.
Behind a line of \"\"\" alone, until the next line of \"\"\" alone.
Ctrl-C stops the answer.
";

/// A chat in progress.
struct Chat<'a> {
    args: &'a RunArgs,
    session: Session,
    sampling: SamplingParams,
    max_tokens: Option<u64>,
    conversation: Conversation,
}

/// What to do after a command.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Read,
    Exit,
}

pub fn run(args: &RunArgs, session: Session, sampling: SamplingParams) -> anyhow::Result<()> {
    let conversation = Conversation::new(&session.tokenizer, args.system.clone())?;
    let mut chat = Chat { args, session, sampling, max_tokens: args.max_tokens, conversation };
    let mut editor = DefaultEditor::new().context("cannot read from this terminal; pass the prompt as an argument")?;
    let history = history_file(args);
    // A first chat has no history, and one that cannot be read is only inconvenient.
    let _ = editor.load_history(&history);
    output::text("Type a message, /help for commands, /exit to leave.\n")?;
    while let Some(text) = read(&mut editor)? {
        if text.trim().is_empty() {
            continue;
        }
        // Refused only when lines of history are kept out, which is not asked for.
        let _ = editor.add_history_entry(&text);
        let result = match text.trim().strip_prefix('/') {
            Some(command) => chat.command(command),
            None => chat.turn(&text).map(|()| Next::Read),
        };
        match result {
            Ok(Next::Read) => {}
            Ok(Next::Exit) => break,
            Err(error) if output::is_broken_pipe(&error) => return Err(error),
            // The weights are no longer what they were: nothing that follows would be right.
            Err(error) if chat.session.checkpoint.weights().check().is_err() => return Err(error),
            Err(error) => output::report(&error),
        }
    }
    if let Some(dir) = history.parent() {
        let saved = fs::create_dir_all(dir).map_err(ReadlineError::from).and_then(|()| editor.save_history(&history));
        if let Err(error) = saved {
            eprintln!("the history could not be kept in {}: {error}", history.display());
        }
    }
    Ok(())
}

impl Chat<'_> {
    fn turn(&mut self, text: &str) -> anyhow::Result<()> {
        let asked = Instant::now();
        let ids = self.conversation.ask(&self.session.tokenizer, text)?;
        let keep = self.conversation.system_tokens(&self.session.tokenizer, &ids);
        let mut request = run::request(self.args, self.sampling.clone(), ids, keep);
        request.max_tokens = self.max_tokens;
        let options = TextOptions { position: Position::Start, stops: &self.args.stop, skip_special: true };
        let submitted = asked.elapsed();
        let caught = interrupt::Catch::new();
        let result = answer(&mut self.session, request, options, output::text);
        drop(caught);
        let answer = match result {
            Ok(answer) => answer,
            Err(error) => {
                self.conversation.unask();
                return Err(error);
            }
        };
        output::text("\n")?;
        self.conversation.answered(&answer.text, &answer.tokens);
        if answer.finished.reason == FinishReason::Cancelled {
            eprintln!("(stopped)");
        }
        if self.args.stats {
            let first = (submitted + answer.prompt_time).as_secs_f64();
            eprintln!("first token after {first:.2} s · {}", run::stats(&answer));
        }
        run::context_full(&self.session, &answer)
    }

    fn command(&mut self, line: &str) -> anyhow::Result<Next> {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match (name, rest) {
            ("exit" | "quit" | "bye", _) => return Ok(Next::Exit),
            ("help" | "?", _) => output::text(HELP)?,
            ("clear", _) => self.conversation.clear(),
            ("system", "") => output::text(&format!("{}\n", self.conversation.system.as_deref().unwrap_or("(no system message)")))?,
            ("system", text) => {
                self.conversation.system = Some(text.to_owned());
                self.conversation.clear();
            }
            ("save" | "load", "") => bail!("/{name} needs a file name"),
            ("save", file) => self.save(&path(file))?,
            ("load", file) => self.load(&path(file))?,
            ("params", "") => output::text(&self.params())?,
            ("params", setting) => self.set(setting)?,
            _ => bail!("there is no command /{name}; /help lists them"),
        }
        Ok(Next::Read)
    }

    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let chat = json!({"model": self.args.model, "system": self.conversation.system, "messages": self.conversation.messages});
        fs::write(path, serde_json::to_vec_pretty(&chat)?).with_context(|| format!("cannot write {}", path.display()))
    }

    fn load(&mut self, path: &Path) -> anyhow::Result<()> {
        let chat = ferrum_models::read_json(path)?;
        let is_message = |m: &Value| m["role"].is_string() && m["content"].is_string();
        let Some(messages) = chat["messages"].as_array().filter(|m| m.iter().all(is_message)) else {
            bail!("{} is not a conversation that /save wrote", path.display());
        };
        self.conversation.clear();
        self.conversation.system = chat["system"].as_str().map(str::to_owned);
        self.conversation.messages.clone_from(messages);
        Ok(())
    }

    fn params(&self) -> String {
        let s = &self.sampling;
        let or = |n: Option<u64>, otherwise: &str| n.map_or(otherwise.to_owned(), |n| n.to_string());
        let shown = [
            ("temperature", s.temperature.to_string()),
            ("top_k", s.top_k.to_string()),
            ("top_p", s.top_p.to_string()),
            ("min_p", s.min_p.to_string()),
            ("repeat_penalty", s.repetition_penalty.to_string()),
            ("presence_penalty", s.presence_penalty.to_string()),
            ("frequency_penalty", s.frequency_penalty.to_string()),
            ("seed", or(s.seed, "random")),
            ("max_tokens", or(self.max_tokens, "none")),
        ];
        shown.map(|(name, value)| format!("{name} {value}\n")).concat()
    }

    fn set(&mut self, setting: &str) -> anyhow::Result<()> {
        let Some((name, value)) = setting.split_once(|c: char| c.is_whitespace() || c == '=') else {
            bail!("write /params NAME VALUE, e.g. /params temperature 0.5");
        };
        let value = value.trim();
        let number = || value.parse::<f64>().with_context(|| format!("`{value}` is not a number"));
        let whole = || value.parse::<u64>().with_context(|| format!("`{value}` is not a whole number"));
        let (mut s, mut max_tokens) = (self.sampling.clone(), self.max_tokens);
        match name.trim().replace('-', "_").as_str() {
            "temperature" => s.temperature = number()?,
            "top_k" => s.top_k = value.parse().with_context(|| format!("`{value}` is not a whole number"))?,
            "top_p" => s.top_p = number()?,
            "min_p" => s.min_p = number()?,
            "repeat_penalty" => s.repetition_penalty = number()?,
            "presence_penalty" => s.presence_penalty = number()?,
            "frequency_penalty" => s.frequency_penalty = number()?,
            "seed" => s.seed = if value == "random" { None } else { Some(whole()?) },
            "max_tokens" => max_tokens = if value == "none" { None } else { Some(whole()?) },
            other => bail!("there is no parameter `{other}`; /params lists them"),
        }
        let mut request = run::request(self.args, s.clone(), vec![0], 0);
        request.max_tokens = max_tokens;
        request.validate(self.session.engine.model_info().vocab)?;
        (self.sampling, self.max_tokens) = (s, max_tokens);
        Ok(())
    }
}

/// Around messages of many lines.
const QUOTES: &str = "\"\"\"";

/// A message, as far as it has been typed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    text: String,
    quotes: Quotes,
}

/// What the message is in, and so what ends it.
#[derive(Debug, Default, PartialEq, Eq)]
enum Quotes {
    /// Nothing: the next line without a backslash at its end
    #[default]
    None,
    /// Quotes in front of text: quotes behind text
    Around,
    /// Quotes on a line of their own: the same again, for the text may have quotes in it, as code has
    Block,
}

impl Message {
    /// Takes a line; whether it was the last one.
    fn add(&mut self, mut line: &str) -> bool {
        if let (Quotes::None, Some(rest)) = (&self.quotes, line.trim_start().strip_prefix(QUOTES)) {
            if rest.trim().is_empty() {
                self.quotes = Quotes::Block;
                return false;
            }
            self.quotes = Quotes::Around;
            line = rest;
        }
        let trimmed = line.trim_end();
        let (line, is_last) = match self.quotes {
            Quotes::None => trimmed.strip_suffix('\\').map_or((line, true), |start| (start, false)),
            Quotes::Around => trimmed.strip_suffix(QUOTES).map_or((line, false), |start| (start, true)),
            Quotes::Block if line.trim() == QUOTES => ("", true),
            Quotes::Block => (line, false),
        };
        self.text += line;
        if !is_last {
            self.text.push('\n');
        }
        is_last
    }
}

/// One message; `None` at the end of input.
fn read(editor: &mut DefaultEditor) -> anyhow::Result<Option<String>> {
    let mut message = Message::default();
    loop {
        let is_begun = message != Message::default();
        match editor.readline(if is_begun { "... " } else { ">>> " }) {
            Ok(line) if message.add(&line) => return Ok(Some(message.text)),
            Ok(_) => {}
            // Ctrl-C drops the message that was begun.
            Err(ReadlineError::Interrupted) if is_begun => message = Message::default(),
            Err(ReadlineError::Interrupted) => eprintln!("(/exit or Ctrl-D leaves)"),
            Err(ReadlineError::Eof) => return Ok(None),
            Err(error) => return Err(error).context("cannot read from the terminal"),
        }
    }
}

fn path(text: &str) -> PathBuf {
    let home = text.strip_prefix("~/").zip(std::env::home_dir());
    home.map_or_else(|| PathBuf::from(text), |(rest, home)| home.join(rest))
}

/// Beside the folder of downloaded models.
fn history_file(args: &RunArgs) -> PathBuf {
    let models = args.hub.models_dir.clone().unwrap_or_else(|| HubOptions::from_env().models_dir);
    models.parent().map(|dir| dir.join("history")).unwrap_or_else(|| models.join("history"))
}
