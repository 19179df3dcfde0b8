//! Weights that lie in a file give the same bits from there, from panels in memory, and on the way from one to the other.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ferrum_cpu::{CpuBackend, CpuOptions, Simd};
use ferrum_kernels::{
    Backend, DType, HostBytes, Owner, PreparedWeight, Weight,
    ops::{Embed, Linear},
    quant,
};

const COLS: usize = 1280;

/// Stands for a mapped file.
struct File {
    bytes: Vec<u8>,
    released: AtomicUsize,
}

impl Owner for File {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn is_file(&self) -> bool {
        true
    }

    fn release(&self, range: Range<usize>) {
        self.released.fetch_add(range.len(), Ordering::Relaxed);
    }
}

#[test]
fn products_are_the_same_wherever_the_weights_lie() {
    for simd in [Simd::Avx2, Simd::AvxVnni, Simd::Avx512] {
        let Ok(backend) = CpuBackend::new(CpuOptions { threads: Some(2), simd: Some(simd), ..CpuOptions::default() }) else { continue };
        let backend: Arc<dyn Backend> = Arc::new(backend);
        for dtype in DType::weights().filter(|d| d.is_block()) {
            // Rows of a part of a panel; rows of more than are rearranged at a time.
            for rows in [21, 4 * 1024 * 1024 / dtype.bytes(COLS).unwrap() + 100] {
                compare(&backend, simd, dtype, rows);
            }
        }
    }
}

fn compare(backend: &Arc<dyn Backend>, simd: Simd, dtype: DType, rows: usize) {
    let some = quant::quantize(dtype, &values(21 * COLS)).unwrap();
    let bytes: Vec<u8> = some.iter().copied().cycle().take(rows * dtype.bytes(COLS).unwrap()).collect();
    let prepare = |data| backend.prepare(Weight::new("w", dtype, [rows, COLS], data).unwrap()).unwrap();
    let memory = prepare(HostBytes::from_vec(bytes.clone()));
    let file = Arc::new(File { bytes, released: AtomicUsize::new(0) });
    let weight = prepare(HostBytes::from_owner(file.clone(), ..).unwrap());
    let released = || file.released.load(Ordering::Relaxed);
    let mut seen = Vec::new();
    for n in 0.. {
        let tokens = [1, 3, 6, 40][n % 4];
        assert_eq!(product(backend, &weight, tokens, rows), product(backend, &memory, tokens, rows), "{dtype} {simd}, product {n}");
        assert_eq!(row(backend, &weight, rows - 1), row(backend, &memory, rows - 1), "{dtype} {simd}, the last row");
        assert!(n > 0 || released() == 0, "the first product does not wait for panels");
        seen.push(released());
        if released() == file.bytes.len() {
            break;
        }
        assert!(n < 1000, "{dtype} {simd}: {} of {} bytes are in panels", released(), file.bytes.len());
    }
    assert!(seen.is_sorted());
}

fn product(backend: &Arc<dyn Backend>, weight: &PreparedWeight, tokens: usize, rows: usize) -> Vec<u32> {
    let mut x = values(tokens * COLS);
    // An outlier
    x[COLS - 3] = 90.0;
    let x = backend.tensor_f32(&[tokens, COLS], &x).unwrap();
    let out = backend.tensor_f32(&[tokens, rows], &vec![f32::NAN; tokens * rows]).unwrap();
    backend.linear(&Linear::new(&x, weight, &out)).unwrap();
    bits(backend.read_f32(&out).unwrap())
}

fn row(backend: &Arc<dyn Backend>, weight: &PreparedWeight, row: usize) -> Vec<u32> {
    let ids = backend.tensor_i32(&[1], &[row as i32]).unwrap();
    let out = backend.zeros(DType::F32, &[1, COLS]).unwrap();
    backend.embed(&Embed { table: weight, ids: &ids, drawn: None, scale: 1.0, out: &out }).unwrap();
    bits(backend.read_f32(&out).unwrap())
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
