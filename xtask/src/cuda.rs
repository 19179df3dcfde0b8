//! The CUDA compiler from its Python packages: no root, no GPU, no driver.

use crate::ci::execute;
use anyhow::Context;
use std::path::Path;
use std::process::Command;

/// All five parts are named: otherwise a later code generator arrives, which writes PTX that this assembler refuses.
const PACKAGES: &[&str] =
    &["cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==13.0.2", "nvidia-cuda-cuobjdump==13.2.51", "nvidia-cuda-nvdisasm==13.2.51"];

/// Installs into `.cuda`, where the build of `ferrum-cuda` looks after `CUDA_HOME` and the PATH.
pub fn install(root: &Path) -> anyhow::Result<()> {
    let venv = root.join(".cuda");
    execute(Command::new("python3").args(["-m", "venv"]).arg(&venv)).context("Python 3 with its venv module is needed")?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--only-binary", ":all:"];
    execute(Command::new(venv.join("bin").join("python")).args(pip).args(PACKAGES))
}

/// Installs unless there is an nvcc already.
pub fn ensure(root: &Path) -> anyhow::Result<()> {
    let home = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = home.into_iter().chain(std::env::split_paths(&path)).any(|bin| bin.join("nvcc").is_file());
    let installed = std::fs::read_dir(root.join(".cuda/lib")).into_iter().flatten().flatten();
    if found || installed.into_iter().any(|python| python.path().join("site-packages/nvidia/cu13/bin/nvcc").is_file()) {
        return Ok(());
    }
    install(root)
}
