//! Tokens to text while they arrive.

use super::tokenizer::Tokenizer;
use std::sync::Arc;

/// Turns a stream of ids into text, whole characters at a time.
///
/// What all calls return together is what [`Tokenizer::decode`] (or [`Tokenizer::decode_continuation`]) gives for all ids at once.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// The next byte is the first of a text and loses the space that encoding would have added.
    strip_space: bool,
    /// The beginning of a character whose rest has not come; at most 3 bytes between calls.
    pending: Vec<u8>,
}

/// Where the stream's first token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// At the start of a text.
    Start,
    /// Behind a prompt: a leading space belongs to the text.
    Continuation,
}

impl Detokenizer {
    pub fn new(tokenizer: Arc<Tokenizer>, position: Position, skip_special: bool) -> Self {
        let strip_space = position == Position::Start && tokenizer.strip_first_space;
        Self { tokenizer, skip_special, strip_space, pending: Vec::new() }
    }

    /// Takes the next token and returns the text that is complete now: maybe none, never half a character.
    pub fn push(&mut self, id: u32) -> String {
        let mut bytes = self.tokenizer.shown_bytes(id, self.skip_special);
        if self.strip_space && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.strip_space = false;
        }
        self.pending.extend_from_slice(bytes);
        let keep = incomplete_tail(&self.pending);
        let rest = self.pending.split_off(self.pending.len() - keep);
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending = rest;
        text
    }

    /// Ends the stream: a character that never became whole is one U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// Length of the longest end of `bytes` that is the beginning of a character.
fn incomplete_tail(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    loop {
        match std::str::from_utf8(rest) {
            Ok(_) => return 0,
            Err(error) => match error.error_len() {
                Some(len) => rest = &rest[error.valid_up_to() + len..],
                None => return rest.len() - error.valid_up_to(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_found() {
        let cases: [(&[u8], usize); 8] = [
            (b"", 0),
            (b"abc", 0),
            ("é".as_bytes(), 0),
            (&"🤦".as_bytes()[..3], 3),
            (b"ab\xE2\x82", 2),
            (b"\x80\x80", 0),
            (b"\xFFa\xC3", 1),
            (b"\xC0\xAF", 0),
        ];
        for (bytes, want) in cases {
            assert_eq!(incomplete_tail(bytes), want, "{bytes:X?}");
        }
    }
}
