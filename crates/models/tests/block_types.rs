//! A GGUF file in every weight type: loaded, kept packed, and the same model on every backend.

mod common;

use std::{fs, path::Path, sync::Arc};

use common::Session;
use ferrum_cpu::{CpuBackend, CpuOptions, Precision};
use ferrum_kernels::{Backend, DType, HostBytes, ReferenceBackend, quant};
use ferrum_models::{Checkpoint, files::gguf::GgufWriter};

const HIDDEN: usize = 256;
const INNER: usize = 512;
const VOCAB: usize = 96;
const CONTEXT: usize = 64;
/// Longer than any decode step, so that kernels for many tokens and for one both run.
const PROMPT: [u32; 20] = [1, 90, 2, 17, 3, 44, 5, 61, 8, 13, 21, 34, 55, 89, 7, 11, 18, 29, 47, 76];

/// A llama of one layer whose matrices are random values in `dtype`.
fn write(path: &Path, dtype: DType) {
    let mut w = GgufWriter::new();
    w.set("general.architecture", "llama").unwrap();
    for (key, value) in [
        ("block_count", 1),
        ("context_length", CONTEXT),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", INNER),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ] {
        w.set(&format!("llama.{key}"), value as u32).unwrap();
    }
    w.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32).unwrap();
    let matrices = [
        ("token_embd", VOCAB, HIDDEN),
        ("output", VOCAB, HIDDEN),
        ("blk.0.attn_q", HIDDEN, HIDDEN),
        ("blk.0.attn_k", HIDDEN / 2, HIDDEN),
        ("blk.0.attn_v", HIDDEN / 2, HIDDEN),
        ("blk.0.attn_output", HIDDEN, HIDDEN),
        ("blk.0.ffn_gate", INNER, HIDDEN),
        ("blk.0.ffn_up", INNER, HIDDEN),
        ("blk.0.ffn_down", HIDDEN, INNER),
    ];
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    for (name, rows, cols) in matrices {
        // Of variance 1 over a row, where signals neither grow nor fade.
        let scale = (3.0 / cols as f32).sqrt();
        let values: Vec<f32> = (0..rows * cols).map(|_| uniform() * scale).collect();
        let bytes = HostBytes::from_vec(quant::quantize(dtype, &values).unwrap());
        w.tensor(&format!("{name}.weight"), &[rows, cols], dtype, bytes).unwrap();
    }
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
        let values: Vec<u8> = (0..HIDDEN).flat_map(|_| (1.0 + uniform() / 2.0).to_le_bytes()).collect();
        w.tensor(&format!("{name}.weight"), &[HIDDEN], DType::F32, HostBytes::from_vec(values)).unwrap();
    }
    fs::write(path, w.to_vec().unwrap()).unwrap();
}

/// The logits after the prompt in one step, and after one more token.
fn logits(path: &Path, backend: Arc<dyn Backend>) -> Vec<f32> {
    let model = Checkpoint::open(path).unwrap().load(&*backend, CONTEXT).unwrap();
    let mut session = Session::new(backend, model, DType::F32, CONTEXT, 1);
    [session.last(&PROMPT), session.last(&[5])].concat()
}

fn cpu(precision: Precision) -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(CpuOptions { threads: Some(2), precision, ..CpuOptions::default() }).unwrap())
}

/// ‖got − want‖² / ‖want‖²
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    squares(&mut got.iter().zip(want).map(|(g, w)| g - w)) / squares(&mut want.iter().copied())
}

#[test]
fn every_weight_type_runs_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen: Vec<Vec<f32>> = Vec::new();
    for dtype in DType::weights() {
        let path = dir.path().join(format!("{dtype}.gguf"));
        write(&path, dtype);
        let reference = logits(&path, Arc::new(ReferenceBackend));
        let exact = distance(&logits(&path, cpu(Precision::F32)), &reference);
        assert!(exact < 1e-10, "{dtype}: {exact:e} between F32 on the CPU and the reference");
        let rounded = distance(&logits(&path, cpu(Precision::Int8)), &reference);
        assert!(rounded < 1e-3, "{dtype}: {rounded:e} between 8-bit activations and the reference");
        assert!(seen.iter().all(|other| *other != reference), "{dtype} gives what another type gives");
        seen.push(reference);
    }
    assert_eq!(seen.len(), 15);
}

#[test]
fn a_type_that_cannot_be_computed_is_a_load_error_that_names_tensor_and_type() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    write(&path, DType::Q4_0);
    let mut bytes = fs::read(&path).unwrap();
    // Behind a tensor's name: the count of dimensions, two dimensions, the type. MXFP4 has id 39 and smaller blocks.
    let name = b"blk.0.ffn_down.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 16;
    assert_eq!(bytes[at..at + 4], 2u32.to_le_bytes());
    bytes[at..at + 4].copy_from_slice(&39u32.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = Checkpoint::open(&path).unwrap().load(&*cpu(Precision::Int8), CONTEXT).err().unwrap().to_string();
    assert!(error.contains("blk.0.ffn_down.weight") && error.contains("MXFP4"), "{error}");
}
