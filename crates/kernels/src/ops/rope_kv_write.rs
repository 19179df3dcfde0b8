//! Everything between the qkv projection and attention, in one pass: the norms on each head of q and k (Henry et al. 2020,
//! arXiv:2010.04245), rotary embedding, and the new keys and values into the paged cache.

use super::{KvWrite, RmsNorm, Rope, RopeLayout, rms_norm::normalize, rope::rotate};
use crate::{
    Backend, Contract, DType, DTypes, Result, Tensor, host,
    testkit::{Case, Launch, Tolerance},
};

/// Arguments of `rope_kv_write`. Slots are those of [`KvWrite`].
#[derive(Clone, Copy, Debug)]
pub struct RopeKvWrite<'a> {
    /// `[tokens, heads + 2·kv_heads, head_dim]` float, rows may be strided: q, k, v of each token. q is normed and rotated in
    /// place, v stays, k is undefined afterwards
    pub qkv: &'a Tensor,
    /// Of q
    pub heads: usize,
    pub qk_norm: Option<QkNorm<'a>>,
    /// `None`: a layer without positions (NoPE)
    pub rotation: Option<Rotation<'a>>,
    /// `[tokens]` I32
    pub positions: &'a Tensor,
    /// `[tokens]` I32
    pub slots: &'a Tensor,
    /// `[blocks, kv_heads, block_tokens, head_dim]` float; blocks may be strided if [`crate::Backend::kv_layers_together`]
    pub k_cache: &'a Tensor,
    /// as `k_cache`
    pub v_cache: &'a Tensor,
}

/// RMSNorm on each head of q and k.
#[derive(Clone, Copy, Debug)]
pub struct QkNorm<'a> {
    /// `[head_dim]` F32
    pub q: &'a Tensor,
    /// `[head_dim]` F32
    pub k: &'a Tensor,
    pub eps: f32,
}

/// What [`Rope`] needs besides the heads and their positions.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// `[pairs]` F32: radians per position, with any scaling already in it
    pub inv_freq: &'a Tensor,
    pub layout: RopeLayout,
    /// Factor on sine and cosine
    pub scale: f32,
}

