//! `--json-schema`, `--regex`, `--grammar`: what an answer must look like.

use std::{fs, path::PathBuf};

use anyhow::{Context, bail};
use ferrum_engine::{Answer, Constraint, FinishReason, Grammar, GrammarCompiler};

use crate::{args::GrammarArgs, open::Session};

/// The grammar of the flags, if there is one.
///
/// # Errors
/// When a file cannot be read, or is no JSON.
pub fn grammar(args: &GrammarArgs) -> anyhow::Result<Option<Grammar>> {
    let read = |file: &PathBuf| fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
    Ok(if let Some(file) = &args.json_schema {
        let schema = serde_json::from_str(&read(file)?).with_context(|| format!("{} is no JSON schema", file.display()))?;
        Some(Grammar::json_schema(schema))
    } else if let Some(file) = &args.grammar {
        Some(Grammar::lark(&read(file)?))
    } else {
        args.regex.as_deref().map(Grammar::regex)
    })
}

/// # Errors
/// When the grammar is not valid.
pub fn constraint(session: &Session, grammar: &Grammar) -> anyhow::Result<Constraint> {
    Ok(GrammarCompiler::new(&session.tokenizer, session.engine.model_info().vocab)?.compile(grammar)?)
}

/// # Errors
/// When the grammar ended the answer.
pub fn complete(answer: &Answer) -> anyhow::Result<()> {
    if answer.finished.reason == FinishReason::Constraint {
        bail!("the answer cannot go on within its grammar, or would exceed the grammar's limits; simplify it");
    }
    Ok(())
}
