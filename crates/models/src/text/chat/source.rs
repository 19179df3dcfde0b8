//! Rewrites the two constructs of Python's Jinja2 that minijinja's syntax lacks, before it compiles a template.
//!
//! - `{% generation %}…{% endgeneration %}` marks the assistant's tokens for training and renders as its body in a scope of its own,
//!   which is what `{% with %}` is.
//! - `"…" % value` formats a string. On numbers `%` stays the remainder, so only a literal on the left is rewritten, to
//!   `"…" | format(value)`.

use crate::text::error::{Result, cap};

/// Longest tag, in bytes, and the most of it that may be code rather than string literals. Real templates stay below 1,400 and 250.
/// The engine folds constants in time that is quadratic in the length of an expression.
const MAX_TAG_BYTES: usize = 16 << 10;
const MAX_TAG_CODE_BYTES: usize = 4 << 10;

/// The adapted source. Text outside tags is left alone.
///
/// # Errors
/// A tag that is too long.
pub(super) fn adapt(source: &str) -> Result<String> {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%").into_iter().chain(rest.find("{{")).chain(rest.find("{#")).min() {
        out.push_str(&rest[..open]);
        rest = &rest[open..];
        if rest.starts_with("{#") {
            let end = rest.find("#}").map_or(rest.len(), |end| end + 2);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let (end, code) = tag_end(rest);
        cap("a tag of the chat template", end, MAX_TAG_BYTES, "bytes")?;
        cap("an expression of the chat template", code, MAX_TAG_CODE_BYTES, "bytes")?;
        tag(&rest[..end], &mut out);
        rest = &rest[end..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Length of the tag that `text` starts with, its delimiters included, and how much of it is neither space nor in a string literal,
/// where delimiters mean nothing.
fn tag_end(text: &str) -> (usize, usize) {
    let bytes = text.as_bytes();
    let close = if bytes[1] == b'%' { b"%}" } else { b"}}" };
    let (mut at, mut code, mut braces) = (2, 0, 0u32);
    while at < bytes.len() {
        if braces == 0 && bytes[at..].starts_with(close) {
            return (at + 2, code);
        }
        at = match bytes[at] {
            b'"' | b'\'' => literal_end(bytes, at),
            _ => at + 1,
        };
        match bytes[at - 1] {
            b'{' => braces += 1,
            b'}' => braces = braces.saturating_sub(1),
            _ => {}
        }
        code += usize::from(!bytes[at - 1].is_ascii_whitespace());
    }
    (text.len(), code)
}

/// The end of the string literal that starts at `at`.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < bytes.len() && bytes[end] != bytes[at] {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    (end + 1).min(bytes.len())
}

fn tag(tag: &str, out: &mut String) {
    let inside = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']);
    match inside.trim() {
        "generation" => return out.push_str(&tag.replacen("generation", "with", 1)),
        "endgeneration" => return out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
        _ => {}
    }
    let bytes = tag.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if !matches!(bytes[at], b'"' | b'\'') {
            let next = bytes[at..].iter().position(|byte| matches!(byte, b'"' | b'\'')).map_or(bytes.len(), |len| at + len);
            out.push_str(&tag[at..next]);
            at = next;
            continue;
        }
        let end = literal_end(bytes, at);
        out.push_str(&tag[at..end]);
        at = end;
        if let Some((arguments, end)) = format_arguments(tag, end) {
            out.push_str(" | format(");
            out.push_str(&tag[arguments]);
            out.push(')');
            at = end;
        }
    }
}

/// If `% value` follows at `at`: where its arguments stand, and where it ends.
fn format_arguments(tag: &str, at: usize) -> Option<(std::ops::Range<usize>, usize)> {
    let bytes = tag.as_bytes();
    let skip = |at: usize| bytes[at..].iter().position(|byte| !byte.is_ascii_whitespace()).map_or(bytes.len(), |len| at + len);
    let percent = skip(at);
    if *bytes.get(percent)? != b'%' || matches!(bytes.get(percent + 1)?, b'}') {
        return None;
    }
    let start = skip(percent + 1);
    match *bytes.get(start)? {
        b'(' => {
            let end = closing(bytes, start)?;
            Some((start + 1..end - 1, end))
        }
        b'"' | b'\'' => {
            let end = trailers(bytes, literal_end(bytes, start))?;
            Some((start..end, end))
        }
        byte if byte.is_ascii_alphanumeric() || byte == b'_' => {
            let end = trailers(bytes, word_end(bytes, start))?;
            Some((start..end, end))
        }
        _ => None,
    }
}

/// Goes past attributes, subscripts, calls and filters, which all bind tighter than `%`.
fn trailers(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let next = bytes[at..].iter().position(|byte| !byte.is_ascii_whitespace()).map_or(bytes.len(), |len| at + len);
        at = match bytes.get(next) {
            Some(b'.') => word_end(bytes, next + 1),
            Some(b'|') => {
                let name = bytes[next + 1..].iter().position(|byte| !byte.is_ascii_whitespace()).map_or(bytes.len(), |len| next + 1 + len);
                word_end(bytes, name)
            }
            Some(b'(' | b'[') => closing(bytes, next)?,
            _ => return Some(at),
        };
    }
}

fn word_end(bytes: &[u8], at: usize) -> usize {
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    bytes[at..].iter().position(|byte| !word(byte)).map_or(bytes.len(), |len| at + len)
}

/// The end of the bracket that opens at `at`.
fn closing(bytes: &[u8], at: usize) -> Option<usize> {
    let (mut at, mut depth) = (at, 0u32);
    while at < bytes.len() {
        match bytes[at] {
            b'"' | b'\'' => {
                at = literal_end(bytes, at);
                continue;
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatting_is_rewritten_only_behind_a_literal() {
        let cases = [
            ("{{ '%s-%d' % (a, b.c[0]) }}", "{{ '%s-%d' | format(a, b.c[0]) }}"),
            ("{{ \"%s\" % x.y|upper ~ 'z' }}", "{{ \"%s\" | format(x.y|upper) ~ 'z' }}"),
            ("{{ a % 2 }}{% set b = 'x' %}{%- if 'y' -%}", "{{ a % 2 }}{% set b = 'x' %}{%- if 'y' -%}"),
            ("100 '%' % (x) {# '%s' % x #}", "100 '%' % (x) {# '%s' % x #}"),
            ("{%- generation -%}a{% endgeneration %}", "{%- with -%}a{% endwith %}"),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            ("{{ {'a': {'b': '%s' % 1}} }}", "{{ {'a': {'b': '%s' | format(1)}} }}"),
            ("{{ 'open", "{{ 'open"),
        ];
        for (source, want) in cases {
            assert_eq!(adapt(source).unwrap(), want);
        }
    }
}
