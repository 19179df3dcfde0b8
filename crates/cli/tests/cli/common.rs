//! Calling the binary.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// The binary with `args`, away from the user's own models and from the network.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferrum"));
    let nowhere = Path::new(env!("CARGO_TARGET_TMPDIR")).join("home");
    command.args(args).stdin(Stdio::null());
    command
        .env("XDG_CACHE_HOME", &nowhere)
        .env("XDG_CONFIG_HOME", &nowhere)
        .env("HF_HOME", nowhere.join("hf"))
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_TOKEN");
    command
}

pub fn ferrum(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// Runs with `input` on standard input.
pub fn ferrum_with_input(args: &[&str], input: &[u8]) -> Output {
    let mut child = command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// Standard output of a run that must succeed.
pub fn text(args: &[&str]) -> String {
    let output = ferrum(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ferrum {args:?}: {stderr}");
    assert_eq!(stderr, "", "nothing is written to standard error unless it is a terminal");
    String::from_utf8(output.stdout).unwrap()
}

/// The one JSON object on standard output of a run that must succeed.
pub fn json(args: &[&str]) -> Value {
    serde_json::from_str(&text(args)).unwrap()
}

/// Standard error of a run that must fail with exit code 1, without a panic.
pub fn error(args: &[&str]) -> String {
    let output = ferrum(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "ferrum {args:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    stderr
}

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A tiny model of the repository.
pub fn fixture(name: &str) -> String {
    repository().join("crates/models/tests/fixtures").join(name).to_str().unwrap().to_owned()
}

pub fn read_json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

pub fn ids(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()
}

/// Everything in F32, so that tokens are those of the mathematics.
pub const EXACT: [&str; 4] = ["--precision", "f32", "--kv-type", "f32"];

/// `first` followed by `rest`.
pub fn with<'a>(first: &[&'a str], rest: &[&'a str]) -> Vec<&'a str> {
    [first, rest].concat()
}
