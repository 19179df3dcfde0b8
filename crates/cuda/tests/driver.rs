//! Copies, events and recorded work on a GPU, where there is one.

use std::sync::Arc;

use ferrum_cuda::{
    CudaBackend,
    driver::{Device, DeviceBuffer, Event, Graph, Grid, Module, Stream, fatbin},
};
use ferrum_kernels::{Backend, DType, Error, Result};

/// The first GPU, or why there is nothing to test.
fn device() -> Option<Arc<Device>> {
    Device::open(0).inspect_err(|reason| println!("not tested on a GPU: {reason}")).ok()
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| ((n * 31 + seed * 97) % 251) as u8).collect()
}

#[test]
fn uploads_of_every_size_arrive() -> Result<()> {
    let Some(_) = device() else { return Ok(()) };
    let backend: Arc<dyn Backend> = Arc::new(CudaBackend::new(0)?);
    // Around the sizes where the pinned ring wraps and where several threads take over.
    for len in [1, 255, 256, 257, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (2 << 20) - 1, 2 << 20, (33 << 20) + 5] {
        let tensor = backend.zeros(DType::U8, &[len])?;
        backend.upload(&tensor, &bytes(len, 1))?;
        let mut back = vec![0; len];
        backend.download(&tensor, &mut back)?;
        assert!(back == bytes(len, 1), "{len} bytes");
    }
    Ok(())
}

#[test]
fn queued_uploads_keep_their_bytes() -> Result<()> {
    let Some(_) = device() else { return Ok(()) };
    let backend: Arc<dyn Backend> = Arc::new(CudaBackend::new(0)?);
    // More than the ring holds, each from the same host memory, which is overwritten as soon as the call returns.
    let len = 300_000;
    let tensors = (0..60).map(|_| backend.zeros(DType::U8, &[len])).collect::<Result<Vec<_>>>()?;
    let mut source = Vec::new();
    for (n, tensor) in tensors.iter().enumerate() {
        source.clear();
        source.extend(bytes(len, n));
        backend.upload(tensor, &source)?;
    }
    for (n, tensor) in tensors.iter().enumerate() {
        let mut back = vec![0; len];
        backend.download(tensor, &mut back)?;
        assert!(back == bytes(len, n), "upload {n}");
    }
    Ok(())
}

/// Mirror of `SoftcapParams` in `kernels/act_mul.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SoftcapParams {
    x: u64,
    stride: i64,
    width: i32,
    cap: f32,
}

#[test]
fn a_recorded_kernel_runs_at_every_replay_only() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let stream = Stream::new(&device)?;
    let kernel = Module::load(&device, fatbin("act_mul").expect("embedded"))?.kernel("softcap_f32")?;
    let buffer = DeviceBuffer::zeroed(&stream, 4)?;
    // SAFETY: four bytes from and to a buffer of four.
    let write = |value: f32| unsafe { stream.copy_to_device(buffer.ptr(), &value.to_le_bytes()) };
    let read = || {
        let mut out = [0; 4];
        // SAFETY: as above.
        unsafe { stream.copy_to_host(&mut out, buffer.ptr())? };
        stream.synchronize()?;
        Ok::<f32, Error>(f32::from_le_bytes(out))
    };
    write(5.0)?;
    let params = SoftcapParams { x: buffer.ptr(), stride: 1, width: 1, cap: 2.0 };
    // SAFETY: the mirror of the kernel's struct, with one element.
    let graph = Graph::record(&stream, || unsafe { kernel.launch(&stream, Grid::new(1, 32), &params) })?;
    assert_eq!(read()?, 5.0, "recording ran the kernel");
    let (start, end) = (Event::timed(&device)?, Event::timed(&device)?);
    let mut want = 5.0f32;
    stream.record(&start)?;
    for _ in 0..3 {
        graph.launch(&stream)?;
        want = 2.0 * (want / 2.0).tanh();
    }
    stream.record(&end)?;
    assert!((read()? - want).abs() < 1e-5);
    end.synchronize()?;
    assert!((0.0..1000.0).contains(&end.ms_since(&start)?));
    Ok(())
}

#[test]
fn wrong_launches_are_errors() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let stream = Stream::new(&device)?;
    let module = Module::load(&device, fatbin("act_mul").expect("embedded"))?;
    assert!(module.kernel("no_such_kernel").is_err());
    let kernel = module.kernel("softcap_f32")?;
    // SAFETY: the launch is refused before the kernel could run.
    let short = unsafe { kernel.launch(&stream, Grid::new(1, 32), &0u64) };
    assert!(short.unwrap_err().to_string().contains("takes a struct of 24 bytes"));
    let params = SoftcapParams { x: 0, stride: 1, width: 0, cap: 1.0 };
    // SAFETY: a width of 0 touches no memory, and the device refuses blocks of this size.
    assert!(unsafe { kernel.launch(&stream, Grid::new(1, 4096), &params) }.is_err());
    // An empty grid is no error and runs nothing.
    // SAFETY: as above.
    unsafe { kernel.launch(&stream, Grid::new(0, 32), &params)? };
    stream.synchronize()
}

#[test]
fn more_memory_than_there_is_is_refused() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    match DeviceBuffer::new(&device, 1 << 50) {
        Err(Error::OutOfMemory { needed_bytes, available_bytes, .. }) => assert!(needed_bytes == 1 << 50 && available_bytes > 0),
        other => panic!("{other:?}"),
    }
    Ok(())
}
