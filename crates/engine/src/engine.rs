//! Requests in, tokens out.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use ferrum_kernels::{Backend, ops::SampleParams};
use ferrum_models::{Model, ModelInfo};

use crate::{
    active::{Active, Needs},
    block_pool::{BlockPool, KvEvent},
    counts::{CountRows, History},
    draft::DraftingModel,
    error::{Result, SubmitError},
    grammar::GrammarError,
    logprobs::TokenLogprobs,
    masks::Masks,
    memory::MemoryPlan,
    options::{EngineOptions, Sizes},
    plan::{Plan, PlannedSequence, RequestId},
    read_prompt::PromptReader,
    request::Request,
    runner::{Draw, Runner},
    scheduler::{Counts, Limits, Outcome, Scheduler},
    sequence::{FinishReason, Finished, NewSequence},
    speculate::StepTimes,
};

/// What a step brought for one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A token of the answer. A stop token is none: it is in [`Finished::stop_token`].
    Token { id: RequestId, token: u32, logprobs: Option<TokenLogprobs> },
    /// More of what the request wanted to know of its prompt; before the first token
    Prompt { id: RequestId, reading: Reading },
    /// The last event of a request.
    Finished { id: RequestId, finished: Finished },
}

/// What a step told of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// Of the next tokens of the prompt; all together are those of all tokens but the first
    Logprobs(Vec<TokenLogprobs>),
    /// `[hidden]`: the states behind the model's last norm, pooled, not normalised. Comes once
    Embedding(Vec<f32>),
}

/// What the engine has done since it was made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub counts: Counts,
    pub steps: u64,
    /// Time in planning, issuing, committing and making events
    pub host_time: Duration,
    /// Time in which the host did nothing but wait for the device; on the CPU, which computes while operations are issued, the
    /// time in which it issued
    pub device_time: Duration,
    pub last_step: StepStats,
}

/// One call of [`Engine::step_into`]: the sizes of the step it issued, and its times.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepStats {
    pub tokens: usize,
    pub sequences: usize,
    /// Whether it did nothing but decode: neither the step that it issued nor the one that it brought home had tokens of prompts
    pub is_decode: bool,
    pub host_time: Duration,
    pub device_time: Duration,
}

/// A model at work for many requests at once. One thread drives it with [`Engine::step`].
///
/// The same request with the same seed gives the same tokens whatever else runs, as far as the backend's kernels compute a
/// row independently of the rows beside it.
pub struct Engine {
    pub(crate) scheduler: Scheduler,
    pub(crate) runner: Runner,
    pub(crate) sizes: Sizes,
    end_tokens: Arc<[u32]>,
    /// By tag
    active: Vec<Option<Active>>,
    free_tags: Vec<usize>,
    needs: Needs,
    counts: CountRows,
    seeds: RandomState,
    submitted: u64,
    stats: Stats,
    /// Whether the next step is issued before the tokens of the last are known
    overlapped: bool,
    /// The step under way, and when its making began, if its time says something of others
    flight: Option<(Plan, Option<Instant>)>,
    /// Makes draft tokens, where there is one
    drafting: Option<DraftingModel>,
    times: StepTimes,
    /// When the last step landed
    landed: Instant,
    // Buffers of a step.
    params: Vec<SampleParams>,
    masks: Masks,
    /// Rows whose logits are masked, and what they were before, for log-probabilities
    unmasked: Vec<(usize, Vec<f32>)>,
    logprobs: Vec<(usize, TokenLogprobs)>,
    outcomes: Vec<Outcome>,
    started: Vec<RequestId>,
}

impl Engine {
    /// Allocates the KV cache and all buffers.
    ///
    /// # Errors
    /// When an option is impossible, or the memory does not suffice.
    pub fn new(backend: Arc<dyn Backend>, model: Arc<dyn Model>, options: EngineOptions) -> Result<Self> {
        Self::with_drafting_model(backend, model, None, options)
    }

