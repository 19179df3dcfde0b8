//! What cannot be done is one clear sentence and exit code 1.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::common::{error, ferrum, fixture, read_json, with};

#[test]
fn unknown_models() {
    assert!(error(&["run", "smolm2:135m", "x", "--offline"]).contains("smollm2:135m"), "the nearest alias is named");
    assert!(error(&["run", "./no/such.gguf", "x"]).contains("no such file"));
    let text = error(&["show", "no-such.gguf"]);
    assert!(text.contains("no-such.gguf"), "{text}");
}

#[test]
fn offline_never_downloads() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().to_str().unwrap();
    for args in [&["run", "smollm2:135m", "hello"][..], &["pull", "smollm2:135m"], &["show", "smollm2:135m"], &["plan", "smollm2:135m"]] {
        let text = error(&with(args, &["--offline", "--models-dir", models]));
        assert!(text.contains("--offline") && text.contains("ferrum pull"), "{text}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn broken_files() {
    let dir = tempfile::tempdir().unwrap();
    let whole = fs::read(fixture("gguf/llama3-q8_0.gguf")).unwrap();
    for (name, bytes) in
        [("cut.gguf", &whole[..whole.len() / 2]), ("header.gguf", &whole[..100]), ("text.gguf", b"not a model"), ("none.gguf", b"")]
    {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        for command in ["run", "show", "plan", "bench"] {
            let mut args = vec![command, path.to_str().unwrap()];
            args.extend((command == "run").then_some("x"));
            let text = error(&args);
            assert!(text.contains(name), "{text}");
        }
    }
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    assert!(error(&["run", folder.to_str().unwrap(), "x"]).contains("folder"));
    for file in fs::read_dir(fixture("llama3")).unwrap().map(|f| f.unwrap().path()) {
        fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
    }
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    assert!(error(&["run", folder.to_str().unwrap(), "x"]).contains("tokenizer.json: no such file"));
    fs::write(folder.join("tokenizer.json"), "{").unwrap();
    assert!(error(&["run", folder.to_str().unwrap(), "x"]).contains("tokenizer.json"));
    fs::write(folder.join("config.json"), "[]").unwrap();
    assert!(error(&["run", folder.to_str().unwrap(), "x"]).contains("config.json"));
}

/// A copy of the tiny Llama 3 folder with one key of its `config.json` set.
fn with_config(dir: &Path, key: &str, value: Value) -> String {
    for file in fs::read_dir(fixture("llama3")).unwrap().map(|f| f.unwrap().path()) {
        fs::copy(&file, dir.join(file.file_name().unwrap())).unwrap();
    }
    let mut config = read_json(dir.join("config.json"));
    config[key] = value;
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    dir.to_str().unwrap().to_owned()
}

#[test]
fn config_keys_that_would_change_the_result_are_honoured_or_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (key, value, about) in [
        ("attention_sink_size", json!(4), "attention_sink_size"),
        ("hidden_act", json!("relu"), "hidden_act"),
        ("rope_scaling", json!({"rope_type": "spiral", "factor": 2.0}), "spiral"),
        ("pretraining_tp", json!(2), "pretraining_tp"),
        ("num_attention_heads", json!(0), "num_attention_heads"),
        ("hidden_size", json!("64"), "hidden_size"),
        ("model_type", json!("mamba"), "mamba"),
        ("quantization_config", json!({"quant_method": "gptq"}), "gptq"),
        // The files do not hold what these ask for.
        ("num_hidden_layers", json!(3), "model.layers.2."),
        ("num_hidden_layers", json!(1), "model.layers.1."),
        ("intermediate_size", json!(128), "128"),
    ] {
        let model = with_config(dir.path(), key, value);
        for command in [&["run", &model, "x", "--raw"][..], &["plan", &model]] {
            let text = error(command);
            assert!(text.contains(about), "{key}: {text}");
        }
    }
    // What says nothing about the result is no reason to refuse.
    let model = with_config(dir.path(), "torch_dtype", json!("bfloat16"));
    assert!(ferrum(&["run", &model, "x", "--raw", "-n", "1"]).status.success());
}

#[test]
fn bad_numbers_are_refused_by_name() {
    let model = fixture("llama3");
    for (flag, value, name) in [
        ("--temperature", "-1", "temperature"),
        ("--temperature", "nan", "temperature"),
        ("--top-p", "1.5", "top_p"),
        ("--min-p", "-0.1", "min_p"),
        ("--top-k", "-2", "top_k"),
        ("--repeat-penalty", "0", "repetition_penalty"),
        ("--presence-penalty", "3", "presence_penalty"),
        ("--frequency-penalty", "inf", "frequency_penalty"),
        ("--max-tokens", "0", "max_tokens"),
        ("--max-tokens", "many", "--max-tokens"),
        ("--seed", "-1", "--seed"),
        ("--ctx", "1", "a context of 1 tokens"),
        ("--ctx", "100000", "a context of 100000 tokens"),
        ("--threads", "0", "threads"),
        ("--kv-type", "q8", "--kv-type"),
        ("--backend", "gpu", "--backend"),
    ] {
        let text = error(&["run", &model, "x", &format!("{flag}={value}")]);
        assert!(text.contains(name), "{flag} {value}: {text}");
    }
    assert!(error(&["run", &model, "x", "--json", "--logprobs", "999"]).contains("logprobs"));
    assert!(error(&["bench", &model, "-p", "0"]).contains("-p"));
    // `bench` has no --ctx to choose.
    assert!(error(&["bench", &model, "-p", "300"]).contains("a context of 430 tokens is not possible: this model takes 2 to 256\n"));
    assert!(error(&["bench", "--dummy-weights", "x.json", "--quant", "q9"]).contains("q4_k_m"));
    assert!(error(&["perplexity", &model, "no-such.txt"]).contains("no-such.txt"));
}

#[test]
fn prompts_that_do_not_fit() {
    let text = error(&["run", &fixture("llama3"), &"counting gulls ".repeat(100), "--raw"]);
    assert!(text.contains("context") && text.contains("256"), "{text}");
}

#[test]
fn help_and_version_are_no_errors() {
    for args in [&["--help"][..], &["--version"], &["run", "--help"], &["help", "bench"]] {
        let output = ferrum(args);
        assert!(output.status.success() && !output.stdout.is_empty(), "{args:?}");
    }
    assert_eq!(ferrum(&["no-such-command"]).status.code(), Some(1));
}
