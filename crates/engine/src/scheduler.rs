//! Decides what each step computes. Pure and deterministic: no clock, no device, no channel.
//!
//! Every step spends a budget of tokens: first on running sequences that are one token short (decodes), then on those with
//! more to compute (prefill, in chunks), then on waiting requests. Rank is priority, then arrival; of the waiting requests
//! with the same priority, the next one is the first of the user who has been served least. When blocks run out, the
//! lowest-ranked running sequence gives its blocks back and waits to be computed anew; what it computed stays in the prefix
//! cache for as long as nobody needs the room. A sequence never takes blocks from one ranked above it, so the first
//! always moves.
//!
//! Steps may overlap: the next one can be planned before the tokens of the last are known. Its decodes then compute a token
//! that is only a place in the step before ([`Plan::tokens`]), and plans are committed in the order they were made. A
//! sequence that turns out to have ended has one row too many in the step under way; nobody misses it. Blocks that a step
//! under way still writes may be given away at once, because the device runs steps in order.

use std::collections::BTreeMap;

use crate::{
    block_pool::{BlockId, BlockPool, KvEvent, Prefix},
    error::SubmitError,
    plan::{Plan, PlannedSequence, RequestId, Segment},
    sequence::{ContextFull, FinishReason, Finished, Leaving, NewSequence, Rank, Sequence},
    speculate::{self, Drafter, Lookup, StepTimes},
    users::Users,
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
    /// Draft tokens of one sequence in one step; 0: no speculation
    pub max_drafts: usize,
    /// Draft tokens of one step
    pub max_step_drafts: usize,
    /// Whether drafts come from a model, not from the text itself
    pub drafting_model: bool,
}

/// What became of a sequence in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub id: RequestId,
    pub tag: usize,
    /// Index among the step's sampled tokens
    pub row: usize,
    /// The new token; `None` when it was a stop token
    pub token: Option<u32>,
    pub finished: Option<Finished>,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tokens that went through the model, those computed again included, wrong draft tokens not
    pub computed_tokens: u64,
    /// Tokens of the prompts whose computation has begun, once for each request, also where they are computed again
    pub prompt_tokens: u64,
    /// Those among them that were in the prefix cache
    pub reused_tokens: u64,
    pub generated_tokens: u64,
    pub preemptions: u64,
    pub context_shifts: u64,
    /// Times a sequence computed draft tokens
    pub drafts: u64,
    pub draft_tokens: u64,
    /// Draft tokens that were right
    pub accepted_tokens: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    waiting: BTreeMap<Rank, Sequence>,
    users: Users,
    /// Ascending by rank
    running: Vec<Sequence>,
    /// Plans that are not committed
    under_way: usize,
    next_id: u64,
    counts: Counts,
    /// Buffers of earlier plans
    spare: Vec<Plan>,
    /// Of a commit: those who stay
    staying: Vec<Sequence>,
}

/// Plans that may be under way, the one being made included.
pub(crate) const MAX_UNDER_WAY: usize = 2;

impl Scheduler {
    /// `limits.max_context` is cut to what the pool holds, so that every admitted request can be finished.
    pub fn new(limits: Limits, pool: BlockPool) -> Self {
        let max_context = limits.max_context.min(pool.blocks().saturating_mul(pool.block_tokens()));
        let limits = Limits { max_context, max_step_tokens: limits.max_step_tokens.max(limits.max_seqs), ..limits };
        Self {
            running: Vec::with_capacity(limits.max_seqs),
            staying: Vec::with_capacity(limits.max_seqs),
            spare: (0..MAX_UNDER_WAY).map(|_| Plan::for_steps(&limits, pool.block_tokens())).collect(),
            waiting: BTreeMap::new(),
            users: Users::default(),
            under_way: 0,
            next_id: 0,
            counts: Counts::default(),
            limits,
            pool,
        }
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
        let (id, speculates) = (RequestId(self.next_id), new.speculates);
        self.next_id += 1;
        let user = self.users.enter(new.user);
        let mut sequence = Sequence::new(id, user, new);
        sequence.drafter = match self.limits.max_drafts {
            0 => Drafter::None,
            _ if !speculates => Drafter::None,
            _ if self.limits.drafting_model => Drafter::Model,
            _ => Drafter::Lookup(Lookup::default()),
        };
        self.waiting.insert(sequence.rank, sequence);
        Ok(id)
    }

