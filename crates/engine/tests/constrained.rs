//! Grammars and biases: what they refuse, what they cost the others, what they cost when somebody is hostile.

mod common;

use std::time::{Duration, Instant};

use common::{VOCAB, constraints, engine, expected, expected_logits, overlapped_engine, run};
use ferrum_engine::{
    Constraint, EngineOptions, Event, FinishReason, Grammar, GrammarCompiler, GrammarError, MAX_LOGIT_BIAS, Request, SamplingParams,
    SubmitError,
};
use serde_json::json;

const END: u32 = 3;

fn options() -> EngineOptions {
    EngineOptions { max_context: Some(64), max_seqs: 4, end_tokens: vec![END], ..EngineOptions::default() }
}

/// A vocabulary of all bytes, and one end token.
fn bytes() -> GrammarCompiler {
    let tokens: Vec<Vec<u8>> = (0..=254).map(|b| vec![b]).chain([b"\xFF<end>".to_vec()]).collect();
    GrammarCompiler::from_tokens(&tokens, &[255]).unwrap()
}

/// Allows an `a`, which is token 14 here, and then a byte that no token has.
fn dead_end() -> Constraint {
    let mut tokens = vec![Vec::new(); VOCAB];
    tokens[14] = b"a".to_vec();
    GrammarCompiler::from_tokens(&tokens, &[END]).unwrap().compile(&Grammar::regex("a@")).unwrap()
}

#[test]
fn a_grammar_that_cannot_go_on_ends_its_own_request() {
    for make in [engine, overlapped_engine] {
        let mut engine = make(4, options());
        let other = Request { max_tokens: Some(12), ..Request::new(vec![5, 6, 7]) };
        let dead = Request { constraint: Some(dead_end()), ..Request::new(vec![8, 9]) };
        let (other_id, dead_id) = (engine.submit(other.clone()).unwrap(), engine.submit(dead).unwrap());
        let (mut tokens, mut ends) = (Vec::new(), Vec::new());
        while engine.has_work() {
            for event in engine.step().unwrap() {
                match event {
                    Event::Token { id, token, .. } if id == other_id => tokens.push(token),
                    Event::Token { token, .. } => assert_eq!(token, 14),
                    Event::Finished { id, finished } => ends.push((id, finished.reason)),
                    Event::Prompt { .. } => unreachable!("nobody reads a prompt"),
                }
            }
            engine.check_integrity().unwrap();
        }
        assert_eq!(ends.first(), Some(&(dead_id, FinishReason::Constraint)));
        let (want, reason) = expected(&other, 64, &[END]);
        assert_eq!((tokens, ends.last()), (want, Some(&(other_id, reason))));
    }
}

#[test]
fn logprobs_are_those_of_the_model() {
    for make in [engine, overlapped_engine] {
        let mut engine = make(4, options());
        let constraint = Some(constraints()[1].clone());
        let request = Request { constraint, logprobs: Some(VOCAB), max_tokens: Some(4), ..Request::new(vec![5, 6, 7]) };
        let id = engine.submit(request).unwrap();
        let mut text = vec![5, 6, 7];
        while engine.has_work() {
            for event in engine.step().unwrap() {
                let Event::Token { token, logprobs, id: of } = event else { continue };
                assert_eq!(of, id);
                let logits = expected_logits(&text);
                let total = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
                let logprobs = logprobs.unwrap();
                assert!((f64::from(logprobs.logprob) - (f64::from(logits[token as usize]) - total)).abs() < 1e-4);
                assert!(logprobs.top.iter().all(|(_, l)| l.is_finite()));
                text.push(token);
            }
        }
        assert_eq!(text.len(), 7);
    }
}

/// The draft of an answer is reused, in whole blocks and in parts, by a request with another grammar.
#[test]
fn the_prefix_cache_holds_no_grammar() {
    let mut engine = engine(4, options());
    let request = |n: Option<usize>| Request {
        constraint: n.map(|n| constraints()[n].clone()),
        sampling: SamplingParams { temperature: 1.0, seed: Some(3), ..SamplingParams::default() },
        max_tokens: Some(8),
        ..Request::new(vec![5, 6, 7, 8, 9, 10, 11, 12, 13])
    };
    for n in [None, Some(0), Some(1), None, Some(4), Some(0)] {
        let (tokens, finished) = run(&mut engine, request(n));
        let (want, reason) = expected(&request(n), 64, &[END]);
        assert_eq!((tokens, finished.reason), (want, reason), "{n:?}");
    }
}

