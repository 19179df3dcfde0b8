//! File length: logic files aim under 400 lines and stop at 800. The allow-list of longer files may only shrink.

use super::Finding;
use super::source::Source;

pub const ALLOW_LIST: &str = "xtask/long-files.txt";
const AIM_LINES: usize = 400;
const MAX_LINES: usize = 800;
const CODE: &[&str] = &[".rs", ".cu", ".cuh", ".wgsl", ".metal", ".py"];

/// Findings, and notes on files that are over the aim but under the limit.
///
/// `allowed` has one `PATH LINES` a line: the file may have up to that many lines. An entry for a file that has become shorter has
/// to be lowered, and one for a file within the limit has to go.
pub fn check(sources: &[Source], allowed: &str) -> (Vec<Finding>, Vec<Finding>) {
    let (mut findings, mut notes) = (Vec::new(), Vec::new());
    let mut allowed: Vec<(&str, usize)> = allowed
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| l.rsplit_once(' '))
        .map(|(p, n)| (p, n.parse().unwrap_or(0)))
        .collect();
    for source in sources.iter().filter(|s| CODE.iter().any(|ext| s.path.ends_with(ext)) && !s.is_exempt()) {
        let lines = source.lines.len();
        let entry = allowed.iter().position(|(path, _)| *path == source.path).map(|i| allowed.swap_remove(i).1);
        match entry {
            Some(limit) if lines > limit => {
                findings.push(Finding::new(&source.path, 0, format!("{lines} lines; {ALLOW_LIST} allows {limit}: split the file")));
            }
            Some(_) if lines <= MAX_LINES => {
                findings.push(Finding::new(ALLOW_LIST, 0, format!("{} is short enough now: remove its line", source.path)));
            }
            Some(limit) if lines < limit => {
                findings.push(Finding::new(ALLOW_LIST, 0, format!("{} has {lines} lines now: lower its limit from {limit}", source.path)));
            }
            Some(_) => {}
            None if lines > MAX_LINES => {
                findings.push(Finding::new(&source.path, 0, format!("{lines} lines, the limit is {MAX_LINES}: split the file")));
            }
            None if lines > AIM_LINES => {
                notes.push(Finding::new(&source.path, 0, format!("{lines} lines, the aim is {AIM_LINES}")));
            }
            None => {}
        }
    }
    for (path, _) in allowed {
        findings.push(Finding::new(ALLOW_LIST, 0, format!("{path} is gone: remove its line")));
    }
    (findings, notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, lines: usize) -> Source {
        Source::new(path, &"x\n".repeat(lines))
    }

    #[test]
    fn limits() {
        let count = |lines, allowed| {
            let (findings, notes) = check(&[source("a/b.rs", lines)], allowed);
            (findings.len(), notes.len())
        };
        assert_eq!(count(400, ""), (0, 0));
        assert_eq!(count(401, ""), (0, 1));
        assert_eq!(count(800, ""), (0, 1));
        assert_eq!(count(801, ""), (1, 0));
        assert_eq!(check(&[source("a/tests/b.rs", 900), source("data.json", 900)], ""), (vec![], vec![]));
    }

    #[test]
    fn the_allow_list_only_shrinks() {
        let finding = |lines, allowed| check(&[source("a/b.rs", lines)], allowed).0.pop().map(|f| f.message).unwrap_or_default();
        assert_eq!(finding(900, "a/b.rs 900"), "");
        assert!(finding(901, "a/b.rs 900").contains("split"));
        assert!(finding(899, "a/b.rs 900").contains("lower"));
        assert!(finding(700, "a/b.rs 900").contains("remove"));
        assert!(finding(10, "gone.rs 900").contains("gone"));
    }
}
