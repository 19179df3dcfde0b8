//! Draft tokens: what they save, who has them, and when they are left out. That they change no token is in `properties.rs`.

mod common;

use common::{VOCAB, blurred_logits, drafting_engine, engine, expected, expected_logits, overlapped_engine, run};
use ferrum_engine::{
    BlockPool, ContextFull, Engine, EngineOptions, Event, Limits, NewSequence, Request, SamplingParams, Scheduler, StepTimes, UserId,
};

fn options(draft_tokens: usize) -> EngineOptions {
    EngineOptions { max_context: Some(512), max_seqs: 4, draft_tokens, draft_always: true, ..EngineOptions::default() }
}

/// The test's model repeats itself most of the time.
fn request(seed: u32) -> Request {
    let sampling = match seed % 2 {
        0 => SamplingParams::default(),
        _ => SamplingParams { temperature: 0.8, seed: Some(seed.into()), ..SamplingParams::default() },
    };
    Request { max_tokens: Some(200), sampling, ..Request::new((0..20).map(|i| (seed * 7 + i * i) % VOCAB as u32).collect()) }
}

/// Steps until one request has its answer, which must be the right one.
fn steps(mut engine: Engine, request: Request) -> (u64, Engine) {
    let want = expected(&request, 512, &[]).0;
    assert_eq!(run(&mut engine, request).0, want);
    (engine.stats().steps, engine)
}

#[test]
fn drafts_save_steps() {
    for seed in 0..4 {
        let plain = steps(engine(4, options(0)), request(seed)).0;
        let (from_text, engine) = steps(engine(4, options(4)), request(seed));
        let counts = engine.stats().counts;
        assert!(plain >= 200 && from_text + 10 < plain, "{from_text} steps with drafts, {plain} without");
        assert_eq!(counts.accepted_tokens, plain - from_text, "every right draft token saves one step");
        assert!(counts.accepted_tokens > 10 && counts.draft_tokens > counts.drafts, "{counts:?}");
        let (from_model, engine) = steps(drafting_engine(4, false, options(4)), request(seed));
        let counts = engine.stats().counts;
        assert!(from_model < plain / 2, "{from_model} steps with drafts of a model, {plain} without");
        assert_eq!(counts.accepted_tokens, plain - from_model);
    }
}

/// What a drafting model says depends on its own keys and values, which must be those of the text as it is, not as it was
/// guessed: draft for draft as without any cache.
#[test]
fn a_drafting_model_forgets_wrong_guesses() {
    let likeliest = |logits: Vec<f32>| (0..VOCAB).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a))).unwrap() as u32;
    for drafts in [1, 3, 4] {
        let (_, engine) = steps(drafting_engine(4, false, EngineOptions { max_step_tokens: Some(64), ..options(drafts) }), request(2));
        let Request { prompt: mut text, .. } = request(2);
        let end = text.len() + 200;
        let (mut computed, mut accepted) = (0, 0);
        text.push(likeliest(expected_logits(&text)));
        while text.len() < end {
            let known = text.len();
            let mut guess = text.clone();
            for _ in 0..drafts.min(end - known - 1) {
                guess.push(likeliest(blurred_logits(&guess)));
                computed += 1;
            }
            loop {
                text.push(likeliest(expected_logits(&text)));
                if guess.get(text.len() - 1) != text.last() {
                    break;
                }
                accepted += 1;
            }
        }
        let counts = engine.stats().counts;
        assert_eq!((counts.draft_tokens, counts.accepted_tokens), (computed, accepted), "{drafts} drafts");
        assert!(accepted * 10 < computed * 9, "some are wrong");
    }
}

/// Steps that overlap: whoever speculates waits for its tokens, and whoever cannot misses no step.
#[test]
fn others_lose_no_step() {
    let mut engine = overlapped_engine(4, options(4));
    let speculating = engine.submit(request(2)).unwrap();
    let penalties = SamplingParams { repetition_penalty: 1.5, ..SamplingParams::default() };
    let plain = engine.submit(Request { sampling: penalties, ..request(4) }).unwrap();
    let (mut steps_of_plain, mut tokens) = (0, [0; 2]);
    while tokens[1] < 200 {
        let events = engine.step().unwrap();
        steps_of_plain += 1;
        for event in events {
            if let Event::Token { id, .. } = event {
                tokens[usize::from(id == plain)] += 1;
                assert!(id == plain || id == speculating);
            }
        }
    }
    assert!(steps_of_plain <= 204, "{steps_of_plain} steps for 200 tokens");
    assert!(engine.stats().counts.drafts > 10 && tokens[0] > 190, "{tokens:?}, {:?}", engine.stats().counts);
}

