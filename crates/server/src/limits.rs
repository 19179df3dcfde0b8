//! Who may send requests, and how many.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use axum::http::{HeaderMap, HeaderValue, header};
use subtle::{Choice, ConstantTimeEq};

use crate::error::{ApiError, Result};

/// What a key may do at once and per minute. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Requests that run
    pub concurrent: Option<u32>,
    pub requests_per_minute: Option<u32>,
    /// Tokens computed, of prompts (less what the cache had) and of answers, counted when an answer ends: requests that run when
    /// the limit is reached are still answered
    pub tokens_per_minute: Option<u32>,
}

/// The API keys. Without any, everybody may ask, as one client.
#[derive(Debug)]
pub struct Keys {
    keys: Vec<Arc<Key>>,
    open: Arc<Key>,
    /// What holds for a key that says nothing else
    limits: KeyLimits,
}

#[derive(Debug, Default)]
struct Key {
    secret: String,
    /// What the log calls it
    name: Option<String>,
    limits: KeyLimits,
    /// 0 without keys, else from 1
    account: u32,
    running: AtomicUsize,
    requests: Bucket,
    tokens: Bucket,
}

/// Whose request it is.
#[derive(Clone, Debug)]
pub struct Client(Arc<Key>);

/// Held while a request runs; counts against its key.
#[derive(Debug)]
pub struct Permit(Client);

impl Default for Keys {
    fn default() -> Self {
        Self::open(KeyLimits::default())
    }
}

impl Keys {
    /// # Errors
    /// When a key is empty, or there twice.
    pub fn new(secrets: Vec<String>, limits: KeyLimits) -> io::Result<Self> {
        let mut keys = Self::open(limits);
        for secret in secrets {
            keys.add(Key { secret, limits, ..Key::default() }).map_err(io::Error::other)?;
        }
        Ok(keys)
    }

    /// Without keys: everybody may ask.
    pub fn open(limits: KeyLimits) -> Self {
        Self { keys: Vec::new(), open: Arc::new(Key { limits, ..Key::default() }), limits }
    }

    /// Adds the keys of a file: one a line, behind it its own limits where it has some, and `#` begins a comment:
    ///
    /// ```text
    /// sk-123  name=search  max-concurrent=8  requests-per-minute=600  tokens-per-minute=none
    /// ```
    ///
    /// # Errors
    /// When it cannot be read, has no key, or a line that is wrong; no error shows a key.
    pub fn add_file(&mut self, path: &Path) -> io::Result<()> {
        self.add_lines(&fs::read_to_string(path)?).map_err(io::Error::other)
    }

    fn add_lines(&mut self, text: &str) -> Result<(), String> {
        let before = self.keys.len();
        for (n, line) in text.lines().enumerate() {
            let in_line = |error| format!("line {}: {error}", n + 1);
            if let Some(key) = read_line(line, self.limits).map_err(in_line)? {
                self.add(key).map_err(in_line)?;
            }
        }
        if self.keys.len() == before { Err("it has no key; write one a line".into()) } else { Ok(()) }
    }

    fn add(&mut self, key: Key) -> Result<(), String> {
        // A request without a key has an empty one in `x-api-key:`.
        if key.secret.trim().is_empty() {
            return Err("a key is empty".into());
        }
        if self.keys.iter().any(|known| known.secret == key.secret) {
            return Err("this key is there already".into());
        }
        let account = self.keys.len() as u32 + 1;
        self.keys.push(Arc::new(Key { account, ..key }));
        Ok(())
    }

    /// Whose request it is, by its headers.
    ///
    /// # Errors
    /// 401 without a valid key.
    pub fn client(&self, headers: &HeaderMap) -> Result<Client> {
        if self.keys.is_empty() {
            return Ok(Client(Arc::clone(&self.open)));
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
        found.map(|key| Client(Arc::clone(key))).ok_or_else(ApiError::unauthorized)
    }
}

/// A line of a file of keys; `None` where it has none.
fn read_line(line: &str, limits: KeyLimits) -> Result<Option<Key>, String> {
    let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
    let Some(secret) = words.next() else { return Ok(None) };
    let mut key = Key { secret: secret.to_owned(), limits, ..Key::default() };
    for word in words {
        let Some((field, value)) = word.split_once('=') else {
            return Err("behind a key come fields such as max-concurrent=8".into());
        };
        let limit = match field {
            "name" => {
                key.name = Some(value.to_owned());
                continue;
            }
            "max-concurrent" => &mut key.limits.concurrent,
            "requests-per-minute" => &mut key.limits.requests_per_minute,
            "tokens-per-minute" => &mut key.limits.tokens_per_minute,
            _ => {
                return Err(format!("`{field}` is none of name, max-concurrent, requests-per-minute and tokens-per-minute"));
            }
        };
        *limit = match value.parse() {
            Ok(n) if n > 0 => Some(n),
            _ if value == "none" => None,
            _ => return Err(format!("`{field}` must be a number from 1, or none")),
        };
    }
    Ok(Some(key))
}

fn bytes_equal(a: &[u8], b: &[u8]) -> Choice {
    let b = b.iter().copied().chain(std::iter::repeat(0));
    a.iter().zip(b).fold(Choice::from(1), |same, (a, b)| same & a.ct_eq(&b))
}

impl Client {
    /// The number of the key: users of one have nothing to do with those of another.
    pub fn account(&self) -> u32 {
        self.0.account
    }

