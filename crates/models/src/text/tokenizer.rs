//! The tokenizer that everything else uses, whichever file it was read from.

use super::bpe::Bpe;
use super::chat::ChatTemplate;
use super::error::{Result, TextError, cap};
use super::library::Library;
use super::special::{Matcher, Part};
use super::spm::Spm;
use super::vocab::{TokenKind, Vocab};

/// Longest text that one call encodes.
pub const MAX_TEXT_BYTES: usize = 64 << 20;

/// Texts that end an answer in the chat formats of today's models. A vocabulary's own EOS is always added to these.
pub(super) const END_TEXTS: [&str; 14] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<EOT>",
    "<end_of_utterance>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
];

/// How [`Tokenizer::encode`] treats special tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Begin with BOS (and end with EOS) where the model wants it.
    pub add_special: bool,
    /// Read `<|im_start|>` in the text as the token, not as letters. Never for text that users typed.
    pub parse_special: bool,
}

/// Text ↔ token ids of one model.
pub struct Tokenizer {
    pub(super) vocab: Vocab,
    pub(super) engine: Engine,
    pub(super) ids: SpecialIds,
    /// Decoded text loses the space that encoding put in front of it.
    pub(super) strip_first_space: bool,
    pub(super) chat_template: Option<String>,
}

/// Ids with a role. All are below the vocabulary's size.
#[derive(Debug, Clone, Default)]
pub(super) struct SpecialIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    pub pad: Option<u32>,
    /// Sorted.
    pub end: Vec<u32>,
    pub add_bos: bool,
    pub add_eos: bool,
}

pub(super) enum Engine {
    Bpe { bpe: Box<Bpe>, added: Matcher },
    Spm { spm: Box<Spm>, added: Matcher, space_prefix: bool },
    Library(Box<Library>),
}

