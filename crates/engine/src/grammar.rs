//! What an answer may look like: grammars, compiled by `llguidance`, and the tokens that they allow next.
//!
//! Compiling belongs on a thread of its own: it takes milliseconds, and a hostile grammar takes what [`limits`] allow. What the
//! engine does for each token, [`Constraint::fill_mask`] and [`Constraint::take`], takes microseconds, and is bounded as well.
//!
//! With the 151,936 tokens of Qwen2.5 (one core of an Intel Xeon, busy machine, 2026-11-25, `cargo run --release -p ferrum-engine
//! --example masks -- FILE`): the vocabulary 0.4 s once, a schema of three properties 0.6 ms, a token of its answer 11 µs in the
//! median and 99 µs at most. Grammars made to be slow: 2.5 ms for a token, refused after some of them.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use ferrum_models::text::Tokenizer;
use llguidance::{
    JsonCompileOptions, Matcher, ParserFactory,
    api::{GrammarWithLexer, ParserLimits, TopLevelGrammar},
    toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::{Value, json};

/// Longest source of a grammar.
pub const MAX_GRAMMAR_BYTES: usize = 256 << 10;
/// Deepest nesting of brackets in a grammar.
pub const MAX_GRAMMAR_DEPTH: usize = 128;
/// Longest reason that is passed on.
const MAX_REASON_BYTES: usize = 400;

/// Why there is no constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    #[error("the grammar has {bytes} bytes; at most {MAX_GRAMMAR_BYTES} are allowed")]
    TooLong { bytes: usize },
    #[error("the grammar is nested deeper than {MAX_GRAMMAR_DEPTH} levels")]
    TooDeep,
    #[error("the grammar cannot be used: {reason}")]
    Invalid { reason: String },
    #[error("no token of this model's vocabulary can begin an answer in this grammar")]
    Unsatisfiable,
    #[error("this model's vocabulary cannot be constrained: {reason}")]
    Vocabulary { reason: String },
}

/// The source of a constraint: parts in `llguidance`'s form of Lark or as JSON schemas, the first of them the whole, which
/// names the others as `@NAME`.
#[derive(Clone, Debug, PartialEq)]
pub struct Grammar {
    parts: Vec<(String, Part)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Lark(String),
    Schema(Value),
}

impl Grammar {
    /// JSON that is valid under a schema, with its properties in the schema's order.
    pub fn json_schema(schema: Value) -> Self {
        Self::new(Part::Schema(schema))
    }

    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::json_schema(json!({"type": "object"}))
    }

    /// Text that a regular expression matches as a whole, in the syntax of Rust's `regex`.
    pub fn regex(pattern: &str) -> Self {
        Self::new(Part::Lark(format!("start: /{}/", llguidance::regex_to_lark(pattern, ""))))
    }

    /// One of several texts.
    pub fn choice(texts: &[String]) -> Self {
        let texts: Vec<String> = texts.iter().map(|text| Self::literal(text)).collect();
        Self::new(Part::Lark(format!("start: {}", texts.join(" | "))))
    }

    /// A context-free grammar in `llguidance`'s form of Lark; its rule `start` is the whole.
    pub fn lark(source: &str) -> Self {
        Self::new(Part::Lark(source.to_owned()))
    }

    /// A Lark grammar whose `@NAME`s are JSON schemas.
    pub fn with_schemas(lark: &str, schemas: impl IntoIterator<Item = (String, Value)>) -> Self {
        let mut grammar = Self::lark(lark);
        grammar.parts.extend(schemas.into_iter().map(|(name, schema)| (name, Part::Schema(schema))));
        grammar
    }

    /// The same behind free text that ends with `mark`, and white space.
    #[must_use]
    pub fn after(mut self, mark: &str) -> Self {
        if let Some((name, _)) = self.parts.first_mut() {
            *name = "answer".to_owned();
        }
        let lark = format!("start: before (/[ \\t\\n]+/)? @answer\nbefore[suffix={}]: /(?s:.*)/\n", Self::literal(mark));
        self.parts.insert(0, (String::new(), Part::Lark(lark)));
        self
    }

    /// A text as Lark writes it.
    pub fn literal(text: &str) -> String {
        Value::from(text).to_string()
    }

    /// A text that two grammars share only when they are the same.
    pub fn key(&self) -> String {
        let parts = self.parts.iter().map(|(name, part)| match part {
            Part::Lark(source) => json!([name, source]),
            Part::Schema(schema) => json!([name, {"schema": schema}]),
        });
        Value::Array(parts.collect()).to_string()
    }

    fn new(part: Part) -> Self {
        Self { parts: vec![(String::new(), part)] }
    }

    /// Refuses what would take the compiler's stack or too much of its time.
    fn check(&self) -> Result<(), GrammarError> {
        let bytes = self.parts.iter().map(|(_, part)| match part {
            Part::Lark(source) => source.len(),
            Part::Schema(schema) => schema.to_string().len(),
        });
        let bytes = bytes.sum();
        if bytes > MAX_GRAMMAR_BYTES {
            return Err(GrammarError::TooLong { bytes });
        }
        let deep = self.parts.iter().any(|(_, part)| match part {
            Part::Lark(source) => text_depth(source) > MAX_GRAMMAR_DEPTH,
            Part::Schema(schema) => is_deeper(schema, MAX_GRAMMAR_DEPTH),
        });
        if deep { Err(GrammarError::TooDeep) } else { Ok(()) }
    }

    fn compile_form(&self) -> TopLevelGrammar {
        let parts = self.parts.iter().map(|(name, part)| {
            let grammar = match part {
                Part::Lark(source) => GrammarWithLexer::from_lark(source.clone()),
                Part::Schema(schema) => GrammarWithLexer::from_json_schema(with_options(schema.clone())),
            };
            GrammarWithLexer { name: (!name.is_empty()).then(|| name.clone()), ..grammar }
        });
        TopLevelGrammar { grammars: parts.collect(), max_tokens: None }
    }
}