#[test]
fn logprobs_of_drafted_tokens_are_the_models_own() {
    let mut engine = engine(4, options(4));
    engine.submit(Request { logprobs: Some(2), ..request(3) }).unwrap();
    let mut text = request(3).prompt;
    while engine.has_work() {
        for event in engine.step().unwrap() {
            let Event::Token { token, logprobs, .. } = event else { continue };
            let logits = expected_logits(&text);
            let total = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
            let want = f64::from(logits[token as usize]) - total;
            assert!((f64::from(logprobs.unwrap().logprob) - want).abs() < 1e-5);
            text.push(token);
        }
    }
    assert!(engine.stats().counts.accepted_tokens > 15, "{:?}", engine.stats().counts);
}

/// The counts that penalties look at belong to a row, and drafts are rows.
#[test]
fn requests_with_penalties_do_not_speculate() {
    let sampling = SamplingParams { frequency_penalty: 0.2, ..SamplingParams::default() };
    let (_, engine) = steps(engine(4, options(4)), Request { sampling, ..request(0) });
    assert_eq!(engine.stats().counts.drafts, 0);
}

/// A text that repeats itself, through a scheduler alone: `cost` is what a draft token adds to a step's time. Returns the
/// draft tokens.
fn drafts_of(scheduler: &mut Scheduler, times: &mut StepTimes, cost: f32, steps: usize) -> u64 {
    let before = scheduler.counts().draft_tokens;
    let mut outcomes = Vec::new();
    for _ in 0..steps {
        scheduler.speculate(times);
        let plan = scheduler.plan();
        let drafts = plan.samples() - plan.seqs.len();
        // Every token is the one of seven places before.
        let tokens: Vec<u32> = plan.logit_rows.iter().map(|&row| (plan.positions[row as usize] as u32 + 1) % 7).collect();
        if plan.samples() > 0 {
            times.record(plan.seqs.len(), drafts, 1.0 + cost * drafts as f32);
        }
        scheduler.commit(plan, &tokens, &mut outcomes);
        scheduler.check_integrity().unwrap();
    }
    scheduler.counts().draft_tokens - before
}

fn scheduler(max_tokens: usize) -> Scheduler {
    let limits = Limits {
        max_context: 1 << 16,
        max_seqs: 2,
        max_step_tokens: 64,
        max_waiting: 8,
        max_drafts: 4,
        max_step_drafts: 8,
        drafting_model: false,
    };
    let mut scheduler = Scheduler::new(limits, BlockPool::new(1 << 10, 16, true));
    let sequence = NewSequence {
        reuses: true,
        prompt: (0..30).map(|i| i % 7).collect(),
        max_tokens,
        stop_tokens: [].into(),
        priority: 0,
        user: UserId::default(),
        on_context_full: ContextFull::Finish,
        speculates: true,
        tag: 0,
    };
    scheduler.submit(sequence).unwrap();
    scheduler
}

#[test]
fn drafts_that_cost_more_than_they_bring_are_left_out_and_come_back() {
    let (mut scheduler, mut times) = (scheduler(12_000), StepTimes::new(16));
    drafts_of(&mut scheduler, &mut times, 0.1, 10);
    assert!(drafts_of(&mut scheduler, &mut times, 0.1, 100) > 350, "nearly every step has four");
    // Each draft token takes longer than a step.
    drafts_of(&mut scheduler, &mut times, 1.5, 100);
    let tried = drafts_of(&mut scheduler, &mut times, 1.5, 2000);
    assert!(tried < 100, "{tried} drafts; they are tried again once in a while");
    drafts_of(&mut scheduler, &mut times, 0.1, 1000);
    assert!(drafts_of(&mut scheduler, &mut times, 0.1, 100) > 350);
}

/// Wrong drafts are not computed for long, where they cost something, although the text goes on to repeat short pieces.
#[test]
fn wrong_drafts_are_left_out() {
    let (mut scheduler, mut times) = (scheduler(5000), StepTimes::new(16));
    let mut outcomes = Vec::new();
    let mut random = 1u32;
    let mut late = 0;
    for step in 0..1000 {
        scheduler.speculate(&times);
        let plan = scheduler.plan();
        let drafts = plan.samples() - plan.seqs.len();
        late += if step > 200 { drafts } else { 0 };
        // Few tokens in no order: three in a row have nearly always been there before, and say nothing.
        let tokens: Vec<u32> = (0..plan.samples())
            .map(|_| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (random >> 24) % 6
            })
            .collect();
        if plan.samples() > 0 {
            times.record(plan.seqs.len(), drafts, 1.0 + 0.5 * drafts as f32);
        }
        scheduler.commit(plan, &tokens, &mut outcomes);
    }
    assert!(late < 80, "{late} draft tokens in 800 steps");
}
