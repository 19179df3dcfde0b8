//! What can go wrong between text and tokens.

use crate::files::FileError;

/// An error of a tokenizer or a chat template; every message says what to change.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The tokenizer's kind is one we do not implement.
    #[error("the {what} `{name}` is not supported; use a model with {supported}")]
    Unsupported { what: &'static str, name: String, supported: &'static str },
    /// A vocabulary, merge list or option of the file is inconsistent.
    #[error("bad tokenizer: {field}: {problem}; the file is damaged or was converted wrongly, fetch or convert it again")]
    BadVocab { field: &'static str, problem: String },
    /// A value of the model file is missing or of the wrong type.
    #[error(transparent)]
    File(#[from] FileError),
    /// A JSON file of the model does not parse.
    #[error("{file} does not parse: {problem}; fetch the file again")]
    BadJson { file: &'static str, problem: String },
    /// A size limit was passed.
    #[error("{what} has {got} {unit}, more than the limit of {limit}")]
    TooLarge { what: &'static str, got: usize, limit: usize, unit: &'static str },
    /// The text cannot be expressed in this vocabulary.
    #[error("no token for byte 0x{byte:02X}, and the vocabulary has no unknown token")]
    NoToken { byte: u8 },
    /// The tokenizer library failed on this text.
    #[error("tokenizing failed: {problem}")]
    Encode { problem: String },
    /// The model came without a chat template.
    #[error("the model has no chat template; use `--raw` to complete plain text")]
    NoChatTemplate,
    /// The template does not compile or does not render.
    #[error("chat template: {problem}")]
    Template { problem: String },
    /// The template itself refused the conversation (`raise_exception`).
    #[error("the chat template refuses this conversation: {message}")]
    Refused { message: String },
    /// A template variable that requests may not set.
    #[error("`{name}` may not be set as a chat template argument; allowed: {allowed}")]
    Argument { name: String, allowed: String },
}

pub(super) type Result<T> = std::result::Result<T, TextError>;

/// Shorthand for the most common error of the loaders.
pub(super) fn bad(field: &'static str, problem: impl Into<String>) -> TextError {
    TextError::BadVocab { field, problem: problem.into() }
}

/// Checks a size against its limit.
pub(super) fn cap(what: &'static str, got: usize, limit: usize, unit: &'static str) -> Result<()> {
    if got > limit { Err(TextError::TooLarge { what, got, limit, unit }) } else { Ok(()) }
}
