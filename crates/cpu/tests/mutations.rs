//! Proof that the cases can fail: a backend with one mistake per operation, each of which the testkit must report.

use std::sync::Arc;

use ferrum_cpu::{CpuBackend, CpuOptions, Precision};
use ferrum_kernels::{
    Backend, DType, DeviceInfo, PreparedWeight, Readback, Result, Storage, Tensor, Weight,
    ops::{
        ActMul, Activation, AddRmsNorm, Attention, Embed, Epilogue, GatherRows, KvWrite, Linear, LogitsMask, LogitsMaskRow, QkNorm,
        RmsNorm, Rope, RopeAttention, RopeKvWrite, RopeLayout, Sample, SampleParams, Softcap,
    },
    testkit,
};

/// One mistake: the operation it is in, and what is wrong.
const MUTATIONS: [(&str, &str); 35] = [
    ("embed", "scale 1 % too large"),
    ("embed", "last token left out"),
    ("embed", "drawn ids ignored"),
    ("rms_norm", "eps ten times too large"),
    ("rms_norm", "last token left out"),
    ("add_rms_norm", "eps ten times too large"),
    ("add_rms_norm", "residual not written"),
    ("linear", "last 32 columns left out"),
    ("linear", "last row left out"),
    ("linear", "bias left out"),
    ("linear", "norm left out"),
    ("linear", "nothing added"),
    ("linear", "always the first result"),
    ("linear", "the other activation"),
    ("act_mul", "gate and up swapped"),
    ("rope", "positions one too large"),
    ("rope", "the other layout"),
    ("kv_write", "first slot skipped"),
    ("kv_write", "keys and values swapped"),
    ("rope_kv_write", "k not normed"),
    ("rope_kv_write", "positions one too large"),
    ("rope_kv_write", "keys and values swapped"),
    ("rope_kv_write", "first slot skipped"),
    ("attention", "contexts one too short"),
    ("attention", "window one too large"),
    ("attention", "soft cap left out"),
    ("attention", "sinks left out"),
    ("rope_attention", "new tokens not seen"),
    ("rope_attention", "new tokens not kept"),
    ("gather_rows", "first row for all"),
    ("softcap", "cap 1 % too large"),
    ("logits_mask", "biases left out"),
    ("logits_mask", "masks left out"),
    ("logits_mask", "first mask for all"),
    ("sample", "filters left out"),
];

#[test]
fn every_mutation_is_reported() {
    let sound: Arc<dyn Backend> = Arc::new(CpuBackend::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap());
    for (mutation, &(op, mistake)) in MUTATIONS.iter().enumerate() {
        let backend: Arc<dyn Backend> = Arc::new(Mutant { sound: sound.clone(), mutation });
        let failures = testkit::test(&backend, &format!("{op} ")).into_iter().filter(|o| o.op == op && o.result.is_err()).count();
        assert!(failures > 0, "{op}: no case notices: {mistake}");
    }
}

/// The cases of `linear` must also notice in F32 what is lost in the rounding of 8 bits.
#[test]
fn f32_notices_one_lost_column() {
    let options = CpuOptions { threads: Some(1), precision: Precision::F32, ..CpuOptions::default() };
    let sound: Arc<dyn Backend> = Arc::new(CpuBackend::new(options).unwrap());
    let backend: Arc<dyn Backend> = Arc::new(Mutant { sound, mutation: MUTATIONS.len() });
    assert!(testkit::test(&backend, "linear ").iter().any(|o| o.result.is_err()));
}

#[derive(Debug)]
struct Mutant {
    sound: Arc<dyn Backend>,
    mutation: usize,
}

impl Mutant {
    fn is(&self, op: &str, mistake: &str) -> bool {
        MUTATIONS.get(self.mutation) == Some(&(op, mistake))
    }

    fn i32s(&self, t: &Tensor, change: impl Fn(usize, i32) -> i32) -> Result<Tensor> {
        let values: Vec<i32> = self.sound.read_i32(t)?.into_iter().enumerate().map(|(n, v)| change(n, v)).collect();
        self.sound.tensor_i32(t.shape(), &values)
    }

