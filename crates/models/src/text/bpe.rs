//! Byte-level byte-pair encoding with a merge list (GPT-2, Llama 3, Qwen, SmolLM, …).

use super::error::{Result, bad, cap};
use super::merge::Merger;
use super::pretokenize::PreTokenizer;
use super::vocab::{ByteAlphabet, NONE, Vocab};
use ahash::AHashMap;
use std::thread;

/// Most merges a merge list may have.
const MAX_MERGES: usize = 8 << 20;

pub(super) struct Bpe {
    pre: PreTokenizer,
    alphabet: ByteAlphabet,
    byte_ids: [u32; 256],
    /// `left << 32 | right` → (rank, merged id).
    merges: AHashMap<u64, (u32, u32)>,
}

impl Bpe {
    /// `merges`: lines `left right` in the byte alphabet, best first.
    ///
    /// # Errors
    /// A merge whose parts or result are not in the vocabulary.
    pub fn new(vocab: &Vocab, merges: &[&str], pre: PreTokenizer) -> Result<Self> {
        cap("the merge list", merges.len(), MAX_MERGES, "merges")?;
        let alphabet = ByteAlphabet::new();
        let mut byte_ids = [NONE; 256];
        for (byte, slot) in (0..=255u8).zip(&mut byte_ids) {
            let mut text = [0; 4];
            *slot = vocab.id(alphabet.char(byte).encode_utf8(&mut text).as_bytes()).unwrap_or(NONE);
        }
        // Nine tenths of the time goes into finding three texts per merge, which two threads share.
        let (first, second) = merges.split_at(merges.len() / 2);
        let (first, second) = thread::scope(|scope| {
            let first = scope.spawn(|| ids_of(vocab, first, 0));
            let second = ids_of(vocab, second, merges.len() / 2);
            (first.join(), second)
        });
        let first = first.map_err(|_| bad("merges", "reading them failed"))??;
        let mut ranks = AHashMap::with_capacity(merges.len());
        for (rank, (pair, id)) in first.into_iter().chain(second?).enumerate() {
            ranks.entry(pair).or_insert((rank as u32, id));
        }
        Ok(Self { pre, alphabet, byte_ids, merges: ranks })
    }

    pub fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let text = &*self.pre.normalize(text);
        let mut merger = Merger::default();
        let mut whole = String::new();
        for range in self.pre.split(text) {
            let piece = &text.as_bytes()[range];
            if let &[byte] = piece
                && self.byte_ids[usize::from(byte)] != NONE
            {
                out.push(self.byte_ids[usize::from(byte)]);
                continue;
            }
            if self.pre.ignore_merges {
                whole.clear();
                whole.extend(piece.iter().map(|&byte| self.alphabet.char(byte)));
                if let Some(id) = vocab.id(whole.as_bytes()) {
                    out.push(id);
                    continue;
                }
            }
            merger.clear();
            for &byte in piece {
                let id = self.byte_ids[usize::from(byte)];
                // Vocabularies that were trained without some control characters lose them; so do the reference tokenizers.
                if id != NONE {
                    merger.add(1, id);
                }
            }
            merger.run(|left, right| self.merges.get(&key(left.id, right.id)).copied());
            out.extend(merger.spans().map(|symbol| symbol.id));
        }
    }
}

/// The pair of each merge and what it becomes; `rank` is that of the first.
fn ids_of(vocab: &Vocab, merges: &[&str], rank: usize) -> Result<Vec<(u64, u32)>> {
    let mut joined = Vec::new();
    let mut pair = |merge: &str| {
        // The first character may itself be a space, so the separator is searched behind it.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let at = first + merge.as_bytes()[first..].iter().position(|&byte| byte == b' ')?;
        let (left, right) = (&merge.as_bytes()[..at], &merge.as_bytes()[at + 1..]);
        joined.clear();
        joined.extend_from_slice(left);
        joined.extend_from_slice(right);
        Some((key(vocab.id(left)?, vocab.id(right)?), vocab.id(&joined)?))
    };
    let missing = |n, merge| bad("merges", format!("merge {} `{merge}` names a token that is not in the vocabulary", rank + n));
    merges.iter().enumerate().map(|(n, merge)| pair(merge).ok_or_else(|| missing(n, merge))).collect()
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}
