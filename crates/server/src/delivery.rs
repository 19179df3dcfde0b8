//! Brings what the engine says to whom it concerns, on a thread of its own: to wake the tasks of hundreds of requests takes
//! longer than to plan their next tokens.

use std::{
    collections::HashMap,
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Instant,
};

use ferrum_engine::{Event, Finished, RequestId};
use tokio::sync::mpsc::UnboundedSender;

use crate::service::Update;

/// What is to be brought, in order.
pub(crate) enum Delivery {
    /// A request is there, and this is where its updates go
    Client(RequestId, UnboundedSender<Update>),
    /// What one step brought
    Step { begun: Instant, started: Vec<RequestId>, events: Vec<Event> },
    /// A request was ended between two steps
    Cancelled(RequestId, Finished),
}

/// The engine's end of the thread.
pub(crate) struct Deliveries {
    deliveries: Sender<Delivery>,
    gone: Receiver<RequestId>,
    thread: thread::JoinHandle<()>,
}

impl Deliveries {
    /// # Errors
    /// When the system refuses a thread.
    pub fn start() -> std::io::Result<Self> {
        let (deliveries, receiver) = mpsc::channel();
        let (sender, gone) = mpsc::channel();
        let courier = Courier { clients: HashMap::new(), gone: sender };
        let thread = thread::Builder::new().name("deliveries".into()).spawn(move || courier.run(&receiver))?;
        Ok(Self { deliveries, gone, thread })
    }

    pub fn send(&self, delivery: Delivery) {
        // The thread ends with this value, or with a panic, which [`Deliveries::finish`] passes on.
        let _ = self.deliveries.send(delivery);
    }

    /// A request whose updates nobody wants any more.
    pub fn next_gone(&self) -> Option<RequestId> {
        self.gone.try_recv().ok()
    }

    /// Waits until all has been brought.
    pub fn finish(self) {
        drop(self.deliveries);
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

struct Courier {
    clients: HashMap<RequestId, UnboundedSender<Update>>,
    gone: Sender<RequestId>,
}

impl Courier {
    fn run(mut self, deliveries: &Receiver<Delivery>) {
        for delivery in deliveries {
            match delivery {
                Delivery::Client(id, client) => drop(self.clients.insert(id, client)),
                Delivery::Step { begun, started, events } => {
                    started.into_iter().for_each(|id| self.update(id, Update::Started(begun)));
                    for event in events {
                        match event {
                            Event::Token { id, token, logprobs } => self.update(id, Update::Token { token, logprobs }),
                            Event::Prompt { id, reading } => self.update(id, Update::Prompt(reading)),
                            Event::Finished { id, finished } => self.finish(id, finished),
                        }
                    }
                }
                Delivery::Cancelled(id, finished) => self.finish(id, finished),
            }
        }
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
