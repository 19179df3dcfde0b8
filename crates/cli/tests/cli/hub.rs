//! Where models and tokens come from, as the environment says.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::Path,
    process::Output,
    thread,
};

use crate::common::{command, fixture};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Runs with the Hugging Face folder at `home`, as other tools have it.
fn at_home(home: &Path, endpoint: &str, args: &[&str]) -> Output {
    command(args).env("HF_HOME", home).env("HF_ENDPOINT", endpoint).output().unwrap()
}

#[test]
fn files_that_other_tools_fetched_are_found_offline() {
    let home = tempfile::tempdir().unwrap();
    let repo = home.path().join("hub/models--org--name");
    let snapshot = repo.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    fs::copy(fixture("gguf/llama3-q8_0.gguf"), snapshot.join("name-Q8_0.gguf")).unwrap();
    for model in ["org/name", "org/name:Q8_0", "org/name:name-Q8_0.gguf"] {
        let output = at_home(home.path(), "http://127.0.0.1:1", &["run", model, "x", "--raw", "-n", "2", "--offline"]);
        assert!(output.status.success(), "{model}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let output = at_home(home.path(), "http://127.0.0.1:1", &["run", "org/name:Q4_0", "x", "--offline"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("ferrum pull org/name:Q4_0"), "{stderr}");
}

#[test]
fn the_token_file_is_used_and_is_not_printed() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("token"), "hf_from_the_file\n").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    // One request, refused as the hub refuses a gated model.
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        head
    });
    let output = at_home(home.path(), &endpoint, &["pull", "org/name"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("org/name") && !stderr.contains("hf_from_the_file"), "{stderr}");
    let head = server.join().unwrap();
    assert!(head.iter().any(|line| line.eq_ignore_ascii_case("authorization: Bearer hf_from_the_file")), "{head:?}");
}
