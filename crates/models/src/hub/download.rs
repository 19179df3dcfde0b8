//! One file over HTTP into place: locked, resumed, checked, renamed.

use super::HubError;
use super::http::{Http, Reply, bad_reply};
use super::progress::Progress;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::http::header;

/// Attempts without a single new byte before giving up.
const MAX_FRUITLESS_ATTEMPTS: u32 = 4;
const BUFFER_BYTES: usize = 1 << 20;

/// A file that has to be fetched, and how to know that it is the right one.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) url: String,
    pub(crate) size_bytes: u64,
    /// Content hash, where the source has one.
    pub(crate) sha256: Option<String>,
    /// What the server must call this content, where there is no content hash.
    pub(crate) etag: Option<String>,
}

/// Fetches `remote` to `dest` unless it is there; two processes never write the same file.
///
/// The bytes are collected in `dest` + `.incomplete`, which survives an interruption; `dest` appears only when size and hash are
/// right.
///
/// # Errors
/// [`HubError::Network`] when the transfer broke for good, [`HubError::Corrupt`] when it came through but is not the right file.
pub(crate) fn fetch(http: &Http, remote: &Remote, dest: &Path, lock: &Path, progress: &Progress) -> Result<(), HubError> {
    let _lock = FileLock::take(lock, progress)?;
    if has_size(dest, remote.size_bytes) {
        return Ok(());
    }
    let part = with_suffix(dest, ".incomplete");
    let mut sink = Sink::open(&part, remote.size_bytes)?;
    let mut fruitless = 0;
    while sink.len < remote.size_bytes {
        let before = sink.len;
        match transfer(http, remote, &mut sink, progress) {
            Ok(()) => {}
            Err(error @ HubError::Network { .. }) => {
                fruitless = if sink.len > before { 0 } else { fruitless + 1 };
                if fruitless >= MAX_FRUITLESS_ATTEMPTS {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(200 << fruitless));
            }
            Err(error) => return Err(error),
        }
    }
    sink.finish(remote, dest)
}

/// Asks for the rest of the file and appends what comes.
fn transfer(http: &Http, remote: &Remote, sink: &mut Sink, progress: &Progress) -> Result<(), HubError> {
    let reply = http.get(&remote.url, sink.len)?;
    check_etag(remote, &reply)?;
    if reply.status == 206 {
        let start = content_range_start(&reply);
        if start != Some(sink.len) {
            return Err(bad_reply(&remote.url, &format!("asked for bytes from {}, got a range from {start:?}", sink.len)));
        }
    } else {
        sink.restart()?;
    }
    let mut body = reply.body.into_reader();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n = body.read(&mut buffer).map_err(|e| HubError::Network { url: remote.url.clone(), why: e.to_string() })?;
        if n == 0 {
            break;
        }
        if sink.len + n as u64 > remote.size_bytes {
            let got = format!("more than {}", remote.size_bytes);
            return Err(sink.discard(remote, "size in bytes", remote.size_bytes.to_string(), got));
        }
        sink.append(&buffer[..n])?;
        progress.at(sink.len);
    }
    match sink.len {
        len if len < remote.size_bytes => {
            Err(HubError::Network { url: remote.url.clone(), why: format!("the transfer stopped at byte {len} of {}", remote.size_bytes) })
        }
        _ => Ok(()),
    }
}

fn check_etag(remote: &Remote, reply: &Reply) -> Result<(), HubError> {
    let header = reply.first.get("x-linked-etag").or_else(|| reply.first.get(header::ETAG)).and_then(|v| v.to_str().ok());
    let got = header.map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
    match (&remote.etag, got) {
        (Some(expected), Some(got)) if got != expected => {
            Err(bad_reply(&remote.url, &format!("the file changed on the server: its ETag is {got}, the listing said {expected}")))
        }
        _ => Ok(()),
    }
}

fn content_range_start(reply: &Reply) -> Option<u64> {
    reply.headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// The `.incomplete` file with the hash of what is in it.
struct Sink {
    file: File,
    path: PathBuf,
    len: u64,
    hash: Sha256,
}

impl Sink {
    fn open(path: &Path, size_bytes: u64) -> Result<Sink, HubError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(HubError::io(path))?;
        let mut sink = Sink { file, path: path.to_owned(), len: 0, hash: Sha256::new() };
        if sink.file.metadata().map_err(HubError::io(path))?.len() > size_bytes {
            sink.restart()?;
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let n = sink.file.read(&mut buffer).map_err(HubError::io(path))?;
            if n == 0 {
                return Ok(sink);
            }
            sink.hash.update(&buffer[..n]);
            sink.len += n as u64;
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(HubError::io(&self.path))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map_err(HubError::io(&self.path))?;
        self.len = 0;
        self.hash = Sha256::new();
        Ok(())
    }

    fn discard(&self, remote: &Remote, field: &'static str, expected: String, got: String) -> HubError {
        // Best effort: if it cannot be removed, its wrong hash is found again next time.
        let _ = fs::remove_file(&self.path);
        HubError::Corrupt { what: remote.url.clone(), field, expected, got }
    }

    fn finish(mut self, remote: &Remote, dest: &Path) -> Result<(), HubError> {
        let got = hex(&std::mem::take(&mut self.hash).finalize());
        if let Some(expected) = &remote.sha256
            && *expected != got
        {
            return Err(self.discard(remote, "sha256", expected.clone(), got));
        }
        self.file.sync_all().map_err(HubError::io(&self.path))?;
        fs::rename(&self.path, dest).map_err(HubError::io(dest))
    }
}

/// An exclusive lock on a file, held until dropped; other processes wait for it.
#[derive(Debug)]
pub(crate) struct FileLock {
    _file: File,
}

impl FileLock {
    pub(crate) fn take(path: &Path, progress: &Progress) -> Result<FileLock, HubError> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(HubError::io(dir))?;
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(HubError::io(path))?;
        if file.try_lock().is_err() {
            progress.note("waiting for another process that fetches the same file");
            file.lock().map_err(HubError::io(path))?;
        }
        Ok(FileLock { _file: file })
    }
}

pub(crate) fn has_size(path: &Path, size_bytes: u64) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == size_bytes)
}

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// sha256 of a whole file, in hexadecimal.
pub(crate) fn sha256_file(path: &Path) -> Result<String, HubError> {
    let mut file = File::open(path).map_err(HubError::io(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n = file.read(&mut buffer).map_err(HubError::io(path))?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}
