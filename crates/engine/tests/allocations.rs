//! Decoding allocates nothing on the host.

mod common;

use common::{engine, overlapped_engine};
use ferrum_engine::{Engine, EngineOptions, Request, SamplingParams};

/// Allocations of 100 decode steps of four requests, what the test's own model and reference operations allocate left out.
fn allocations(make: fn(usize, EngineOptions) -> Engine, sampling: &SamplingParams) -> u64 {
    let options = EngineOptions { max_context: Some(256), max_seqs: 4, ..EngineOptions::default() };
    let mut engine = make(4, options);
    for prompt in [vec![1, 2, 3], vec![4; 9], vec![5], vec![6, 7]] {
        engine.submit(Request { max_tokens: Some(200), sampling: sampling.clone(), ..Request::new(prompt) }).unwrap();
    }
    let mut events = Vec::with_capacity(8);
    for _ in 0..3 {
        engine.step_into(&mut events).unwrap();
    }
    let info = allocation_counter::measure(|| {
        for _ in 0..100 {
            events.clear();
            engine.step_into(&mut events).unwrap();
            assert_eq!(events.len(), 4);
        }
    });
    info.count_total
}

#[test]
fn greedy_decoding_allocates_nothing() {
    assert_eq!(allocations(engine, &SamplingParams::default()), 0);
    assert_eq!(allocations(overlapped_engine, &SamplingParams::default()), 0);
}

#[test]
fn sampled_decoding_allocates_nothing() {
    let sampling = SamplingParams { temperature: 0.8, top_p: 0.9, seed: Some(1), ..SamplingParams::default() };
    assert_eq!(allocations(engine, &sampling), 0);
    assert_eq!(allocations(overlapped_engine, &sampling), 0);
}

/// Penalties keep the answer a second time, in a vector that doubles: at most 7 growths for each of four requests.
#[test]
fn penalties_allocate_only_to_remember_the_answer() {
    let sampling = SamplingParams { frequency_penalty: 0.1, ..SamplingParams::default() };
    assert!((1..=28).contains(&allocations(engine, &sampling)));
    assert!((1..=28).contains(&allocations(overlapped_engine, &sampling)));
}
