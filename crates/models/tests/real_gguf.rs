//! Real GGUF files from the `.models` folder, against what the Python `gguf` package reads in them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ferrum_models::files::{Gguf, WeightFile};

/// What is known of one file.
struct Expected {
    file: &'static str,
    keys: usize,
    architecture: &'static str,
    tokens: usize,
    /// Tensors by type.
    types: &'static [(&'static str, usize)],
    /// Name, shape, type, offset and bytes of one tensor.
    tensor: (&'static str, [usize; 2], &'static str, usize, usize),
}

#[test]
fn smollm2() {
    check(Expected {
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        keys: 33,
        architecture: "llama",
        tokens: 49_152,
        types: &[("Q4_1", 210), ("F32", 61), ("Q8_0", 1)],
        tensor: ("token_embd.weight", [49_152, 576], "Q8_0", 1_785_664, 30_081_024),
    });
}

#[test]
fn gemma3() {
    check(Expected {
        file: "gemma-3-270m-Q4_K_M.gguf",
        keys: 33,
        architecture: "gemma3",
        tokens: 262_144,
        types: &[("F32", 109), ("Q5_0", 81), ("Q4_K", 27), ("Q8_0", 10), ("Q6_K", 9)],
        tensor: ("token_embd.weight", [262_144, 640], "Q8_0", 6_527_680, 178_257_920),
    });
}

#[test]
fn qwen2() {
    check(Expected {
        file: "qwen2.5-coder-0.5b-instruct-Q4_K_M.gguf",
        keys: 26,
        architecture: "qwen2",
        tokens: 151_936,
        types: &[("Q5_0", 133), ("F32", 121), ("Q8_0", 13), ("Q6_K", 12), ("Q4_K", 12)],
        tensor: ("output.weight", [151_936, 896], "Q8_0", 5_947_776, 144_643_072),
    });
}

fn check(expected: Expected) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.models").join(expected.file);
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return;
    }
    let begin = Instant::now();
    let gguf = Gguf::open(&path).unwrap();
    let took = begin.elapsed();
    eprintln!("{}: opened in {took:?}", expected.file);
    // Some ten times what an optimised build takes: meant to catch copying or quadratic work, not to measure.
    assert!(took < Duration::from_secs(1), "opening took {took:?}");
    gguf.check().unwrap();

    let meta = gguf.metadata();
    assert_eq!(meta.keys().len(), expected.keys);
    assert_eq!(meta.get_str("general.architecture").unwrap(), expected.architecture);
    let tokens = meta.get_str_array("tokenizer.ggml.tokens").unwrap();
    assert_eq!(tokens.len(), expected.tokens);
    assert!(tokens.iter().all(|t| !t.is_empty()));
    assert_eq!(meta.get::<Vec<i32>>("tokenizer.ggml.token_type").unwrap().len(), expected.tokens);

    let infos = gguf.table().infos();
    assert_eq!(infos.len(), expected.types.iter().map(|(_, n)| n).sum::<usize>());
    for (name, count) in expected.types {
        assert_eq!(infos.iter().filter(|t| t.type_name == *name).count(), *count, "{name}");
    }
    let (name, shape, type_name, offset, len_bytes) = expected.tensor;
    let info = gguf.table().info(name).unwrap();
    assert_eq!((info.shape.as_slice(), info.type_name, info.offset, info.len_bytes), (shape.as_slice(), type_name, offset, len_bytes));
    for name in gguf.names() {
        let tensor = gguf.tensor(name).unwrap();
        assert_eq!(tensor.dtype.bytes(tensor.shape.iter().product()), Some(tensor.bytes.len()), "{name}");
    }
}
