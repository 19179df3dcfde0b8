//! `POST /v1/embeddings`.
//!
//! Every model answers: with the pooling that its files name, or with the state of the last token, which is what embedding models
//! of these families use.

use std::sync::Arc;

use axum::{Extension, Json, extract::State};
use bytes::Bytes;
use ferrum_engine::{ReadPrompt, Reading};
use serde_json::{Value, json};

use super::input;
use crate::{
    app::App,
    error::{ApiError, Result},
    fields::{Fields, wrong},
    generate::{Answers, Piece},
    limits::Client,
    openapi::takes,
    sampling::Generation,
};

pub async fn create(State(app): State<Arc<App>>, Extension(client): Extension<Client>, body: Bytes) -> Result<Json<Value>> {
    let mut fields = Fields::parse(&body, &takes::EMBEDDING)?;
    let model = app.model_named(fields.string("model")?)?;
    let base64 = match fields.string("encoding_format")? {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => return Err(wrong("encoding_format", &other.into(), "float or base64")),
    };
    let dimensions = fields.count("dimensions", 1, model.info.hidden as u64)?;
    // Nothing is sampled that anyone sees: the step that computes the end of the text draws a token in any case.
    let mut order = Fields::from(fields.take_all(&["priority", "user"]));
    let read_prompt = Some(ReadPrompt::Embedding(model.pooling));
    let generation = Generation { n: 1, max_tokens: Some(1), read_prompt, ..Generation::read(&mut order, &model.sampling, client)? };
    let texts = input::texts(model, "input", fields.take("input"))?;
    let mut vectors = vec![Vec::new(); texts.len()];
    let texts = texts.into_iter().map(|text| text.tokens).collect();
    let mut answers = Answers::start(&app, model, texts, &generation).await.map_err(|error| error.renamed(&[("messages", "input")]))?;
    while let Some(piece) = answers.next().await? {
        if let Piece::Prompt { choice, reading: Reading::Embedding(vector) } = piece {
            vectors[choice] = vector;
        }
    }
    let vectors = vectors.into_iter().map(|vector| normalized(vector, dimensions)).collect::<Result<Vec<_>>>()?;
    let shown = |(index, vector): (usize, &Vec<f32>)| {
        let embedding = if base64 { Value::from(encode_base64(bytes_of(vector))) } else { json!(vector) };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    };
    let data: Vec<Value> = vectors.iter().enumerate().map(shown).collect();
    let tokens = answers.usage().prompt_tokens;
    Ok(Json(json!({
        "object": "list", "data": data, "model": model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })))
}

/// The first `dimensions` elements, scaled to length 1.
fn normalized(mut vector: Vec<f32>, dimensions: Option<usize>) -> Result<Vec<f32>> {
    vector.truncate(dimensions.unwrap_or(vector.len()));
    let length = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    if !(length.is_finite() && length > 0.0) {
        return Err(ApiError::internal("the model gives no finite embedding for this input"));
    }
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    Ok(vector)
}

/// Little-endian F32, as clients read it.
fn bytes_of(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// RFC 4648 with padding.
fn encode_base64(bytes: Vec<u8>) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().chain([0; 2].iter()).take(3).fold(0u32, |bits, &byte| bits << 8 | u32::from(byte));
        for place in 0..4 {
            let letter = ALPHABET[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= group.len() { letter as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("go", "Z28="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")] {
            assert_eq!(encode_base64(bytes.into()), text);
        }
        assert_eq!(encode_base64(vec![0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn vectors_have_length_1() {
        assert_eq!(normalized(vec![3.0, 4.0, 12.0], Some(2)).unwrap(), [0.6, 0.8]);
        assert!(normalized(vec![0.0; 3], None).is_err() && normalized(vec![f32::NAN, 1.0], None).is_err());
    }
}
