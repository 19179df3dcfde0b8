//! Carries plans to the device. Owns the KV cache and every buffer; nothing is allocated after [`Runner::new`] but the graphs
//! of decode steps, each when its size comes up for the second time.
//!
//! A step is one copy of index arrays to fixed places, the forward pass, sampling, and the start of a copy back. Decode steps
//! are padded to a size of [`crate::graphs`], so that few graphs serve all of them: a padded row computes token 0 without
//! context, writes no keys, and what it draws is ignored.

use std::{ops::Range, sync::Arc};

use ferrum_kernels::{
    Backend, DType, Graph, Readback, Tensor,
    ops::{Sample, SampleParams},
};
use ferrum_models::{Batch, KvCache, Model, Scratch, Step};

use crate::{
    error::Result,
    graphs::{Graphs, Shape},
    masks::Masks,
    options::{INDEX_ALIGN, Sizes},
    plan::Plan,
    scheduler::MAX_UNDER_WAY,
};

/// See the module's documentation.
pub(crate) struct Runner {
    device: Device,
    /// Of decode steps; `None`: this backend has none
    graphs: Option<Graphs>,
    staging: Vec<i32>,
    /// Tokens of steps under way, in the order they were issued
    landing: [Landing; MAX_UNDER_WAY],
    issued: usize,
    landed: usize,
    tokens: Vec<u32>,
    logits: Vec<f32>,
    /// Of the step issued last, if its prompts are to be read
    states: Option<Tensor>,
}

/// The drawing at the end of a step.
#[derive(Clone, Copy)]
pub(crate) enum Draw<'a> {
    /// The likeliest token of every row, which the output head finds: no logits are left to read
    Likeliest,
    /// From logits, which can be read afterwards
    FromLogits {
        /// `[samples]`
        params: &'a [SampleParams],
        /// `[rows, vocab]` I32: occurrences of tokens, where parameters refer to any
        counts: Option<&'a Tensor>,
    },
    /// Not with the forward pass, which leaves the logits
    Later,
}

/// What a graph refers to.
struct Device {
    backend: Arc<dyn Backend>,
    model: Arc<dyn Model>,
    kv: KvCache,
    scratch: Scratch,
    /// `[index_elements]` I32: all arrays of a step, one behind the other, so that one copy brings them
    index: Tensor,
    /// The same memory as rows of sampling parameters, `[…, size_of::<SampleParams>()]` U8
    index_params: Tensor,
    /// `[max_samples, size_of::<SampleParams>()]` U8: those of steps with masks, which come later
    params: Tensor,
    /// `[max_samples]` I32: what the last step drew
    drawn: Tensor,
}

struct Landing {
    readback: Box<dyn Readback>,
    rows: usize,
}

impl Runner {
    /// # Errors
    /// When memory is short.
    pub fn new(backend: Arc<dyn Backend>, model: Arc<dyn Model>, sizes: &Sizes) -> Result<Self> {
        let info = model.info();
        let index_bytes = sizes.index_elements() * size_of::<i32>();
        let index = backend.alloc(index_bytes)?;
        let index_params =
            Tensor::new(Arc::clone(&index), DType::U8, &[index_bytes / size_of::<SampleParams>(), size_of::<SampleParams>()])?;
        let params_shape = [sizes.max_samples(), size_of::<SampleParams>()];
        let landing =
            || -> Result<Landing> { Ok(Landing { readback: backend.readback(sizes.max_samples() * DType::I32.block_bytes())?, rows: 0 }) };
        Ok(Self {
            graphs: backend.is_asynchronous().then(|| Graphs::new(sizes)),
            staging: Vec::with_capacity(sizes.index_elements()),
            landing: [landing()?, landing()?],
            issued: 0,
            landed: 0,
            tokens: Vec::with_capacity(sizes.max_samples()),
            logits: vec![0.0; info.vocab],
            states: None,
            device: Device {
                kv: KvCache::new(&*backend, info, sizes.kv_dtype, sizes.blocks, sizes.block_tokens)?,
                scratch: Scratch::new(&*backend, info, sizes.max_step_tokens, sizes.max_logit_rows)?,
                index: Tensor::new(index, DType::I32, &[sizes.index_elements()])?,
                index_params,
                params: backend.zeros(DType::U8, &params_shape)?,
                drawn: backend.zeros(DType::I32, &[sizes.max_samples()])?,
                backend,
                model,
            },
        })
    }

    pub fn backend(&self) -> &dyn Backend {
        &*self.device.backend
    }

    pub fn model(&self) -> &dyn Model {
        &*self.device.model
    }