    /// As [`Engine::new`]; `drafting` makes the draft tokens when there is one: a smaller model with the same tokens.
    ///
    /// # Errors
    /// As [`Engine::new`], and when `drafting` cannot hold the context.
    pub fn with_drafting_model(
        backend: Arc<dyn Backend>,
        model: Arc<dyn Model>,
        drafting: Option<Arc<dyn Model>>,
        options: EngineOptions,
    ) -> Result<Self> {
        let sizes = Sizes::new(model.info(), &*backend, &options)?;
        let drafting_info = drafting.as_ref().map(|d| (d.info(), 0));
        MemoryPlan::with_drafting_model(model.info(), 0, drafting_info, &*backend, &options)?.check()?;
        let drafting =
            drafting.map(|drafting| DraftingModel::new(Arc::clone(&backend), drafting, &sizes, model.info().vocab)).transpose()?;
        let overlapped = backend.is_asynchronous();
        let runner = Runner::new(backend, model, &sizes)?;
        let limits = Limits {
            max_context: sizes.max_context,
            max_seqs: sizes.max_seqs,
            max_step_tokens: sizes.max_step_tokens,
            max_waiting: options.max_waiting,
            max_drafts: sizes.max_drafts,
            max_step_drafts: sizes.max_step_drafts,
            drafting_model: drafting.is_some(),
        };
        let pool = BlockPool::new(sizes.blocks as u32, sizes.block_tokens, options.prefix_cache);
        Ok(Self {
            scheduler: Scheduler::new(limits, pool),
            runner,
            sizes,
            end_tokens: options.end_tokens.into(),
            active: Vec::new(),
            free_tags: Vec::new(),
            needs: Needs::default(),
            counts: CountRows::default(),
            seeds: RandomState::new(),
            submitted: 0,
            stats: Stats::default(),
            overlapped,
            flight: None,
            drafting,
            times: StepTimes::new(if sizes.max_drafts == 0 || options.draft_always { 0 } else { sizes.max_samples() }),
            landed: Instant::now(),
            params: Vec::with_capacity(sizes.max_samples()),
            masks: Masks::default(),
            unmasked: Vec::new(),
            logprobs: Vec::new(),
            outcomes: Vec::with_capacity(sizes.max_seqs),
            started: Vec::with_capacity(sizes.max_seqs),
        })
    }

    pub fn model_info(&self) -> &ModelInfo {
        self.runner.model().info()
    }

    pub fn backend(&self) -> &dyn Backend {
        self.runner.backend()
    }

    /// Tokens of prompt and answer together.
    pub fn max_context(&self) -> usize {
        self.sizes.max_context
    }

    /// Checks a request and puts it into the queue.
    ///
    /// # Errors
    /// When a number is not valid, the context can never hold the request, or the queue is full.
    pub fn submit(&mut self, mut request: Request) -> Result<RequestId, SubmitError> {
        request.validate(self.model_info().vocab)?;
        let logprobs = request.logprobs;
        self.submitted += 1;
        let fallback_seed = self.seeds.hash_one(self.submitted);
        let params = request.sample_params(fallback_seed);
        let history = request.has_penalties().then(|| History::new(request.prompt.clone()));
        let speculates = request.may_speculate();
        let (biases, constraint) = (request.biases(), request.constraint.take());
        let reader = request.read_prompt.map(|what| PromptReader::new(what, request.prompt.clone()));
        let tag = self.free_tags.pop().unwrap_or_else(|| {
            self.active.push(None);
            self.active.len() - 1
        });
        match self.scheduler.submit(NewSequence { speculates, ..request.into_sequence(&self.end_tokens, tag) }) {
            Ok(id) => {
                let active = Active { id, params, history, logprobs, biases, constraint, reader };
                self.needs.add(&active);
                self.active[tag] = Some(active);
                Ok(id)
            }
            Err(error) => {
                self.free_tags.push(tag);
                Err(error)
            }
        }
    }

    /// Ends a request and frees its blocks at once, without an event; `None` when it has ended already.
    pub fn cancel(&mut self, id: RequestId) -> Option<Finished> {
        let (tag, finished) = self.scheduler.cancel(id)?;
        self.forget(tag);
        Some(finished)
    }

    /// Whether a step would do anything.
    pub fn has_work(&self) -> bool {
        self.scheduler.running() + self.scheduler.waiting() > 0
    }

