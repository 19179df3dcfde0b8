//! What requests add to logits and ban from them, gathered for one step.

use ferrum_kernels::{
    Backend, DType, Tensor,
    ops::{LogitBias, LogitsMask, LogitsMaskRow},
};

use crate::{
    error::Result,
    grammar::{Constraint, GrammarError},
};

/// Rows, biases and masks of a step. The first request that has any allocates the device's memory.
#[derive(Debug, Default)]
pub(crate) struct Masks {
    rows: Vec<LogitsMaskRow>,
    biases: Vec<LogitBias>,
    words: Vec<i32>,
    device: Option<Device>,
}

#[derive(Debug)]
struct Device {
    /// `[max_seqs, size_of::<LogitsMaskRow>()]` U8
    rows: Tensor,
    /// `[≥ entries, size_of::<LogitBias>()]` U8
    biases: Tensor,
    /// `[max_seqs, words]` I32
    masks: Tensor,
}

impl Masks {
    pub fn clear(&mut self) {
        self.rows.clear();
        self.biases.clear();
        self.words.clear();
    }

    /// The next row's.
    ///
    /// # Errors
    /// When its grammar cannot go on; the row then allows everything.
    pub fn push(&mut self, vocab: usize, biases: &[LogitBias], constraint: Option<&mut Constraint>) -> Result<(), GrammarError> {
        let words = LogitsMask::words(vocab);
        let (mask, bias_start) = ((self.words.len() / words) as i32, self.biases.len() as u32);
        self.biases.extend_from_slice(biases);
        let row = LogitsMaskRow { bias_start, biases: biases.len() as u32, ..LogitsMaskRow::NONE };
        let filled = constraint.map(|c| c.fill_mask(words, &mut self.words)).transpose();
        self.rows.push(if matches!(filled, Ok(Some(()))) { LogitsMaskRow { mask, ..row } } else { row });
        filled.map(|_| ())
    }

    /// Issues the operation on the step's logits, `[rows, vocab]`.
    ///
    /// # Errors
    /// When memory is short or the device fails.
    pub fn apply(&mut self, backend: &dyn Backend, max_seqs: usize, logits: &Tensor) -> Result<()> {
        let vocab = logits.shape()[1];
        let device = match &mut self.device {
            Some(device) => device,
            none => none.insert(Device {
                rows: backend.zeros(DType::U8, &[max_seqs, size_of::<LogitsMaskRow>()])?,
                biases: bias_tensor(backend, max_seqs)?,
                masks: backend.zeros(DType::I32, &[max_seqs, LogitsMask::words(vocab)])?,
            }),
        };
        if self.biases.len() > device.biases.shape()[0] {
            device.biases = bias_tensor(backend, self.biases.len().next_power_of_two())?;
        }
        let rows = device.rows.narrow(0, 0, self.rows.len());
        let biases = device.biases.narrow(0, 0, self.biases.len());
        let masks = device.masks.narrow(0, 0, self.words.len() / LogitsMask::words(vocab));
        backend.upload(&rows, bytemuck::cast_slice(&self.rows))?;
        let (has_biases, has_masks) = (!self.biases.is_empty(), !self.words.is_empty());
        if has_biases {
            backend.upload(&biases, bytemuck::cast_slice(&self.biases))?;
        }
        if has_masks {
            backend.upload(&masks, bytemuck::cast_slice(&self.words))?;
        }
        let (biases, masks) = (has_biases.then_some(&biases), has_masks.then_some(&masks));
        Ok(backend.logits_mask(&LogitsMask { logits, rows: &rows, biases, masks })?)
    }
}

fn bias_tensor(backend: &dyn Backend, entries: usize) -> Result<Tensor> {
    Ok(backend.zeros(DType::U8, &[entries, size_of::<LogitBias>()])?)
}
