//! Requests in, tokens out.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use ferrum_kernels::{Backend, ops::SampleParams};
use ferrum_models::{Model, ModelInfo};

use crate::{
    block_pool::BlockPool,
    counts::{CountRows, History},
    error::{Result, SubmitError},
    logprobs::TokenLogprobs,
    memory::MemoryPlan,
    options::{EngineOptions, Sizes},
    plan::{Plan, RequestId},
    request::Request,
    runner::Runner,
    scheduler::{Counts, Limits, Outcome, Scheduler},
    sequence::Finished,
};

/// What a step brought for one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A token of the answer. A stop token is none: it is in [`Finished::stop_token`].
    Token { id: RequestId, token: u32, logprobs: Option<TokenLogprobs> },
    /// The last event of a request.
    Finished { id: RequestId, finished: Finished },
}

/// What the engine has done since it was made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub counts: Counts,
    pub steps: u64,
    /// Time in planning, committing and making events
    pub host_time: Duration,
    /// Time in upload, forward pass, sampling and download
    pub device_time: Duration,
    pub last_step: StepStats,
}

/// One step.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepStats {
    pub tokens: usize,
    pub sequences: usize,
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
    end_tokens: Vec<u32>,
    active: HashMap<RequestId, Active>,
    counts: CountRows,
    seeds: RandomState,
    submitted: u64,
    stats: Stats,
    // Buffers of a step.
    params: Vec<SampleParams>,
    logprobs: Vec<(usize, TokenLogprobs)>,
    outcomes: Vec<Outcome>,
}

/// What drawing needs to know of a request.
struct Active {
    params: SampleParams,
    /// Only with penalties
    history: Option<History>,
    logprobs: Option<usize>,
}

impl Engine {
    /// Allocates the KV cache and all buffers.
    ///
    /// # Errors
    /// When an option is impossible, or the memory does not suffice.
    pub fn new(backend: Arc<dyn Backend>, model: Arc<dyn Model>, options: EngineOptions) -> Result<Self> {
        let sizes = Sizes::new(model.info(), &*backend, &options)?;
        MemoryPlan::new(model.info(), 0, &*backend, &options)?.check()?;
        let runner = Runner::new(backend, model, &sizes, options.kv_dtype)?;
        let limits = Limits {
            max_context: sizes.max_context,
            max_seqs: sizes.max_seqs,
            max_step_tokens: sizes.max_step_tokens,
            max_waiting: options.max_waiting,
        };
        let pool = BlockPool::new(sizes.blocks as u32, sizes.block_tokens, options.prefix_cache);
        Ok(Self {
            scheduler: Scheduler::new(limits, pool),
            runner,
            sizes,
            end_tokens: options.end_tokens,
            active: HashMap::new(),
            counts: CountRows::default(),
            seeds: RandomState::new(),
            submitted: 0,
            stats: Stats::default(),
            params: Vec::with_capacity(sizes.max_seqs),
            logprobs: Vec::new(),
            outcomes: Vec::with_capacity(sizes.max_seqs),
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
    pub fn submit(&mut self, request: Request) -> Result<RequestId, SubmitError> {
        request.validate(self.model_info().vocab)?;
        let logprobs = request.logprobs;
        self.submitted += 1;
        let fallback_seed = self.seeds.hash_one(self.submitted);
        let params = request.sample_params(fallback_seed);
        let history = request.has_penalties().then(|| History { prompt: request.prompt.clone(), output: Vec::new() });
        let id = self.scheduler.submit(request.into_sequence(&self.end_tokens))?;
        self.active.insert(id, Active { params, history, logprobs });
        Ok(id)
    }

    /// Ends a request and frees its blocks at once, without an event; `None` when it has ended already.
    pub fn cancel(&mut self, id: RequestId) -> Option<Finished> {
        self.forget(id);
        self.scheduler.cancel(id)
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

    /// Computes one step and appends what it brought to `events`.
    ///
    /// # Errors
    /// When the device fails. The requests of this step have then ended, each with an event; the others go on with the
    /// next step.
    pub fn step_into(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let started = Instant::now();
        let plan = self.scheduler.plan();
        for id in &plan.preempted {
            self.counts.forget(*id);
        }
        self.outcomes.clear();
        self.logprobs.clear();
        let (tokens, sequences) = (plan.tokens.len(), plan.seqs.len());
        let planned = Instant::now();
        let result = self.execute(&plan);
        let computed = Instant::now();
        match &result {
            Ok(()) => self.scheduler.commit(plan, self.runner.tokens(), &mut self.outcomes),
            Err(_) => self.scheduler.abort(plan, &mut self.outcomes),
        }
        self.emit(events);
        let device_time = computed - planned;
        let host_time = planned - started + computed.elapsed();
        self.stats.last_step = StepStats { tokens, sequences, host_time, device_time };
        self.stats.steps += 1;
        self.stats.host_time += host_time;
        self.stats.device_time += device_time;
        result
    }

    pub fn stats(&self) -> Stats {
        Stats { counts: self.scheduler.counts(), ..self.stats }
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
        if self.active.len() != waiting + running {
            return Err(format!("{} requests known, {waiting} waiting, {running} running", self.active.len()));
        }
        self.scheduler.check_integrity()
    }

    fn execute(&mut self, plan: &Plan) -> Result<()> {
        if plan.is_empty() {
            return self.runner.sample(&[], None);
        }
        self.runner.forward(plan)?;
        let vocab = self.model_info().vocab;
        self.params.clear();
        for planned in plan.sampling() {
            let active = self.active.get(&planned.id);
            let mut params = active.map_or(SampleParams::GREEDY, |a| a.params);
            params.position = planned.draw as u32;
            if let Some(history) = active.and_then(|a| a.history.as_ref()) {
                params.counts_row = self.counts.row(self.runner.backend(), vocab, planned.id, history)?;
            }
            self.params.push(params);
        }
        self.runner.sample(&self.params, self.counts.tensor())?;
        for (row, planned) in plan.sampling().enumerate() {
            let Some(count) = self.active.get(&planned.id).and_then(|a| a.logprobs) else { continue };
            let token = self.runner.tokens().get(row).copied().unwrap_or_default();
            self.logprobs.push((row, TokenLogprobs::new(self.runner.read_logits(row)?, token, count)));
        }
        Ok(())
    }

    fn emit(&mut self, events: &mut Vec<Event>) {
        let mut logprobs = std::mem::take(&mut self.logprobs).into_iter().peekable();
        let outcomes = std::mem::take(&mut self.outcomes);
        for outcome in &outcomes {
            let id = outcome.id;
            if let Some(token) = outcome.token {
                if let Some(history) = self.active.get_mut(&id).and_then(|a| a.history.as_mut()) {
                    history.output.push(token);
                }
                while logprobs.next_if(|(row, _)| *row < outcome.row).is_some() {}
                let logprobs = logprobs.next_if(|(row, _)| *row == outcome.row).map(|(_, l)| l);
                events.push(Event::Token { id, token, logprobs });
            }
            if let Some(finished) = outcome.finished {
                self.forget(id);
                events.push(Event::Finished { id, finished });
            }
        }
        self.outcomes = outcomes;
    }

    fn forget(&mut self, id: RequestId) {
        self.active.remove(&id);
        self.counts.forget(id);
    }
}