    /// Removes a request and frees its blocks at once; its tag and end, or `None` when there is no such request.
    pub fn cancel(&mut self, id: RequestId) -> Option<(usize, Finished)> {
        let mut s = if let Some(index) = self.running.iter().position(|s| s.id() == id) {
            self.running.remove(index)
        } else {
            let rank = self.waiting.keys().find(|rank| rank.id == id).copied()?;
            self.waiting.remove(&rank)?
        };
        give_back(&mut self.pool, &mut s);
        self.users.leave(s.user);
        Some((s.tag, s.finished(FinishReason::Cancelled, None)))
    }

    /// Whether the steps under way must be committed before the next one is planned, because somebody may have to lose its
    /// blocks.
    pub fn must_wait(&self) -> bool {
        if self.under_way == 0 {
            return false;
        }
        let block_tokens = self.pool.block_tokens();
        let needed = |s: &Sequence| {
            let end = s.next() + s.remaining().min(self.limits.max_step_tokens);
            end.div_ceil(block_tokens).saturating_sub(s.blocks.len())
        };
        let going_on = self.running.iter().filter(|s| !s.is_ending(self.limits.max_context));
        going_on.map(needed).sum::<usize>() > self.pool.available()
    }

    /// Decides who speculates in the step that is planned next. With a drafting model, those in [`Scheduler::drafting`] then
    /// want tokens from it.
    pub fn speculate(&mut self, times: &StepTimes) {
        if self.limits.max_drafts == 0 {
            return;
        }
        for s in &mut self.running {
            (s.held, s.wanted) = (false, 0);
            if s.verifying == 0 {
                s.drafts.clear();
            }
        }
        let max_context = self.limits.max_context;
        let admits = !self.waiting.is_empty() && self.running.len() < self.limits.max_seqs;
        let prefills = self.running.iter().any(|s| s.verifying == 0 && !s.is_ending(max_context) && s.remaining() > 1);
        if !admits && !prefills {
            speculate::choose(&mut self.running, &mut self.pool, &self.limits, times, self.under_way > 0);
        }
    }

    /// Sequences that want draft tokens from a model.
    pub(crate) fn drafting(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.running.iter_mut().filter(|s| s.wanted > 0)
    }

    /// Decides on the next step. It is empty when there is nothing to do before a step under way is committed, or at all.
    /// [`Scheduler::commit`] or [`Scheduler::abort`] takes the plan back. At most two are out at a time, and while one is,
    /// [`Scheduler::must_wait`] must have said no.
    pub fn plan(&mut self) -> Plan {
        debug_assert!(!self.must_wait());
        let mut plan = self.spare.pop().unwrap_or_default();
        plan.preempted.clear();
        plan.started.clear();
        let max_context = self.limits.max_context;
        let mut budget = self.limits.max_step_tokens;
        let mut prefills = false;
        for decodes in [true, false] {
            let mut index = 0;
            while index < self.running.len() && (decodes || prefills) {
                let sequence = &self.running[index];
                if sequence.is_free(max_context) {
                    if (sequence.remaining() == 1) == decodes {
                        self.schedule(index, &mut budget, &mut plan.preempted);
                    } else {
                        prefills = true;
                    }
                }
                index += 1;
            }
        }
        // Whoever waits must not get blocks that somebody just lost.
        while plan.preempted.is_empty() && budget > 0 && self.running.len() < self.limits.max_seqs {
            let Some(index) = self.admit(&mut plan.started) else { break };
            self.schedule(index, &mut budget, &mut plan.preempted);
        }
        self.fill(&mut plan);
        self.under_way += 1;
        plan
    }

    /// Takes in what the step computed. `tokens` are the sampled tokens in the order of [`Plan::sampling`].
    pub fn commit(&mut self, plan: Plan, tokens: &[u32], outcomes: &mut Vec<Outcome>) {
        debug_assert_eq!(tokens.len(), plan.samples());
        let (mut next_row, mut index, mut leave) = (0, 0, false);
        for planned in &plan.seqs {
            let rows = next_row..next_row + planned.samples;
            next_row = rows.end;
            let Some(s) = find(&mut self.running, &mut index, planned) else { continue };
            let (drafts, generated) = (planned.drafts(), s.generated);
            s.verifying -= drafts;
            advance(&mut self.pool, s, planned.tokens - drafts);
            self.counts.computed_tokens += (planned.tokens - drafts) as u64;
            self.counts.drafts += u64::from(drafts > 0);
            self.counts.draft_tokens += drafts as u64;
            for (number, row) in rows.enumerate() {
                let (s, token) = (&mut self.running[index], tokens[row]);
                // The rows behind this one were computed with the draft token, and count only if that is the one.
                let draft = s.drafts.get(number).filter(|_| number < drafts).map(|&draft| draft == token);
                s.record_verified(draft);
                outcomes.push(self.append(index, row, token));
                let s = &mut self.running[index];
                leave |= s.leaving.is_some();
                self.counts.accepted_tokens += u64::from(draft == Some(true));
                if draft != Some(true) || s.leaving.is_some() {
                    break;
                }
                (s.drawn, s.in_flight) = (s.drawn + 1, s.in_flight + 1);
                advance(&mut self.pool, s, 1);
                self.counts.computed_tokens += 1;
            }
            let s = &mut self.running[index];
            if drafts > 0 {
                s.drafts.clear();
            }
            let new = s.computed.saturating_sub(s.charged);
            s.charged += new;
            self.users.serve(s.user, new, s.generated - generated);
        }
        self.take_back(plan, leave);
    }