    pub fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    /// Lets a request in, or not.
    ///
    /// # Errors
    /// 429 where the key has reached a limit.
    pub fn admit(&self) -> Result<Permit> {
        let (key, limits) = (&self.0, self.0.limits);
        let running = key.running.fetch_add(1, Ordering::AcqRel);
        // From here on the permit counts down.
        let permit = Permit(self.clone());
        if let Some(limit) = limits.concurrent.filter(|&limit| running >= limit as usize) {
            return Err(ApiError::rate_limited(format!("this key has {limit} requests running, which is its limit"), 1));
        }
        if let Some(limit) = limits.tokens_per_minute {
            key.tokens
                .above_zero(limit)
                .map_err(|wait_s| ApiError::rate_limited(format!("this key may use {limit} tokens a minute, and has used them"), wait_s))?;
        }
        // The last, for it takes one.
        if let Some(limit) = limits.requests_per_minute {
            key.requests
                .take_one(limit)
                .map_err(|wait_s| ApiError::rate_limited(format!("this key may send {limit} requests a minute"), wait_s))?;
        }
        Ok(permit)
    }

    /// A request has ended that used so many tokens.
    pub fn charge(&self, tokens: usize) {
        if let Some(limit) = self.0.limits.tokens_per_minute {
            self.0.tokens.change(limit, |left| *left -= tokens as f64);
        }
    }

    /// Puts what is left of the limits into a response, in OpenAI's headers.
    pub fn tell(&self, headers: &mut HeaderMap) {
        let limits = [(self.0.limits.requests_per_minute, &self.0.requests), (self.0.limits.tokens_per_minute, &self.0.tokens)];
        let names = [
            ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"),
            ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens"),
        ];
        for ((limit, bucket), (of, left)) in limits.into_iter().zip(names) {
            let Some(limit) = limit else { continue };
            headers.insert(of, limit.into());
            headers.insert(left, HeaderValue::from(bucket.change(limit, |left| left.max(0.0) as u32)));
        }
    }
}

/// What may still come now, and when that was so: it fills up within a minute. Full at first.
#[derive(Debug, Default)]
struct Bucket(Mutex<Option<(f64, Instant)>>);

impl Bucket {
    /// Changes what is left of `size`.
    fn change<T>(&self, size: u32, change: impl FnOnce(&mut f64) -> T) -> T {
        let (size, now) = (f64::from(size), Instant::now());
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = state.unwrap_or((size, now));
        let mut left = (left + (now - since).as_secs_f64() * size / 60.0).min(size);
        let changed = change(&mut left);
        *state = Some((left, now));
        changed
    }

    /// # Errors
    /// The seconds until there is one.
    fn take_one(&self, size: u32) -> Result<(), u32> {
        self.change(size, |left| {
            if *left < 1.0 {
                return Err(wait_s(1.0 - *left, size));
            }
            *left -= 1.0;
            Ok(())
        })
    }

