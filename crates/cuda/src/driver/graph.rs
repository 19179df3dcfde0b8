//! Recorded work that is queued again with one call.

use std::{fmt, ptr, sync::Arc};

use ferrum_kernels::Result;

use super::{Device, Stream, check, sys};

/// Kernels and copies with their arguments as they were recorded. Device memory they name must outlive the graph.
pub struct Graph {
    device: Arc<Device>,
    raw: sys::CUgraphExec,
}

// SAFETY: replays are queued on streams, whose order the driver keeps; the handle itself is not changed.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Graph {
    /// Records what `queue` puts on `stream`, which does not run.
    ///
    /// # Errors
    /// Those of `queue`, and when something in it cannot be recorded (a synchronisation, an allocation).
    pub fn record(stream: &Stream, queue: impl FnOnce() -> Result<()>) -> Result<Self> {
        let device = stream.device().clone();
        device.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives. Relaxed: other threads may allocate meanwhile.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(stream.raw(), mode) })?;
        let queued = queue();
        let mut graph = ptr::null_mut();
        // SAFETY: the capture begun above is ended whatever became of `queue`; the driver writes one handle.
        let ended = check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(stream.raw(), &mut graph) });
        let recorded = queued.and(ended).and_then(|()| {
            let mut raw = ptr::null_mut();
            // SAFETY: the graph is complete; the driver writes one handle, destroyed once in `drop`.
            check("cuGraphInstantiate", unsafe { sys::cuGraphInstantiateWithFlags(&mut raw, graph, 0) })?;
            Ok(Self { device, raw })
        });
        if !graph.is_null() {
            // SAFETY: the executable graph does not need what it was made from.
            unsafe { sys::cuGraphDestroy(graph) };
        }
        recorded
    }

    /// Queues all of it on `stream`.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn launch(&self, stream: &Stream) -> Result<()> {
        self.device.bind()?;
        // SAFETY: both live; whoever recorded answers for the memory that is named in it.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.raw, stream.raw()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated once in `record`; replays under way are finished by the driver.
        let _ = self.device.bind().map(|()| unsafe { sys::cuGraphExecDestroy(self.raw) });
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({:p})", self.raw)
    }
}
