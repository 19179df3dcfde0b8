//! Every family against `transformers`: tiny random checkpoints, layer by layer, logits, and greedy text; from safetensors
//! and from GGUF. `tools/golden` makes the fixtures.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{Session, argmax};
use ferrum_cpu::{CpuBackend, CpuOptions, Precision};
use ferrum_kernels::{Backend, DType, ReferenceBackend};
use ferrum_models::{
    Checkpoint,
    files::{SafeTensors, WeightFile},
};
use serde_json::Value;

const CONTEXT: usize = 128;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn cpu_f32() -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(CpuOptions { threads: Some(2), precision: Precision::F32, ..Default::default() }).unwrap())
}

/// The golden of a fixture: `golden.json` and `golden.safetensors`.
struct Golden {
    json: Value,
    tensors: SafeTensors,
}

impl Golden {
    fn open(stem: &Path) -> Self {
        let json = serde_json::from_slice(&fs::read(stem.with_extension("json")).unwrap()).unwrap();
        Self { json, tensors: SafeTensors::open(stem.with_extension("safetensors")).unwrap() }
    }

    fn values(&self, name: &str) -> Vec<f32> {
        let view = self.tensors.tensor(name).unwrap();
        view.bytes.as_slice().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn prompts(&self) -> Vec<(Vec<u32>, Vec<u32>)> {
        let ids = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect();
        self.json["prompts"].as_array().unwrap().iter().map(|p| (ids(&p["ids"]), ids(&p["greedy"]))).collect()
    }
}

/// Largest distance, relative to the scale of the expected values.
fn distance(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let rms = (want.iter().map(|v| v * v).sum::<f32>() / want.len() as f32).sqrt().max(1.0);
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst }) / rms
}

fn check(model: &Path, golden: &Golden, backend: Arc<dyn Backend>) {
    let name = model.file_name().unwrap().to_string_lossy().into_owned();
    let checkpoint = Checkpoint::open(model).unwrap_or_else(|e| panic!("{name}: {e}"));
    let loaded = checkpoint.load(&*backend, CONTEXT).unwrap_or_else(|e| panic!("{name}: {e}"));
    let layers = loaded.info().layers;
    let vocab = loaded.info().vocab;
    for (n, (ids, greedy)) in golden.prompts().into_iter().enumerate() {
        let mut session = Session::new(backend.clone(), loaded.clone(), DType::F32, CONTEXT, 64);
        let (mut logits, seen) = session.step(&ids, 0);
        if n == 0 {
            let tapped = |tap: &str| &seen.iter().find(|(name, _)| name == tap).unwrap_or_else(|| panic!("no tap {tap}")).1;
            for layer in 0..=layers {
                let tap = if layer == 0 { "embed".to_owned() } else { format!("layers.{}", layer - 1) };
                let d = distance(tapped(&tap), &golden.values(&format!("hidden.{layer}")));
                assert!(d < 1e-4, "{name}: {tap} is off by {d:e}");
            }
            let d = distance(&logits.concat(), &golden.values("logits"));
            assert!(d < 1e-4, "{name}: logits are off by {d:e}");
        } else {
            let d = distance(&logits[ids.len() - 1], &golden.values(&format!("last_logits.{n}")));
            assert!(d < 1e-4, "{name}: last logits of prompt {n} are off by {d:e}");
        }
        assert_eq!(logits[0].len(), vocab);
        for (at, want) in greedy.iter().enumerate() {
            let token = argmax(logits.last().unwrap());
            assert_eq!(token, *want, "{name}: greedy token {at} of prompt {n}");
            logits = vec![session.last(&[token])];
        }
    }
}

fn check_folders(backend: &Arc<dyn Backend>) {
    let mut count = 0;
    for entry in fs::read_dir(fixtures()).unwrap() {
        let dir = entry.unwrap().path();
        if dir.join("config.json").exists() {
            check(&dir, &Golden::open(&dir.join("golden")), backend.clone());
            count += 1;
        }
    }
    assert!(count >= 21, "only {count} fixtures");
}

fn check_gguf(backend: &Arc<dyn Backend>) {
    let mut count = 0;
    for entry in fs::read_dir(fixtures().join("gguf")).unwrap() {
        let file = entry.unwrap().path();
        let Some(stem) = file.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".gguf")) else { continue };
        let own = file.with_extension("json").exists();
        let folder = stem.trim_end_matches("-f32").trim_end_matches("-f16");
        let golden = if own { file.with_extension("") } else { fixtures().join(folder).join("golden") };
        check(&file, &Golden::open(&golden), backend.clone());
        count += 1;
    }
    assert!(count >= 14, "only {count} files");
}

#[test]
fn safetensors_match_transformers_on_the_reference() {
    check_folders(&(Arc::new(ReferenceBackend) as Arc<dyn Backend>));
}

#[test]
fn safetensors_match_transformers_on_the_cpu() {
    check_folders(&cpu_f32());
}

#[test]
fn gguf_matches_transformers_on_the_reference() {
    check_gguf(&(Arc::new(ReferenceBackend) as Arc<dyn Backend>));
}

#[test]
fn gguf_matches_transformers_on_the_cpu() {
    check_gguf(&cpu_f32());
}
