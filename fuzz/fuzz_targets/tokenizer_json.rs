//! Any bytes as `tokenizer.json`, alone and inside a small sound one: an error, or a tokenizer that encodes and streams without panic.
#![no_main]

use ferrum_models::text::{Detokenizer, EncodeOptions, Position, Tokenizer, TokenizerFiles};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use std::sync::{Arc, Once};

const TEXTS: [&str; 4] = ["", "Hello  <|x|> wörld", "a\u{301}海🐟\u{0}\n\n", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"];

fuzz_target!(|data: &[u8]| {
    // Panics of the library are contained by the loader, so they are no findings: libFuzzer's hook would abort at them.
    static QUIET: Once = Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    // The configurations are the first line, if there is one that looks like it.
    let (config, json) = match data.iter().position(|&byte| byte == b'\n') {
        Some(end) if data.starts_with(b"{\"bos") => (Some(&data[..end]), &data[end + 1..]),
        _ => (None, data),
    };
    let files = TokenizerFiles { tokenizer_json: json, tokenizer_config: config, generation_config: config, chat_template: None };
    let outcome = std::panic::catch_unwind(|| check(&files));
    if outcome.is_err() {
        std::process::abort();
    }
});

fn check(files: &TokenizerFiles) {
    let Ok(tokenizer) = Tokenizer::from_files(files) else { return };
    let tokenizer = Arc::new(tokenizer);
    let _ = tokenizer.chat_template();
    assert!(tokenizer.end_ids().iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    for text in TEXTS {
        for parse_special in [false, true] {
            let Ok(ids) = tokenizer.encode(text, EncodeOptions { add_special: parse_special, parse_special }) else { continue };
            let mut stream = Detokenizer::new(tokenizer.clone(), Position::Start, parse_special);
            let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
            streamed += &stream.finish();
            assert_eq!(streamed, tokenizer.decode(&ids, parse_special));
        }
    }
}

// Bytes that stay JSON get past the parser more often: half of the mutations change one value only.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 2 == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let from = data[..size].iter().enumerate().filter(|(_, byte)| **byte == b':').nth(seed as usize / 2 % 64).map_or(0, |(at, _)| at + 1);
    let end = data[from..size].iter().position(|byte| matches!(byte, b',' | b'}' | b']')).map_or(size, |len| from + len);
    let mut value = data[from..end].to_vec();
    let len = value.len();
    value.resize(len + 16, 0);
    let new_len = fuzzer_mutate(&mut value, len, len + 16);
    let total = size - len + new_len;
    if total > max_size {
        return size;
    }
    let tail = data[end..size].to_vec();
    data[from..from + new_len].copy_from_slice(&value[..new_len]);
    data[from + new_len..total].copy_from_slice(&tail);
    total
});