    /// Takes back a plan whose step failed; its sequences end.
    pub fn abort(&mut self, plan: Plan, outcomes: &mut Vec<Outcome>) {
        let mut index = 0;
        for (row, planned) in plan.seqs.iter().enumerate() {
            if let Some(s) = find(&mut self.running, &mut index, planned) {
                give_back(&mut self.pool, s);
                s.leaving = Some(Leaving::Finished);
                let finished = Some(s.finished(FinishReason::Failed, None));
                outcomes.push(Outcome { id: planned.id, tag: planned.tag, row, token: None, finished });
            }
        }
        self.take_back(plan, true);
    }

    /// Ends a plan; `leave`: there are sequences that do not run any more.
    fn take_back(&mut self, plan: Plan, leave: bool) {
        self.under_way -= 1;
        self.spare.push(plan);
        if !leave {
            return;
        }
        for mut s in self.running.drain(..) {
            match s.leaving.take() {
                None => self.staying.push(s),
                Some(Leaving::Waiting) => {
                    self.waiting.insert(s.rank, s);
                }
                Some(Leaving::Finished) => self.users.leave(s.user),
            }
        }
        std::mem::swap(&mut self.running, &mut self.staying);
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

    /// See [`BlockPool::take_events`].
    pub fn take_kv_events(&mut self, events: &mut Vec<KvEvent>) {
        self.pool.take_events(events);
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
            let (id, len, next, room) = (s.id(), s.len(), s.next(), s.blocks.len() * self.pool.block_tokens());
            ensure(next < len && next <= room, format!("{id}: {next} of {len} tokens computed or under way, room for {room}"))?;
            ensure(s.computed < s.tokens.len(), format!("{id}: {} of {} known tokens computed", s.computed, s.tokens.len()))?;
            ensure(s.tokens.len() < self.limits.max_context && len <= self.limits.max_context, format!("{id}: {len} tokens"))?;
            ensure(s.planned == 0 && s.leaving.is_none(), format!("{id} is planned or leaving between steps"))?;
            ensure(s.drawn <= self.under_way, format!("{id}: {} tokens drawn by {} steps under way", s.drawn, self.under_way))?;
            let verifies = s.verifying == s.drafts.len() && next + s.verifying <= room && s.drafted <= s.tokens.len() + s.drafts.len();
            ensure(s.verifying == 0 || verifies, format!("{id}: {} of {} drafts verified", s.verifying, s.drafts.len()))?;
            ensure(self.under_way > 0 || s.verifying == 0, format!("{id}: {} drafts verified in no step", s.verifying))?;
            ensure(self.under_way > 0 || s.in_flight == 0, format!("{id}: {} tokens under way in no step", s.in_flight))?;
            s.blocks.iter().for_each(|&b| users[b as usize] += 1);
        }
        for (block, &users) in (0u32..).zip(&users) {
            let counted = self.pool.users(block);
            ensure(counted == users, format!("block {block} counts {counted} users and has {users}"))?;
        }
        ensure(self.running.is_sorted_by_key(|s| s.rank), "running sequences are out of order".into())?;
        ensure(self.running.len() <= self.limits.max_seqs, format!("{} sequences run", self.running.len()))?;
        ensure(self.under_way + self.spare.len() == MAX_UNDER_WAY, format!("{} plans are under way", self.under_way))?;
        let idle = self.waiting.values().all(|s| s.blocks.is_empty() && s.next() == 0 && s.planned == 0 && s.drawn == 0);
        ensure(idle, "a waiting sequence holds blocks".into())?;
        let (counted, known) = (self.users.requests(), self.waiting.len() + self.running.len());
        ensure(counted == known, format!("{counted} requests of all users, {known} known"))
    }

