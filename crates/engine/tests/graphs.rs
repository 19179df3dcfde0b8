//! Decode steps from graphs, on a real model: the tokens are those of an engine without graphs, and a step costs what
//! it should.

mod common;

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use ferrum_engine::{Engine, EngineOptions, Event, Grammar, GrammarCompiler, Request, SamplingParams, TokenLogprobs};
use ferrum_kernels::{
    Backend, DType, DeviceInfo, Graph, PreparedWeight, Readback, ReferenceBackend, Result, Storage, Tensor, Weight,
    ops::{
        ActMul, AddRmsNorm, Attention, Embed, Epilogue, GatherRows, KvWrite, Linear, LogitsMask, Norm, QkNorm, RmsNorm, Rope, RopeKvWrite,
        Rotation, Sample, Softcap,
    },
};
use ferrum_models::Checkpoint;

/// What reached the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Operations issued one by one
    launches: usize,
    replays: usize,
    /// Operations in the graphs that were replayed
    replayed: usize,
    uploads: usize,
    upload_bytes: usize,
    downloads: usize,
    allocations: usize,
}

type Issue = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// The reference backend with graphs, counting.
#[derive(Clone, Default)]
struct Recorder(Arc<State>);

#[derive(Default)]
struct State {
    counts: Mutex<Counts>,
    recording: Mutex<Option<Vec<Issue>>>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorder")
    }
}

impl Recorder {
    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.0.counts.lock().unwrap());
    }

    fn issue(&self, issue: impl Fn() -> Result<()> + Send + Sync + 'static) -> Result<()> {
        if let Some(recorded) = &mut *self.0.recording.lock().unwrap() {
            recorded.push(Box::new(issue));
            return Ok(());
        }
        self.count(|c| c.launches += 1);
        issue()
    }
}

struct Recorded {
    recorder: Recorder,
    issues: Vec<Issue>,
}

impl std::fmt::Debug for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} operations", self.issues.len())
    }
}

impl Graph for Recorded {
    fn replay(&self) -> Result<()> {
        self.recorder.count(|c| (c.replays, c.replayed) = (c.replays + 1, c.replayed + self.issues.len()));
        self.issues.iter().try_for_each(|issue| issue())
    }
}

const R: ReferenceBackend = ReferenceBackend;

