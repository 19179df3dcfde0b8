//! SmolLM2 through the binary, against llama.cpp, by the rules of the tolerance contract.

use serde_json::Value;

use crate::common::{EXACT, ids, json, read_json, repository, with};

const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const GREEDY: [&str; 7] = ["--raw", "--json", "--ignore-eos", "-n", "32", "--temperature", "0"];

/// The model file and llama.cpp's answers, where the model is at hand.
fn smollm2() -> Option<(String, Vec<Value>)> {
    let file = repository().join(".models").join(MODEL);
    if !file.exists() {
        eprintln!("skipped: {MODEL} is not in .models/; `ferrum pull smollm2:135m --models-dir .models` fetches it");
        return None;
    }
    let golden = read_json(repository().join(format!("crates/models/tests/fixtures/real/{}", MODEL.replace(".gguf", ".json"))));
    Some((file.to_str()?.to_owned(), golden["prompts"].as_array()?.clone()))
}

/// Steps before the first whose gap between best and second best is below `least`.
fn certain_steps(gaps: &Value, least: f64) -> usize {
    let gaps = gaps.as_array().unwrap();
    gaps.iter().position(|g| g.as_f64().unwrap() < least).unwrap_or(gaps.len())
}

#[test]
fn tokens_are_those_of_llama_cpp_up_to_the_first_near_tie() {
    let Some((model, prompts)) = smollm2() else { return };
    let mut compared = 0;
    for p in &prompts {
        let answer = json(&with(&["run", &model, p["prompt"].as_str().unwrap()], &GREEDY));
        assert_eq!(answer["prompt_tokens"], p["prompt_tokens"]);
        // Where the unrounded mathematics takes another token, llama.cpp's is rounding error (docs/tolerance.md).
        let sound = ids(&p["tokens"]).iter().zip(&ids(&p["f32_tokens"])).take_while(|(a, b)| a == b).count();
        let certain = certain_steps(&p["gaps"], 0.3).min(sound);
        compared += certain;
        assert_eq!(ids(&answer["tokens"])[..certain], ids(&p["tokens"])[..certain], "{}", p["prompt"]);
    }
    assert!(compared > 20, "{compared} steps are too few to prove anything");
}

#[test]
fn f32_tokens_are_those_of_the_f32_reference() {
    let Some((model, prompts)) = smollm2() else { return };
    let mut compared = 0;
    for p in &prompts {
        let answer = json(&with(&with(&["run", &model, p["prompt"].as_str().unwrap()], &GREEDY), &EXACT));
        let certain = certain_steps(&p["f32_gaps"], 0.01);
        compared += certain;
        assert_eq!(ids(&answer["tokens"])[..certain], ids(&p["f32_tokens"])[..certain], "{}", p["prompt"]);
    }
    assert!(compared > 60, "{compared} steps are too few to prove anything");
}

#[test]
fn a_chat_prompt_is_answered() {
    let Some((model, _)) = smollm2() else { return };
    let answer = json(&with(&["run", &model, "Why is the sky blue?", "--json", "--temperature", "0", "-n", "40"], &EXACT));
    assert!(answer["text"].as_str().unwrap().contains("Rayleigh scattering"), "{answer}");
    // The template with its own system message
    let written = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
                   <|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(answer["prompt_tokens"], json(&["run", &model, written, "--raw", "--json", "-n", "1"])["prompt_tokens"]);
}

#[test]
fn an_answer_is_valid_under_its_schema() {
    let Some((model, _)) = smollm2() else { return };
    let schema = repository().join("crates/cli/tests/cli/person.schema.json");
    let prompt = "Make up a person. Answer in JSON.";
    let answer = json(&["run", &model, prompt, "--json", "--temperature", "0", "-n", "200", "--json-schema", schema.to_str().unwrap()]);
    assert_eq!(answer["finish_reason"], "stop", "{answer}");
    let person: Value = serde_json::from_str(answer["text"].as_str().unwrap()).unwrap();
    assert!(person["name"].is_string() && person["age"].is_u64() && person["languages"].is_array(), "{person}");
}

#[test]
fn show_and_plan_know_the_model() {
    let Some((model, _)) = smollm2() else { return };
    let shown = json(&["show", &model, "--json"]);
    assert_eq!(shown["parameters"], 134_515_008);
    let count = |name: &str| shown["types"].as_array().unwrap().iter().find(|t| t["type"] == name).map(|t| t["count"].as_u64().unwrap());
    assert_eq!((count("Q4_1"), count("Q8_0"), count("F32")), (Some(210), Some(1), Some(61)));
    // 30 layers, 3 heads of 64, keys and values of 2 bytes
    assert_eq!(json(&["plan", &model, "--json"])["kv_bytes_per_token"], 30 * 3 * 64 * 2 * 2);
}
