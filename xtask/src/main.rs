//! Chores of this repository: `cargo xtask ci` is what must pass before a change lands, `cargo xtask tidy` is its cheapest part.

mod bench_cpu;
mod ci;
mod cuda;
mod instructions;
mod tidy;
mod tools;

use anyhow::anyhow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask COMMAND
  bench-cpu  Ferrum against llama.cpp on this machine; shows its flags when given none
  ci     everything that must pass: formatting, lints, tidy, spelling, dependencies, tests
  cuda-toolchain  installs the CUDA compiler into .cuda, for builds with the feature `cuda`
  instructions  counts the instructions of the hottest CPU kernels; `--write` makes the counts the golden ones
  tidy   the rules that no compiler knows: crate layout, file length, environment variables, unsafe, output";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let root = workspace_root();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["bench-cpu", ..] => bench_cpu::run(&root, &args[1..]),
        ["ci"] => ci::run(&root),
        ["cuda-toolchain"] => cuda::install(&root),
        ["instructions"] => instructions::run(&root, false),
        ["instructions", "--write"] => instructions::run(&root, true),
        ["tidy"] => tidy::run(&root),
        _ => Err(anyhow!("{USAGE}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn workspace_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or_else(|| manifest.to_owned(), Path::to_owned)
}
