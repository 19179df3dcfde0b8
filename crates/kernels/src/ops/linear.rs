//! `out = x · wᵀ + bias`: every projection of every model, optionally with the norm before it and what follows it.
//!
//! The fused forms are what a decoder block is made of: norm + qkv, output projection + residual, norm + gate and up +
//! activation, down projection + residual. A backend that has no kernel for one calls [`Linear::unfused`].

use super::{ActMul, Activation, RmsNorm, Sample, rms_norm::normalize, sample::argmax};
use crate::{
    Backend, Contract, DType, DTypes, PreparedWeight, Result, Tensor, host,
    reference::ReferenceWeight,
    testkit::{Case, Launch, Tolerance},
};

/// Arguments of `linear`. `out` shares no memory with the other tensors.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// `[tokens, in]` float, rows may be strided
    pub x: &'a Tensor,
    /// Applied to each row of `x` first
    pub norm: Option<Norm<'a>>,
    /// `[out, in]` any weight dtype, row ranges may differ in dtype
    pub weight: &'a PreparedWeight,
    /// `[out]` F32
    pub bias: Option<&'a Tensor>,
    pub epilogue: Epilogue<'a>,
    /// `[tokens, out]` float; with [`Epilogue::ActMul`] `[tokens, out / 2]`, with [`Epilogue::Argmax`] `[tokens]` I32
    pub out: &'a Tensor,
    /// Attention of a decode step reads `out` next, and may begin to read the cache meanwhile. No result depends on it.
    pub before_decode: bool,
}

/// RMSNorm of the rows of `x`, as [`RmsNorm`] defines it.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// `[in]` F32
    pub weight: &'a Tensor,
    pub eps: f32,
    /// `[tokens, in]` float: for the normed rows where a backend needs them in memory; undefined afterwards
    pub normed: &'a Tensor,
}

/// What happens to `y = x · wᵀ + bias`.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// `out = y`
    Store,
    /// `out += y`: the residual addition
    Add,
    /// `out = act(gate) · up`, where the first half of the weight's rows makes the gate and the second half up
    ActMul {
        activation: Activation,
        /// `[tokens, out]` float: for `y` where a backend needs it in memory; undefined afterwards
        gate_up: &'a Tensor,
    },
    /// `out = argmax(y)`, the lowest index on a tie: the output head of a greedy step
    Argmax {
        /// `[tokens, out]` F32: for `y` where a backend needs it in memory; undefined afterwards
        logits: &'a Tensor,
    },
}

impl<'a> Linear<'a> {
    /// `out = x · wᵀ`.
    pub fn new(x: &'a Tensor, weight: &'a PreparedWeight, out: &'a Tensor) -> Self {
        Self { x, norm: None, weight, bias: None, epilogue: Epilogue::Store, out, before_decode: false }
    }

    /// # Errors
    /// When an argument breaks the contract.
    pub fn check(&self) -> Result<()> {
        let mut c = Contract::new("linear");
        c.tensor("x", self.x, ["tokens", "in"], DTypes::FLOAT)?;
        if let Some(norm) = &self.norm {
            c.tensor("norm.weight", norm.weight, ["in"], DTypes::F32)?;
            c.tensor("norm.normed", norm.normed, ["tokens", "in"], DTypes::FLOAT)?;
        }
        c.weight("weight", self.weight, ["out", "in"])?;
        if let Some(bias) = self.bias {
            c.tensor("bias", bias, ["out"], DTypes::F32)?;
        }
        match self.epilogue {
            Epilogue::Store | Epilogue::Add => c.tensor("out", self.out, ["tokens", "out"], DTypes::FLOAT),
            Epilogue::ActMul { gate_up, .. } => {
                let rows = c.size("out");
                c.require(rows.is_multiple_of(2), "weight", rows, "its rows must be as many gates as ups")?;
                c.define("out / 2", rows / 2);
                c.tensor("epilogue.gate_up", gate_up, ["tokens", "out"], DTypes::FLOAT)?;
                c.tensor("out", self.out, ["tokens", "out / 2"], DTypes::FLOAT)
            }
            Epilogue::Argmax { logits } => {
                c.tensor("epilogue.logits", logits, ["tokens", "out"], DTypes::F32)?;
                c.tensor("out", self.out, ["tokens"], DTypes::I32)
            }
        }
    }

    /// Whether this is a product alone or added to `out`: what [`Linear::unfused`] ends in.
    pub fn is_plain(&self) -> bool {
        self.norm.is_none() && matches!(self.epilogue, Epilogue::Store | Epilogue::Add)
    }

