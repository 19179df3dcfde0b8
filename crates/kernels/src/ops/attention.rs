//! Scaled dot-product attention over the paged cache: prefill, decode and any mix of both in one call.
//!
//! `out = softmax(mask(softcap(scale · q · kᵀ))) · v` per query head, with grouped query heads (Ainslie et al. 2023,
//! arXiv:2305.13245), sliding window (arXiv:2004.05150), soft cap (arXiv:2408.00118) and sinks (arXiv:2309.17453: one
//! learned logit per head that takes probability and gives no value).

use crate::{
    Contract, DType, DTypes, Result, Tensor, host,
    testkit::{Case, Inputs, Launch, Tolerance},
};

/// Arguments of `attention`.
///
/// Sequence `s` owns the query rows `cu_seqlens[s]..cu_seqlens[s + 1]`. They are the last tokens of a context of
/// `context_lens[s]` tokens whose keys and values are already in the cache. Token `t` of that context lies in block
/// `block_tables[s][t / block_tokens]`.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// `[tokens, heads, head_dim]` float, rows may be strided
    pub q: &'a Tensor,
    /// `[blocks, kv_heads, block_tokens, head_dim]` float; blocks may be strided if [`crate::Backend::kv_layers_together`]
    pub k_cache: &'a Tensor,
    /// as `k_cache`
    pub v_cache: &'a Tensor,
    /// `[seqs, max_blocks]` I32
    pub block_tables: &'a Tensor,
    /// `[seqs + 1]` I32, starts with 0, ends with `tokens`
    pub cu_seqlens: &'a Tensor,
    /// `[seqs]` I32, this step's tokens included
    pub context_lens: &'a Tensor,
    /// The most query rows that one sequence has; 1 for a pure decode step
    pub max_query_len: usize,
    pub scale: f32,
    /// Each token sees itself and at most this many minus one before it; `None`: all of them
    pub window: Option<usize>,
    /// `cap · tanh(score / cap)` on the scaled scores
    pub softcap: Option<f32>,
    /// `[heads]` F32
    pub sinks: Option<&'a Tensor>,
    /// `[tokens, heads, head_dim]` float
    pub out: &'a Tensor,
}

impl Attention<'_> {
    /// # Errors
    /// When an argument breaks the contract. The contents of the index tensors are the runner's to get right.
    pub fn check(&self) -> Result<()> {
        let mut c = Contract::new("attention");
        c.tensor("q", self.q, ["tokens", "heads", "head_dim"], DTypes::FLOAT)?;
        c.tensor("k_cache", self.k_cache, ["blocks", "kv_heads", "block_tokens", "head_dim"], DTypes::FLOAT)?;
        c.tensor("v_cache", self.v_cache, ["blocks", "kv_heads", "block_tokens", "head_dim"], DTypes::FLOAT)?;
        c.tensor("context_lens", self.context_lens, ["seqs"], DTypes::I32)?;
        c.tensor("block_tables", self.block_tables, ["seqs", "max_blocks"], DTypes::I32)?;
        c.define("seqs + 1", c.size("seqs") + 1);
        c.tensor("cu_seqlens", self.cu_seqlens, ["seqs + 1"], DTypes::I32)?;
        if let Some(sinks) = self.sinks {
            c.tensor("sinks", sinks, ["heads"], DTypes::F32)?;
        }
        c.tensor("out", self.out, ["tokens", "heads", "head_dim"], DTypes::FLOAT)?;
        let (heads, kv_heads) = (c.size("heads"), c.size("kv_heads"));
        c.require(heads.is_multiple_of(kv_heads), "q", heads, "its heads must be a multiple of kv_heads")?;
        c.require(self.window != Some(0), "window", 0, "it must be at least 1")
    }

    pub(crate) fn reference(&self) -> Result<()> {
        self.check()?;
        let [_, heads, head_dim] = [0, 1, 2].map(|a| self.q.shape()[a]);
        let [_, kv_heads, block_tokens, _] = [0, 1, 2, 3].map(|a| self.k_cache.shape()[a]);
        let (q, k, v) = (host::read(self.q)?, host::read(self.k_cache)?, host::read(self.v_cache)?);
        let (cu, lens, tables) = (host::read_i32(self.cu_seqlens)?, host::read_i32(self.context_lens)?, host::read_i32(self.block_tables)?);
        let sinks = self.sinks.map(host::read).transpose()?;
        let max_blocks = self.block_tables.shape()[1];
        let mut out = vec![0.0; q.len()];
        for seq in 0..lens.len() {
            let (first, last, context) = (cu[seq] as usize, cu[seq + 1] as usize, lens[seq] as usize);
            let at = |kv_head: usize, t: usize| {
                let block = tables[seq * max_blocks + t / block_tokens] as usize;
                ((block * kv_heads + kv_head) * block_tokens + t % block_tokens) * head_dim
            };
            for row in first..last {
                let end = context - (last - row - 1);
                let start = self.window.map_or(0, |w| end.saturating_sub(w));
                for head in 0..heads {
                    let kv_head = head / (heads / kv_heads);
                    let query = &q[(row * heads + head) * head_dim..][..head_dim];
                    let mut scores: Vec<f64> = (start..end)
                        .map(|t| {
                            let dot: f64 = query.iter().zip(&k[at(kv_head, t)..]).map(|(a, b)| a * b).sum();
                            let score = dot * f64::from(self.scale);
                            self.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                        })
                        .collect();
                    let sink = sinks.as_ref().map(|s| s[head]);
                    let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
                    scores.iter_mut().for_each(|s| *s = (*s - max).exp());
                    let total = scores.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - max).exp());
                    let o = &mut out[(row * heads + head) * head_dim..][..head_dim];
                    for (t, p) in (start..end).zip(scores) {
                        for (o, value) in o.iter_mut().zip(&v[at(kv_head, t)..]) {
                            *o += p / total * value;
                        }
                    }
                }
            }
        }
        host::write(self.out, &out)
    }
}