    /// # Errors
    /// The seconds until there is something left.
    fn above_zero(&self, size: u32) -> Result<(), u32> {
        self.change(size, |left| if *left > 0.0 { Ok(()) } else { Err(wait_s(-*left, size)) })
    }
}

/// Whole seconds in which so much comes into a bucket.
fn wait_s(missing: f64, size: u32) -> u32 {
    (missing * 60.0 / f64::from(size)).ceil().max(1.0) as u32
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.running.fetch_sub(1, Ordering::AcqRel);
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
        let keys = Keys::new(vec!["alpha".into(), "beta".into()], KeyLimits::default()).unwrap();
        for (name, value, ok) in [
            ("authorization", "Bearer alpha", true),
            ("x-api-key", "beta", true),
            ("authorization", "Bearer alpha1", false),
            ("authorization", "Bearer alphaa", false),
            ("authorization", "alpha", false),
            ("x-api-key", "", false),
        ] {
            assert_eq!(keys.client(&headers(name, value)).is_ok(), ok, "{name}: {value}");
        }
        assert!(keys.client(&HeaderMap::new()).is_err());
        assert_eq!(Keys::default().client(&HeaderMap::new()).unwrap().account(), 0);
        for (secrets, part) in [([""; 2], "empty"), ([" ", "a"], "empty"), (["a", "a"], "already")] {
            let error = Keys::new(secrets.map(String::from).to_vec(), KeyLimits::default()).unwrap_err();
            assert!(error.to_string().contains(part), "{secrets:?}: {error}");
        }
    }

    #[test]
    fn limits_hold_per_key_and_permits_come_back() {
        let limits = KeyLimits { concurrent: Some(1), requests_per_minute: Some(2), ..KeyLimits::default() };
        let keys = Keys::new(vec!["a".into(), "b".into()], limits).unwrap();
        let client = |key| keys.client(&headers("x-api-key", key)).unwrap();
        let first = client("a").admit().unwrap();
        assert!(client("a").admit().is_err() && client("b").admit().is_ok());
        drop(first);
        assert!(client("a").admit().is_ok(), "a request that was refused counts as one of the minute");

        let keys = Keys::open(KeyLimits { requests_per_minute: Some(2), ..KeyLimits::default() });
        let client = keys.client(&HeaderMap::new()).unwrap();
        assert!(client.admit().is_ok() && client.admit().is_ok());
        let error = client.admit().unwrap_err();
        assert_eq!((error.status.as_u16(), error.retry_after_s), (429, Some(30)));
        let mut told = HeaderMap::new();
        client.tell(&mut told);
        assert_eq!(
            (&told["x-ratelimit-limit-requests"], &told["x-ratelimit-remaining-requests"]),
            (&"2".parse().unwrap(), &"0".parse().unwrap())
        );
    }

    #[test]
    fn tokens_are_charged_behind_and_come_back_with_time() {
        let keys = Keys::open(KeyLimits { tokens_per_minute: Some(600), ..KeyLimits::default() });
        let client = keys.client(&HeaderMap::new()).unwrap();
        drop(client.admit().unwrap());
        client.charge(599);
        drop(client.admit().unwrap());
        client.charge(301);
        let error = client.admit().unwrap_err();
        // 300 too many, at ten a second
        assert!((29..=30).contains(&error.retry_after_s.unwrap()), "{error:?}");
        client.0.tokens.change(600, |left| *left += 301.0);
        assert!(client.admit().is_ok());
    }

    #[test]
    fn files_have_a_key_a_line_with_its_own_limits() {
        let of_all = KeyLimits { concurrent: Some(3), tokens_per_minute: Some(9), ..KeyLimits::default() };
        let mut keys = Keys::new(vec!["flag".into()], of_all).unwrap();
        keys.add_lines("# all\n\none\n  two name=search max-concurrent=8 tokens-per-minute=none # why\nthree requests-per-minute=1\n")
            .unwrap();
        let shown: Vec<_> = keys.keys.iter().map(|key| (key.secret.as_str(), key.name.as_deref(), key.account, key.limits)).collect();
        let two = KeyLimits { concurrent: Some(8), tokens_per_minute: None, ..of_all };
        let three = KeyLimits { requests_per_minute: Some(1), ..of_all };
        let want = [("flag", None, 1, of_all), ("one", None, 2, of_all), ("two", Some("search"), 3, two), ("three", None, 4, three)];
        assert_eq!(shown, want);
    }

    #[test]
    fn mistakes_in_files_name_the_line_and_not_the_key() {
        for (text, part) in [
            ("", "no key"),
            ("# sk-secret\n", "no key"),
            ("a\nsk-secret sk-other\n", "line 2: behind a key"),
            ("sk-secret max=3", "line 1: `max` is none of name"),
            ("sk-secret max-concurrent=0", "line 1: `max-concurrent` must be"),
            ("sk-secret tokens-per-minute=99999999999", "line 1: `tokens-per-minute` must be"),
            ("sk-secret\nb\nsk-secret", "line 3: this key"),
        ] {
            let error = Keys::default().add_lines(text).unwrap_err();
            assert!(error.contains(part) && !error.contains("sk-"), "{text:?}: {error}");
        }
    }
}
