//! RMSNorm, alone and together with the residual addition before it.

use ferrum_kernels::{Tensor, ops};

use crate::{Result, loader::Loader, model::Step};

/// A norm with its weight.
#[derive(Debug)]
pub struct RmsNorm {
    pub(super) weight: Tensor,
    pub(super) eps: f32,
}

impl RmsNorm {
    /// The norm `name` of width `len`. `offset` is 1 for families that store the weight's distance from 1.
    ///
    /// # Errors
    /// When the tensor is missing or misshapen.
    pub fn load(l: &Loader, name: &str, len: usize, eps: f32, offset: f32) -> Result<Self> {
        Ok(Self { weight: l.norm(name, len, offset)?, eps })
    }

    /// `out = norm(x)`; `x` and `out` may be the same.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&self, step: &Step, x: &Tensor, out: &Tensor) -> Result<()> {
        Ok(step.backend.rms_norm(&ops::RmsNorm { x, weight: &self.weight, eps: self.eps, out })?)
    }

    /// The norm as part of the projection behind it; `normed` is scratch of the shape of the projection's input.
    pub fn before<'a>(&'a self, normed: &'a Tensor) -> ops::Norm<'a> {
        ops::Norm { weight: &self.weight, eps: self.eps, normed }
    }

    /// `residual += x; x = norm(residual)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn add_forward(&self, step: &Step, residual: &Tensor, x: &Tensor) -> Result<()> {
        Ok(step.backend.add_rms_norm(&ops::AddRmsNorm { x, residual, weight: &self.weight, eps: self.eps, out: x })?)
    }
}
