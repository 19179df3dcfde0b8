//! The vocabulary: token texts, the bytes they stand for, their kinds, and the way back from text to id.

use super::error::{Result, bad, cap};
use ahash::RandomState;

/// Most tokens a vocabulary may have; the largest real ones have about 300,000.
pub const MAX_TOKENS: usize = 4 << 20;
/// Most bytes one token may have.
pub const MAX_TOKEN_BYTES: usize = 64 << 10;
/// Most bytes all token texts may have together.
const MAX_VOCAB_BYTES: usize = 512 << 20;
/// "No token": never a valid id, because ids stay below [`MAX_TOKENS`].
pub(super) const NONE: u32 = u32::MAX;

/// What a token is for; the numbering is that of GGUF's `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    Normal,
    Unknown,
    /// Steers the model and is no text: `<s>`, `<|im_start|>`.
    Control,
    /// Text that is always one token, found before anything else is split.
    UserDefined,
    Unused,
    /// One raw byte of the SentencePiece byte fallback, `<0x0A>`.
    Byte,
}

impl TokenKind {
    /// Found in the text as a whole, before the text is split.
    pub fn is_added(self) -> bool {
        matches!(self, Self::Control | Self::UserDefined | Self::Unknown)
    }

    /// Left out of decoded text when special tokens are skipped.
    pub fn is_special(self) -> bool {
        matches!(self, Self::Control | Self::Unknown)
    }
}

/// Token texts as the file has them, and the bytes each stands for.
pub(super) struct Vocab {
    texts: Arena,
    pieces: Arena,
    pub kinds: Vec<TokenKind>,
    index: Index,
}

impl Vocab {
    /// Builds the vocabulary; `piece` gives the bytes that a token's text stands for.
    ///
    /// # Errors
    /// Too many or too long tokens, or two tokens with one text. Empty texts are holes: they have an id but are never produced.
    pub fn new<'a>(
        texts: impl ExactSizeIterator<Item = &'a str>,
        kinds: Vec<TokenKind>,
        mut piece: impl FnMut(&str, TokenKind, &mut Vec<u8>),
    ) -> Result<Self> {
        let count = texts.len();
        cap("the vocabulary", count, MAX_TOKENS, "tokens")?;
        if count == 0 {
            return Err(bad("tokens", "the vocabulary is empty"));
        }
        let (mut all, mut pieces, mut index) = (Arena::with_capacity(count), Arena::with_capacity(count), Index::with_capacity(count));
        for (id, (text, &kind)) in texts.zip(&kinds).enumerate() {
            cap("a token", text.len(), MAX_TOKEN_BYTES, "bytes")?;
            cap("the vocabulary", all.bytes.len() + text.len(), MAX_VOCAB_BYTES, "bytes")?;
            all.push(|out| out.extend_from_slice(text.as_bytes()));
            pieces.push(|out| piece(text, kind, out));
            if !text.is_empty()
                && let Some(other) = index.insert(id as u32, &all)
            {
                return Err(bad("tokens", format!("tokens {other} and {id} are both {text:?}")));
            }
        }
        Ok(Self { texts: all, pieces, kinds, index })
    }

    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    pub fn id(&self, text: &[u8]) -> Option<u32> {
        self.index.get(text, &self.texts)
    }

    pub fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    pub fn piece(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(id)
    }

    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }
}

/// Many short byte strings in one allocation.
struct Arena {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Arena {
    fn with_capacity(count: usize) -> Self {
        Self { bytes: Vec::with_capacity(count * 8), ends: Vec::with_capacity(count) }
    }

    fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len() as u32);
    }

    fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)? as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        Some(&self.bytes[start..end])
    }
}

/// Text → id: an open-addressing table of ids over the arena, so that 262,144 tokens need no allocation each.
struct Index {
    /// `upper half of the hash << 32 | id`: another text is nearly always told by its hash, without a look at the arena.
    slots: Vec<u64>,
    hasher: RandomState,
}

impl Index {
    const FREE: u64 = u64::MAX;

    fn with_capacity(count: usize) -> Self {
        Self { slots: vec![Self::FREE; (count * 2).next_power_of_two()], hasher: RandomState::new() }
    }

    /// Adds `id`, whose text is in `texts` already. Returns the id that has this text, if there is one.
    fn insert(&mut self, id: u32, texts: &Arena) -> Option<u32> {
        match self.find(texts.get(id)?, texts) {
            Ok(other) => Some(other),
            Err((at, hash)) => {
                self.slots[at] = hash | u64::from(id);
                None
            }
        }
    }

    fn get(&self, text: &[u8], texts: &Arena) -> Option<u32> {
        self.find(text, texts).ok()
    }

    /// The id of a text, or the free slot for it and its hash.
    fn find(&self, text: &[u8], texts: &Arena) -> std::result::Result<u32, (usize, u64)> {
        let hash = self.hasher.hash_one(text);
        let (mut at, upper) = (hash as usize & (self.slots.len() - 1), hash >> 32 << 32);
        while self.slots[at] != Self::FREE {
            let id = self.slots[at] as u32;
            if self.slots[at] >> 32 << 32 == upper && texts.get(id) == Some(text) {
                return Ok(id);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
        Err((at, upper))
    }
}

/// The byte-level alphabet of GPT-2: every byte as one printable character.
///
/// Printable Latin-1 bytes stand for themselves, the 68 others are numbered from U+0100 on.
pub(super) struct ByteAlphabet {
    chars: [char; 256],
    bytes: [u16; 0x144],
}

impl ByteAlphabet {
    pub fn new() -> Self {
        let (mut chars, mut bytes, mut next) = (['\0'; 256], [u16::MAX; 0x144], 0x100u32);
        for byte in 0..=255u8 {
            let plain = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
            let code = if plain { u32::from(byte) } else { next };
            next += u32::from(!plain);
            chars[usize::from(byte)] = char::from_u32(code).unwrap_or('\0');
            bytes[code as usize] = u16::from(byte);
        }
        Self { chars, bytes }
    }

    pub fn char(&self, byte: u8) -> char {
        self.chars[usize::from(byte)]
    }

    fn byte(&self, char: char) -> Option<u8> {
        self.bytes.get(char as usize).and_then(|&b| u8::try_from(b).ok())
    }

    /// The bytes `text` stands for; a text with characters outside the alphabet stands for itself.
    pub fn decode(&self, text: &str, out: &mut Vec<u8>) {
        let start = out.len();
        for char in text.chars() {
            match self.byte(char) {
                Some(byte) => out.push(byte),
                None => {
                    out.truncate(start);
                    out.extend_from_slice(text.as_bytes());
                    return;
                }
            }
        }
    }
}

/// The byte of a `<0x0A>` token.
pub(super) fn byte_token(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// Writes `text` with SentencePiece's space mark U+2581 turned back into spaces.
pub(super) fn unmark_spaces(text: &str, out: &mut Vec<u8>) {
    for (i, part) in text.split('\u{2581}').enumerate() {
        if i > 0 {
            out.push(b' ');
        }
        out.extend_from_slice(part.as_bytes());
    }
}