    /// Issues this operation in two: the logits and their argmax, else the norm and the rest, else the product and the activation.
    /// Not for those that are [`Linear::is_plain`].
    ///
    /// # Errors
    /// When an argument breaks the contract or the device fails.
    pub fn unfused(&self, backend: &(impl Backend + ?Sized)) -> Result<()> {
        if let Epilogue::Argmax { logits } = self.epilogue {
            backend.linear(&Self { epilogue: Epilogue::Store, out: logits, ..*self })?;
            return backend.sample(&Sample { logits, params: None, counts: None, out: self.out });
        }
        if let Some(Norm { weight, eps, normed }) = self.norm {
            backend.rms_norm(&RmsNorm { x: self.x, weight, eps, out: normed })?;
            return backend.linear(&Self { x: normed, norm: None, ..*self });
        }
        let Epilogue::ActMul { activation, gate_up } = self.epilogue else { return backend.linear(self) };
        backend.linear(&Self { epilogue: Epilogue::Store, out: gate_up, ..*self })?;
        backend.act_mul(&ActMul { activation, gate_up, out: self.out })
    }

    pub(crate) fn reference(&self) -> Result<()> {
        self.check()?;
        let (weight, cols, rows) = (ReferenceWeight::of(self.weight)?, self.weight.cols(), self.weight.rows());
        let bias = self.bias.map(host::read).transpose()?;
        let mut x = host::read(self.x)?;
        if let Some(norm) = &self.norm {
            let weight = host::read(norm.weight)?;
            x.chunks_exact_mut(cols).for_each(|row| normalize(row, &weight, norm.eps));
        }
        let mut y = Vec::with_capacity(self.x.shape()[0] * rows);
        for x in x.chunks_exact(cols) {
            for (n, row) in weight.chunks_exact(cols).enumerate() {
                let dot: f64 = x.iter().zip(row).map(|(a, &b)| a * f64::from(b)).sum();
                y.push(dot + bias.as_ref().map_or(0.0, |b| b[n]));
            }
        }
        let out = match self.epilogue {
            Epilogue::Store => y,
            Epilogue::Add => y.into_iter().zip(host::read(self.out)?).map(|(y, out)| out + y).collect(),
            Epilogue::ActMul { activation, .. } => y
                .chunks_exact(rows)
                .flat_map(|row| row[..rows / 2].iter().zip(&row[rows / 2..]).map(|(&gate, &up)| activation.apply(gate) * up))
                .collect(),
            Epilogue::Argmax { .. } => y.chunks_exact(rows).map(|row| argmax(row) as f64).collect(),
        };
        host::write(self.out, &out)
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in DType::weights() {
        let width = dtype.block_len().max(8);
        for (tokens, rows, cols) in
            [(1, 5, width), (1, 64, 8 * width), (2, 33, 3 * width), (4, 16, width), (9, 24, 5 * width), (67, 71, 2 * width)]
        {
            cases.push(case(format!("{dtype} m={tokens} n={rows} k={cols}"), tokens, &[(rows, dtype)], cols, false));
        }
    }
    // Shapes where full tiles, row tails and token tails of blocked kernels all occur.
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::Q4_K, DType::Q8_0, DType::Q4_0] {
        cases.push(case(format!("{dtype} m=130 n=200 k=1280"), 130, &[(200, dtype)], 1280, true));
    }
    // More tokens than kernels for batches take.
    cases.push(case("BF16 m=300 n=72 k=192".into(), 300, &[(72, DType::BF16)], 192, false));
    for odd in [1, 7, 100] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            cases.push(case(format!("{dtype} m=3 n=10 k={odd}"), 3, &[(10, dtype)], odd, true));
        }
    }
    // A few channels far above the rest, as models have them: more than a backend may treat on their own.
    for dtype in DType::weights().filter(|d| d.is_block()) {
        for tokens in [1, 4, 19] {
            cases.push(spiked(format!("{dtype} m={tokens} with outliers"), tokens, dtype));
        }
    }
    let qkv = [(96, DType::Q4_K), (32, DType::Q4_K), (32, DType::Q6_K)];
    cases.push(case("fused q,k,v of mixed dtypes m=1".into(), 1, &qkv, 512, true));
    cases.push(case("fused q,k,v of mixed dtypes m=19".into(), 19, &qkv, 512, true));
    let block = [(DType::F32, 64), (DType::BF16, 576), (DType::F16, 96), (DType::Q8_0, 320), (DType::Q4_K, 512), (DType::Q6_K, 256)];
    for (dtype, cols) in block {
        for tokens in [1, 3, 21, 130] {
            for form in [Form::NORM, Form::ADD, Form::GATE, Form::NORM_GATE, Form::NORM_ADD] {
                cases.push(fused(tokens, &[(48, dtype), (48, dtype)], cols, form));
            }
        }
        cases.push(fused(5, &[(48, dtype), (48, dtype)], cols, Form { bias: true, ..Form::NORM_GATE }));
        cases.push(fused(2, &[(33, dtype)], cols, Form { bias: true, ..Form::ADD }));
    }
    for tokens in [1, 2, 3, 7, 16, 19] {
        cases.push(fused(tokens, &qkv, 512, Form { bias: true, ..Form::NORM }));
        cases.push(fused(tokens, &[(64, DType::Q5_0), (33, DType::Q8_0), (16, DType::IQ4_NL)], 896, Form::NORM_ADD));
    }
    for dtype in [DType::BF16, DType::F16] {
        for (tokens, rows, cols, normed) in
            [(1, 500, 256, true), (40, 1000, 256, true), (130, 3000, 512, false), (257, 2056, 64, true), (33, 37, 8, false)]
        {
            cases.push(likeliest(tokens, rows, dtype, cols, normed));
        }
    }
    // Few rows of many columns, which a GPU divides among blocks, and many rows of few, for more tokens than one tile has.
    for dtype in [DType::BF16, DType::F16] {
        cases.push(fused(70, &[(200, dtype)], 3008, Form::ADD));
        cases.push(fused(130, &[(72, dtype)], 2744, Form { bias: true, ..Form::NORM }));
    }
    cases.push(fused(200, &[(3072, DType::BF16), (3072, DType::BF16)], 200, Form::GATE));
    // Columns that a GPU divides among blocks, and more than their memory holds at once.
    for dtype in [DType::Q8_0, DType::Q4_K, DType::Q6_K] {
        for tokens in [4, 8, 16] {
            cases.push(fused(tokens, &[(48, dtype), (48, dtype)], 4608, Form::NORM_GATE));
            cases.push(fused(tokens, &[(80, dtype)], 14336, Form::ADD));
        }
    }
    cases
}

