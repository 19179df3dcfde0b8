//! Everything between the qkv projection and the output projection, in one pass: [`RopeKvWrite`], then [`Attention`] of the
//! queries that it leaves.

use super::{Attention, QkNorm, RopeKvWrite, RopeLayout, Rotation};
use crate::{
    Backend, DType, Result, Tensor,
    testkit::{Case, Inputs, Launch, Tolerance},
};

/// Arguments of `rope_attention`. Sequences are those of [`Attention`].
#[derive(Clone, Copy, Debug)]
pub struct RopeAttention<'a> {
    /// Its slots are where `block_tables` puts the new tokens of each sequence: its last ones. A sequence without context has
    /// negative slots. `qkv` is undefined afterwards
    pub heads: RopeKvWrite<'a>,
    /// `[seqs, max_blocks]` I32
    pub block_tables: &'a Tensor,
    /// `[seqs + 1]` I32, starts with 0, ends with `tokens`
    pub cu_seqlens: &'a Tensor,
    /// `[seqs]` I32, this step's tokens included
    pub context_lens: &'a Tensor,
    /// The most new tokens that one sequence has; 1 for a pure decode step
    pub max_query_len: usize,
    pub scale: f32,
    /// As in [`Attention`]
    pub window: Option<usize>,
    /// As in [`Attention`]
    pub softcap: Option<f32>,
    /// `[heads]` F32
    pub sinks: Option<&'a Tensor>,
    /// `[tokens, heads, head_dim]` float
    pub out: &'a Tensor,
}

impl RopeAttention<'_> {
    /// # Errors
    /// When an argument breaks the contract. The contents of the index tensors are the runner's to get right.
    pub fn check(&self) -> Result<()> {
        self.heads.check()?;
        let [q, ..] = self.heads.split();
        self.attention(&q).check()
    }

    /// The second part, for `q` out of [`RopeKvWrite::split`].
    pub fn attention<'q>(&'q self, q: &'q Tensor) -> Attention<'q> {
        Attention {
            q,
            k_cache: self.heads.k_cache,
            v_cache: self.heads.v_cache,
            block_tables: self.block_tables,
            cu_seqlens: self.cu_seqlens,
            context_lens: self.context_lens,
            max_query_len: self.max_query_len,
            scale: self.scale,
            window: self.window,
            softcap: self.softcap,
            sinks: self.sinks,
            out: self.out,
        }
    }

    /// Issues this operation as its parts.
    ///
    /// # Errors
    /// When an argument breaks the contract or the device fails.
    pub fn unfused(&self, backend: &(impl Backend + ?Sized)) -> Result<()> {
        self.check()?;
        backend.rope_kv_write(&self.heads)?;
        let [q, ..] = self.heads.split();
        backend.attention(&self.attention(&q))
    }
}

/// One case: `seqs` are (new tokens, context length).
#[derive(Clone, Debug)]
struct Setup {
    seqs: Vec<(usize, usize)>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_tokens: usize,
    cache: DType,
    norm: bool,
    /// 0: no rotation
    pairs: usize,
    layout: RopeLayout,
    rope_scale: f32,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
}