impl Backend for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }
    fn device(&self) -> DeviceInfo {
        R.device()
    }
    fn activation_dtype(&self) -> DType {
        DType::F32
    }
    fn kv_block_tokens(&self) -> usize {
        4
    }
    fn max_step_tokens(&self) -> usize {
        64
    }
    fn quantizes_activations(&self) -> bool {
        false
    }
    fn is_asynchronous(&self) -> bool {
        true
    }
    fn capture(&self, issue: &mut dyn FnMut() -> Result<()>) -> Result<Option<Arc<dyn Graph>>> {
        *self.0.recording.lock().unwrap() = Some(Vec::new());
        let result = issue();
        let issues = self.0.recording.lock().unwrap().take().unwrap();
        result?;
        Ok(Some(Arc::new(Recorded { recorder: self.clone(), issues })))
    }
    fn readback(&self, bytes: usize) -> Result<Box<dyn Readback>> {
        R.readback(bytes)
    }
    fn alloc(&self, bytes: usize) -> Result<Arc<dyn Storage>> {
        self.count(|c| c.allocations += 1);
        R.alloc(bytes)
    }
    fn upload(&self, dst: &Tensor, src: &[u8]) -> Result<()> {
        assert!(self.0.recording.lock().unwrap().is_none(), "a graph holds no uploads");
        self.count(|c| (c.uploads, c.upload_bytes) = (c.uploads + 1, c.upload_bytes + src.len()));
        R.upload(dst, src)
    }
    fn download(&self, src: &Tensor, dst: &mut [u8]) -> Result<()> {
        self.count(|c| c.downloads += 1);
        R.download(src, dst)
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn prepare(&self, weight: Weight) -> Result<PreparedWeight> {
        R.prepare(weight)
    }
    fn embed(&self, op: &Embed) -> Result<()> {
        let (ids, drawn, table, scale, out) = (op.ids.clone(), op.drawn.cloned(), op.table.clone(), op.scale, op.out.clone());
        self.issue(move || R.embed(&Embed { ids: &ids, drawn: drawn.as_ref(), table: &table, scale, out: &out }))
    }
    fn rms_norm(&self, op: &RmsNorm) -> Result<()> {
        let (x, weight, eps, out) = (op.x.clone(), op.weight.clone(), op.eps, op.out.clone());
        self.issue(move || R.rms_norm(&RmsNorm { x: &x, weight: &weight, eps, out: &out }))
    }
    fn add_rms_norm(&self, op: &AddRmsNorm) -> Result<()> {
        let (x, residual, weight, eps, out) = (op.x.clone(), op.residual.clone(), op.weight.clone(), op.eps, op.out.clone());
        self.issue(move || R.add_rms_norm(&AddRmsNorm { x: &x, residual: &residual, weight: &weight, eps, out: &out }))
    }
    fn linear(&self, op: &Linear) -> Result<()> {
        let norm = op.norm.map(|n| (n.weight.clone(), n.eps, n.normed.clone()));
        let add = matches!(op.epilogue, Epilogue::Add);
        let (gate, logits) = match op.epilogue {
            Epilogue::Store | Epilogue::Add => (None, None),
            Epilogue::ActMul { activation, gate_up } => (Some((activation, gate_up.clone())), None),
            Epilogue::Argmax { logits } => (None, Some(logits.clone())),
        };
        let (x, weight, bias, out) = (op.x.clone(), op.weight.clone(), op.bias.cloned(), op.out.clone());
        self.issue(move || {
            let epilogue = match (&gate, &logits) {
                (Some((activation, gate_up)), _) => Epilogue::ActMul { activation: *activation, gate_up },
                (_, Some(logits)) => Epilogue::Argmax { logits },
                _ if add => Epilogue::Add,
                _ => Epilogue::Store,
            };
            let norm = norm.as_ref().map(|(weight, eps, normed)| Norm { weight, eps: *eps, normed });
            R.linear(&Linear { norm, bias: bias.as_ref(), epilogue, ..Linear::new(&x, &weight, &out) })
        })
    }
    fn act_mul(&self, op: &ActMul) -> Result<()> {
        let (activation, gate_up, out) = (op.activation, op.gate_up.clone(), op.out.clone());
        self.issue(move || R.act_mul(&ActMul { activation, gate_up: &gate_up, out: &out }))
    }
    fn rope(&self, _: &Rope) -> Result<()> {
        unreachable!("part of rope_kv_write")
    }
    fn kv_write(&self, _: &KvWrite) -> Result<()> {
        unreachable!("part of rope_kv_write")
    }
    fn rope_kv_write(&self, op: &RopeKvWrite) -> Result<()> {
        let qk_norm = op.qk_norm.map(|n| (n.q.clone(), n.k.clone(), n.eps));
        let rotation = op.rotation.map(|r| (r.inv_freq.clone(), r.layout, r.scale));
        let [qkv, positions, slots, k_cache, v_cache] = [op.qkv, op.positions, op.slots, op.k_cache, op.v_cache].map(Clone::clone);
        let heads = op.heads;
        self.issue(move || {
            R.rope_kv_write(&RopeKvWrite {
                qkv: &qkv,
                heads,
                qk_norm: qk_norm.as_ref().map(|(q, k, eps)| QkNorm { q, k, eps: *eps }),
                rotation: rotation.as_ref().map(|(inv_freq, layout, scale)| Rotation { inv_freq, layout: *layout, scale: *scale }),
                positions: &positions,
                slots: &slots,
                k_cache: &k_cache,
                v_cache: &v_cache,
            })
        })
    }
    fn attention(&self, op: &Attention) -> Result<()> {
        let [q, k_cache, v_cache, block_tables] = [op.q, op.k_cache, op.v_cache, op.block_tables].map(Clone::clone);
        let [cu_seqlens, context_lens, out] = [op.cu_seqlens, op.context_lens, op.out].map(Clone::clone);
        let (max_query_len, scale, window, softcap) = (op.max_query_len, op.scale, op.window, op.softcap);
        assert!(op.sinks.is_none());
        self.issue(move || {
            R.attention(&Attention {
                q: &q,
                k_cache: &k_cache,
                v_cache: &v_cache,
                block_tables: &block_tables,
                cu_seqlens: &cu_seqlens,
                context_lens: &context_lens,
                max_query_len,
                scale,
                window,
                softcap,
                sinks: None,
                out: &out,
            })
        })
    }
    fn gather_rows(&self, op: &GatherRows) -> Result<()> {
        let (x, rows, out) = (op.x.clone(), op.rows.clone(), op.out.clone());
        self.issue(move || R.gather_rows(&GatherRows { x: &x, rows: &rows, out: &out }))
    }
    fn softcap(&self, op: &Softcap) -> Result<()> {
        let (x, cap) = (op.x.clone(), op.cap);
        self.issue(move || R.softcap(&Softcap { x: &x, cap }))
    }
    fn logits_mask(&self, op: &LogitsMask) -> Result<()> {
        let (logits, rows, biases, masks) = (op.logits.clone(), op.rows.clone(), op.biases.cloned(), op.masks.cloned());
        self.issue(move || R.logits_mask(&LogitsMask { logits: &logits, rows: &rows, biases: biases.as_ref(), masks: masks.as_ref() }))
    }
    fn sample(&self, op: &Sample) -> Result<()> {
        let (logits, params, counts, out) = (op.logits.clone(), op.params.cloned(), op.counts.cloned(), op.out.clone());
        self.issue(move || R.sample(&Sample { logits: &logits, params: params.as_ref(), counts: counts.as_ref(), out: &out }))
    }
}

