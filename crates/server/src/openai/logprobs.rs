//! Log-probabilities in the two shapes that OpenAI's routes have.

use ferrum_engine::TokenLogprobs;
use ferrum_models::text::Tokenizer;
use serde_json::{Value, json};

use crate::generate::Token;

/// `logprobs` of a chat choice: `{"content": [{"token", "logprob", "bytes", "top_logprobs"}]}`.
pub fn chat(tokenizer: &Tokenizer, tokens: &[Token]) -> Value {
    let entry = |id: u32, logprob: f32| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        json!({"token": String::from_utf8_lossy(bytes), "logprob": finite(logprob), "bytes": bytes})
    };
    let content: Vec<Value> = with_logprobs(tokens)
        .map(|(id, logprobs)| {
            let mut shown = entry(id, logprobs.logprob);
            shown["top_logprobs"] = logprobs.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
            shown
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// `logprobs` of a completion: four lists of one length. `offset` is where the text of the first token begins, in characters. A
/// token that nothing predicts has `null`.
pub fn completion(tokenizer: &Tokenizer, tokens: &[Token], offset: &mut usize) -> Value {
    let text = |id: u32| String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or_default()).into_owned();
    let (mut texts, mut chosen, mut top, mut offsets) = (vec![], vec![], vec![], vec![]);
    for Token { id, logprobs } in tokens {
        let token = text(*id);
        offsets.push(*offset);
        *offset += token.chars().count();
        texts.push(token);
        chosen.push(logprobs.as_ref().map(|l| finite(l.logprob)));
        top.push(logprobs.as_ref().map(|l| {
            let alternatives = l.top.iter().copied().chain([(*id, l.logprob)]);
            alternatives.map(|(id, logprob)| (text(id), finite(logprob))).collect::<serde_json::Map<_, _>>()
        }));
    }
    json!({"tokens": texts, "token_logprobs": chosen, "top_logprobs": top, "text_offset": offsets})
}

fn with_logprobs(tokens: &[Token]) -> impl Iterator<Item = (u32, &TokenLogprobs)> {
    tokens.iter().filter_map(|token| Some((token.id, token.logprobs.as_ref()?)))
}

/// JSON has no infinities: a token that cannot be drawn gets the least figure that clients know.
fn finite(logprob: f32) -> Value {
    Value::from(if logprob.is_finite() { f64::from(logprob) } else { -9999.0 })
}
