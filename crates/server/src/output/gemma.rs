//! FunctionGemma's calls, `call:NAME{key:<escape>text<escape>,key:12}`, read as JSON while they arrive.

use std::borrow::Cow;

use serde_json::Value;

use super::{
    call::Parts,
    marks::{Found, find},
};

/// Around every text.
pub const QUOTE: &str = "<escape>";
const OPENING: &str = "call:";
const MAX_NAME_BYTES: usize = 128;

/// Reads the call that `text` begins with.
pub fn scan(text: &str) -> Parts<'_> {
    let call = text.trim_start();
    let start = text.len() - call.len();
    let Some(rest) = call.strip_prefix(OPENING) else {
        let may_come = OPENING.starts_with(call);
        return Parts { end: (!may_come).then_some(start), ..Parts::default() };
    };
    let name_len = rest.find('{').unwrap_or(rest.len());
    let name = &rest[..name_len];
    if name.len() > MAX_NAME_BYTES || name.contains(|c: char| c.is_whitespace() || "<>}".contains(c)) {
        return Parts { end: Some(start), ..Parts::default() };
    }
    if name_len == rest.len() {
        return Parts::default();
    }
    let at = start + OPENING.len() + name_len;
    let mut json = Json { text, at, out: String::new(), open: Vec::new() };
    let end = json.object().then_some(json.at);
    Parts { name: Some(name.to_owned()), arguments: Some(Cow::Owned(json.out)), end }
}

/// The JSON of what has come so far. It only grows as more comes.
struct Json<'a> {
    text: &'a str,
    at: usize,
    out: String,
    /// Objects and arrays that are open
    open: Vec<Open>,
}

struct Open {
    closing: char,
    is_empty: bool,
}

impl Json<'_> {
    /// Reads the object at `at`; `false` when more must come first. What is malformed becomes the JSON nearest to it.
    fn object(&mut self) -> bool {
        self.begin('{', '}');
        while let Some(open) = self.open.last() {
            let in_object = open.closing == '}';
            self.at += self.rest().len() - self.rest().trim_start_matches(|c: char| c.is_whitespace() || c == ',').len();
            match self.rest().chars().next() {
                None => return false,
                // Whatever closes, it closes what is open.
                Some('}' | ']') => {
                    self.at += 1;
                    self.out.extend(self.open.pop().map(|open| open.closing));
                }
                Some(_) => {
                    if !(if in_object { self.key() && self.value() } else { self.value() }) {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn begin(&mut self, opening: char, closing: char) {
        self.out.push(opening);
        self.open.push(Open { closing, is_empty: true });
        self.at += 1;
    }

    /// A comma, but for the first.
    fn separate(&mut self) {
        if let Some(open) = self.open.last_mut()
            && !std::mem::replace(&mut open.is_empty, false)
        {
            self.out.push(',');
        }
    }

    fn key(&mut self) -> bool {
        let Some(len) = self.rest().find([':', ',', '}', ']']) else { return false };
        let key = self.rest()[..len].trim().trim_matches('"');
        let key = key.strip_prefix(QUOTE).unwrap_or(key);
        let key = Value::from(key.strip_suffix(QUOTE).unwrap_or(key)).to_string();
        // A key is written when its value has begun, so that there is none without.
        let value = self.rest()[len..].trim_start_matches(|c: char| c == ':' || c.is_whitespace());
        let Some(next) = value.chars().next() else { return false };
        let at = self.text.len() - value.len();
        let has_value = !['}', ',', ']'].contains(&next);
        if has_value && !"{[".contains(next) && !value.starts_with(QUOTE) && !value.contains([',', '}', ']']) {
            return false;
        }
        self.separate();
        self.out += &key;
        self.out.push(':');
        if !has_value {
            self.out += "null";
        }
        self.at = at;
        true
    }

    fn value(&mut self) -> bool {
        let in_object = self.open.last().is_some_and(|open| open.closing == '}');
        let separate = |json: &mut Self| {
            if !in_object {
                json.separate()
            }
        };
        let rest = self.rest();
        match rest.chars().next() {
            None => return false,
            // The value that is missing was written with its key.
            Some('}' | ']' | ',') => {}
            Some('{') => {
                separate(self);
                self.begin('{', '}');
            }
            Some('[') => {
                separate(self);
                self.begin('[', ']');
            }
            Some(_) if rest.starts_with(QUOTE) => {
                separate(self);
                return self.quoted();
            }
            Some(_) => {
                let Some(len) = rest.find([',', '}', ']']) else { return false };
                let raw = rest[..len].trim();
                let plain = serde_json::from_str::<Value>(raw).is_ok();
                let word = if plain { raw.to_owned() } else { Value::from(raw).to_string() };
                separate(self);
                self.out += &word;
                self.at += len;
            }
        }
        true
    }

    fn quoted(&mut self) -> bool {
        let inner = self.at + QUOTE.len();
        let (len, whole) = match find(&self.text[inner..], &[QUOTE]) {
            Found::Mark { start, .. } => (start, true),
            Found::None { certain } => (certain, false),
        };
        let quoted = Value::from(&self.text[inner..inner + len]).to_string();
        self.out += if whole { &quoted } else { &quoted[..quoted.len() - 1] };
        self.at = inner + len + if whole { QUOTE.len() } else { 0 };
        whole
    }
}
