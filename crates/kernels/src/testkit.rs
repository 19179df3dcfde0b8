//! One case table for every backend: correctness against the scalar reference, speed, and what is supported.

mod no_device;

use std::{
    fmt::Write as _,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{Backend, DType, Error, HostBytes, PreparedWeight, ReferenceBackend, Result, Tensor, Weight, WeightPart, ops, quant};

pub use no_device::NoDevice;

/// How far a result may be from the reference: two measures, because a bound that catches one wrong element lets a
/// small error in all of them pass, and the other way round.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// F32 activations
    f32: Bound,
    /// F16 or BF16 activations
    half: Bound,
    /// `linear` that rounds activations to 8 bits
    int8: Bound,
}

#[derive(Clone, Copy, Debug)]
struct Bound {
    /// Largest `|got − want| / (|want| + rms(want))`
    max: f64,
    /// `Σ(got − want)² / Σ want²`
    nmse: f64,
}

impl Tolerance {
    /// The same bits.
    pub const EXACT: Self = Self::same(Bound { max: 0.0, nmse: 0.0 }, Bound { max: 0.0, nmse: 0.0 });
    /// A handful of roundings per element.
    pub const ELEMENTWISE: Self = Self::same(Bound { max: 4e-6, nmse: 1e-12 }, Bound { max: 1e-2, nmse: 1e-5 });
    /// As [`Tolerance::ELEMENTWISE`], stored in 16 bits: where F32 differs in its last place, the rounding may go the other way.
    pub const STORED: Self = Self::same(Bound { max: 8e-3, nmse: 2e-9 }, Self::ELEMENTWISE.half);
    /// Sums of thousands of products.
    pub const MATMUL: Self = Self::same(Bound { max: 2e-5, nmse: 1e-11 }, Bound { max: 2e-2, nmse: 2e-5 });
    /// As [`Tolerance::MATMUL`], where the backend may round activations to 8 bits with one scale per 32 elements: on
    /// normal data that alone is an NMSE of 2.4e-5.
    pub const MATMUL_PACKED: Self = Self { int8: Bound { max: 6e-2, nmse: 6e-5 }, ..Self::MATMUL };
    /// The product of two [`Tolerance::MATMUL`] results.
    pub const GATED: Self = Self::same(Bound { max: 4e-5, nmse: 2e-11 }, Bound { max: 4e-2, nmse: 4e-5 });
    /// The product of two [`Tolerance::MATMUL_PACKED`] results.
    pub const GATED_PACKED: Self = Self { int8: Bound { max: 1.2e-1, nmse: 2e-4 }, ..Self::GATED };
    /// Probabilities from an exponential, and values read from a half-precision cache.
    pub const ATTENTION: Self = Self::same(Bound { max: 2e-5, nmse: 1e-11 }, Bound { max: 2e-2, nmse: 5e-5 });

    /// As [`Tolerance::ATTENTION`], of keys and values that are rounded on their way: F32 may round the other way.
    pub const ATTENTION_STORED: Self = Self::same(Self::STORED.f32, Self::ATTENTION.half);

    const fn same(f32: Bound, half: Bound) -> Self {
        Self { f32, half, int8: f32 }
    }

    fn on(&self, backend: &dyn Backend) -> Bound {
        if backend.activation_dtype() != DType::F32 {
            self.half
        } else if backend.quantizes_activations() {
            self.int8
        } else {
            self.f32
        }
    }
}

/// One launch of one operation with one set of shapes.
pub struct Case {
    pub op: &'static str,
    pub name: String,
    tolerance: Tolerance,
    perf_only: bool,
    build: Build,
}

type Build = Box<dyn Fn(&mut Inputs) -> Result<Launch>>;

impl Case {
    pub fn new(op: &'static str, name: String, tolerance: Tolerance, build: impl Fn(&mut Inputs) -> Result<Launch> + 'static) -> Self {
        Self { op, name, tolerance, perf_only: false, build: Box::new(build) }
    }

    /// A case of real size, which [`perf`] runs but [`test`] does not: the reference would take too long.
    #[must_use]
    pub fn perf_only(mut self) -> Self {
        self.perf_only = true;
        self
    }

    fn build(&self, backend: &Arc<dyn Backend>, activations: DType) -> Result<Launch> {
        (self.build)(&mut Inputs { backend: backend.clone(), activations, state: 0x9E37_79B9_7F4A_7C15 })
    }
}

/// A case made ready on one backend.
pub struct Launch {
    run: Box<dyn Fn() -> Result<()>>,
    outputs: Vec<Output>,
    bytes: usize,
    flops: usize,
}

struct Output {
    name: &'static str,
    tensor: Tensor,
    columns: Option<Range<usize>>,
}

impl Output {
    fn read(&self, backend: &dyn Backend) -> Result<Vec<f64>> {
        let values = read(backend, &self.tensor)?;
        let Some(columns) = &self.columns else { return Ok(values) };
        Ok(values.chunks_exact(self.tensor.shape()[1]).flat_map(|row| row[columns.clone()].to_vec()).collect())
    }
}

