//! Requests and options nobody should send: each an error that names the field, and nobody else notices.

mod common;

use std::sync::{Arc, atomic::Ordering};

use common::{FakeModel, TestBackend, VOCAB, engine, expected, finish};
use ferrum_engine::{ContextFull, Engine, EngineOptions, Error, Event, FinishReason, MemoryPlan, Request, SamplingParams, SubmitError};
use ferrum_kernels::DType;
use ferrum_models::Model;

fn greedy(prompt: Vec<u32>, max_tokens: u64) -> Request {
    Request { max_tokens: Some(max_tokens), ..Request::new(prompt) }
}

#[test]
fn impossible_numbers_name_their_field() {
    let mut engine = engine(4, EngineOptions { max_context: Some(64), ..EngineOptions::default() });
    type Change = fn(&mut SamplingParams, f64);
    let floats: [(&str, Change); 6] = [
        ("temperature", |s, v| s.temperature = v),
        ("top_p", |s, v| s.top_p = v),
        ("min_p", |s, v| s.min_p = v),
        ("repetition_penalty", |s, v| s.repetition_penalty = v),
        ("presence_penalty", |s, v| s.presence_penalty = v),
        ("frequency_penalty", |s, v| s.frequency_penalty = v),
    ];
    let mut requests = Vec::new();
    for (field, change) in floats {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e308, -1e308, -2.1] {
            let mut request = greedy(vec![1], 1);
            change(&mut request.sampling, value);
            requests.push((field, request));
        }
    }
    let base = greedy(vec![1], 1);
    let with_top_k = |top_k| Request { sampling: SamplingParams { top_k, ..SamplingParams::default() }, ..base.clone() };
    requests.push(("top_k", with_top_k(-2)));
    requests.push(("top_k", with_top_k(i64::MIN)));
    for max_tokens in [0, 1 << 31, 1 << 63, u64::MAX] {
        requests.push(("max_tokens", greedy(vec![1], max_tokens)));
    }
    for count in [VOCAB + 1, 129, usize::MAX] {
        requests.push(("logprobs", Request { logprobs: Some(count), ..base.clone() }));
    }
    requests.push(("prompt", greedy(vec![], 1)));
    requests.push(("prompt", greedy(vec![1, VOCAB as u32], 1)));
    requests.push(("prompt", greedy(vec![u32::MAX], 1)));
    requests.push(("stop_tokens", Request { stop_tokens: vec![u32::MAX], ..base.clone() }));
    requests.push(("stop_tokens", Request { stop_tokens: vec![1; 100_000], ..base.clone() }));
    for keep in [33, usize::MAX] {
        requests.push(("keep", Request { on_context_full: ContextFull::Shift { keep }, ..base.clone() }));
    }
    for (wanted, request) in requests {
        match engine.submit(request.clone()) {
            Err(SubmitError::Invalid { field, .. }) => assert_eq!(field, wanted),
            other => panic!("{wanted}: {other:?} for {request:?}"),
        }
    }
    assert!(!engine.has_work());
    // The ends of the ranges are fine.
    for top_k in [-1, 0, i64::MAX] {
        assert!(engine.submit(with_top_k(top_k)).is_ok());
    }
    for (temperature, top_p, min_p) in [(100.0, 0.0, 1.0), (1e-300, 1.0, 0.0)] {
        let sampling = SamplingParams { temperature, top_p, min_p, ..SamplingParams::default() };
        assert!(engine.submit(Request { sampling, ..base.clone() }).is_ok());
    }
    while engine.has_work() {
        engine.step().unwrap();
    }
    engine.check_integrity().unwrap();
}

#[test]
fn what_can_never_fit_is_refused_with_the_numbers() {
    let mut engine = engine(4, EngineOptions { max_context: Some(16), max_waiting: 2, ..EngineOptions::default() });
    let sixteen: Vec<u32> = (0..16).collect();
    let error = engine.submit(greedy(sixteen.clone(), 1)).unwrap_err();
    assert_eq!(error, SubmitError::PromptTooLong { prompt_tokens: 16, max_context: 16 });
    let refuse = |max_tokens| Request { on_context_full: ContextFull::Refuse, ..greedy(sixteen[..10].to_vec(), max_tokens) };
    let error = engine.submit(refuse(7)).unwrap_err();
    assert_eq!(error, SubmitError::ContextExceeded { prompt_tokens: 10, max_tokens: 7, max_context: 16 });
    engine.submit(refuse(6)).unwrap();
    engine.submit(greedy(sixteen[..15].to_vec(), 1)).unwrap();
    assert_eq!(engine.submit(refuse(1)), Err(SubmitError::QueueFull { limit: 2 }));
    while engine.has_work() {
        engine.step().unwrap();
    }
}

