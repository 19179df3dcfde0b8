use super::corpus::{self, Lcg};
use super::{fixture, read_json};
use ferrum_models::files::Gguf;
use ferrum_models::text::{Detokenizer, EncodeOptions, GgufVocab, Position, Tokenizer, TokenizerFiles};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

const ALL: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };
const TEXT: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn folder(name: &str) -> Tokenizer {
    let read = |file: &str| std::fs::read(fixture(name).join(file)).ok();
    let (json, config, generation) = (read("tokenizer.json").unwrap(), read("tokenizer_config.json"), read("generation_config.json"));
    let files = TokenizerFiles {
        tokenizer_json: &json,
        tokenizer_config: config.as_deref(),
        generation_config: generation.as_deref(),
        chat_template: None,
    };
    Tokenizer::from_files(&files).unwrap()
}

/// The tokenizer of a real file in `.models`, if it is there.
fn real(file: &str) -> Option<(Gguf, Tokenizer)> {
    let path = fixture("../../../../.models").join(file);
    if !path.exists() {
        eprintln!("SKIPPED: no {}", path.display());
        return None;
    }
    let gguf = Gguf::open(&path).unwrap();
    let begin = Instant::now();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let took = begin.elapsed();
    eprintln!("{file}: {} tokens ready in {took:?}", tokenizer.vocab_size());
    // Some ten times what an optimised build takes on an idle machine: meant to catch quadratic work.
    assert!(took < Duration::from_secs(4), "building took {took:?}");
    Some((gguf, tokenizer))
}

fn check_hashes(golden: &Value, set: &str, texts: &[String], tokenizer: &Tokenizer) {
    let got = corpus::hashes(texts, |text| tokenizer.encode(text, ALL).unwrap());
    let want = strings(&golden[set]);
    assert_eq!(got.len(), want.len());
    let wrong: Vec<_> = (0..got.len()).filter(|&i| got[i] != want[i]).collect();
    assert!(wrong.is_empty(), "{set}: other ids in the chunks {wrong:?} of 500 texts");
}

fn check_model(file: &str) {
    let Some((_, tokenizer)) = real(file) else { return };
    let golden = read_json("text/tokens.json");
    let model = golden["models"].as_array().unwrap().iter().find(|model| model["file"] == file).unwrap();
    for (text, want) in strings(&golden["texts"]).iter().zip(model["texts"].as_array().unwrap()) {
        assert_eq!(tokenizer.encode(text, ALL).unwrap(), ids(want), "{text:?}");
    }
    check_hashes(model, "bytes", &corpus::random_bytes(), &tokenizer);
    check_hashes(model, "chars", &corpus::random_chars(), &tokenizer);
    check_hashes(model, "tokens", &corpus::random_tokens(&tokenizer), &tokenizer);
    check_streaming(Arc::new(tokenizer), 300);
}

#[test]
fn smollm2_encodes_as_python() {
    check_model("SmolLM2-135M-Instruct.Q4_1.gguf");
}

#[test]
fn qwen2_encodes_as_python() {
    check_model("qwen2.5-coder-0.5b-instruct-Q4_K_M.gguf");
}

#[test]
fn gemma3_encodes_as_python() {
    check_model("gemma-3-270m-Q4_K_M.gguf");
}

/// The prompts and greedy answers of the llama.cpp references, in ids and in text.
#[test]
fn prompts_and_answers_are_those_of_the_references() {
    for (file, prompts) in read_json("text/references.json").as_object().unwrap() {
        let Some((_, tokenizer)) = real(file) else { continue };
        for prompt in prompts.as_array().unwrap() {
            let text = prompt["prompt"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, ALL).unwrap(), ids(&prompt["prompt_tokens"]), "{file}: {text:?}");
            assert_eq!(tokenizer.decode_continuation(&ids(&prompt["tokens"]), false), prompt["text"], "{file}: {text:?}");
        }
    }
}

#[test]
fn roles_of_tokens_are_found() {
    let cases: [(&str, Option<u32>, &[u32], bool); 3] = [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", Some(1), &[0, 2], false),
        ("qwen2.5-coder-0.5b-instruct-Q4_K_M.gguf", Some(151643), &[151643, 151645], false),
        ("gemma-3-270m-Q4_K_M.gguf", Some(2), &[1, 106], true),
    ];
    for (file, bos, ends, add_bos) in cases {
        let Some((_, tokenizer)) = real(file) else { continue };
        assert_eq!((tokenizer.bos(), tokenizer.end_ids(), tokenizer.add_bos()), (bos, ends, add_bos), "{file}");
        assert!(ends.iter().all(|&id| tokenizer.is_end(id) && tokenizer.is_special(id)), "{file}");
    }
}

/// `tokenizer.json` with byte fallback and the decoder of Llama 2: ids, decoding and the leading space.
#[test]
fn byte_fallback_json_encodes_and_decodes_as_python() {
    let tokenizer = folder("text/spm");
    let golden = read_json("text/tokens.json");
    let decoded = strings(&golden["spm"]["decoded"]);
    for (i, text) in strings(&golden["texts"]).iter().enumerate() {
        let want = ids(&golden["spm"]["texts"][i]);
        assert_eq!(tokenizer.encode(text, ALL).unwrap(), want, "{text:?}");
        assert_eq!(tokenizer.decode(&want, true), decoded[i], "{text:?}");
    }
    check_hashes(&golden["spm"], "bytes", &corpus::random_bytes(), &tokenizer);
    check_hashes(&golden["spm"], "chars", &corpus::random_chars(), &tokenizer);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.end_ids(), tokenizer.add_bos()), (Some(1), Some(2), &[2][..], true));
    let hello = tokenizer.encode("Hello", TEXT).unwrap();
    assert_eq!(tokenizer.decode(&hello, true), "Hello");
    assert_eq!(tokenizer.decode_continuation(&hello, true), " Hello");
    check_streaming(Arc::new(tokenizer), 2_000);
}