impl Launch {
    pub fn new(run: impl Fn() -> Result<()> + 'static) -> Self {
        Self { run: Box::new(run), outputs: Vec::new(), bytes: 0, flops: 0 }
    }

    /// A tensor to compare after the launch.
    #[must_use]
    pub fn output(mut self, name: &'static str, tensor: &Tensor) -> Self {
        self.outputs.push(Output { name, tensor: tensor.clone(), columns: None });
        self
    }

    /// Columns of a matrix to compare after the launch, when the others are undefined.
    #[must_use]
    pub fn output_columns(mut self, name: &'static str, matrix: &Tensor, columns: Range<usize>) -> Self {
        self.outputs.push(Output { name, tensor: matrix.clone(), columns: Some(columns) });
        self
    }

    /// Bytes the launch must at least move.
    #[must_use]
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    #[must_use]
    pub fn flops(mut self, flops: usize) -> Self {
        self.flops = flops;
        self
    }
}

/// Makes the same pseudo-random inputs on every backend.
pub struct Inputs {
    backend: Arc<dyn Backend>,
    activations: DType,
    state: u64,
}

impl Inputs {
    pub fn backend(&self) -> Arc<dyn Backend> {
        self.backend.clone()
    }

    /// An output in the activation dtype under test, filled with NaN so that an element nobody wrote is seen.
    ///
    /// # Errors
    /// When memory is short.
    pub fn activations(&mut self, shape: &[usize]) -> Result<Tensor> {
        self.values(self.activations, shape, |_| f64::NAN)
    }

    /// Standard normal values in the activation dtype.
    ///
    /// # Errors
    /// When memory is short.
    pub fn normal(&mut self, shape: &[usize]) -> Result<Tensor> {
        self.normal_as(self.activations, shape, 1.0)
    }

    /// Normal values of standard deviation `scale` in the activation dtype.
    ///
    /// # Errors
    /// When memory is short.
    pub fn normal_scaled(&mut self, shape: &[usize], scale: f64) -> Result<Tensor> {
        self.normal_as(self.activations, shape, scale)
    }

    /// Standard normal values in F32.
    ///
    /// # Errors
    /// When memory is short.
    pub fn normal_f32(&mut self, shape: &[usize]) -> Result<Tensor> {
        self.normal_as(DType::F32, shape, 1.0)
    }

    /// Normal values of standard deviation `scale` in F32.
    ///
    /// # Errors
    /// When memory is short.
    pub fn normal_f32_scaled(&mut self, shape: &[usize], scale: f64) -> Result<Tensor> {
        self.normal_as(DType::F32, shape, scale)
    }

    /// Normal values of standard deviation `scale`. They repeat after a million, which is soon made.
    ///
    /// # Errors
    /// When memory is short.
    pub fn normal_as(&mut self, dtype: DType, shape: &[usize], scale: f64) -> Result<Tensor> {
        let unique = shape.iter().product::<usize>().clamp(1, 1 << 20);
        let normal: Vec<f64> = (0..unique).map(|_| next_normal(&mut self.state) * scale).collect();
        self.values(dtype, shape, |n| normal[n % unique])
    }