impl Tokenizer {
    /// Encodes `text`.
    ///
    /// # Errors
    /// A text over [`MAX_TEXT_BYTES`], or a byte that the vocabulary cannot express.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>> {
        cap("the text", text.len(), MAX_TEXT_BYTES, "bytes")?;
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        if let Engine::Library(library) = &self.engine {
            library.encode(text, options, &mut out)?;
            self.ids.fix_ends(options, &mut out);
            return Ok(out);
        }
        if options.add_special && self.ids.add_bos {
            out.extend(self.ids.bos);
        }
        match &self.engine {
            Engine::Bpe { bpe, added } => {
                for part in added.cut(&self.vocab, text, options.parse_special) {
                    match part {
                        Part::Token(id) => out.push(id),
                        Part::Text(text) => bpe.encode(&self.vocab, text, &mut out),
                    }
                }
            }
            Engine::Spm { spm, added, space_prefix } => {
                let mut prefix = *space_prefix;
                for part in added.cut(&self.vocab, text, options.parse_special) {
                    match part {
                        Part::Token(id) => {
                            out.push(id);
                            prefix = *space_prefix;
                        }
                        Part::Text(text) => {
                            let mark = if prefix { "\u{2581}" } else { "" };
                            spm.encode(&self.vocab, &format!("{mark}{}", text.replace(' ', "\u{2581}")), &mut out)?;
                            prefix = false;
                        }
                    }
                }
            }
            Engine::Library(_) => {}
        }
        if options.add_special && self.ids.add_eos {
            out.extend(self.ids.eos);
        }
        Ok(out)
    }

    /// The text of `ids` as a whole text: a leading space that encoding added is removed, invalid UTF-8 becomes U+FFFD, ids out of
    /// range are ignored. `skip_special` leaves control and unknown tokens out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let bytes = self.bytes(ids, skip_special);
        let bytes = if self.strip_first_space { bytes.strip_prefix(b" ").unwrap_or(&bytes) } else { &bytes };
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// The text of `ids` where they continue an earlier text: nothing is removed in front.
    pub fn decode_continuation(&self, ids: &[u32], skip_special: bool) -> String {
        String::from_utf8_lossy(&self.bytes(ids, skip_special)).into_owned()
    }

    fn bytes(&self, ids: &[u32], skip_special: bool) -> Vec<u8> {
        ids.iter().flat_map(|&id| self.shown_bytes(id, skip_special)).copied().collect()
    }

    /// The bytes that `id` adds to decoded text.
    pub(super) fn shown_bytes(&self, id: u32, skip_special: bool) -> &[u8] {
        if skip_special && self.is_special(id) { &[] } else { self.token_bytes(id).unwrap_or_default() }
    }

    /// The bytes that token `id` stands for; often not whole characters. `None` for an id out of range.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.vocab.piece(id)
    }

    /// The token's text as the file has it, with its alphabet or space marks.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocab.text(id)
    }

    /// The id of the token whose text in the file is `text`.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocab.id(text.as_bytes())
    }

    /// Ids are below this. The model's embedding may have more rows (padding).
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.vocab.kind(id)
    }

    /// Whether `id` is left out of decoded text when special tokens are skipped.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocab.kind(id).is_some_and(TokenKind::is_special)
    }

    pub fn bos(&self) -> Option<u32> {
        self.ids.bos
    }

    pub fn eos(&self) -> Option<u32> {
        self.ids.eos
    }

    pub fn pad(&self) -> Option<u32> {
        self.ids.pad
    }

    pub fn unknown(&self) -> Option<u32> {
        self.ids.unknown
    }

    /// All ids that end an answer, sorted: EOS, end of turn, and those of `generation_config.json`.
    pub fn end_ids(&self) -> &[u32] {
        &self.ids.end
    }

    pub fn is_end(&self, id: u32) -> bool {
        self.ids.end.binary_search(&id).is_ok()
    }

    /// Whether encoding with `add_special` begins with BOS.
    pub fn add_bos(&self) -> bool {
        self.ids.add_bos
    }

    /// The source of the model's chat template.
    pub fn chat_template_source(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The model's chat template with its special tokens bound.
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`], or a template that does not compile.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        let source = self.chat_template.as_deref().ok_or(TextError::NoChatTemplate)?;
        let text = |id: Option<u32>| id.and_then(|id| self.token_text(id)).map(str::to_owned);
        let tokens =
            [("bos_token", self.ids.bos), ("eos_token", self.ids.eos), ("unk_token", self.ids.unknown), ("pad_token", self.ids.pad)];
        ChatTemplate::new(source, tokens.into_iter().filter_map(|(name, id)| Some((name.to_owned(), text(id)?))).collect())
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let engine = match self.engine {
            Engine::Bpe { .. } => "byte-level BPE",
            Engine::Spm { .. } => "SentencePiece BPE",
            Engine::Library(_) => "tokenizer.json",
        };
        f.debug_struct("Tokenizer").field("engine", &engine).field("vocab_size", &self.vocab_size()).field("ids", &self.ids).finish()
    }
}

impl SpecialIds {
    /// Adds the ids of [`END_TEXTS`] and of `more` to the ends, and EOS itself.
    pub fn find_ends(&mut self, vocab: &Vocab, more: impl IntoIterator<Item = u32>) {
        // A word that merely looks like one of these is no end.
        let control = |id: &u32| vocab.kind(*id) == Some(TokenKind::Control);
        self.end.extend(END_TEXTS.iter().filter_map(|text| vocab.id(text.as_bytes())).filter(control));
        self.end.extend(more);
        self.end.extend(self.eos);
        // Harmony-style vocabularies end messages, not answers, with `<|end|>`.
        let has = |text: &str| vocab.id(text.as_bytes()).is_some();
        if has("<|return|>") && has("<|call|>") {
            let message_end = vocab.id(b"<|end|>");
            self.end.retain(|&id| Some(id) != message_end);
        }
        self.end.sort_unstable();
        self.end.dedup();
    }

    /// Makes BOS at the start of a library encoding follow `add_bos`: configuration files may disagree with the post-processor.
    fn fix_ends(&self, options: EncodeOptions, out: &mut Vec<u32>) {
        let Some(bos) = self.bos.filter(|_| options.add_special) else { return };
        if self.add_bos && out.first() != Some(&bos) {
            out.insert(0, bos);
        }
    }
}
