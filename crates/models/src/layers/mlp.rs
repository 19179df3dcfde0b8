//! The gated MLP: `down(act(gate(x)) · up(x))`.

use ferrum_kernels::{
    Tensor, ops,
    ops::{Activation, Epilogue, Norm},
};

use super::{Linear, RmsNorm};
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

    /// `x = mlp(x)`, for `x: [tokens, hidden]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&self, step: &Step, x: &Tensor) -> Result<()> {
        self.run(step, x, None, Epilogue::Store)
    }

    /// `residual += mlp(norm(residual))`, for `residual: [tokens, hidden]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn add_forward(&self, step: &Step, norm: &RmsNorm, residual: &Tensor) -> Result<()> {
        let normed = step.rows(&step.scratch.hidden);
        self.run(step, residual, Some(norm.before(&normed)), Epilogue::Add)
    }

    fn run(&self, step: &Step, x: &Tensor, norm: Option<Norm>, epilogue: Epilogue) -> Result<()> {
        let (gate_up, inner) = (step.rows(&step.scratch.gate_up), step.rows(&step.scratch.inner));
        let gated = Epilogue::ActMul { activation: self.activation, gate_up: &gate_up };
        step.backend.linear(&ops::Linear { norm, epilogue: gated, ..self.gate_up.op(x, &inner) })?;
        Ok(step.backend.linear(&ops::Linear { epilogue, ..self.down.op(&inner, x) })?)
    }
}
