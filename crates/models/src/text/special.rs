//! Finding added tokens (`<|im_end|>`, `<s>`, …) in a text before it is split any further.

use super::vocab::{TokenKind, Vocab};

/// One stretch of a text.
#[derive(Debug, PartialEq)]
pub(super) enum Part<'t> {
    Text(&'t str),
    Token(u32),
}

/// The added tokens by first byte: the lengths that occur, longest first.
pub(super) struct Matcher {
    lengths: Vec<Vec<u16>>,
    /// Drop white space that follows a special token (Phi-3).
    strip_after: bool,
}

impl Matcher {
    pub fn new(vocab: &Vocab, strip_after: bool) -> Self {
        let mut lengths = vec![Vec::new(); 256];
        for id in (0..vocab.len() as u32).filter(|&id| vocab.kind(id).is_some_and(TokenKind::is_added)) {
            if let Some(text) = vocab.text(id)
                && let (Some(&first), Ok(len)) = (text.as_bytes().first(), u16::try_from(text.len()))
            {
                lengths[usize::from(first)].push(len);
            }
        }
        for list in &mut lengths {
            list.sort_unstable_by(|a, b| b.cmp(a));
            list.dedup();
        }
        Self { lengths, strip_after }
    }

    /// Cuts `text` at its added tokens, leftmost first and longest first. Without `special` only user-defined ones count.
    pub fn cut<'t>(&self, vocab: &Vocab, text: &'t str, special: bool) -> Vec<Part<'t>> {
        let bytes = text.as_bytes();
        let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
        while at < bytes.len() {
            let Some((id, len)) = self.find(vocab, &bytes[at..], special) else {
                at += 1;
                continue;
            };
            if start < at {
                parts.push(Part::Text(&text[start..at]));
            }
            parts.push(Part::Token(id));
            at += len;
            if self.strip_after && self.strips(vocab, id) {
                at += text[at..].len() - text[at..].trim_start().len();
            }
            start = at;
        }
        if start < text.len() {
            parts.push(Part::Text(&text[start..]));
        }
        parts
    }

    fn find(&self, vocab: &Vocab, rest: &[u8], special: bool) -> Option<(u32, usize)> {
        self.lengths[usize::from(*rest.first()?)].iter().find_map(|&len| {
            let id = vocab.id(rest.get(..usize::from(len))?)?;
            let kind = vocab.kind(id)?;
            (kind == TokenKind::UserDefined || (special && kind.is_added())).then_some((id, usize::from(len)))
        })
    }

    /// Phi-3 strips after all added tokens but these.
    fn strips(&self, vocab: &Vocab, id: u32) -> bool {
        !matches!(vocab.text(id), Some("<unk>" | "<s>" | "<|endoftext|>"))
    }
}
