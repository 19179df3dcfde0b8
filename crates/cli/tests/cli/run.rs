//! `ferrum run`.

use std::process::Stdio;

use crate::common::{EXACT, command, error, ferrum, ferrum_with_input, fixture, ids, json, read_json, text, with};

/// Prompt `n` of a fixture's golden: text, ids and greedy tokens.
fn golden(folder: &str, n: usize) -> (String, Vec<u64>, Vec<u64>) {
    let golden = read_json(format!("{}/golden.json", fixture(folder)));
    let prompt = &golden["prompts"][n];
    (prompt["text"].as_str().unwrap().to_owned(), ids(&prompt["ids"]), ids(&prompt["greedy"]))
}

const GREEDY: [&str; 7] = ["--raw", "--json", "--ignore-eos", "-n", "64", "--temperature", "0"];

#[test]
fn greedy_tokens_are_those_of_transformers_from_folders_and_gguf() {
    for (model, folder) in [
        ("llama3", "llama3"),
        ("gguf/llama3-f32.gguf", "llama3"),
        ("llama2", "llama2"),
        ("qwen2", "qwen2"),
        ("qwen3-sharded", "qwen3-sharded"),
        ("gguf/qwen3-f32.gguf", "qwen3"),
        ("mistral", "mistral"),
        ("phi3", "phi3"),
        ("gguf/phi3-f32.gguf", "phi3"),
        ("gemma3", "gemma3"),
        ("gguf/gemma3-f32.gguf", "gemma3"),
        ("smollm3", "smollm3"),
    ] {
        for n in 0..3 {
            let (prompt, prompt_ids, greedy) = golden(folder, n);
            let answer = json(&with(&with(&["run", &fixture(model), &prompt], &GREEDY), &EXACT));
            assert_eq!(ids(&answer["prompt_tokens"]), prompt_ids, "{model}, prompt {n}");
            assert_eq!(ids(&answer["tokens"]), greedy, "{model}, prompt {n}");
            assert_eq!(answer["finish_reason"], "length");
        }
    }
}

/// Draft tokens from the text and from a model (here the same one, so that they are right): the tokens are the same.
#[test]
fn speculation_changes_no_token() {
    for folder in ["llama3", "qwen2", "gemma3"] {
        let model = fixture(folder);
        for n in 0..3 {
            let (prompt, _, greedy) = golden(folder, n);
            for source in ["ngram", &model] {
                let speculate = ["--speculate", source, "--speculate-tokens", "3", "--speculate-always"];
                let answer = json(&with(&with(&with(&["run", &model, &prompt], &GREEDY), &EXACT), &speculate));
                assert_eq!(ids(&answer["tokens"]), greedy, "{folder}, prompt {n}, drafts of {source}");
            }
        }
    }
    assert!(error(&["run", &fixture("llama3"), "hi", "--speculate", "ngram", "--speculate-tokens", "33"]).contains("draft_tokens"));
}

#[test]
fn json_has_the_documented_fields_and_nothing_else_is_printed() {
    let answer = json(&["run", &fixture("llama3"), "Why", "is", "the sky blue?", "--json", "-n", "5", "--ignore-eos"]);
    let keys = |v: &serde_json::Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&answer), ["text", "prompt_tokens", "tokens", "finish_reason", "timings"]);
    let timings = ["load_s", "prompt_tokens", "prompt_s", "prompt_tok_s", "ttft_s", "gen_tokens", "gen_s", "gen_tok_s"];
    assert_eq!(keys(&answer["timings"]), timings);
    assert_eq!(answer["timings"]["gen_tokens"], 5);
    assert_eq!(answer["timings"]["prompt_tokens"].as_u64().unwrap() as usize, ids(&answer["prompt_tokens"]).len());
    assert!(answer["timings"]["ttft_s"].as_f64().unwrap() > answer["timings"]["load_s"].as_f64().unwrap());
}

#[test]
fn the_chat_template_is_applied_unless_raw() {
    let model = fixture("llama3");
    let prompt_ids = |args: &[&str]| ids(&json(&with(&["run", &model, "hi", "--json", "-n", "1"], args))["prompt_tokens"]);
    let raw = prompt_ids(&["--raw"]);
    let chat = prompt_ids(&[]);
    let with_system = prompt_ids(&["--system", "Be brief."]);
    assert!(raw.len() < chat.len() && chat.len() < with_system.len(), "{raw:?} {chat:?} {with_system:?}");
    let written = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    let mut by_hand = ids(&json(&["run", &model, written, "--raw", "--json", "-n", "1"])["prompt_tokens"]);
    // `--raw` adds BOS, which this template does not write.
    assert_eq!(by_hand.remove(0), 0);
    assert_eq!(chat, by_hand);
}

