//! Finding out what a server has and understands, before anything is measured.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    api::{Api, Common, Dialect},
    client::Client,
    dataset::Dataset,
    failure::Failure,
    http::Server,
    record::Record,
    workload::{Alphabet, Prompt, RandomPrompts, Request, Workload, words},
};
use crate::{
    args::bench_serve::{ApiArg, BenchServeArgs},
    random::Random,
};

/// Between two looks at a server that is not ready
const PAUSE: Duration = Duration::from_millis(200);
/// Words of the first two prompts whose tokens are counted
const FEW_WORDS: usize = 8;
const MORE_WORDS: usize = 40;
/// Words whose token ids are taken where a vocabulary's size is not known
const VOCABULARY_WORDS: usize = 400;
/// Answers of a file whose tokens are counted
const MAX_COUNTED: usize = 10_000;

/// What was found.
pub struct Found {
    pub client: Client,
    pub workload: Workload,
    /// What a reader of the figures should know
    pub notes: Vec<String>,
}

/// Makes the acquaintance of the server. `needed`: how many prompts of a file will be sent.
///
/// # Errors
/// When it cannot be reached, lists no model, or answers no form of request; when an argument or a file is wrong.
pub async fn probe(args: &BenchServeArgs, needed: usize) -> anyhow::Result<Found> {
    let target = &args.target;
    let server = Server::new(&args.url, target.api_key.as_deref(), target.ca_file.as_deref()).await?;
    let models = models(&server, target.wait).await;
    let listed = models.as_ref().ok().and_then(|models| models.pointer("/data/0/id")?.as_str());
    let model = match (&target.model, listed, &models) {
        (Some(name), ..) => name.clone(),
        (None, Some(name), _) => name.to_owned(),
        (None, None, Ok(_)) => anyhow::bail!("the server lists no model; name one with --model"),
        (None, None, Err(failure)) => return Err(advise(failure.clone(), &args.url)),
    };
    let extra = args.workload.extra_body.as_deref().map(serde_json::from_str).transpose();
    let extra = extra.context("--extra-body must be a JSON object")?.unwrap_or_default();
    let common = Common { model, temperature: args.workload.temperature, extra };
    let (any_api, api) = match target.api {
        ApiArg::Auto => (true, Api::Completions),
        ApiArg::Completions => (false, Api::Completions),
        ApiArg::Chat => (false, Api::Chat),
    };
    let random = args.workload.dataset.is_none();
    let ids = match api {
        Api::Completions if random => vocabulary(&server, &common.model, target.vocab, &models.unwrap_or_default()).await,
        _ => None,
    };
    let dialect = Dialect { api, ids: ids.is_some(), ignore_eos: true, usage: true, max_completion_tokens: false };
    let mut client = Client { server, dialect, common, timeout: target.timeout };
    let mut notes = Vec::new();
    negotiate(&mut client, ids.as_ref(), any_api, &mut notes).await.map_err(|failure| advise(failure, &args.url))?;

    let workload = match &args.workload.dataset {
        Some(file) => {
            let mut prompts = Dataset::read(file, args.workload.seed)?;
            if args.workload.output_len.is_none() {
                count_answers(&client, &mut prompts, needed, &mut notes).await;
            }
            Workload::Dataset { prompts, output_len: args.workload.output_len, next: 0 }
        }
        None => {
            let alphabet = match ids.filter(|_| client.dialect.ids) {
                Some(ids) => ids,
                None => scale_words(&client, args.workload.prefix_len + args.workload.input_len, &mut notes).await?,
            };
            Workload::Random(RandomPrompts::new(&args.workload, alphabet))
        }
    };
    Ok(Found { client, workload, notes })
}

/// The server's list of models, when it is there and its model is loaded.
async fn models(server: &Server, wait: Duration) -> Result<Value, Failure> {
    let begun = Instant::now();
    loop {
        let found = server.get_json("/v1/models").await;
        let not_yet = found.as_ref().is_err_and(|failure| failure.kind == "connect" || failure.status == Some(503));
        if !not_yet || begun.elapsed() >= wait {
            return found;
        }
        sleep(PAUSE).await;
    }
}

/// What to do about a server that does not answer.
fn advise(failure: Failure, url: &str) -> anyhow::Error {
    let advice = match (failure.kind.as_str(), failure.status) {
        ("connect", _) => "is it running? --wait S waits for one that starts",
        (_, Some(401 | 403)) => "give it an API key with --api-key",
        (_, Some(503)) => "--wait S waits for a model that loads",
        ("tls", _) => "--ca-file FILE trusts a certificate of your own",
        _ => "does it speak OpenAI's API there? --api and --model say which route and model to use",
    };
    anyhow!(failure).context(format!("{url} answers no request; {advice}"))
}

