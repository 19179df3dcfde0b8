//! The engine on a thread of its own, and the handle through which requests reach it.
//!
//! Connections are tasks; the engine is one plain thread. A request goes over as a command and comes back as a stream of
//! [`Update`]s. A [`Ticket`] that is dropped cancels its request: the engine frees its blocks before its next step.
//!
//! The engine hands over all events of a step at once; [`crate::delivery`] brings each to its request. Should that thread die,
//! the engine's ends as well.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use ferrum_engine::{Engine, Event, Finished, KvEvent, Reading, Request, RequestId, Stats, SubmitError, TokenLogprobs};
use prometheus_client::metrics::{family::Family, histogram::Histogram};
use tokio::sync::{broadcast, mpsc as updates, oneshot};

use crate::delivery::{Deliveries, Parcel};

/// How often an idle engine shows that it is alive.
const IDLE_BEAT: Duration = Duration::from_secs(1);

/// Bounds as vLLM has them.
const STEP_TOKENS: [f64; 13] = [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// Bounds in seconds of what the engine's thread does in a step.
const STEP_HOST_S: [f64; 13] = [2e-5, 5e-5, 7.5e-5, 1e-4, 1.5e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1];

/// Steps with changes of the KV cache that a reader may be behind before it loses some.
const KV_EVENTS_BEHIND: usize = 4096;

/// What the engine says of one request.
#[derive(Debug)]
pub enum Update {
    /// Its computation has begun; comes once, before all else
    Started(Instant),
    Token {
        token: u32,
        logprobs: Option<TokenLogprobs>,
    },
    /// More of what was to be read of the prompt; before the first token
    Prompt(Reading),
    /// The last update
    Finished(Finished),
}

/// Why a request was not taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error("the server is shutting down; send the request to another one")]
    Draining,
    #[error("the engine has stopped; restart the server and look into its log")]
    Dead,
}

/// What the engine thread last told of itself.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    pub stats: Stats,
    pub waiting: usize,
    pub running: usize,
    /// Blocks of the KV cache: all, free, and those of the free ones that hold reusable tokens
    pub blocks: (usize, usize, usize),
    /// Tokens that a block holds
    pub block_tokens: usize,
    /// When a step last ended or an idle engine last looked for work
    pub beat: Instant,
    /// Steps that failed since one last succeeded
    pub failures: u32,
}

impl Snapshot {
    /// Tokens that the KV cache holds for running requests, to whole blocks, and those it has room for.
    pub fn used_tokens(&self) -> (usize, usize) {
        let (blocks, free, _) = self.blocks;
        ((blocks - free) * self.block_tokens, blocks * self.block_tokens)
    }
}

/// The way to the engine. Cloning shares it.
#[derive(Clone)]
pub struct Service {
    commands: mpsc::Sender<Command>,
    snapshot: Arc<Mutex<Option<Snapshot>>>,
    steps: StepMetrics,
}

/// What the engine's thread reports of each step.
#[derive(Clone)]
pub(crate) struct StepMetrics {
    pub tokens: Histogram,
    /// Seconds in which the thread did not wait for the device, of steps that only decode and of those with prompts
    pub host: Family<[(&'static str, &'static str); 1], Histogram>,
}

impl Default for StepMetrics {
    fn default() -> Self {
        Self { tokens: Histogram::new(STEP_TOKENS), host: Family::new_with_constructor(|| Histogram::new(STEP_HOST_S)) }
    }
}

/// A request in the engine.
pub struct Ticket {
    id: RequestId,
    commands: mpsc::Sender<Command>,
    updates: updates::UnboundedReceiver<Update>,
    submitted: Instant,
    finished: bool,
}

/// The way for requests that belong to one that the engine takes: further answers to a prompt come behind the first. It takes them
/// also while it drains, and does not end before this is dropped.
pub struct Siblings(Service);

/// What the KV cache holds, and what changes from then on, step by step.
#[derive(Debug)]
pub struct KvWatch {
    pub contents: Vec<KvEvent>,
    pub changes: broadcast::Receiver<Arc<[KvEvent]>>,
}

enum Command {
    Submit {
        request: Box<Request>,
        /// Part of what has been taken already: taken also while draining
        belongs: bool,
        reply: oneshot::Sender<Result<RequestId, Refused>>,
        updates: updates::UnboundedSender<Update>,
    },
    Cancel(RequestId),
    /// There is one more, or one less, of [`Siblings`]
    Expect,
    Forgo,
    WatchKv(oneshot::Sender<KvWatch>),
    Check(oneshot::Sender<Result<(), String>>),
    /// Take no more requests, end when the last one has
    Drain,
}