#[test]
fn a_failing_device_ends_only_the_requests_of_that_step() {
    let model = FakeModel::new();
    let backend = Arc::new(TestBackend { block_tokens: 4, memory: 1 << 32, asynchronous: false });
    let options = EngineOptions { max_context: Some(64), max_seqs: 1, kv_dtype: DType::F32, ..EngineOptions::default() };
    let mut engine = Engine::new(backend, model.clone(), options).unwrap();
    let lost = engine.submit(greedy((0..10).collect(), 20)).unwrap();
    let waits = engine.submit(greedy((0..12).collect(), 20)).unwrap();
    engine.step().unwrap();
    model.broken.store(true, Ordering::Relaxed);
    let mut events = Vec::new();
    let error = engine.step_into(&mut events).unwrap_err();
    assert!(error.to_string().contains("broken on request"), "{error}");
    assert!(matches!(&events[..], [Event::Finished { id, finished }] if *id == lost && finished.reason == FinishReason::Failed));
    engine.check_integrity().unwrap();
    assert_eq!(finish(&mut engine, waits).0, expected(&greedy((0..12).collect(), 20), 64, &[]).0);
}

#[test]
fn impossible_options_name_their_field() {
    let base = EngineOptions { max_context: Some(64), ..EngineOptions::default() };
    let cases = [
        ("max_context", EngineOptions { max_context: Some(1), ..base.clone() }),
        ("max_context", EngineOptions { max_context: Some(usize::MAX), ..base.clone() }),
        ("max_seqs", EngineOptions { max_seqs: 0, ..base.clone() }),
        ("max_seqs", EngineOptions { max_seqs: usize::MAX, ..base.clone() }),
        ("max_step_tokens", EngineOptions { max_seqs: 4, max_step_tokens: Some(3), ..base.clone() }),
        ("max_step_tokens", EngineOptions { max_step_tokens: Some(usize::MAX), ..base.clone() }),
        ("max_logit_rows", EngineOptions { max_logit_rows: Some(0), ..base.clone() }),
        ("kv_blocks", EngineOptions { kv_blocks: Some(15), ..base.clone() }),
        ("kv_blocks", EngineOptions { kv_blocks: Some(usize::MAX), ..base.clone() }),
        ("kv_dtype", EngineOptions { kv_dtype: DType::Q4_0, ..base.clone() }),
        ("end_tokens", EngineOptions { end_tokens: vec![VOCAB as u32], ..base }),
    ];
    for (wanted, options) in cases {
        let backend = Arc::new(TestBackend { block_tokens: 4, memory: 1 << 32, asynchronous: false });
        match Engine::new(backend, FakeModel::new(), options.clone()).err() {
            Some(Error::Option { field, .. }) => assert_eq!(field, wanted),
            other => panic!("{wanted}: {other:?} for {options:?}"),
        }
    }
}

#[test]
fn scoring_checks_its_arguments_and_the_free_blocks() {
    let options = EngineOptions { max_context: Some(64), max_seqs: 2, kv_blocks: Some(16), ..EngineOptions::default() };
    let mut engine = engine(4, options);
    let tokens: Vec<u32> = (0..40).collect();
    for (tokens, from) in [(&tokens[..], 0), (&tokens, 40), (&tokens, usize::MAX), (&[], 1), (&[1], 1), (&[1, u32::MAX], 1), (&[1; 65], 1)]
    {
        assert!(matches!(engine.score(tokens, from), Err(Error::Request(SubmitError::Invalid { .. }))), "{from}");
    }
    let id = engine.submit(greedy(tokens.clone(), 20)).unwrap();
    while engine.stats().counts.generated_tokens == 0 {
        engine.step().unwrap();
    }
    assert!(matches!(engine.score(&tokens, 1), Err(Error::Busy { tokens: 40, needed: 10, available: 5 | 6 })));
    // The first token came while the prompt was computed.
    assert_eq!(finish(&mut engine, id).0, expected(&greedy(tokens, 20), 64, &[]).0[1..]);
}

#[test]
fn a_plan_that_does_not_fit_is_refused_with_the_numbers() {
    let info = FakeModel::new().info().clone();
    let options = EngineOptions { max_context: Some(1024), kv_dtype: DType::F32, ..EngineOptions::default() };
    // Two layers of keys and values, four numbers of four bytes each.
    let per_token = 2 * 2 * 4 * 4;
    let roomy = MemoryPlan::new(&info, 5000, &TestBackend { block_tokens: 4, memory: 1 << 30, asynchronous: false }, &options).unwrap();
    assert_eq!((roomy.kv_bytes_per_token, roomy.kv_tokens, roomy.kv_bytes), (per_token, 1024, 1024 * per_token));
    assert_eq!(roomy.total_bytes, 5000 + roomy.kv_bytes + roomy.scratch_bytes);
    assert!(roomy.check().is_ok());
    let backend = TestBackend { block_tokens: 4, memory: 5000 + roomy.scratch_bytes + 101 * per_token, asynchronous: false };
    let tight = MemoryPlan::new(&info, 5000, &backend, &options).unwrap();
    assert_eq!(tight.max_context_that_fits, 100);
    let message = tight.check().unwrap_err().to_string();
    for number in [tight.total_bytes, 5000, tight.kv_bytes, tight.scratch_bytes, tight.available_bytes, 100] {
        assert!(message.contains(&number.to_string()), "{number} in {message}");
    }
    assert!(matches!(Engine::new(Arc::new(backend), FakeModel::new(), options), Err(Error::Memory(_))));
}
