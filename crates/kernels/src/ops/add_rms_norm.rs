//! `residual += x; out = rms_norm(residual)`: the step between two blocks of a pre-norm transformer, in one pass.

use super::rms_norm::normalize;
use crate::{
    Contract, DTypes, Result, Tensor, host,
    testkit::{Case, Inputs, Launch, Tolerance},
};

/// Arguments of `add_rms_norm`. `x` and `out` may be the same tensor.
#[derive(Clone, Copy, Debug)]
pub struct AddRmsNorm<'a> {
    /// `[tokens, hidden]` float
    pub x: &'a Tensor,
    /// `[tokens, hidden]` float, read and written
    pub residual: &'a Tensor,
    /// `[hidden]` F32
    pub weight: &'a Tensor,
    pub eps: f32,
    /// `[tokens, hidden]` float
    pub out: &'a Tensor,
}

impl AddRmsNorm<'_> {
    /// # Errors
    /// When an argument breaks the contract.
    pub fn check(&self) -> Result<()> {
        let mut c = Contract::new("add_rms_norm");
        c.tensor("x", self.x, ["tokens", "hidden"], DTypes::FLOAT)?;
        c.tensor("residual", self.residual, ["tokens", "hidden"], DTypes::FLOAT)?;
        c.tensor("weight", self.weight, ["hidden"], DTypes::F32)?;
        c.tensor("out", self.out, ["tokens", "hidden"], DTypes::FLOAT)
    }

    pub(crate) fn reference(&self) -> Result<()> {
        self.check()?;
        let weight = host::read(self.weight)?;
        let mut sum = host::read(self.residual)?;
        for (r, x) in sum.iter_mut().zip(host::read(self.x)?) {
            *r += x;
        }
        host::write(self.residual, &sum)?;
        for row in sum.chunks_exact_mut(weight.len()) {
            normalize(row, &weight, self.eps);
        }
        host::write(self.out, &sum)
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (tokens, hidden) in [(1, 576), (3, 100), (9, 1), (33, 896), (2, 4099), (1, 4096), (256, 4096), (8192, 4096)] {
        let case = Case::new("add_rms_norm", format!("tokens={tokens} hidden={hidden}"), Tolerance::ELEMENTWISE, move |i| {
            let (x, residual) = (i.normal(&[tokens, hidden])?, i.normal(&[tokens, hidden])?);
            launch(i, x, residual)
        });
        cases.push(if tokens > 100 { case.perf_only() } else { case });
    }
    cases.push(Case::new("add_rms_norm", "tiny values, so that eps decides".into(), Tolerance::ELEMENTWISE, |i| {
        // Sums of two powers of two near each other are exact in every dtype of activations.
        let dtype = i.backend().activation_dtype();
        let x = i.values(dtype, &[3, 640], |n| f64::from(1 << (n % 3)) / 1024.0)?;
        let residual = i.values(dtype, &[3, 640], |n| f64::from(1 << (n % 5)) / 4096.0)?;
        launch(i, x, residual)
    }));
    cases
}

fn launch(i: &mut Inputs, x: Tensor, residual: Tensor) -> Result<Launch> {
    let (weight, out) = (i.normal_f32(&[x.shape()[1]])?, i.activations(x.shape())?);
    let (b, r, o) = (i.backend(), residual.clone(), out.clone());
    let run = move || b.add_rms_norm(&AddRmsNorm { x: &x, residual: &r, weight: &weight, eps: 1e-5, out: &o });
    Ok(Launch::new(run).output("residual", &residual).output("out", &out).bytes(4 * out.bytes()))
}
