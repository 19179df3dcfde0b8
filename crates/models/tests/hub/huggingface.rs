use crate::server::{Answer, Request, Server};
use crate::{content, files_below, options, sha256};
use ferrum_models::hub::{Catalogue, FilesKind, Format, Hub, HubError, ModelFiles, ModelRef};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER_COMMIT: &str = "fedcba9876543210fedcba9876543210fedcba98";

/// A listing with large (hashed) and small files, as the hub's API gives it.
fn listing(commit: &str, large: &[(&str, &[u8])], small: &[(&str, &[u8])]) -> String {
    let large = large.iter().map(|(name, bytes)| {
        let (len, hash) = (bytes.len(), sha256(bytes));
        serde_json::json!({"rfilename": name, "size": len, "blobId": "1".repeat(40), "lfs": {"sha256": hash, "size": len, "pointerSize": 1}})
    });
    let small = small.iter().map(|(name, bytes)| serde_json::json!({"rfilename": name, "size": bytes.len(), "blobId": git_id(name)}));
    serde_json::json!({"id": "org/name", "sha": commit, "siblings": large.chain(small).collect::<Vec<_>>()}).to_string()
}

/// Stands for the git blob id: any 40 digits that differ by file do.
fn git_id(name: &str) -> String {
    sha256(name.as_bytes())[..40].to_owned()
}

fn gguf_server(bytes: Vec<u8>, answer: impl Fn(&Request, &[u8]) -> Answer + Send + 'static) -> Server {
    let listing = listing(COMMIT, &[("m-Q4_K_M.gguf", &bytes), ("m-Q8_0.gguf", b"other")], &[("README.md", b"hello")]);
    Server::start(move |request| if request.target.starts_with("/api/") { Answer::ok(listing.clone()) } else { answer(request, &bytes) })
}

fn hub(dir: &Path, endpoint: &str) -> Hub {
    let mut options = options(dir);
    options.endpoint = endpoint.to_owned();
    Hub::new(options)
}

fn gguf_path(files: &ModelFiles) -> &PathBuf {
    match &files.kind {
        FilesKind::Gguf { paths } => &paths[0],
        FilesKind::SafetensorsDir { .. } => panic!("expected a GGUF"),
    }
}

fn model(text: &str) -> ModelRef {
    ModelRef::parse(text).unwrap()
}

fn incomplete_files(dir: &Path) -> Vec<String> {
    files_below(dir).into_iter().filter(|f| f.ends_with(".incomplete")).collect()
}

#[test]
fn a_gguf_is_fetched_into_the_shared_cache_layout_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(100_000);
    let server =
        gguf_server(bytes.clone(), |request, bytes| Answer::ranged(request, bytes).header("ETag", format!("\"{}\"", sha256(bytes))));
    let hub = hub(dir.path(), &server.url);
    let files = hub.resolve(&model("org/name")).unwrap();
    assert_eq!(fs::read(gguf_path(&files)).unwrap(), bytes);

    let repo = dir.path().join("hf/models--org--name");
    assert_eq!(gguf_path(&files), &repo.join("snapshots").join(COMMIT).join("m-Q4_K_M.gguf"));
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fs::read_link(gguf_path(&files)).unwrap(), Path::new("../../blobs").join(sha256(&bytes)));
    assert_eq!(files_below(&repo.join("blobs")), [sha256(&bytes)], "only what was picked is fetched, nothing unfinished stays");

    let seen = server.requests().len();
    assert_eq!(hub.resolve(&model("org/name:q4_k_m")).unwrap().kind, files.kind);
    assert_eq!(server.requests().len(), seen, "a complete model is not asked for again");
    let list = hub.list();
    assert_eq!((list[0].id.as_str(), list[0].bytes, list[0].format), ("org/name:m-Q4_K_M.gguf", 100_000, Format::Gguf));
    assert!(server.requests().iter().all(|r| r.headers["authorization"] == "Bearer hf_secret"));
}

