//! A model whose every token depends on every token before it, read back from the KV cache through the block tables, so
//! that a wrong slot, table, position, length or block changes the answer. And what it should answer, computed without
//! any engine.
#![allow(dead_code)]

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use ferrum_engine::{
    Constraint, ContextFull, Engine, EngineOptions, Event, FinishReason, Finished, Grammar, GrammarCompiler, Request, RequestId,
};
use ferrum_kernels::{
    Backend, DType, DeviceInfo, PreparedWeight, Readback, ReferenceBackend, Result, Storage, Tensor, Weight,
    ops::{ActMul, AddRmsNorm, Attention, Embed, GatherRows, KvWrite, Linear, LogitsMask, RmsNorm, Rope, Sample, SampleParams, Softcap},
};
use ferrum_models::{Model, ModelInfo, Step};

pub const VOCAB: usize = 48;
const HEAD_DIM: usize = 4;

/// The reference backend with blocks of `block_tokens`. What it allocates inside of operations is not counted.
#[derive(Debug)]
pub struct TestBackend {
    pub block_tokens: usize,
    pub memory: u64,
    /// What it says of itself; in truth all has run at once
    pub asynchronous: bool,
}

impl Backend for TestBackend {
    fn name(&self) -> &'static str {
        "test"
    }
    fn device(&self) -> DeviceInfo {
        DeviceInfo { memory_total_bytes: self.memory, memory_available_bytes: self.memory, ..ReferenceBackend.device() }
    }
    fn activation_dtype(&self) -> DType {
        DType::F32
    }
    fn kv_block_tokens(&self) -> usize {
        self.block_tokens
    }
    fn max_step_tokens(&self) -> usize {
        16
    }
    fn quantizes_activations(&self) -> bool {
        false
    }
    fn is_asynchronous(&self) -> bool {
        self.asynchronous
    }
    fn readback(&self, bytes: usize) -> Result<Box<dyn Readback>> {
        ReferenceBackend.readback(bytes)
    }
    fn alloc(&self, bytes: usize) -> Result<Arc<dyn Storage>> {
        ReferenceBackend.alloc(bytes)
    }
    fn upload(&self, dst: &Tensor, src: &[u8]) -> Result<()> {
        ReferenceBackend.upload(dst, src)
    }
    fn download(&self, src: &Tensor, dst: &mut [u8]) -> Result<()> {
        ReferenceBackend.download(src, dst)
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn prepare(&self, weight: Weight) -> Result<PreparedWeight> {
        ReferenceBackend.prepare(weight)
    }
    fn embed(&self, op: &Embed) -> Result<()> {
        ReferenceBackend.embed(op)
    }
    fn rms_norm(&self, op: &RmsNorm) -> Result<()> {
        ReferenceBackend.rms_norm(op)
    }
    fn add_rms_norm(&self, op: &AddRmsNorm) -> Result<()> {
        ReferenceBackend.add_rms_norm(op)
    }
    fn linear(&self, op: &Linear) -> Result<()> {
        ReferenceBackend.linear(op)
    }
    fn act_mul(&self, op: &ActMul) -> Result<()> {
        ReferenceBackend.act_mul(op)
    }
    fn rope(&self, op: &Rope) -> Result<()> {
        ReferenceBackend.rope(op)
    }
    fn kv_write(&self, op: &KvWrite) -> Result<()> {
        ReferenceBackend.kv_write(op)
    }
    fn attention(&self, op: &Attention) -> Result<()> {
        ReferenceBackend.attention(op)
    }
    fn gather_rows(&self, op: &GatherRows) -> Result<()> {
        ReferenceBackend.gather_rows(op)
    }
    fn softcap(&self, op: &Softcap) -> Result<()> {
        ReferenceBackend.softcap(op)
    }
    fn logits_mask(&self, op: &LogitsMask) -> Result<()> {
        let mut result = Ok(());
        allocation_counter::opt_out(|| result = ReferenceBackend.logits_mask(op));
        result
    }
    fn sample(&self, op: &Sample) -> Result<()> {
        let mut result = Ok(());
        allocation_counter::opt_out(|| result = ReferenceBackend.sample(op));
        result
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct FakeModel {
    info: ModelInfo,
    /// The next forward pass fails.
    pub broken: AtomicBool,
    /// Its logits are now and then those of other tokens.
    blurred: bool,
}

impl FakeModel {
    pub fn new() -> Arc<Self> {
        Self::blurred(false)
    }

    pub fn blurred(blurred: bool) -> Arc<Self> {
        let info = ModelInfo {
            family: "fake",
            vocab: VOCAB,
            hidden: 4,
            layers: 2,
            heads: 1,
            kv_heads: 1,
            head_dim: HEAD_DIM,
            inner: 4,
            max_context: 1 << 20,
            parameters: 0,
        };
        Arc::new(Self { info, broken: AtomicBool::new(false), blurred })
    }

    fn compute(&self, step: &mut Step) -> Result<()> {
        let (b, batch) = (step.backend, step.batch);
        let block_tokens = step.kv.block_tokens;
        let [tokens, positions, slots, cu, lens, tables, picked] =
            [&batch.tokens, &batch.positions, &batch.slots, &batch.cu_seqlens, &batch.context_lens, &batch.block_tables, &batch.logit_rows]
                .map(|t| b.read_i32(t).unwrap());
        let drawn = b.read_i32(&batch.drawn)?;
        let tokens: Vec<i32> = tokens.into_iter().map(|t| if t < 0 { drawn[(-1 - t) as usize] } else { t }).collect();
        let width = batch.block_tables.shape()[1];
        assert_eq!((cu[0], *cu.last().unwrap() as usize), (0, tokens.len()));
        let layer = &step.kv.layers[1];
        let (mut keys, mut values) = (b.read_f32(&layer.0)?, b.read_f32(&layer.1)?);
        let (mut logits, mut states) = (Vec::new(), vec![0.0; tokens.len() * self.info.hidden]);
        let mut longest = 0;
        for seq in 0..lens.len() {
            let (first, last, context) = (cu[seq] as usize, cu[seq + 1] as usize, lens[seq] as usize);
            longest = longest.max(last - first);
            if context == 0 {
                assert_eq!((last - first, tokens[first], slots[first]), (1, 0, -1), "a padded row");
                logits.extend([0.0; VOCAB]);
                continue;
            }
            let slot = |t: usize| tables[seq * width + t / block_tokens] as usize * block_tokens + t % block_tokens;
            for row in first..last {
                let position = context - (last - row);
                assert_eq!(positions[row] as usize, position);
                assert_eq!(slots[row] as usize, slot(position));
                let before = if position == 0 { 0 } else { values[slot(position - 1) * HEAD_DIM] as u64 };
                keys[slot(position) * HEAD_DIM..][..2].copy_from_slice(&[tokens[row] as f32, position as f32]);
                let state = roll(before, tokens[row] as u32) as f32;
                values[slot(position) * HEAD_DIM] = state;
                // All that the logits follow from.
                let echo = if position >= ECHO - 1 { 1.0 + keys[slot(position + 1 - ECHO) * HEAD_DIM] } else { 0.0 };
                states[row * self.info.hidden..][..2].copy_from_slice(&[state, echo]);
            }
            for row in picked.iter().map(|&r| r as usize).filter(|r| (first..last).contains(r)) {
                let position = context - (last - row);
                let mut state = 0;
                for t in 0..=position {
                    assert_eq!(keys[slot(t) * HEAD_DIM + 1], t as f32, "the key of another position");
                    state = roll(state, keys[slot(t) * HEAD_DIM] as u32);
                    assert_eq!(values[slot(t) * HEAD_DIM] as u64, state, "a value that was computed after other tokens");
                }
                let echo = (position >= ECHO - 1).then(|| keys[slot(position + 1 - ECHO) * HEAD_DIM] as u32);
                logits.extend(if self.blurred { blur(state, logits_of(state, echo)) } else { logits_of(state, echo) });
            }
        }
        assert_eq!(longest, batch.max_query_len);
        for layer in &step.kv.layers {
            b.upload(&layer.0, bytemuck::cast_slice(&keys))?;
            b.upload(&layer.1, bytemuck::cast_slice(&values))?;
        }
        b.upload(&step.rows(&step.scratch.hidden), bytemuck::cast_slice(&states))?;
        let rows = step.scratch.logits.narrow(0, 0, picked.len());
        b.upload(&rows, bytemuck::cast_slice(&logits))?;
        if batch.greedy && !picked.is_empty() {
            let out = batch.drawn.narrow(0, 0, picked.len());
            b.sample(&Sample { logits: &rows, params: None, counts: None, out: &out })?;
        }
        Ok(())
    }
}

impl Model for FakeModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn forward(&self, step: &mut Step) -> ferrum_models::Result<()> {
        if self.broken.swap(false, Ordering::Relaxed) {
            return Err(ferrum_kernels::Error::Device { backend: "test", reason: "broken on request".into() }.into());
        }
        let mut result = Ok(());
        allocation_counter::opt_out(|| result = self.compute(step));
        Ok(result?)
    }

    fn states(&self, step: &Step) -> ferrum_models::Result<Tensor> {
        Ok(step.rows(&step.scratch.hidden))
    }

    fn logits(&self, backend: &dyn Backend, states: &Tensor, logits: &Tensor) -> ferrum_models::Result<()> {
        let states = backend.read_f32(states)?;
        let rows: Vec<f32> = states
            .chunks(self.info.hidden)
            .flat_map(|state| {
                let echo = (state[1] > 0.0).then(|| state[1] as u32 - 1);
                logits_of(state[0] as u64, echo)
            })
            .collect();
        Ok(backend.upload(logits, bytemuck::cast_slice(&rows))?)
    }
}

/// 24 bits, which an f32 holds exactly.
fn roll(state: u64, token: u32) -> u64 {
    let mut hasher = DefaultHasher::new();
    (state, token).hash(&mut hasher);
    hasher.finish() >> 40
}

/// Texts mostly repeat what stood this many tokens before.
const ECHO: usize = 5;

fn logits_of(state: u64, echo: Option<u32>) -> Vec<f32> {
    let mut logits: Vec<f32> = (0..VOCAB as u32).map(|token| roll(state, token) as f32 / (1 << 21) as f32).collect();
    if let Some(echo) = echo.filter(|_| !state.is_multiple_of(4)) {
        logits[echo as usize] += 8.0;
    }
    logits
}

fn blur(state: u64, mut logits: Vec<f32>) -> Vec<f32> {
    if state.is_multiple_of(3) {
        logits.rotate_left(1);
    }
    logits
}

/// The logits after `tokens`.
pub fn expected_logits(tokens: &[u32]) -> Vec<f32> {
    let echo = (tokens.len() >= ECHO).then(|| tokens[tokens.len() - ECHO]);
    logits_of(state_of(tokens), echo)
}

/// The same of the blurred model.
pub fn blurred_logits(tokens: &[u32]) -> Vec<f32> {
    blur(state_of(tokens), expected_logits(tokens))
}

fn state_of(tokens: &[u32]) -> u64 {
    tokens.iter().fold(0, |state, &token| roll(state, token))
}

/// Constraints on a vocabulary of one letter a token from 4 on, `{`, `}`, `"`, `:`, `,` and a few longer ones among them.
pub fn constraints() -> &'static [Constraint] {
    static ALL: OnceLock<Vec<Constraint>> = OnceLock::new();
    ALL.get_or_init(|| {
        let compiler = GrammarCompiler::from_tokens(&vocabulary(), &[3]).unwrap();
        let schema = r#"{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "yz"]}}, "required": ["a", "b"], "additionalProperties": false}"#;
        let grammars = [
            Grammar::json_schema(schema.parse().unwrap()),
            Grammar::regex("[a-c]{3,9}(0|12)*"),
            Grammar::regex("(ab|a){2,}"),
            Grammar::choice(&["abc".into(), "abab".into(), "0".into()]),
            Grammar::lark("start: pair+\npair: \"(\" pair? \")\" | /[0-9]/"),
        ];
        grammars.iter().map(|g| compiler.compile(g).unwrap()).collect()
    })
}

