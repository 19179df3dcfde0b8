//! `out = act(gate) · up` on a fused `[gate | up]` row: the gated MLP (Shazeer 2020, arXiv:2002.05202).

use crate::{
    Contract, DTypes, Result, Tensor, host,
    testkit::{Case, Launch, Tolerance},
};

/// The non-linearity of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// `x · Φ(x)` by the tanh approximation
    GeluTanh,
}

impl Activation {
    /// The definition.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
        }
    }
}

/// Arguments of `act_mul`.
#[derive(Clone, Copy, Debug)]
pub struct ActMul<'a> {
    pub activation: Activation,
    /// `[tokens, 2·inner]` float: gate, then up
    pub gate_up: &'a Tensor,
    /// `[tokens, inner]` float
    pub out: &'a Tensor,
}

impl ActMul<'_> {
    /// # Errors
    /// When an argument breaks the contract.
    pub fn check(&self) -> Result<()> {
        let mut c = Contract::new("act_mul");
        c.tensor("out", self.out, ["tokens", "inner"], DTypes::FLOAT)?;
        c.define("2·inner", 2 * c.size("inner"));
        c.tensor("gate_up", self.gate_up, ["tokens", "2·inner"], DTypes::FLOAT)
    }

    pub(crate) fn reference(&self) -> Result<()> {
        self.check()?;
        let inner = self.out.shape()[1];
        let mut out = Vec::with_capacity(self.out.elements());
        for row in host::read(self.gate_up)?.chunks_exact(2 * inner) {
            let (gate, up) = row.split_at(inner);
            out.extend(gate.iter().zip(up).map(|(&g, &u)| self.activation.apply(g) * u));
        }
        host::write(self.out, &out)
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for activation in [Activation::Silu, Activation::GeluTanh] {
        for (tokens, inner) in [(1, 1536), (3, 100), (17, 33), (64, 2048), (256, 14_336), (8192, 14_336)] {
            let case = Case::new("act_mul", format!("{activation:?} tokens={tokens} inner={inner}"), Tolerance::ELEMENTWISE, move |i| {
                // Large magnitudes reach the flat ends of the non-linearity.
                let gate_up = i.normal_scaled(&[tokens, 2 * inner], 4.0)?;
                let out = i.activations(&[tokens, inner])?;
                let (b, o) = (i.backend(), out.clone());
                Ok(Launch::new(move || b.act_mul(&ActMul { activation, gate_up: &gate_up, out: &o }))
                    .output("out", &out)
                    .bytes(3 * out.bytes()))
            });
            cases.push(if tokens > 100 { case.perf_only() } else { case });
        }
    }
    cases
}