#[test]
fn text_streams_are_the_text_of_the_json() {
    let args = ["run", &fixture("llama3"), "a counter", "--raw", "-n", "24", "--seed", "7", "--temperature", "1"];
    let answer = json(&with(&args, &["--json"]));
    assert_eq!(text(&args), answer["text"].as_str().unwrap());
}

#[test]
fn the_prompt_comes_from_standard_input_too() {
    let model = fixture("llama3");
    for (words, prompt) in [
        (&[][..], "naïve 海"),
        (&["-"], "naïve 海"),
        (&["one", "two:", "-"], "one two:\n\nnaïve 海"),
        // What is not asked for is not read.
        (&["one", "-", "two"], "one - two"),
    ] {
        let args = with(&with(&["run", &model], words), &["--raw", "--json", "-n", "4"]);
        let output = ferrum_with_input(&args, "naïve 海\n".as_bytes());
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let expected = json(&["run", &model, prompt, "--raw", "--json", "-n", "4"]);
        assert_eq!(answer["prompt_tokens"], expected["prompt_tokens"], "{words:?}");
    }
    for (input, what) in [(&b""[..], "empty"), (&b"\xFF\xFE"[..], "UTF-8")] {
        let output = ferrum_with_input(&["run", &model], input);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains(what));
    }
}

#[test]
fn seeds_decide_the_answer() {
    let model = fixture("qwen2");
    let run = |seed: &str| {
        let args =
            ["run", &model, "x", "--raw", "--json", "-n", "32", "--temperature", "2", "--top-k", "0", "--top-p", "1", "--seed", seed];
        ids(&json(&args)["tokens"])
    };
    assert_eq!(run("1"), run("1"));
    assert_ne!(run("1"), run("2"));
}

#[test]
fn every_sampling_flag_is_honoured() {
    let model = fixture("qwen2");
    let run = |flags: &[&str]| {
        let hot = ["run", &model, "x", "--raw", "--json", "-n", "48", "--ignore-eos", "--seed", "5", "--top-k=0", "--top-p=1", "--min-p=0"];
        ids(&json(&with(&hot, flags))["tokens"])
    };
    let greedy = run(&["--temperature=0"]);
    let drawn = run(&["--temperature=3"]);
    assert_ne!(drawn, greedy);
    // Each of them leaves one candidate only.
    for flag in ["--top-k=1", "--top-p=0", "--min-p=1"] {
        let hot = ["run", &model, "x", "--raw", "--json", "-n", "48", "--ignore-eos", "--temperature=3", flag];
        assert_eq!(ids(&json(&hot)["tokens"]), greedy, "{flag}");
    }
    let repeats = |tokens: &[u64]| tokens.len() - tokens.iter().collect::<std::collections::HashSet<_>>().len();
    for flag in ["--repeat-penalty=10", "--presence-penalty=2", "--frequency-penalty=2"] {
        let tokens = run(&["--temperature=0", flag]);
        assert!(tokens != greedy && repeats(&tokens) < repeats(&greedy), "{flag}: {tokens:?} {greedy:?}");
    }
    for flags in [["--threads=1"], ["--threads=3"]] {
        assert_eq!(run(&with(&["--temperature=3"], &flags)), drawn, "threads change nothing");
    }
}

#[test]
fn the_answer_ends_at_the_end_token_unless_told_otherwise() {
    let model = fixture("llama3");
    let run = |seed: u64, flags: &[&str]| {
        let seed = seed.to_string();
        json(&with(&["run", &model, "x", "--raw", "--json", "-n", "120", "--temperature", "50", "--top-k=0", "--seed", &seed], flags))
    };
    // At this temperature each of 320 tokens is drawn about as often as the others.
    let ended = (0..20).find(|&seed| run(seed, &[])["finish_reason"] == "stop").unwrap();
    let (short, long) = (ids(&run(ended, &[])["tokens"]), ids(&run(ended, &["--ignore-eos"])["tokens"]));
    assert!(short.len() < long.len() && long.starts_with(&short));
    assert_eq!(long.len(), 120);
}

#[test]
fn stop_texts_end_the_answer_and_are_not_part_of_it() {
    let model = fixture("llama3");
    let base = ["run", &model, "a counter", "--raw", "--json", "-n", "40", "--seed", "3", "--temperature", "1", "--ignore-eos"];
    let full = json(&base)["text"].as_str().unwrap().to_owned();
    // A text from the middle of the answer that does not occur earlier.
    let chars: Vec<(usize, char)> = full.char_indices().collect();
    let at = (8..chars.len() - 3).map(|i| (chars[i].0, chars[i + 3].0)).find(|&(a, b)| full.find(&full[a..b]) == Some(a)).unwrap();
    let stopped = json(&with(&base, &["--stop", &full[at.0..at.1], "--stop", "never in there"]));
    assert_eq!(stopped["text"].as_str().unwrap(), &full[..at.0]);
    assert_eq!(stopped["finish_reason"], "stop");
}