impl RopeKvWrite<'_> {
    /// # Errors
    /// When an argument breaks the contract.
    pub fn check(&self) -> Result<()> {
        let mut c = Contract::new("rope_kv_write");
        c.tensor("k_cache", self.k_cache, ["blocks", "kv_heads", "block_tokens", "head_dim"], DTypes::FLOAT)?;
        c.tensor("v_cache", self.v_cache, ["blocks", "kv_heads", "block_tokens", "head_dim"], DTypes::FLOAT)?;
        c.define("heads + 2·kv_heads", self.heads + 2 * c.size("kv_heads"));
        c.tensor("qkv", self.qkv, ["tokens", "heads + 2·kv_heads", "head_dim"], DTypes::FLOAT)?;
        c.tensor("positions", self.positions, ["tokens"], DTypes::I32)?;
        c.tensor("slots", self.slots, ["tokens"], DTypes::I32)?;
        if let Some(norm) = &self.qk_norm {
            c.tensor("qk_norm.q", norm.q, ["head_dim"], DTypes::F32)?;
            c.tensor("qk_norm.k", norm.k, ["head_dim"], DTypes::F32)?;
        }
        if let Some(rotation) = &self.rotation {
            c.tensor("rotation.inv_freq", rotation.inv_freq, ["pairs"], DTypes::F32)?;
            let pairs = c.size("pairs");
            c.require(2 * pairs <= c.size("head_dim"), "rotation.inv_freq", pairs, "twice its length must fit head_dim")?;
        }
        c.require(self.heads > 0, "heads", self.heads, "it must be at least 1")
    }

    /// Views of q, k and v: `[tokens, heads or kv_heads, head_dim]`.
    pub fn split(&self) -> [Tensor; 3] {
        let kv_heads = self.k_cache.shape()[1];
        [(0, self.heads), (self.heads, kv_heads), (self.heads + kv_heads, kv_heads)].map(|(first, count)| self.qkv.narrow(1, first, count))
    }

    /// Issues this operation as its parts.
    ///
    /// # Errors
    /// When an argument breaks the contract or the device fails.
    pub fn unfused(&self, backend: &(impl Backend + ?Sized)) -> Result<()> {
        self.check()?;
        let [q, k, v] = self.split();
        if let Some(QkNorm { q: q_weight, k: k_weight, eps }) = self.qk_norm {
            backend.rms_norm(&RmsNorm { x: &q, weight: q_weight, eps, out: &q })?;
            backend.rms_norm(&RmsNorm { x: &k, weight: k_weight, eps, out: &k })?;
        }
        if let Some(Rotation { inv_freq, layout, scale }) = self.rotation {
            let x = self.qkv.narrow(1, 0, self.heads + k.shape()[1]);
            backend.rope(&Rope { x: &x, positions: self.positions, inv_freq, layout, scale })?;
        }
        backend.kv_write(&KvWrite { k: &k, v: &v, slots: self.slots, k_cache: self.k_cache, v_cache: self.v_cache })
    }

    pub(crate) fn reference(&self) -> Result<()> {
        self.check()?;
        let [q, k, v] = self.split();
        let positions = host::read_i32(self.positions)?;
        let changed = |x: &Tensor, weight: Option<&Tensor>| -> Result<Vec<f64>> {
            let (mut values, [heads, head_dim]) = (host::read(x)?, [x.shape()[1], x.shape()[2]]);
            if let (Some(norm), Some(weight)) = (&self.qk_norm, weight) {
                let weight = host::read(weight)?;
                values.chunks_exact_mut(head_dim).for_each(|head| normalize(head, &weight, norm.eps));
            }
            if let Some(rotation) = &self.rotation {
                let inv_freq = host::read(rotation.inv_freq)?;
                for (token, &position) in values.chunks_exact_mut(heads * head_dim).zip(&positions) {
                    token.chunks_exact_mut(head_dim).for_each(|head| rotate(head, position, &inv_freq, rotation));
                }
            }
            Ok(values)
        };
        host::write(&q, &changed(&q, self.qk_norm.map(|n| n.q))?)?;
        let [blocks, heads, block_tokens, head_dim] = [0, 1, 2, 3].map(|axis| self.k_cache.shape()[axis]);
        let slots = host::read_i32(self.slots)?;
        for (new, cache) in [(changed(&k, self.qk_norm.map(|n| n.k))?, self.k_cache), (host::read(&v)?, self.v_cache)] {
            let mut cached = host::read(cache)?;
            for (token, &slot) in new.chunks_exact(heads * head_dim).zip(&slots) {
                let Some(slot) = usize::try_from(slot).ok().filter(|s| s / block_tokens < blocks) else { continue };
                for (head, row) in token.chunks_exact(head_dim).enumerate() {
                    let at = ((slot / block_tokens * heads + head) * block_tokens + slot % block_tokens) * head_dim;
                    cached[at..at + head_dim].copy_from_slice(row);
                }
            }
            host::write(cache, &cached)?;
        }
        Ok(())
    }
}

/// One case: sizes and what of the operation it uses.
#[derive(Clone, Copy, Debug)]
struct Setup {
    cache: DType,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_tokens: usize,
    norm: bool,
    /// 0: no rotation
    pairs: usize,
    layout: RopeLayout,
    scale: f32,
}

