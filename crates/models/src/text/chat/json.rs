//! JSON and `repr` as Python writes them.

use serde_json::{Number, Value};
use std::fmt::Write;

/// The options of Python's `json.dumps`.
pub(super) struct Layout {
    pub ensure_ascii: bool,
    pub sort_keys: bool,
    /// Between items.
    pub item: String,
    /// Between key and value.
    pub key: String,
    /// One item a line, indented by this much for each level.
    pub indent: Option<String>,
}

impl Layout {
    pub fn write(&self, value: &Value) -> String {
        let mut out = String::new();
        self.value(value, 0, &mut out);
        out
    }

    fn value(&self, value: &Value, depth: usize, out: &mut String) {
        match value {
            Value::Null => out.push_str("null"),
            Value::Bool(yes) => out.push_str(if *yes { "true" } else { "false" }),
            Value::Number(number) => out.push_str(&python_number(number)),
            Value::String(text) => self.string(text, out),
            Value::Array(items) => {
                let write = |item: &Value, out: &mut String| self.value(item, depth + 1, out);
                self.list(items.iter(), ('[', ']'), depth, out, write);
            }
            Value::Object(items) => {
                let mut items: Vec<_> = items.iter().collect();
                if self.sort_keys {
                    items.sort_by_key(|(key, _)| *key);
                }
                self.list(items.into_iter(), ('{', '}'), depth, out, |(key, item), out| {
                    self.string(key, out);
                    out.push_str(&self.key);
                    self.value(item, depth + 1, out);
                });
            }
        }
    }

    fn list<T>(
        &self,
        items: impl ExactSizeIterator<Item = T>,
        (open, close): (char, char),
        depth: usize,
        out: &mut String,
        write: impl Fn(T, &mut String),
    ) {
        let empty = items.len() == 0;
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = self.indent.as_ref().filter(|_| !empty) {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        out.push(open);
        for (i, item) in items.enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            line(depth + 1, out);
            write(item, out);
        }
        line(depth, out);
        out.push(close);
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for char in text.chars() {
            match char {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{C}' => out.push_str("\\f"),
                char if char < ' ' || (self.ensure_ascii && char >= '\u{7F}') => {
                    // Python leaves DEL as it is.
                    if char == '\u{7F}' {
                        out.push(char);
                        continue;
                    }
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                char => out.push(char),
            }
        }
        out.push('"');
    }
}

/// `repr` of plain data, which is also its `str` unless it is a string.
pub(super) fn python_repr(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(yes) => if *yes { "True" } else { "False" }.into(),
        Value::Number(number) => python_number(number),
        Value::String(text) => string_repr(text),
        Value::Array(items) => format!("[{}]", items.iter().map(python_repr).collect::<Vec<_>>().join(", ")),
        Value::Object(items) => {
            let item = |(key, value): (&String, &Value)| format!("{}: {}", string_repr(key), python_repr(value));
            format!("{{{}}}", items.iter().map(item).collect::<Vec<_>>().join(", "))
        }
    }
}

fn string_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            char if char == quote => {
                out.push('\\');
                out.push(char);
            }
            char if char < ' ' || ('\u{7F}'..='\u{A0}').contains(&char) || char == '\u{AD}' => {
                let _ = write!(out, "\\x{:02x}", char as u32);
            }
            char => out.push(char),
        }
    }
    out.push(quote);
    out
}

/// Integers in full; floats as the shortest text that reads back the same, with an exponent below 1e-4 and from 1e16 on.
fn python_number(number: &Number) -> String {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else { return number.to_string() };
    let size = float.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{float:e}");
        let Some((mantissa, exponent)) = text.split_once('e') else { return text };
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    let text = float.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_look_like_python() {
        let cases = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (123456789012345.0, "123456789012345.0"),
            (1e-5, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
            (0.0001, "0.0001"),
        ];
        for (number, text) in cases {
            assert_eq!(python_repr(&json!(number)), text);
        }
        assert_eq!(python_repr(&json!([1, true, null, "it's", {"a": "\"'"}])), r#"[1, True, None, "it's", {'a': '"\''}]"#);
    }

    #[test]
    fn json_looks_like_python() {
        let mut layout = Layout { ensure_ascii: true, sort_keys: false, item: ", ".into(), key: ": ".into(), indent: None };
        assert_eq!(layout.write(&json!({"b": "é🤦<\u{7f}", "a": []})), "{\"b\": \"\\u00e9\\ud83e\\udd26<\u{7f}\", \"a\": []}");
        layout.indent = Some("  ".into());
        layout.item = ",".into();
        assert_eq!(layout.write(&json!({"b": [1, 2], "a": {}})), "{\n  \"b\": [\n    1,\n    2\n  ],\n  \"a\": {}\n}");
    }
}
