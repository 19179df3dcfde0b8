//! A tokenizer from `tokenizer.json`, run by the `tokenizers` library with its panics contained.

use super::error::{Result, TextError, bad, cap};
use super::tokenizer::{EncodeOptions, Engine, SpecialIds, Tokenizer};
use super::vocab::{ByteAlphabet, MAX_TOKENS, TokenKind, Vocab, byte_token, unmark_spaces};
use ahash::AHashMap;
use serde::Deserialize;
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

/// Largest `tokenizer.json`; Gemma's has 34 MB.
const MAX_JSON_BYTES: usize = 256 << 20;
/// How much longer than the text a normaliser may make it, times: Metaspace makes 3, compatibility forms 18.
const MAX_GROWTH: usize = 64;

/// The files of a Hugging Face model folder that concern text; the missing ones are `None`.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenizerFiles<'a> {
    pub tokenizer_json: &'a [u8],
    pub tokenizer_config: Option<&'a [u8]>,
    pub generation_config: Option<&'a [u8]>,
    /// `chat_template.jinja`; it goes before the template in `tokenizer_config.json`.
    pub chat_template: Option<&'a str>,
}

impl Tokenizer {
    /// Builds the tokenizer of a Hugging Face folder.
    ///
    /// # Errors
    /// Files that do not parse or that the library refuses, ids out of range, a decoder or an option that is not supported (by name).
    pub fn from_files(files: &TokenizerFiles) -> Result<Self> {
        cap("tokenizer.json", files.tokenizer_json.len(), MAX_JSON_BYTES, "bytes")?;
        let json: TokenizerJson = parse("tokenizer.json", files.tokenizer_json)?;
        let config: Config = files.tokenizer_config.map_or(Ok(Config::default()), |bytes| parse("tokenizer_config.json", bytes))?;
        let generation: Generation = files.generation_config.map_or(Ok(Generation::default()), |b| parse("generation_config.json", b))?;
        json.check()?;
        let style = Style::of(&json.decoder)?;
        let library = Library::new(files.tokenizer_json)?;
        let vocab = library.vocab(&style)?;

        let id = |field: &'static str, name: &Option<TokenText>| match name.as_ref().map(TokenText::content) {
            Some(text) => vocab.id(text.as_bytes()).map(Some).ok_or_else(|| bad(field, format!("{text:?} is not in the vocabulary"))),
            None => Ok(None),
        };
        let mut ids = SpecialIds {
            bos: id("bos_token", &config.bos_token)?,
            eos: id("eos_token", &config.eos_token)?,
            // Some configurations name padding and unknown tokens that their vocabulary lacks; nothing is encoded with these two.
            unknown: id("unk_token", &config.unk_token).unwrap_or_default(),
            pad: id("pad_token", &config.pad_token).unwrap_or_default(),
            ..SpecialIds::default()
        };
        let more = generation.eos_token_id.map(Ids::list).unwrap_or_default();
        if let Some(id) = more.iter().find(|&&id| id as usize >= vocab.len()) {
            return Err(bad("generation_config.eos_token_id", format!("{id} is out of range, the vocabulary has {} tokens", vocab.len())));
        }
        ids.find_ends(&vocab, more);
        ids.add_bos = config.add_bos_token.unwrap_or(false) || library.begins_with(ids.bos)?;
        ids.add_eos = config.add_eos_token.unwrap_or(false);
        let chat_template = files.chat_template.map(str::to_owned).or_else(|| config.chat_template.and_then(Templates::default));
        Ok(Self { vocab, engine: Engine::Library(Box::new(library)), ids, strip_first_space: style.strip_first_space, chat_template })
    }
}

/// The library's tokenizer.
pub(super) struct Library {
    tokenizer: tokenizers::Tokenizer,
    /// The same, not looking for special tokens in the text; made when first asked for.
    blind: OnceLock<tokenizers::Tokenizer>,
}

