//! Who may send requests, and how many.

use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use axum::http::{HeaderMap, header};
use subtle::{Choice, ConstantTimeEq};

use crate::{
    error::{ApiError, Result},
    held::Watch,
};

/// What each key may do at once and per minute. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    pub concurrent: Option<usize>,
    pub per_minute: Option<u32>,
}

/// The API keys. Without any, everybody may ask, as one client.
#[derive(Debug, Default)]
pub struct Keys {
    keys: Vec<Arc<Key>>,
    open: Arc<Key>,
    limits: KeyLimits,
}

#[derive(Debug, Default)]
struct Key {
    secret: String,
    running: AtomicUsize,
    /// Requests that may still come now, and when that was so: a bucket that fills with `per_minute / 60` a second
    bucket: Mutex<Option<(f64, Instant)>>,
}

/// Held while a request runs; counts against its key.
#[derive(Debug)]
pub struct Permit(Arc<Key>);

impl Keys {
    pub fn new(secrets: Vec<String>, limits: KeyLimits) -> Self {
        let key = |secret| Arc::new(Key { secret, ..Key::default() });
        Self { keys: secrets.into_iter().map(key).collect(), open: Arc::default(), limits }
    }

    /// The keys in a file: one a line, `#` begins a comment.
    ///
    /// # Errors
    /// When it cannot be read, or has none.
    pub fn read(path: &Path) -> std::io::Result<Vec<String>> {
        let text = fs::read_to_string(path)?;
        let keys: Vec<String> =
            text.lines().map(|line| line.split('#').next().unwrap_or("").trim().to_owned()).filter(|key| !key.is_empty()).collect();
        if keys.is_empty() {
            return Err(std::io::Error::other("it has no key; write one a line"));
        }
        Ok(keys)
    }

    /// Lets a request in, or not.
    ///
    /// # Errors
    /// 401 without a valid key, 429 where the key has reached a limit.
    pub fn admit(&self, headers: &HeaderMap) -> Result<Permit> {
        let key = self.find(headers)?;
        if let Some(limit) = self.limits.per_minute {
            key.take_from_bucket(limit)?;
        }
        let running = key.running.fetch_add(1, Ordering::AcqRel);
        // From here on the permit counts down.
        let permit = Permit(Arc::clone(key));
        match self.limits.concurrent {
            Some(limit) if running >= limit => {
                Err(ApiError::rate_limited(format!("this key has {limit} requests running, which is its limit"), 1))
            }
            _ => Ok(permit),
        }
    }

    fn find(&self, headers: &HeaderMap) -> Result<&Arc<Key>> {
        if self.keys.is_empty() {
            return Ok(&self.open);
        }
        let bearer = headers.get(header::AUTHORIZATION).and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
        let sent = bearer.or_else(|| headers.get("x-api-key").map(|v| v.as_bytes())).ok_or_else(ApiError::unauthorized)?;
        // Every key is compared with the whole of what was sent, so that the time tells nothing.
        let mut found = None;
        for key in &self.keys {
            if bool::from(key.secret.len().ct_eq(&sent.len()) & bytes_equal(key.secret.as_bytes(), sent)) {
                found = Some(key);
            }
        }
        found.ok_or_else(ApiError::unauthorized)
    }
}

fn bytes_equal(a: &[u8], b: &[u8]) -> Choice {
    let b = b.iter().copied().chain(std::iter::repeat(0));
    a.iter().zip(b).fold(Choice::from(1), |same, (a, b)| same & a.ct_eq(&b))
}

impl Key {
    fn take_from_bucket(&self, per_minute: u32) -> Result<()> {
        let (size, now) = (f64::from(per_minute), Instant::now());
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = bucket.unwrap_or((size, now));
        let left = (left + (now - since).as_secs_f64() * size / 60.0).min(size);
        let allowed = left >= 1.0;
        *bucket = Some((if allowed { left - 1.0 } else { left }, now));
        if allowed {
            return Ok(());
        }
        let wait_s = ((1.0 - left) * 60.0 / size).ceil().max(1.0) as u32;
        Err(ApiError::rate_limited(format!("this key may send {per_minute} requests a minute"), wait_s))
    }
}

impl Watch for Permit {}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn only_whole_keys_open() {
        let keys = Keys::new(vec!["alpha".into(), "beta".into()], KeyLimits::default());
        for (name, value, ok) in [
            ("authorization", "Bearer alpha", true),
            ("x-api-key", "beta", true),
            ("authorization", "Bearer alpha1", false),
            ("authorization", "Bearer alphaa", false),
            ("authorization", "alpha", false),
            ("x-api-key", "", false),
        ] {
            assert_eq!(keys.admit(&headers(name, value)).is_ok(), ok, "{name}: {value}");
        }
        assert!(keys.admit(&HeaderMap::new()).is_err());
        assert!(Keys::default().admit(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn a_key_runs_and_sends_as_much_as_it_may() {
        let keys = Keys::new(vec![], KeyLimits { concurrent: Some(2), per_minute: Some(4) });
        let admit = || keys.admit(&HeaderMap::new());
        let (first, _second) = (admit().unwrap(), admit().unwrap());
        assert_eq!(admit().unwrap_err().retry_after_s, Some(1));
        drop(first);
        let _third = admit().unwrap();
        // Four a minute are spent; the next comes after about 15 s.
        assert!((10..=15).contains(&admit().unwrap_err().retry_after_s.unwrap()));
    }
}