    /// Plans as many tokens of a running sequence as budget and blocks allow.
    fn schedule(&mut self, index: usize, budget: &mut usize, preempted: &mut Vec<usize>) {
        let block_tokens = self.pool.block_tokens();
        let sequence = &self.running[index];
        let end = sequence.next() + sequence.remaining().min(*budget);
        while self.running[index].blocks.len() * block_tokens < end {
            if let Some(block) = self.pool.allocate() {
                self.running[index].blocks.push(block);
            } else if self.under_way == 0 && self.running.len() > index + 1 {
                *budget += self.preempt(preempted);
            } else {
                break;
            }
        }
        let sequence = &mut self.running[index];
        let room = sequence.blocks.len() * block_tokens;
        sequence.planned = end.min(room).saturating_sub(sequence.next());
        *budget -= sequence.planned;
        let drafts = if sequence.planned == 1 { room.saturating_sub(end).min(*budget) } else { 0 };
        sequence.drafts.truncate(drafts);
        *budget -= sequence.drafts.len();
    }

    /// Sends the last running sequence back to the queue and returns how many tokens were planned for it.
    fn preempt(&mut self, preempted: &mut Vec<usize>) -> usize {
        let Some(mut sequence) = self.running.pop() else { return 0 };
        let planned = if sequence.planned > 0 { sequence.planned + sequence.drafts.len() } else { 0 };
        give_back(&mut self.pool, &mut sequence);
        preempted.push(sequence.tag);
        self.counts.preemptions += 1;
        self.waiting.insert(sequence.rank, sequence);
        planned
    }

    /// The waiting request whose turn it is.
    fn next_waiting(&self) -> Option<Rank> {
        let first = *self.waiting.first_key_value()?.0;
        if self.users.active() < 2 {
            return Some(first);
        }
        let most_urgent = self.waiting.range(..=Rank { id: RequestId(u64::MAX), ..first });
        most_urgent.min_by_key(|(rank, s)| (self.users.served(s.user), rank.id)).map(|(rank, _)| *rank)
    }

    /// Moves the next waiting request to the running ones when there is room for all its tokens besides those of everyone
    /// running and one more block for each of them, and returns its index.
    fn admit(&mut self, started: &mut Vec<RequestId>) -> Option<usize> {
        let block_tokens = self.pool.block_tokens();
        let missing = |s: &Sequence| s.len().div_ceil(block_tokens).saturating_sub(s.blocks.len());
        let promised = self.running.iter().map(|s| missing(s) + 1).sum::<usize>();
        let rank = self.next_waiting()?;
        let sequence = self.waiting.get_mut(&rank)?;
        let prefix = if sequence.reuses { self.pool.acquire(&sequence.tokens, &mut sequence.blocks) } else { Prefix::EMPTY };
        if self.pool.available() < missing(sequence) + promised {
            sequence.blocks.drain(..).rev().for_each(|block| self.pool.release(block));
            return None;
        }
        let mut sequence = self.waiting.remove(&rank)?;
        sequence.prefix = prefix;
        sequence.computed = sequence.blocks.len() * block_tokens;
        if sequence.reuses
            && let Some((block, kept)) = self.pool.take_tail(prefix, &sequence.tokens[sequence.computed..])
        {
            sequence.blocks.push(block);
            sequence.computed += kept;
        }
        if sequence.reused.is_none() {
            (sequence.reused, sequence.charged) = (Some(sequence.computed), sequence.computed);
            self.counts.prompt_tokens += sequence.prompt_len as u64;
            self.counts.reused_tokens += sequence.computed as u64;
            started.push(sequence.id());
        }
        if let Drafter::Lookup(lookup) = &mut sequence.drafter {
            let longest = sequence.prompt_len.saturating_add(sequence.max_tokens).clamp(sequence.tokens.len(), self.limits.max_context);
            lookup.restart(&sequence.tokens, longest);
        }
        // Decoding then allocates nothing.
        let longest = sequence.prompt_len.saturating_add(sequence.max_tokens).clamp(sequence.tokens.len(), self.limits.max_context);
        sequence.tokens.reserve_exact(longest - sequence.tokens.len());
        sequence.blocks.reserve_exact(longest.div_ceil(block_tokens) - sequence.blocks.len());
        let index = self.running.partition_point(|s| s.rank < sequence.rank);
        self.running.insert(index, sequence);
        Some(index)
    }

