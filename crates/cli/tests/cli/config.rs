//! `ferrum.toml`.

use std::fs;

use crate::common::{command, error, fixture, json, text};

#[test]
fn the_file_stands_in_for_flags_and_flags_win() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("options.toml");
    let model = fixture("llama3");
    fs::write(&file, format!("backend = \"cpu\"\n[run]\nmodel = {:?}\nmax-tokens = 3\ntemperature = 0\njson = true\n", model)).unwrap();
    let file = file.to_str().unwrap();
    // The model is the first argument, so with one in the file a prompt comes from standard input or behind a model.
    let answer = json(&["run", &model, "the", "--raw", "--config", file]);
    assert_eq!(answer["tokens"].as_array().map(Vec::len), Some(3), "{answer}");
    let answer = json(&["run", &model, "the", "--raw", "-n", "5", "--config", file]);
    assert_eq!(answer["tokens"].as_array().map(Vec::len), Some(5), "{answer}");

    let shown = text(&["run", "-n", "5", "--print-config", "--config", file]);
    assert!(shown.contains("max-tokens = 5  # flag") && shown.contains(&format!("temperature = 0  # {file}")), "{shown}");
    assert!(shown.contains("precision = \"auto\"  # default") && shown.contains("# seed =  # default: not set"), "{shown}");
}

#[test]
fn a_file_in_the_users_folder_is_found() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("ferrum")).unwrap();
    fs::write(dir.path().join("ferrum/ferrum.toml"), "[serve]\nport = 12345\n").unwrap();
    let output = command(&["serve", "--print-config"]).env("XDG_CONFIG_HOME", dir.path()).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("port = 12345  # "));
}

#[test]
fn mistakes_name_the_file_and_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ferrum.toml");
    for (content, part) in [("[serve]\nprot = 1", "`port`"), ("port = ", "is not TOML"), ("[serve]\nport = 99999", "port")] {
        fs::write(&file, content).unwrap();
        let text = error(&["serve", "m", "--config", file.to_str().unwrap()]);
        assert!(text.contains(part) && text.contains("ferrum.toml"), "{text}");
    }
    assert!(error(&["serve", "m", "--config", "no-such.toml"]).contains("no-such.toml"));
}
