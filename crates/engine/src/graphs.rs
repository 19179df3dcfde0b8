//! Which graphs of decode steps there are: sizes, and when they are recorded.

use std::{collections::HashMap, sync::Arc};

use ferrum_kernels::Graph;

use crate::{error::Result, options::Sizes};

/// The size of a padded decode step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Sequences, of one token each
    pub rows: usize,
    /// Blocks of each block table
    pub width: usize,
    /// Whether it ends in the likeliest tokens instead of logits
    pub greedy: bool,
}

/// The recorded graphs of one runner.
pub(crate) struct Graphs {
    max_rows: usize,
    max_width: usize,
    recorded: HashMap<Shape, State>,
}

enum State {
    /// Came up once. Recording then would cost more than it brings if the shape never came again, and the kernels are loaded
    /// by the first run.
    Seen,
    Recorded(Arc<dyn Graph>),
    /// The backend cannot record it.
    Refused,
}

impl Graphs {
    pub fn new(sizes: &Sizes) -> Self {
        Self { max_rows: sizes.max_seqs, max_width: sizes.table_width(), recorded: HashMap::with_capacity(256) }
    }

    /// The shape that serves a step of `rows` sequences with up to `width` blocks.
    pub fn shape(&self, rows: usize, width: usize, greedy: bool) -> Shape {
        Shape { rows: row_bucket(rows).min(self.max_rows), width: width.next_power_of_two().min(self.max_width), greedy }
    }

    /// The graph of a shape that has come up before, recorded by `record` if need be; `None`: the step is to be issued as it is.
    ///
    /// # Errors
    /// When recording fails.
    pub fn find(&mut self, shape: Shape, record: impl FnOnce() -> Result<Option<Arc<dyn Graph>>>) -> Result<Option<&dyn Graph>> {
        match self.recorded.get(&shape) {
            None => {
                self.recorded.insert(shape, State::Seen);
            }
            Some(State::Seen) => {
                let state = record()?.map_or(State::Refused, State::Recorded);
                self.recorded.insert(shape, state);
            }
            Some(State::Recorded(_) | State::Refused) => {}
        }
        match self.recorded.get(&shape) {
            Some(State::Recorded(graph)) => Ok(Some(&**graph)),
            _ => Ok(None),
        }
    }
}

/// Up to half more rows for the smallest steps, a third for small ones, up to an eighth for large ones: tensor cores compute 8 rows or more at once
/// anyway.
fn row_bucket(rows: usize) -> usize {
    let step = match rows {
        0..=2 => 1,
        3..=4 => 2,
        5..=16 => 4,
        17..=64 => 8,
        65..=256 => 16,
        _ => 64,
    };
    rows.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::row_bucket;

    #[test]
    fn few_buckets_and_little_padding() {
        let mut buckets: Vec<usize> = (1..=512).map(row_bucket).collect();
        assert!((1..=512).zip(&buckets).all(|(rows, &bucket)| rows <= bucket && bucket <= rows + rows.div_ceil(2)));
        assert!((17..=512).all(|rows| row_bucket(rows) - rows <= 63 && (row_bucket(rows) - rows) * 3 <= row_bucket(rows)));
        buckets.dedup();
        assert_eq!(buckets[..10], [1, 2, 4, 8, 12, 16, 24, 32, 40, 48]);
        assert!(buckets.contains(&64) && buckets.contains(&256) && buckets.len() <= 30);
    }
}
