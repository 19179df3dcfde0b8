//! Whatever arrives, is cancelled and runs beside it: every request gets the tokens it would get alone, and blocks are
//! neither lost nor shared by mistake.

mod common;

use std::collections::HashMap;

use common::{VOCAB, constraints, drafting_engine, engine, expected, expected_logits, expected_state, overlapped_engine};
use ferrum_engine::{
    ContextFull, Engine, EngineOptions, Event, FinishReason, KvEvent, ReadPrompt, Reading, Request, RequestId, SamplingParams, SubmitError,
    TokenLogprobs, UserId,
};
use ferrum_models::Pooling;
use proptest::{collection::vec, option, prelude::*};

const END_TOKENS: [u32; 1] = [3];

#[derive(Clone, Debug)]
struct Arrival {
    step: usize,
    request: Request,
    /// Cancelled after this many more steps
    cancel: Option<usize>,
    /// Tokens of a next turn, sent when this one is done
    next_turn: Option<Vec<u32>>,
}

#[derive(Clone, Debug)]
struct World {
    block_tokens: usize,
    options: EngineOptions,
    arrivals: Vec<Arrival>,
}

fn sampling() -> impl Strategy<Value = SamplingParams> {
    let drawn = (1u64..1000, prop_oneof![Just(1.0), Just(0.7)], 0i64..6, prop_oneof![Just(0.0), Just(0.05)]);
    let penalties = (1.0f64..1.8, -1.0f64..1.0, 0.0f64..0.5);
    prop_oneof![
        2 => Just(SamplingParams::default()),
        2 => drawn.clone().prop_map(|(seed, top_p, top_k, min_p)| SamplingParams {
            temperature: 0.9, seed: Some(seed), top_p, top_k, min_p, ..SamplingParams::default()
        }),
        1 => (drawn, penalties).prop_map(|((seed, ..), (repetition, presence, frequency))| SamplingParams {
            temperature: if seed % 2 == 0 { 0.0 } else { 1.1 },
            seed: Some(seed),
            repetition_penalty: repetition,
            presence_penalty: presence,
            frequency_penalty: frequency,
            ..SamplingParams::default()
        }),
    ]
}

/// Few different beginnings, so that prompts share them, in whole blocks and in parts.
fn prompt() -> impl Strategy<Value = Vec<u32>> {
    (0u32..3, 0usize..24, vec(4..VOCAB as u32, 1..6)).prop_map(|(base, shared, tail)| {
        let start = (0..shared as u32).map(|i| 4 + (base * 7 + i * i) % (VOCAB as u32 - 4));
        start.chain(tail).collect()
    })
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let context_full = prop_oneof![3 => Just(ContextFull::Finish), 1 => Just(ContextFull::Refuse), 1 => (0usize..8).prop_map(|keep| ContextFull::Shift { keep })];
    let read_prompt = option::weighted(
        0.3,
        prop_oneof![
            (0usize..4).prop_map(ReadPrompt::Logprobs),
            Just(ReadPrompt::Embedding(Pooling::Last)),
            Just(ReadPrompt::Embedding(Pooling::Mean)),
        ],
    );
    let numbers = (0usize..40, 1u64..30, 0i32..3, any::<bool>(), option::weighted(0.2, 0usize..12), read_prompt);
    let constraint = option::weighted(0.4, 0..constraints().len());
    let bias = option::weighted(0.2, (3..VOCAB as u32, -100.0f64..100.0));
    (numbers, prompt(), sampling(), context_full, option::weighted(0.4, vec(4..VOCAB as u32, 1..6)), constraint, bias).prop_map(
        |(
            (step, max_tokens, priority, ignore_eos, cancel, read_prompt),
            prompt,
            sampling,
            on_context_full,
            next_turn,
            constraint,
            bias,
        )| Arrival {
            step,
            request: Request {
                sampling,
                logit_bias: bias.into_iter().collect(),
                constraint: constraint.map(|n| constraints()[n].clone()),
                max_tokens: Some(max_tokens),
                priority,
                ignore_eos: ignore_eos && constraint.is_none(),
                on_context_full,
                user: UserId { account: step as u32 % 2, user: step as u64 % 3 },
                read_prompt,
                ..Request::new(prompt)
            },
            cancel,
            next_turn,
        },
    )
}

fn world() -> impl Strategy<Value = World> {
    (1usize..6, 16usize..48, 1usize..5, 0usize..12, 0usize..10, any::<bool>(), vec(arrival(), 1..14)).prop_map(
        |(block_tokens, max_context, max_seqs, more_tokens, more_blocks, prefix_cache, arrivals)| World {
            block_tokens,
            options: EngineOptions {
                max_context: Some(max_context),
                max_seqs,
                max_step_tokens: Some(max_seqs + more_tokens),
                kv_blocks: Some(max_context.div_ceil(block_tokens) + more_blocks),
                prefix_cache,
                end_tokens: END_TOKENS.to_vec(),
                ..EngineOptions::default()
            },
            arrivals,
        },
    )
}

