//! What grammars cost with a model's vocabulary: `cargo run --release -p ferrum-engine --example masks -- FILE.gguf`.
//!
//! Compiling, and then mask and token for every token of a text that the grammar accepts; for hostile grammars, of the first tokens
//! they allow.

use std::{error::Error, path::Path, time::Instant};

use ferrum_engine::{Constraint, Grammar, GrammarCompiler};
use ferrum_models::{
    Checkpoint,
    text::{EncodeOptions, Tokenizer},
};
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("give a model file")?;
    let tokenizer = Checkpoint::open(Path::new(&file))?.tokenizer()?;
    let vocab = tokenizer.vocab_size();
    let started = Instant::now();
    let compiler = GrammarCompiler::new(&tokenizer, vocab)?;
    println!("{vocab} tokens, ready after {:.0} ms", 1e3 * started.elapsed().as_secs_f64());
    println!("{:34} {:>10} {:>8} {:>10} {:>10} {:>10} {:>8}", "grammar", "compile ms", "tokens", "median µs", "p90 µs", "max µs", "KiB");
    let schema = json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}}, "required": ["name", "age", "tags"], "additionalProperties": false});
    let object = r#"{"name": "Ada Lovelace", "age": 36, "tags": ["mathematician", "writer", "the first to publish a program"]}"#;
    for (name, grammar, text) in [
        ("JSON schema", Grammar::json_schema(schema), object),
        ("any JSON object", Grammar::json_object(), object),
        ("regex: date", Grammar::regex("(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]"), "1987-06-05"),
        ("regex: .*", Grammar::regex("(?s:.*)"), "It was a bright cold day in April, and the clocks were striking thirteen."),
        ("choice of 3", Grammar::choice(&["yes".into(), "no".into(), "perhaps".into()]), "perhaps"),
        ("Lark: sums", Grammar::lark("start: term (\"+\" term)*\nterm: /[0-9]+/ | \"(\" start \")\""), "1+(22+3)+((4+5)+6)"),
    ] {
        measure(&compiler, name, &grammar, Some((&tokenizer, text)))?;
    }
    for (name, grammar) in [
        ("bomb: (a+)+b", Grammar::regex("(a+)+b")),
        ("bomb: .*a.{50}b", Grammar::regex(".*a.{50}b.{50}c")),
        (
            "bomb: any of 40 tails",
            Grammar::regex(&format!("(.|\\n)*({})", (0..40).map(|n| format!("[a-m{n}].{{{n}}}")).collect::<Vec<_>>().join("|"))),
        ),
        ("bomb: nested repeats", Grammar::regex("(((a{1,99}){1,99}){1,99}){1,99}")),
        ("bomb: a a", Grammar::lark("start: a\na: a a | /[a-z ]+/ | ")),
        ("bomb: long pattern", Grammar::json_schema(json!({"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}))),
        (
            "bomb: 4000 keys",
            Grammar::json_schema(
                json!({"type": "object", "properties": (0..4000).map(|n| (format!("key{n}"), json!({"type": "string"}))).collect::<serde_json::Map<_, _>>()}),
            ),
        ),
    ] {
        measure(&compiler, name, &grammar, None)?;
    }
    Ok(())
}

fn measure(compiler: &GrammarCompiler, name: &str, grammar: &Grammar, text: Option<(&Tokenizer, &str)>) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let compiled = compiler.compile(grammar);
    let compile_ms = 1e3 * started.elapsed().as_secs_f64();
    let mut constraint = match compiled {
        Ok(constraint) => constraint,
        Err(error) => {
            println!("{name:34} {compile_ms:10.2} refused: {error:.80}");
            return Ok(());
        }
    };
    let tokens = text.map(|(tokenizer, text)| tokenizer.encode(text, EncodeOptions::default())).transpose()?;
    let (mut times, mut mask, mut ended) = (Vec::new(), Vec::new(), "");
    for n in 0..tokens.as_ref().map_or(60, Vec::len) {
        let started = Instant::now();
        mask.clear();
        let filled = constraint.fill_mask(8192, &mut mask);
        let token = tokens.as_ref().map_or_else(|| first_allowed(&mask, n), |tokens| tokens[n]);
        let taken = filled.and_then(|()| constraint.take(token));
        times.push(1e6 * started.elapsed().as_secs_f64());
        if taken != Ok(false) {
            ended = if taken.is_ok() { "" } else { " then refused" };
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    let (median, p90, max) = (at(0.5), at(0.9), at(1.0));
    println!("{name:34} {compile_ms:10.2} {:8} {median:10.1} {p90:10.1} {max:10.1} {:8}{ended}", times.len(), kib(&constraint));
    Ok(())
}

fn kib(constraint: &Constraint) -> usize {
    constraint.bytes() >> 10
}

/// One of the tokens a mask allows, another one every time.
fn first_allowed(mask: &[i32], n: usize) -> u32 {
    let words = mask.len().max(1);
    let allowed = (0..32 * words).map(|t| (t + 997 * n) % (32 * words)).find(|t| mask.get(t / 32).is_some_and(|w| w >> (t % 32) & 1 == 1));
    allowed.unwrap_or(0) as u32
}
