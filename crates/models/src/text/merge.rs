//! The merge loop that byte-pair encoding and SentencePiece share: best pair first, leftmost on ties, O(n log n).

use super::vocab::NONE;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A span of the text that is, or may become, one token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    pub start: u32,
    pub len: u32,
    /// Token id, or [`NONE`] where the span is no token.
    pub id: u32,
    prev: u32,
    next: u32,
}

/// Reused buffers of [`Merger::run`].
#[derive(Default)]
pub(super) struct Merger {
    pub symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<Candidate>>,
}

/// Ordered by rank, then by position: the order of the fields is the order of the merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: u32,
    right: u32,
    len: u32,
    id: u32,
}

impl Merger {
    pub fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    /// Adds the next span of the text; spans must be adjacent.
    pub fn add(&mut self, len: u32, id: u32) {
        let at = self.symbols.len() as u32;
        let (start, prev) = match self.symbols.last_mut() {
            Some(last) => {
                last.next = at;
                (last.start + last.len, at - 1)
            }
            None => (0, NONE),
        };
        self.symbols.push(Symbol { start, len, id, prev, next: NONE });
    }

    /// Merges until `pair` knows no more. `pair` returns the rank (lower first) and the id of two adjacent spans together.
    pub fn run(&mut self, pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        for right in 1..self.symbols.len() as u32 {
            self.propose(right - 1, right, &pair);
        }
        while let Some(Reverse(best)) = self.heap.pop() {
            let (left, right) = (self.symbols[best.left as usize], self.symbols[best.right as usize]);
            // Outdated: one side was merged into something else since.
            if left.len == 0 || right.len == 0 || left.len + right.len != best.len {
                continue;
            }
            self.symbols[best.right as usize].len = 0;
            let merged = &mut self.symbols[best.left as usize];
            merged.len = best.len;
            merged.id = best.id;
            merged.next = right.next;
            if right.next != NONE {
                self.symbols[right.next as usize].prev = best.left;
            }
            self.propose(left.prev, best.left, &pair);
            self.propose(best.left, right.next, &pair);
        }
    }

    /// The spans that are left, in order.
    pub fn spans(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }

    fn propose(&mut self, left: u32, right: u32, pair: &impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        if left == NONE || right == NONE {
            return;
        }
        let (l, r) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if let Some((rank, id)) = pair(l, r) {
            self.heap.push(Reverse(Candidate { rank, left, right, len: l.len + r.len, id }));
        }
    }
}