/// The bytes of every token; ids below 4 are special, 3 ends an answer.
fn vocabulary() -> Vec<Vec<u8>> {
    let letters = "0123456789abcxyz{}\":,() ".bytes().map(|b| vec![b]);
    let longer = ["ab", "12", "{\"", "\":", "bc", "\"a", "\"b", "yz"].map(|t| t.as_bytes().to_vec());
    let special = (0..4).map(|n| format!("\u{0}<{n}>").into_bytes().into_iter().map(|b| if b == 0 { 0xFF } else { b }).collect());
    let mut tokens: Vec<Vec<u8>> = special.chain(letters).chain(longer).collect();
    assert!(tokens.len() <= VOCAB);
    tokens.resize(VOCAB, Vec::new());
    tokens
}

/// The state after `tokens`, as embeddings show it.
pub fn expected_state(tokens: &[u32]) -> f32 {
    state_of(tokens) as f32
}

/// What a request must give when it runs alone in an engine that computes everything anew for every token.
pub fn expected(request: &Request, max_context: usize, end_tokens: &[u32]) -> (Vec<u32>, FinishReason) {
    let b: Arc<dyn Backend> = Arc::new(ReferenceBackend);
    let s = &request.sampling;
    let counts: Vec<i32> = (0..VOCAB as u32).map(|token| if request.prompt.contains(&token) { Sample::IN_PROMPT } else { 0 }).collect();
    let counts = b.tensor_i32(&[1, VOCAB], &counts).unwrap();
    let (params, out) = (b.zeros(DType::U8, &[1, size_of::<SampleParams>()]).unwrap(), b.zeros(DType::I32, &[1]).unwrap());
    let (mut text, mut answer) = (request.prompt.clone(), Vec::new());
    let mut constraint = request.constraint.clone();
    loop {
        let mut logits = expected_logits(&text);
        for &(token, bias) in &request.logit_bias {
            logits[token as usize] += bias as f32;
        }
        if let Some(constraint) = &mut constraint {
            let mut mask = Vec::new();
            constraint.fill_mask(VOCAB.div_ceil(32), &mut mask).unwrap();
            let allowed = |token: usize| mask[token / 32] >> (token % 32) & 1 == 1;
            (0..VOCAB).filter(|&t| !allowed(t)).for_each(|t| logits[t] = f32::NEG_INFINITY);
        }
        let logits = b.tensor_f32(&[1, VOCAB], &logits).unwrap();
        let row = SampleParams {
            temperature: s.temperature as f32,
            top_p: s.top_p as f32,
            min_p: s.min_p as f32,
            repetition_penalty: s.repetition_penalty as f32,
            presence_penalty: s.presence_penalty as f32,
            frequency_penalty: s.frequency_penalty as f32,
            top_k: s.top_k.max(0) as u32,
            position: (request.prompt.len() + answer.len()) as u32,
            seed: s.seed.unwrap_or(0),
            counts_row: 0,
            padding: 0,
        };
        b.upload(&params, bytemuck::bytes_of(&row)).unwrap();
        b.sample(&Sample { logits: &logits, params: Some(&params), counts: Some(&counts), out: &out }).unwrap();
        let token = b.read_i32(&out).unwrap()[0] as u32;
        if request.stop_tokens.contains(&token) || (!request.ignore_eos && end_tokens.contains(&token)) {
            return (answer, FinishReason::Stop);
        }
        text.push(token);
        answer.push(token);
        if request.max_tokens == Some(answer.len() as u64) {
            return (answer, FinishReason::Length);
        }
        let complete = constraint.as_mut().is_some_and(|c| c.take(token).unwrap());
        if text.len() == max_context {
            let ContextFull::Shift { keep } = request.on_context_full else { return (answer, FinishReason::Context) };
            let rest = text.len() - keep;
            text = [&text[..keep], &text[keep + rest.div_ceil(2)..]].concat();
        }
        if complete {
            return (answer, FinishReason::Stop);
        }
    }
}

