//! Copies to and from the device. Those to it do not wait for it.

use std::sync::Arc;

use ferrum_kernels::Result;

use crate::{
    context::Context,
    driver::{Device, DevicePtr, Event, PinnedBuffer, Stream},
    lanes::Lanes,
};

const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS: usize = 8;
/// Sources start at multiples of this.
const ALIGN_BYTES: usize = 256;
/// From this size on, several threads are worth their start.
const LARGE_BYTES: usize = 2 << 20;

/// A ring of pinned memory. A copy is queued from a piece of it, and the piece is used again only when the copy has run.
#[derive(Debug)]
pub(crate) struct Ring {
    chunks: Vec<Chunk>,
    current: usize,
    used: usize,
    landing: PinnedBuffer,
    lanes: Option<Lanes>,
}

#[derive(Debug)]
struct Chunk {
    memory: PinnedBuffer,
    /// Happens when the copies from this chunk have run
    done: Event,
}

impl Ring {
    /// # Errors
    /// When the system will not lock so much memory.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        let chunk = || Ok(Chunk { memory: PinnedBuffer::new(device, CHUNK_BYTES)?, done: Event::new(device)? });
        let chunks = (0..CHUNKS).map(|_| chunk()).collect::<Result<_>>()?;
        Ok(Self { chunks, current: 0, used: 0, landing: PinnedBuffer::new(device, CHUNK_BYTES)?, lanes: None })
    }

    /// Queues a copy of `src`, which is free again on return, in the order of the operations.
    ///
    /// # Safety
    /// `dst` has `src.len()` bytes in live device memory.
    ///
    /// # Errors
    /// When an earlier operation on the stream failed.
    pub unsafe fn upload(&mut self, cx: &Context, dst: DevicePtr, src: &[u8]) -> Result<()> {
        let stream = cx.stream();
        if src.len() >= LARGE_BYTES {
            let lanes = match &mut self.lanes {
                Some(lanes) => lanes,
                none => none.insert(Lanes::new(stream.device())?),
            };
            // SAFETY: the caller answers for `dst`.
            return unsafe { lanes.upload(stream, dst, src) };
        }
        let (mut dst, mut rest) = (dst, src);
        while !rest.is_empty() {
            if self.used == CHUNK_BYTES {
                stream.record(&self.chunks[self.current].done)?;
                self.current = (self.current + 1) % CHUNKS;
                self.chunks[self.current].done.synchronize()?;
                self.used = 0;
            }
            let count = rest.len().min(CHUNK_BYTES - self.used);
            let (now, later) = rest.split_at(count);
            let memory = &mut self.chunks[self.current].memory;
            let from_host = memory.device_ptr() + self.used as DevicePtr;
            let piece = &mut memory.as_mut_slice()[self.used..self.used + count];
            piece.copy_from_slice(now);
            // SAFETY: the caller answers for `dst`; the piece is left alone until the chunk's event has happened.
            unsafe { cx.copy_to_device(dst, piece, from_host)? };
            dst += count as DevicePtr;
            rest = later;
            self.used = (self.used + count).next_multiple_of(ALIGN_BYTES);
        }
        Ok(())
    }

    /// Waits for the stream and copies to the host.
    ///
    /// # Safety
    /// `src` has `dst.len()` bytes in live device memory.
    ///
    /// # Errors
    /// When an earlier operation on the stream failed.
    pub unsafe fn download(&mut self, stream: &Stream, dst: &mut [u8], src: DevicePtr) -> Result<()> {
        for (n, part) in dst.chunks_mut(CHUNK_BYTES).enumerate() {
            let landing = &mut self.landing.as_mut_slice()[..part.len()];
            // SAFETY: the caller answers for `src`; nobody touches the landing before the stream is done.
            unsafe { stream.copy_to_host(landing, src + (n * CHUNK_BYTES) as DevicePtr)? };
            stream.synchronize()?;
            part.copy_from_slice(landing);
        }
        Ok(())
    }
}