    /// Issues a step; with `states`, the hidden states can be read until the next one. [`Runner::wait`] brings its tokens, if it
    /// draws any: of one with [`Draw::Later`], [`Runner::draw_masked`] is the other half.
    ///
    /// # Errors
    /// When the device fails.
    pub fn issue(&mut self, plan: &Plan, draw: Draw, states: bool) -> Result<()> {
        self.states = None;
        if plan.is_decode() && self.graphs.is_some() && !states {
            self.issue_decode(plan, draw)?;
        } else {
            let (batch, params) = self.upload(plan, None, draw)?;
            self.device.forward(&batch)?;
            self.device.draw(plan.samples(), draw, &params)?;
            if states {
                self.states = Some(self.device.states(&batch)?);
            }
        }
        match draw {
            Draw::Later => Ok(()),
            Draw::Likeliest | Draw::FromLogits { .. } => self.start_landing(plan.samples()),
        }
    }

    /// The other half of [`Runner::issue`], with masks on the logits.
    ///
    /// # Errors
    /// When the device fails.
    pub fn draw_masked(&mut self, params: &[SampleParams], counts: Option<&Tensor>, masks: &mut Masks) -> Result<()> {
        let (device, rows) = (&self.device, params.len());
        masks.apply(&*device.backend, device.params.shape()[0], &device.scratch.logits.narrow(0, 0, rows))?;
        device.backend.upload(&device.params.narrow(0, 0, rows), bytemuck::cast_slice(params))?;
        device.draw(rows, Draw::FromLogits { params, counts }, &device.params)?;
        self.start_landing(rows)
    }

    fn start_landing(&mut self, rows: usize) -> Result<()> {
        let landing = &mut self.landing[self.issued % MAX_UNDER_WAY];
        landing.rows = rows;
        if rows > 0 {
            landing.readback.start(&self.device.drawn.narrow(0, 0, rows))?;
        }
        self.issued += 1;
        Ok(())
    }

    /// Waits for the first issued step that nobody has waited for. Its tokens are [`Runner::tokens`] then.
    ///
    /// # Errors
    /// When the device fails.
    pub fn wait(&mut self) -> Result<()> {
        self.tokens.clear();
        debug_assert!(self.landed < self.issued);
        let Landing { readback, rows } = &mut self.landing[self.landed % MAX_UNDER_WAY];
        self.landed += 1;
        if *rows == 0 {
            return Ok(());
        }
        let vocab = self.logits.len();
        for token in readback.wait()?.as_chunks::<4>().0.iter().take(*rows) {
            let token = i32::from_ne_bytes(*token);
            let valid = u32::try_from(token).ok().filter(|&t| (t as usize) < vocab);
            self.tokens.push(valid.ok_or_else(|| ferrum_kernels::Error::Device {
                backend: self.device.backend.name(),
                reason: format!("token {token} was drawn from a vocabulary of {vocab}"),
            })?);
        }
        Ok(())
    }