impl Service {
    /// Starts the engine's thread.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(engine: Engine) -> std::io::Result<(Self, thread::JoinHandle<()>)> {
        let (service, worker) = Self::new(engine, Deliveries::start()?);
        let thread = thread::Builder::new().name("engine".into()).spawn(move || worker.run())?;
        Ok((service, thread))
    }

    fn new(engine: Engine, deliveries: Deliveries) -> (Self, Worker) {
        let (commands, receiver) = mpsc::channel();
        let snapshot = Arc::new(Mutex::new(None));
        let steps = StepMetrics::default();
        let worker = Worker {
            engine,
            commands: receiver,
            deliveries,
            parcel: Parcel::default(),
            snapshot: Arc::clone(&snapshot),
            kv_watchers: None,
            steps: steps.clone(),
            failures: 0,
            siblings: 0,
            draining: false,
        };
        worker.publish();
        (Self { commands, snapshot, steps }, worker)
    }

    /// Hands a request to the engine.
    ///
    /// # Errors
    /// When it is refused, or the engine is not there to take it.
    pub async fn submit(&self, request: Request) -> Result<Ticket, Refused> {
        self.send(request, false).await
    }

    /// Announces requests that belong to the one that is submitted next.
    pub fn siblings(&self) -> Siblings {
        // An engine that is gone refuses the request itself.
        let _ = self.commands.send(Command::Expect);
        Siblings(self.clone())
    }

    async fn send(&self, request: Request, belongs: bool) -> Result<Ticket, Refused> {
        let submitted = Instant::now();
        let (reply, answer) = oneshot::channel();
        let (sender, receiver) = updates::unbounded_channel();
        let command = Command::Submit { request: Box::new(request), belongs, reply, updates: sender };
        self.commands.send(command).map_err(|_| Refused::Dead)?;
        let id = answer.await.map_err(|_| Refused::Dead)??;
        Ok(Ticket { id, commands: self.commands.clone(), updates: receiver, submitted, finished: false })
    }

    /// Takes no more requests; the thread ends with the last of those it has.
    pub fn drain(&self) {
        // An engine that is gone has nothing left to end.
        let _ = self.commands.send(Command::Drain);
    }

    /// Watches what the KV cache holds.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn watch_kv(&self) -> Result<KvWatch, Refused> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::WatchKv(reply)).map_err(|_| Refused::Dead)?;
        answer.await.map_err(|_| Refused::Dead)
    }

    /// Checks the engine's invariants between two steps: [`Engine::check_integrity`].
    ///
    /// # Errors
    /// What is wrong.
    pub async fn check_integrity(&self) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Check(reply)).map_err(|_| Refused::Dead.to_string())?;
        answer.await.unwrap_or_else(|_| Err(Refused::Dead.to_string()))
    }

    pub(crate) fn steps(&self) -> &StepMetrics {
        &self.steps
    }

    /// `None` once the engine's thread has ended.
    pub fn snapshot(&self) -> Option<Snapshot> {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Siblings {
    /// Hands over one of the requests.
    ///
    /// # Errors
    /// As [`Service::submit`].
    pub async fn submit(&self, request: Request) -> Result<Ticket, Refused> {
        self.0.send(request, true).await
    }
}

impl Drop for Siblings {
    fn drop(&mut self) {
        let _ = self.0.commands.send(Command::Forgo);
    }
}

impl Ticket {
    /// When the request was handed over.
    pub fn submitted(&self) -> Instant {
        self.submitted
    }

    /// Ends the request where it is. The blocks are free before the engine's next step.
    pub async fn stop(&mut self) -> Option<Finished> {
        self.commands.send(Command::Cancel(self.id)).ok()?;
        loop {
            match self.next().await? {
                Update::Started(_) | Update::Token { .. } | Update::Prompt(_) => {}
                Update::Finished(finished) => return Some(finished),
            }
        }
    }

    /// The next update; `None` after the last one, or when the engine died.
    pub async fn next(&mut self) -> Option<Update> {
        let update = self.updates.recv().await;
        self.finished |= matches!(update, None | Some(Update::Finished(_)));
        update
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.commands.send(Command::Cancel(self.id));
        }
    }
}

struct Worker {
    engine: Engine,
    commands: mpsc::Receiver<Command>,
    deliveries: Deliveries,
    /// What is handed over next
    parcel: Parcel,
    snapshot: Arc<Mutex<Option<Snapshot>>>,
    /// From the first time somebody watches
    kv_watchers: Option<broadcast::Sender<Arc<[KvEvent]>>>,
    steps: StepMetrics,
    failures: u32,
    /// [`Siblings`] that are there
    siblings: usize,
    draining: bool,
}

impl Worker {
    fn run(mut self) {
        while self.turn() {}
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.deliveries.finish();
    }

