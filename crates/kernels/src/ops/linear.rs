//! `out = x · wᵀ + bias`: every projection of every model.

use crate::{
    Contract, DType, DTypes, PreparedWeight, Result, Tensor, host,
    reference::ReferenceWeight,
    testkit::{Case, Launch, Tolerance},
};

/// Arguments of `linear`.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// `[tokens, in]` float, rows may be strided
    pub x: &'a Tensor,
    /// `[out, in]` any weight dtype, row ranges may differ in dtype
    pub weight: &'a PreparedWeight,
    /// `[out]` F32
    pub bias: Option<&'a Tensor>,
    /// `[tokens, out]` float
    pub out: &'a Tensor,
}

impl Linear<'_> {
    /// # Errors
    /// When an argument breaks the contract.
    pub fn check(&self) -> Result<()> {
        let mut c = Contract::new("linear");
        c.tensor("x", self.x, ["tokens", "in"], DTypes::FLOAT)?;
        c.weight("weight", self.weight, ["out", "in"])?;
        if let Some(bias) = self.bias {
            c.tensor("bias", bias, ["out"], DTypes::F32)?;
        }
        c.tensor("out", self.out, ["tokens", "out"], DTypes::FLOAT)
    }

    pub(crate) fn reference(&self) -> Result<()> {
        self.check()?;
        let (weight, cols) = (ReferenceWeight::of(self.weight)?, self.weight.cols());
        let bias = self.bias.map(host::read).transpose()?;
        let mut out = Vec::with_capacity(self.out.elements());
        for x in host::read(self.x)?.chunks_exact(cols) {
            for (n, row) in weight.chunks_exact(cols).enumerate() {
                let dot: f64 = x.iter().zip(row).map(|(a, &b)| a * f64::from(b)).sum();
                out.push(dot + bias.as_ref().map_or(0.0, |b| b[n]));
            }
        }
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
    for dtype in [DType::F32, DType::BF16, DType::Q4_K, DType::Q8_0, DType::Q4_0] {
        cases.push(case(format!("{dtype} m=130 n=200 k=1280"), 130, &[(200, dtype)], 1280, true));
    }
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
    let fused = [(96, DType::Q4_K), (32, DType::Q4_K), (32, DType::Q6_K)];
    cases.push(case("fused q,k,v of mixed dtypes m=1".into(), 1, &fused, 512, true));
    cases.push(case("fused q,k,v of mixed dtypes m=19".into(), 19, &fused, 512, true));
    cases
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
        Ok(Launch::new(move || b.linear(&Linear { x: &x, weight: &weight, bias: None, out: &o })).output("out", &out))
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
        let run = move || b.linear(&Linear { x: &x, weight: &weight, bias: bias.as_ref(), out: &o });
        Ok(Launch::new(run).output("out", &out).bytes(bytes).flops(2 * tokens * rows * cols))
    })
}
