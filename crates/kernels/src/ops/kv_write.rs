//! Stores the keys and values of new tokens into their slots of the paged cache.

use crate::{
    Contract, DType, DTypes, Result, Tensor, host,
    testkit::{Case, Launch, Tolerance},
};

/// Arguments of `kv_write`. Slot `s` is token `s % block_tokens` of block `s / block_tokens`; a negative slot is skipped.
#[derive(Clone, Copy, Debug)]
pub struct KvWrite<'a> {
    /// `[tokens, kv_heads, head_dim]` float, rows may be strided
    pub k: &'a Tensor,
    /// as `k`
    pub v: &'a Tensor,
    /// `[tokens]` I32
    pub slots: &'a Tensor,
    /// `[blocks, kv_heads, block_tokens, head_dim]` float; blocks may be strided if [`crate::Backend::kv_layers_together`]
    pub k_cache: &'a Tensor,
    /// as `k_cache`
    pub v_cache: &'a Tensor,
}

impl KvWrite<'_> {
    /// # Errors
    /// When an argument breaks the contract.
    pub fn check(&self) -> Result<()> {
        let mut c = Contract::new("kv_write");
        c.tensor("k", self.k, ["tokens", "kv_heads", "head_dim"], DTypes::FLOAT)?;
        c.tensor("v", self.v, ["tokens", "kv_heads", "head_dim"], DTypes::FLOAT)?;
        c.tensor("slots", self.slots, ["tokens"], DTypes::I32)?;
        c.tensor("k_cache", self.k_cache, ["blocks", "kv_heads", "block_tokens", "head_dim"], DTypes::FLOAT)?;
        c.tensor("v_cache", self.v_cache, ["blocks", "kv_heads", "block_tokens", "head_dim"], DTypes::FLOAT)
    }

    pub(crate) fn reference(&self) -> Result<()> {
        self.check()?;
        let [blocks, heads, block_tokens, head_dim] = [0, 1, 2, 3].map(|axis| self.k_cache.shape()[axis]);
        let slots = host::read_i32(self.slots)?;
        for (new, cache) in [(self.k, self.k_cache), (self.v, self.v_cache)] {
            let new = host::read(new)?;
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

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for (tokens, heads, head_dim, block_tokens) in [(1, 3, 64, 16), (5, 2, 10, 4), (20, 1, 256, 32)] {
            let name = format!("{dtype} tokens={tokens} kv_heads={heads} head_dim={head_dim} block_tokens={block_tokens}");
            cases.push(Case::new("kv_write", name, Tolerance::ELEMENTWISE, move |i| {
                let fused = i.normal(&[tokens, 3 * heads * head_dim])?;
                let k = fused.narrow(1, heads * head_dim, heads * head_dim).split_heads(head_dim);
                let v = fused.narrow(1, 2 * heads * head_dim, heads * head_dim).split_heads(head_dim);
                // A stride that is coprime with the slot count spreads the tokens; one token is skipped.
                let total = (7 * block_tokens) as i32;
                let slots: Vec<i32> = (0..tokens as i32).map(|t| if t == 3 { -1 } else { (t * 13 + 2) % total }).collect();
                let slots = i.backend().tensor_i32(&[tokens], &slots)?;
                let shape = [7, heads, block_tokens, head_dim];
                let (k_cache, v_cache) = (i.backend().zeros(dtype, &shape)?, i.backend().zeros(dtype, &shape)?);
                let (b, kc, vc) = (i.backend(), k_cache.clone(), v_cache.clone());
                Ok(Launch::new(move || b.kv_write(&KvWrite { k: &k, v: &v, slots: &slots, k_cache: &kc, v_cache: &vc }))
                    .output("k_cache", &k_cache)
                    .output("v_cache", &v_cache))
            }));
        }
    }
    cases
}
