//! A tool call, read while it arrives.

use std::borrow::Cow;

use super::{format::ToolFormat, gemma};

/// What more text brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// The call's name, once, when it is whole and the arguments have begun
    pub name: Option<String>,
    /// More of the arguments, as the model wrote them
    pub arguments: String,
}

/// How far a call has been reported.
#[derive(Debug, Default)]
pub struct Call {
    started: bool,
    /// Bytes of the arguments that were reported
    reported: usize,
}

/// The parts of a call.
#[derive(Debug, Default)]
pub struct Parts<'a> {
    pub name: Option<String>,
    /// The JSON text of the arguments, as far as it has come
    pub arguments: Option<Cow<'a, str>>,
    /// End of the call
    pub end: Option<usize>,
}

impl Call {
    /// Whether the name has been reported.
    pub fn started(&self) -> bool {
        self.started
    }

    /// Reads the call that `text`, the whole text so far, begins with. Returns what is new and where the call ends. `names`: those of
    /// calls, where no mark of the form says that it is one; an object with another name is none.
    pub fn read(&mut self, format: ToolFormat, names: Option<&[String]>, text: &str) -> (Update, Option<usize>) {
        let Parts { name, arguments, end } = if format == ToolFormat::FunctionGemma { gemma::scan(text) } else { scan(text) };
        let mut update = Update::default();
        let arguments = match arguments {
            Some(arguments) => arguments,
            // Where a mark says that it is a call, arguments may be missing. Such a call is reported with its end.
            None if end.is_some() && !format.is_bare() && names.is_none() => "{}".into(),
            None => return (update, end),
        };
        // A name that comes last is reported with the whole.
        let is_called = |name: &String| self.started || names.is_none_or(|names| names.contains(name));
        let Some(name) = name.filter(is_called) else { return (update, end) };
        if !self.started {
            self.started = true;
            update.name = Some(name);
        }
        update.arguments = arguments.get(self.reported..).unwrap_or_default().to_owned();
        self.reported += update.arguments.len();
        (update, end)
    }
}

/// Finds the members at the top level of the object at the start of `text`.
fn scan(text: &str) -> Parts<'_> {
    let mut parts = Parts::default();
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0usize);
    // The key of the member that is being read, and where its value began.
    let (mut key, mut value): (Option<String>, Option<usize>) = (None, None);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                if value.is_none() && key.is_some() {
                    value = Some(at);
                }
                let Some(end) = string_end(bytes, at) else { break };
                if depth == 1 && key.is_none() {
                    key = serde_json::from_str(&text[at..end]).ok();
                }
                at = end;
                continue;
            }
            b'{' | b'[' => {
                if depth == 1 && value.is_none() && key.is_some() {
                    value = Some(at);
                }
                depth += 1;
            }
            close @ (b'}' | b']' | b',') => {
                if depth == 1 {
                    finish(&mut parts, text, key.take(), value.take(), at);
                }
                if close != b',' {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        parts.end = Some(at + 1);
                        return parts;
                    }
                }
            }
            b':' if depth == 1 => {}
            byte if depth == 1 && value.is_none() && key.is_some() && !byte.is_ascii_whitespace() => value = Some(at),
            byte if depth == 0 && !byte.is_ascii_whitespace() => {
                // Not an object at all.
                parts.end = Some(at);
                return parts;
            }
            _ => {}
        }
        at += 1;
    }
    if let (Some(key), Some(start)) = (&key, value)
        && is_arguments(key)
        && bytes[start] == b'{'
    {
        // White space at the end may lie behind the object.
        parts.arguments = Some(text[start..].trim_end().into());
    }
    parts
}

/// Takes in the member `key: text[value..end]`.
fn finish<'a>(parts: &mut Parts<'a>, text: &'a str, key: Option<String>, value: Option<usize>, end: usize) {
    let (Some(key), Some(start)) = (key, value) else { return };
    let raw = text[start..end].trim_end();
    if key == "name" {
        parts.name = serde_json::from_str(raw).ok();
    } else if is_arguments(&key) && raw.starts_with('{') {
        parts.arguments = Some(raw.into());
    }
}

fn is_arguments(key: &str) -> bool {
    key == "arguments" || key == "parameters"
}

/// Index behind the closing quote of the string that begins at `start`.
fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
    None
}