/// With few requests and more room, so that there are steps without prompts to compute.
fn speculating() -> impl Strategy<Value = World> {
    (world(), 1usize..6, 0usize..30, any::<bool>()).prop_map(|(mut world, draft_tokens, more_blocks, draft_always)| {
        let options = &mut world.options;
        (options.draft_tokens, options.draft_always) = (draft_tokens, draft_always);
        options.max_step_tokens = options.max_step_tokens.map(|n| n + draft_tokens);
        options.kv_blocks = options.kv_blocks.map(|n| n + more_blocks);
        world.arrivals.truncate(8);
        world
    })
}

/// What is in the cache, by its events alone.
#[derive(Default)]
struct Followed {
    /// By hash: the whole text, and whether its beginning is still there
    texts: HashMap<u64, (Vec<u32>, bool)>,
}

impl Followed {
    fn follow(&mut self, engine: &mut Engine, block_tokens: usize) {
        let mut events = Vec::new();
        engine.take_kv_events(&mut events);
        for event in events {
            match event {
                KvEvent::Stored { hash, parent, tokens } => {
                    assert_eq!(tokens.len(), block_tokens);
                    let (mut text, found) = match parent {
                        None => (Vec::new(), true),
                        Some(parent) => self.texts.get(&parent).cloned().unwrap_or_default(),
                    };
                    text.extend(tokens);
                    self.texts.insert(hash, (text, found));
                }
                KvEvent::Removed { hash } => {
                    let (gone, _) = self.texts.remove(&hash).expect("a block goes that never came");
                    self.texts.values_mut().filter(|(text, _)| text.starts_with(&gone)).for_each(|(_, found)| *found = false);
                }
                KvEvent::Cleared => self.texts.clear(),
            }
        }
    }
}

/// What was told of a prompt must be what a pass over it alone tells.
fn check_readings(request: &Request, readings: &[Reading]) -> Result<(), TestCaseError> {
    let prompt = &request.prompt;
    let all = |readings: &[Reading]| -> Vec<TokenLogprobs> {
        readings.iter().flat_map(|r| if let Reading::Logprobs(l) = r { l.clone() } else { vec![] }).collect()
    };
    match request.read_prompt {
        None => prop_assert!(readings.is_empty()),
        Some(ReadPrompt::Logprobs(count)) => {
            let all = all(readings);
            prop_assert_eq!(all.len(), prompt.len() - 1);
            for (position, got) in all.iter().enumerate() {
                let logits = expected_logits(&prompt[..=position]);
                let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
                let want = |token: u32| f64::from(logits[token as usize]) - total;
                prop_assert!((f64::from(got.logprob) - want(prompt[position + 1])).abs() < 1e-4);
                let mut best: Vec<f64> = (0..VOCAB as u32).map(want).collect();
                best.sort_by(|a, b| b.total_cmp(a));
                prop_assert_eq!(got.top.len(), count);
                prop_assert!(got.top.iter().zip(best).all(|(got, want)| (f64::from(got.1) - want).abs() < 1e-4));
            }
        }
        Some(ReadPrompt::Embedding(pooling)) => {
            let [Reading::Embedding(got)] = readings else { return Err(TestCaseError::fail(format!("{readings:?}"))) };
            let state = |len: usize| f64::from(expected_state(&prompt[..len]));
            let want = match pooling {
                Pooling::Last => state(prompt.len()),
                Pooling::Mean => (1..=prompt.len()).map(state).sum::<f64>() / prompt.len() as f64,
            };
            prop_assert!((f64::from(got[0]) - want).abs() <= want * 1e-6, "{} is not {want}", got[0]);
            prop_assert_eq!(&got[2..], &[0.0; 2]);
        }
    }
    Ok(())
}

fn drive(world: World, overlapped: bool) -> Result<(), TestCaseError> {
    let make = if overlapped { overlapped_engine } else { engine };
    let engine = make(world.block_tokens, world.options.clone());
    drive_engine(world, engine)
}