pub(super) fn cases() -> Vec<Case> {
    let base = Setup {
        cache: DType::BF16,
        tokens: 1,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        block_tokens: 16,
        norm: false,
        pairs: 32,
        layout: RopeLayout::Halves,
        scale: 1.0,
    };
    let mut setups = Vec::new();
    for cache in [DType::F32, DType::F16, DType::BF16] {
        for layout in [RopeLayout::Halves, RopeLayout::Pairs] {
            for norm in [false, true] {
                setups.push(Setup { cache, layout, norm, ..base });
                setups.push(Setup {
                    cache,
                    layout,
                    norm,
                    tokens: 21,
                    heads: 8,
                    kv_heads: 2,
                    head_dim: 128,
                    pairs: 64,
                    block_tokens: 64,
                    ..base
                });
            }
        }
    }
    setups.push(Setup { tokens: 7, pairs: 0, ..base });
    setups.push(Setup { tokens: 7, pairs: 0, norm: true, ..base });
    setups.push(Setup { tokens: 5, pairs: 24, head_dim: 96, scale: 1.2, ..base });
    setups.push(Setup { tokens: 5, pairs: 16, head_dim: 80, layout: RopeLayout::Pairs, scale: 1.2, ..base });
    setups.push(Setup { tokens: 4, heads: 4, kv_heads: 1, head_dim: 256, pairs: 128, norm: true, ..base });
    setups.push(Setup { tokens: 6, heads: 2, kv_heads: 2, head_dim: 10, pairs: 5, block_tokens: 4, norm: true, ..base });
    setups.push(Setup { tokens: 70, heads: 32, kv_heads: 8, head_dim: 128, pairs: 64, block_tokens: 64, ..base });
    let tolerance = |s: &Setup| if s.cache == DType::F32 { Tolerance::ELEMENTWISE } else { Tolerance::STORED };
    setups.into_iter().map(|s| Case::new("rope_kv_write", format!("{s:?}"), tolerance(&s), move |i| build(i, s))).collect()
}

fn build(i: &mut crate::testkit::Inputs, s: Setup) -> Result<Launch> {
    let (b, width) = (i.backend(), (s.heads + 2 * s.kv_heads) * s.head_dim);
    let fused = i.normal_scaled(&[s.tokens, width], 2.0)?;
    let qkv = fused.split_heads(s.head_dim);
    let (q_weight, k_weight) = (i.normal_f32(&[s.head_dim])?, i.normal_f32(&[s.head_dim])?);
    let freq: Vec<f32> = (0..s.pairs).map(|p| 10_000f32.powf(-(p as f32) / s.pairs as f32)).collect();
    let inv_freq = if s.pairs > 0 { Some(b.tensor_f32(&[s.pairs], &freq)?) } else { None };
    let positions = b.tensor_i32(&[s.tokens], &(0..s.tokens as i32).map(|t| t * 977 + 3).collect::<Vec<_>>())?;
    // A stride that is coprime with the slot count spreads the tokens; one token is skipped.
    let blocks = 7 + s.tokens.div_ceil(s.block_tokens);
    let total = (blocks * s.block_tokens) as i32;
    let slots: Vec<i32> = (0..s.tokens as i32).map(|t| if t == 3 { -1 } else { (t * 13 + 2) % total }).collect();
    let slots = b.tensor_i32(&[s.tokens], &slots)?;
    let shape = [blocks, s.kv_heads, s.block_tokens, s.head_dim];
    let (k_cache, v_cache) = (b.zeros(s.cache, &shape)?, b.zeros(s.cache, &shape)?);
    let (x, kc, vc) = (qkv.clone(), k_cache.clone(), v_cache.clone());
    let run = move || {
        b.rope_kv_write(&RopeKvWrite {
            qkv: &x,
            heads: s.heads,
            qk_norm: s.norm.then_some(QkNorm { q: &q_weight, k: &k_weight, eps: 1e-6 }),
            rotation: inv_freq.as_ref().map(|inv_freq| Rotation { inv_freq, layout: s.layout, scale: s.scale }),
            positions: &positions,
            slots: &slots,
            k_cache: &kc,
            v_cache: &vc,
        })
    };
    let kv = s.kv_heads * s.head_dim;
    Ok(Launch::new(run)
        .output_columns("q", &fused, 0..s.heads * s.head_dim)
        .output_columns("v", &fused, width - kv..width)
        .output("k_cache", &k_cache)
        .output("v_cache", &v_cache)
        .bytes(2 * fused.bytes()))
}
