//! What is computed, and what is not computed again.

mod common;

use common::{VOCAB, engine, expected, expected_logits, finish, run};
use ferrum_engine::{ContextFull, Engine, EngineOptions, Event, FinishReason, Request, SamplingParams};

fn one_user() -> Engine {
    engine(4, EngineOptions { max_context: Some(256), ..EngineOptions::default() })
}

fn request(prompt: &[u32], max_tokens: u64) -> Request {
    Request { max_tokens: Some(max_tokens), ..Request::new(prompt.to_vec()) }
}

fn computed(engine: &Engine) -> u64 {
    engine.stats().counts.computed_tokens
}

/// The length of the first turn is tried in all positions within a block.
#[test]
fn the_next_turn_computes_only_its_new_tokens() {
    for length in 1..14 {
        let mut engine = one_user();
        let mut conversation: Vec<u32> = (0..length).map(|i| (i * 5 + 1) % VOCAB as u32).collect();
        let mut known = 0;
        for turn in 0..4 {
            let before = computed(&engine);
            let (answer, finished) = run(&mut engine, request(&conversation, 6));
            assert_eq!(answer, expected(&request(&conversation, 6), 256, &[]).0);
            assert_eq!(finished.reused_tokens, known, "length {length}, turn {turn}");
            // The last token of an answer is not computed before somebody needs what follows it.
            assert_eq!(computed(&engine) - before, (conversation.len() - known + answer.len() - 1) as u64);
            conversation.extend(&answer);
            known = conversation.len() - 1;
            conversation.extend([turn, 7, 9]);
        }
    }
}

#[test]
fn a_stopped_answer_is_reused_whole() {
    let mut engine = one_user();
    let prompt: Vec<u32> = (10..25).collect();
    let free = expected(&request(&prompt, 8), 256, &[]).0;
    let stop = free[5];
    let first = free.iter().position(|t| *t == stop).unwrap();
    let (answer, finished) = run(&mut engine, Request { stop_tokens: vec![stop], ..request(&prompt, 8) });
    assert_eq!((&answer[..], finished.reason, finished.stop_token), (&free[..first], FinishReason::Stop, Some(stop)));
    let next = [&prompt[..], &answer, &[stop, 1, 2]].concat();
    let (_, finished) = run(&mut engine, request(&next, 1));
    assert_eq!(finished.reused_tokens, prompt.len() + answer.len());
}

#[test]
fn a_repeated_or_cut_prompt_recomputes_its_last_token() {
    let mut engine = one_user();
    let prompt: Vec<u32> = (0..10).collect();
    run(&mut engine, request(&prompt, 1));
    // Two whole blocks, and one of the two tokens behind them.
    assert_eq!(run(&mut engine, request(&prompt, 1)).1.reused_tokens, 9);
    // The last token is inside a whole block, which is not touched, because others may use it.
    assert_eq!(run(&mut engine, request(&prompt[..8], 1)).1.reused_tokens, 4);
    assert_eq!(run(&mut engine, request(&prompt[..1], 1)).1.reused_tokens, 0);
}

#[test]
fn another_continuation_leaves_the_first_one_alone() {
    let mut engine = one_user();
    let prompt: Vec<u32> = (0..10).collect();
    let one = [&prompt[..], &[20, 21, 22]].concat();
    let other = [&prompt[..], &[30, 31, 32]].concat();
    run(&mut engine, request(&one, 1));
    assert_eq!(run(&mut engine, request(&other, 1)).1.reused_tokens, 8);
    assert_eq!(run(&mut engine, request(&one, 3)).0, expected(&request(&one, 3), 256, &[]).0);
    assert_eq!(run(&mut engine, request(&other, 3)).0, expected(&request(&other, 3), 256, &[]).0);
}

