//! Projections, and the embedding table with the output head.

use ferrum_kernels::{Backend, PreparedWeight, Tensor, ops};

use super::RmsNorm;
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

    /// The operation `x: [tokens, in]` → `out: [tokens, out]`.
    pub fn op<'a>(&'a self, x: &'a Tensor, out: &'a Tensor) -> ops::Linear<'a> {
        ops::Linear { bias: self.bias.as_ref(), ..ops::Linear::new(x, &self.weight, out) }
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
        step.backend.embed(&ops::Embed {
            ids: &step.batch.tokens,
            drawn: Some(&step.batch.drawn),
            table: &self.table,
            scale: self.scale,
            out: &residual,
        })?;
        step.tap(|| "embed".into(), &residual);
        Ok(())
    }

    /// Logits of the rows that the batch asks for, or their likeliest tokens: of `x: [tokens, hidden]`, the last layer, normed
    /// by `norm` or already.
    ///
    /// # Errors
    /// When the device fails.
    pub fn logits(&self, step: &mut Step, x: &Tensor, norm: Option<&RmsNorm>) -> Result<()> {
        let count = step.batch.logit_rows.elements();
        if count == 0 {
            return Ok(());
        }
        let [picked, normed, logits] = [&step.scratch.picked, &step.scratch.hidden, &step.scratch.logits].map(|t| t.narrow(0, 0, count));
        // Rows ascend, so that all of them are each in its place.
        let all = count == step.batch.len();
        if !all {
            step.backend.gather_rows(&ops::GatherRows { x, rows: &step.batch.logit_rows, out: &picked })?;
        }
        let x = if all { x } else { &picked };
        let norm = norm.map(|n| n.before(&normed));
        let drawn = step.batch.greedy.then(|| step.batch.drawn.narrow(0, 0, count));
        if let Some(drawn) = &drawn
            && self.softcap.is_none()
        {
            let epilogue = ops::Epilogue::Argmax { logits: &logits };
            return Ok(step.backend.linear(&ops::Linear { norm, epilogue, ..self.op(x, drawn) })?);
        }
        self.project(step.backend, ops::Linear { norm, ..self.op(x, &logits) })?;
        step.tap(|| "logits".into(), &logits);
        match &drawn {
            // Not before the cap: rounded, it makes neighbours equal.
            Some(drawn) => Ok(step.backend.sample(&ops::Sample { logits: &logits, params: None, counts: None, out: drawn })?),
            None => Ok(()),
        }
    }

    /// Logits of normed rows: `states: [rows, hidden]` to `logits: [rows, vocab]` F32.
    ///
    /// # Errors
    /// When the device fails.
    pub fn logits_of(&self, backend: &dyn Backend, states: &Tensor, logits: &Tensor) -> Result<()> {
        self.project(backend, self.op(states, logits))
    }

    fn op<'a>(&'a self, x: &'a Tensor, logits: &'a Tensor) -> ops::Linear<'a> {
        match &self.head {
            Some(head) => head.op(x, logits),
            None => ops::Linear::new(x, &self.table, logits),
        }
    }

    fn project(&self, backend: &dyn Backend, op: ops::Linear) -> Result<()> {
        backend.linear(&op)?;
        if let Some(cap) = self.softcap {
            backend.softcap(&ops::Softcap { x: op.out, cap })?;
        }
        Ok(())
    }
}
