//! Which crates there are, and which may depend on which.

use super::Finding;
use anyhow::Context;
use std::path::Path;

/// Folder below `crates/`, package name, and the folders its dependencies may come from.
/// `docs/architecture.md` draws the same picture.
const CRATES: &[(&str, &str, &[&str])] = &[
    ("kernels", "ferrum-kernels", &[]),
    ("cpu", "ferrum-cpu", &["kernels"]),
    ("cuda", "ferrum-cuda", &["kernels"]),
    ("wgpu", "ferrum-wgpu", &["kernels"]),
    ("models", "ferrum-models", &["kernels"]),
    ("engine", "ferrum-engine", &["kernels", "models"]),
    ("server", "ferrum-server", &["kernels", "models", "engine"]),
    ("cli", "ferrum", &["kernels", "cpu", "cuda", "wgpu", "models", "engine", "server"]),
];
/// Tests may run on a backend, whatever the crate.
const BACKENDS: &[&str] = &["cpu", "cuda", "wgpu"];

pub fn check(root: &Path) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut folders: Vec<String> = std::fs::read_dir(root.join("crates"))
        .context("cannot list crates/")?
        .filter_map(|entry| entry.ok().filter(|e| e.path().is_dir())?.file_name().into_string().ok())
        .collect();
    folders.sort();
    for folder in folders {
        let path = format!("crates/{folder}/Cargo.toml");
        let text = std::fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read {path}"))?;
        let manifest: toml::Table = text.parse().with_context(|| format!("cannot parse {path}"))?;
        findings.extend(check_manifest(&folder, &path, &manifest));
    }
    Ok(findings)
}

fn check_manifest(folder: &str, path: &str, manifest: &toml::Table) -> Vec<Finding> {
    let Some((_, package, allowed)) = CRATES.iter().find(|(f, ..)| *f == folder) else {
        return vec![Finding::new(path, 0, "unknown crate: the crates are listed in xtask/src/tidy/layout.rs and docs/architecture.md")];
    };
    let mut findings = Vec::new();
    let name = manifest.get("package").and_then(|p| p.get("name")).and_then(|n| n.as_str());
    if name != Some(package) {
        findings.push(Finding::new(path, 0, format!("the package must be named {package}")));
    }
    for (table, for_tests) in [("dependencies", false), ("build-dependencies", false), ("dev-dependencies", true)] {
        for dependency in dependencies(manifest, table) {
            let Some((other, ..)) = CRATES.iter().find(|(_, package, _)| *package == dependency) else { continue };
            if !(allowed.contains(other) || for_tests && BACKENDS.contains(other)) {
                findings.push(Finding::new(
                    path,
                    0,
                    format!("{table}: {package} must not depend on {dependency} (see docs/architecture.md)"),
                ));
            }
        }
    }
    findings
}

/// Names in a dependency table, those for single targets included.
fn dependencies(manifest: &toml::Table, table: &str) -> Vec<String> {
    let plain = manifest.get(table).and_then(|t| t.as_table());
    let targets = manifest.get("target").and_then(|t| t.as_table()).into_iter().flat_map(|t| t.values());
    let by_target = targets.filter_map(|t| t.get(table)?.as_table());
    plain.into_iter().chain(by_target).flat_map(|t| t.keys().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(folder: &str, manifest: &str) -> Vec<String> {
        check_manifest(folder, "m", &manifest.parse().unwrap()).into_iter().map(|f| f.message).collect()
    }

    #[test]
    fn dependencies_point_down() {
        let models = "[package]\nname='ferrum-models'\n[dependencies]\nserde='1'\nferrum-kernels.workspace=true\n";
        assert!(messages("models", models).is_empty());
        assert!(messages("models", &format!("{models}ferrum-cpu.workspace=true"))[0].contains("must not depend on ferrum-cpu"));
        assert!(
            messages("models", &format!("{models}[target.'cfg(unix)'.dependencies]\nferrum-engine.workspace=true"))[0]
                .contains("ferrum-engine")
        );
        assert!(messages("models", &format!("{models}[dev-dependencies]\nferrum-cpu.workspace=true")).is_empty());
        assert!(!messages("models", &format!("{models}[dev-dependencies]\nferrum-engine.workspace=true")).is_empty());
    }

    #[test]
    fn crates_are_known_and_named() {
        assert!(messages("utils", "[package]\nname='ferrum-utils'")[0].contains("unknown crate"));
        assert!(messages("cpu", "[package]\nname='cpu'")[0].contains("ferrum-cpu"));
    }
}