/// Token ids that the server's model has; `None` where nothing tells.
async fn vocabulary(server: &Server, model: &str, given: Option<u32>, models: &Value) -> Option<Alphabet> {
    let size = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0);
    if let Some(vocab) = given.or_else(|| size(models.pointer("/data/0/meta/n_vocab")?)) {
        return Some(Alphabet::Below(vocab));
    }
    if let Ok(info) = server.get_json("/model_info").await
        && let Some(vocab) = info.get("vocab_size").and_then(size)
    {
        return Some(Alphabet::Below(vocab));
    }
    let Prompt::Text(text) = words(VOCABULARY_WORDS, &mut Random::new(0)) else { return None };
    let mut ids = tokenize(server, model, &text).await?;
    ids.sort_unstable();
    ids.dedup();
    (!ids.is_empty()).then_some(Alphabet::Ids(ids))
}

/// The tokens of a text, in the form that vLLM, llama.cpp and Ferrum share.
async fn tokenize(server: &Server, model: &str, text: &str) -> Option<Vec<u32>> {
    let body = json!({"model": model, "prompt": text, "content": text, "add_special_tokens": false});
    let found = server.post_json("/tokenize", &body).await.ok()?;
    found.get("tokens")?.as_array()?.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

/// Asks for a short answer, with less each time the server refuses.
async fn negotiate(client: &mut Client, ids: Option<&Alphabet>, any_api: bool, notes: &mut Vec<String>) -> Result<(), Failure> {
    let mut first = None;
    loop {
        let mut random = Random::new(1);
        let prompt = match ids.filter(|_| client.dialect.ids) {
            Some(ids) => ids.draw(FEW_WORDS, &mut random),
            None => words(FEW_WORDS, &mut random),
        };
        let record = client.ask(&Request { prompt, input_tokens: None, output_tokens: 2, exact: true }).await;
        let Some(failure) = record.failure else {
            note_dialect(client, ids, &record, notes);
            return Ok(());
        };
        let less = client.dialect.without_what_was_refused(&failure, any_api);
        let first = first.get_or_insert(failure);
        client.dialect = less.ok_or_else(|| first.clone())?;
    }
}

fn note_dialect(client: &Client, ids: Option<&Alphabet>, record: &Record, notes: &mut Vec<String>) {
    if !client.dialect.ignore_eos {
        notes.push("the server takes no `ignore_eos`: the model may end answers early".into());
    }
    if ids.is_some() && !client.dialect.ids {
        notes.push("the server takes no token ids: prompts are words, and their lengths approximate".into());
    }
    if !record.counted {
        notes.push("the server counts no tokens: events are taken for tokens".into());
    }
}

/// Finds how many tokens a word makes, and how many stand around a prompt.
async fn scale_words(client: &Client, input_len: usize, notes: &mut Vec<String>) -> anyhow::Result<Alphabet> {
    let count = async |count: usize| {
        let prompt = words(count, &mut Random::of(&[2, count as u64]));
        let record = client.ask(&Request { prompt, input_tokens: None, output_tokens: 1, exact: true }).await;
        match record.failure {
            Some(failure) => Err(anyhow!(failure).context(format!("a prompt of {count} words failed"))),
            None => Ok(record.counted.then_some(record.prompt_tokens as f64)),
        }
    };
    let (Some(few), Some(more)) = (count(FEW_WORDS).await?, count(MORE_WORDS).await?) else {
        notes.push("a word is taken for a token, since the server counts none".into());
        return Ok(Alphabet::Words { tokens_per_word: 1.0, overhead: 0.0 });
    };
    let tokens_per_word = ((more - few) / (MORE_WORDS - FEW_WORDS) as f64).max(0.1);
    let overhead = (few - FEW_WORDS as f64 * tokens_per_word).max(0.0);
    // Once more at the length that will be asked for, where a small error of the slope is a large one of the prompt.
    let long = ((input_len as f64 - overhead) / tokens_per_word).round().max(1.0);
    let tokens = count(long as usize).await?.unwrap_or(input_len as f64);
    Ok(Alphabet::Words { tokens_per_word: ((tokens - overhead) / long).max(0.1), overhead })
}

/// Lets the server count the tokens of the answers in the file, which those to come shall have as well.
async fn count_answers(client: &Client, prompts: &mut Dataset, needed: usize, notes: &mut Vec<String>) {
    for item in prompts.items_mut().iter_mut().take(needed.min(MAX_COUNTED)) {
        if let (None, Some(answer)) = (item.output_tokens, &item.answer) {
            // A server that does not count one counts none.
            let Some(ids) = tokenize(&client.server, &client.common.model, answer).await else { break };
            item.output_tokens = Some(ids.len()).filter(|&n| n > 0);
        }
    }
    if prompts.iter().take(needed).any(|item| item.output_tokens.is_none()) {
        notes.push("some or all records have no length of the answer that the server could count: the model ends those answers".into());
    }
}