fn drive_engine(world: World, mut engine: Engine) -> Result<(), TestCaseError> {
    let max_context = world.options.max_context.unwrap();
    let max_step_tokens = world.options.max_step_tokens.unwrap();
    let mut arrivals = world.arrivals;
    arrivals.sort_by_key(|a| a.step);
    arrivals.reverse();
    let mut cache = Followed::default();
    engine.take_kv_events(&mut Vec::new());
    let mut live: HashMap<RequestId, (Arrival, Vec<u32>, Option<usize>)> = HashMap::new();
    let mut readings: HashMap<RequestId, Vec<Reading>> = HashMap::new();
    let mut step = 0;
    while !arrivals.is_empty() || engine.has_work() {
        prop_assert!(step < 20_000, "the engine does not get on");
        while arrivals.last().is_some_and(|a| a.step <= step) {
            let arrival = arrivals.pop().unwrap();
            match engine.submit(arrival.request.clone()) {
                Ok(id) => {
                    let cancel = arrival.cancel.map(|after| step + after);
                    live.insert(id, (arrival, Vec::new(), cancel));
                }
                Err(error) => {
                    let length = arrival.request.prompt.len();
                    let whole = length + arrival.request.max_tokens.unwrap() as usize;
                    match error {
                        SubmitError::PromptTooLong { .. } => prop_assert!(length >= max_context),
                        SubmitError::ContextExceeded { .. } => {
                            prop_assert!(whole > max_context && arrival.request.on_context_full == ContextFull::Refuse);
                        }
                        other => prop_assert!(false, "{other}"),
                    }
                }
            }
        }
        for event in engine.step().unwrap() {
            match event {
                Event::Token { id, token, .. } => live.get_mut(&id).unwrap().1.push(token),
                Event::Prompt { id, reading } => {
                    prop_assert!(live[&id].1.is_empty(), "told of the prompt after the first token");
                    readings.entry(id).or_default().push(reading);
                }
                Event::Finished { id, finished } => {
                    let (arrival, tokens, _) = live.remove(&id).unwrap();
                    let (want, reason) = expected(&arrival.request, max_context, &END_TOKENS);
                    prop_assert_eq!(&tokens, &want);
                    prop_assert_eq!(finished.reason, reason);
                    let by_grammar = arrival.request.constraint.is_some() && finished.stop_token.is_none();
                    prop_assert_eq!(finished.stop_token.is_some() || by_grammar, reason == FinishReason::Stop || by_grammar);
                    prop_assert_eq!(finished.generated_tokens, tokens.len());
                    check_readings(&arrival.request, &readings.remove(&id).unwrap_or_default())?;
                    if let Some(more) = arrival.next_turn {
                        let prompt = [&arrival.request.prompt, &tokens[..], &more].concat();
                        let request = Request { prompt, ..arrival.request };
                        arrivals.push(Arrival { step, request, cancel: None, next_turn: None });
                    }
                }
            }
        }
        prop_assert!(engine.stats().last_step.tokens <= max_step_tokens);
        prop_assert_eq!(engine.check_integrity(), Ok(()));
        cache.follow(&mut engine, world.block_tokens);
        let due: Vec<_> = live.iter().filter(|(_, (.., cancel))| cancel.is_some_and(|at| at <= step)).map(|(id, _)| *id).collect();
        for id in due {
            let (arrival, tokens, _) = live.remove(&id).unwrap();
            let finished = engine.cancel(id).unwrap();
            prop_assert_eq!((finished.reason, finished.generated_tokens), (FinishReason::Cancelled, tokens.len()));
            prop_assert_eq!(engine.cancel(id), None);
            prop_assert_eq!(engine.check_integrity(), Ok(()));
            prop_assert!(expected(&arrival.request, max_context, &END_TOKENS).0.starts_with(&tokens));
        }
        step += 1;
    }
    prop_assert!(live.is_empty());
    let (blocks, free, _) = engine.blocks();
    prop_assert_eq!(blocks, free);
    // What the events tell is what is reused: whole blocks, and never the last token.
    for hash in cache.texts.keys().copied().collect::<Vec<_>>() {
        let Some((text, true)) = cache.texts.get(&hash) else { continue };
        if text.len() + 2 >= max_context {
            continue;
        }
        let text = text.clone();
        let request = Request { max_tokens: Some(1), ..Request::new([&text[..], &[4]].concat()) };
        let id = engine.submit(request).unwrap();
        while engine.has_work() {
            for event in engine.step().unwrap() {
                if let Event::Finished { finished, .. } = event {
                    prop_assert!(finished.reused_tokens >= text.len(), "{id}: {} of {}", finished.reused_tokens, text.len());
                }
            }
        }
        cache.follow(&mut engine, world.block_tokens);
    }
    engine.clear_cache();
    cache.follow(&mut engine, world.block_tokens);
    prop_assert!(cache.texts.is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn everyone_gets_the_tokens_they_would_get_alone(world in world()) {
        drive(world, false)?;
    }

    #[test]
    fn and_also_when_steps_overlap(world in world()) {
        drive(world, true)?;
    }

    #[test]
    fn and_also_with_drafts_from_the_text(world in speculating(), overlapped in any::<bool>()) {
        drive(world, overlapped)?;
    }

    #[test]
    fn and_also_with_drafts_from_a_model(world in speculating(), overlapped in any::<bool>()) {
        let engine = drafting_engine(world.block_tokens, overlapped, world.options.clone());
        drive_engine(world, engine)?;
    }
}
