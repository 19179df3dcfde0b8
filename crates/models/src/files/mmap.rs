//! Read-only file mappings that survive a file that shrinks.
//!
//! Touching a mapped page behind the end of its file raises SIGBUS, which ends a process. The first mapping therefore installs
//! a handler: if the address lies in one of our mappings, the rest of that mapping is replaced by zero pages and the mapping is
//! marked, so that the access returns and [`MappedFile::check`] fails from then on. Any other SIGBUS goes to the handler that
//! was there before.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferrum_kernels::{HostBytes, Owner};
use memmap2::{Mmap, MmapOptions};

use super::FileError;

/// A file mapped read-only, or bytes that stand for one. Clones share the mapping.
///
/// The contents are those of the file now: a program that writes to it while it is mapped changes what is read here.
#[derive(Clone)]
pub struct MappedFile {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    data: Data,
}

enum Data {
    Owned(Vec<u8>),
    Mapped {
        file: File,
        // Before `map`, because it must leave the registry while the addresses are still ours.
        registration: guard::Registration,
        map: Mmap,
    },
}

impl MappedFile {
    /// Maps the whole of the regular file at `path`.
    ///
    /// # Errors
    /// The file cannot be opened or mapped, or is not a regular file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref();
        let io = |what| move |source| FileError::Io { path: path.to_owned(), what, source };
        // Asked before opening: opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(io("open the file"))?.is_file() {
            return Err(FileError::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(io("open the file"))?;
        let size = file.metadata().map_err(io("read the file's size"))?.len();
        let too_large = || std::io::Error::from(std::io::ErrorKind::FileTooLarge);
        let len = usize::try_from(size).map_err(|_| io("map the file")(too_large()))?;
        if len == 0 {
            return Ok(Self { inner: Arc::new(Inner { path: path.to_owned(), data: Data::Owned(Vec::new()) }) });
        }
        // SAFETY: the mapping is read-only and private. Bytes that another process changes are read as plain `u8`, for which
        // every value is valid, and every parser here checks what it reads at the moment it reads it; that a shrinking file
        // does not fault is the work of `guard`.
        let map = unsafe { MmapOptions::new().len(len).map_copy_read_only(&file) }.map_err(io("map the file"))?;
        let registration = guard::register(map.as_ptr() as usize, len)
            .ok_or_else(|| FileError::TooManyMappings { path: path.to_owned(), mapped: guard::SLOTS })?;
        Ok(Self { inner: Arc::new(Inner { path: path.to_owned(), data: Data::Mapped { file, registration, map } }) })
    }