pub(super) fn cases() -> Vec<Case> {
    let base = Setup {
        seqs: vec![(1, 37), (1, 1), (1, 300), (1, 64), (1, 65)],
        heads: 8,
        kv_heads: 2,
        head_dim: 128,
        block_tokens: 64,
        cache: DType::BF16,
        norm: false,
        pairs: 64,
        layout: RopeLayout::Halves,
        rope_scale: 1.0,
        window: None,
        softcap: None,
        sinks: false,
    };
    // New tokens across tiles, warps and chunks of a kernel; all of a context; more than a decode step has.
    let few = || vec![(4, 66), (1, 1), (3, 3), (2, 17), (4, 258), (1, 90)];
    let mixed = || vec![(1, 37), (20, 20), (5, 61), (1, 130)];
    let mut setups = Vec::new();
    for layout in [RopeLayout::Halves, RopeLayout::Pairs] {
        for norm in [false, true] {
            let base = Setup { layout, norm, ..base.clone() };
            setups.push(base.clone());
            setups.push(Setup { seqs: few(), ..base.clone() });
            setups.push(Setup { seqs: few(), heads: 14, head_dim: 64, pairs: 32, ..base.clone() });
            setups.push(Setup { heads: 4, kv_heads: 1, head_dim: 256, pairs: 128, cache: DType::F16, ..base.clone() });
        }
    }
    for cache in [DType::F32, DType::F16] {
        setups.push(Setup { seqs: few(), cache, norm: true, ..base.clone() });
    }
    setups.push(Setup { seqs: mixed(), ..base.clone() });
    setups.push(Setup { seqs: vec![(1, 2100), (1, 513), (1, 3)], ..base.clone() });
    setups.push(Setup { seqs: vec![(8, 8), (8, 20), (7, 1203)], heads: 2, norm: true, ..base.clone() });
    setups.push(Setup { seqs: few(), window: Some(9), sinks: true, ..base.clone() });
    setups.push(Setup { window: Some(70), softcap: Some(5.0), block_tokens: 16, ..base.clone() });
    setups.push(Setup { seqs: few(), pairs: 0, ..base.clone() });
    setups.push(Setup { seqs: few(), pairs: 32, rope_scale: 1.2, ..base.clone() });
    setups.push(Setup { pairs: 24, layout: RopeLayout::Pairs, rope_scale: 1.2, ..base.clone() });
    setups.push(Setup { head_dim: 80, pairs: 40, ..base.clone() });
    setups.push(Setup { seqs: few(), heads: 20, kv_heads: 1, head_dim: 64, pairs: 32, ..base.clone() });
    let tolerance = |s: &Setup| if s.cache == DType::F32 { Tolerance::ATTENTION } else { Tolerance::ATTENTION_STORED };
    let tested = setups.len();
    // Llama 3 8B and Qwen3 0.6B.
    for (heads, norm) in [(32, false), (16, true)] {
        for (seqs, context) in [(1, 300), (16, 300), (256, 320)] {
            setups.push(Setup { seqs: vec![(1, context); seqs], heads, kv_heads: 8, norm, ..base.clone() });
        }
    }
    setups
        .into_iter()
        .enumerate()
        .map(|(n, s)| {
            let of_seqs = if n < tested { format!("{:?}", s.seqs) } else { format!("{}x{:?}", s.seqs.len(), s.seqs[0]) };
            let name = format!(
                "seqs={of_seqs} heads={}/{} head_dim={} block={} cache={} norm={} pairs={} {:?} window={:?} softcap={:?} sinks={}",
                s.heads, s.kv_heads, s.head_dim, s.block_tokens, s.cache, s.norm, s.pairs, s.layout, s.window, s.softcap, s.sinks
            );
            let case = Case::new("rope_attention", name, tolerance(&s), move |i| build(i, &s));
            if n < tested { case } else { case.perf_only() }
        })
        .collect()
}