#[test]
fn safetensors_with_side_files_and_nested_names() {
    let dir = tempfile::tempdir().unwrap();
    let index: &[u8] = br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    let small: Vec<(&str, &[u8])> = vec![("config.json", b"{}"), ("tokenizer.json", b"{}"), ("model.safetensors.index.json", index)];
    let large: Vec<(&str, &[u8])> =
        vec![("model-00001-of-00002.safetensors", b"one"), ("model-00002-of-00002.safetensors", b"two!"), ("onnx/model.onnx", b"no")];
    let text = listing(COMMIT, &large, &small);
    let all: Vec<(String, Vec<u8>)> = small.iter().chain(&large).map(|(n, b)| ((*n).to_owned(), b.to_vec())).collect();
    let server = Server::start(move |request| {
        if request.target.starts_with("/api/models/org/name/revision/main?") {
            return Answer::ok(text.clone());
        }
        let name = request.target.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")).unwrap_or("");
        all.iter().find(|(n, _)| n == name).map_or(Answer::status(404), |(_, bytes)| Answer::ranged(request, bytes))
    });
    let hub = hub(dir.path(), &server.url);
    let files = hub.resolve(&model("org/name")).unwrap();
    let FilesKind::SafetensorsDir { dir: folder, weights } = &files.kind else { panic!() };
    assert_eq!(weights.iter().map(|w| fs::read(w).unwrap()).collect::<Vec<_>>(), [b"one".to_vec(), b"two!".to_vec()]);
    assert!(folder.join("tokenizer.json").is_file() && !folder.join("onnx").exists());
    assert_eq!(hub.list()[0].bytes, 7);

    // With a shard gone the cached model must not be used.
    fs::remove_file(&weights[1]).unwrap();
    assert_eq!(hub.find_local(&model("org/name")).unwrap(), None);
}

#[test]
fn a_broken_transfer_is_resumed_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(3_000_000);
    let tries = AtomicUsize::new(0);
    let server = gguf_server(bytes.clone(), move |request, bytes| {
        let mut answer = Answer::ranged(request, bytes);
        if tries.fetch_add(1, Ordering::SeqCst) < 2 {
            answer.cut_at = Some(1_000_000);
        }
        answer
    });
    let files = hub(dir.path(), &server.url).resolve(&model("org/name")).unwrap();
    assert_eq!(fs::read(gguf_path(&files)).unwrap(), bytes);
    let starts: Vec<usize> = server.requests().iter().filter_map(Request::range_start).collect();
    assert_eq!(starts.len(), 2, "{starts:?}");
    assert!(starts[0] > 0 && starts[1] > starts[0], "each attempt goes on: {starts:?}");
}

#[test]
fn a_later_run_goes_on_with_the_incomplete_file() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(50_000);
    let blobs = dir.path().join("hf/models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", sha256(&bytes))), &bytes[..20_000]).unwrap();
    let server = gguf_server(bytes.clone(), Answer::ranged);
    let files = hub(dir.path(), &server.url).resolve(&model("org/name")).unwrap();
    assert_eq!(fs::read(gguf_path(&files)).unwrap(), bytes);
    assert_eq!(server.requests()[1].range_start(), Some(20_000));
}

#[test]
fn a_server_without_ranges_sends_it_all_again() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(50_000);
    let blobs = dir.path().join("hf/models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", sha256(&bytes))), b"stale beginning").unwrap();
    let server = gguf_server(bytes.clone(), |_, bytes| Answer::ok(bytes));
    let files = hub(dir.path(), &server.url).resolve(&model("org/name")).unwrap();
    assert_eq!(fs::read(gguf_path(&files)).unwrap(), bytes);
}

#[test]
fn wrong_bytes_are_an_error_and_are_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let server = gguf_server(content(5_000), |_, bytes| Answer::ok(vec![7; bytes.len()]));
    let hub = hub(dir.path(), &server.url);
    let error = hub.resolve(&model("org/name")).unwrap_err();
    assert!(matches!(error, HubError::Corrupt { field: "sha256", .. }), "{error}");
    assert_eq!(hub.find_local(&model("org/name")).unwrap(), None);
    assert!(incomplete_files(dir.path()).is_empty());
}

#[test]
fn a_body_longer_than_declared_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let server = gguf_server(content(5_000), |_, _| Answer::ok(vec![0; 10_000_000]));
    let error = hub(dir.path(), &server.url).resolve(&model("org/name")).unwrap_err();
    assert!(matches!(error, HubError::Corrupt { field: "size in bytes", .. }), "{error}");
    assert!(incomplete_files(dir.path()).is_empty());
}

#[test]
fn a_range_that_starts_elsewhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(50_000);
    let blobs = dir.path().join("hf/models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", sha256(&bytes))), &bytes[..20_000]).unwrap();
    let server = gguf_server(bytes, |_, bytes| {
        Answer { status: 206, body: bytes[10_000..].to_vec(), ..Answer::default() }.header("Content-Range", "bytes 10000-49999/50000")
    });
    let error = hub(dir.path(), &server.url).resolve(&model("org/name")).unwrap_err();
    assert!(matches!(error, HubError::BadReply { .. }), "{error}");
}

#[test]
fn a_file_that_changed_since_the_listing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = gguf_server(content(5_000), |request, bytes| Answer::ranged(request, bytes).header("X-Linked-ETag", "\"something-else\""));
    let error = hub(dir.path(), &server.url).resolve(&model("org/name")).unwrap_err().to_string();
    assert!(error.contains("changed on the server"), "{error}");
}