    /// `bytes` as if they had been read from `path`, which is only used in messages.
    pub fn from_vec(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Self {
        Self { inner: Arc::new(Inner { path: path.into(), data: Data::Owned(bytes) }) }
    }

    /// Where the bytes came from.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The whole contents.
    pub fn bytes(&self) -> &[u8] {
        self.inner.bytes()
    }

    /// Bytes `range` of the file, which keep the mapping alive, or `None` when the range reaches past the end.
    pub fn slice(&self, range: Range<usize>) -> Option<HostBytes> {
        HostBytes::from_owner(Arc::clone(&self.inner) as _, range)
    }

    /// Whether the file still has all the bytes that were mapped. Costs one `fstat`.
    ///
    /// # Errors
    /// [`FileError::Shrunk`] once the file is shorter, or once a read met a page that had gone, even if it grew back since.
    pub fn check(&self) -> Result<(), FileError> {
        let Data::Mapped { file, registration, map } = &self.inner.data else { return Ok(()) };
        let path = &self.inner.path;
        let now = file.metadata().map_err(|source| FileError::Io { path: path.clone(), what: "read the file's size", source })?.len();
        if registration.faulted() || now < map.len() as u64 {
            return Err(FileError::Shrunk { path: path.clone(), mapped_bytes: map.len() as u64, now_bytes: now });
        }
        Ok(())
    }

    /// Asks the kernel to read the file ahead and to use huge pages. A hint: where it is refused nothing changes.
    pub fn prefetch(&self) {
        #[cfg(unix)]
        if let Data::Mapped { map, .. } = &self.inner.data {
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            let _ = map.advise(memmap2::Advice::WillNeed);
        }
    }
}

/// How many reads in this process have met a page that its file no longer has.
///
/// One atomic load, meant to be compared before and after each step: while the number stands still no mapping has returned
/// zeros for missing contents. When it moves, [`MappedFile::check`] tells which file it was.
pub fn fault_count() -> u64 {
    guard::fault_count()
}

impl Owner for Inner {
    fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Owned(bytes) => bytes,
            Data::Mapped { map, .. } => map,
        }
    }

    fn is_file(&self) -> bool {
        matches!(self.data, Data::Mapped { .. })
    }

    fn lost(&self) -> Option<&Path> {
        match &self.data {
            Data::Mapped { registration, .. } if registration.faulted() => Some(&self.path),
            _ => None,
        }
    }

    /// Takes the pages out of this process's memory. They stay in the system's cache of the file, from where the next read
    /// brings them back. So do their neighbours: a read of those has mapped the pages around it as well, up to 64 KiB.
    fn release(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Data::Mapped { map, .. } = &self.data {
            const AROUND: usize = 64 << 10;
            let page = guard::page_bytes();
            let start = range.start.saturating_sub(AROUND) / page * page;
            let end = range.end.saturating_add(AROUND).min(map.len()) / page * page;
            if start < end {
                // SAFETY: of a private mapping that is never written, this drops nothing but clean pages of the file; a later
                // read maps them again. A refusal changes nothing.
                let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }
}

/// The SIGBUS handler and its registry of mappings.
#[cfg(unix)]
mod guard {
    use std::ffi::{c_int, c_void};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

    /// The most mappings at once. The largest sharded checkpoints have some two hundred files.
    pub(super) const SLOTS: usize = 1024;

    /// One registered mapping, in a table of fixed place because a signal handler may neither lock nor allocate.
    struct Slot {
        /// First address; [`FREE`] or [`CLAIMED`] when the slot is not in use.
        start: AtomicUsize,
        end: AtomicUsize,
        faulted: AtomicBool,
    }

    const FREE: usize = 0;
    const CLAIMED: usize = 1;

    static TABLE: [Slot; SLOTS] =
        [const { Slot { start: AtomicUsize::new(FREE), end: AtomicUsize::new(0), faulted: AtomicBool::new(false) } }; SLOTS];
    static FAULTS: AtomicU64 = AtomicU64::new(0);
    static PAGE_BYTES: AtomicUsize = AtomicUsize::new(4096);
    static PREVIOUS: OnceLock<Option<libc::sigaction>> = OnceLock::new();

    /// A place in the table, given back on drop.
    pub(super) struct Registration(&'static Slot);

    impl Registration {
        pub(super) fn faulted(&self) -> bool {
            self.0.faulted.load(Ordering::Acquire)
        }
    }

    impl Drop for Registration {
        fn drop(&mut self) {
            self.0.start.store(FREE, Ordering::Release);
        }
    }

    pub(super) fn page_bytes() -> usize {
        PAGE_BYTES.load(Ordering::Relaxed)
    }

    pub(super) fn fault_count() -> u64 {
        FAULTS.load(Ordering::Acquire)
    }

    /// Puts `len` bytes at `start` under guard, or `None` when the table is full.
    pub(super) fn register(start: usize, len: usize) -> Option<Registration> {
        PREVIOUS.get_or_init(install);
        let slot = TABLE.iter().find(|s| s.start.compare_exchange(FREE, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok())?;
        slot.faulted.store(false, Ordering::Relaxed);
        slot.end.store(start + len, Ordering::Relaxed);
        slot.start.store(start, Ordering::Release);
        Some(Registration(slot))
    }

    /// Installs the handler and returns the action that was there before.
    fn install() -> Option<libc::sigaction> {
        // SAFETY: `sysconf` has no preconditions; `sigaction` is a plain C struct that may be all zeros, and both calls get
        // pointers to live local values. The handler only touches atomics, an initialised `OnceLock` and `mmap`.
        unsafe {
            if let Ok(page) = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)) {
                PAGE_BYTES.store(page, Ordering::Relaxed);
            }
            let mut previous: libc::sigaction = std::mem::zeroed();
            let mut ours: libc::sigaction = std::mem::zeroed();
            ours.sa_sigaction = on_sigbus as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&mut ours.sa_mask);
            (libc::sigaction(libc::SIGBUS, &ours, &mut previous) == 0).then_some(previous)
        }
    }

    extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        // SAFETY: the kernel passes a valid `siginfo_t` to a handler installed with SA_SIGINFO.
        let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
        // A positive code is the kernel's; a signal that someone sent has no address.
        if code <= 0 || !replace_rest_of_mapping(address) {
            chain(signal, info, context);
        }
    }

    /// Puts zero pages from the page of `address` to the end of its mapping; false when it is in none of ours.
    ///
    /// The rest at once rather than page by page: behind one page that the file no longer has, it has none of the others.
    fn replace_rest_of_mapping(address: usize) -> bool {
        for slot in &TABLE {
            let start = slot.start.load(Ordering::Acquire);
            let end = slot.end.load(Ordering::Relaxed);
            if start <= CLAIMED || address < start || address >= end {
                continue;
            }
            // First, so that who has read a zero page finds the mark.
            slot.faulted.store(true, Ordering::Release);
            let page = address & !(PAGE_BYTES.load(Ordering::Relaxed) - 1);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            // SAFETY: `page..end` lies in a mapping of ours that is alive, since a thread is reading from it right now, and
            // that nobody writes to. `errno` is put back for the code that was interrupted.
            let replaced = unsafe {
                let errno = errno_location();
                let saved = *errno;
                let got = libc::mmap(page as *mut c_void, end - page, libc::PROT_READ, flags, -1, 0);
                *errno = saved;
                got != libc::MAP_FAILED
            };
            FAULTS.fetch_add(1, Ordering::AcqRel);
            return replaced;
        }
        false
    }

    /// Hands a fault that is not ours to whoever handled SIGBUS before; by default that ends the process.
    fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        let previous = PREVIOUS.get().copied().flatten();
        // SAFETY: `previous` is what `sigaction` returned, so a value other than SIG_DFL and SIG_IGN is a function of the kind
        // that its flags tell. For the default action the signal is reset, and the faulting access repeats and ends the
        // process; SIG_IGN counts as default because the kernel does not let a synchronous fault be ignored either.
        unsafe {
            match previous {
                Some(action) if action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN => {
                    if action.sa_flags & libc::SA_SIGINFO != 0 {
                        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = std::mem::transmute(action.sa_sigaction);
                        handler(signal, info, context);
                    } else {
                        let handler: extern "C" fn(c_int) = std::mem::transmute(action.sa_sigaction);
                        handler(signal);
                    }
                }
                _ => {
                    libc::signal(signal, libc::SIG_DFL);
                }
            }
        }
    }

    /// Where this thread's `errno` lives.
    unsafe fn errno_location() -> *mut c_int {
        // SAFETY: always callable; the pointer is valid for the calling thread.
        unsafe {
            #[cfg(any(target_os = "linux", target_os = "emscripten"))]
            return libc::__errno_location();
            #[cfg(any(target_os = "macos", target_os = "ios", target_os = "freebsd"))]
            return libc::__error();
            #[cfg(any(target_os = "android", target_os = "netbsd", target_os = "openbsd"))]
            return libc::__errno();
        }
    }
}

/// Where there is no SIGBUS: the system itself refuses to shrink a mapped file.
#[cfg(not(unix))]
mod guard {
    pub(super) const SLOTS: usize = usize::MAX;

    pub(super) struct Registration;

    impl Registration {
        pub(super) fn faulted(&self) -> bool {
            false
        }
    }

    pub(super) fn page_bytes() -> usize {
        PAGE_BYTES.load(Ordering::Relaxed)
    }

    pub(super) fn fault_count() -> u64 {
        0
    }

    pub(super) fn register(_start: usize, _len: usize) -> Option<Registration> {
        Some(Registration)
    }
}
