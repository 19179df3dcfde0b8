//! One run of one program for one test.

use anyhow::{Context, bail};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const THREADS: &str = "2";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    Pp512,
    Tg128,
    /// Seconds from the start of the process to the first token
    Load,
    /// Most memory of a process that takes 512 tokens and generates one
    Memory,
    Pp4096,
    TgAt4096,
    Batch8,
    Batch32,
    /// `Tg128` while another process keeps a core busy
    Busy,
}

impl Test {
    const ALL: [(Self, &str); 9] = [
        (Self::Pp512, "pp512"),
        (Self::Tg128, "tg128"),
        (Self::Load, "load"),
        (Self::Memory, "memory"),
        (Self::Pp4096, "pp4096"),
        (Self::TgAt4096, "tg32@4096"),
        (Self::Batch8, "batch8"),
        (Self::Batch32, "batch32"),
        (Self::Busy, "busy"),
    ];

    pub fn of(name: &str) -> anyhow::Result<Self> {
        Self::ALL.iter().find(|t| t.1 == name).map(|t| t.0).with_context(|| format!("there is no test `{name}`"))
    }

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|t| t.0 == self).map_or("", |t| t.1)
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::Load => "s",
            Self::Memory => "MB",
            _ => "tok/s",
        }
    }
}

/// Both programs and the model.
pub struct Programs<'a> {
    pub ferrum: &'a Path,
    pub peer: &'a Path,
    pub ours: &'a Path,
    pub theirs: &'a Path,
    pub simd: Option<&'a str>,
}

impl Programs<'_> {
    pub fn ferrum(&self, test: Test) -> anyhow::Result<f64> {
        let bench = |args: &[&str]| self.engine(&[&["bench"], args, &["-r", "1", "--json"]].concat());
        let rate = |which: &str, args: &[&str]| number(&last_json(&run(bench(args))?.stdout)?[which]["tok_s"]["median"]);
        match test {
            Test::Pp512 => rate("pp", &["-p", "512", "-n", "1"]),
            Test::Tg128 => rate("tg", &["-p", "1", "-n", "128"]),
            Test::Load => Ok(run(self.engine(&["run", "--raw", "--temperature", "0", "-n", "1", "Once"]))?.seconds),
            Test::Memory => Ok(run(bench(&["-p", "512", "-n", "1"]))?.peak_bytes / 1e6),
            Test::Pp4096 => rate("pp", &["-p", "4096", "-n", "1"]),
            Test::TgAt4096 => rate("tg", &["-d", "4095", "-p", "1", "-n", "32"]),
            Test::Batch8 => rate("tg", &["-p", "64", "-n", "32", "-b", "8"]),
            Test::Batch32 => rate("tg", &["-p", "64", "-n", "32", "-b", "32"]),
            Test::Busy => beside_a_busy_core(|| self.ferrum(Test::Tg128)),
        }
    }

    pub fn peer(&self, test: Test) -> anyhow::Result<f64> {
        let bench = |args: &[&str]| self.llama("llama-bench", &[args, &["-r", "1", "-o", "json"]].concat());
        let rate = |args: &[&str]| number(&last_json(&run(bench(args))?.stdout)?[0]["avg_ts"]);
        let batch = |n: &str, context: &str| {
            let args = ["-c", context, "-npp", "64", "-ntg", "32", "-npl", n, "--output-format", "jsonl"];
            number(&last_json(&run(self.llama("llama-batched-bench", &args))?.stdout)?["speed_tg"])
        };
        match test {
            Test::Pp512 => rate(&["-p", "512", "-n", "0"]),
            Test::Tg128 => rate(&["-p", "0", "-n", "128"]),
            Test::Load => Ok(run(bench(&["-p", "1", "-n", "0", "--no-warmup"]))?.seconds),
            Test::Memory => Ok(run(bench(&["-p", "512", "-n", "0"]))?.peak_bytes / 1e6),
            Test::Pp4096 => rate(&["-p", "4096", "-n", "0"]),
            Test::TgAt4096 => rate(&["-p", "0", "-n", "32", "-d", "4096"]),
            Test::Batch8 => batch("8", "1024"),
            Test::Batch32 => batch("32", "4096"),
            Test::Busy => beside_a_busy_core(|| self.peer(Test::Tg128)),
        }
    }

    /// Bytes of the weights that a token reads: all but an embedding table that is not the output head too.
    pub fn bytes_per_token(&self) -> anyhow::Result<f64> {
        let shown = last_json(&run(self.command(self.ferrum, &["show", "--tensors", "--json"], self.ours))?.stdout)?;
        let tensors = shown["tensor_list"].as_array().context("`ferrum show` lists no tensors")?;
        let of = |name: &str| tensors.iter().find(|t| t["name"].as_str().is_some_and(|n| n.starts_with(name)));
        let all = tensors.iter().map(|t| number(&t["bytes"])).sum::<anyhow::Result<f64>>()?;
        let embedding = of("token_embd").or_else(|| of("model.embed_tokens")).filter(|_| of("output.").or_else(|| of("lm_head")).is_some());
        Ok(all - embedding.map_or(Ok(0.0), |t| number(&t["bytes"]))?)
    }

    /// `{"one_thread": …, "all_threads": …}` bytes per second over a buffer of `bytes`.
    pub fn read_bandwidth(&self, bytes: f64) -> anyhow::Result<Value> {
        let mut command = Command::new(self.ferrum);
        command.args(["doctor", "--json", "--read-bytes"]).arg(format!("{bytes:.0}"));
        Ok(last_json(&run(command)?.stdout)?["read_bandwidth_bytes_s"].clone())
    }

    fn engine(&self, args: &[&str]) -> Command {
        let mut command = self.command(self.ferrum, &args[..1], self.ours);
        command.args(&args[1..]).args(["--threads", THREADS, "--backend", "cpu"]);
        if let Some(level) = self.simd {
            command.args(["--simd", level]);
        }
        command
    }

    fn llama(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(self.peer.join(program));
        command.arg("-m").arg(self.theirs).args(["-t", THREADS]).args(args);
        command
    }

    fn command(&self, program: &Path, args: &[&str], model: &Path) -> Command {
        let mut command = Command::new(program);
        command.arg(args[0]).arg(model).args(&args[1..]);
        command
    }
}