pub fn engine(block_tokens: usize, options: EngineOptions) -> Engine {
    engine_on(TestBackend { block_tokens, memory: 1 << 32, asynchronous: false }, options)
}

/// An engine whose steps overlap.
pub fn overlapped_engine(block_tokens: usize, options: EngineOptions) -> Engine {
    engine_on(TestBackend { block_tokens, memory: 1 << 32, asynchronous: true }, options)
}

/// An engine with a second model that makes the draft tokens, which are wrong now and then.
pub fn drafting_engine(block_tokens: usize, asynchronous: bool, options: EngineOptions) -> Engine {
    let backend = Arc::new(TestBackend { block_tokens, memory: 1 << 32, asynchronous });
    let options = EngineOptions { kv_dtype: DType::F32, ..options };
    Engine::with_drafting_model(backend, FakeModel::new(), Some(FakeModel::blurred(true)), options).unwrap()
}

fn engine_on(backend: TestBackend, options: EngineOptions) -> Engine {
    Engine::new(Arc::new(backend), FakeModel::new(), EngineOptions { kv_dtype: DType::F32, ..options }).unwrap()
}

/// Runs one request to its end.
pub fn run(engine: &mut Engine, request: Request) -> (Vec<u32>, Finished) {
    let id = engine.submit(request).unwrap();
    finish(engine, id)
}

pub fn finish(engine: &mut Engine, wanted: RequestId) -> (Vec<u32>, Finished) {
    let mut tokens = Vec::new();
    for _ in 0..100_000 {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { id, token, .. } if id == wanted => tokens.push(token),
                Event::Finished { id, finished } if id == wanted => return (tokens, finished),
                _ => {}
            }
        }
        engine.check_integrity().unwrap();
    }
    panic!("{wanted} does not end");
}
