//! Rules that no compiler knows. Each check reads the sources and returns findings; any finding fails the run.

mod layout;
mod length;
mod rules;
mod source;

use anyhow::{Context, bail};
use source::Source;
use std::fmt;
use std::path::Path;
use std::process::Command;

/// Something to correct, with its place.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    path: String,
    /// Counted from 1; 0 stands for the whole file.
    line: usize,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Finding {
        Finding { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}

/// Checks the working tree: all files that git tracks or would track.
pub fn run(root: &Path) -> anyhow::Result<()> {
    let sources = read_sources(root)?;
    let allowed = std::fs::read_to_string(root.join(length::ALLOW_LIST)).unwrap_or_default();
    let environment = std::fs::read_to_string(root.join(rules::ENVIRONMENT_DOC)).unwrap_or_default();
    let mut findings = layout::check(root)?;
    let (long, warnings) = length::check(&sources, &allowed);
    findings.extend(long);
    findings.extend(rules::environment(&sources, &environment));
    findings.extend(rules::unsafe_code(&sources));
    findings.extend(rules::output(&sources));
    findings.extend(rules::places(&sources));
    for warning in warnings {
        println!("note: {warning}");
    }
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy has {} findings", findings.len());
    }
    Ok(())
}

fn read_sources(root: &Path) -> anyhow::Result<Vec<Source>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("cannot run git to list the files")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    }
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    // Files that are not text, and files that were deleted but not yet committed, have nothing to check.
    Ok(names
        .split('\0')
        .filter(|n| !n.is_empty())
        .filter_map(|n| Some(Source::new(n, &std::fs::read_to_string(root.join(n)).ok()?)))
        .collect())
}