#[test]
fn logprobs_are_in_the_json() {
    let answer = json(&with(&["run", &fixture("llama3"), "x", "--logprobs", "3"], &GREEDY));
    let steps = answer["logprobs"].as_array().unwrap();
    assert_eq!(steps.len(), 64);
    for (step, id) in steps.iter().zip(ids(&answer["tokens"])) {
        let top = step["top"].as_array().unwrap();
        assert_eq!((step["id"].as_u64(), top.len()), (Some(id), 3));
        assert_eq!(top[0]["id"].as_u64(), Some(id), "greedy takes the likeliest");
        assert_eq!(top[0]["logprob"], step["logprob"]);
        assert!(step["logprob"].as_f64().unwrap() < 0.0);
    }
}

#[test]
fn the_backends_agree() {
    let (prompt, _, greedy) = golden("llama3", 0);
    let model = fixture("gguf/llama3-f16.gguf");
    let args = with(&["run", &model, &prompt, "--backend", "reference", "--kv-type", "f32"], &GREEDY)
        .into_iter()
        .map(|a| if a == "64" { "12" } else { a })
        .collect::<Vec<_>>();
    assert_eq!(ids(&json(&args)["tokens"]), greedy[..12]);
}

#[test]
fn a_full_context_is_an_error_unless_it_shifts() {
    let model = fixture("llama3");
    let args = ["run", &model, "The other fisherman", "--raw", "--ctx", "64", "--ignore-eos", "--seed", "1"];
    let output = ferrum(&args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("the context of 64 tokens is full") && stderr.contains("--context-shift"), "{stderr}");
    assert!(!output.stdout.is_empty(), "what fitted is printed");
    let shifted = json(&with(&args, &["--context-shift", "-n", "150", "--json"]));
    assert_eq!(ids(&shifted["tokens"]).len(), 150);
}

#[test]
fn statistics_go_to_standard_error() {
    let output = ferrum(&["run", &fixture("llama3"), "x", "--raw", "-n", "4", "--stats", "--json", "--ignore-eos"]);
    assert!(serde_json::from_slice::<serde_json::Value>(&output.stdout).is_ok());
    assert!(String::from_utf8(output.stderr).unwrap().contains("tok/s"));
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let args = ["run", &fixture("llama3"), "x", "--raw", "-n", "100000", "--context-shift", "--ignore-eos"];
    let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
}

#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_ends_with_130() {
    use std::io::Read;
    let args = ["run", &fixture("llama3"), "x", "--raw", "-n", "100000000", "--context-shift", "--ignore-eos"];
    let mut child = command(&args).stdout(Stdio::piped()).spawn().unwrap();
    // The first text shows that it runs.
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || stdout.read_to_end(&mut Vec::new()));
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    reader.join().unwrap().unwrap();
}

#[test]
fn a_file_that_shrinks_ends_in_an_error() {
    use std::io::Read;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::copy(fixture("gguf/llama3-f32.gguf"), &path).unwrap();
    let args = ["run", path.to_str().unwrap(), "x", "--raw", "-n", "100000000", "--context-shift", "--ignore-eos"];
    let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(5000).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("m.gguf"), "{stderr}");
}

#[test]
fn an_answer_follows_its_grammar() {
    let (model, dir) = (fixture("llama3"), tempfile::tempdir().unwrap());
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let schema = r#"{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false}"#;
    let (schema, lark) = (file("schema.json", schema), file("grammar.lark", "start: \"<\" /[a-z]{2}/ \">\""));
    let answer = |args: &[&str]| json(&with(&["run", &model, "Go", "--json", "-n", "200", "--seed", "4"], args));
    let by_regex = answer(&["--regex", "[0-9]{3}-(yes|no)"]);
    let (digits, word) = by_regex["text"].as_str().unwrap().split_once('-').unwrap();
    assert!(digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()) && ["yes", "no"].contains(&word), "{by_regex}");
    assert_eq!(by_regex["finish_reason"], "stop");
    let by_lark = answer(&["--grammar", &lark]);
    assert!(by_lark["text"].as_str().unwrap().starts_with('<') && by_lark["text"].as_str().unwrap().len() == 4, "{by_lark}");
    let by_schema = answer(&["--json-schema", &schema]);
    let value: serde_json::Value = serde_json::from_str(by_schema["text"].as_str().unwrap()).unwrap();
    assert!(value["ok"].is_boolean(), "{by_schema}");

    let broken = file("broken.json", "{");
    for (args, part) in [
        (["--regex", "(a"], "the grammar cannot be used"),
        (["--json-schema", &broken], "is no JSON schema"),
        (["--grammar", "nowhere.lark"], "cannot read nowhere.lark"),
    ] {
        let message = error(&with(&["run", &model, "Go"], &args));
        assert!(message.contains(part), "{message}");
    }
}
