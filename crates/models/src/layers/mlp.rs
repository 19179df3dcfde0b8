//! The gated MLP: `down(act(gate(x)) · up(x))`.

use ferrum_kernels::{Tensor, ops, ops::Activation};

use super::Linear;
use crate::{Result, loader::Loader, model::Step};

#[derive(Debug)]
pub struct Mlp {
    gate_up: Linear,
    down: Linear,
    activation: Activation,
}

impl Mlp {
    /// `gate_up` names the projections that are stacked: `gate_proj` and `up_proj`, or one that the checkpoint fused.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen or in a dtype the backend cannot read.
    pub fn load(l: &Loader, prefix: &str, gate_up: &[(&str, usize)], hidden: usize, activation: Activation, bias: bool) -> Result<Self> {
        let inner = gate_up.iter().map(|p| p.1).sum::<usize>() / 2;
        Ok(Self {
            gate_up: Linear::load(l, prefix, gate_up, hidden, bias)?,
            down: Linear::load(l, prefix, &[("down_proj", hidden)], inner, bias)?,
            activation,
        })
    }

    /// `x: [tokens, hidden]` → `x`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&self, step: &Step, x: &Tensor) -> Result<()> {
        let (gate_up, inner) = (step.rows(&step.scratch.gate_up), step.rows(&step.scratch.inner));
        self.gate_up.forward(step, x, &gate_up)?;
        step.backend.act_mul(&ops::ActMul { activation: self.activation, gate_up: &gate_up, out: &inner })?;
        self.down.forward(step, &inner, x)
    }
}
