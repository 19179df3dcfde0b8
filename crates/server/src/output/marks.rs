//! Marks in text that arrives in pieces.

use std::cmp::Reverse;

/// Where the first mark is.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    Mark {
        start: usize,
        mark: &'a str,
    },
    /// No mark; the first `certain` bytes are not part of one whatever comes
    None {
        certain: usize,
    },
}

/// Looks for the first of `marks` in `text`. Of two that begin alike it is the longer one, so the shorter waits for what comes.
pub fn find<'a>(text: &str, marks: &[&'a str]) -> Found<'a> {
    let first = marks.iter().filter_map(|mark| Some((text.find(mark)?, *mark))).min_by_key(|(start, mark)| (*start, Reverse(mark.len())));
    if let Some((start, mark)) = first {
        let may_be = |longer: &&str| longer.len() > text.len() - start && longer.starts_with(&text[start..]);
        if marks.iter().any(may_be) {
            return Found::None { certain: start };
        }
        return Found::Mark { start, mark };
    }
    let held = marks.iter().map(|mark| beginning_at_end(text, mark)).max().unwrap_or(0);
    Found::None { certain: text.len() - held }
}

/// Bytes at the end of `text` that `mark` begins with.
fn beginning_at_end(text: &str, mark: &str) -> usize {
    (1..mark.len().min(text.len() + 1)).rev().find(|&len| text.as_bytes().ends_with(&mark.as_bytes()[..len])).unwrap_or(0)
}