/// The same vocabulary as GGUF metadata, where merges follow scores, gives the same ids.
#[test]
fn scores_merge_as_the_merge_list_does() {
    let json = read_json("text/spm/tokenizer.json");
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![""; vocab.len()];
    vocab.iter().for_each(|(text, id)| tokens[id.as_u64().unwrap() as usize] = text);
    let merge_ranks = json["model"]["merges"].as_array().unwrap();
    let mut scores = vec![f32::NEG_INFINITY; tokens.len()];
    for (rank, merge) in merge_ranks.iter().enumerate() {
        let text = merge[0].as_str().unwrap().to_owned() + merge[1].as_str().unwrap();
        let score = &mut scores[vocab[&text].as_u64().unwrap() as usize];
        *score = score.max(-(rank as f32));
    }
    let token_types = tokens.iter().enumerate().map(|(id, text)| match (id, text.starts_with("<0x")) {
        (0, _) => 2,
        (1 | 2, _) => 3,
        (_, true) => 6,
        _ => 1,
    });
    let file = GgufVocab { model: "llama", scores: Some(scores), token_types: Some(token_types.collect()), tokens, ..GgufVocab::default() };
    let (ours, library) = (Tokenizer::from_gguf_vocab(&file).unwrap(), folder("text/spm"));
    for text in corpus::random_bytes().iter().chain(&corpus::random_chars()).filter(|text| !text.is_empty()) {
        let got = ours.encode(text, ALL).unwrap();
        assert_eq!(got, library.encode(text, ALL).unwrap(), "{text:?}");
        assert_eq!(ours.decode(&got[1..], true), *text);
    }
}

/// The small byte-level tokenizers of the model fixtures, from `tokenizer.json` and from GGUF.
#[test]
fn byte_level_gguf_encodes_as_its_json() {
    let library = folder("llama3");
    let gguf = Gguf::open(fixture("gguf/llama3-f32.gguf")).unwrap();
    let ours = Tokenizer::from_gguf(&gguf).unwrap();
    assert_eq!(ours.vocab_size(), library.vocab_size());
    assert_eq!((ours.bos(), ours.eos(), ours.end_ids()), (library.bos(), library.eos(), library.end_ids()));
    for text in corpus::random_bytes().iter().chain(&corpus::random_chars()) {
        let got = ours.encode(text, TEXT).unwrap();
        assert_eq!(got, library.encode(text, TEXT).unwrap(), "{text:?}");
        assert_eq!(ours.decode(&got, true), *text);
    }
    let golden = read_json("llama3/golden.json");
    for prompt in golden["prompts"].as_array().unwrap() {
        let text = prompt["text"].as_str().or(prompt["prompt"].as_str()).unwrap();
        assert_eq!(library.encode(text, ALL).unwrap(), ids(&prompt["ids"]), "{text:?}");
        assert_eq!(ours.encode(text, ALL).unwrap(), ids(&prompt["ids"]), "{text:?}");
    }
    check_streaming(Arc::new(ours), 2_000);
}

/// Users' text is never read as special tokens unless asked for.
#[test]
fn special_tokens_need_parse_special() {
    for tokenizer in [folder("llama3"), Tokenizer::from_gguf(&Gguf::open(fixture("gguf/llama3-f32.gguf")).unwrap()).unwrap()] {
        let start = tokenizer.token_id("<|im_start|>").unwrap();
        let text = "a<|im_start|>b";
        let parsed = tokenizer.encode(text, EncodeOptions { parse_special: true, ..TEXT }).unwrap();
        let plain = tokenizer.encode(text, TEXT).unwrap();
        assert!(parsed.contains(&start) && !plain.contains(&start), "{tokenizer:?}");
        assert_eq!(tokenizer.decode(&plain, true), text);
        assert_eq!(tokenizer.decode(&parsed, true), "ab");
        assert_eq!(tokenizer.decode(&parsed, false), text);
    }
}

/// Pushing tokens one by one gives the text of all, and never half a character.
fn check_streaming(tokenizer: Arc<Tokenizer>, rounds: usize) {
    let mut random = Lcg::new(4);
    for round in 0..rounds {
        let count = random.next() % 24;
        let ids: Vec<u32> = (0..count).map(|_| (random.next() % (tokenizer.vocab_size() as u64 + 2)) as u32).collect();
        let skip = round % 2 == 0;
        for (position, want) in
            [(Position::Start, tokenizer.decode(&ids, skip)), (Position::Continuation, tokenizer.decode_continuation(&ids, skip))]
        {
            let mut stream = Detokenizer::new(tokenizer.clone(), position, skip);
            let mut got: String = ids.iter().map(|&id| stream.push(id)).collect();
            got += &stream.finish();
            assert_eq!(got, want, "{ids:?}");
        }
    }
    let text = "é海🐟🤦🏽‍♀️ ";
    let mut stream = Detokenizer::new(tokenizer.clone(), Position::Start, true);
    let parts: Vec<String> = tokenizer.encode(text, TEXT).unwrap().into_iter().map(|id| stream.push(id)).collect();
    assert_eq!(parts.concat(), text);
    assert!(parts.iter().all(|part| !part.contains('\u{FFFD}')));
}
