//! `out = x / sqrt(mean(x²) + eps) · weight`, row by row (Zhang and Sennrich 2019, arXiv:1910.07467).

use crate::{
    Contract, DType, DTypes, Result, Tensor, host,
    testkit::{Case, Launch, Tolerance},
};

/// Arguments of `rms_norm`. `x` and `out` may be the same tensor. Rank 3 normalises each head on its own.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm<'a> {
    /// `[tokens, hidden]` or `[tokens, heads, hidden]` float, rows may be strided
    pub x: &'a Tensor,
    /// `[hidden]` F32
    pub weight: &'a Tensor,
    pub eps: f32,
    /// shape and dtype of `x`
    pub out: &'a Tensor,
}

impl RmsNorm<'_> {
    /// # Errors
    /// When an argument breaks the contract.
    pub fn check(&self) -> Result<()> {
        let mut c = Contract::new("rms_norm");
        if self.x.shape().len() == 3 {
            c.tensor("x", self.x, ["tokens", "heads", "hidden"], DTypes::FLOAT)?;
            c.tensor("out", self.out, ["tokens", "heads", "hidden"], DTypes::FLOAT)?;
        } else {
            c.tensor("x", self.x, ["tokens", "hidden"], DTypes::FLOAT)?;
            c.tensor("out", self.out, ["tokens", "hidden"], DTypes::FLOAT)?;
        }
        c.tensor("weight", self.weight, ["hidden"], DTypes::F32)
    }

    pub(crate) fn reference(&self) -> Result<()> {
        self.check()?;
        let weight = host::read(self.weight)?;
        let mut x = host::read(self.x)?;
        for row in x.chunks_exact_mut(weight.len()) {
            normalize(row, &weight, self.eps);
        }
        host::write(self.out, &x)
    }
}

/// Normalises one row in place.
pub(super) fn normalize(row: &mut [f64], weight: &[f64], eps: f32) {
    let mean_square = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
    let scale = 1.0 / (mean_square + f64::from(eps)).sqrt();
    for (v, w) in row.iter_mut().zip(weight) {
        *v *= scale * w;
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (tokens, hidden) in [(1, 64), (1, 576), (3, 100), (7, 1), (33, 896), (5, 4099), (1, 4096), (256, 4096), (8192, 4096)] {
        let case = Case::new("rms_norm", format!("tokens={tokens} hidden={hidden}"), Tolerance::ELEMENTWISE, move |i| {
            let (x, weight) = (i.normal(&[tokens, hidden])?, i.normal_f32(&[hidden])?);
            let out = i.activations(&[tokens, hidden])?;
            let (b, o) = (i.backend(), out.clone());
            Ok(Launch::new(move || b.rms_norm(&RmsNorm { x: &x, weight: &weight, eps: 1e-5, out: &o }))
                .output("out", &out)
                .bytes(2 * out.bytes()))
        });
        cases.push(if tokens > 100 { case.perf_only() } else { case });
    }
    cases.push(Case::new("rms_norm", "heads of a fused row, in place".into(), Tolerance::ELEMENTWISE, |i| {
        let fused = i.normal(&[5, 6 * 32])?;
        let heads = fused.narrow(1, 32, 4 * 32).split_heads(32);
        let weight = i.normal_f32(&[32])?;
        let b = i.backend();
        Ok(Launch::new(move || b.rms_norm(&RmsNorm { x: &heads, weight: &weight, eps: 1e-6, out: &heads })).output("fused", &fused))
    }));
    cases.push(Case::new("rms_norm", "tiny values, so that eps decides".into(), Tolerance::ELEMENTWISE, |i| {
        let x = i.values(DType::F32, &[2, 96], |n| 1e-3 * f64::from((n % 7) as u32))?;
        let (weight, out) = (i.normal_f32(&[96])?, i.backend().zeros(DType::F32, &[2, 96])?);
        let (b, o) = (i.backend(), out.clone());
        Ok(Launch::new(move || b.rms_norm(&RmsNorm { x: &x, weight: &weight, eps: 1e-5, out: &o })).output("out", &out))
    }));
    cases
}