impl Library {
    fn new(json: &[u8]) -> Result<Self> {
        let mut tokenizer = contained(|| tokenizers::Tokenizer::from_bytes(json))
            .map_err(|problem| TextError::BadJson { file: "tokenizer.json", problem })?;
        // Both belong to training and batching, and both would change what a prompt encodes to.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| TextError::Encode { problem: error.to_string() })?;
        let library = Self { tokenizer, blind: OnceLock::new() };
        // Inconsistent parts (a post-processor, a normaliser table) show at the first use: use it here.
        let options = EncodeOptions { add_special: true, parse_special: true };
        library.encode("Hello, wörld! 你好 🤦\n\u{0}", options, &mut Vec::new())?;
        Ok(library)
    }

    pub fn encode(&self, text: &str, options: EncodeOptions, out: &mut Vec<u32>) -> Result<()> {
        let tokenizer = if options.parse_special {
            &self.tokenizer
        } else {
            self.blind.get_or_init(|| {
                let mut blind = self.tokenizer.clone();
                blind.set_encode_special_tokens(true);
                blind
            })
        };
        let encoding = contained(|| tokenizer.encode_fast(text, options.add_special)).map_err(|problem| TextError::Encode { problem })?;
        out.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// Whether the post-processor puts `bos` in front.
    fn begins_with(&self, bos: Option<u32>) -> Result<bool> {
        let mut ids = Vec::new();
        self.encode("a", EncodeOptions { add_special: true, parse_special: true }, &mut ids)?;
        Ok(bos.is_some() && ids.first().copied() == bos)
    }

    fn vocab(&self, style: &Style) -> Result<Vocab> {
        let tokens = self.tokenizer.get_vocab(true);
        let count = tokens.values().max().map_or(0, |&id| id as usize + 1);
        cap("the vocabulary", count, MAX_TOKENS, "ids")?;
        let mut texts = vec![""; count];
        for (text, &id) in &tokens {
            let slot = &mut texts[id as usize];
            if !slot.is_empty() && slot != text {
                return Err(bad("vocab", format!("{slot:?} and {text:?} have the same id {id}")));
            }
            *slot = text;
        }
        let added: AHashMap<u32, _> = self.tokenizer.get_added_tokens_decoder();
        let kind = |(id, text): (u32, &&str)| match added.get(&id) {
            Some(token) if token.special => TokenKind::Control,
            Some(_) => TokenKind::UserDefined,
            None if style.byte_fallback && byte_token(text).is_some() => TokenKind::Byte,
            None => TokenKind::Normal,
        };
        let kinds = (0u32..).zip(&texts).map(kind).collect();
        Vocab::new(texts.iter().copied(), kinds, |text, kind, out| style.piece(text, kind, out))
    }
}

/// Runs a library call; a panic of the library becomes an error.
fn contained<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizer library cannot work with this definition".into()),
    }
}

fn parse<'a, T: Deserialize<'a>>(file: &'static str, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| TextError::BadJson { file, problem: error.to_string() })
}

/// How token texts become bytes, read from the `decoder` of `tokenizer.json`.
#[derive(Debug, Default)]
struct Style {
    byte_level: bool,
    byte_fallback: bool,
    marked_spaces: bool,
    strip_first_space: bool,
    /// WordPiece: the mark of a token that continues a word.
    continues: Option<String>,
}

impl Style {
    fn of(decoder: &Value) -> Result<Self> {
        let mut style = Self::default();
        style.read(decoder)?;
        Ok(style)
    }

