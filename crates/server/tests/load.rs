//! 2,000 streams at once over real sockets. Half of the clients vanish and a quarter reads slowly: everyone who stays gets
//! the whole answer, the same one as everybody with the same question, and afterwards nothing is left behind.
#![cfg(target_os = "linux")]

use std::{collections::HashMap, fs, path::Path, sync::Arc, time::Duration};

use ferrum_cpu::{CpuBackend, CpuOptions};
use ferrum_engine::{Engine, EngineOptions, SamplingParams};
use ferrum_models::Checkpoint;
use ferrum_server::{App, HttpOptions, Keys, Served, Service, serve};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Barrier, oneshot},
    time::sleep,
};

const CLIENTS: usize = 2000;
const QUESTIONS: usize = 8;
const ANSWER_TOKENS: usize = 12;
/// What 2,000 streams may cost in memory, on both sides of the sockets: 100 KiB each.
const MAX_GROWTH_KIB: u64 = CLIENTS as u64 * 100;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Reads,
    ReadsSlowly,
    /// Goes away after the first bytes of the answer
    Leaves,
    /// Goes away right after its question
    NeverReads,
}

#[test]
fn two_thousand_streams_leave_nothing_behind() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let files = 2 * CLIENTS as u64 + 200;
    assert!(hard >= files, "this system allows {hard} open files; the test needs {files}");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(files), hard).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let app = Arc::new(App::new(Keys::default(), Duration::from_secs(60)));
    let engine_thread = load(&app);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let options = HttpOptions { drain: Duration::from_secs(20), ..HttpOptions::default() };
    let server = tokio::spawn(serve(Arc::clone(&app), listener, options, async {
        let _ = stopped.await;
    }));

    let before = memory_kib("VmRSS:");
    let start = Arc::new(Barrier::new(CLIENTS));
    let clients = (0..CLIENTS).map(|number| {
        let start = Arc::clone(&start);
        tokio::spawn(async move {
            let kind = [Client::Reads, Client::Leaves, Client::ReadsSlowly, Client::NeverReads][number % 4];
            let socket = TcpSocket::new_v4().unwrap();
            if kind == Client::ReadsSlowly {
                socket.set_recv_buffer_size(2048).unwrap();
            }
            let stream = socket.connect(address).await.unwrap();
            start.wait().await;
            // All four kinds ask each question.
            (number / 4 % QUESTIONS, ask(stream, kind, number / 4 % QUESTIONS).await)
        })
    });
    let mut answers: HashMap<usize, String> = HashMap::new();
    let mut whole = 0;
    for client in clients.collect::<Vec<_>>() {
        let (question, answer) = client.await.unwrap();
        let Some(answer) = answer else { continue };
        whole += 1;
        assert_eq!(*answers.entry(question).or_insert_with(|| answer.clone()), answer, "question {question}");
    }
    assert_eq!((whole, answers.len()), (CLIENTS / 2, QUESTIONS));
    let growth = memory_kib("VmHWM:") - before;

    let service = &app.model().unwrap().service;
    for _ in 0..500 {
        let snapshot = app.snapshot().unwrap();
        if (snapshot.running, snapshot.waiting) == (0, 0) {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    let snapshot = app.snapshot().unwrap();
    assert_eq!((snapshot.running, snapshot.waiting), (0, 0), "requests of clients that have gone still run");
    assert_eq!(snapshot.blocks.0, snapshot.blocks.1, "blocks are still in use");
    assert!(snapshot.stats.counts.reused_tokens > 0, "nothing was shared: {:?}", snapshot.stats.counts);
    service.check_integrity().await.unwrap();
    assert_eq!(app.health(), Ok(()));
    println!("{CLIENTS} streams took {growth} KiB; {:?}", snapshot.stats.counts);
    assert!(growth < MAX_GROWTH_KIB, "{growth} KiB for {CLIENTS} streams");

    stop.send(()).unwrap();
    server.await.unwrap();
    engine_thread.join().unwrap();
}

/// Sends question and returns the text of the answer, unless the client goes away before.
async fn ask(mut stream: TcpStream, kind: Client, question: usize) -> Option<String> {
    let body = json!({
        "prompt": format!("{question} times the cat sat on the mat and looked at the dog, who looked at the bird, who saw nobody"),
        "max_tokens": ANSWER_TOKENS,
        "ignore_eos": true,
        "stream": true,
    })
    .to_string();
    let head = format!("POST /v1/completions HTTP/1.1\r\nHost: ferrum\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    if kind == Client::NeverReads {
        return None;
    }
    let (mut received, mut buffer) = (Vec::new(), vec![0; if kind == Client::ReadsSlowly { 256 } else { 16 << 10 }]);
    loop {
        let count = stream.read(&mut buffer).await.unwrap();
        received.extend_from_slice(&buffer[..count]);
        match kind {
            _ if count == 0 => break,
            Client::Leaves => return None,
            Client::ReadsSlowly => sleep(Duration::from_millis(20)).await,
            Client::Reads | Client::NeverReads => {}
        }
    }
    let received = String::from_utf8(received).unwrap();
    assert!(received.starts_with("HTTP/1.1 200 "), "{received}");
    let mut events: Vec<&str> = received.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(events.pop(), Some("[DONE]"), "{received}");
    let events: Vec<Value> = events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length", "{received}");
    Some(events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect())
}

/// The fixture `llama3`, with blocks for a quarter of the sequences at their longest.
fn load(app: &App) -> std::thread::JoinHandle<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/llama3");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let tokenizer = Arc::new(checkpoint.tokenizer().unwrap());
    let backend: Arc<CpuBackend> = Arc::new(CpuBackend::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap());
    let (max_context, max_seqs) = (128, 64);
    let model = checkpoint.load(&*backend, max_context).unwrap();
    let kv_blocks = max_seqs / 2 * max_context.div_ceil(ferrum_kernels::Backend::kv_block_tokens(&*backend)) / 2;
    let options = EngineOptions {
        max_context: Some(max_context),
        max_seqs,
        max_waiting: CLIENTS,
        kv_blocks: Some(kv_blocks),
        end_tokens: tokenizer.end_ids().to_vec(),
        ..EngineOptions::default()
    };
    let engine = Engine::new(backend, model, options).unwrap();
    let info = engine.model_info().clone();
    let (service, thread) = Service::start(engine).unwrap();
    app.ready(Served {
        name: "tiny".into(),
        info,
        pooling: checkpoint.pooling().unwrap(),
        tool_format: None,
        template: None,
        tokenizer,
        sampling: SamplingParams::default(),
        max_context,
        max_seqs,
        backend: "cpu".into(),
        service,
    });
    thread
}

/// A line of `/proc/self/status`, in KiB.
fn memory_kib(line: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}