#[test]
fn biases_move_the_choice_and_bad_ones_are_refused() {
    let mut engine = engine(4, options());
    let ask = |logit_bias| Request { logit_bias, max_tokens: Some(3), ..Request::new(vec![5, 6, 7]) };
    assert_eq!(run(&mut engine, ask(vec![(20, 100.0)])).0, [20, 20, 20]);
    let first = run(&mut engine, ask(vec![])).0[0];
    assert_ne!(run(&mut engine, ask(vec![(first, -100.0)])).0[0], first);
    for bad in [
        vec![(VOCAB as u32, 1.0)],
        vec![(5, f64::NAN)],
        vec![(5, 1e308)],
        vec![(5, -100.5)],
        vec![(5, 1.0), (6, 1.0), (5, 2.0)],
        (0..=MAX_LOGIT_BIAS as u32).map(|id| (id, 0.0)).collect(),
    ] {
        let error = engine.submit(ask(bad.clone())).unwrap_err();
        assert!(matches!(error, SubmitError::Invalid { field: "logit_bias", .. }), "{bad:?}: {error}");
    }
    let endless = Request { ignore_eos: true, constraint: Some(constraints()[0].clone()), ..Request::new(vec![5]) };
    assert!(matches!(engine.submit(endless), Err(SubmitError::Invalid { field: "ignore_eos", .. })));
}

#[test]
fn grammars_say_what_is_wrong() {
    let compiler = bytes();
    let deep = "(".repeat(30_000) + &")".repeat(30_000);
    assert_eq!(compiler.compile(&Grammar::regex(&deep)).unwrap_err(), GrammarError::TooDeep);
    assert_eq!(compiler.compile(&Grammar::lark(&format!("start: {deep}"))).unwrap_err(), GrammarError::TooDeep);
    assert_eq!(compiler.compile(&Grammar::json_schema(json!({"pattern": deep}))).unwrap_err(), GrammarError::TooDeep);
    let long = Grammar::choice(&vec!["x".repeat(1000); 300]);
    assert!(matches!(compiler.compile(&long), Err(GrammarError::TooLong { .. })));
    for bad in [
        Grammar::regex("(a"),
        Grammar::regex("a{2"),
        Grammar::lark("start: missing"),
        Grammar::lark(""),
        Grammar::lark("start: start"),
        Grammar::json_schema(json!({"type": "strange"})),
        Grammar::json_schema(json!({"type": 7})),
        Grammar::json_schema(json!({"$ref": "#/nowhere"})),
        Grammar::json_schema(json!({"type": "object", "properties": {"a": false}, "required": ["a"]})),
        Grammar::json_schema(json!("x")),
    ] {
        let Err(error) = compiler.compile(&bad) else { panic!("{bad:?} was taken") };
        assert!(matches!(error, GrammarError::Invalid { .. } | GrammarError::Unsatisfiable), "{bad:?}: {error}");
        assert!(error.to_string().len() < 600, "{error}");
    }
}