/// White space between the tokens of JSON: enough to indent, and not so much that a model can lose itself in it.
const JSON_WHITE_SPACE: &str = r"\x20{1,4}|\n[\x20\t]{0,32}";

/// The schema with our options in the place of any that came with it.
fn with_options(mut schema: Value) -> Value {
    if schema.is_object() {
        let whitespace_pattern = Some(JSON_WHITE_SPACE.to_owned());
        JsonCompileOptions { whitespace_pattern, ..JsonCompileOptions::default() }.apply_to(&mut schema);
    }
    schema
}

/// The deepest nesting of brackets, as if none were quoted: more than a parser will ever see.
fn text_depth(source: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Whether a value, or a pattern in it, is nested more than `levels` deep. Never deeper in the stack than that.
fn is_deeper(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(_) | Value::Object(_) if levels == 0 => true,
        Value::Array(items) => items.iter().any(|v| is_deeper(v, levels - 1)),
        Value::Object(fields) => fields.iter().any(|(k, v)| text_depth(k) > levels || is_deeper(v, levels - 1)),
        Value::String(text) => text_depth(text) > levels,
        _ => false,
    }
}

/// What a grammar may cost. The defaults of `llguidance` are made for one user; here a request must not hold up the others.
fn limits() -> ParserLimits {
    ParserLimits {
        // About 4 ms for all tokens of a vocabulary
        step_lexer_fuel: 50_000,
        // About 1 ms
        step_max_items: 20_000,
        // About 2 kB each
        max_lexer_states: 16_384,
        max_grammar_size: 200_000,
        // About 20 ms
        initial_lexer_fuel: 1_000_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Compiles grammars for one vocabulary.
pub struct GrammarCompiler {
    factory: ParserFactory,
}

impl GrammarCompiler {
    /// For a model whose logits have `vocab` columns. Takes about a second for a large vocabulary.
    ///
    /// # Errors
    /// When the vocabulary has something that `llguidance` does not take.
    pub fn new(tokenizer: &Tokenizer, vocab: usize) -> Result<Self, GrammarError> {
        let token = |id: u32| {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            if tokenizer.is_special(id) || tokenizer.is_end(id) {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], tokenizer.token_text(id).unwrap_or_default().as_bytes()].concat()
            } else if bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) {
                // No text has this byte, and it would be read as a mark.
                Vec::new()
            } else {
                bytes.to_vec()
            }
        };
        let tokens: Vec<Vec<u8>> = (0..vocab as u32).map(token).collect();
        let ends: Vec<u32> = tokenizer.end_ids().iter().copied().filter(|&id| (id as usize) < vocab).collect();
        Self::from_tokens(&tokens, &ends)
    }

    /// For tokens by their bytes; empty ones never occur in an answer. `end_tokens` end it.
    ///
    /// # Errors
    /// As [`GrammarCompiler::new`].
    pub fn from_tokens(tokens: &[Vec<u8>], end_tokens: &[u32]) -> Result<Self, GrammarError> {
        let make = || {
            let info = TokRxInfo::new(tokens.len() as u32, end_tokens.first().copied().unwrap_or(INVALID_TOKEN));
            let mut trie = TokTrie::from(&info, tokens);
            if !end_tokens.is_empty() {
                trie = trie.with_eos_tokens(end_tokens);
            }
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            ParserFactory::new_simple(&env).map(|mut factory| {
                factory.quiet();
                *factory.limits_mut() = limits();
                factory
            })
        };
        let reason = |reason: String| GrammarError::Vocabulary { reason: shortened(reason) };
        match catch_unwind(AssertUnwindSafe(make)) {
            Ok(Ok(factory)) => Ok(Self { factory }),
            Ok(Err(error)) => Err(reason(error.to_string())),
            Err(_) => Err(reason("its tokens make no tree".into())),
        }
    }

    /// Compiles a grammar, and looks for the first token. Needs a stack of some MiB.
    ///
    /// # Errors
    /// When the grammar is not valid, exceeds a limit, or allows nothing.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        grammar.check()?;
        let invalid = |reason: String| GrammarError::Invalid { reason: shortened(reason) };
        // It contains panics by itself, and makes errors of them.
        let parser = self.factory.create_parser(grammar.compile_form()).map_err(|e| invalid(e.to_string()))?;
        let bytes = parser.parser.lexer_stats().num_bytes;
        let mut matcher = Matcher::new(Ok(parser));
        let first = matcher.compute_mask_or_eos().map_err(|e| invalid(e.to_string()))?;
        if first.is_zero() {
            return Err(GrammarError::Unsatisfiable);
        }
        Ok(Constraint { matcher, bytes })
    }
}

