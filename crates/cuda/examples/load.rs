//! How fast weights reach the device: `cargo run --release -p ferrum-cuda --example load -- FILE [GIB]`.
//!
//! Maps FILE, which is written with GIB of random bytes when it is not there, and prepares it as BF16 matrices of 64 MiB.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    sync::Arc,
    time::Instant,
};

use ferrum_cuda::CudaBackend;
use ferrum_kernels::{Backend, DType, HostBytes, Owner, Weight};
use memmap2::Mmap;

const COLS: usize = 8192;
const ROWS: usize = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("name a file")?;
    let gib: usize = args.next().map_or(Ok(5), |n| n.parse())?;
    if !Path::new(&path).exists() {
        let mut state = 1u64;
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&path)?);
        for _ in 0..gib << 27 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            out.write_all(&state.to_le_bytes())?;
        }
        out.flush()?;
    }
    let start = Instant::now();
    let backend: Arc<dyn Backend> = Arc::new(CudaBackend::new(0)?);
    let opened = start.elapsed();
    let file = File::open(&path)?;
    // SAFETY: nobody writes to the file while it is mapped.
    let map = Arc::new(Mapped(unsafe { Mmap::map(&file)? }));
    let mut weights = Vec::new();
    let start = Instant::now();
    for n in 0..map.0.len() / (2 * ROWS * COLS) {
        let data = HostBytes::from_owner(map.clone(), n * 2 * ROWS * COLS..(n + 1) * 2 * ROWS * COLS).ok_or("the file is too short")?;
        weights.push(backend.prepare(Weight::new("w", DType::BF16, [ROWS, COLS], data)?)?);
    }
    backend.synchronize()?;
    let loaded = start.elapsed();
    let rate = map.0.len() as f64 / loaded.as_secs_f64() / 1e9;
    println!("opened in {opened:.2?}, {} weights of {} bytes in {loaded:.2?}: {rate:.1} GB/s", weights.len(), 2 * ROWS * COLS);
    Ok(())
}

struct Mapped(Mmap);

impl Owner for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}