    fn copy(&self, t: &Tensor) -> Result<Tensor> {
        let copy = self.sound.zeros(t.dtype(), t.shape())?;
        self.copy_to(t, &copy)?;
        Ok(copy)
    }

    fn copy_to(&self, from: &Tensor, to: &Tensor) -> Result<()> {
        let mut bytes = vec![0; from.bytes()];
        self.sound.download(from, &mut bytes)?;
        self.sound.upload(to, &bytes)
    }

    /// `x` with its last `cols` columns zeroed.
    fn without_columns(&self, x: &Tensor, cols: usize) -> Result<Tensor> {
        let mut values = self.sound.read_f32(x)?;
        let width = x.shape()[1];
        values.chunks_exact_mut(width).for_each(|row| row[width.saturating_sub(cols)..].fill(0.0));
        self.sound.tensor_f32(x.shape(), &values)
    }
}

fn all_but_last(t: &Tensor) -> Tensor {
    t.narrow(0, 0, t.shape()[0] - 1)
}

impl Backend for Mutant {
    fn name(&self) -> &'static str {
        "mutant"
    }
    fn device(&self) -> DeviceInfo {
        self.sound.device()
    }
    fn activation_dtype(&self) -> DType {
        self.sound.activation_dtype()
    }
    fn kv_block_tokens(&self) -> usize {
        self.sound.kv_block_tokens()
    }
    fn max_step_tokens(&self) -> usize {
        self.sound.max_step_tokens()
    }
    fn quantizes_activations(&self) -> bool {
        self.sound.quantizes_activations()
    }
    fn alloc(&self, bytes: usize) -> Result<Arc<dyn Storage>> {
        self.sound.alloc(bytes)
    }
    fn readback(&self, bytes: usize) -> Result<Box<dyn Readback>> {
        self.sound.readback(bytes)
    }
    fn upload(&self, dst: &Tensor, src: &[u8]) -> Result<()> {
        self.sound.upload(dst, src)
    }
    fn download(&self, src: &Tensor, dst: &mut [u8]) -> Result<()> {
        self.sound.download(src, dst)
    }
    fn synchronize(&self) -> Result<()> {
        self.sound.synchronize()
    }
    fn prepare(&self, weight: Weight) -> Result<PreparedWeight> {
        self.sound.prepare(weight)
    }

    fn embed(&self, op: &Embed) -> Result<()> {
        let scale = if self.is("embed", "scale 1 % too large") { 1.01 * op.scale } else { op.scale };
        if self.is("embed", "last token left out") {
            let (ids, out) = (all_but_last(op.ids), all_but_last(op.out));
            return self.sound.embed(&Embed { ids: &ids, out: &out, ..*op });
        }
        let drawn = op.drawn.filter(|_| !self.is("embed", "drawn ids ignored"));
        self.sound.embed(&Embed { scale, drawn, ..*op })
    }

    fn rms_norm(&self, op: &RmsNorm) -> Result<()> {
        if self.is("rms_norm", "last token left out") {
            let (x, out) = (all_but_last(op.x), all_but_last(op.out));
            return self.sound.rms_norm(&RmsNorm { x: &x, out: &out, ..*op });
        }
        let eps = if self.is("rms_norm", "eps ten times too large") { 10.0 * op.eps } else { op.eps };
        self.sound.rms_norm(&RmsNorm { eps, ..*op })
    }

    fn add_rms_norm(&self, op: &AddRmsNorm) -> Result<()> {
        if self.is("add_rms_norm", "residual not written") {
            let copy = self.sound.tensor_f32(op.residual.shape(), &self.sound.read_f32(op.residual)?)?;
            return self.sound.add_rms_norm(&AddRmsNorm { residual: &copy, ..*op });
        }
        let eps = if self.is("add_rms_norm", "eps ten times too large") { 10.0 * op.eps } else { op.eps };
        self.sound.add_rms_norm(&AddRmsNorm { eps, ..*op })
    }

    fn linear(&self, op: &Linear) -> Result<()> {
        let lost = match () {
            () if self.is("linear", "last 32 columns left out") => 32,
            () if self.mutation == MUTATIONS.len() => 1,
            () => 0,
        };
        if lost > 0 {
            let x = self.without_columns(op.x, lost)?;
            return self.sound.linear(&Linear { x: &x, ..*op });
        }
        if self.is("linear", "always the first result") && matches!(op.epilogue, Epilogue::Argmax { .. }) {
            return self.sound.upload(op.out, &vec![0; op.out.bytes()]);
        }
        if self.is("linear", "last row left out") {
            let whole = self.sound.zeros(DType::F32, op.out.shape())?;
            self.sound.linear(&Linear { out: &whole, ..*op })?;
            return self.sound.upload(op.out, bytemuck::cast_slice(&self.sound.read_f32(&self.without_columns(&whole, 1)?)?));
        }
        let bias = op.bias.filter(|_| !self.is("linear", "bias left out"));
        let norm = op.norm.filter(|_| !self.is("linear", "norm left out"));
        let epilogue = match op.epilogue {
            Epilogue::Add if self.is("linear", "nothing added") => Epilogue::Store,
            Epilogue::ActMul { activation, gate_up } if self.is("linear", "the other activation") => {
                let other = if activation == Activation::Silu { Activation::GeluTanh } else { Activation::Silu };
                Epilogue::ActMul { activation: other, gate_up }
            }
            epilogue => epilogue,
        };
        self.sound.linear(&Linear { bias, norm, epilogue, ..*op })
    }

    fn act_mul(&self, op: &ActMul) -> Result<()> {
        if !self.is("act_mul", "gate and up swapped") {
            return self.sound.act_mul(op);
        }
        let mut values = self.sound.read_f32(op.gate_up)?;
        let inner = op.out.shape()[1];
        values.chunks_exact_mut(2 * inner).for_each(|row| row.rotate_left(inner));
        let swapped = self.sound.tensor_f32(op.gate_up.shape(), &values)?;
        self.sound.act_mul(&ActMul { gate_up: &swapped, ..*op })
    }

    fn rope(&self, op: &Rope) -> Result<()> {
        let later = self.is("rope", "positions one too large");
        let positions = self.i32s(op.positions, |_, p| p + i32::from(later))?;
        let layout = match (self.is("rope", "the other layout"), op.layout) {
            (true, RopeLayout::Halves) | (false, RopeLayout::Pairs) => RopeLayout::Pairs,
            (true, RopeLayout::Pairs) | (false, RopeLayout::Halves) => RopeLayout::Halves,
        };
        self.sound.rope(&Rope { positions: &positions, layout, ..*op })
    }

    fn kv_write(&self, op: &KvWrite) -> Result<()> {
        let skip = self.is("kv_write", "first slot skipped");
        let slots = self.i32s(op.slots, |n, slot| if skip && n == 0 { -1 } else { slot })?;
        let (k, v) = if self.is("kv_write", "keys and values swapped") { (op.v, op.k) } else { (op.k, op.v) };
        self.sound.kv_write(&KvWrite { slots: &slots, k, v, ..*op })
    }

    fn rope_kv_write(&self, op: &RopeKvWrite) -> Result<()> {
        let skip = self.is("rope_kv_write", "first slot skipped");
        let slots = self.i32s(op.slots, |n, slot| if skip && n == 0 { -1 } else { slot })?;
        let swap = self.is("rope_kv_write", "keys and values swapped");
        let (k_cache, v_cache) = if swap { (op.v_cache, op.k_cache) } else { (op.k_cache, op.v_cache) };
        let ones = self.sound.tensor_f32(&[op.qkv.shape()[2]], &vec![1.0; op.qkv.shape()[2]])?;
        let qk_norm = op.qk_norm.map(|n| if self.is("rope_kv_write", "k not normed") { QkNorm { k: &ones, ..n } } else { n });
        let later = self.is("rope_kv_write", "positions one too large");
        let positions = self.i32s(op.positions, |_, p| p + i32::from(later))?;
        self.sound.rope_kv_write(&RopeKvWrite { slots: &slots, positions: &positions, k_cache, v_cache, qk_norm, ..*op })
    }

    fn attention(&self, op: &Attention) -> Result<()> {
        let short = self.is("attention", "contexts one too short");
        // A context never shrinks below its own queries.
        let queries = self.sound.read_i32(op.cu_seqlens)?;
        let lens = self.i32s(op.context_lens, |n, len| len - i32::from(short && len > queries[n + 1] - queries[n]))?;
        let window = op.window.map(|w| w + usize::from(self.is("attention", "window one too large")));
        let softcap = op.softcap.filter(|_| !self.is("attention", "soft cap left out"));
        let sinks = op.sinks.filter(|_| !self.is("attention", "sinks left out"));
        self.sound.attention(&Attention { context_lens: &lens, window, softcap, sinks, ..*op })
    }

    fn rope_attention(&self, op: &RopeAttention) -> Result<()> {
        let (k_cache, v_cache) = (&self.copy(op.heads.k_cache)?, &self.copy(op.heads.v_cache)?);
        if self.is("rope_attention", "new tokens not kept") {
            return self.sound.rope_attention(&RopeAttention { heads: RopeKvWrite { k_cache, v_cache, ..op.heads }, ..*op });
        }
        if !self.is("rope_attention", "new tokens not seen") {
            return self.sound.rope_attention(op);
        }
        self.sound.rope_kv_write(&RopeKvWrite { k_cache, v_cache, ..op.heads })?;
        let [q, ..] = op.heads.split();
        self.sound.attention(&op.attention(&q))?;
        self.copy_to(k_cache, op.heads.k_cache)?;
        self.copy_to(v_cache, op.heads.v_cache)
    }

    fn gather_rows(&self, op: &GatherRows) -> Result<()> {
        let first = self.is("gather_rows", "first row for all");
        let rows = self.i32s(op.rows, |_, row| if first { 0 } else { row })?;
        self.sound.gather_rows(&GatherRows { rows: &rows, ..*op })
    }

    fn softcap(&self, op: &Softcap) -> Result<()> {
        let cap = if self.is("softcap", "cap 1 % too large") { 1.01 * op.cap } else { op.cap };
        self.sound.softcap(&Softcap { cap, ..*op })
    }

    fn logits_mask(&self, op: &LogitsMask) -> Result<()> {
        let first = self.is("logits_mask", "first mask for all");
        let mut bytes = vec![0; op.rows.bytes()];
        self.sound.download(op.rows, &mut bytes)?;
        for raw in bytes.chunks_exact_mut(size_of::<LogitsMaskRow>()) {
            let row: LogitsMaskRow = bytemuck::pod_read_unaligned(raw);
            let mask = if first { row.mask.min(0) } else { row.mask };
            raw.copy_from_slice(bytemuck::bytes_of(&LogitsMaskRow { mask, ..row }));
        }
        let rows = self.sound.zeros(DType::U8, op.rows.shape())?;
        self.sound.upload(&rows, &bytes)?;
        let biases = op.biases.filter(|_| !self.is("logits_mask", "biases left out"));
        let masks = op.masks.filter(|_| !self.is("logits_mask", "masks left out"));
        self.sound.logits_mask(&LogitsMask { rows: &rows, biases, masks, ..*op })
    }

    fn sample(&self, op: &Sample) -> Result<()> {
        if !self.is("sample", "filters left out") {
            return self.sound.sample(op);
        }
        let Some(params) = op.params else { return self.sound.sample(op) };
        let mut bytes = vec![0; params.bytes()];
        self.sound.download(params, &mut bytes)?;
        for raw in bytes.chunks_exact_mut(size_of::<SampleParams>()) {
            let params = SampleParams { top_p: 1.0, top_k: 0, min_p: 0.0, ..bytemuck::pod_read_unaligned(raw) };
            raw.copy_from_slice(bytemuck::bytes_of(&params));
        }
        let changed = self.sound.zeros(DType::U8, params.shape())?;
        self.sound.upload(&changed, &bytes)?;
        self.sound.sample(&Sample { params: Some(&changed), ..*op })
    }
}
