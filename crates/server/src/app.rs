//! What all handlers share.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ferrum_engine::SamplingParams;
use ferrum_models::{
    ModelInfo, Pooling,
    text::{ChatTemplate, Tokenizer},
};

use crate::{
    error::{ApiError, Result},
    grammars::Grammars,
    limits::Keys,
    metrics::Metrics,
    output::ToolFormat,
    service::{Refused, Service, Snapshot},
};

/// A model that answers.
pub struct Served {
    /// The name that clients use
    pub name: String,
    pub info: ModelInfo,
    pub tokenizer: Arc<Tokenizer>,
    /// `None` for base models
    pub template: Option<ChatTemplate>,
    /// How the model writes tool calls; `None`: its template takes no tools, or the form is not known
    pub tool_format: Option<ToolFormat>,
    /// How it makes embeddings
    pub pooling: Pooling,
    /// What holds where a request says nothing
    pub sampling: SamplingParams,
    pub max_context: usize,
    pub max_seqs: usize,
    pub backend: String,
    pub service: Service,
}

/// The state of the process.
pub struct App {
    model: OnceLock<Served>,
    draining: AtomicBool,
    pub keys: Keys,
    pub metrics: Metrics,
    pub(crate) grammars: Grammars,
    /// An engine at work that has not ended a step for this long is stuck
    pub stuck_after: Duration,
    /// Seconds since 1970 when the process started
    pub created: u64,
    next_id: AtomicU64,
    id_seed: u64,
    random: RandomState,
}

/// Why the server cannot answer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unhealthy {
    Loading,
    Draining,
    /// The engine's thread has ended
    Dead,
    /// No step has ended for this many seconds
    Stuck(u64),
    /// This many steps failed, one after the other
    Failing(u32),
}

/// Steps that may fail in a row before the server calls itself unhealthy.
const MAX_FAILURES: u32 = 3;

impl App {
    pub fn new(keys: Keys, stuck_after: Duration) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            model: OnceLock::new(),
            draining: AtomicBool::new(false),
            keys,
            metrics: Metrics::default(),
            grammars: Grammars::default(),
            stuck_after,
            created: created.as_secs(),
            next_id: AtomicU64::new(0),
            id_seed: created.as_nanos() as u64,
            random: RandomState::new(),
        }
    }

    /// The model has been loaded; requests are answered from now on.
    pub fn ready(&self, model: Served) {
        // A process serves one model, so a second call has nothing to say.
        let _ = self.model.set(model);
    }

    /// The model, or why there is none to answer now.
    ///
    /// # Errors
    /// 503 while loading or draining.
    pub fn model(&self) -> Result<&Served> {
        if self.draining.load(Ordering::Acquire) {
            return Err(Refused::Draining.into());
        }
        self.model.get().ok_or_else(|| ApiError::unavailable("the model is still being loaded; try again in a few seconds"))
    }

    /// The model, checked against the name in a request. No name is fine: there is one model.
    ///
    /// # Errors
    /// 404 for another model's name, 503 while loading or draining.
    pub fn model_named(&self, asked: Option<&str>) -> Result<&Served> {
        let model = self.model()?;
        match asked {
            Some(asked) if asked != model.name => Err(ApiError::model_not_found(asked, &model.name)),
            _ => Ok(model),
        }
    }

    /// Takes no more requests; the engine ends with the last one it has.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        if let Some(model) = self.model.get() {
            model.service.drain();
        }
    }

    pub fn snapshot(&self) -> Option<Snapshot> {
        self.model.get()?.service.snapshot()
    }

    /// Whether the model can answer now.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn health(&self) -> Result<(), Unhealthy> {
        if self.draining.load(Ordering::Acquire) {
            return Err(Unhealthy::Draining);
        }
        let model = self.model.get().ok_or(Unhealthy::Loading)?;
        let snapshot = model.service.snapshot().ok_or(Unhealthy::Dead)?;
        let silent = Instant::now().saturating_duration_since(snapshot.beat);
        if silent > self.stuck_after {
            return Err(Unhealthy::Stuck(silent.as_secs()));
        }
        if snapshot.failures >= MAX_FAILURES {
            return Err(Unhealthy::Failing(snapshot.failures));
        }
        Ok(())
    }

    /// A number that cannot be foretold.
    pub(crate) fn random(&self) -> u64 {
        self.random.hash_one(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// A new id such as `chatcmpl-…`, unlike all others of this process and very likely of all processes.
    pub fn id(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}{:08x}", self.id_seed, self.next_id.fetch_add(1, Ordering::Relaxed))
    }
}

impl std::fmt::Display for Unhealthy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Loading => f.write_str("loading the model"),
            Self::Draining => f.write_str("shutting down"),
            Self::Dead => f.write_str("the engine has stopped"),
            Self::Stuck(seconds) => write!(f, "no step has ended for {seconds} s"),
            Self::Failing(steps) => write!(f, "the last {steps} steps failed"),
        }
    }
}
