//! `bench` and `perplexity`.

use std::fs;

use crate::common::{EXACT, error, fixture, json, text, with};

#[test]
fn bench_measures_a_model() {
    let found = json(&["bench", &fixture("llama3"), "-p", "16", "-n", "8", "-r", "3", "--threads", "2", "--backend", "cpu", "--json"]);
    assert_eq!((found["pp"]["n"].as_u64(), found["tg"]["n"].as_u64(), found["threads"].as_u64()), (Some(16), Some(8), Some(2)));
    for part in ["pp", "tg"] {
        let speed = |key: &str| found[part]["tok_s"][key].as_f64().unwrap();
        assert!(0.0 < speed("min") && speed("min") <= speed("median") && speed("median") <= speed("max"));
    }
    for key in ["load_s", "ttft_s", "peak_rss_bytes"] {
        assert!(found[key].as_f64().unwrap() > 0.0, "{key}");
    }
    assert_eq!(found["backend"], "cpu");
    assert!(text(&["bench", &fixture("llama3"), "-p", "4", "-n", "4", "-r", "1"]).contains("tg4"));
}

#[test]
fn bench_tells_how_often_drafts_were_right() {
    let model = fixture("llama3");
    let speculate = ["--speculate", &model, "--speculate-tokens", "2", "--speculate-always"];
    let found = json(&with(&["bench", &model, "-p", "8", "-n", "20", "-r", "1", "--json"], &speculate));
    let drafts = |key: &str| found["drafts"][key].as_u64().unwrap();
    // The drafts of the model itself are right but for near ties.
    assert!(drafts("computed") >= 10 && drafts("accepted") * 10 > drafts("computed") * 8, "{}", found["drafts"]);
}

#[test]
fn bench_with_depth_batch_and_dummy_weights() {
    let config = format!("{}/config.json", fixture("qwen3"));
    for quant in ["q8_0", "bf16", "f32"] {
        let found = json(&[
            "bench",
            "--dummy-weights",
            &config,
            "--quant",
            quant,
            "-p",
            "8",
            "-n",
            "4",
            "-r",
            "1",
            "-d",
            "40",
            "-b",
            "3",
            "--json",
        ]);
        assert_eq!((found["depth"].as_u64(), found["batch"].as_u64()), (Some(40), Some(3)));
        assert!(found["tg"]["tok_s"]["median"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn perplexity_is_that_of_the_definition() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text.txt");
    fs::write(&file, "The other fisherman was counting the gulls. def counter(x): return x + 1\n".repeat(8)).unwrap();
    let (model, file) = (fixture("llama3"), file.to_str().unwrap());
    let found = json(&with(&["perplexity", &model, file, "--ctx", "32", "--chunks", "2", "--json"], &EXACT));
    // Tokens 17 to 31 of each chunk.
    assert_eq!((found["chunks"].as_u64(), found["scored_tokens"].as_u64()), (Some(2), Some(30)));
    let reference =
        json(&["perplexity", &model, file, "--ctx", "32", "--chunks", "2", "--json", "--backend", "reference", "--kv-type", "f32"]);
    let (got, want) = (found["perplexity"].as_f64().unwrap(), reference["perplexity"].as_f64().unwrap());
    assert!((got / want - 1.0).abs() < 1e-4, "{got} {want}");
    assert!(want > 1.0);
    assert!(text(&["perplexity", &model, file, "--ctx", "32"]).starts_with("perplexity "));
    assert!(error(&["perplexity", &model, file, "--ctx", "3"]).contains("--ctx"));
    fs::write(dir.path().join("short.txt"), "few").unwrap();
    assert!(error(&["perplexity", &model, dir.path().join("short.txt").to_str().unwrap(), "--ctx", "32"]).contains("too few"));
}