    fn fill(&mut self, plan: &mut Plan) {
        let block_tokens = self.pool.block_tokens();
        let planned = self.running.iter().filter(|s| s.planned > 0);
        plan.begin(planned.map(|s| s.next() + s.planned + s.drafts.len()).max().unwrap_or(0).div_ceil(block_tokens));
        let mut row = 0;
        for s in self.running.iter_mut().filter(|s| s.planned > 0) {
            let (start, end, drafts) = (s.next(), s.next() + s.planned, s.drafts.len());
            let samples = if end == s.len() { 1 + drafts } else { 0 };
            plan.push(&Segment {
                tokens: &s.tokens,
                drafts: &s.drafts,
                drawn: -1 - s.drawn_row as i32,
                range: start..end + drafts,
                logits: end + drafts - samples..end + drafts,
                blocks: &s.blocks,
                block_tokens,
            });
            let draw = s.prompt_len + s.generated + s.drawn;
            plan.seqs.push(PlannedSequence { id: s.id(), tag: s.tag, rank: s.rank, tokens: s.planned + drafts, samples, draw });
            s.in_flight += std::mem::take(&mut s.planned);
            s.verifying = drafts;
            if samples > 0 {
                (s.drawn, s.drawn_row) = (s.drawn + 1, row);
                row += samples;
            }
        }
    }

    /// Gives a running sequence its next token.
    fn append(&mut self, index: usize, row: usize, token: u32) -> Outcome {
        let (s, max_context) = (&mut self.running[index], self.limits.max_context);
        let (id, tag) = (s.id(), s.tag);
        s.drawn -= 1;
        if s.stop_tokens.contains(&token) {
            let finished = Some(finish(&mut self.pool, s, FinishReason::Stop, Some(token)));
            return Outcome { id, tag, row, token: None, finished };
        }
        s.tokens.push(token);
        s.record_token();
        s.generated += 1;
        self.counts.generated_tokens += 1;
        let finished = if s.generated >= s.max_tokens {
            Some(finish(&mut self.pool, s, FinishReason::Length, None))
        } else if s.tokens.len() < max_context {
            None
        } else if let ContextFull::Shift { keep } = s.on_context_full {
            give_back(&mut self.pool, s);
            s.shift(keep);
            s.leaving = Some(Leaving::Waiting);
            self.counts.context_shifts += 1;
            None
        } else {
            Some(finish(&mut self.pool, s, FinishReason::Context, None))
        };
        Outcome { id, tag, row, token: Some(token), finished }
    }
}

/// The running sequence of a plan's entry, unless it has gone. `index` goes up through `running` as plans do, which are in
/// the same order.
fn find<'a>(running: &'a mut [Sequence], index: &mut usize, planned: &PlannedSequence) -> Option<&'a mut Sequence> {
    while running.get(*index).is_some_and(|s| s.rank < planned.rank) {
        *index += 1;
    }
    running.get_mut(*index).filter(|s| s.rank == planned.rank)
}

/// Counts tokens under way as computed and caches the blocks they filled.
fn advance(pool: &mut BlockPool, s: &mut Sequence, tokens: usize) {
    let block_tokens = pool.block_tokens();
    let whole = s.computed / block_tokens;
    s.in_flight -= tokens;
    s.computed += tokens;
    for block in whole..s.computed / block_tokens {
        s.prefix = pool.store(s.blocks[block], s.prefix, &s.tokens[block * block_tokens..][..block_tokens]);
    }
}

fn finish(pool: &mut BlockPool, s: &mut Sequence, reason: FinishReason, stop_token: Option<u32>) -> Finished {
    give_back(pool, s);
    s.leaving = Some(Leaving::Finished);
    s.finished(reason, stop_token)
}

/// Returns all blocks of a sequence, last one first, and leaves what they hold in the cache.
fn give_back(pool: &mut BlockPool, s: &mut Sequence) {
    let block_tokens = pool.block_tokens();
    let whole = s.computed / block_tokens;
    while let Some(block) = s.blocks.pop() {
        if s.blocks.len() == whole && !s.computed.is_multiple_of(block_tokens) {
            pool.release_tail(block, s.prefix, &s.tokens[whole * block_tokens..s.computed]);
        } else {
            pool.release(block);
        }
    }
    s.drafts.clear();
    (s.computed, s.planned, s.in_flight, s.drawn, s.prefix) = (0, 0, 0, 0, Prefix::EMPTY);
    (s.verifying, s.wanted, s.drafted, s.held) = (0, 0, 0, false);
}
