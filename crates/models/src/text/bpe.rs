//! Byte-level byte-pair encoding with a merge list (GPT-2, Llama 3, Qwen, SmolLM, …).

use super::error::{Result, bad, cap};
use super::merge::Merger;
use super::pretokenize::PreTokenizer;
use super::vocab::{ByteAlphabet, NONE, Vocab};
use ahash::AHashMap;

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
        let mut ranks = AHashMap::with_capacity(merges.len());
        let mut joined = Vec::new();
        for (rank, merge) in merges.iter().enumerate() {
            let missing = || bad("merges", format!("merge {rank} `{merge}` names a token that is not in the vocabulary"));
            // The first character may itself be a space, so the separator is searched behind it.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let at = merge[first..].find(' ').map(|at| at + first).ok_or_else(missing)?;
            let (left, right) = (&merge[..at], &merge[at + 1..]);
            joined.clear();
            joined.extend_from_slice(left.as_bytes());
            joined.extend_from_slice(right.as_bytes());
            let ids = (vocab.id(left.as_bytes()), vocab.id(right.as_bytes()), vocab.id(&joined));
            let (Some(left), Some(right), Some(id)) = ids else { return Err(missing()) };
            ranks.entry(key(left, right)).or_insert((rank as u32, id));
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

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}
