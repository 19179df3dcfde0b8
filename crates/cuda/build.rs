//! Compiles `kernels/*.cu` ahead of time, one fatbin per file, and lists them for `driver::fatbins` to embed.
//!
//! Needs nvcc of CUDA 13 from `CUDA_HOME`, the PATH or `.cuda` in the workspace, but no GPU and no driver. The variable
//! `FERRUM_CUDA_ARCHS` (e.g. `90a`, or `80,90a`) narrows the architectures to compile for. Fatbins are kept by the hash
//! of everything that goes into them, in the target folder.

use std::{
    collections::hash_map::DefaultHasher,
    env, fs,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::{Command, exit},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Ampere, Ada, Hopper, Blackwell; everything between and after them runs the PTX of the first.
const ARCHS: &str = "80,86,89,90a,100,120";
/// Files with this prefix use instructions that only this architecture has.
const HOPPER: (&str, &str) = ("sm90_", "90a");
const FLAGS: [&str; 4] = ["-std=c++17", "-O3", "-fatbin", "--compress-mode=size"];

struct Kernel {
    stem: String,
    source: PathBuf,
    fatbin: PathBuf,
    flags: Vec<String>,
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    for variable in ["FERRUM_CUDA_ARCHS", "CUDA_HOME", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let crate_dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // …/target/PROFILE/build/PACKAGE-HASH/out: shared by profiles and kept when the build script changes.
    let cache = out_dir.ancestors().nth(4).unwrap_or(&out_dir).join("cuda-fatbins");
    let nvcc = find_nvcc(&crate_dir).unwrap_or_else(|| {
        fail(
            "nvcc of CUDA 13 was not found in CUDA_HOME, the PATH or .cuda: install the compiler with `cargo xtask cuda-toolchain`, or \
             build without the feature `cuda`",
        )
    });
    let version = version(&nvcc);
    let kernels = kernels(&crate_dir.join("kernels"), &cache, &version);
    fs::create_dir_all(&cache).unwrap_or_else(|e| fail(&format!("cannot create {}: {e}", cache.display())));
    compile(&nvcc, &kernels);
    let lines = kernels.iter().map(|k| format!("    ({:?}, embed!({:?})),\n", k.stem, k.fatbin.to_string_lossy()));
    let text = format!("&[\n{}]\n", lines.collect::<String>());
    fs::write(out_dir.join("fatbins.rs"), text).unwrap_or_else(|e| fail(&format!("cannot write the list of fatbins: {e}")));
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}

fn find_nvcc(crate_dir: &Path) -> Option<PathBuf> {
    let homes = env::var_os("CUDA_HOME").into_iter().map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = fs::read_dir(crate_dir.join("../../.cuda/lib")).into_iter().flatten().flatten();
    let wheels = installed.map(|python| python.path().join("site-packages/nvidia/cu13/bin"));
    homes.chain(env::split_paths(&path)).chain(wheels).map(|bin| bin.join("nvcc")).find(|nvcc| nvcc.is_file())
}

fn version(nvcc: &Path) -> String {
    let output = Command::new(nvcc).arg("--version").output();
    let output = output.unwrap_or_else(|e| fail(&format!("cannot start {}: {e}", nvcc.display())));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let major = text.split("release ").nth(1).and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    if major.is_none_or(|major| major < 13) {
        fail(&format!("{} is not of CUDA 13; install the compiler with `cargo xtask cuda-toolchain`", nvcc.display()));
    }
    text
}

/// Every source that has an architecture to be compiled for.
fn kernels(dir: &Path, cache: &Path, version: &str) -> Vec<Kernel> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    let read = |path: &Path| fs::read(path).unwrap_or_else(|e| fail(&format!("cannot read {}: {e}", path.display())));
    let mut common = DefaultHasher::new();
    version.hash(&mut common);
    files.iter().filter(|f| f.extension().is_some_and(|e| e == "cuh")).for_each(|f| read(f).hash(&mut common));
    let chosen = env::var("FERRUM_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.to_owned());
    let archs: Vec<&str> = chosen.split(',').map(str::trim).filter(|a| !a.is_empty()).collect();
    let mut kernels = Vec::new();
    for source in files.into_iter().filter(|f| f.extension().is_some_and(|e| e == "cu")) {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let only = stem.starts_with(HOPPER.0).then_some(HOPPER.1);
        let archs: Vec<&str> = archs.iter().copied().filter(|a| only.is_none_or(|only| *a == only)).collect();
        let Some(first) = archs.first() else { continue };
        let mut flags: Vec<String> = FLAGS.map(str::to_owned).to_vec();
        flags.extend(archs.iter().map(|a| format!("-gencode=arch=compute_{a},code=sm_{a}")));
        if first.bytes().all(|b| b.is_ascii_digit()) {
            flags.push(format!("-gencode=arch=compute_{first},code=compute_{first}"));
        }
        let mut hasher = common.clone();
        (&flags, read(&source)).hash(&mut hasher);
        let fatbin = cache.join(format!("{stem}-{:016x}.fatbin", hasher.finish()));
        kernels.push(Kernel { stem, source, fatbin, flags });
    }
    kernels
}

/// Compiles what is not in the cache, on as many threads as cargo grants.
fn compile(nvcc: &Path, kernels: &[Kernel]) {
    let missing: Vec<&Kernel> = kernels.iter().filter(|k| !k.fatbin.is_file()).collect();
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1).min(missing.len());
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(kernel) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    compile_one(nvcc, kernel);
                }
            });
        }
    });
}

fn compile_one(nvcc: &Path, kernel: &Kernel) {
    // Under another name first: a build that is interrupted leaves no half file under the right one.
    let partial = kernel.fatbin.with_extension(format!("{}.partial", std::process::id()));
    let output = Command::new(nvcc).args(&kernel.flags).arg("-o").arg(&partial).arg(&kernel.source).output();
    let output = output.unwrap_or_else(|e| fail(&format!("cannot start {}: {e}", nvcc.display())));
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        println!("cargo::warning={line}");
    }
    if !output.status.success() {
        fail(&format!("{} does not compile; nvcc's messages are above", kernel.source.display()));
    }
    fs::rename(&partial, &kernel.fatbin).unwrap_or_else(|e| fail(&format!("cannot name {}: {e}", kernel.fatbin.display())));
}
