use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use axum::{
    body::Body,
    http::{Request as HttpRequest, StatusCode},
};
use ferrum_engine::{EngineOptions, FinishReason, SamplingParams};
use ferrum_kernels::{Backend, Tensor, testkit::NoDevice};
use ferrum_models::{Checkpoint, Model, ModelInfo, Step};
use tower::ServiceExt;

use super::*;
use crate::{
    app::{App, Served, Unhealthy},
    delivery::{Courier, PARCELS},
    limits::Keys,
    routes::{HttpOptions, router},
};

const SEQS: usize = 256;
/// Tokens of an answer
const ANSWER: u64 = 200;

fn checkpoint() -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/llama3")).unwrap()
}

/// An engine for 256 requests on a device that takes no time.
fn engine() -> Engine {
    engine_of(checkpoint().load(&NoDevice, 256).unwrap())
}

fn engine_of(model: Arc<dyn Model>) -> Engine {
    let options = EngineOptions { max_context: Some(256), max_seqs: SEQS, ..EngineOptions::default() };
    Engine::new(Arc::new(NoDevice), model, options).unwrap()
}

fn request(number: u32) -> Request {
    Request { max_tokens: Some(ANSWER), ..Request::new(vec![number; 16]) }
}

/// Calls `turn` with a worker whose [`Worker::turn`] decodes 256 requests, again and again until half of the answers have been
/// made. Before each call everybody has read everything.
fn decode(mut turn: impl FnMut(&mut Worker)) {
    let (service, mut worker) = Service::new(engine(), Deliveries::start().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let read = Arc::new(AtomicU64::new(0));
    for number in 0..SEQS as u32 {
        let (service, read) = (service.clone(), Arc::clone(&read));
        runtime.spawn(async move {
            let mut ticket = service.submit(request(number)).await.unwrap();
            while let Some(update) = ticket.next().await {
                read.fetch_add(u64::from(matches!(update, Update::Token { .. })), Ordering::Relaxed);
            }
        });
    }
    let generated = |worker: &Worker| worker.engine.stats().counts.generated_tokens;
    let all_read = |worker: &Worker| {
        while read.load(Ordering::Relaxed) < generated(worker) {
            thread::sleep(Duration::from_micros(50));
        }
    };
    while worker.engine.queue() != (0, SEQS) || !worker.engine.stats().last_step.is_decode {
        assert!(worker.turn());
    }
    // All parcels have been filled once, and the sizes of steps have been seen twice.
    for _ in 0..2 * PARCELS {
        all_read(&worker);
        assert!(worker.turn());
    }
    while generated(&worker) < SEQS as u64 * ANSWER / 2 {
        all_read(&worker);
        turn(&mut worker);
        assert!(worker.engine.stats().last_step.is_decode);
    }
}

/// The engine's thread, while those who read its answers are quiet. A machine that others use as well makes whole windows slow,
/// but not all of them.
#[test]
fn the_host_has_100_us_for_a_step_of_256_requests_that_are_served() {
    let mut times = Vec::new();
    decode(|worker| {
        let begun = Instant::now();
        assert!(worker.turn());
        times.push(begun.elapsed().saturating_sub(worker.engine.stats().last_step.device_time));
    });
    let mut medians: Vec<Duration> = times
        .chunks_exact_mut(15)
        .map(|window| {
            window.sort_unstable();
            window[window.len() / 2]
        })
        .collect();
    medians.sort_unstable();
    println!("medians of 15 steps each: {medians:?}");
    assert!(medians.len() >= 5, "{medians:?}");
    assert!(medians[0] < Duration::from_micros(100), "{medians:?}");
}

#[test]
fn a_step_of_requests_that_are_served_allocates_nothing() {
    let (mut turns, mut allocations) = (0, 0);
    decode(|worker| {
        let info = allocation_counter::measure(|| assert!(worker.turn()));
        (turns, allocations) = (turns + 1, allocations + info.count_total);
    });
    assert!(turns > 50, "{turns}");
    assert_eq!(allocations, 0, "in {turns} turns");
}

/// Started, with a courier that does `work`.
fn start_with(work: impl FnOnce(Courier) + Send + 'static) -> (Service, thread::JoinHandle<()>) {
    let (service, worker) = Service::new(engine(), Deliveries::start_with(work).unwrap());
    (service, thread::spawn(move || worker.run()))
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_waits_for_a_slow_courier() {
    let (go, going) = mpsc::channel();
    let (service, thread) = start_with(move |courier| {
        going.recv().unwrap();
        courier.run();
    });
    // One, for whoever comes behind it waits with the engine.
    let mut ticket = service.submit(request(1)).await.unwrap();
    let steps = || service.snapshot().unwrap().stats.steps as usize;
    wait_until("the parcels were not used", || steps() == PARCELS);
    // What is not bounded would be over long before.
    thread::sleep(Duration::from_millis(300));
    assert_eq!(steps(), PARCELS, "steps that nobody has heard of");
    go.send(()).unwrap();
    let (mut tokens, mut started) = (0, None);
    let finished = loop {
        match ticket.next().await.unwrap() {
            Update::Started(at) => started = Some(at),
            Update::Token { .. } => tokens += 1,
            Update::Prompt(_) => unreachable!("nobody asked"),
            Update::Finished(finished) => break finished,
        }
    };
    assert!(started.unwrap() > ticket.submitted());
    assert_eq!((tokens, finished.reason), (ANSWER, FinishReason::Length));
    service.drain();
    thread.join().unwrap();
}

/// Who is cancelled hears of it at once, also where nothing is left to compute.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_stopped_ends_without_another_step() {
    let (service, thread) = start_with(Courier::run);
    let mut ticket = service.submit(Request { max_tokens: None, ..request(1) }).await.unwrap();
    assert!(matches!(ticket.next().await, Some(Update::Started(_))));
    let asked = Instant::now();
    let finished = ticket.stop().await.unwrap();
    assert!(matches!(finished.reason, FinishReason::Cancelled | FinishReason::Context), "{finished:?}");
    assert!(asked.elapsed() < IDLE_BEAT / 2, "it waited for something else to happen");
    service.drain();
    thread.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_courier_is_told() {
    for brought in [0, 1, 5] {
        let (service, thread) = start_with(move |mut courier| {
            (0..brought).for_each(|_| assert!(courier.bring_next()));
            panic!("the courier dies");
        });
        let app = Arc::new(App::new(Keys::default(), Duration::from_secs(60)));
        app.ready(served(service.clone()));
        // One that is taken ends early, without an end that looks like one.
        if let Ok(mut ticket) = service.submit(request(1)).await {
            let mut last = ticket.next().await;
            while let Some(update) = last {
                assert!(!matches!(update, Update::Finished(_)), "after {brought}");
                last = ticket.next().await;
            }
        }
        wait_until("the engine goes on", || service.snapshot().is_none());
        assert_eq!(app.health(), Err(Unhealthy::Dead));
        wait_until("the engine's thread goes on", || thread.is_finished());
        assert!(thread.join().is_err(), "it ended as if nothing had been");
        assert!(matches!(service.submit(request(2)).await, Err(Refused::Dead)));
        assert_eq!(statuses(&app).await, [StatusCode::SERVICE_UNAVAILABLE; 2]);
    }
}

/// Of `/health`, and of a request for an answer.
async fn statuses(app: &Arc<App>) -> [StatusCode; 2] {
    let router = router(Arc::clone(app), &HttpOptions::default());
    let status = async |request: HttpRequest<Body>| router.clone().oneshot(request).await.unwrap().status();
    let health = status(HttpRequest::get("/health").body(Body::empty()).unwrap()).await;
    let completion = HttpRequest::post("/v1/completions").header("content-type", "application/json");
    let completion = completion.body(Body::from(r#"{"prompt": "the cat", "max_tokens": 4}"#)).unwrap();
    [health, status(completion).await]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_ends_no_step_is_called_stuck_until_it_does() {
    let (go, going) = mpsc::channel();
    let (service, thread) = start_with(move |courier| {
        going.recv().unwrap();
        courier.run();
    });
    let app = Arc::new(App::new(Keys::default(), 3 * IDLE_BEAT));
    app.ready(served(service.clone()));
    let mut ticket = service.submit(request(1)).await.unwrap();
    assert_eq!(app.health(), Ok(()));
    wait_until("it is called healthy", || app.health().is_err());
    assert!(matches!(app.health(), Err(Unhealthy::Stuck(3..))));
    go.send(()).unwrap();
    while !matches!(ticket.next().await.unwrap(), Update::Finished(_)) {}
    assert_eq!(statuses(&app).await, [StatusCode::OK; 2]);
    service.drain();
    thread.join().unwrap();
}

/// A model whose device fails while `broken`.
struct Breakable {
    model: Arc<dyn Model>,
    broken: Arc<AtomicBool>,
}

impl Model for Breakable {
    fn info(&self) -> &ModelInfo {
        self.model.info()
    }
    fn forward(&self, step: &mut Step) -> ferrum_models::Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(ferrum_kernels::Error::Device { backend: "test", reason: "broken on request".into() }.into());
        }
        self.model.forward(step)
    }
    fn states(&self, step: &Step) -> ferrum_models::Result<Tensor> {
        self.model.states(step)
    }
    fn logits(&self, backend: &dyn Backend, states: &Tensor, logits: &Tensor) -> ferrum_models::Result<()> {
        self.model.logits(backend, states, logits)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_whose_steps_fail_is_unhealthy_until_one_does_not() {
    let broken = Arc::new(AtomicBool::new(true));
    let model = Breakable { model: checkpoint().load(&NoDevice, 256).unwrap(), broken: Arc::clone(&broken) };
    let (service, thread) = Service::start(engine_of(Arc::new(model))).unwrap();
    let app = Arc::new(App::new(Keys::default(), Duration::from_secs(60)));
    app.ready(served(service.clone()));
    // The last finds the server unhealthy, and is not turned away: it may be the one that shows that all is well.
    for health in [StatusCode::OK, StatusCode::OK, StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE] {
        assert_eq!(statuses(&app).await, [health, StatusCode::INTERNAL_SERVER_ERROR]);
    }
    assert_eq!(app.health(), Err(Unhealthy::Failing(4)));
    broken.store(false, Ordering::Relaxed);
    assert_eq!(statuses(&app).await, [StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK]);
    assert_eq!(app.health(), Ok(()));
    service.drain();
    thread.join().unwrap();
}

fn served(service: Service) -> Served {
    let checkpoint = checkpoint();
    let model = checkpoint.load(&NoDevice, 256).unwrap();
    Served {
        name: "tiny".into(),
        info: model.info().clone(),
        tokenizer: Arc::new(checkpoint.tokenizer().unwrap()),
        template: None,
        tool_format: None,
        pooling: checkpoint.pooling().unwrap(),
        sampling: SamplingParams::default(),
        max_context: 256,
        max_seqs: SEQS,
        backend: "nothing".into(),
        service,
    }
}