    /// Issues the forward pass alone. The logits that the plan asks for are in the first rows of the logits buffer afterwards.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&mut self, plan: &Plan) -> Result<()> {
        let (batch, _) = self.upload(plan, None, Draw::Later)?;
        self.device.forward(&batch)
    }

    /// The tokens that the last call of [`Runner::wait`] brought.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// One row of the last step's logits, `[vocab]`; not of one that was issued with [`Draw::Likeliest`].
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_logits(&mut self, row: usize) -> Result<&[f32]> {
        let row = self.device.scratch.logits.narrow(0, row, 1);
        self.device.backend.download(&row, bytemuck::cast_slice_mut(&mut self.logits))?;
        Ok(&self.logits)
    }

    /// Rows of the hidden states of a step that was issued with `states`: `[rows, hidden]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_states(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let states = self.states.as_ref().map(|states| states.narrow(0, rows.start, rows.len()));
        Ok(states.map_or(Ok(Vec::new()), |states| self.device.backend.read_f32(&states))?)
    }

    /// Computes the logits of such rows, at most [`Runner::max_logit_rows`], into the first rows of the logits buffer.
    ///
    /// # Errors
    /// When the device fails.
    pub fn prompt_logits(&self, rows: Range<usize>) -> Result<()> {
        let Some(states) = &self.states else { return Ok(()) };
        let logits = self.device.scratch.logits.narrow(0, 0, rows.len());
        let states = states.narrow(0, rows.start, rows.len());
        Ok(self.device.model.logits(&*self.device.backend, &states, &logits)?)
    }

    pub fn max_logit_rows(&self) -> usize {
        self.device.scratch.logits.shape()[0]
    }

    /// A decode step from its graph, where there is one.
    fn issue_decode(&mut self, plan: &Plan, draw: Draw) -> Result<()> {
        let Some(graphs) = &self.graphs else { return Ok(()) };
        let shape = graphs.shape(plan.tokens.len(), plan.table_width, matches!(draw, Draw::Likeliest));
        let (batch, params) = self.upload(plan, Some(shape), draw)?;
        let device = &self.device;
        // What draws by parameters depends on more than the shape, so that it stays outside.
        let in_graph = || device.forward(&batch);
        if let Some(graphs) = &mut self.graphs {
            match graphs.find(shape, || record(&*device.backend, &in_graph))? {
                Some(graph) => graph.replay()?,
                None => in_graph()?,
            }
        }
        device.draw(plan.tokens.len(), draw, &params)
    }

    /// Copies the plan's arrays to the device, padded to `shape` if there is one, and the parameters that `draw` has: they
    /// are the second value.
    fn upload(&mut self, plan: &Plan, shape: Option<Shape>, draw: Draw) -> Result<(Batch, Tensor)> {
        let (staging, index) = (&mut self.staging, &self.device.index);
        staging.clear();
        let seqs = plan.context_lens.len();
        let (more, width) = shape.map_or((0, plan.table_width), |s| (s.rows - seqs, s.width));
        let mut place = |array: &[i32], padding: i32| {
            let start = staging.len();
            staging.extend_from_slice(array);
            staging.resize(staging.len() + more, padding);
            let len = staging.len() - start;
            staging.resize(staging.len().next_multiple_of(INDEX_ALIGN), 0);
            index.narrow(0, start, len)
        };
        let tokens = place(&plan.tokens, 0);
        let positions = place(&plan.positions, 0);
        let slots = place(&plan.slots, -1);
        let context_lens = place(&plan.context_lens, 0);
        let start = staging.len();
        // Padded sequences and logits have one row each, in order.
        staging.extend_from_slice(&plan.cu_seqlens);
        staging.extend((seqs + 1..=seqs + more).map(|row| row as i32));
        let cu_seqlens = index.narrow(0, start, seqs + more + 1);
        staging.resize(staging.len().next_multiple_of(INDEX_ALIGN), 0);
        let start = staging.len();
        staging.extend_from_slice(&plan.logit_rows);
        staging.extend((seqs..seqs + more).map(|row| row as i32));
        let logit_rows = index.narrow(0, start, plan.logit_rows.len() + more);
        staging.resize(staging.len().next_multiple_of(INDEX_ALIGN), 0);
        let start = staging.len();
        for table in plan.block_tables.chunks_exact(plan.table_width.max(1)) {
            staging.extend_from_slice(table);
            staging.resize(staging.len() + width - plan.table_width, 0);
        }
        staging.resize(start + (seqs + more) * width, 0);
        let block_tables = index.narrow(0, start, (seqs + more) * width).reshape(&[seqs + more, width]);
        let row = size_of::<SampleParams>() / size_of::<i32>();
        let mut params = self.device.index_params.narrow(0, 0, 0);
        if let Draw::FromLogits { params: of_rows, .. } = draw {
            staging.resize(staging.len().next_multiple_of(row), 0);
            params = self.device.index_params.narrow(0, staging.len() / row, of_rows.len());
            staging.extend_from_slice(bytemuck::cast_slice(of_rows));
        }
        self.device.backend.upload(&index.narrow(0, 0, staging.len()), bytemuck::cast_slice(staging))?;
        let drawn = self.device.drawn.clone();
        let max_query_len = plan.max_query_len;
        let greedy = matches!(draw, Draw::Likeliest);
        let batch = Batch { tokens, drawn, positions, slots, cu_seqlens, context_lens, block_tables, logit_rows, max_query_len, greedy };
        Ok((batch, params))
    }
}

impl Device {
    fn forward(&self, batch: &Batch) -> Result<()> {
        Ok(self.model.forward(&mut self.step(batch))?)
    }

    fn states(&self, batch: &Batch) -> Result<Tensor> {
        Ok(self.model.states(&self.step(batch))?)
    }

    fn step<'a>(&'a self, batch: &'a Batch) -> Step<'a> {
        Step { backend: &*self.backend, batch, kv: &self.kv, scratch: &self.scratch, tap: None }
    }

    /// Draws one token from each of the first `rows` rows of logits, if they are to be drawn from now; `params` is where those
    /// of `draw` are.
    fn draw(&self, rows: usize, draw: Draw, params: &Tensor) -> Result<()> {
        let Draw::FromLogits { counts, .. } = draw else { return Ok(()) };
        if rows == 0 {
            return Ok(());
        }
        let [logits, params, out] = [&self.scratch.logits, params, &self.drawn].map(|t| t.narrow(0, 0, rows));
        Ok(self.backend.sample(&Sample { logits: &logits, params: Some(&params), counts, out: &out })?)
    }
}

/// A graph of what `issue` issues; `None` when the backend has no graphs.
fn record(backend: &dyn Backend, issue: &dyn Fn() -> Result<()>) -> Result<Option<Arc<dyn Graph>>> {
    let mut failed = None;
    let graph = backend.capture(&mut || {
        issue().map_err(|error| match error {
            crate::Error::Kernel(error) => error,
            other => {
                let reason = other.to_string();
                failed = Some(other);
                ferrum_kernels::Error::Device { backend: backend.name(), reason }
            }
        })
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(graph?),
    }
}
