//! SentencePiece BPE with scores and byte fallback (Llama 2, Mistral, Gemma, Phi-3).
//!
//! There is no merge list: two neighbours merge when their text together is a token, highest score first.

use super::error::{Result, TextError, bad};
use super::merge::Merger;
use super::vocab::{NONE, TokenKind, Vocab, byte_token};

pub(super) struct Spm {
    /// Rank of each token as a merge result: lower merges first, [`NONE`] never.
    ranks: Vec<u32>,
    /// Longest token that merging may produce, in bytes.
    longest: usize,
    byte_ids: [u32; 256],
    unknown: Option<u32>,
}

impl Spm {
    /// `scores`: one per token, higher merges first.
    ///
    /// # Errors
    /// A score that is not a number, or neither byte tokens nor an unknown token.
    pub fn new(vocab: &Vocab, scores: &[f32], unknown: Option<u32>) -> Result<Self> {
        let mut ranks = Vec::with_capacity(vocab.len());
        let (mut longest, mut byte_ids) = (0, [NONE; 256]);
        for (id, (&kind, &score)) in (0u32..).zip(vocab.kinds.iter().zip(scores)) {
            if score.is_nan() {
                return Err(bad("scores", format!("the score of token {id} is not a number")));
            }
            let text = vocab.text(id).unwrap_or_default();
            // Control and byte tokens are never made out of ordinary text.
            let mergeable = matches!(kind, TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused);
            ranks.push(if mergeable { descending(score) } else { NONE });
            if mergeable {
                longest = longest.max(text.len());
            } else if kind == TokenKind::Byte {
                let byte = byte_token(text).ok_or_else(|| bad("tokens", format!("byte token {id} is {text:?}, not <0xNN>")))?;
                byte_ids[usize::from(byte)] = id;
            }
        }
        if unknown.is_none() && byte_ids.contains(&NONE) {
            return Err(bad("tokens", "there are neither 256 byte tokens nor an unknown token"));
        }
        Ok(Self { ranks, longest, byte_ids, unknown })
    }

    /// Encodes text whose spaces are marked with U+2581 already.
    pub fn encode(&self, vocab: &Vocab, marked: &str, out: &mut Vec<u32>) -> Result<()> {
        let bytes = marked.as_bytes();
        let mut merger = Merger::default();
        for char in marked.chars() {
            let mut text = [0; 4];
            let id = self.mergeable(vocab, char.encode_utf8(&mut text).as_bytes()).map_or(NONE, |(_, id)| id);
            merger.add(char.len_utf8() as u32, id);
        }
        merger.run(|left, right| {
            let (start, len) = (left.start as usize, (left.len + right.len) as usize);
            if len > self.longest { None } else { self.mergeable(vocab, &bytes[start..start + len]) }
        });
        for symbol in merger.spans() {
            if symbol.id != NONE {
                out.push(symbol.id);
                continue;
            }
            let raw = &bytes[symbol.start as usize..(symbol.start + symbol.len) as usize];
            let ids = raw.iter().map(|&byte| self.byte_ids[usize::from(byte)]);
            if ids.clone().all(|id| id != NONE) {
                out.extend(ids);
            } else {
                out.push(self.unknown.ok_or(TextError::NoToken { byte: raw[0] })?);
            }
        }
        Ok(())
    }

    fn mergeable(&self, vocab: &Vocab, text: &[u8]) -> Option<(u32, u32)> {
        let id = vocab.id(text)?;
        let rank = self.ranks[id as usize];
        (rank != NONE).then_some((rank, id))
    }
}

/// Maps scores to ranks so that a higher score is a lower rank. Below [`NONE`] for every number.
fn descending(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    // Order-preserving map of floats to integers (flip all bits of negatives, the sign of the rest), then reversed.
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_scores_have_lower_ranks() {
        let scores = [f32::INFINITY, 1e30, 1.0, 0.0, -1.0, -2.5, -1e30, f32::NEG_INFINITY];
        assert!(scores.windows(2).all(|pair| descending(pair[0]) < descending(pair[1])));
        assert_eq!(descending(0.0), descending(-0.0));
        assert!(descending(f32::NEG_INFINITY) < NONE);
    }
}
