//! The same request gets the same tokens and the same log-probabilities, to the bit, alone and among 64 others, with its
//! prompt in pieces, and with its prompt found in the cache: real layers on the CPU.

use std::{path::Path, sync::Arc};

use ferrum_cpu::{CpuBackend, CpuOptions};
use ferrum_engine::{Engine, EngineOptions, Event, Request, RequestId, SamplingParams};
use ferrum_kernels::Backend;
use ferrum_models::{Checkpoint, Model};

const CONTEXT: usize = 128;

/// Tokens with all their log-probabilities, and how many tokens of the prompt were reused.
type Answer = (Vec<String>, usize);

struct Loaded {
    backend: Arc<dyn Backend>,
    model: Arc<dyn Model>,
}

impl Loaded {
    fn new(fixture: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures").join(fixture);
        let backend: Arc<dyn Backend> = Arc::new(CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap());
        let model = Checkpoint::open(&path).unwrap().load(&*backend, CONTEXT).unwrap();
        Self { backend, model }
    }

    fn engine(&self, options: EngineOptions) -> Engine {
        let options = EngineOptions { max_context: Some(CONTEXT), ..options };
        Engine::new(self.backend.clone(), self.model.clone(), options).unwrap()
    }

    /// Request `n`: 71 tokens of prompt, the first 40 as all others of the same `n % 2`, greedy or drawn.
    fn request(&self, n: u32) -> Request {
        let vocab = self.model.info().vocab as u32;
        let token = |at: u32| (7 * at + 3 + (n % 2) * 11 + if at < 40 { 0 } else { n * (at + 1) }) % vocab;
        let sampling = SamplingParams { temperature: f64::from(n % 3) * 0.7, seed: Some(u64::from(n)), ..SamplingParams::default() };
        Request { max_tokens: Some(20), logprobs: Some(4), ignore_eos: true, sampling, ..Request::new((0..71).map(token).collect()) }
    }
}

fn run(engine: &mut Engine, requests: Vec<Request>) -> Vec<Answer> {
    let ids: Vec<RequestId> = requests.into_iter().map(|r| engine.submit(r).unwrap()).collect();
    let mut answers = vec![(Vec::new(), 0); ids.len()];
    let mut running = ids.len();
    while running > 0 {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { id, token, logprobs } => {
                    let n = ids.iter().position(|i| *i == id).unwrap();
                    // A float is written with as many digits as tell it from all others.
                    answers[n].0.push(format!("{token} {:?}", logprobs.unwrap()));
                }
                Event::Finished { id, finished } => {
                    answers[ids.iter().position(|i| *i == id).unwrap()].1 = finished.reused_tokens;
                    running -= 1;
                }
                Event::Prompt { .. } => unreachable!("nobody reads a prompt"),
            }
        }
    }
    answers
}

#[test]
fn the_same_request_gets_the_same_bits_whatever_runs_beside_it() {
    for fixture in ["gguf/llama3-q8_0.gguf", "gguf/llama3-f16.gguf", "gemma3", "llama3-bf16", "phi3-window"] {
        let loaded = Loaded::new(fixture);
        let alone = |n: u32| {
            let mut engine = loaded.engine(EngineOptions { prefix_cache: false, ..EngineOptions::default() });
            run(&mut engine, vec![loaded.request(n)]).remove(0).0
        };
        let expected: Vec<Vec<String>> = (0..4).map(alone).collect();
        assert!(expected[0].len() == 20 && expected[0] != expected[2], "{fixture}: the answers tell nothing");

        let mut engine = loaded.engine(EngineOptions { max_seqs: 65, ..EngineOptions::default() });
        let among = run(&mut engine, (0..65).map(|n| loaded.request(n)).collect());
        let again = run(&mut engine, (0..4).map(|n| loaded.request(n)).collect());
        let mut engine = loaded.engine(EngineOptions { max_seqs: 4, max_step_tokens: Some(13), ..EngineOptions::default() });
        let in_pieces = run(&mut engine, (0..4).map(|n| loaded.request(n)).collect());
        for (n, want) in expected.iter().enumerate() {
            assert!(among[n].0 == *want, "{fixture}: request {n} among 64 others");
            assert!(again[n].1 >= 64, "{fixture}: only {} tokens of request {n} were found", again[n].1);
            assert!(again[n].0 == *want, "{fixture}: request {n} with its prompt in the cache");
            assert!(in_pieces[n].0 == *want, "{fixture}: request {n} in pieces");
        }
    }
}
