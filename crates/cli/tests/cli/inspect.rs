//! `show`, `plan`, `list`, `doctor`, `completions`, `man`.

use std::fs;

use crate::common::{error, fixture, json, text, with};

#[test]
fn show_describes_folders_and_gguf_alike() {
    let (folder, gguf) = (json(&["show", &fixture("llama3"), "--json"]), json(&["show", &fixture("gguf/llama3-f32.gguf"), "--json"]));
    assert_eq!((folder["format"].as_str(), gguf["format"].as_str()), (Some("safetensors"), Some("gguf")));
    assert_eq!(folder["config"], gguf["config"]);
    // The GGUF file has its 8 RoPE factors as a tensor.
    assert_eq!(folder["parameters"].as_u64().unwrap() + 8, gguf["parameters"].as_u64().unwrap());
    assert_eq!(folder["family"], "llama");
    assert_eq!(folder["config"]["context"], 256);
    assert!(folder["chat_template"].as_str().unwrap().contains("<|im_start|>"));
    let q8 = json(&["show", &fixture("gguf/llama3-q8_0.gguf"), "--json", "--tensors"]);
    let types = q8["types"].as_array().unwrap();
    let sum = |key: &str| types.iter().map(|t| t[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum("count"), q8["tensor_list"].as_array().unwrap().len() as u64);
    assert_eq!(sum("bytes"), q8["bytes"].as_u64().unwrap());
    assert!(types.iter().any(|t| t["type"] == "Q8_0"));
}

#[test]
fn show_prints_text() {
    let shown = text(&["show", &fixture("gguf/llama3-q8_0.gguf"), "--tensors"]);
    for part in ["family      llama", "Q8_0", "general.architecture = \"llama\"", "token_embd.weight", "chat template", "<|im_start|>"] {
        assert!(shown.contains(part), "{part} is missing from\n{shown}");
    }
}

#[test]
fn plans_add_up() {
    let model = fixture("gguf/llama3-f32.gguf");
    let plan = json(&["plan", &model, "--json", "--ctx", "128"]);
    let n = |key: &str| plan[key].as_u64().unwrap();
    // 2 layers, 2 heads of 16 for keys and values, 2 bytes
    assert_eq!(n("kv_bytes_per_token"), 2 * 2 * 2 * 16 * 2);
    assert_eq!(n("kv_bytes"), 128 * n("kv_bytes_per_token"));
    assert_eq!(n("total_bytes"), n("weights_bytes") + n("kv_bytes") + n("scratch_bytes"));
    assert_eq!(n("weights_bytes"), json(&["show", &model, "--json"])["bytes"].as_u64().unwrap());
    assert_eq!((plan["fits"].as_bool(), n("max_context_that_fits")), (Some(true), 256));
    let f32 = json(&["plan", &model, "--json", "--ctx", "128", "--kv-type", "f32", "--sequences", "4"]);
    assert_eq!(f32["kv_bytes"].as_u64().unwrap(), 8 * n("kv_bytes"));
    // The CPU's 8-bit activations, which the reference does not have.
    let scratch = |flags: &[&str]| json(&with(&["plan", &model, "--json"], flags))["scratch_bytes"].as_u64().unwrap();
    assert!(scratch(&["--backend", "cpu", "--threads", "1"]) > scratch(&["--backend", "reference"]));
    assert!(text(&["plan", &model]).contains("KV cache"));
}

#[test]
fn list_finds_what_is_in_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture("gguf/llama3-q8_0.gguf"), dir.path().join("mine.gguf")).unwrap();
    let listed = json(&["list", "--json", "--models-dir", dir.path().to_str().unwrap()]);
    assert!(listed["models"][0]["path"].as_str().unwrap().ends_with("mine.gguf"));
    assert!(listed["catalogue"].as_array().unwrap().iter().any(|e| e["aliases"][0] == "smollm2:135m"));
    assert!(text(&["list", "--models-dir", dir.path().to_str().unwrap()]).contains("mine.gguf"));
}

#[test]
fn doctor_knows_the_machine() {
    let found = json(&["doctor", "--json"]);
    assert!(found["threads"].as_u64().unwrap() >= 1);
    assert!(found["read_bandwidth_bytes_s"]["all_threads"].as_f64().unwrap() > 1e8);
    assert!(found["backends"].as_array().unwrap().iter().any(|b| b == "cpu"));
    assert!(text(&["doctor"]).contains("read bandwidth"));
}

#[test]
fn a_gpu_is_offered_or_its_absence_explained() {
    let found = json(&["doctor", "--json"]);
    let offered = found["backends"].as_array().unwrap().iter().any(|b| b == "cuda");
    match found["gpu"]["unusable"].as_str() {
        None => assert!(offered && found["gpu"]["compute_capability"].is_string()),
        Some(reason) => {
            assert!(!offered && text(&["doctor"]).contains(reason));

            assert!(error(&["plan", &fixture("gguf/llama3-q8_0.gguf"), "--backend", "cuda"]).contains(reason));
        }
    }
}

#[test]
fn completions_and_man_pages_come_from_the_flags() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&["completions", shell]).contains("context-shift"), "{shell}");
    }
    assert!(text(&["man"]).contains(".TH ferrum"));
    let dir = tempfile::tempdir().unwrap();
    text(&["man", "--dir", dir.path().to_str().unwrap()]);
    assert!(fs::read_to_string(dir.path().join("ferrum-run.1")).unwrap().contains("presence"));
}
