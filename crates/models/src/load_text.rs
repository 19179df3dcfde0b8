//! The tokenizer of a checkpoint: from GGUF metadata, or from the files beside the weights.

use std::{fs, io, path::Path};

use crate::{
    Checkpoint, Error, Result,
    files::{FileError, MappedFile},
    text::{Tokenizer, TokenizerFiles},
};

impl Checkpoint {
    /// Tokenizer and chat template of the model.
    ///
    /// # Errors
    /// When they are missing, broken, or of a kind that is not supported.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match (self.gguf(), self.folder()) {
            (Some(file), _) => Ok(Tokenizer::from_gguf(file)?),
            (None, Some(dir)) => of_folder(dir),
            (None, None) => Err(Error::MissingKey { key: "tokenizer".into() }),
        }
    }
}

const NO_TOKENIZER: &str = "no such file; other forms of tokenizers in a folder are not read";

fn of_folder(dir: &Path) -> Result<Tokenizer> {
    let file = |name: &str| match MappedFile::open(dir.join(name)) {
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    };
    let missing = || Error::Io { path: dir.join("tokenizer.json"), source: io::Error::new(io::ErrorKind::NotFound, NO_TOKENIZER) };
    let json = file("tokenizer.json")?.ok_or_else(missing)?;
    let (config, generation) = (file("tokenizer_config.json")?, file("generation_config.json")?);
    let template_path = dir.join("chat_template.jinja");
    let template = match fs::read_to_string(&template_path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        other => Some(other.map_err(|source| Error::Io { path: template_path, source })?),
    };
    let files = TokenizerFiles {
        tokenizer_json: json.bytes(),
        tokenizer_config: config.as_ref().map(MappedFile::bytes),
        generation_config: generation.as_ref().map(MappedFile::bytes),
        chat_template: template.as_deref(),
    };
    let tokenizer = Tokenizer::from_files(&files)?;
    // Bytes of a file that shrank meanwhile were read as zeros.
    [Some(json), config, generation].iter().flatten().try_for_each(MappedFile::check)?;
    Ok(tokenizer)
}