const CONTEXT: usize = 64;

fn engine(backend: Arc<dyn Backend>, fixture: &str, max_seqs: usize) -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures").join(fixture);
    let model = Checkpoint::open(&path).unwrap().load(&*backend, CONTEXT).unwrap();
    let options = EngineOptions { max_context: Some(CONTEXT), max_seqs, kv_dtype: DType::F32, ..EngineOptions::default() };
    Engine::new(backend, model, options).unwrap()
}

fn answers(engine: &mut Engine, requests: &[Request]) -> Vec<Vec<u32>> {
    let tokens = |told: Told| told.into_iter().map(|(token, _)| token).collect();
    run(engine, requests).into_iter().map(tokens).collect()
}

/// The tokens of an answer, each with what was asked of it.
type Told = Vec<(u32, Option<TokenLogprobs>)>;

fn run(engine: &mut Engine, requests: &[Request]) -> Vec<Told> {
    let ids: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    let mut answers = vec![Vec::new(); ids.len()];
    while engine.has_work() {
        for event in engine.step().unwrap() {
            let Event::Token { id, token, logprobs } = event else { continue };
            answers[ids.iter().position(|&i| i == id).unwrap()].push((token, logprobs));
        }
        engine.check_integrity().unwrap();
    }
    answers
}

/// Requests of several lengths, so that batches shrink through the sizes and prefills come between decodes.
fn requests(vocab: u32) -> Vec<Request> {
    // Tokens 0 to 254 stand for one byte each.
    let tokens: Vec<Vec<u8>> = (0..vocab).map(|id| if id < 255 { vec![id as u8] } else { Vec::new() }).collect();
    let printable = GrammarCompiler::from_tokens(&tokens, &[]).unwrap().compile(&Grammar::regex("[ -~]{30,}")).unwrap();
    (0..11u32)
        .map(|n| {
            let prompt = (0..=n * 2).map(|i| (n * 31 + i * 7 + 1) % vocab).collect();
            let sampling = match n % 4 {
                1 => SamplingParams { temperature: 0.9, seed: Some(u64::from(n)), top_k: 20, ..SamplingParams::default() },
                2 => SamplingParams { frequency_penalty: 0.5, repetition_penalty: 1.2, ..SamplingParams::default() },
                _ => SamplingParams::default(),
            };
            let request = Request { max_tokens: Some(4 + u64::from(n * 5 % 17)), sampling, ..Request::new(prompt) };
            match n % 5 {
                2 => Request { logit_bias: vec![(n, 20.0)], ..request },
                3 => Request { constraint: Some(printable.clone()), ..request },
                _ => request,
            }
        })
        .collect()
}