/// What is fused with a product.
#[derive(Clone, Copy, Debug)]
struct Form {
    norm: bool,
    add: bool,
    gate: Option<Activation>,
    bias: bool,
}

impl Form {
    const NORM: Self = Self { norm: true, add: false, gate: None, bias: false };
    const ADD: Self = Self { norm: false, add: true, ..Self::NORM };
    const NORM_ADD: Self = Self { add: true, ..Self::NORM };
    const GATE: Self = Self { norm: false, gate: Some(Activation::GeluTanh), ..Self::NORM };
    const NORM_GATE: Self = Self { gate: Some(Activation::Silu), ..Self::NORM };

    fn tolerance(self, packed: bool) -> Tolerance {
        match (packed, self.gate) {
            (false, None) => Tolerance::MATMUL,
            (true, None) => Tolerance::MATMUL_PACKED,
            (false, Some(_)) => Tolerance::GATED,
            (true, Some(_)) => Tolerance::GATED_PACKED,
        }
    }
}

/// One fused form. `x` is a column range of wider rows, as the attention output of some backends is.
fn fused(tokens: usize, parts: &[(usize, DType)], cols: usize, form: Form) -> Case {
    let parts = parts.to_vec();
    let name = format!("{parts:?} m={tokens} k={cols} {form:?}");
    Case::new("linear", name, form.tolerance(parts.iter().any(|(_, d)| d.is_block())), move |i| {
        let rows: usize = parts.iter().map(|p| p.0).sum();
        let weight = i.weight(&parts, cols)?;
        let x = i.normal_scaled(&[tokens, cols + 32], 3.0)?.narrow(1, 16, cols);
        // Around 1, as in models.
        let norm_weight = i.values(DType::F32, &[cols], |n| 0.5 + (n * 7 % 11) as f64 / 10.0)?;
        let normed = i.activations(&[tokens, cols])?;
        let bias = if form.bias { Some(i.normal_f32_scaled(&[rows], 20.0)?) } else { None };
        let gate_up = i.activations(&[tokens, rows])?;
        let out = match form {
            Form { gate: Some(_), .. } => i.activations(&[tokens, rows / 2])?,
            Form { add: true, .. } => i.normal_scaled(&[tokens, rows], 20.0)?,
            _ => i.activations(&[tokens, rows])?,
        };
        let bytes = parts.iter().map(|(r, d)| d.bytes(r * cols).unwrap_or(0)).sum::<usize>() + x.bytes() + out.bytes();
        let (b, o) = (i.backend(), out.clone());
        let run = move || {
            let epilogue = match form {
                Form { gate: Some(activation), .. } => Epilogue::ActMul { activation, gate_up: &gate_up },
                Form { add: true, .. } => Epilogue::Add,
                _ => Epilogue::Store,
            };
            let norm = form.norm.then_some(Norm { weight: &norm_weight, eps: 1e-5, normed: &normed });
            b.linear(&Linear { norm, bias: bias.as_ref(), epilogue, ..Linear::new(&x, &weight, &o) })
        };
        Ok(Launch::new(run).output("out", &out).bytes(bytes).flops(2 * tokens * rows * cols))
    })
}

