//! What a request wants to know of its prompt: log-probabilities of its tokens, or its embedding.
//!
//! Both are read from the hidden states of the steps that compute the prompt, whoever else is in them. Logits of prompt rows
//! are computed in portions that fit the buffer of logits, so that a long prompt takes no more memory than a short one.

use std::ops::Range;

use ferrum_models::Pooling;

use crate::{engine::Reading, error::Result, logprobs::TokenLogprobs, request::ReadPrompt, runner::Runner};

/// How far the prompt of one request has been read.
#[derive(Debug)]
pub(crate) struct PromptReader {
    what: ReadPrompt,
    prompt: Vec<u32>,
    /// The first position whose hidden state is still wanted
    next: usize,
    /// Of the states so far
    sum: Vec<f64>,
}

impl PromptReader {
    pub fn new(what: ReadPrompt, prompt: Vec<u32>) -> Self {
        let next = if what == ReadPrompt::Embedding(Pooling::Last) { prompt.len() - 1 } else { 0 };
        Self { what, prompt, next, sum: Vec::new() }
    }

    /// Whether there is more to read.
    pub fn is_reading(&self) -> bool {
        self.next < self.end()
    }

    /// Reads the rows of a step that hold the positions from `position` on. The runner has that step's states.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&mut self, runner: &mut Runner, rows: Range<usize>, position: usize) -> Result<Option<Reading>> {
        let positions = position.max(self.next)..(position + rows.len()).min(self.end());
        if positions.is_empty() {
            return Ok(None);
        }
        // What was lost with its blocks is computed again from the start, but has been read.
        debug_assert_eq!(positions.start, self.next);
        let rows = rows.start + positions.start - position..rows.start + positions.end - position;
        self.next = positions.end;
        match self.what {
            ReadPrompt::Logprobs(count) => {
                let targets = &self.prompt[positions.start + 1..=positions.end];
                Ok(Some(Reading::Logprobs(logprobs(runner, rows, targets, count)?)))
            }
            ReadPrompt::Embedding(_) => {
                let states = runner.read_states(rows)?;
                self.sum.resize(runner.model().info().hidden, 0.0);
                for state in states.chunks_exact(self.sum.len()) {
                    self.sum.iter_mut().zip(state).for_each(|(sum, &value)| *sum += f64::from(value));
                }
                Ok((!self.is_reading()).then(|| Reading::Embedding(self.mean())))
            }
        }
    }

    /// The position behind the last one whose state is wanted: nothing follows the prompt's last token.
    fn end(&self) -> usize {
        match self.what {
            ReadPrompt::Logprobs(_) => self.prompt.len() - 1,
            ReadPrompt::Embedding(_) => self.prompt.len(),
        }
    }

    fn mean(&self) -> Vec<f32> {
        let count = if self.what == ReadPrompt::Embedding(Pooling::Mean) { self.prompt.len() } else { 1 };
        self.sum.iter().map(|sum| (sum / count as f64) as f32).collect()
    }
}

/// The log-probabilities of `targets`, each given the token of its row and all before it.
fn logprobs(runner: &mut Runner, rows: Range<usize>, targets: &[u32], count: usize) -> Result<Vec<TokenLogprobs>> {
    let mut all = Vec::with_capacity(targets.len());
    let portion = runner.max_logit_rows();
    for (start, targets) in rows.step_by(portion).zip(targets.chunks(portion)) {
        runner.prompt_logits(start..start + targets.len())?;
        for (row, &target) in targets.iter().enumerate() {
            all.push(TokenLogprobs::new(runner.read_logits(row)?, target, count));
        }
    }
    Ok(all)
}
