//! Log-probabilities of given text: what perplexity is made of.

use crate::{
    block_pool::BlockId,
    engine::Engine,
    error::{Error, Result, SubmitError},
    logprobs::log_sum_exp,
    plan::{Plan, Segment},
};

impl Engine {
    /// The log-probabilities of `tokens[from..]`, each given all tokens before it. Uses free blocks of the KV cache and
    /// nothing from the prefix cache, so the result does not depend on earlier calls.
    ///
    /// The perplexity that is usually reported for windows of `n` tokens scores the second half of each window:
    /// `score(window, n / 2 + 1)`.
    ///
    /// # Errors
    /// When the tokens do not fit into the context or are not in the vocabulary, `from` is 0 or past the end, running
    /// requests leave too few free blocks, or the device fails.
    pub fn score(&mut self, tokens: &[u32], from: usize) -> Result<Vec<f32>> {
        let (vocab, max_context) = (self.model_info().vocab, self.sizes.max_context);
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            let requirement = format!("ids must be below the vocabulary of {vocab}");
            return Err(SubmitError::invalid("tokens", format!("token id {id}"), requirement).into());
        }
        if tokens.len() > max_context {
            let requirement = format!("at most the context of {max_context} can be scored at once");
            return Err(SubmitError::invalid("tokens", format!("{} tokens", tokens.len()), requirement).into());
        }
        if from == 0 || from >= tokens.len() {
            let requirement = "it must be at least 1, because nothing predicts the first token, and below the number of tokens";
            return Err(SubmitError::invalid("from", from, requirement).into());
        }
        let needed = (tokens.len() - 1).div_ceil(self.sizes.block_tokens);
        let available = self.scheduler.pool().available();
        let Some(blocks) = self.scheduler.borrow_blocks(needed) else {
            return Err(Error::Busy { tokens: tokens.len(), needed, available });
        };
        let result = self.score_in(tokens, from, &blocks);
        self.scheduler.return_blocks(blocks);
        result
    }

    fn score_in(&mut self, tokens: &[u32], from: usize, blocks: &[BlockId]) -> Result<Vec<f32>> {
        let mut scores = Vec::with_capacity(tokens.len() - from);
        let mut plan = Plan::default();
        let (mut start, last) = (0, tokens.len() - 1);
        while start < last {
            let first_scored = start.max(from - 1);
            let end = last.min(start + self.sizes.max_step_tokens).min(first_scored + self.sizes.max_logit_rows);
            let first_scored = first_scored.min(end);
            plan.begin(blocks.len());
            plan.push(&Segment {
                tokens,
                drafts: &[],
                drawn: 0,
                range: start..end,
                logits: first_scored..end,
                blocks,
                block_tokens: self.sizes.block_tokens,
            });
            self.runner.forward(&plan)?;
            for (row, position) in (first_scored..end).enumerate() {
                let logits = self.runner.read_logits(row)?;
                scores.push((f64::from(logits[tokens[position + 1] as usize]) - log_sum_exp(logits)) as f32);
            }
            start = end;
        }
        Ok(scores)
    }
}
