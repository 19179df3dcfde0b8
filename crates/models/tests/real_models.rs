//! Real models against llama.cpp, by the rules of the tolerance contract (`docs/tolerance.md`):
//! rounding differs between any two implementations, so tokens must agree up to the first step where the two best
//! candidates are nearly tied, and our probabilities must on average be nearer to the unrounded mathematics (the same
//! file in F32, run by llama.cpp) than llama.cpp's own default is.
//!
//! The models are looked for in `.models/` at the top of the repository (`ferrum pull smollm2:135m --models-dir .models`);
//! a model that is not there is skipped with a message.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{Session, argmax};
use ferrum_cpu::{CpuBackend, CpuOptions, Precision};
use ferrum_kernels::{Backend, DType};
use ferrum_models::{Checkpoint, Model};
use serde_json::Value;

const CONTEXT: usize = 512;

struct Prompt {
    ids: Vec<u32>,
    tokens: Vec<u32>,
    gaps: Vec<f64>,
    top10: Vec<(usize, f64)>,
    f32_tokens: Vec<u32>,
    f32_gaps: Vec<f64>,
    f32_top10: Vec<(usize, f64)>,
}

fn manifest(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// Each golden whose model is at hand: name, model file, prompts.
fn goldens() -> Vec<(String, PathBuf, Vec<Prompt>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(manifest("tests/fixtures/real")).unwrap() {
        let golden: Value = serde_json::from_slice(&fs::read(entry.unwrap().path()).unwrap()).unwrap();
        let name = golden["file"].as_str().unwrap().to_owned();
        let file = manifest("../../.models").join(&name);
        if !file.exists() {
            eprintln!("skipped: {name} is not in .models/");
            continue;
        }
        let ids = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect();
        let floats = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect();
        let top = |v: &Value| v.as_array().unwrap().iter().map(|p| (p[0].as_u64().unwrap() as usize, p[1].as_f64().unwrap())).collect();
        let prompts = golden["prompts"].as_array().unwrap().iter().map(|p| Prompt {
            ids: ids(&p["prompt_tokens"]),
            tokens: ids(&p["tokens"]),
            gaps: floats(&p["gaps"]),
            top10: top(&p["top10"]),
            f32_tokens: ids(&p["f32_tokens"]),
            f32_gaps: floats(&p["f32_gaps"]),
            f32_top10: top(&p["f32_top10"]),
        });
        found.push((name, file, prompts.collect()));
    }
    found
}

fn backend(precision: Precision) -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(CpuOptions { precision, ..Default::default() }).unwrap())
}

fn load(file: &Path, backend: &Arc<dyn Backend>) -> Arc<dyn Model> {
    Checkpoint::open(file).unwrap().load(&**backend, CONTEXT).unwrap()
}

fn logprobs(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let total = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln() + max;
    logits.iter().map(|&l| f64::from(l) - total).collect()
}

/// Follows `expected` while its gap is at least `gap`; the first step that differs, if any does.
fn first_difference(
    session: &mut Session,
    mut logits: Vec<f32>,
    expected: &[u32],
    gaps: &[f64],
    gap: f64,
    stop_at_tie: bool,
) -> Option<usize> {
    for (step, (&want, &margin)) in expected.iter().zip(gaps).enumerate() {
        if margin < gap && stop_at_tie {
            return None;
        }
        if margin >= gap && argmax(&logits) != want {
            return Some(step);
        }
        logits = session.last(&[want]);
    }
    None
}

#[test]
fn default_precision_agrees_with_llama_cpp() {
    let mut further = Vec::new();
    for (name, file, prompts) in goldens() {
        let (backend, exact) = (backend(Precision::Int8), backend(Precision::F32));
        let (model, exact_model) = (load(&file, &backend), load(&file, &exact));
        let (mut ours, mut theirs) = (0.0, 0.0);
        for (n, p) in prompts.iter().enumerate() {
            let mut session = Session::new(backend.clone(), model.clone(), DType::F16, CONTEXT, 1);
            let logits = session.last(&p.ids);
            let got = logprobs(&logits);
            // The reference lists its own ten only; for others our F32 mode, which the next test compares with those ten, stands in.
            let exact_logits = Session::new(exact.clone(), exact_model.clone(), DType::F32, CONTEXT, 1).last(&p.ids);
            let in_f32 = logprobs(&exact_logits);
            for &(id, want) in &p.top10 {
                // Two of Gemma's figures are 0.497 and 0.577 from F32 in llama.cpp's default: nearer to F32 is no fault.
                let truth = p.f32_top10.iter().find(|t| t.0 == id).map_or(in_f32[id], |t| t.1);
                let nearer = (got[id] - truth).abs() < (want - truth).abs();
                let close = (got[id] - want).abs() < 0.5;
                assert!(close || nearer, "{name}, prompt {n}: log-probability of {id} is {}, llama.cpp has {want}", got[id]);
            }
            for &(id, truth) in &p.f32_top10 {
                ours += (got[id] - truth).abs();
                // Ids outside llama.cpp's own top 10 have no figure of theirs to compare with.
                theirs += p.top10.iter().find(|t| t.0 == id).map_or((got[id] - truth).abs(), |t| (t.1 - truth).abs());
            }
            // Where the unrounded mathematics takes another token than llama.cpp does, llama.cpp's gap is rounding error,
            // however wide it is: there is nothing to agree with from there on.
            let sound = p.tokens.iter().zip(&p.f32_tokens).take_while(|(a, b)| a == b).count();
            let different = first_difference(&mut session, logits, &p.tokens[..sound], &p.gaps, 0.3, true);
            assert_eq!(different, None, "{name}, prompt {n}: step differs from llama.cpp although its gap is 0.3 or more");
        }
        eprintln!(
            "{name}: mean distance to F32 {:.4}, llama.cpp {:.4}",
            ours / 10.0 / prompts.len() as f64,
            theirs / 10.0 / prompts.len() as f64
        );
        further.extend((ours >= theirs).then(|| format!("{name}: {ours:.3} from the F32 reference, llama.cpp is {theirs:.3}")));
    }
    assert!(further.is_empty(), "{further:?}");
}

#[test]
fn f32_precision_agrees_with_the_f32_reference() {
    for (name, file, prompts) in goldens() {
        let backend = backend(Precision::F32);
        let model = load(&file, &backend);
        for (n, p) in prompts.iter().enumerate() {
            let mut session = Session::new(backend.clone(), model.clone(), DType::F32, CONTEXT, 1);
            let logits = session.last(&p.ids);
            let got = logprobs(&logits);
            for &(id, want) in &p.f32_top10 {
                assert!(
                    (got[id] - want).abs() < 0.01,
                    "{name}, prompt {n}: log-probability of {id} is {}, the reference has {want}",
                    got[id]
                );
            }
            let different = first_difference(&mut session, logits, &p.f32_tokens, &p.f32_gaps, 0.01, false);
            assert_eq!(different, None, "{name}, prompt {n}: step differs from the F32 reference although its gap is 0.01 or more");
        }
    }
}