    /// Computes one step. See [`Engine::step_into`].
    ///
    /// # Errors
    /// When the device fails.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        self.step_into(&mut events)?;
        Ok(events)
    }

    /// Computes one step and appends what it brought to `events`. Where the device works on its own, this issues a step and
    /// brings the tokens of the one before it.
    ///
    /// # Errors
    /// When the device fails. The requests of this step have then ended, each with an event; the others go on with the
    /// next step.
    pub fn step_into(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let started = Instant::now();
        self.stats.last_step = StepStats::default();
        let mut result = if self.scheduler.must_wait() { self.land(events) } else { Ok(()) };
        self.scheduler.speculate(&self.times);
        let drafted = self.draft();
        // A step during which the drafting model read more than the last tokens says nothing of those to come.
        let began = drafted.as_ref().is_ok_and(|&tokens| tokens <= self.sizes.max_seqs * (self.sizes.max_drafts + 1)).then_some(started);
        result = result.and(drafted.map(|_| ()));
        let plan = self.scheduler.plan();
        for &tag in &plan.preempted {
            if let Some(history) = self.active[tag].as_mut().and_then(|a| a.history.as_mut()) {
                self.counts.forget(history);
            }
        }
        self.started.clone_from(&plan.started);
        self.stats.last_step.tokens = plan.tokens.len();
        self.stats.last_step.sequences = plan.seqs.len();
        let is_decode = plan.is_decode() && self.flight.as_ref().is_none_or(|(before, _)| before.is_decode());
        self.stats.last_step.is_decode = is_decode;
        let issued = match () {
            () if plan.is_empty() => Ok(()),
            () if self.needs.masks > 0 && plan.sampling().any(|(p, _)| self.active_of(p).is_some_and(Active::is_masked)) => {
                self.issue_masked(&plan, events, &mut result)
            }
            () => self.issue(&plan),
        };
        // The host has just prepared this step while the device computed the one before.
        result = result.and(self.land(events));
        match issued {
            Ok(()) if plan.is_empty() => self.scheduler.commit(plan, &[], &mut self.outcomes),
            Ok(()) => {
                let needs_logits = self.wants_logprobs(&plan) || self.reads_prompts(&plan);
                self.flight = Some((plan, began));
                if !self.overlapped || needs_logits {
                    result = result.and(self.land(events));
                }
            }
            Err(error) => {
                self.outcomes.clear();
                self.scheduler.abort(plan, &mut self.outcomes);
                self.emit(events);
                result = result.and(Err(error));
            }
        }
        let last = &mut self.stats.last_step;
        last.host_time = started.elapsed().saturating_sub(last.device_time);
        self.stats.steps += 1;
        self.stats.host_time += last.host_time;
        self.stats.device_time += last.device_time;
        result
    }

    pub fn stats(&self) -> Stats {
        Stats { counts: self.scheduler.counts(), ..self.stats }
    }

    /// Requests whose first tokens were in the last step that was issued.
    pub fn started(&self) -> &[RequestId] {
        &self.started
    }

    /// Requests that wait, and that run.
    pub fn queue(&self) -> (usize, usize) {
        (self.scheduler.waiting(), self.scheduler.running())
    }

    /// Blocks of the KV cache: all, those free for new tokens, and those of the free ones that hold reusable tokens.
    pub fn blocks(&self) -> (usize, usize, usize) {
        let pool = self.scheduler.pool();
        (pool.blocks(), pool.available(), pool.cached())
    }

    /// Tokens that a block holds.
    pub fn block_tokens(&self) -> usize {
        self.sizes.block_tokens
    }

    /// The whole blocks that can be reused now, as events that would bring them there.
    pub fn kv_contents(&self) -> Vec<KvEvent> {
        self.scheduler.pool().contents()
    }

    /// Appends the changes of what can be reused since the last call, in order. The first call only begins to record them.
    pub fn take_kv_events(&mut self, events: &mut Vec<KvEvent>) {
        self.scheduler.take_kv_events(events);
    }

    /// Forgets what could be reused, e.g. before measuring.
    pub fn clear_cache(&mut self) {
        self.scheduler.clear_cache();
    }

    /// Checks the invariants of scheduler and allocator.
    ///
    /// # Errors
    /// What is wrong, for a test to print.
    pub fn check_integrity(&self) -> Result<(), String> {
        let (waiting, running) = self.queue();
        let known = self.active.iter().flatten().count();
        if known != waiting + running || known + self.free_tags.len() != self.active.len() {
            return Err(format!("{known} requests known, {waiting} waiting, {running} running, {} free tags", self.free_tags.len()));
        }
        let needs = Needs::of(self.active.iter().flatten());
        if needs != self.needs {
            return Err(format!("{:?} counted of requests that need {needs:?}", self.needs));
        }
        self.scheduler.check_integrity()
    }

    /// Has the drafting model make the tokens that sequences want for the next step; returns how many tokens it computed.
    fn draft(&mut self) -> Result<usize> {
        let Some(drafting) = &mut self.drafting else { return Ok(0) };
        let drafting_since = Instant::now();
        let active = &self.active;
        let params = |tag: usize| active[tag].as_ref().map_or(SampleParams::GREEDY, |a| a.params);
        let result = drafting.draft(&mut self.scheduler, params);
        self.stats.last_step.device_time += drafting_since.elapsed();
        result
    }

    /// Uploads a plan and issues its operations.
    fn issue(&mut self, plan: &Plan) -> Result<()> {
        let from_logits = self.needs.logits > 0 && self.fill_params(plan)?;
        let issuing = Instant::now();
        let draw = if from_logits { Draw::FromLogits { params: &self.params, counts: self.counts.tensor() } } else { Draw::Likeliest };
        let states = self.reads_prompts(plan);
        self.runner.issue(plan, draw, states)?;
        if !self.overlapped {
            self.stats.last_step.device_time += issuing.elapsed();
        }
        Ok(())
    }

    /// As [`Engine::issue`], for a step with masks. They need the tokens of the step before, which land while the device is in
    /// the forward pass; `landed` becomes how that went.
    fn issue_masked(&mut self, plan: &Plan, events: &mut Vec<Event>, landed: &mut Result<()>) -> Result<()> {
        let (issuing, states) = (Instant::now(), self.reads_prompts(plan));
        self.runner.issue(plan, Draw::Later, states)?;
        let issuing = issuing.elapsed();
        let before = self.land(events);
        if landed.is_ok() {
            *landed = before;
        }
        self.fill_masks(plan, events)?;
        self.fill_params(plan)?;
        let drawing = Instant::now();
        self.runner.draw_masked(&self.params, self.counts.tensor(), &mut self.masks)?;
        if !self.overlapped {
            self.stats.last_step.device_time += issuing + drawing.elapsed();
        }
        Ok(())
    }

    /// The parameters of every row that is drawn. One whose request has ended meanwhile draws what nobody reads. Returns whether
    /// any row needs its logits.
    fn fill_params(&mut self, plan: &Plan) -> Result<bool> {
        let vocab = self.model_info().vocab;
        let mut needs_logits = false;
        self.params.clear();
        for (planned, draw) in plan.sampling() {
            let mut params = SampleParams::GREEDY;
            if let Some(active) = self.active[planned.tag].as_mut().filter(|a| a.id == planned.id) {
                needs_logits |= active.needs_logits();
                params = SampleParams { position: draw as u32, ..active.params };
                if let Some(history) = &mut active.history {
                    params.counts_row = self.counts.row(self.runner.backend(), vocab, history)?;
                }
            }
            self.params.push(params);
        }
        Ok(needs_logits)
    }

    /// The masks of every row that is drawn. Whose grammar cannot go on ends here.
    fn fill_masks(&mut self, plan: &Plan, events: &mut Vec<Event>) -> Result<()> {
        let vocab = self.model_info().vocab;
        self.masks.clear();
        self.unmasked.clear();
        for (row, (planned, _)) in plan.sampling().enumerate() {
            let active = self.active[planned.tag].as_mut().filter(|a| a.id == planned.id);
            let Some(active) = active else {
                // A row without a request has no grammar either.
                let _ = self.masks.push(vocab, &[], None);
                continue;
            };
            if active.logprobs.is_some() && active.is_masked() {
                self.unmasked.push((row, self.runner.read_logits(row)?.to_vec()));
            }
            if self.masks.push(vocab, &active.biases, active.constraint.as_mut()).is_err() {
                self.end(planned.id, FinishReason::Constraint, events);
            }
        }
        Ok(())
    }

    /// Ends a request for a reason that the scheduler does not know.
    fn end(&mut self, id: RequestId, reason: FinishReason, events: &mut Vec<Event>) {
        if let Some(finished) = self.cancel(id) {
            events.push(Event::Finished { id, finished: Finished { reason, ..finished } });
        }
    }

    /// What is known of a planned request, unless it has ended.
    fn active_of(&self, planned: &PlannedSequence) -> Option<&Active> {
        self.active[planned.tag].as_ref().filter(|a| a.id == planned.id)
    }

    /// Takes in what the step under way computed, if there is one.
    fn land(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let Some((plan, began)) = self.flight.take() else { return Ok(()) };
        self.outcomes.clear();
        self.logprobs.clear();
        let waiting = Instant::now();
        let result = self.runner.wait().and_then(|()| self.read_logprobs(&plan));
        let now = Instant::now();
        self.stats.last_step.device_time += now - waiting;
        let before = std::mem::replace(&mut self.landed, now);
        if let Some(began) = began.filter(|_| plan.seqs.iter().all(|s| s.tokens == s.samples)) {
            let took = now - began.max(before);
            self.times.record(plan.seqs.len(), plan.samples() - plan.seqs.len(), took.as_secs_f32());
        }
        // The logits of prompts take the place of those that were read just now.
        let result = result.and_then(|()| self.read_prompts(&plan, events));
        match result {
            Ok(()) => self.scheduler.commit(plan, self.runner.tokens(), &mut self.outcomes),
            Err(_) => self.scheduler.abort(plan, &mut self.outcomes),
        }
        self.emit(events);
        result
    }

    /// The log-probabilities that requests of a step asked for, with their rows: the model's own, before any mask.
    fn read_logprobs(&mut self, plan: &Plan) -> Result<()> {
        let sampling = if self.needs.logprobs > 0 { Some(plan.sampling()) } else { None };
        for (row, (planned, _)) in sampling.into_iter().flatten().enumerate() {
            let of_request = self.active[planned.tag].as_ref().filter(|a| a.id == planned.id);
            let Some(count) = of_request.and_then(|a| a.logprobs) else { continue };
            let token = self.runner.tokens().get(row).copied().unwrap_or_default();
            let logprobs = match self.unmasked.iter().find(|(of, _)| *of == row) {
                Some((_, logits)) => TokenLogprobs::new(logits, token, count),
                None => TokenLogprobs::new(self.runner.read_logits(row)?, token, count),
            };
            self.logprobs.push((row, logprobs));
        }
        self.unmasked.clear();
        Ok(())
    }

    /// Whether a step draws a token whose log-probability is wanted.
    fn wants_logprobs(&self, plan: &Plan) -> bool {
        self.needs.logprobs > 0 && plan.sampling().any(|(p, _)| self.active_of(p).is_some_and(|a| a.logprobs.is_some()))
    }

    /// Whether a step computes something of a prompt that is to be read.
    fn reads_prompts(&self, plan: &Plan) -> bool {
        let reader = |p: &PlannedSequence| self.active[p.tag].as_ref().filter(|a| a.id == p.id)?.reader.as_ref();
        self.needs.reading > 0 && plan.seqs.iter().filter_map(reader).any(PromptReader::is_reading)
    }

    fn read_prompts(&mut self, plan: &Plan, events: &mut Vec<Event>) -> Result<()> {
        if self.needs.reading == 0 {
            return Ok(());
        }
        let mut first_row = 0;
        for &PlannedSequence { id, tag, tokens, .. } in &plan.seqs {
            let rows = first_row..first_row + tokens;
            first_row = rows.end;
            let Some(reader) = self.active[tag].as_mut().filter(|a| a.id == id).and_then(|a| a.reader.as_mut()) else { continue };
            let reading = reader.read(&mut self.runner, rows.clone(), plan.positions[rows.start] as usize)?;
            events.extend(reading.map(|reading| Event::Prompt { id, reading }));
        }
        Ok(())
    }

    fn emit(&mut self, events: &mut Vec<Event>) {
        let mut logprobs = std::mem::take(&mut self.logprobs).into_iter().peekable();
        let outcomes = std::mem::take(&mut self.outcomes);
        for outcome in &outcomes {
            let (id, tag) = (outcome.id, outcome.tag);
            let mut end = None;
            if let Some(token) = outcome.token {
                if let Some(active) = if self.needs.states > 0 { self.active[tag].as_mut() } else { None } {
                    end = active.constraint.as_mut().and_then(|constraint| end_of(constraint.take(token)));
                    active.history.iter_mut().for_each(|history| history.output.push(token));
                }
                while logprobs.next_if(|(row, _)| *row < outcome.row).is_some() {}
                let logprobs = logprobs.next_if(|(row, _)| *row == outcome.row).map(|(_, l)| l);
                events.push(Event::Token { id, token, logprobs });
            }
            if let Some(finished) = outcome.finished {
                self.forget(tag);
                events.push(Event::Finished { id, finished });
            } else if let Some(reason) = end {
                self.end(id, reason, events);
            }
        }
        self.outcomes = outcomes;
    }

    fn forget(&mut self, tag: usize) {
        if let Some(active) = self.active[tag].take() {
            self.needs.remove(&active);
            if let Some(mut history) = active.history {
                self.counts.forget(&mut history);
            }
            self.free_tags.push(tag);
        }
    }
}

/// Why a constrained request ends with the token that it took; `None`: it goes on.
fn end_of(complete: Result<bool, GrammarError>) -> Option<FinishReason> {
    match complete {
        Ok(true) => Some(FinishReason::Stop),
        Ok(false) => None,
        Err(_) => Some(FinishReason::Constraint),
    }
}