#[test]
fn the_token_never_leaves_its_origin() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(5_000);
    let storage_bytes = bytes.clone();
    let storage = Server::start(move |request| Answer::ranged(request, &storage_bytes));
    let target = format!("{}/blob?signature=x", storage.url);
    let server = gguf_server(bytes.clone(), move |request, _| {
        // First to another path of the same origin, then away: the storage's own ETag must not count either.
        if request.target.starts_with("/moved") { Answer::redirect(target.clone()) } else { Answer::redirect("/moved/here") }
    });
    let files = hub(dir.path(), &server.url).resolve(&model("org/name")).unwrap();
    assert_eq!(fs::read(gguf_path(&files)).unwrap(), bytes);
    assert_eq!(server.requests().len(), 3);
    assert!(server.requests().iter().all(|r| r.headers.get("authorization").is_some_and(|v| v == "Bearer hf_secret")));
    assert_eq!(storage.requests().len(), 1);
    assert!(!storage.requests()[0].headers.contains_key("authorization"), "the token was sent to another host");
    assert!(!format!("{:?}", storage.requests()).contains("hf_secret"));
}

#[test]
fn endless_and_odd_redirects_end() {
    for target in ["/again", "file:///etc/passwd", ""] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(move |_| Answer::redirect(target));
        let error = hub(dir.path(), &server.url).resolve(&model("org/name")).unwrap_err();
        assert!(matches!(error, HubError::BadReply { .. }), "{target}: {error}");
        assert!(server.requests().len() <= 9);
    }
}

#[test]
fn a_listing_cannot_write_outside_the_cache() {
    for name in ["../../../evil.gguf", "/tmp/evil.gguf", "a/../../evil.gguf", "..\\evil.gguf", "a\u{0}.gguf"] {
        let dir = tempfile::tempdir().unwrap();
        let text = listing(COMMIT, &[(name, b"evil")], &[]);
        let server =
            Server::start(move |request| if request.target.starts_with("/api/") { Answer::ok(text.clone()) } else { Answer::ok("evil") });
        let error = hub(dir.path(), &server.url).resolve(&model("org/name")).unwrap_err();
        assert!(matches!(error, HubError::BadName { .. }), "{name}: {error}");
        assert!(files_below(dir.path()).is_empty(), "{name}");
    }
}

#[test]
fn crafted_commits_and_blob_ids_are_refused() {
    let good = listing(COMMIT, &[("m.gguf", b"x")], &[]);
    for bad in [
        good.replace(COMMIT, "../../../../tmp"),
        good.replace(&sha256(b"x"), "../../../evil"),
        good.replace(&sha256(b"x"), &"A".repeat(64)),
        good.replace("\"siblings\"", "\"other\""),
        "[1,2".to_owned(),
        "[".repeat(200_000),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let text = bad.clone();
        let server =
            Server::start(move |request| if request.target.starts_with("/api/") { Answer::ok(text.clone()) } else { Answer::ok("x") });
        let error = hub(dir.path(), &server.url).resolve(&model("org/name")).unwrap_err();
        assert!(matches!(error, HubError::BadReply { .. } | HubError::NoMatch { .. }), "{error}");
        assert!(files_below(dir.path()).is_empty(), "{}", &bad[..bad.len().min(80)]);
    }
}

#[cfg(unix)]
#[test]
fn a_snapshot_folder_that_leads_away_is_not_written_through() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("hf/models--org--name/snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    std::os::unix::fs::symlink(outside.path(), snapshot.join("sub")).unwrap();
    let text = listing(COMMIT, &[("sub/m.gguf", b"x")], &[]);
    let server = Server::start(move |request| if request.target.starts_with("/api/") { Answer::ok(text.clone()) } else { Answer::ok("x") });
    let error = hub(dir.path(), &server.url).resolve(&model("org/name")).unwrap_err();
    assert!(matches!(error, HubError::BadName { .. }), "{error}");
    assert!(files_below(outside.path()).is_empty());
}

#[test]
fn a_crafted_ref_on_disk_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir_all(&elsewhere).unwrap();
    fs::write(elsewhere.join("m.gguf"), "x").unwrap();
    let repo = dir.path().join("hf/models--org--name");
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::create_dir_all(repo.join("snapshots")).unwrap();
    fs::write(repo.join("refs/main"), "../../../elsewhere").unwrap();
    let hub = hub(dir.path(), "http://127.0.0.1:1");
    assert_eq!(hub.find_local(&model("org/name")).unwrap(), None);
    assert!(hub.list().is_empty());
}