/// The largest of each token's results, with a norm in front and without.
fn likeliest(tokens: usize, rows: usize, dtype: DType, cols: usize, normed: bool) -> Case {
    let name = format!("{dtype} m={tokens} n={rows} k={cols} argmax{}", if normed { " of the normed" } else { "" });
    Case::new("linear", name, Tolerance::EXACT, move |i| {
        let weight = i.weight(&[(rows, dtype)], cols)?;
        // One column each, so that no rounding changes which result is the largest; some are equal.
        let column = |token: usize| 37 * token % cols;
        let x = i.activations(&[tokens, cols])?;
        let x = i.values(x.dtype(), &[tokens, cols], |n| if n % cols == column(n / cols) { 1.0 + (n % 3) as f64 } else { 0.0 })?;
        let norm_weight = i.values(DType::F32, &[cols], |n| 0.5 + (n * 7 % 11) as f64 / 10.0)?;
        let (scratch, logits) = (i.activations(&[tokens, cols])?, i.normal_f32(&[tokens, rows])?);
        let out = i.backend().zeros(DType::I32, &[tokens])?;
        let (b, o) = (i.backend(), out.clone());
        let run = move || {
            let norm = normed.then_some(Norm { weight: &norm_weight, eps: 1e-5, normed: &scratch });
            b.linear(&Linear { norm, epilogue: Epilogue::Argmax { logits: &logits }, ..Linear::new(&x, &weight, &o) })
        };
        Ok(Launch::new(run).output("out", &out).flops(2 * tokens * rows * cols))
    })
}

fn spiked(name: String, tokens: usize, dtype: DType) -> Case {
    const ROWS: usize = 37;
    const COLS: usize = 512;
    Case::new("linear", name, Tolerance::MATMUL_PACKED, move |i| {
        let weight = i.weight(&[(ROWS, dtype)], COLS)?;
        let (fused, spikes) = (i.normal(&[tokens, COLS])?, [0, 31, 47, 100, 144, 255, 256, 300, 400, 511]);
        let values = i.backend().read_f32(&fused)?;
        // Each token has other spikes; some have more than eight.
        let x = i.values(fused.dtype(), &[tokens, COLS], |n| {
            let spike = spikes.iter().position(|&c| c == n % COLS).filter(|at| (n / COLS + at) % 4 != 3);
            f64::from(values[n]) + spike.map_or(0.0, |at| 40.0 + 5.0 * at as f64)
        })?;
        let out = i.activations(&[tokens, ROWS])?;
        let (b, o) = (i.backend(), out.clone());
        Ok(Launch::new(move || b.linear(&Linear::new(&x, &weight, &o))).output("out", &out))
    })
}

fn case(name: String, tokens: usize, parts: &[(usize, DType)], cols: usize, with_bias: bool) -> Case {
    let parts = parts.to_vec();
    let packed = parts.iter().any(|(_, d)| d.is_block());
    let tolerance = if packed { Tolerance::MATMUL_PACKED } else { Tolerance::MATMUL };
    Case::new("linear", name, tolerance, move |i| {
        let rows: usize = parts.iter().map(|p| p.0).sum();
        let weight = i.weight(&parts, cols)?;
        let x = i.normal(&[tokens, cols])?;
        let bias = if with_bias { Some(i.normal_f32(&[rows])?) } else { None };
        let out = i.activations(&[tokens, rows])?;
        let bytes = parts.iter().map(|(r, d)| d.bytes(r * cols).unwrap_or(0)).sum::<usize>() + x.bytes() + out.bytes();
        let (b, o) = (i.backend(), out.clone());
        let run = move || b.linear(&Linear { bias: bias.as_ref(), before_decode: true, ..Linear::new(&x, &weight, &o) });
        Ok(Launch::new(run).output("out", &out).bytes(bytes).flops(2 * tokens * rows * cols))
    })
}