    /// Does what has been asked for, and a step if there is anything to compute. `false`: it was the last time.
    fn turn(&mut self) -> bool {
        let (mut begun, idle) = (Instant::now(), !self.engine.has_work());
        if !self.take_commands() {
            return false;
        }
        if idle {
            begun = Instant::now();
        }
        // Who was cancelled does not wait for the step.
        if !self.parcel.events.is_empty() {
            self.deliveries.send(&mut self.parcel);
        }
        let working = self.engine.has_work();
        if working && !self.step() {
            return false;
        }
        self.tell_kv_watchers();
        self.publish();
        if working {
            self.observe(begun);
        }
        true
    }

    /// Takes what has come, waiting for it when there is nothing else to do. `false`: it is time to end.
    fn take_commands(&mut self) -> bool {
        loop {
            match self.deliveries.next_gone() {
                Ok(id) => self.cancel(id),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        loop {
            let idle = !self.engine.has_work();
            if idle && !self.parcel.events.is_empty() {
                return true;
            }
            let command = if idle && !(self.draining && self.siblings == 0) {
                match self.commands.recv_timeout(IDLE_BEAT) {
                    Ok(command) => command,
                    Err(RecvTimeoutError::Timeout) => return true,
                    Err(RecvTimeoutError::Disconnected) => return false,
                }
            } else {
                match self.commands.try_recv() {
                    Ok(command) => command,
                    // An idle engine that drains has had its last request.
                    Err(TryRecvError::Empty) => return !idle,
                    Err(TryRecvError::Disconnected) => return false,
                }
            };
            match command {
                Command::Submit { belongs: false, reply, .. } if self.draining => drop(reply.send(Err(Refused::Draining))),
                Command::Submit { request, reply, updates, .. } => {
                    let submitted = self.engine.submit(*request);
                    if let Ok(id) = submitted {
                        self.parcel.clients.push((id, updates));
                    }
                    // Whoever went away in the meantime is cancelled.
                    if let Err(Ok(id)) = reply.send(submitted.map_err(Refused::from)) {
                        self.cancel(id);
                    }
                }
                Command::Cancel(id) => self.cancel(id),
                Command::Expect => self.siblings += 1,
                Command::Forgo => self.siblings -= 1,
                Command::WatchKv(reply) => drop(reply.send(self.watch_kv())),
                Command::Check(reply) => drop(reply.send(self.engine.check_integrity())),
                Command::Drain => self.draining = true,
            }
        }
    }

    /// `false` when the engine cannot go on.
    fn step(&mut self) -> bool {
        // A request whose computation begins now was submitted before.
        let now = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| self.engine.step_into(&mut self.parcel.events)));
        match &result {
            Ok(Ok(())) => self.failures = 0,
            Ok(Err(error)) => {
                self.failures += 1;
                tracing::error!(%error, failures = self.failures, "a step failed; its requests have ended");
            }
            Err(_) => tracing::error!("the engine panicked and has stopped"),
        }
        // Whoever has an answer can ask what it has changed.
        let tokens = self.engine.stats().last_step.tokens;
        if tokens > 0 {
            self.steps.tokens.observe(tokens as f64);
        }
        self.publish();
        self.parcel.started.extend(self.engine.started().iter().map(|&id| (id, now)));
        self.deliveries.send(&mut self.parcel);
        result.is_ok()
    }

    /// Reports the host's time of the step that has just been made, with all that belonged to it.
    fn observe(&self, begun: Instant) {
        let step = self.engine.stats().last_step;
        if step.tokens > 0 {
            let kind = if step.is_decode { "decode" } else { "prompt" };
            let host = begun.elapsed().saturating_sub(step.device_time);
            self.steps.host.get_or_create(&[("step", kind)]).observe(host.as_secs_f64());
        }
    }

    fn cancel(&mut self, id: RequestId) {
        if let Some(finished) = self.engine.cancel(id) {
            self.parcel.events.push(Event::Finished { id, finished });
        }
    }

    fn watch_kv(&mut self) -> KvWatch {
        self.tell_kv_watchers();
        let watchers = self.kv_watchers.get_or_insert_with(|| {
            // The first call begins to record.
            self.engine.take_kv_events(&mut Vec::new());
            broadcast::channel(KV_EVENTS_BEHIND).0
        });
        KvWatch { contents: self.engine.kv_contents(), changes: watchers.subscribe() }
    }

    fn tell_kv_watchers(&mut self) {
        let Some(watchers) = &self.kv_watchers else { return };
        let mut events = Vec::new();
        self.engine.take_kv_events(&mut events);
        if !events.is_empty() {
            // Nobody may be watching now.
            let _ = watchers.send(events.into());
        }
    }

    fn publish(&self) {
        let (waiting, running) = self.engine.queue();
        let snapshot = Snapshot {
            stats: self.engine.stats(),
            waiting,
            running,
            blocks: self.engine.blocks(),
            block_tokens: self.engine.block_tokens(),
            beat: Instant::now(),
            failures: self.failures,
        };
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Some(snapshot);
    }
}

#[cfg(test)]
mod tests;
