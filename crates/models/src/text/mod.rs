//! Text in and out: tokenizers, streaming detokenisation, chat templates.
//!
//! [`Tokenizer`] is read from GGUF metadata ([`Tokenizer::from_gguf_vocab`], our own merge loop: a vocabulary of 262,144 tokens is
//! ready in a fraction of a second) or from `tokenizer.json` ([`Tokenizer::from_files`], the `tokenizers` library behind our type).
//! [`Detokenizer`] streams text, [`ChatTemplate`] turns messages into a prompt.

mod bpe;
mod chat;
mod detokenize;
mod error;
mod gguf;
mod library;
mod merge;
mod pretokenize;
mod special;
mod spm;
mod tokenizer;
mod vocab;

pub use chat::{ChatOptions, ChatTemplate, TEMPLATE_ARGUMENTS};
pub use detokenize::{Detokenizer, Position};
pub use error::TextError;
pub use gguf::GgufVocab;
pub use library::TokenizerFiles;
pub use tokenizer::{EncodeOptions, MAX_TEXT_BYTES, Tokenizer};
pub use vocab::{MAX_TOKEN_BYTES, MAX_TOKENS, TokenKind};