/// What has held up other servers for minutes: refused, or compiled, soon; and no token after that takes long either.
#[test]
fn bombs_are_bounded() {
    let compiler = bytes();
    let mut all_of = json!({"type": "string"});
    for _ in 0..20 {
        all_of = json!({"anyOf": [all_of, all_of.clone()]});
        if all_of.to_string().len() > 100_000 {
            break;
        }
    }
    let definitions: serde_json::Map<String, serde_json::Value> = (0..200)
        .map(|n| {
            (
                format!("d{n}"),
                json!({"anyOf": [{"$ref": format!("#/$defs/d{}", (n + 1) % 200)}, {"$ref": format!("#/$defs/d{}", (n + 7) % 200)}]}),
            )
        })
        .collect();
    let wide: serde_json::Map<String, serde_json::Value> = (0..3000).map(|n| (format!("key{n}"), json!({"type": "integer"}))).collect();
    let bombs = [
        Grammar::regex("(a+)+b"),
        Grammar::regex("(a|a|aa)+$"),
        Grammar::regex("(((a{1,100}){1,100}){1,100}){1,100}"),
        Grammar::regex(".*a.{50}b.{50}c"),
        Grammar::regex(&format!("(.*{}.*)", "(x+x+)+y".repeat(200))),
        Grammar::lark("start: a\na: a a | \"x\" | \n"),
        Grammar::lark("start: a\na: b | b b\nb: a | a a | \"x\""),
        Grammar::json_schema(all_of),
        Grammar::json_schema(json!({"$ref": "#/$defs/d0", "$defs": definitions})),
        Grammar::json_schema(json!({"$ref": "#"})),
        Grammar::json_schema(json!({"type": "object", "properties": wide, "additionalProperties": false})),
        Grammar::json_schema(json!({"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$", "minLength": 1_000_000})),
        Grammar::json_schema(json!({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000, "maxItems": 2_000_000_000})),
        Grammar::json_schema(json!({"type": "integer", "multipleOf": 1e-300, "minimum": -1e308, "maximum": 1e308})),
    ];
    for bomb in bombs {
        let name: String = format!("{bomb:?}").chars().take(120).collect();
        let started = Instant::now();
        let compiled = compiler.compile(&bomb);
        let time = started.elapsed();
        assert!(time < Duration::from_secs(20), "{name}: {time:?}");
        let Ok(mut constraint) = compiled else { continue };
        assert!(constraint.bytes() < 256 << 20, "{name}: {} bytes", constraint.bytes());
        for _ in 0..40 {
            let mut mask = Vec::new();
            let started = Instant::now();
            if constraint.fill_mask(8, &mut mask).is_err() {
                break;
            }
            let token = (0..256u32).find(|t| mask[*t as usize / 32] >> (t % 32) & 1 == 1).unwrap();
            let complete = constraint.take(token);
            let time = started.elapsed();
            assert!(time < Duration::from_secs(2), "{name}: {time:?} for one token");
            if complete != Ok(false) {
                break;
            }
        }
    }
}

/// Whether a text may come as it is, and whether an answer may end behind it.
fn accepts(constraint: &Constraint, text: &str) -> (bool, bool) {
    let mut constraint = constraint.clone();
    let allowed = |constraint: &mut Constraint, token: u32| {
        let mut mask = Vec::new();
        constraint.fill_mask(8, &mut mask).unwrap();
        mask[token as usize / 32] >> (token % 32) & 1 == 1
    };
    for byte in text.bytes() {
        if !allowed(&mut constraint, byte.into()) || constraint.take(byte.into()).is_err() {
            return (false, false);
        }
    }
    (true, allowed(&mut constraint, 255))
}

#[test]
fn json_has_room_to_indent_and_no_more() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "x-guidance": {"whitespace_flexible": false}});
    let constraint = bytes().compile(&Grammar::json_schema(schema)).unwrap();
    for (text, ok) in [("{\"a\":1}", true), ("{ \"a\": 1 }", true), ("{\n        \"a\": 1\n}", true), ("{\n\n", false), ("{     ", false)] {
        assert_eq!(accepts(&constraint, text), (ok, ok), "{text}");
    }
}

#[test]
fn an_answer_comes_behind_the_reasoning() {
    for grammar in [
        Grammar::json_schema(json!({"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": false})),
        Grammar::regex("\\{\"a\": [0-9]+\\}"),
        Grammar::lark("start: \"{\\\"a\\\": \" DIGITS \"}\"\nDIGITS: /[0-9]+/"),
    ] {
        let constraint = bytes().compile(&grammar.after("</think>")).unwrap();
        assert_eq!(accepts(&constraint, "hm {\"b\": 1} < </thin"), (true, false));
        assert_eq!(accepts(&constraint, "hm</think>"), (true, false));
        assert_eq!(accepts(&constraint, "</think>\n\n{\"a\": 1}"), (true, true));
        assert_eq!(accepts(&constraint, "hm</think>{\"a\": 12"), (true, false));
        assert!(!accepts(&constraint, "hm</think>{\"b").0);
        assert!(!accepts(&constraint, "hm</think> so").0);
    }
}