    fn read(&mut self, decoder: &Value) -> Result<()> {
        let text = |key: &str| decoder.get(key).and_then(Value::as_str);
        let unsupported = |name: String| {
            let supported = "a ByteLevel, Metaspace, ByteFallback or WordPiece decoder";
            Err(TextError::Unsupported { what: "decoder of tokenizer.json", name, supported })
        };
        match text("type") {
            Some("ByteLevel") => self.byte_level = true,
            Some("ByteFallback") => self.byte_fallback = true,
            Some("Fuse") => {}
            Some("Metaspace") => {
                self.marked_spaces = true;
                let old = decoder.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true);
                self.strip_first_space = text("prepend_scheme").map_or(old, |scheme| scheme != "never");
            }
            Some("Replace") => {
                let pattern = decoder.pointer("/pattern/String").and_then(Value::as_str);
                if (pattern, text("content")) != (Some("\u{2581}"), Some(" ")) {
                    return unsupported(decoder.to_string());
                }
                self.marked_spaces = true;
            }
            Some("Strip") => {
                let number = |key: &str| decoder.get(key).and_then(Value::as_u64);
                if (text("content"), number("start"), number("stop")) != (Some(" "), Some(1), Some(0)) {
                    return unsupported(decoder.to_string());
                }
                self.strip_first_space = true;
            }
            Some("WordPiece") => {
                self.continues = Some(text("prefix").unwrap_or("##").to_owned());
                self.strip_first_space = true;
            }
            Some("Sequence") => {
                for part in decoder.get("decoders").and_then(Value::as_array).into_iter().flatten() {
                    self.read(part)?;
                }
            }
            _ => return unsupported(text("type").unwrap_or("none").to_owned()),
        }
        Ok(())
    }

    fn piece(&self, text: &str, kind: TokenKind, out: &mut Vec<u8>) {
        thread_local!(static ALPHABET: ByteAlphabet = ByteAlphabet::new());
        if kind == TokenKind::Byte {
            out.extend(byte_token(text));
        } else if self.byte_level && kind == TokenKind::Normal {
            ALPHABET.with(|alphabet| alphabet.decode(text, out));
        } else if let Some(mark) = &self.continues {
            match text.strip_prefix(mark.as_str()) {
                Some(rest) => out.extend_from_slice(rest.as_bytes()),
                None => out.extend([b" ", text.as_bytes()].concat()),
            }
        } else if self.marked_spaces {
            unmark_spaces(text, out);
        } else {
            out.extend_from_slice(text.as_bytes());
        }
    }
}

/// The parts of `tokenizer.json` that are looked at before the library sees it.
#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    model: Model,
}

#[derive(Deserialize, Default)]
struct Model {
    dropout: Option<f32>,
}

impl TokenizerJson {
    fn check(&self) -> Result<()> {
        if self.model.dropout.is_some_and(|dropout| dropout != 0.0) {
            return Err(bad("model.dropout", "the same text would encode differently each time"));
        }
        if growth(&self.normalizer) > MAX_GROWTH {
            return Err(bad("normalizer", format!("it can make a text more than {MAX_GROWTH} times longer")));
        }
        Ok(())
    }
}

/// An upper bound of how many times longer a normaliser makes a text.
fn growth(normalizer: &Value) -> usize {
    let content = normalizer.get("content").and_then(Value::as_str).map_or(1, str::len);
    match normalizer.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            let parts = normalizer.get("normalizers").and_then(Value::as_array).into_iter().flatten();
            parts.fold(1, |all, part| all.saturating_mul(growth(part)))
        }
        Some("Replace") => match normalizer.pointer("/pattern/String").and_then(Value::as_str) {
            Some(pattern) if !pattern.is_empty() => content.div_ceil(pattern.len()).max(1),
            // An expression may match the empty text before every character.
            _ => content.saturating_add(1),
        },
        Some("ByteLevel") => 2,
        // Longer only by a constant, or by the tables of Unicode for rare characters.
        _ => 1,
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    unk_token: Option<TokenText>,
    pad_token: Option<TokenText>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    chat_template: Option<Templates>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Plain(String),
    Token { content: String },
}

impl TokenText {
    fn content(&self) -> &str {
        match self {
            Self::Plain(content) | Self::Token { content } => content,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl Templates {
    fn default(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Named(list) => list.into_iter().find(|entry| entry.name == "default").map(|entry| entry.template),
        }
    }
}

#[derive(Deserialize, Default)]
struct Generation {
    #[serde(default)]
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl Ids {
    fn list(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}
