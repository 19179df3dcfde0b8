//! Decides what each step computes. Pure and deterministic: no clock, no device, no channel.
//!
//! Every step spends a budget of tokens: first on running sequences that are one token short (decodes), then on those with
//! more to compute (prefill, in chunks), then on waiting requests. Rank is priority, then arrival. When blocks run out, the
//! lowest-ranked running sequence gives its blocks back and waits to be computed anew; what it computed stays in the prefix
//! cache for as long as nobody needs the room. A sequence never takes blocks from one ranked above it, so the first
//! always moves.

use std::collections::BTreeMap;

use crate::{
    block_pool::{BlockId, BlockPool, Prefix},
    error::SubmitError,
    plan::{Plan, PlannedSequence, RequestId, Segment},
    sequence::{ContextFull, FinishReason, Finished, NewSequence, Rank, Sequence},
};

/// Sizes that do not change while an engine lives.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of prompt and answer together; at most what the pool holds
    pub max_context: usize,
    /// Sequences that run at the same time
    pub max_seqs: usize,
    /// Tokens of one step; at least `max_seqs`
    pub max_step_tokens: usize,
    /// Requests that may wait
    pub max_waiting: usize,
}

/// What became of a sequence in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub id: RequestId,
    /// Index among the step's sampled tokens
    pub row: usize,
    /// The new token; `None` when it was a stop token
    pub token: Option<u32>,
    pub finished: Option<Finished>,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tokens that went through the model, those computed again included
    pub computed_tokens: u64,
    /// Prompt tokens taken from the prefix cache instead
    pub reused_tokens: u64,
    pub generated_tokens: u64,
    pub preemptions: u64,
    pub context_shifts: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    waiting: BTreeMap<Rank, Sequence>,
    /// Ascending by rank
    running: Vec<Sequence>,
    next_id: u64,
    counts: Counts,
    /// The last plan's buffers
    spare: Plan,
}

