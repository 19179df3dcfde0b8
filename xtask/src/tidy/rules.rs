//! Rules about what the sources may contain.

use super::Finding;
use super::source::Source;
use std::collections::{BTreeMap, BTreeSet};

pub const ENVIRONMENT_DOC: &str = "docs/environment.md";
const MAX_VARIABLES: usize = 10;
const UNSAFE_CRATES: &[&str] = &["cpu", "cuda", "wgpu"];
const UNSAFE_FILES: &[&str] = &["crates/models/src/files/mmap.rs"];
/// A `// SAFETY:` comment stands at most this many lines above its block.
const SAFETY_LINES_ABOVE: usize = 8;

/// At most ten environment variables are read, each by its literal name, and the document lists exactly these. Build
/// scripts are left out: cargo speaks to them in variables.
pub fn environment(sources: &[Source], document: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut read: BTreeMap<String, (String, usize)> = BTreeMap::new();
    let program = |s: &&Source| s.is_rust() && s.crate_folder().is_some() && !s.path.ends_with("/build.rs");
    for source in sources.iter().filter(program) {
        for (line, code) in source.code() {
            for (at, _) in code.match_indices("env::var") {
                let name = code[at..].split_once('(').and_then(|(_, rest)| rest.strip_prefix('"')?.split('"').next());
                match name {
                    Some(name) => drop(read.entry(name.to_owned()).or_insert_with(|| (source.path.clone(), line))),
                    None => findings.push(Finding::new(&source.path, line, "read environment variables by their literal name")),
                }
            }
        }
    }
    let documented: BTreeSet<&str> = document.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next()).collect();
    for (name, (path, line)) in &read {
        if !documented.contains(name.as_str()) {
            findings.push(Finding::new(path, *line, format!("{name} is not listed in {ENVIRONMENT_DOC}")));
        }
    }
    for name in documented.iter().filter(|name| !read.contains_key(**name)) {
        findings.push(Finding::new(ENVIRONMENT_DOC, 0, format!("{name} is listed but nothing reads it")));
    }
    if read.len() > MAX_VARIABLES {
        findings.push(Finding::new(ENVIRONMENT_DOC, 0, format!("{} variables are read, the limit is {MAX_VARIABLES}", read.len())));
    }
    findings
}

/// `unsafe` only in the backends and the mmap wrapper, and every block there says why it is sound.
pub fn unsafe_code(sources: &[Source]) -> Vec<Finding> {
    const FORMS: &[&str] = &["unsafe {", "unsafe impl", "unsafe fn", "unsafe extern", "unsafe trait"];
    let mut findings = Vec::new();
    for source in sources.iter().filter(|s| s.is_rust() && s.crate_folder().is_some()) {
        let allowed = source.crate_folder().is_some_and(|f| UNSAFE_CRATES.contains(&f)) || UNSAFE_FILES.contains(&source.path.as_str());
        for (line, code) in source.code().filter(|(_, code)| FORMS.iter().any(|form| code.contains(form))) {
            let above = &source.lines[line.saturating_sub(1 + SAFETY_LINES_ABOVE)..line];
            let explained = above.iter().any(|l| l.contains("SAFETY:"));
            if !allowed {
                findings.push(Finding::new(&source.path, line, "`unsafe` belongs into the backends and the mmap wrapper"));
            } else if (code.contains(FORMS[0]) || code.contains(FORMS[1])) && !explained {
                findings.push(Finding::new(&source.path, line, "say why this is sound in a `// SAFETY:` comment just above"));
            }
        }
    }
    findings
}

