//! Brings what the engine says to whom it concerns, on a thread of its own: to wake the tasks of hundreds of requests takes
//! longer than to plan their next tokens.
//!
//! There is a fixed number of parcels, which come back empty. An engine that has none left waits, so that it is never more
//! than these steps ahead of what its requests know.

use std::{
    collections::HashMap,
    sync::mpsc::{self, Receiver, Sender, SyncSender, TryRecvError},
    thread,
    time::Instant,
};

use ferrum_engine::{Event, Finished, RequestId};
use tokio::sync::mpsc::UnboundedSender;

use crate::service::Update;

/// Parcels there are: one that the engine fills, one that is being brought, and those between the two.
pub(crate) const PARCELS: usize = 4;

/// What is brought at once, in this order.
#[derive(Default)]
pub(crate) struct Parcel {
    /// Requests that are new, and where their updates go
    pub clients: Vec<(RequestId, UnboundedSender<Update>)>,
    /// Requests whose computation has begun, and when
    pub started: Vec<(RequestId, Instant)>,
    pub events: Vec<Event>,
}

/// The engine's end of the thread.
pub(crate) struct Deliveries {
    filled: SyncSender<Parcel>,
    emptied: Receiver<Parcel>,
    gone: Receiver<RequestId>,
    thread: thread::JoinHandle<()>,
}

impl Deliveries {
    /// # Errors
    /// When the system refuses a thread.
    pub fn start() -> std::io::Result<Self> {
        Self::start_with(Courier::run)
    }

    /// As [`Deliveries::start`], of a thread that does `work`.
    ///
    /// # Errors
    /// As [`Deliveries::start`].
    pub fn start_with(work: impl FnOnce(Courier) + Send + 'static) -> std::io::Result<Self> {
        // Each has room for all parcels, so that sending never waits.
        let (filled, to_courier) = mpsc::sync_channel(PARCELS);
        let (to_engine, emptied) = mpsc::sync_channel(PARCELS);
        let (to_worker, gone) = mpsc::channel();
        // The engine has one already. This end is there to receive.
        (1..PARCELS).for_each(|_| drop(to_engine.send(Parcel::default())));
        let courier = Courier { clients: HashMap::new(), filled: to_courier, emptied: to_engine, gone: to_worker };
        let thread = thread::Builder::new().name("deliveries".into()).spawn(move || work(courier))?;
        Ok(Self { filled, emptied, gone, thread })
    }

    /// Hands a parcel over and puts an empty one in its place, waiting for it if need be. When the thread has ended, the parcel
    /// is lost, and [`Deliveries::next_gone`] says so.
    pub fn send(&self, parcel: &mut Parcel) {
        let empty = self.emptied.recv().unwrap_or_default();
        let _ = self.filled.send(std::mem::replace(parcel, empty));
    }

    /// A request whose updates nobody wants any more.
    ///
    /// # Errors
    /// When there is none now, or the thread has ended.
    pub fn next_gone(&self) -> Result<RequestId, TryRecvError> {
        self.gone.try_recv()
    }

    /// Waits until all has been brought, and passes on a panic of the thread.
    pub fn finish(self) {
        drop(self.filled);
        if let Err(panic) = self.thread.join() {
            tracing::error!("the thread that brings answers panicked; the engine has stopped");
            std::panic::resume_unwind(panic);
        }
    }
}

/// The thread's end.
pub(crate) struct Courier {
    clients: HashMap<RequestId, UnboundedSender<Update>>,
    filled: Receiver<Parcel>,
    emptied: SyncSender<Parcel>,
    gone: Sender<RequestId>,
}

impl Courier {
    pub fn run(mut self) {
        while self.bring_next() {}
    }

    /// Waits for a parcel and brings it. `false`: there will be none.
    pub fn bring_next(&mut self) -> bool {
        let Ok(mut parcel) = self.filled.recv() else { return false };
        self.clients.extend(parcel.clients.drain(..));
        parcel.started.drain(..).for_each(|(id, at)| self.update(id, Update::Started(at)));
        for event in parcel.events.drain(..) {
            match event {
                Event::Token { id, token, logprobs } => self.update(id, Update::Token { token, logprobs }),
                Event::Prompt { id, reading } => self.update(id, Update::Prompt(reading)),
                Event::Finished { id, finished } => self.finish(id, finished),
            }
        }
        // An engine that is gone fills no more.
        let _ = self.emptied.send(parcel);
        true
    }

    fn update(&mut self, id: RequestId, update: Update) {
        if self.clients.get(&id).is_some_and(|client| client.send(update).is_err()) {
            self.clients.remove(&id);
            // An engine that is gone has nothing left to cancel.
            let _ = self.gone.send(id);
        }
    }

    fn finish(&mut self, id: RequestId, finished: Finished) {
        if let Some(client) = self.clients.remove(&id) {
            // Whoever dropped the ticket does not listen.
            let _ = client.send(Update::Finished(finished));
        }
    }
}
