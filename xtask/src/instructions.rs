//! `cargo xtask instructions`: the hottest CPU kernels may not grow. Instructions, unlike time, are the same on a busy machine.
//!
//! Each kernel runs once under callgrind (AVX2, one thread) and its count is compared with `crates/cpu/instructions.toml`.

use crate::ci::execute;
use anyhow::{Context, bail};
use std::fs;
use std::path::Path;
use std::process::Command;

const GOLDEN: &str = "crates/cpu/instructions.toml";
/// How far a count may be from its golden number, in percent: what another version of the compiler may change.
const BOUND_PERCENT: f64 = 3.0;

/// Compares, or writes the golden numbers anew.
pub fn run(root: &Path, write: bool) -> anyhow::Result<()> {
    if !valgrind() {
        println!("skipped: valgrind is not installed (Debian: apt-get install valgrind)");
        return Ok(());
    }
    execute(
        Command::new(env!("CARGO"))
            .args(["build", "--locked", "--release", "-p", "ferrum-cpu", "--example", "instructions"])
            .current_dir(root),
    )?;
    let path = root.join(GOLDEN);
    let mut golden: toml::Table = fs::read_to_string(&path).with_context(|| path.display().to_string())?.parse()?;
    let mut off = Vec::new();
    for (kernel, number) in &mut golden {
        let (counted, known) = (count(root, kernel)?, number.as_integer().unwrap_or(0));
        let percent = (counted as f64 / known as f64 - 1.0) * 100.0;
        println!("{kernel:20} {counted:>12} instructions, {percent:+.2} %");
        if write {
            *number = toml::Value::Integer(counted);
        } else if percent.is_nan() || percent.abs() > BOUND_PERCENT {
            off.push(kernel.clone());
        }
    }
    if write {
        let header =
            "# Instructions of one run of each kernel, by `cargo xtask instructions --write`; see crates/cpu/examples/instructions.rs.\n";
        fs::write(&path, header.to_owned() + &golden.to_string())?;
    }
    if !off.is_empty() {
        bail!("{} changed by more than {BOUND_PERCENT} %; if that is meant, run `cargo xtask instructions --write`", off.join(", "));
    }
    Ok(())
}

fn valgrind() -> bool {
    let answers = || Command::new("valgrind").arg("--version").output().is_ok_and(|o| o.status.success());
    // Machines that run the checks may be bare; elsewhere this fails without a trace.
    answers() || (Command::new("apt-get").args(["install", "--yes", "--quiet", "valgrind"]).output().is_ok() && answers())
}

fn count(root: &Path, kernel: &str) -> anyhow::Result<i64> {
    let out = root.join("target").join(format!("callgrind-{kernel}.out"));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*measured*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(root.join("target/release/examples/instructions"))
        .arg(kernel)
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("valgrind of {kernel} ended with {}: {text}", output.status);
    }
    let total = text.lines().find_map(|l| l.split_once("Collected :")?.1.trim().parse().ok());
    total.with_context(|| format!("callgrind gives no total for {kernel}: {text}"))
}
