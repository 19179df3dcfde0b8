//! A text file, with what the checks need to know about it.

/// One file of the working tree.
pub struct Source {
    /// Relative to the workspace, with `/`.
    pub path: String,
    pub lines: Vec<String>,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), lines: text.lines().map(str::to_owned).collect() }
    }

    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The folder below `crates/`, or nothing for a file elsewhere.
    pub fn crate_folder(&self) -> Option<&str> {
        self.path.strip_prefix("crates/")?.split('/').next()
    }

    /// Tests, benches, tables and generated files: exempt from rules about product code.
    pub fn is_exempt(&self) -> bool {
        const FOLDERS: &[&str] = &["tests", "benches", "examples", "tables", "generated", "fixtures", "fuzz"];
        let mut parts = self.path.split('/').rev();
        let file = parts.next().unwrap_or("");
        file == "tests.rs" || file.ends_with("_tests.rs") || parts.any(|folder| FOLDERS.contains(&folder))
    }

    /// Number and text of the lines of product code, without comments: what comes before the test module.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.lines.windows(2).position(|w| w[0].trim() == "#[cfg(test)]" && w[1].trim_start().starts_with("mod "));
        let end = if self.is_exempt() { 0 } else { end.unwrap_or(self.lines.len()) };
        self.lines[..end].iter().enumerate().map(|(i, line)| (i + 1, without_comment(line)))
    }
}

/// Cuts a line at its `//`, unless that is part of an address.
fn without_comment(line: &str) -> &str {
    match line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':')) {
        Some((at, _)) => &line[..at],
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_ends_at_the_test_module_and_has_no_comments() {
        let source = Source::new("crates/a/src/lib.rs", "a(); // b\n/// c\nlet u = \"http://x\";\n#[cfg(test)]\nmod tests {\n d();");
        let code: Vec<&str> = source.code().map(|(_, line)| line.trim()).collect();
        assert_eq!(code, ["a();", "", "let u = \"http://x\";"]);
        assert_eq!(Source::new("crates/a/tests/x.rs", "a();").code().count(), 0);
    }
}
