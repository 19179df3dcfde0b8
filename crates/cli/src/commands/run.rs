//! `ferrum run`: one answer, or a chat.

use std::{
    io::{self, IsTerminal, Read},
    time::Instant,
};

use anyhow::{Context, bail};
use ferrum_engine::{Answer, ContextFull, FinishReason, Request, SamplingParams, StopStrings, TextOptions, TokenLogprobs};
use ferrum_models::text::{EncodeOptions, Position};
use serde_json::{Value, json};

use super::repl;
use crate::{
    answer::answer,
    args::RunArgs,
    conversation::Conversation,
    grammar,
    open::{self, Need, Session},
    output, sampling,
};

pub fn run(args: &RunArgs, started: Instant) -> anyhow::Result<()> {
    check_numbers(args)?;
    let prompt = prompt(args)?;
    let grammar = grammar::grammar(&args.grammar)?;
    if grammar.is_some() && prompt.is_none() {
        bail!("--json-schema, --regex and --grammar need a prompt: write it behind the model, or pass it on standard input");
    }
    let need = Need { context: args.context.ctx, speculate: args.speculate.clone(), ..Need::default() };
    let mut session = open::session(&args.model, &args.hub, &args.engine, &need)?;
    let load_s = started.elapsed().as_secs_f64();
    let sampling = args.sampling.over(&session.sampling);
    let Some(prompt) = prompt else { return repl::run(args, session, sampling) };

    let (ids, keep) = if args.raw {
        let ids = session.tokenizer.encode(&prompt, EncodeOptions { add_special: true, parse_special: true })?;
        let keep = usize::from(session.tokenizer.add_bos());
        (ids, keep)
    } else {
        let mut conversation = Conversation::new(&session.tokenizer, args.system.clone())?;
        let ids = conversation.ask(&session.tokenizer, &prompt)?;
        let keep = conversation.system_tokens(&session.tokenizer, &ids);
        (ids, keep)
    };
    let mut request = request(args, sampling, ids.clone(), keep);
    request.constraint = grammar.map(|grammar| grammar::constraint(&session, &grammar)).transpose()?;
    let position = if args.raw { Position::Continuation } else { Position::Start };
    let show = |text: &str| if args.json { Ok(()) } else { output::text(text) };
    let submitted = started.elapsed();
    let answer = answer(&mut session, request, TextOptions { position, stops: &args.stop, skip_special: true }, show)?;

    let ttft_s = (submitted + answer.prompt_time).as_secs_f64();
    if args.json {
        output::json(&as_json(args, &ids, &answer, load_s, ttft_s))?;
    } else if !answer.text.ends_with('\n') && (!args.raw || io::stdout().is_terminal()) {
        output::text("\n")?;
    }
    if args.stats {
        eprintln!("load {load_s:.2} s · first token after {ttft_s:.2} s · {}", stats(&answer));
    }
    grammar::complete(&answer)?;
    context_full(&session, &answer)
}

/// The request for `prompt`; `keep` tokens of it survive context shifts.
pub fn request(args: &RunArgs, sampling: SamplingParams, prompt: Vec<u32>, keep: usize) -> Request {
    Request {
        sampling,
        max_tokens: args.max_tokens,
        ignore_eos: args.ignore_eos,
        logprobs: args.logprobs,
        on_context_full: if args.context_shift { ContextFull::Shift { keep } } else { ContextFull::Finish },
        ..Request::new(prompt)
    }
}

/// Speeds, for people.
pub fn stats(answer: &Answer) -> String {
    format!(
        "prompt {} tokens ({} reused), {:.1} tok/s · answer {} tokens, {:.1} tok/s",
        answer.finished.prompt_tokens,
        answer.finished.reused_tokens,
        answer.prompt_rate(),
        answer.tokens.len(),
        answer.generation_rate()
    )
}

/// # Errors
/// When the answer ended because there was no room for more.
pub fn context_full(session: &Session, answer: &Answer) -> anyhow::Result<()> {
    if answer.finished.reason != FinishReason::Context {
        return Ok(());
    }
    let (context, longest) = (session.engine.max_context(), session.engine.model_info().max_context);
    let larger = if context < longest { format!("raise --ctx (this model takes up to {longest}), ") } else { String::new() };
    bail!("the context of {context} tokens is full and the answer is cut off; {larger}use --context-shift, or a smaller --max-tokens")
}

/// Wrong numbers are refused before a model is downloaded or loaded.
fn check_numbers(args: &RunArgs) -> anyhow::Result<()> {
    let sampling = args.sampling.over(&sampling::ours());
    StopStrings::new(&args.stop)?;
    Ok(request(args, sampling, vec![0], 0).validate(usize::MAX)?)
}

/// The prompt from the arguments, from standard input or, with a `-` behind other words, from both; `None` when a person should
/// be asked.
fn prompt(args: &RunArgs) -> anyhow::Result<Option<String>> {
    match &args.prompt[..] {
        [] if io::stdin().is_terminal() => {
            if args.raw || args.json {
                bail!("--raw and --json need a prompt: write it behind the model, or pass it on standard input");
            }
            Ok(None)
        }
        [words @ .., last] if last == "-" && !words.is_empty() => Ok(Some(format!("{}\n\n{}", words.join(" "), read_prompt()?))),
        [] => Ok(Some(read_prompt()?)),
        [dash] if dash == "-" => Ok(Some(read_prompt()?)),
        words => Ok(Some(words.join(" "))),
    }
}

fn read_prompt() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).context("cannot read the prompt from standard input")?;
    let text = String::from_utf8(bytes).context("the prompt on standard input is not UTF-8; convert it first")?;
    // The line end that `echo` adds is not meant as part of the prompt.
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        bail!("the prompt is empty: write it behind the model, or pass it on standard input");
    }
    Ok(text.to_owned())
}

fn as_json(args: &RunArgs, ids: &[u32], answer: &Answer, load_s: f64, ttft_s: f64) -> Value {
    let mut object = json!({
        "text": answer.text,
        "prompt_tokens": ids,
        "tokens": answer.tokens,
        "finish_reason": answer.finished.reason.as_str(),
        "timings": {
            "load_s": load_s,
            "prompt_tokens": answer.finished.prompt_tokens,
            "prompt_s": answer.prompt_time.as_secs_f64(),
            "prompt_tok_s": answer.prompt_rate(),
            "ttft_s": ttft_s,
            "gen_tokens": answer.tokens.len(),
            "gen_s": answer.generation_time.as_secs_f64(),
            "gen_tok_s": answer.generation_rate(),
        },
    });
    if args.logprobs.is_some() {
        let step = |(token, l): (&u32, &TokenLogprobs)| {
            let top: Vec<Value> = l.top.iter().map(|(id, logprob)| json!({"id": id, "logprob": logprob})).collect();
            json!({"id": token, "logprob": l.logprob, "top": top})
        };
        object["logprobs"] = answer.tokens.iter().zip(&answer.logprobs).map(step).collect();
    }
    object
}
