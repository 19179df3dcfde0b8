//! Answers as text: whole characters, stop strings, cancelling.

mod common;

use std::{ops::ControlFlow, sync::Arc};

use common::{VOCAB, engine, expected};
use ferrum_engine::{Answer, Engine, EngineOptions, Error, FinishReason, Request, SamplingParams, SubmitError, TextOptions};
use ferrum_models::text::{GgufVocab, Position, Tokenizer};

/// An end token, the four bytes of 🙂 and the two of é one token each, then single ASCII characters.
fn tokenizer() -> Arc<Tokenizer> {
    let mut tokens = vec!["<|im_end|>".to_owned()];
    tokens.extend(["ð", "Ł", "Ļ", "Ĥ", "Ã", "©"].map(str::to_owned));
    tokens.extend((0..VOCAB as u8 - 7).map(|i| char::from(b'A' + i).to_string()));
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let file = GgufVocab { model: "gpt2", pre: "gpt-2", tokens, merges: Some(vec![]), eos: Some(0), ..GgufVocab::default() };
    Arc::new(Tokenizer::from_gguf_vocab(&file).unwrap())
}

fn engine_of(tokenizer: &Tokenizer) -> Engine {
    engine(4, EngineOptions { max_context: Some(256), end_tokens: tokenizer.end_ids().to_vec(), ..EngineOptions::default() })
}

fn request(seed: u64, max_tokens: u64) -> Request {
    let sampling = SamplingParams { temperature: 1.0, seed: Some(seed), ..SamplingParams::default() };
    Request { sampling, max_tokens: Some(max_tokens), ..Request::new(vec![9, 10, 11]) }
}

/// A request that only `max_tokens` or a stop string ends.
fn long(seed: u64) -> Request {
    Request { ignore_eos: true, ..request(seed, 40) }
}

fn continuation(stops: &[String]) -> TextOptions<'_> {
    TextOptions { position: Position::Continuation, stops, skip_special: true }
}

/// Runs a request, and checks that the streamed text is the answer's.
fn run(engine: &mut Engine, tokenizer: &Arc<Tokenizer>, request: Request, stops: &[&str]) -> Answer {
    let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
    let mut streamed = String::new();
    let show = |text: &str| {
        streamed += text;
        ControlFlow::Continue(())
    };
    let answer = engine.generate(tokenizer, request, continuation(&stops), show).unwrap();
    assert_eq!(streamed, answer.text);
    assert!(!engine.has_work());
    engine.check_integrity().unwrap();
    assert_eq!(engine.blocks().0, engine.blocks().1);
    answer
}

#[test]
fn text_is_what_the_tokens_say() {
    let tokenizer = tokenizer();
    let mut engine = engine_of(&tokenizer);
    let mut reasons = Vec::new();
    for seed in 0..20 {
        let answer = run(&mut engine, &tokenizer, request(seed, 60), &[]);
        let (tokens, reason) = expected(&request(seed, 60), 256, tokenizer.end_ids());
        assert_eq!((&answer.tokens, answer.finished.reason), (&tokens, reason));
        assert_eq!(answer.text, tokenizer.decode_continuation(&tokens, true));
        reasons.push(reason);
    }
    assert!(reasons.contains(&FinishReason::Stop) && reasons.contains(&FinishReason::Length), "{reasons:?}");
}

#[test]
fn stop_strings_end_the_answer_and_are_not_shown() {
    let tokenizer = tokenizer();
    let mut engine = engine_of(&tokenizer);
    let whole = run(&mut engine, &tokenizer, long(3), &[]);
    assert!(whole.text.chars().count() > 12, "too short to test with: {}", whole.text);
    let middle: String = whole.text.chars().skip(5).take(3).collect();
    let before = &whole.text[..whole.text.find(&middle).unwrap()];
    let answer = run(&mut engine, &tokenizer, long(3), &["no such text", &middle]);
    assert_eq!((answer.text.as_str(), answer.finished.reason), (before, FinishReason::Stop));
    assert!(whole.tokens.starts_with(&answer.tokens) && answer.tokens.len() < whole.tokens.len());
    assert_eq!(answer.finished.generated_tokens, answer.tokens.len());
    // What only looks like a stop string is shown in the end.
    let last: String = whole.text.chars().rev().take(2).collect::<Vec<_>>().into_iter().rev().collect();
    let answer = run(&mut engine, &tokenizer, long(3), &[&format!("{last} and more")]);
    assert_eq!(answer.text, whole.text);
}

#[test]
fn a_caller_can_cancel_after_any_step() {
    let tokenizer = tokenizer();
    let mut engine = engine_of(&tokenizer);
    for steps in 1..8 {
        let (mut left, mut streamed) = (steps, String::new());
        let stop = |text: &str| {
            streamed += text;
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let answer = engine.generate(&tokenizer, long(3), continuation(&[]), stop).unwrap();
        assert_eq!((answer.finished.reason, answer.tokens.len()), (FinishReason::Cancelled, steps));
        assert_eq!(streamed, answer.text);
        engine.check_integrity().unwrap();
        assert_eq!(engine.blocks().0, engine.blocks().1);
    }
}

#[test]
fn wrong_calls_are_refused() {
    let tokenizer = tokenizer();
    let mut engine = engine_of(&tokenizer);
    let result = engine.generate(&tokenizer, request(1, 5), continuation(&[String::new()]), |_| ControlFlow::Continue(()));
    assert!(matches!(result, Err(Error::Request(SubmitError::Invalid { field: "stop", .. }))));
    engine.submit(request(1, 5)).unwrap();
    let result = engine.generate(&tokenizer, request(1, 5), continuation(&[]), |_| ControlFlow::Continue(()));
    assert!(matches!(result, Err(Error::InUse)));
}