#[test]
fn running_requests_share_their_common_beginning() {
    let mut engine = engine(4, EngineOptions { max_context: Some(64), max_seqs: 4, ..EngineOptions::default() });
    let prompt: Vec<u32> = (0..21).collect();
    run(&mut engine, request(&prompt, 1));
    let before = engine.blocks().1;
    for seed in 0..4 {
        let sampling = SamplingParams { temperature: 1.0, seed: Some(seed), ..SamplingParams::default() };
        engine.submit(Request { sampling, ..request(&prompt, 10) }).unwrap();
    }
    engine.step().unwrap();
    // Five blocks together, and one for each.
    assert_eq!(before - engine.blocks().1, 5 + 4);
    engine.check_integrity().unwrap();
}

#[test]
fn without_a_prefix_cache_nothing_is_reused() {
    let mut engine = engine(4, EngineOptions { max_context: Some(64), prefix_cache: false, ..EngineOptions::default() });
    let prompt: Vec<u32> = (0..21).collect();
    run(&mut engine, request(&prompt, 4));
    assert_eq!(run(&mut engine, request(&prompt, 4)).1.reused_tokens, 0);
    assert_eq!(engine.blocks().2, 0);
}

#[test]
fn the_least_recently_used_text_is_evicted() {
    // 8 blocks: two texts of 3 blocks fit beside each other, a third one does not.
    let mut engine = engine(4, EngineOptions { max_context: Some(16), kv_blocks: Some(8), ..EngineOptions::default() });
    let text = |n: u32| (0..12).map(|i| n * 12 + i).collect::<Vec<u32>>();
    run(&mut engine, request(&text(0), 1));
    run(&mut engine, request(&text(1), 1));
    // One more block than three: it comes from the blank ones.
    run(&mut engine, request(&[text(0), vec![1]].concat(), 1));
    run(&mut engine, request(&text(2), 1));
    assert_eq!(run(&mut engine, request(&[text(0), vec![2]].concat(), 1)).1.reused_tokens, 12);
    assert!(run(&mut engine, request(&[text(1), vec![2]].concat(), 1)).1.reused_tokens < 12);
}

#[test]
fn a_long_prompt_does_not_stop_the_others() {
    let options = EngineOptions { max_context: Some(256), max_seqs: 2, max_step_tokens: Some(8), ..EngineOptions::default() };
    let mut engine = engine(4, options);
    let quick = engine.submit(request(&[1, 2, 3], 40)).unwrap();
    engine.step().unwrap();
    let long: Vec<u32> = (0..100).map(|i| i % VOCAB as u32).collect();
    let slow = engine.submit(request(&long, 2)).unwrap();
    let mut slow_done = false;
    for step in 0..14 {
        let events = engine.step().unwrap();
        assert_eq!(engine.stats().last_step.tokens, 8, "step {step}");
        assert!(events.iter().any(|e| matches!(e, Event::Token { id, .. } if *id == quick)), "step {step}");
        slow_done |= events.iter().any(|e| matches!(e, Event::Token { id, .. } if *id == slow));
        if step == 13 {
            assert!(!slow_done, "7 tokens a step");
        }
    }
    assert_eq!(finish(&mut engine, slow).0, expected(&request(&long, 2), 256, &[]).0);
}

/// Three answers that need 15 blocks each share 20.
#[test]
fn who_loses_blocks_goes_on_where_it_was() {
    let options = EngineOptions { max_context: Some(64), max_seqs: 3, kv_blocks: Some(20), ..EngineOptions::default() };
    let mut engine = engine(4, options);
    let requests = [10, 20, 30].map(|token| request(&[token; 9], 50));
    let ids = requests.clone().map(|r| engine.submit(r).unwrap());
    let mut answers = [const { Vec::new() }; 3];
    while engine.has_work() {
        for event in engine.step().unwrap() {
            let Event::Token { id, token, .. } = event else { continue };
            answers[ids.iter().position(|i| *i == id).unwrap()].push(token);
        }
        engine.check_integrity().unwrap();
    }
    for (request, answer) in requests.iter().zip(&answers) {
        assert_eq!(*answer, expected(request, 64, &[]).0);
    }
    let counts = engine.stats().counts;
    assert!(counts.preemptions > 0);
    // 58 tokens each and what was computed again; without limits a sequence would lose its work at every step.
    assert!(counts.computed_tokens < 3 * 58 + 150, "{counts:?}");
    assert_eq!((counts.prompt_tokens, counts.generated_tokens), (3 * 9, 3 * 50), "those computed again count once: {counts:?}");
}