/// One attention case: `seqs` are (query rows, context length).
#[derive(Clone)]
struct Setup {
    seqs: Vec<(usize, usize)>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_tokens: usize,
    cache: DType,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
}

pub(super) fn cases() -> Vec<Case> {
    let base = Setup {
        seqs: vec![(1, 1)],
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        block_tokens: 16,
        cache: DType::F16,
        window: None,
        softcap: None,
        sinks: false,
    };
    let mixed = || vec![(1, 37), (20, 20), (1, 1), (5, 61), (33, 100)];
    let mut setups = vec![base.clone()];
    for cache in [DType::F32, DType::F16, DType::BF16] {
        setups.push(Setup { seqs: mixed(), cache, ..base.clone() });
        setups.push(Setup { seqs: vec![(1, 517)], heads: 9, kv_heads: 3, cache, ..base.clone() });
    }
    for (heads, kv_heads, head_dim, block_tokens) in
        [(1, 1, 10, 4), (14, 2, 64, 32), (4, 1, 256, 32), (8, 8, 80, 16), (6, 2, 96, 64), (8, 2, 128, 32)]
    {
        setups.push(Setup { seqs: mixed(), heads, kv_heads, head_dim, block_tokens, ..base.clone() });
    }
    for window in [1, 7, 16, 1000] {
        setups.push(Setup { seqs: mixed(), window: Some(window), ..base.clone() });
    }
    setups.push(Setup { seqs: mixed(), softcap: Some(5.0), ..base.clone() });
    setups.push(Setup { seqs: mixed(), sinks: true, ..base.clone() });
    setups.push(Setup { seqs: mixed(), window: Some(9), softcap: Some(5.0), sinks: true, ..base.clone() });
    setups.push(Setup { seqs: vec![(150, 150)], heads: 2, kv_heads: 1, head_dim: 32, ..base.clone() });
    // Long contexts, where kernels split the keys: alone, beside short ones, with a window and with sinks.
    setups.push(Setup { seqs: vec![(1, 2100), (1, 513), (1, 3)], ..base.clone() });
    setups.push(Setup { seqs: vec![(1, 3000)], window: Some(700), sinks: true, ..base.clone() });
    setups.push(Setup { seqs: vec![(1, 1500), (40, 1400)], block_tokens: 32, softcap: Some(5.0), cache: DType::BF16, ..base.clone() });
    // Long prefill over a cached prefix, whole and through a window.
    setups.push(Setup { seqs: vec![(1000, 1200)], heads: 2, kv_heads: 1, head_dim: 32, ..base.clone() });
    setups.push(Setup { seqs: vec![(300, 700)], heads: 3, kv_heads: 1, head_dim: 32, window: Some(100), ..base.clone() });
    // Heads that are no multiple of a vector, and more query heads per KV head than tokens.
    setups.push(Setup { seqs: mixed(), head_dim: 72, ..base.clone() });
    setups.push(Setup { seqs: vec![(1, 600)], head_dim: 72, cache: DType::BF16, ..base.clone() });
    setups.push(Setup { seqs: vec![(1, 700), (2, 30)], heads: 20, kv_heads: 1, ..base.clone() });
    let tested = setups.len();
    // SmolLM2 135M and Qwen2.5 1.5B at depth.
    for (heads, kv_heads, head_dim) in [(9, 3, 64), (12, 2, 128)] {
        for rows in [1, 512, 4096] {
            setups.push(Setup { seqs: vec![(rows, 4096)], heads, kv_heads, head_dim, block_tokens: 32, ..base.clone() });
        }
    }
    setups
        .into_iter()
        .enumerate()
        .map(|(n, s)| {
            let name = format!(
                "seqs={:?} heads={}/{} head_dim={} block={} cache={} window={:?} softcap={:?} sinks={}",
                s.seqs, s.heads, s.kv_heads, s.head_dim, s.block_tokens, s.cache, s.window, s.softcap, s.sinks
            );
            let case = Case::new("attention", name, Tolerance::ATTENTION, move |i| build(i, &s));
            if n < tested { case } else { case.perf_only() }
        })
        .collect()
}