fn build(i: &mut Inputs, s: &Setup) -> Result<Launch> {
    let (b, bt) = (i.backend(), s.block_tokens);
    let tokens: usize = s.seqs.iter().map(|q| q.0).sum();
    // Where steps are replayed, two sequences of a graph's padding: a token each, no context, no slot.
    let (seqs, rows) = (s.seqs.len() + 2, tokens + 2);
    let padding = if b.is_asynchronous() { 2 } else { 0 };
    let max_blocks = s.seqs.iter().map(|q| q.1.div_ceil(bt)).max().unwrap_or(1);
    let blocks = 2 + s.seqs.iter().map(|q| q.1.div_ceil(bt)).sum::<usize>();
    // Blocks are handed out from the end backwards, so that order in the table and in memory differ.
    let mut next = blocks as i32 - 1;
    let (mut tables, mut cu, mut lens) = (vec![0; seqs * max_blocks], vec![0], vec![0; seqs]);
    let (mut positions, mut slots) = (Vec::new(), Vec::new());
    for (seq, &(new, context)) in s.seqs.iter().enumerate() {
        let table = &mut tables[seq * max_blocks..][..context.div_ceil(bt)];
        for entry in table.iter_mut() {
            *entry = next;
            next -= 1;
        }
        lens[seq] = context as i32;
        positions.extend((context - new..context).map(|t| t as i32));
        slots.extend((context - new..context).map(|t| table[t / bt] * bt as i32 + (t % bt) as i32));
        cu.push(positions.len() as i32);
    }
    cu.extend([tokens as i32 + 1, rows as i32]);
    positions.resize(rows, 0);
    slots.resize(rows, -1);
    let (block_tables, cu_seqlens) = (b.tensor_i32(&[seqs, max_blocks], &tables)?, b.tensor_i32(&[seqs + 1], &cu)?);
    let (context_lens, positions, slots) =
        (b.tensor_i32(&[seqs], &lens)?, b.tensor_i32(&[rows], &positions)?, b.tensor_i32(&[rows], &slots)?);

    let qkv = i.normal_scaled(&[rows, (s.heads + 2 * s.kv_heads) * s.head_dim], 1.5)?.split_heads(s.head_dim);
    let (q_weight, k_weight) = (i.normal_f32(&[s.head_dim])?, i.normal_f32(&[s.head_dim])?);
    let freq: Vec<f32> = (0..s.pairs).map(|p| 10_000f32.powf(-(p as f32) / s.pairs as f32)).collect();
    let inv_freq = if s.pairs > 0 { Some(b.tensor_f32(&[s.pairs], &freq)?) } else { None };
    let sinks = if s.sinks { Some(i.normal_f32(&[s.heads])?) } else { None };
    let shape = [blocks, s.kv_heads, bt, s.head_dim];
    let (k_cache, v_cache) = (i.normal_as(s.cache, &shape, 1.0)?, i.normal_as(s.cache, &shape, 1.0)?);
    let out = i.activations(&[rows, s.heads, s.head_dim])?;
    // What the padding holds is nobody's.
    let used = out.narrow(0, 0, tokens);
    let [qkv, positions, slots, out] = [qkv, positions, slots, out].map(|t| t.narrow(0, 0, tokens + padding));
    let [block_tables, context_lens] = [block_tables, context_lens].map(|t| t.narrow(0, 0, s.seqs.len() + padding));
    let cu_seqlens = cu_seqlens.narrow(0, 0, s.seqs.len() + padding + 1);
    let (kc, vc, s) = (k_cache.clone(), v_cache.clone(), s.clone());
    let context: usize = s.seqs.iter().map(|q| q.1).sum();
    let bytes = 2 * context * s.kv_heads * s.head_dim * s.cache.block_bytes();
    let run = move || {
        b.rope_attention(&RopeAttention {
            heads: RopeKvWrite {
                qkv: &qkv,
                heads: s.heads,
                qk_norm: s.norm.then_some(QkNorm { q: &q_weight, k: &k_weight, eps: 1e-6 }),
                rotation: inv_freq.as_ref().map(|inv_freq| Rotation { inv_freq, layout: s.layout, scale: s.rope_scale }),
                positions: &positions,
                slots: &slots,
                k_cache: &kc,
                v_cache: &vc,
            },
            block_tables: &block_tables,
            cu_seqlens: &cu_seqlens,
            context_lens: &context_lens,
            max_query_len: s.seqs.iter().map(|q| q.0).max().unwrap_or(1),
            scale: (s.head_dim as f32).powf(-0.5),
            window: s.window,
            softcap: s.softcap,
            sinks: sinks.as_ref(),
            out: &out,
        })
    };
    Ok(Launch::new(run).output("out", &used).output("k_cache", &k_cache).output("v_cache", &v_cache).bytes(bytes))
}