/// Only the binary writes to the terminal.
pub fn output(sources: &[Source]) -> Vec<Finding> {
    const MACROS: &[&str] = &["println!", "print!", "eprintln!", "eprint!", "dbg!"];
    let library = |s: &&Source| s.is_rust() && s.crate_folder().is_some_and(|f| f != "cli") && !s.path.ends_with("/build.rs");
    let mut findings = Vec::new();
    for source in sources.iter().filter(library) {
        for (line, _) in source.code().filter(|(_, code)| MACROS.iter().any(|name| code.contains(name))) {
            findings.push(Finding::new(&source.path, line, "libraries do not print: return it, or leave it to the binary"));
        }
    }
    findings
}

/// No address of a package registry: the user's own tools know theirs.
pub fn places(sources: &[Source]) -> Vec<Finding> {
    // Written in halves, so that this file has none of them.
    const HOSTS: &[(&str, &str)] = &[
        ("pypi", ".org"),
        ("pythonhosted", ".org"),
        ("static.crates", ".io"),
        ("index.crates", ".io"),
        ("//crates", ".io"),
        ("registry.npmjs", ".org"),
        ("deb.debian", ".org"),
    ];
    let mut findings = Vec::new();
    for source in sources.iter().filter(|s| s.path != "Cargo.lock" && !s.path.contains("/fixtures/")) {
        for (i, line) in source.lines.iter().enumerate() {
            for (left, right) in HOSTS.iter().filter(|(left, right)| line.contains(&format!("{left}{right}"))) {
                findings.push(Finding::new(&source.path, i + 1, format!("{left}{right}: no registry addresses in the repository")));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(path: &str, text: &str) -> [Source; 1] {
        [Source::new(path, text)]
    }

    #[test]
    fn environment_variables_are_literal_listed_and_few() {
        let code = one("crates/cli/src/main.rs", "std::env::var(\"A\")\nenv::var_os(\"B\")\n// env::var(\"C\")");
        assert!(environment(&code, "| `A` | x |\n| `B` | y |").is_empty());
        assert_eq!(environment(&code, "| `A` | x |").len(), 1);
        assert_eq!(environment(&code, "| `A` |\n| `B` |\n| `Z` |").len(), 1);
        assert_eq!(environment(&one("crates/cli/src/main.rs", "std::env::var(name)"), "").len(), 1);
        let many: String = (0..11).map(|i| format!("env::var(\"V{i}\")\n")).collect();
        let listed: String = (0..11).map(|i| format!("| `V{i}` |\n")).collect();
        assert_eq!(environment(&one("crates/cli/src/main.rs", &many), &listed).len(), 1);
    }

    #[test]
    fn unsafe_is_confined_and_explained() {
        assert_eq!(unsafe_code(&one("crates/models/src/lib.rs", "unsafe { x() }")).len(), 1);
        assert_eq!(unsafe_code(&one("crates/cpu/src/lib.rs", "unsafe { x() }")).len(), 1);
        assert!(unsafe_code(&one("crates/cpu/src/lib.rs", "// SAFETY: x.\nunsafe { x() }\nunsafe fn y() {}")).is_empty());
        assert!(unsafe_code(&one("crates/models/src/lib.rs", "#![deny(unsafe_code)]\n// unsafe { }")).is_empty());
        let far = format!("// SAFETY: x.\n{}unsafe {{ x() }}", "\n".repeat(SAFETY_LINES_ABOVE + 1));
        assert_eq!(unsafe_code(&one("crates/cuda/src/lib.rs", &far)).len(), 1);
    }

    #[test]
    fn only_the_binary_prints() {
        assert_eq!(output(&one("crates/engine/src/lib.rs", "eprintln!(\"x\")")).len(), 1);
        assert!(output(&one("crates/cli/src/main.rs", "println!(\"x\")")).is_empty());
        assert!(output(&one("crates/engine/tests/a.rs", "println!(\"x\")")).is_empty());
    }

    #[test]
    fn registry_addresses_are_found() {
        let address = ["https://py", "pi.org/simple"].concat();
        assert_eq!(places(&one("docs/a.md", &address)).len(), 1);
        assert!(places(&one("docs/a.md", "the crates.io index")).is_empty());
    }
}