    /// A contiguous tensor of `f(index)`.
    ///
    /// # Errors
    /// When memory is short.
    pub fn values(&self, dtype: DType, shape: &[usize], mut f: impl FnMut(usize) -> f64) -> Result<Tensor> {
        let t = self.backend.zeros(dtype, shape)?;
        let values: Vec<f32> = (0..t.elements()).map(|n| f(n) as f32).collect();
        let bytes: Vec<u8> = match dtype {
            DType::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
            DType::BF16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        self.backend.upload(&t, &bytes)?;
        Ok(t)
    }

    /// A weight of normal values quantised part by part: `parts` are (rows, dtype).
    ///
    /// # Errors
    /// When the backend cannot prepare it.
    pub fn weight(&mut self, parts: &[(usize, DType)], cols: usize) -> Result<PreparedWeight> {
        let name = "weight".to_owned();
        let mut made = Vec::new();
        for &(rows, dtype) in parts {
            let values: Vec<f32> = (0..rows * cols).map(|_| next_normal(&mut self.state) as f32).collect();
            let data = quant::quantize(dtype, &values).map_err(|e| Error::Weight { name: name.clone(), reason: e.to_string() })?;
            made.push(WeightPart { dtype, rows, data: HostBytes::from_vec(data) });
        }
        self.backend.prepare(Weight { name, cols, parts: made })
    }
}

/// What [`test`] found for one case.
#[derive(Debug)]
pub struct Outcome {
    pub op: &'static str,
    pub name: String,
    pub result: Result<(), String>,
}

/// Runs every case whose `op name` contains `filter` and compares with the reference.
pub fn test(backend: &Arc<dyn Backend>, filter: &str) -> Vec<Outcome> {
    selected(filter)
        .filter(|case| !case.perf_only)
        .map(|case| {
            let result = compare(&case, backend);
            Outcome { op: case.op, name: case.name, result }
        })
        .collect()
}

/// Runs [`test`] and panics with every failure, for use in `#[test]` functions.
///
/// # Panics
/// When a case fails, or when the filter selects none.
pub fn assert_all(backend: &Arc<dyn Backend>, filter: &str) {
    let outcomes = test(backend, filter);
    assert!(!outcomes.is_empty(), "no case matches `{filter}`");
    let mut report = String::new();
    for o in &outcomes {
        if let Err(e) = &o.result {
            let _ = writeln!(report, "{} [{}]: {e}", o.op, o.name);
        }
    }
    assert!(report.is_empty(), "{} of {} cases, failures:\n{report}", report.lines().count(), outcomes.len());
}

/// Speed of one case.
#[derive(Debug)]
pub struct Timing {
    pub op: &'static str,
    pub name: String,
    pub median: Duration,
    pub gb_per_s: f64,
    pub gflop_per_s: f64,
}

/// [`perf`] runs a case as often as fits into this between two looks at the clock.
const BATCH: Duration = Duration::from_millis(2);

/// Times every case whose `op name` contains `filter`, each for about `budget`.
///
/// # Errors
/// When a case cannot be built or run.
pub fn perf(backend: &Arc<dyn Backend>, filter: &str, budget: Duration) -> Result<Vec<Timing>> {
    let mut timings = Vec::new();
    for case in selected(filter) {
        let launch = case.build(backend, backend.activation_dtype())?;
        let run = |times: u32| -> Result<Duration> {
            let start = Instant::now();
            (0..times).try_for_each(|_| (launch.run)())?;
            backend.synchronize()?;
            Ok(start.elapsed() / times)
        };
        run(1)?;
        // Several at once, so that the wait for the device is shared.
        let at_once = (BATCH.as_nanos() / run(1)?.as_nanos().max(1)).clamp(1, 100) as u32;
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.is_empty() || start.elapsed() < budget {
            times.push(run(at_once)?);
        }
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        let per_s = |n: usize| n as f64 / median.as_secs_f64().max(1e-12) / 1e9;
        timings.push(Timing { op: case.op, name: case.name, median, gb_per_s: per_s(launch.bytes), gflop_per_s: per_s(launch.flops) });
    }
    Ok(timings)
}

fn selected(filter: &str) -> impl Iterator<Item = Case> {
    ops::cases().into_iter().filter(move |c| format!("{} {}", c.op, c.name).contains(filter))
}

fn compare(case: &Case, backend: &Arc<dyn Backend>) -> Result<(), String> {
    let activations = backend.activation_dtype();
    let reference: Arc<dyn Backend> = Arc::new(ReferenceBackend);
    let run = |backend: &Arc<dyn Backend>| -> Result<Vec<(&'static str, Vec<f64>)>> {
        let launch = case.build(backend, activations)?;
        (launch.run)()?;
        launch.outputs.iter().map(|o| Ok((o.name, o.read(&**backend)?))).collect()
    };
    let want = run(&reference).map_err(|e| format!("reference: {e}"))?;
    let got = run(backend).map_err(|e| e.to_string())?;
    let bound = case.tolerance.on(&**backend);
    for ((name, want), (_, got)) in want.iter().zip(&got) {
        // Banned tokens are −∞ on both sides; a bound relative to that would let everything pass.
        let finite: Vec<f64> = want.iter().copied().filter(|v| v.is_finite()).collect();
        let rms = (finite.iter().map(|v| v * v).sum::<f64>() / finite.len().max(1) as f64).sqrt();
        let (mut worst, mut at, mut square) = (0.0, 0, 0.0);
        for (n, (w, g)) in want.iter().zip(got).enumerate() {
            let error = if g == w { 0.0 } else { (g - w).abs() };
            square += error * error;
            let relative = if error == 0.0 { 0.0 } else { error / (w.abs() + rms) };
            if relative > worst || relative.is_nan() {
                (worst, at) = (relative, n);
            }
        }
        let nmse = if square == 0.0 { 0.0 } else { square / (rms * rms * finite.len() as f64) };
        if !(worst <= bound.max && nmse <= bound.nmse) {
            return Err(format!(
                "`{name}`: element {at} is {:e}, want {:e}: error {worst:.2e} (≤ {:.1e}), NMSE {nmse:.2e} (≤ {:.1e})",
                got[at], want[at], bound.max, bound.nmse
            ));
        }
    }
    Ok(())
}

fn read(backend: &dyn Backend, t: &Tensor) -> Result<Vec<f64>> {
    if t.dtype() == DType::I32 {
        return Ok(backend.read_i32(t)?.into_iter().map(f64::from).collect());
    }
    Ok(backend.read_f32(t)?.into_iter().map(f64::from).collect())
}

/// Sum of twelve uniform numbers: normal enough, and the same on every machine.
fn next_normal(state: &mut u64) -> f64 {
    (0..12).map(|_| next_uniform(state)).sum::<f64>() - 6.0
}

fn next_uniform(state: &mut u64) -> f64 {
    // SplitMix64 (Steele, Lea, Flood 2014).
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}