/// A reason without what is only of use inside of `llguidance`.
fn shortened(mut reason: String) -> String {
    if let Some(at) = reason.find("\n<") {
        reason.truncate(at);
    }
    if reason.len() > MAX_REASON_BYTES {
        let cut = (0..=MAX_REASON_BYTES).rev().find(|&at| reason.is_char_boundary(at)).unwrap_or(0);
        reason.truncate(cut);
        reason.push('…');
    }
    reason
}

/// A compiled grammar, and how far an answer has come in it. A clone shares nothing with it.
pub struct Constraint {
    matcher: Matcher,
    bytes: usize,
}

impl Constraint {
    /// Memory that its automata took when it was compiled.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends the mask of the next token, `words` long: bit `t % 32` of word `t / 32` is 1 where token `t` may come.
    ///
    /// # Errors
    /// When the grammar's limits for a step are reached, or no token can come.
    pub fn fill_mask(&mut self, words: usize, out: &mut Vec<i32>) -> Result<(), GrammarError> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|e| GrammarError::Invalid { reason: shortened(e.to_string()) })?;
        if mask.is_zero() {
            return Err(GrammarError::Unsatisfiable);
        }
        let start = out.len();
        out.extend(mask.as_slice().iter().take(words).map(|&word| word as i32));
        out.resize(start + words, 0);
        Ok(())
    }

    /// Takes in the token that came; `true` when the answer is complete and nothing can follow.
    ///
    /// # Errors
    /// When it is not one of those that were allowed.
    pub fn take(&mut self, token: u32) -> Result<bool, GrammarError> {
        self.matcher.consume_token(token).map_err(|e| GrammarError::Invalid { reason: shortened(e.to_string()) })?;
        Ok(self.matcher.is_stopped())
    }
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), bytes: self.bytes }
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Constraint({} bytes)", self.bytes)
    }
}
