//! Weights that lie in a file give the same bits from there, from panels in memory, and on the way from one to the other.

use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use ferrum_cpu::{CpuBackend, CpuOptions, Simd};
use ferrum_kernels::{
    Backend, DType, HostBytes, Owner, PreparedWeight, Result, Weight,
    ops::{Embed, Linear},
    quant,
};

const COLS: usize = 1280;

/// Stands for a mapped file.
struct File {
    bytes: Vec<u8>,
    released: AtomicUsize,
    /// A part of it was gone when it was read
    torn: AtomicBool,
}

impl File {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { bytes, released: AtomicUsize::new(0), torn: AtomicBool::new(false) })
    }

    fn released(&self) -> usize {
        self.released.load(Ordering::Relaxed)
    }

    fn tear(&self) {
        self.torn.store(true, Ordering::Relaxed);
    }
}

impl Owner for File {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn is_file(&self) -> bool {
        true
    }

    fn lost(&self) -> Option<&Path> {
        self.torn.load(Ordering::Relaxed).then_some(Path::new("w.gguf"))
    }

    fn release(&self, range: Range<usize>) {
        self.released.fetch_add(range.len(), Ordering::Relaxed);
    }
}

#[test]
fn products_are_the_same_wherever_the_weights_lie() {
    for simd in [Simd::Avx2, Simd::AvxVnni, Simd::Avx512] {
        let Some(backend) = backend(simd) else { continue };
        let mut parted = 0;
        for dtype in DType::weights().filter(|d| d.is_block()) {
            // Rows of a part of a panel
            compare(&backend, simd, dtype, 21);
            // Of its own, so that no time is left over from other products.
            parted += usize::from(compare(&self::backend(simd).unwrap(), simd, dtype, large(dtype)));
        }
        assert!(parted > 0, "{simd}: no product met a weight of which a part was in panels");
    }
}

/// Whether a product met a weight of which a part was in panels.
fn compare(backend: &Arc<dyn Backend>, simd: Simd, dtype: DType, rows: usize) -> bool {
    let bytes = bytes(dtype, rows);
    let owner = Arc::new(bytes.clone());
    let original = Arc::downgrade(&owner);
    let memory = prepare(backend, dtype, rows, HostBytes::from_owner(owner, ..).unwrap());
    assert!(original.upgrade().is_none(), "{dtype} {simd}: a weight that lies in memory is kept twice");
    let file = File::new(bytes);
    let weight = prepare(backend, dtype, rows, HostBytes::from_owner(file.clone(), ..).unwrap());
    let little = prepare(backend, dtype, 21, HostBytes::from_vec(self::bytes(dtype, 21)));
    let mut parted = false;
    for n in 0.. {
        // Products of many tokens earn nothing for those of few, which get just the time of the little one at first.
        let tokens = [40, 1, 3, 6][n % 4];
        assert_eq!(product(backend, &weight, tokens, rows), product(backend, &memory, tokens, rows), "{dtype} {simd}, product {n}");
        assert_eq!(row(backend, &weight, rows - 1), row(backend, &memory, rows - 1), "{dtype} {simd}, the last row");
        assert!(n > 0 || file.released() == 0, "the first product does not wait for panels");
        parted |= (1..file.bytes.len()).contains(&file.released());
        if file.released() == file.bytes.len() {
            break;
        }
        assert!(n < 1000, "{dtype} {simd}: {} of {} bytes are in panels", file.released(), file.bytes.len());
        product(backend, &little, 1, 21);
    }
    file.tear();
    assert_eq!(product(backend, &weight, 3, rows), product(backend, &memory, 3, rows), "{dtype} {simd}: panels outlive the file");
    parted
}

#[test]
fn weights_whose_file_lost_bytes_are_errors() {
    let Some(backend) = backend(Simd::Avx2) else { return };
    for dtype in [DType::Q4_K, DType::F16] {
        let rows = large(dtype);
        let file = File::new(bytes(dtype, rows));
        let weight = prepare(&backend, dtype, rows, HostBytes::from_owner(file.clone(), ..).unwrap());
        try_product(&backend, &weight, 1, rows).unwrap();
        try_row(&backend, &weight, 0).unwrap();
        file.tear();
        for tokens in [1, 1, 40] {
            let error = try_product(&backend, &weight, tokens, rows).unwrap_err().to_string();
            assert!(error.contains("weight `w`: a part of w.gguf was gone"), "{dtype}: {error}");
        }
        try_row(&backend, &weight, 0).unwrap_err();
        assert_eq!(file.released(), 0, "{dtype}: nothing that was read after that is kept");
    }
}

fn backend(simd: Simd) -> Option<Arc<dyn Backend>> {
    Some(Arc::new(CpuBackend::new(CpuOptions { threads: Some(2), simd: Some(simd), ..CpuOptions::default() }).ok()?))
}

/// Rows of more than are rearranged at a time
fn large(dtype: DType) -> usize {
    4 * 1024 * 1024 / dtype.bytes(COLS).unwrap() + 100
}

fn bytes(dtype: DType, rows: usize) -> Vec<u8> {
    let some = quant::quantize(dtype, &values(21 * COLS)).unwrap();
    some.iter().copied().cycle().take(rows * dtype.bytes(COLS).unwrap()).collect()
}

fn prepare(backend: &Arc<dyn Backend>, dtype: DType, rows: usize, data: HostBytes) -> PreparedWeight {
    backend.prepare(Weight::new("w", dtype, [rows, COLS], data).unwrap()).unwrap()
}

fn product(backend: &Arc<dyn Backend>, weight: &PreparedWeight, tokens: usize, rows: usize) -> Vec<u32> {
    try_product(backend, weight, tokens, rows).unwrap()
}

fn try_product(backend: &Arc<dyn Backend>, weight: &PreparedWeight, tokens: usize, rows: usize) -> Result<Vec<u32>> {
    let mut x = values(tokens * COLS);
    // An outlier
    x[COLS - 3] = 90.0;
    let x = backend.tensor_f32(&[tokens, COLS], &x).unwrap();
    let out = backend.tensor_f32(&[tokens, rows], &vec![f32::NAN; tokens * rows]).unwrap();
    backend.linear(&Linear::new(&x, weight, &out))?;
    Ok(bits(backend.read_f32(&out).unwrap()))
}

fn row(backend: &Arc<dyn Backend>, weight: &PreparedWeight, row: usize) -> Vec<u32> {
    try_row(backend, weight, row).unwrap()
}

fn try_row(backend: &Arc<dyn Backend>, weight: &PreparedWeight, row: usize) -> Result<Vec<u32>> {
    let ids = backend.tensor_i32(&[1], &[row as i32]).unwrap();
    let out = backend.zeros(DType::F32, &[1, COLS]).unwrap();
    backend.embed(&Embed { table: weight, ids: &ids, drawn: None, scale: 1.0, out: &out })?;
    Ok(bits(backend.read_f32(&out).unwrap()))
}

fn bits(values: Vec<f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

fn values(count: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}
