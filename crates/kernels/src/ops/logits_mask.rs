//! Biases and bans tokens before one is drawn, in place: `logits[row][t] += bias`, and −∞ where the row's mask has a 0 bit.
//!
//! Rows without either are not touched, so that a step pays for the rows that ask.

use crate::{
    Contract, DType, DTypes, Result, Tensor, host,
    testkit::{Case, Launch, Tolerance},
};

/// What one row asks for, in the form that is uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct LogitsMaskRow {
    /// Row of `LogitsMask::masks`; negative: every token is allowed
    pub mask: i32,
    /// First entry of `LogitsMask::biases`
    pub bias_start: u32,
    pub biases: u32,
    pub padding: u32,
}

impl LogitsMaskRow {
    /// Leaves the logits as they are.
    pub const NONE: Self = Self { mask: -1, bias_start: 0, biases: 0, padding: 0 };
}

/// Added to one logit.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct LogitBias {
    pub token: u32,
    pub bias: f32,
}

/// Arguments of `logits_mask`.
#[derive(Clone, Copy, Debug)]
pub struct LogitsMask<'a> {
    /// `[seqs, vocab]` F32, read and written
    pub logits: &'a Tensor,
    /// `[seqs, size_of::<LogitsMaskRow>()]` U8
    pub rows: &'a Tensor,
    /// `[entries, size_of::<LogitBias>()]` U8; the tokens of a row differ from each other, and those outside the vocabulary are
    /// ignored
    pub biases: Option<&'a Tensor>,
    /// `[masks, ⌈vocab / 32⌉]` I32: bit `t % 32` of word `t / 32` is 1 where token `t` is allowed
    pub masks: Option<&'a Tensor>,
}

impl LogitsMask<'_> {
    /// Words of a mask.
    pub const fn words(vocab: usize) -> usize {
        vocab.div_ceil(32)
    }

    /// # Errors
    /// When an argument breaks the contract.
    pub fn check(&self) -> Result<()> {
        let mut c = Contract::new("logits_mask");
        c.tensor("logits", self.logits, ["seqs", "vocab"], DTypes::F32)?;
        c.define("row_bytes", size_of::<LogitsMaskRow>());
        c.define("bias_bytes", size_of::<LogitBias>());
        c.define("words", Self::words(c.size("vocab")));
        c.tensor("rows", self.rows, ["seqs", "row_bytes"], DTypes::U8)?;
        if let Some(biases) = self.biases {
            c.tensor("biases", biases, ["entries", "bias_bytes"], DTypes::U8)?;
            c.require(biases.is_contiguous(), "biases", "strides", "it must be contiguous")?;
        }
        match self.masks {
            Some(masks) => c.tensor("masks", masks, ["masks", "words"], DTypes::I32),
            None => Ok(()),
        }
    }

    pub(crate) fn reference(&self) -> Result<()> {
        self.check()?;
        let vocab = self.logits.shape()[1];
        let mut logits = host::read(self.logits)?;
        let rows = self.rows_of::<LogitsMaskRow>(self.rows)?;
        let biases = self.biases.map_or(Ok(Vec::new()), |b| self.rows_of::<LogitBias>(b))?;
        let masks = self.masks.map_or(Ok(Vec::new()), host::read_i32)?;
        let masks: Vec<&[i32]> = masks.chunks_exact(Self::words(vocab)).collect();
        for (row, logits) in rows.iter().zip(logits.chunks_exact_mut(vocab)) {
            for LogitBias { token, bias } in biases.iter().skip(row.bias_start as usize).take(row.biases as usize) {
                if let Some(logit) = logits.get_mut(*token as usize) {
                    *logit += f64::from(*bias);
                }
            }
            let Some(mask) = usize::try_from(row.mask).ok().and_then(|m| masks.get(m)) else { continue };
            for (token, logit) in logits.iter_mut().enumerate() {
                if mask[token / 32] >> (token % 32) & 1 == 0 {
                    *logit = f64::NEG_INFINITY;
                }
            }
        }
        host::write(self.logits, &logits)
    }

    fn rows_of<T: bytemuck::AnyBitPattern>(&self, t: &Tensor) -> Result<Vec<T>> {
        let mut bytes = vec![0; t.bytes()];
        host::read_bytes(t, &mut bytes)?;
        Ok(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect())
    }
}

pub(super) fn cases() -> Vec<Case> {
    [(1, 33, false), (7, 32, false), (5, 5000, false), (3, 40_003, false), (3, 1027, true), (256, 151_936, false)]
        .into_iter()
        .map(|(seqs, vocab, no_masks)| {
            let name = format!("seqs={seqs} vocab={vocab}{}", if no_masks { " biases alone" } else { "" });
            let case = Case::new("logits_mask", name, Tolerance::EXACT, move |i| {
                let b = i.backend();
                let logits = i.normal_f32_scaled(&[seqs, vocab], 3.0)?;
                let words = LogitsMask::words(vocab);
                // Every third row has no mask, every second one has biases, among them one outside the vocabulary.
                let rows: Vec<LogitsMaskRow> = (0..seqs as u32)
                    .map(|n| LogitsMaskRow {
                        mask: if n % 3 == 1 { -1 } else { (seqs as u32 - 1 - n) as i32 },
                        bias_start: 5 * n,
                        biases: 5 * (1 - n % 2),
                        padding: 0,
                    })
                    .collect();
                let biases: Vec<LogitBias> = (0..5 * seqs)
                    .map(|n| LogitBias { token: if n % 5 == 4 { u32::MAX } else { (n * 31 % vocab) as u32 }, bias: n as f32 - 9.25 })
                    .collect();
                let masks: Vec<i32> = (0..(seqs * words) as u32)
                    .map(|n| if n % 7 == 3 { -1 } else { (n.wrapping_mul(0x9E37_79B9) ^ (n >> 3)) as i32 })
                    .collect();
                let masks = b.tensor_i32(&[seqs, words], &masks)?;
                let bytes = |rows: &[u8], width: usize| -> Result<Tensor> {
                    let t = b.zeros(DType::U8, &[rows.len() / width, width])?;
                    b.upload(&t, rows)?;
                    Ok(t)
                };
                let rows = bytes(bytemuck::cast_slice(&rows), size_of::<LogitsMaskRow>())?;
                let biases = bytes(bytemuck::cast_slice(&biases), size_of::<LogitBias>())?;
                let (backend, out) = (b.clone(), logits.clone());
                let run = move || {
                    let masks = (!no_masks).then_some(&masks);
                    backend.logits_mask(&LogitsMask { logits: &logits, rows: &rows, biases: Some(&biases), masks })
                };
                // A mask reads its words and writes what it bans.
                Ok(Launch::new(run).output("logits", &out).bytes(4 * seqs * (words + vocab / 2) * 2 / 3))
            });
            if vocab > 100_000 { case.perf_only() } else { case }
        })
        .collect()
}