#[test]
fn refusals_say_what_to_do() {
    for (status, token, hint) in [(401, false, "HF_TOKEN"), (403, true, "accept the model's terms"), (404, true, "spelling")] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(move |_| Answer::status(status));
        let mut options = options(dir.path());
        options.endpoint = server.url.clone();
        if !token {
            options.token = None;
        }
        let error = Hub::new(options).resolve(&model("org/name")).unwrap_err().to_string();
        assert!(error.contains(hint) && !error.contains("hf_secret"), "{error}");
    }
}

#[test]
fn offline_never_connects() {
    let dir = tempfile::tempdir().unwrap();
    let server = gguf_server(content(10), |_, bytes| Answer::ok(bytes));
    let mut options = options(dir.path());
    options.endpoint = server.url.clone();
    options.offline = true;
    let hub = Hub::new(options);
    for error in [hub.resolve(&model("org/name:Q8_0")).unwrap_err(), hub.pull(&model("org/name:Q8_0")).unwrap_err()] {
        assert!(error.to_string().contains("ferrum pull org/name:Q8_0"), "{error}");
    }
    assert!(server.requests().is_empty());
}

#[test]
fn pull_follows_the_repository_and_resolve_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (content(1_000), content(2_000));
    let changed = std::sync::Arc::new(AtomicUsize::new(0));
    let switch = changed.clone();
    let texts = [listing(COMMIT, &[("m.gguf", &old)], &[]), listing(OTHER_COMMIT, &[("m.gguf", &new)], &[])];
    let (old_body, new_body) = (old.clone(), new.clone());
    let server = Server::start(move |request| match (request.target.starts_with("/api/"), request.target.contains(OTHER_COMMIT)) {
        (true, _) => Answer::ok(texts[switch.load(Ordering::SeqCst)].clone()),
        (false, false) => Answer::ok(old_body.clone()),
        (false, true) => Answer::ok(new_body.clone()),
    });
    let hub = hub(dir.path(), &server.url);
    hub.resolve(&model("org/name")).unwrap();
    changed.store(1, Ordering::SeqCst);
    assert_eq!(fs::read(gguf_path(&hub.resolve(&model("org/name")).unwrap())).unwrap(), old);
    assert_eq!(fs::read(gguf_path(&hub.pull(&model("org/name")).unwrap())).unwrap(), new);
}

#[test]
fn a_catalogue_entry_can_come_from_the_hub() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(4_000);
    let text = format!(
        "[[model]]\naliases=['tiny']\ndescription=''\nlicence=''\nfamily=''\nfile='tiny.gguf'\nsize_bytes=4000\nsha256='{}'\n\
         [[model.source]]\nkind='pip'\npackages=['tiny==1']\nmember='*'\n\
         [[model.source]]\nkind='hf'\nrepo='org/name'\nrevision='{COMMIT}'\nfile='sub/t.gguf'\n",
        sha256(&bytes)
    );
    let body = bytes.clone();
    let server = Server::start(move |request| Answer::ranged(request, &body));
    let mut options = options(dir.path());
    options.endpoint = server.url.clone();
    options.catalogue = Catalogue::parse(&text).unwrap();
    let hub = Hub::new(options);
    let tiny = ModelRef::Alias("tiny".into());
    // The first source needs a Python that is not there; the second one serves.
    let files = hub.resolve(&tiny).unwrap();
    assert_eq!(fs::read(gguf_path(&files)).unwrap(), bytes);
    assert_eq!(server.requests()[0].target, format!("/org/name/resolve/{COMMIT}/sub/t.gguf"));
    assert_eq!(hub.find_local(&tiny).unwrap().unwrap(), files);

    // A file damaged on disk is found by `pull` and fetched again.
    fs::write(gguf_path(&files).canonicalize().unwrap(), vec![0; 4_000]).unwrap();
    let files = hub.pull(&tiny).unwrap();
    assert_eq!(fs::read(gguf_path(&files)).unwrap(), bytes);
}

#[test]
fn two_fetches_at_once_share_one_transfer() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(200_000);
    let server = gguf_server(bytes.clone(), |request, bytes| {
        std::thread::sleep(std::time::Duration::from_millis(150));
        Answer::ranged(request, bytes)
    });
    let url = server.url.clone();
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..2).map(|_| scope.spawn(|| hub(dir.path(), &url).resolve(&model("org/name")).unwrap())).collect();
        for run in runs {
            assert_eq!(fs::read(gguf_path(&run.join().unwrap())).unwrap(), bytes);
        }
    });
    assert_eq!(server.requests().iter().filter(|r| r.target.contains("/resolve/")).count(), 1);
}