#[test]
fn graphs_give_the_same_tokens() {
    for fixture in ["llama3", "qwen3", "gemma3"] {
        let mut plain = engine(Arc::new(ReferenceBackend), fixture, 1);
        let vocab = plain.model_info().vocab as u32;
        let want: Vec<_> = requests(vocab).iter().map(|r| answers(&mut plain, std::slice::from_ref(r)).remove(0)).collect();
        for max_seqs in [1, 3, 7] {
            let recorder = Recorder::default();
            let mut graphed = engine(Arc::new(recorder.clone()), fixture, max_seqs);
            assert_eq!(answers(&mut graphed, &requests(vocab)), want, "{fixture}, {max_seqs} sequences");
            assert!(recorder.0.counts.lock().unwrap().replays > 5);
        }
    }
}

/// A greedy step leaves no logits. Whoever wants to see some gets neither its graph, nor what earlier steps left of logits and
/// parameters.
#[test]
fn log_probabilities_of_greedy_requests_are_of_their_own_step() {
    let greedy = |n: u32, max_tokens| Request { max_tokens: Some(max_tokens), ..Request::new(vec![n; 5]) };
    let seen = |n, max_tokens| Request { logprobs: Some(3), ..greedy(n, max_tokens) };
    let sampled = |n: u32| SamplingParams { temperature: 0.9, seed: Some(n.into()), ..SamplingParams::default() };
    let sampled = |n, max_tokens| Request { sampling: sampled(n), ..greedy(n, max_tokens) };
    let turns =
        [vec![greedy(3, 12)], vec![sampled(4, 12), sampled(5, 9)], vec![seen(6, 12)], vec![greedy(7, 12), seen(8, 9)], vec![greedy(3, 12)]];
    let mut plain = engine(Arc::new(ReferenceBackend), "llama3", 1);
    let recorder = Recorder::default();
    let mut graphed = engine(Arc::new(recorder.clone()), "llama3", 2);
    for turn in turns {
        let want = run(&mut plain, &turn);
        let replays = recorder.0.counts.lock().unwrap().replays;
        assert_eq!(run(&mut graphed, &turn), want);
        assert!(recorder.0.counts.lock().unwrap().replays > replays, "no graph was recorded");
        assert!(want.iter().zip(&turn).all(|(told, request)| told.iter().all(|(_, l)| l.is_some() == request.logprobs.is_some())));
    }
}

/// The contract of a decode step: what reaches the device.
#[test]
fn a_decode_step_is_one_upload_and_one_graph() {
    let recorder = Recorder::default();
    let mut engine = engine(Arc::new(recorder.clone()), "llama3", 3);
    let layers = engine.model_info().layers;
    for n in 0..3 {
        engine.submit(Request { max_tokens: Some(40), ..Request::new(vec![5 + n; 9]) }).unwrap();
    }
    // Prefill; a decode step issued for the first time; the same recorded.
    let mut steps = Vec::new();
    for _ in 0..5 {
        let before = *recorder.0.counts.lock().unwrap();
        engine.step().unwrap();
        let after = *recorder.0.counts.lock().unwrap();
        steps.push((after.launches - before.launches, after.replayed - before.replayed, after.uploads - before.uploads));
        assert_eq!((after.downloads, after.allocations), (before.downloads, before.allocations));
    }
    // Six operations a layer; embedding and output head, which draws; a prefill gathers the rows of its last tokens.
    let decode = 6 * layers + 2;
    assert_eq!(steps, [(decode + 1, 0, 1), (decode, 0, 1), (0, decode, 1), (0, decode, 1), (0, decode, 1)]);
    let before = *recorder.0.counts.lock().unwrap();
    engine.step().unwrap();
    // Tokens, positions, slots, lengths, starts, rows: 4 aligned numbers each; tables of 3 sequences by 4 blocks.
    assert_eq!(recorder.0.counts.lock().unwrap().upload_bytes - before.upload_bytes, 4 * (6 * 4 + 3 * 4));
}