impl Scheduler {
    /// `limits.max_context` is cut to what the pool holds, so that every admitted request can be finished.
    pub fn new(limits: Limits, pool: BlockPool) -> Self {
        let max_context = limits.max_context.min(pool.blocks().saturating_mul(pool.block_tokens()));
        let limits = Limits { max_context, max_step_tokens: limits.max_step_tokens.max(limits.max_seqs), ..limits };
        let running = Vec::with_capacity(limits.max_seqs);
        let (counts, spare) = (Counts::default(), Plan::for_steps(&limits, pool.block_tokens()));
        Self { limits, pool, waiting: BTreeMap::new(), running, next_id: 0, counts, spare }
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Puts a request into the queue.
    ///
    /// # Errors
    /// When the queue is full, or the context can never hold the request.
    pub fn submit(&mut self, new: NewSequence) -> Result<RequestId, SubmitError> {
        let max_context = self.limits.max_context;
        let prompt_tokens = new.prompt.len();
        if prompt_tokens == 0 {
            return Err(SubmitError::invalid("prompt", "empty", "it must have at least one token"));
        }
        if prompt_tokens >= max_context {
            return Err(SubmitError::PromptTooLong { prompt_tokens, max_context });
        }
        if new.on_context_full == ContextFull::Refuse && prompt_tokens.saturating_add(new.max_tokens) > max_context {
            return Err(SubmitError::ContextExceeded { prompt_tokens, max_tokens: new.max_tokens, max_context });
        }
        if let ContextFull::Shift { keep } = new.on_context_full
            && keep > max_context / 2
        {
            return Err(SubmitError::invalid("keep", keep, format!("it must be at most half the context of {max_context} tokens")));
        }
        if self.waiting.len() >= self.limits.max_waiting {
            return Err(SubmitError::QueueFull { limit: self.limits.max_waiting });
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let sequence = Sequence::new(id, new);
        self.waiting.insert(sequence.rank, sequence);
        Ok(id)
    }

    /// Removes a request and frees its blocks at once; `None` when there is no such request.
    pub fn cancel(&mut self, id: RequestId) -> Option<Finished> {
        if let Some(index) = self.running.iter().position(|s| s.id() == id) {
            return Some(self.finish(index, FinishReason::Cancelled, None));
        }
        let rank = self.waiting.keys().find(|rank| rank.id == id).copied()?;
        Some(self.waiting.remove(&rank)?.finished(FinishReason::Cancelled, None))
    }

    /// Decides on the next step. It is empty only when there is nothing to do. [`Scheduler::commit`] or
    /// [`Scheduler::abort`] takes the plan back.
    pub fn plan(&mut self) -> Plan {
        let mut plan = std::mem::take(&mut self.spare);
        plan.preempted.clear();
        let mut budget = self.limits.max_step_tokens;
        for decodes in [true, false] {
            let mut index = 0;
            while index < self.running.len() {
                let sequence = &self.running[index];
                if sequence.planned == 0 && (sequence.remaining() == 1) == decodes {
                    self.schedule(index, &mut budget, &mut plan.preempted);
                }
                index += 1;
            }
        }
        // Whoever waits must not get blocks that somebody just lost.
        while plan.preempted.is_empty() && budget > 0 && self.running.len() < self.limits.max_seqs {
            let Some(index) = self.admit() else { break };
            self.schedule(index, &mut budget, &mut plan.preempted);
        }
        self.fill(&mut plan);
        plan
    }

    /// Takes in what the step computed. `tokens` are the sampled tokens in the order of [`Plan::sampling`].
    pub fn commit(&mut self, plan: Plan, tokens: &[u32], outcomes: &mut Vec<Outcome>) {
        debug_assert_eq!(tokens.len(), plan.sampling().count());
        let mut sampled = tokens.iter().copied().enumerate();
        for planned in &plan.seqs {
            let token = if planned.samples { sampled.next() } else { None };
            let Some(index) = self.running.iter().position(|s| s.id() == planned.id) else { continue };
            self.advance(index);
            if let Some((row, token)) = token {
                outcomes.push(self.append(index, row, token));
            }
        }
        self.spare = plan;
    }

    /// Takes back a plan whose step failed; its sequences end.
    pub fn abort(&mut self, plan: Plan, outcomes: &mut Vec<Outcome>) {
        for (row, planned) in plan.seqs.iter().enumerate() {
            if let Some(index) = self.running.iter().position(|s| s.id() == planned.id) {
                let finished = Some(self.finish(index, FinishReason::Failed, None));
                outcomes.push(Outcome { id: planned.id, row, token: None, finished });
            }
        }
        self.spare = plan;
    }

    /// Blocks for work outside of any sequence, all or none. They go back through [`Scheduler::return_blocks`].
    pub fn borrow_blocks(&mut self, count: usize) -> Option<Vec<BlockId>> {
        if count > self.pool.available() {
            return None;
        }
        Some((0..count).map_while(|_| self.pool.allocate()).collect())
    }

    /// Ends a loan of [`Scheduler::borrow_blocks`].
    pub fn return_blocks(&mut self, blocks: Vec<BlockId>) {
        blocks.into_iter().for_each(|block| self.pool.release(block));
    }

    /// Empties the prefix cache.
    pub fn clear_cache(&mut self) {
        self.pool.clear_cache();
    }

    /// Checks every invariant, between steps and with no blocks borrowed.
    ///
    /// # Errors
    /// What is wrong, for a test to print.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.pool.check_integrity()?;
        let ensure = |ok: bool, what: String| if ok { Ok(()) } else { Err(what) };
        let mut users = vec![0; self.pool.blocks()];
        for s in &self.running {
            let (id, len, room) = (s.id(), s.tokens.len(), s.blocks.len() * self.pool.block_tokens());
            ensure(s.computed < len && s.computed <= room, format!("{id}: {} of {len} computed, room for {room}", s.computed))?;
            ensure(len < self.limits.max_context, format!("{id}: {len} tokens"))?;
            ensure(s.planned == 0, format!("{id} is planned between steps"))?;
            s.blocks.iter().for_each(|&b| users[b as usize] += 1);
        }
        for (block, &users) in (0u32..).zip(&users) {
            let counted = self.pool.users(block);
            ensure(counted == users, format!("block {block} counts {counted} users and has {users}"))?;
        }
        ensure(self.running.is_sorted_by_key(|s| s.rank), "running sequences are out of order".into())?;
        ensure(self.running.len() <= self.limits.max_seqs, format!("{} sequences run", self.running.len()))?;
        let idle = self.waiting.values().all(|s| s.blocks.is_empty() && s.computed == 0 && s.planned == 0);
        ensure(idle, "a waiting sequence holds blocks".into())
    }

    /// Plans as many tokens of a running sequence as budget and blocks allow.
    fn schedule(&mut self, index: usize, budget: &mut usize, preempted: &mut Vec<RequestId>) {
        let block_tokens = self.pool.block_tokens();
        let sequence = &self.running[index];
        let end = sequence.computed + sequence.remaining().min(*budget);
        while self.running[index].blocks.len() * block_tokens < end {
            if let Some(block) = self.pool.allocate() {
                self.running[index].blocks.push(block);
            } else if self.running.len() > index + 1 {
                *budget += self.preempt(preempted);
            } else {
                break;
            }
        }
        let sequence = &mut self.running[index];
        sequence.planned = end.min(sequence.blocks.len() * block_tokens) - sequence.computed;
        *budget -= sequence.planned;
    }

    /// Sends the last running sequence back to the queue and returns how many tokens were planned for it.
    fn preempt(&mut self, preempted: &mut Vec<RequestId>) -> usize {
        let Some(mut sequence) = self.running.pop() else { return 0 };
        let planned = sequence.planned;
        self.give_back(&mut sequence);
        preempted.push(sequence.id());
        self.counts.preemptions += 1;
        self.waiting.insert(sequence.rank, sequence);
        planned
    }

    /// Moves the first waiting request to the running ones when there is room for all its tokens besides those of everyone
    /// running and one more block for each of them, and returns its index.
    fn admit(&mut self) -> Option<usize> {
        let block_tokens = self.pool.block_tokens();
        let missing = |s: &Sequence| s.tokens.len().div_ceil(block_tokens).saturating_sub(s.blocks.len());
        let promised = self.running.iter().map(|s| missing(s) + 1).sum::<usize>();
        let mut entry = self.waiting.first_entry()?;
        let sequence = entry.get_mut();
        let prefix = self.pool.acquire(&sequence.tokens, &mut sequence.blocks);
        if self.pool.available() < missing(sequence) + promised {
            sequence.blocks.drain(..).rev().for_each(|block| self.pool.release(block));
            return None;
        }
        let mut sequence = entry.remove();
        sequence.prefix = prefix;
        sequence.computed = sequence.blocks.len() * block_tokens;
        if let Some((block, kept)) = self.pool.take_tail(prefix, &sequence.tokens[sequence.computed..]) {
            sequence.blocks.push(block);
            sequence.computed += kept;
        }
        if sequence.reused.is_none() {
            sequence.reused = Some(sequence.computed);
            self.counts.reused_tokens += sequence.computed as u64;
        }
        // Decoding then allocates nothing.
        let longest = sequence.prompt_len.saturating_add(sequence.max_tokens).clamp(sequence.tokens.len(), self.limits.max_context);
        sequence.tokens.reserve_exact(longest - sequence.tokens.len());
        sequence.blocks.reserve_exact(longest.div_ceil(block_tokens) - sequence.blocks.len());
        let index = self.running.partition_point(|s| s.rank < sequence.rank);
        self.running.insert(index, sequence);
        Some(index)
    }

    fn fill(&self, plan: &mut Plan) {
        let block_tokens = self.pool.block_tokens();
        let planned = || self.running.iter().filter(|s| s.planned > 0);
        plan.begin(planned().map(|s| (s.computed + s.planned).div_ceil(block_tokens)).max().unwrap_or(0));
        for s in planned() {
            let end = s.computed + s.planned;
            let samples = end == s.tokens.len();
            plan.push(&Segment {
                tokens: &s.tokens,
                range: s.computed..end,
                logits: if samples { end - 1..end } else { end..end },
                blocks: &s.blocks,
                block_tokens,
            });
            plan.seqs.push(PlannedSequence { id: s.id(), tokens: s.planned, samples, draw: s.prompt_len + s.generated });
        }
    }

    /// Counts the planned tokens of a running sequence as computed and caches the blocks they filled.
    fn advance(&mut self, index: usize) {
        let block_tokens = self.pool.block_tokens();
        let s = &mut self.running[index];
        let whole = s.computed / block_tokens;
        self.counts.computed_tokens += s.planned as u64;
        s.computed += std::mem::take(&mut s.planned);
        for block in whole..s.computed / block_tokens {
            s.prefix = self.pool.store(s.blocks[block], s.prefix, &s.tokens[block * block_tokens..][..block_tokens]);
        }
    }

    /// Gives a running sequence its next token.
    fn append(&mut self, index: usize, row: usize, token: u32) -> Outcome {
        let max_context = self.limits.max_context;
        let s = &mut self.running[index];
        let id = s.id();
        if s.stop_tokens.contains(&token) {
            let finished = Some(self.finish(index, FinishReason::Stop, Some(token)));
            return Outcome { id, row, token: None, finished };
        }
        s.tokens.push(token);
        s.generated += 1;
        self.counts.generated_tokens += 1;
        let finished = if s.generated >= s.max_tokens {
            Some(self.finish(index, FinishReason::Length, None))
        } else if s.tokens.len() < max_context {
            None
        } else if let ContextFull::Shift { keep } = s.on_context_full {
            let mut sequence = self.running.remove(index);
            self.give_back(&mut sequence);
            sequence.shift(keep);
            self.counts.context_shifts += 1;
            self.waiting.insert(sequence.rank, sequence);
            None
        } else {
            Some(self.finish(index, FinishReason::Context, None))
        };
        Outcome { id, row, token: Some(token), finished }
    }

    fn finish(&mut self, index: usize, reason: FinishReason, stop_token: Option<u32>) -> Finished {
        let mut s = self.running.remove(index);
        self.give_back(&mut s);
        s.finished(reason, stop_token)
    }

    /// Returns all blocks of a sequence, last one first, and leaves what they hold in the cache.
    fn give_back(&mut self, s: &mut Sequence) {
        let block_tokens = self.pool.block_tokens();
        let whole = s.computed / block_tokens;
        while let Some(block) = s.blocks.pop() {
            if s.blocks.len() == whole && !s.computed.is_multiple_of(block_tokens) {
                self.pool.release_tail(block, s.prefix, &s.tokens[whole * block_tokens..s.computed]);
            } else {
                self.pool.release(block);
            }
        }
        (s.computed, s.planned, s.prefix) = (0, 0, Prefix::EMPTY);
    }
}