struct Ran {
    stdout: String,
    seconds: f64,
    peak_bytes: f64,
}

/// Runs a program to its end, watching its memory.
fn run(mut command: Command) -> anyhow::Result<Ran> {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let status_file = format!("/proc/{}/status", child.id());
    let (done, mut peak) = (AtomicBool::new(false), 0.0f64);
    let (output, seconds) = thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut peak = 0.0f64;
            while !done.load(Ordering::Relaxed) {
                let status = fs::read_to_string(&status_file).unwrap_or_default();
                let high_water =
                    status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
                peak = peak.max(high_water.unwrap_or(0.0) * 1024.0);
                thread::sleep(Duration::from_millis(20));
            }
            peak
        });
        let output = child.stdout.take().map(std::io::read_to_string);
        let status = child.wait();
        let seconds = started.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        peak = watcher.join().unwrap_or(0.0);
        (output.transpose().and_then(|o| status.map(|s| (o, s))), seconds)
    });
    let (stdout, status) = output?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(Ran { stdout: stdout.unwrap_or_default(), seconds, peak_bytes: peak })
}

/// The last JSON value that begins at the start of a line.
fn last_json(text: &str) -> anyhow::Result<Value> {
    let starts = text.match_indices(['{', '[']).map(|(at, _)| at).filter(|&at| at == 0 || text.as_bytes()[at - 1] == b'\n');
    let mut values = starts.filter_map(|at| serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>().next()?.ok());
    values.next_back().with_context(|| format!("no JSON in {text:?}"))
}

fn number(value: &Value) -> anyhow::Result<f64> {
    value.as_f64().with_context(|| format!("{value} is not a number"))
}

fn beside_a_busy_core<T>(what: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::hint::spin_loop()
            }
        });
        let result = what();
        done.store(true, Ordering::Relaxed);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_found_behind_other_lines() {
        let text = "main: n_kv_max = 4096, flash {x}\n\n{\"a\": 1}\n{\"a\": {\n\"b\": 2}}\n";
        assert_eq!(last_json(text).unwrap()["a"]["b"], 2);
        assert_eq!(last_json("[\n  {\"avg_ts\": 1.5}\n]\n").unwrap()[0]["avg_ts"], 1.5);
        assert!(last_json("nothing").is_err());
    }
}