#[test]
fn priorities_come_before_arrival() {
    let mut engine = one_user();
    let first = engine.submit(request(&[1], 3)).unwrap();
    engine.step().unwrap();
    let later = engine.submit(Request { priority: 1, ..request(&[2], 1) }).unwrap();
    let urgent = engine.submit(Request { priority: -1, ..request(&[3], 1) }).unwrap();
    let plain = engine.submit(request(&[4], 1)).unwrap();
    let mut order = Vec::new();
    while engine.has_work() {
        order.extend(engine.step().unwrap().into_iter().filter_map(|e| match e {
            Event::Finished { id, .. } => Some(id),
            Event::Token { .. } | Event::Prompt { .. } => None,
        }));
    }
    assert_eq!(order, [first, urgent, plain, later]);
}

#[test]
fn a_full_context_ends_or_shifts_as_the_request_chose() {
    let mut engine = engine(4, EngineOptions { max_context: Some(32), ..EngineOptions::default() });
    let prompt: Vec<u32> = (0..20).collect();
    let (tokens, finished) = run(&mut engine, Request::new(prompt.clone()));
    assert_eq!((tokens.len(), finished.reason), (12, FinishReason::Context));
    let shifting = Request { on_context_full: ContextFull::Shift { keep: 5 }, ..request(&prompt, 100) };
    let (tokens, finished) = run(&mut engine, shifting.clone());
    assert_eq!(finished.reason, FinishReason::Length);
    assert_eq!(tokens, expected(&shifting, 32, &[]).0);
    assert!(engine.stats().counts.context_shifts > 5);
}

#[test]
fn scores_are_log_probabilities_and_do_not_depend_on_chunks() {
    let tokens: Vec<u32> = (0..40u32).map(|i| i * i % VOCAB as u32).collect();
    let want: Vec<f32> = (1..tokens.len())
        .map(|i| {
            let logits = expected_logits(&tokens[..i]);
            let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
            (f64::from(logits[tokens[i] as usize]) - total.ln()) as f32
        })
        .collect();
    for (max_step_tokens, max_logit_rows) in [(1, 1), (7, 3), (16, 64), (64, 64)] {
        let (max_step_tokens, max_logit_rows) = (Some(max_step_tokens), Some(max_logit_rows));
        let options = EngineOptions { max_context: Some(64), max_step_tokens, max_logit_rows, ..EngineOptions::default() };
        let mut engine = engine(4, options);
        for from in [1, 2, 21, 39] {
            let got = engine.score(&tokens, from).unwrap();
            assert_eq!(got.len(), tokens.len() - from);
            assert!(got.iter().zip(&want[from - 1..]).all(|(g, w)| (g - w).abs() < 1e-5), "from {from}");
        }
        engine.check_integrity().unwrap();
    }
}

#[test]
fn logprobs_are_the_models_own() {
    let mut engine = one_user();
    let sampling = SamplingParams { temperature: 1.5, seed: Some(4), top_k: 3, presence_penalty: 1.0, ..SamplingParams::default() };
    let request = Request { sampling, logprobs: Some(3), ..request(&[5, 6], 5) };
    engine.submit(request).unwrap();
    let mut text = vec![5, 6];
    while engine.has_work() {
        for event in engine.step().unwrap() {
            let Event::Token { token, logprobs, .. } = event else { continue };
            let (logprobs, logits) = (logprobs.unwrap(), expected_logits(&text));
            let total = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
            assert!((f64::from(logprobs.logprob) - f64::from(logits[token as usize]) + total).abs() < 1e-5);
            assert_eq!(logprobs.top.len(), 3);
            assert!(logprobs.top.is_sorted_by(|a, b| a.1 >= b.1));
            text.push(token);
        }
    }
    assert_eq!(text.len(), 7);
}
