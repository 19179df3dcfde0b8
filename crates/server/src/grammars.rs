//! Compiles grammars for requests, away from the threads of engine and connections, and keeps the compiled ones.
//!
//! A grammar is compiled in a thread of its own, with a large stack, at most [`AT_ONCE`] at a time. Its size and the work in it
//! are limited ([`ferrum_engine::GrammarCompiler`]); whoever waits gives up after [`PATIENCE`], and a request whose client has
//! gone before its turn is not compiled at all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use ferrum_engine::{Constraint, GrammarCompiler, GrammarError};
use tokio::{
    sync::{Semaphore, oneshot},
    time::timeout,
};

use crate::{
    app::App,
    error::{ApiError, Result},
    structured::Wanted,
};

/// Grammars compiled at the same time.
const AT_ONCE: usize = 2;
/// How long a request waits for its turn, and again for its grammar.
const PATIENCE: Duration = Duration::from_secs(10);
/// The system gives memory for what is touched only.
const STACK_BYTES: usize = 64 << 20;
/// Compiled grammars kept for the next request.
const CACHE_BYTES: usize = 64 << 20;
/// What a compiled grammar takes besides its automata and its source, at the least.
const ENTRY_BYTES: usize = 16 << 10;

/// See the module's documentation.
pub struct Grammars {
    compiler: OnceLock<Result<GrammarCompiler, GrammarError>>,
    turns: Arc<Semaphore>,
    cache: Mutex<Cache<Constraint>>,
}

impl Default for Grammars {
    fn default() -> Self {
        Self { compiler: OnceLock::new(), turns: Arc::new(Semaphore::new(AT_ONCE)), cache: Mutex::new(Cache::new(CACHE_BYTES)) }
    }
}

/// The constraint that a request asks for.
///
/// # Errors
/// 400, naming the field, when the grammar is not valid or too much; 503 when too many are being compiled.
pub async fn compile(app: &Arc<App>, wanted: &Wanted) -> Result<Constraint> {
    let key = wanted.grammar.key();
    if let Some(constraint) = app.grammars.cache().get(&key) {
        return Ok(constraint);
    }
    let busy = || ApiError::unavailable("too many grammars are being compiled; try again later");
    let turn = timeout(PATIENCE, Arc::clone(&app.grammars.turns).acquire_owned()).await.map_err(|_| busy())?.map_err(|_| busy())?;
    // The first grammar waits for the vocabulary as well, which no request is to blame for.
    let ready = oneshot();
    let compiled = oneshot();
    let (app_there, grammar) = (Arc::clone(app), wanted.grammar.clone());
    let work = move || {
        let _turn = turn;
        let Ok(model) = app_there.model() else { return };
        let compiler = app_there.grammars.compiler.get_or_init(|| GrammarCompiler::new(&model.tokenizer, model.info.vocab));
        // Whoever gave up does not listen.
        let _ = ready.0.send(());
        let constraint = match compiler {
            Ok(compiler) => compiler.compile(&grammar),
            Err(error) => Err(error.clone()),
        };
        if let Ok(constraint) = &constraint {
            let key = grammar.key();
            let bytes = constraint.bytes() + key.len() + ENTRY_BYTES;
            app_there.grammars.cache().put(key, constraint.clone(), bytes);
        }
        let _ = compiled.0.send(constraint);
    };
    let thread = thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES).spawn(work);
    thread.map_err(|error| ApiError::internal(format!("cannot compile the grammar: {error}")))?;
    let failed = || ApiError::internal("compiling the grammar failed");
    ready.1.await.map_err(|_| failed())?;
    let param = &wanted.param;
    let slow = || ApiError::invalid(param, format!("the grammar of `{param}` takes more than {} s to compile", PATIENCE.as_secs()));
    let constraint = timeout(PATIENCE, compiled.1).await.map_err(|_| slow())?.map_err(|_| failed())?;
    constraint.map_err(|error| ApiError::invalid(param, format!("`{param}`: {error}")))
}

fn oneshot<T>() -> (oneshot::Sender<T>, oneshot::Receiver<T>) {
    oneshot::channel()
}

impl Grammars {
    fn cache(&self) -> std::sync::MutexGuard<'_, Cache<Constraint>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The values used last, as many as fit into a number of bytes.
struct Cache<T> {
    entries: HashMap<String, Entry<T>>,
    bytes: usize,
    most_bytes: usize,
    uses: u64,
}

struct Entry<T> {
    value: T,
    bytes: usize,
    last_use: u64,
}

impl<T: Clone> Cache<T> {
    fn new(most_bytes: usize) -> Self {
        Self { entries: HashMap::new(), bytes: 0, most_bytes, uses: 0 }
    }

    fn get(&mut self, key: &str) -> Option<T> {
        self.uses += 1;
        let entry = self.entries.get_mut(key)?;
        entry.last_use = self.uses;
        Some(entry.value.clone())
    }

    /// Keeps a value, and drops others until all fit. One that is too large for itself is not kept.
    fn put(&mut self, key: String, value: T, bytes: usize) {
        if bytes > self.most_bytes {
            return;
        }
        self.uses += 1;
        let entry = Entry { value, bytes, last_use: self.uses };
        self.bytes += bytes - self.entries.insert(key, entry).map_or(0, |old| old.bytes);
        while self.bytes > self.most_bytes {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.last_use).map(|(key, _)| key.clone());
            let Some(dropped) = oldest.and_then(|key| self.entries.remove(&key)) else { return };
            self.bytes -= dropped.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_9_the_cache_is_bounded_by_bytes() {
        let mut cache = Cache::new(100);
        for n in 0..1000usize {
            cache.put(format!("{n}"), n, 30);
            assert_eq!(cache.bytes, cache.entries.values().map(|e| e.bytes).sum::<usize>());
            assert!(cache.bytes <= 100 && cache.entries.len() <= 3);
            assert_eq!(cache.get(&format!("{n}")), Some(n));
        }
        assert_eq!(cache.get("997"), Some(997));
        cache.put("new".into(), 1, 30);
        assert_eq!((cache.get("997"), cache.get("998")), (Some(997), None), "the one used longest ago goes");
        cache.put("new".into(), 2, 40);
        assert_eq!((cache.get("new"), cache.bytes), (Some(2), 100));
        cache.put("huge".into(), 3, 101);
        assert_eq!((cache.get("huge"), cache.bytes), (None, 100));
    }
}