fn build(i: &mut Inputs, s: &Setup) -> Result<Launch> {
    let tokens: usize = s.seqs.iter().map(|q| q.0).sum();
    let max_blocks = s.seqs.iter().map(|q| q.1.div_ceil(s.block_tokens)).max().unwrap_or(1);
    let needed: usize = s.seqs.iter().map(|q| q.1.div_ceil(s.block_tokens)).sum();
    // Blocks are handed out from the end backwards, so that order in the table and in memory differ.
    let blocks = needed + 2;
    let mut next = blocks as i32 - 1;
    let mut tables = vec![0; s.seqs.len() * max_blocks];
    for (seq, &(_, context)) in s.seqs.iter().enumerate() {
        for entry in &mut tables[seq * max_blocks..][..context.div_ceil(s.block_tokens)] {
            *entry = next;
            next -= 1;
        }
    }
    let mut cu = vec![0];
    cu.extend(s.seqs.iter().scan(0, |end, q| {
        *end += q.0 as i32;
        Some(*end)
    }));
    let lens: Vec<i32> = s.seqs.iter().map(|q| q.1 as i32).collect();
    let b = i.backend();
    let block_tables = b.tensor_i32(&[s.seqs.len(), max_blocks], &tables)?;
    let (cu_seqlens, context_lens) = (b.tensor_i32(&[cu.len()], &cu)?, b.tensor_i32(&[lens.len()], &lens)?);
    let cache_shape = [blocks, s.kv_heads, s.block_tokens, s.head_dim];
    let (k_cache, v_cache) = (i.normal_as(s.cache, &cache_shape, 1.0)?, i.normal_as(s.cache, &cache_shape, 1.0)?);
    let fused = i.normal_scaled(&[tokens, (s.heads + 2) * s.head_dim], 2.0)?;
    let q = fused.narrow(1, 0, s.heads * s.head_dim).split_heads(s.head_dim);
    let sinks = if s.sinks { Some(i.normal_f32(&[s.heads])?) } else { None };
    let out = i.activations(&[tokens, s.heads, s.head_dim])?;
    let context: usize = s.seqs.iter().map(|q| q.1).sum();
    let max_query_len = s.seqs.iter().map(|q| q.0).max().unwrap_or(1);
    let (scale, window, softcap) = ((s.head_dim as f32).powf(-0.5), s.window, s.softcap);
    let bytes = 2 * context * s.kv_heads * s.head_dim * s.cache.block_bytes();
    let flops = s.seqs.iter().map(|&(rows, context)| 4 * rows * (context - rows / 2) * s.heads * s.head_dim).sum();
    let o = out.clone();
    let run = move || {
        b.attention(&Attention {
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
            sinks: sinks.as_ref(),
            out: &o,
        })
    };
    Ok(Launch::new(run).output("out", &out).bytes(bytes).flops(flops))
}
