//! The hub against a server on this machine and a stand-in for pip: transfers that break, lie, redirect and try to escape.
//! Hostile-input classes: model download (redirected tokens, crafted paths, bombs, wrong hashes).

mod huggingface;
mod pip;
mod server;

use ferrum_models::hub::{Catalogue, HubOptions, Token};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Options with every path inside `dir`, no Python and no endpoint.
fn options(dir: &Path) -> HubOptions {
    HubOptions {
        offline: false,
        models_dir: dir.join("models"),
        hf_cache: dir.join("hf"),
        token: Some(Token("hf_secret".to_owned())),
        endpoint: "http://127.0.0.1:1".to_owned(),
        python: dir.join("no-python"),
        catalogue: Catalogue { entries: Vec::new() },
        progress: false,
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes that do not repeat with a short period, so that a wrong resume offset changes the hash.
fn content(len: usize) -> Vec<u8> {
    let mut state = 12345_u32;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// Every regular file below `dir`, with links left alone, relative and sorted.
fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(&next).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}
