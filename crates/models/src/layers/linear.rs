//! Projections, and the embedding table with the output head.

use ferrum_kernels::{PreparedWeight, Tensor, ops};

use crate::{Result, loader::Loader, model::Step};

/// `y = x · wᵀ + b`. Several checkpoint tensors may be stacked into one weight.
#[derive(Debug)]
pub struct Linear {
    weight: PreparedWeight,
    bias: Option<Tensor>,
}

impl Linear {
    /// Stacks the projections `prefix.name` of `parts`, each `(name, rows)`.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen or in a dtype the backend cannot read.
    pub fn load(l: &Loader, prefix: &str, parts: &[(&str, usize)], cols: usize, bias: bool) -> Result<Self> {
        let named = |suffix: &str| parts.iter().map(|(n, rows)| (format!("{prefix}.{n}{suffix}"), *rows)).collect::<Vec<_>>();
        let weight = l.matrix(&named(""), cols)?;
        let bias = if bias { Some(l.vector(&named(".bias"))?) } else { None };
        Ok(Self { weight, bias })
    }

    /// `x: [tokens, in]` → `out: [tokens, out]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&self, step: &Step, x: &Tensor, out: &Tensor) -> Result<()> {
        Ok(step.backend.linear(&ops::Linear { x, weight: &self.weight, bias: self.bias.as_ref(), out })?)
    }
}

/// The embedding table and the output head, which may be one tensor.
#[derive(Debug)]
pub struct Head {
    table: PreparedWeight,
    head: Option<Linear>,
    scale: f32,
    softcap: Option<f32>,
}

impl Head {
    /// `scale` multiplies embeddings; `softcap` bounds logits.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen or in a dtype the backend cannot read.
    pub fn load(l: &Loader, [vocab, hidden]: [usize; 2], tied: bool, scale: f32, softcap: Option<f32>) -> Result<Self> {
        let table = l.matrix(&[("model.embed_tokens".into(), vocab)], hidden)?;
        let head = if tied { None } else { Some(Linear { weight: l.matrix(&[("lm_head".into(), vocab)], hidden)?, bias: None }) };
        Ok(Self { table, head, scale, softcap })
    }

    /// Fills the residual stream from this step's token ids.
    ///
    /// # Errors
    /// When the device fails.
    pub fn embed(&self, step: &mut Step) -> Result<()> {
        let residual = step.rows(&step.scratch.residual);
        step.backend.embed(&ops::Embed { ids: &step.batch.tokens, table: &self.table, scale: self.scale, out: &residual })?;
        step.tap(|| "embed".into(), &residual);
        Ok(())
    }

    /// Logits of the rows that the batch asks for, from the normalised last layer.
    ///
    /// # Errors
    /// When the device fails.
    pub fn logits(&self, step: &mut Step, hidden: &Tensor) -> Result<()> {
        let count = step.batch.logit_rows.elements();
        if count == 0 {
            return Ok(());
        }
        let (picked, logits) = (step.scratch.picked.narrow(0, 0, count), step.scratch.logits.narrow(0, 0, count));
        step.backend.gather_rows(&ops::GatherRows { x: hidden, rows: &step.batch.logit_rows, out: &picked })?;
        match &self.head {
            Some(head) => head.forward(step, &picked, &logits)?,
            None => step.backend.linear(&ops::Linear { x: &picked, weight: &self.table, bias: None, out: &logits })?,
        }
        if let Some(cap) = self.softcap {
            step.backend.softcap(&ops::Softcap { x: &logits, cap })?;
        }
        step.tap(|| "logits".into(), &logits);
        Ok(())
    }
}
