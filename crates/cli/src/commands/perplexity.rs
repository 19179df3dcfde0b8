//! `ferrum perplexity`: how well a model predicts a text.
//!
//! The usual measure for weight files: the text is cut into chunks of `--ctx` tokens, each starts with BOS where the model
//! wants one, and the tokens of its second half are scored, each given all tokens before it.

use std::{fs, time::Instant};

use anyhow::{Context, bail};
use ferrum_models::text::EncodeOptions;
use serde_json::json;

use crate::{
    args::PerplexityArgs,
    open::{self, Need},
    output,
};

/// Rows of logits computed at once; more cost memory and gain nothing.
const LOGIT_ROWS: usize = 128;

pub fn run(args: &PerplexityArgs) -> anyhow::Result<()> {
    if args.ctx < 4 {
        bail!("--ctx is {}: a chunk must have at least 4 tokens", args.ctx);
    }
    let bytes = fs::read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let text = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8; convert it first", args.file.display()))?;
    let need = Need { context: Some(args.ctx), logit_rows: Some(LOGIT_ROWS), ..Need::default() };
    let mut session = open::session(&args.model, &args.hub, &args.engine, &need)?;
    let mut tokens = session.tokenizer.encode(&text, EncodeOptions { add_special: true, parse_special: false })?;
    let available = tokens.len() / args.ctx;
    let chunks = args.chunks.unwrap_or(available).min(available);
    if chunks == 0 {
        bail!(
            "{} has {} tokens, too few for one chunk of {}; lower --ctx, or take a longer text",
            args.file.display(),
            tokens.len(),
            args.ctx
        );
    }
    let bos = session.tokenizer.bos().filter(|_| session.tokenizer.add_bos());
    let started = Instant::now();
    let mut loss = Loss::default();
    for (i, chunk) in tokens.chunks_exact_mut(args.ctx).take(chunks).enumerate() {
        if let (Some(bos), Some(first)) = (bos, chunk.first_mut()) {
            *first = bos;
        }
        let scores = session.engine.score(chunk, args.ctx / 2 + 1)?;
        session.checkpoint.weights().check()?;
        scores.into_iter().for_each(|s| loss.add(s));
        if output::status_visible() {
            eprint!("\x1b[2K\rchunk {} of {chunks}: {:.4} ", i + 1, loss.perplexity());
        }
    }
    if output::status_visible() {
        eprint!("\x1b[2K\r");
    }
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        return output::json(&json!({
            "model": args.model,
            "file": args.file.display().to_string(),
            "perplexity": loss.perplexity(),
            "uncertainty": loss.uncertainty(),
            "ctx": args.ctx,
            "chunks": chunks,
            "scored_tokens": loss.count,
            "seconds": seconds,
            "tok_s": (chunks * args.ctx) as f64 / seconds,
        }));
    }
    let (perplexity, uncertainty) = (loss.perplexity(), loss.uncertainty());
    Ok(output::text(&format!(
        "perplexity {perplexity:.4} ± {uncertainty:.4} ({} tokens in {chunks} chunks of {})\n",
        loss.count, args.ctx
    ))?)
}

/// Negative log-likelihoods, summed.
#[derive(Debug, Default)]
struct Loss {
    sum: f64,
    squares: f64,
    count: usize,
}

impl Loss {
    fn add(&mut self, logprob: f32) {
        let loss = -f64::from(logprob);
        self.sum += loss;
        self.squares += loss * loss;
        self.count += 1;
    }

    fn perplexity(&self) -> f64 {
        (self.sum / self.count as f64).exp()
    }

    /// One standard error.
    fn uncertainty(&self) -> f64 {
        let n = self.count as f64;
        let mean = self.sum / n;
        let variance = (self.squares / n - mean * mean).max(0.0);
        (variance / (n - 1.0).max(1.0)).sqrt() * self.perplexity()
    }
}
