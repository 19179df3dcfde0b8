//! Occurrences of tokens, for penalties: one row of device memory for each request that asks for them.

use ferrum_kernels::{Backend, DType, Tensor, ops::Sample};

use crate::error::Result;

/// Everything a request's penalties look at.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub prompt: Vec<u32>,
    pub output: Vec<u32>,
    /// The row that holds it, as far as tokens have been drawn
    row: Option<usize>,
}

impl History {
    pub fn new(prompt: Vec<u32>) -> Self {
        Self { prompt, output: Vec::new(), row: None }
    }
}

/// Rows of occurrences. The first request with penalties allocates them; a row that was given up is made again from its
/// [`History`], so that preemption changes nothing.
#[derive(Debug, Default)]
pub(crate) struct CountRows {
    /// `[rows, vocab]` I32
    tensor: Option<Tensor>,
    free: Vec<usize>,
    staging: Vec<i32>,
}

impl CountRows {
    pub fn tensor(&self) -> Option<&Tensor> {
        self.tensor.as_ref()
    }

    /// The row of a request, filled from its history when it had none.
    ///
    /// # Errors
    /// When memory is short.
    pub fn row(&mut self, backend: &dyn Backend, vocab: usize, history: &mut History) -> Result<i32> {
        if let Some(row) = history.row {
            return Ok(row as i32);
        }
        let (tensor, row) = match (&self.tensor, self.free.pop()) {
            (Some(tensor), Some(row)) => (tensor.clone(), row),
            _ => self.grow(backend, vocab)?,
        };
        self.staging.clear();
        self.staging.resize(vocab, 0);
        let tokens = history.prompt.iter().map(|t| (t, false)).chain(history.output.iter().map(|t| (t, true)));
        for (&token, generated) in tokens {
            if let Some(count) = self.staging.get_mut(token as usize) {
                *count = if generated { *count + 1 } else { *count | Sample::IN_PROMPT };
            }
        }
        backend.upload(&tensor.narrow(0, row, 1), bytemuck::cast_slice(&self.staging))?;
        history.row = Some(row);
        Ok(row as i32)
    }

    /// Takes back the row of a request, if it has one.
    pub fn forget(&mut self, history: &mut History) {
        self.free.extend(history.row.take());
    }

    /// Doubles the rows and returns the first new one.
    fn grow(&mut self, backend: &dyn Backend, vocab: usize) -> Result<(Tensor, usize)> {
        let rows = self.tensor.as_ref().map_or(0, |t| t.shape()[0]);
        let larger = backend.zeros(DType::I32, &[(2 * rows).max(1), vocab])?;
        if let Some(old) = &self.tensor {
            self.staging.resize(rows * vocab, 0);
            backend.download(old, bytemuck::cast_slice_mut(&mut self.staging))?;
            backend.upload(&larger.narrow(0, 0, rows), bytemuck::cast_slice(&self.staging))?;
        }
        self.free.extend(rows + 1..larger.shape()[0]);
        self.tensor = Some(larger.clone());
        Ok((larger, rows))
    }
}
