//! The steps of `cargo xtask ci`, cheap ones first.

use crate::{cuda, instructions, tidy, tools};
use anyhow::{Context, bail};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

type Step = (&'static str, fn(&Path) -> anyhow::Result<()>);

const STEPS: &[Step] = &[
    ("tidy", tidy::run),
    ("fmt", |root| cargo(root, "fmt --all --check")),
    ("typos", |root| execute(Command::new(tools::ensure(root, &tools::TYPOS)?).current_dir(root))),
    ("deny", |root| {
        cargo(root, "fetch --locked")?;
        // Advisories are left out: their database lives on a code host, and this run needs only the package registries.
        let args = ["--offline", "--locked", "check", "licenses", "bans", "sources"];
        execute(Command::new(tools::ensure(root, &tools::CARGO_DENY)?).args(args).current_dir(root))
    }),
    ("cuda", cuda::ensure),
    ("clippy", |root| cargo(root, "clippy --locked --workspace --all-targets --features ferrum/cuda -- -D warnings")),
    ("no cuda", |root| cargo(root, "clippy --locked --package ferrum --all-targets -- -D warnings")),
    // Tests on real weights look into `.models` and skip, saying so, when it is empty.
    ("model", |root| cargo(root, "run --locked --package ferrum -- pull --models-dir .models smollm2:135m")),
    ("instructions", |root| instructions::run(root, false)),
    ("test", |root| cargo(root, "test --locked --workspace --features ferrum/cuda")),
];

/// Runs every step, whatever became of the others, so that one run shows all there is to correct.
pub fn run(root: &Path) -> anyhow::Result<()> {
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for (name, step) in STEPS {
        println!("── {name}");
        let start = Instant::now();
        let result = step(root);
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("── {name}: passed in {seconds:.1} s"),
            Err(error) => {
                println!("── {name}: failed after {seconds:.1} s: {error:#}");
                failed.push(*name);
            }
        }
        done.push(format!("{name} {seconds:.0} s"));
    }
    println!("── {}", done.join(", "));
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn cargo(root: &Path, args: &str) -> anyhow::Result<()> {
    // One architecture: what CI proves about kernels is that they compile and that their launchers' contracts hold.
    execute(Command::new(env!("CARGO")).args(args.split(' ')).env("FERRUM_CUDA_ARCHS", "90a").current_dir(root))
}

/// Runs a command with its output passed through.
pub fn execute(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
