//! Large copies to the device, as fast as the link takes them: several threads bring pieces of the source into pinned
//! memory, and each piece goes to the device while the next ones are read.
//!
//! One thread alone reads a mapped file at a fifth of what the link carries.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use ferrum_kernels::Result;

use crate::driver::{Device, DevicePtr, Event, PinnedBuffer, Stream};

const PIECE_BYTES: usize = 1 << 20;
/// Buffers of a thread: while it fills one, the device copies from the others.
const BUFFERS: usize = 4;
const MAX_LANES: usize = 8;

/// Made when the first large copy comes: pinned memory takes milliseconds.
#[derive(Debug)]
pub(crate) struct Lanes {
    lanes: Vec<Lane>,
}

/// What one thread works with.
#[derive(Debug)]
struct Lane {
    stream: Stream,
    buffers: Vec<Buffer>,
    next: usize,
}

#[derive(Debug)]
struct Buffer {
    memory: PinnedBuffer,
    /// Happens when the copy from it has run
    done: Event,
}

impl Lanes {
    /// # Errors
    /// When the system will not lock so much memory.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        let count = thread::available_parallelism().map_or(1, |n| n.get()).min(MAX_LANES);
        Ok(Self { lanes: (0..count).map(|_| Lane::new(device)).collect::<Result<_>>()? })
    }

    /// Copies `src`, which is free again on return. Work queued on `stream` later runs after the copies, and the copies
    /// run after the work queued on it before.
    ///
    /// # Safety
    /// `dst` has `src.len()` bytes in live device memory.
    ///
    /// # Errors
    /// When an earlier operation on a stream failed.
    pub unsafe fn upload(&mut self, stream: &Stream, dst: DevicePtr, src: &[u8]) -> Result<()> {
        let before = Event::new(stream.device())?;
        stream.record(&before)?;
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        thread::scope(|scope| {
            for lane in &mut self.lanes {
                scope.spawn(|| {
                    // SAFETY: the caller answers for `dst`, and every piece of it is taken once.
                    if let Err(error) = unsafe { lane.work(&before, dst, src, &next) } {
                        *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    }
                });
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        for lane in &self.lanes {
            for buffer in &lane.buffers {
                stream.wait(&buffer.done)?;
            }
        }
        Ok(())
    }
}

impl Lane {
    fn new(device: &Arc<Device>) -> Result<Self> {
        let buffer = || Ok(Buffer { memory: PinnedBuffer::new(device, PIECE_BYTES)?, done: Event::new(device)? });
        Ok(Self { stream: Stream::new(device)?, buffers: (0..BUFFERS).map(|_| buffer()).collect::<Result<_>>()?, next: 0 })
    }

    /// Takes pieces until there are none left.
    ///
    /// # Safety
    /// `dst` has `src.len()` bytes in live device memory, and nobody else copies the pieces that `next` gives out.
    unsafe fn work(&mut self, before: &Event, dst: DevicePtr, src: &[u8], next: &AtomicUsize) -> Result<()> {
        self.stream.wait(before)?;
        loop {
            let start = next.fetch_add(1, Ordering::Relaxed) * PIECE_BYTES;
            let Some(rest) = src.get(start..).filter(|rest| !rest.is_empty()) else { return Ok(()) };
            let piece = &rest[..rest.len().min(PIECE_BYTES)];
            let Buffer { memory, done } = &mut self.buffers[self.next];
            self.next = (self.next + 1) % BUFFERS;
            done.synchronize()?;
            let pinned = &mut memory.as_mut_slice()[..piece.len()];
            pinned.copy_from_slice(piece);
            // SAFETY: the caller answers for `dst`; the buffer is left alone until its event has happened.
            unsafe { self.stream.copy_to_device(dst + start as DevicePtr, pinned)? };
            self.stream.record(done)?;
        }
    }
}
