//! A tokenizer from the metadata of a GGUF file.

use super::bpe::Bpe;
use super::error::{Result, TextError, bad};
use super::pretokenize::PreTokenizer;
use super::special::Matcher;
use super::spm::Spm;
use super::tokenizer::{END_TEXTS, Engine, SpecialIds, Tokenizer};
use super::vocab::{ByteAlphabet, TokenKind, Vocab, byte_token, unmark_spaces};
use crate::files::FileError;
use crate::files::gguf::{Gguf, Metadata, StrArray};

/// The `tokenizer.*` keys of a GGUF file, unchecked.
#[derive(Debug, Clone, Default)]
pub struct GgufVocab<'a> {
    /// `tokenizer.ggml.model`
    pub model: &'a str,
    /// `tokenizer.ggml.pre`; empty where the file has none.
    pub pre: &'a str,
    /// `general.name`: the only trace of Phi-3's habit to drop white space behind special tokens.
    pub name: &'a str,
    pub tokens: Vec<&'a str>,
    pub scores: Option<Vec<f32>>,
    pub token_types: Option<Vec<i32>>,
    pub merges: Option<Vec<&'a str>>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub unknown: Option<u32>,
    pub pad: Option<u32>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`
    pub chat_template: Option<&'a str>,
}

impl<'a> GgufVocab<'a> {
    /// Reads the keys from a file's metadata.
    ///
    /// # Errors
    /// No tokenizer in the file, or a key of the wrong type.
    pub fn read(metadata: &'a Metadata) -> Result<Self> {
        let text = |key| Ok::<_, FileError>(metadata.opt::<&str>(key)?.unwrap_or_default());
        let strings = |key: &'static str, list: StrArray<'a>| -> Result<Vec<&'a str>> {
            let utf8 = |bytes: &'a [u8]| std::str::from_utf8(bytes).map_err(|_| bad(key, "a string is not UTF-8"));
            (0..list.len()).map(|i| utf8(list.get(i).unwrap_or_default())).collect()
        };
        let merges = metadata.opt::<StrArray>("tokenizer.ggml.merges")?;
        Ok(Self {
            model: metadata.get("tokenizer.ggml.model")?,
            pre: text("tokenizer.ggml.pre")?,
            name: text("general.name")?,
            tokens: strings("tokens", metadata.get("tokenizer.ggml.tokens")?)?,
            scores: metadata.opt("tokenizer.ggml.scores")?,
            token_types: metadata.opt("tokenizer.ggml.token_type")?,
            merges: merges.map(|merges| strings("merges", merges)).transpose()?,
            bos: metadata.opt("tokenizer.ggml.bos_token_id")?,
            eos: metadata.opt("tokenizer.ggml.eos_token_id")?,
            eot: metadata.opt("tokenizer.ggml.eot_token_id")?,
            eom: metadata.opt("tokenizer.ggml.eom_token_id")?,
            unknown: metadata.opt("tokenizer.ggml.unknown_token_id")?,
            pad: metadata.opt("tokenizer.ggml.padding_token_id")?,
            add_bos: metadata.opt("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.opt("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: metadata.opt("tokenizer.ggml.add_space_prefix")?,
            chat_template: metadata.opt("tokenizer.chat_template")?,
        })
    }
}

impl Tokenizer {
    /// Builds the tokenizer of a GGUF file.
    ///
    /// # Errors
    /// As [`GgufVocab::read`] and [`Tokenizer::from_gguf_vocab`].
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        Self::from_gguf_vocab(&GgufVocab::read(file.metadata())?)
    }

    /// Builds the tokenizer of a GGUF file's keys.
    ///
    /// # Errors
    /// A model or pre-tokenizer that is not supported (by name), lists of different lengths, ids out of range, duplicate tokens,
    /// merges of unknown tokens.
    pub fn from_gguf_vocab(file: &GgufVocab) -> Result<Self> {
        let spm = match file.model {
            "llama" => true,
            "gpt2" => false,
            other => {
                return Err(TextError::Unsupported {
                    what: "tokenizer model",
                    name: other.into(),
                    supported: "`gpt2` (byte-level BPE) or `llama` (SentencePiece BPE)",
                });
            }
        };
        let vocab = read_vocab(file, spm)?;
        let mut ids = read_ids(file, &vocab, spm)?;
        let strip_after = file.name.to_ascii_lowercase().replace('-', "").contains("phi3");
        let added = Matcher::new(&vocab, strip_after);
        let space_prefix = spm && file.add_space_prefix.unwrap_or(true);
        let engine = if spm {
            let scores = file.scores.as_deref().ok_or_else(|| bad("scores", "a `llama` vocabulary needs `tokenizer.ggml.scores`"))?;
            if scores.len() != vocab.len() {
                return Err(bad("scores", format!("{} scores for {} tokens", scores.len(), vocab.len())));
            }
            ids.add_bos = file.add_bos.unwrap_or(true);
            Engine::Spm { spm: Box::new(Spm::new(&vocab, scores, ids.unknown)?), added, space_prefix }
        } else {
            let merges = file.merges.as_deref().ok_or_else(|| bad("merges", "a `gpt2` vocabulary needs `tokenizer.ggml.merges`"))?;
            let pre = PreTokenizer::by_name(file.pre)?;
            ids.add_bos = file.add_bos.unwrap_or(pre.add_bos);
            Engine::Bpe { bpe: Box::new(Bpe::new(&vocab, merges, pre)?), added }
        };
        ids.add_eos = file.add_eos.unwrap_or(false);
        if ids.add_bos && ids.bos.is_none() {
            return Err(bad("bos_token_id", "`add_bos_token` is set but there is no BOS token"));
        }
        if ids.add_eos && ids.eos.is_none() {
            return Err(bad("eos_token_id", "`add_eos_token` is set but there is no EOS token"));
        }
        let chat_template = file.chat_template.map(str::to_owned);
        Ok(Self { vocab, engine, ids, strip_first_space: space_prefix, chat_template })
    }
}

fn read_vocab(file: &GgufVocab, spm: bool) -> Result<Vocab> {
    let count = file.tokens.len();
    if let Some(types) = &file.token_types
        && types.len() != count
    {
        return Err(bad("token_type", format!("{} types for {count} tokens", types.len())));
    }
    let kind = |(id, text): (usize, &&str)| {
        let kind = match file.token_types.as_ref().map_or(1, |types| types[id]) {
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => TokenKind::Normal,
        };
        // Some files leave the token that ends a turn marked as ordinary text, where it would be printed.
        // `</s>` is left alone: in Gemma's vocabulary it is the HTML tag.
        let ends = END_TEXTS.contains(text) && *text != "</s>" && kind != TokenKind::Unknown;
        if ends { TokenKind::Control } else { kind }
    };
    let kinds = file.tokens.iter().enumerate().map(kind).collect();
    let alphabet = ByteAlphabet::new();
    Vocab::new(file.tokens.iter().copied(), kinds, |text, kind, out| match (kind, spm) {
        (TokenKind::Byte, _) => out.extend(byte_token(text)),
        (TokenKind::Normal | TokenKind::Unused, false) => alphabet.decode(text, out),
        (TokenKind::Normal | TokenKind::Unused | TokenKind::UserDefined, true) => unmark_spaces(text, out),
        _ => out.extend_from_slice(text.as_bytes()),
    })
}

fn read_ids(file: &GgufVocab, vocab: &Vocab, spm: bool) -> Result<SpecialIds> {
    let check = |field: &'static str, id: Option<u32>| match id {
        Some(id) if id as usize >= vocab.len() => {
            Err(bad(field, format!("{id} is out of range, the vocabulary has {} tokens", vocab.len())))
        }
        id => Ok(id),
    };
    // SentencePiece's own defaults, where the file names none.
    let default = |id: u32| (spm && vocab.kind(id).is_some_and(TokenKind::is_added)).then_some(id);
    let mut ids = SpecialIds {
        bos: check("bos_token_id", file.bos.or(default(1)))?,
        eos: check("eos_token_id", file.eos.or(default(2)))?,
        unknown: check("unknown_token_id", file.unknown.or(default(0)))?,
        pad: check("padding_token_id", file.pad)?,
        ..SpecialIds::default()
    };
    let turn = [check("eot_token_id", file.eot)?, check("eom_token_id", file.eom)?];
    ids.find_ends(vocab, turn.into_iter().flatten());
    Ok(ids)
}
