//! `cargo xtask bench-cpu`: Ferrum against a build of llama.cpp on the same files, alternately, so that what else the machine
//! does meets both.
//!
//! Each test runs both programs in turn (A B A B …) in fresh processes and keeps the median of the ratios. Results are
//! appended to a file, one JSON object a line, and what it already holds is not measured again.

mod measure;
mod table;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use measure::{Programs, Test};

const USAGE: &str = "usage: cargo xtask bench-cpu --peer FOLDER --model FILE … [--simd LEVEL] [--pairs N] [--tests LIST] [--results FILE]
  --peer     folder of llama-bench and llama-batched-bench
  --model    GGUF file or folder of safetensors; `FOLDER=FILE.gguf` gives the peer the same weights as GGUF
  --simd     level that Ferrum is limited to [default: the best there is]
  --pairs    runs of each program per test [default: 5]
  --tests    of pp512, tg128, load, memory, pp4096, tg32@4096, batch8, batch32, busy [default: the first four]
  --results  where results are kept [default: target/bench-cpu.jsonl]
`ferrum` is taken from target/release.";

struct Options {
    peer: PathBuf,
    models: Vec<String>,
    simd: Option<String>,
    pairs: usize,
    tests: Vec<Test>,
    results: PathBuf,
}

pub fn run(root: &Path, args: &[String]) -> anyhow::Result<()> {
    let options = parse(root, args).context(USAGE)?;
    let ferrum = root.join("target/release/ferrum");
    if !ferrum.is_file() {
        bail!("{} is not there; run `cargo build --release --package ferrum` first", ferrum.display());
    }
    let mut known = read(&options.results)?;
    let level = options.simd.clone().unwrap_or_else(|| "native".to_owned());
    for &test in &options.tests {
        for model in &options.models {
            let (ours, theirs) = model.split_once('=').unwrap_or((model, model));
            let name = Path::new(ours).file_stem().map_or(ours.to_owned(), |n| n.to_string_lossy().into_owned());
            let is_it = |r: &Value| r["model"] == *name && r["simd"] == *level && r["test"] == test.name();
            if known.iter().any(is_it) {
                continue;
            }
            println!("{level} {name} {}", test.name());
            let programs = Programs {
                ferrum: &ferrum,
                peer: &options.peer,
                ours: Path::new(ours),
                theirs: Path::new(theirs),
                simd: options.simd.as_deref(),
            };
            let mut pairs = Vec::new();
            if test == Test::Load {
                // Files come into the system's cache, and a virtual machine gets its memory from the host: whoever is first pays.
                programs.ferrum(test)?;
                programs.peer(test)?;
            }
            for _ in 0..options.pairs {
                let pair = [programs.ferrum(test)?, programs.peer(test)?];
                println!("  {:.3} {:.3} {}  {:.3}", pair[0], pair[1], test.unit(), pair[0] / pair[1]);
                pairs.push(pair);
            }
            let mut result = json!({
                "model": name, "simd": level, "test": test.name(), "unit": test.unit(), "pairs": pairs,
                "ferrum": median(pairs.iter().map(|p| p[0])),
                "peer": median(pairs.iter().map(|p| p[1])),
                "ratio": median(pairs.iter().map(|p| p[0] / p[1])),
            });
            if test == Test::Tg128 {
                let bytes = programs.bytes_per_token()?;
                let limit = programs.read_bandwidth(bytes)?;
                result["bytes_per_token"] = json!(bytes);
                result["read_bytes_s"] = limit;
            }
            append(&options.results, &result)?;
            known.push(result);
        }
    }
    let shown: Vec<Value> = known.into_iter().filter(|r| r["simd"] == *level).collect();
    print!("{}", table::markdown(&shown));
    Ok(())
}

fn parse(root: &Path, args: &[String]) -> anyhow::Result<Options> {
    let (mut peer, mut models, mut simd, mut pairs, mut results) = (None, Vec::new(), None, 5, root.join("target/bench-cpu.jsonl"));
    let mut tests = vec![Test::Pp512, Test::Tg128, Test::Load, Test::Memory];
    let mut rest = args.iter();
    while let Some(flag) = rest.next() {
        let value = rest.next().with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--peer" => peer = Some(PathBuf::from(value)),
            "--model" => models.push(value.clone()),
            "--simd" => simd = Some(value.clone()),
            "--pairs" => pairs = value.parse().context("--pairs must be a number")?,
            "--tests" => tests = value.split(',').map(Test::of).collect::<anyhow::Result<_>>()?,
            "--results" => results = PathBuf::from(value),
            _ => bail!("{flag} is unknown"),
        }
    }
    if models.is_empty() || pairs == 0 {
        bail!("--model must be given and --pairs be at least 1");
    }
    Ok(Options { peer: peer.context("--peer must be given")?, models, simd, pairs, tests, results })
}

fn read(results: &Path) -> anyhow::Result<Vec<Value>> {
    let text = if results.is_file() { fs::read_to_string(results)? } else { String::new() };
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("{}: {line}", results.display()))).collect()
}

fn append(results: &Path, result: &Value) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(results).with_context(|| results.display().to_string())?;
    Ok(writeln!(file, "{result}")?)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let n = values.len();
    (values[(n - 1) / 2] + values[n / 2]) / 2.0
}
