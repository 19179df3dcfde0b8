//! Tokenizers, the streaming detokeniser and chat templates against goldens of Python's `tokenizers` and `jinja2`
//! (`tools/text_golden.py`), and against hostile files.

mod chat;
mod corpus;
mod hostile;
mod tokens;

use std::path::PathBuf;

/// `tests/fixtures/PATH`
fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn read_json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixture(path)).unwrap()).unwrap()
}
