//! Draft tokens from a smaller model with the same tokens.
//!
//! It has a KV cache of its own in the same blocks: what the block table of a sequence says for one model holds for the
//! other. It computes only for sequences that speculate, and catches up on what it has missed in chunks
//! ([`Sequence::drafted`]), so that those that do not cost it nothing.
//!
//! Draft tokens are sampled with the parameters and the random numbers with which the target samples the same positions:
//! where the distributions are alike, so are the tokens.
//!
//! [`Sequence::drafted`]: crate::sequence::Sequence::drafted

use std::sync::Arc;

use ferrum_kernels::{Backend, ops::SampleParams};
use ferrum_models::Model;

use crate::{
    error::{Error, Result},
    options::Sizes,
    plan::{Plan, Segment},
    runner::{Draw, Runner},
    scheduler::Scheduler,
};

/// See the module's documentation.
pub(crate) struct DraftingModel {
    runner: Runner,
    /// Tokens that both models know
    vocab: u32,
    max_step_tokens: usize,
    plan: Plan,
    params: Vec<SampleParams>,
}

impl DraftingModel {
    /// # Errors
    /// When the model cannot hold the context, or memory is short.
    pub fn new(backend: Arc<dyn Backend>, model: Arc<dyn Model>, sizes: &Sizes, vocab: usize) -> Result<Self> {
        let info = model.info();
        if info.max_context < sizes.max_context {
            let requirement = format!("the model for drafts takes at most {}; choose another one, or a shorter context", info.max_context);
            return Err(Error::Option { field: "max_context", got: sizes.max_context.to_string(), requirement });
        }
        let vocab = info.vocab.min(vocab) as u32;
        let runner = Runner::new(backend, model, &sizes.of_drafting_model())?;
        Ok(Self {
            runner,
            vocab,
            max_step_tokens: sizes.max_step_tokens,
            plan: Plan::default(),
            params: Vec::with_capacity(sizes.max_seqs),
        })
    }

    /// Makes the tokens that sequences want, and returns how many tokens it computed. A sequence may get fewer than it
    /// wants, or none when it has to be caught up with first. `params` are the sampling parameters of the request with a tag.
    ///
    /// # Errors
    /// When the device fails. Nobody has drafts then.
    pub fn draft(&mut self, scheduler: &mut Scheduler, params: impl Fn(usize) -> SampleParams) -> Result<usize> {
        let mut computed = 0;
        while scheduler.drafting().next().is_some() {
            self.plan(scheduler, &params);
            computed += self.plan.tokens.len();
            if let Err(error) = self.compute() {
                for s in scheduler.drafting() {
                    s.drafts.clear();
                    (s.wanted, s.drafted) = (0, 0);
                }
                return Err(error);
            }
            let mut tokens = self.runner.tokens().iter();
            for s in scheduler.drafting() {
                let token = if s.drafted == s.tokens.len() + s.drafts.len() { tokens.next() } else { None };
                match token.filter(|&&token| token < self.vocab) {
                    Some(&token) => {
                        s.drafts.push(token);
                        s.wanted -= 1;
                    }
                    // The next step goes on with what is missing.
                    None => s.wanted = 0,
                }
            }
        }
        Ok(computed)
    }

    /// Plans what the model has not seen of each text, which is one token from the second time on.
    fn plan(&mut self, scheduler: &mut Scheduler, params: impl Fn(usize) -> SampleParams) {
        let block_tokens = scheduler.pool().block_tokens();
        let mut budget = self.max_step_tokens;
        self.plan.begin(scheduler.drafting().map(|s| s.blocks.len()).max().unwrap_or(0));
        self.params.clear();
        for s in scheduler.drafting() {
            let known = s.tokens.len() + s.drafts.len();
            let range = s.drafted..known.min(s.drafted + budget);
            let unknown = s.tokens.iter().take(range.end).skip(range.start).any(|&token| token >= self.vocab);
            if range.is_empty() || unknown {
                continue;
            }
            budget -= range.len();
            let samples = usize::from(range.end == known);
            self.plan.push(&Segment {
                tokens: &s.tokens,
                drafts: &s.drafts,
                drawn: 0,
                logits: range.end - samples..range.end,
                range: range.clone(),
                blocks: &s.blocks,
                block_tokens,
            });
            s.drafted = range.end;
            if samples > 0 {
                let position = s.prompt_len + s.generated + s.drafts.len();
                self.params.push(SampleParams { position: position as u32, counts_row: -1, ..params(s.tag) });
            }
        }
    }

    fn compute(&mut self) -> Result<()> {
        if self.plan.is_empty() {
            return Ok(());
        }
        // Nobody with penalties speculates, and nobody reads these logits.
        let greedy = self.params.iter().all(|p| p.temperature == 0.0);
        let draw = if greedy { Draw::Likeliest } else { Draw::FromLogits { params: &self.params, counts: None } };
        self.runner.issue(&self.plan, draw, false)?;
        self.runner.wait()
    }
}
