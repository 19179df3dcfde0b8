//! `ferrum serve` as a process: what it writes, and how it ends.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::TcpStream,
    process::{Child, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::common::{command, error, fixture, text};

/// A server on a tiny model. It is killed when it is dropped.
struct Server {
    process: Child,
    address: String,
    log: mpsc::Receiver<String>,
}

impl Server {
    /// Starts it and waits until it answers.
    fn start(args: &[&str]) -> Self {
        let model = fixture("llama3");
        let mut process = command(&[&["serve", &model, "--threads", "1"], args].concat()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, log) = mpsc::channel();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut server = Self { process, address: String::new(), log };
        let line = server.line("listening on ");
        server.address = line.split("http://").nth(1).unwrap().trim_end_matches(['"', '}', ',']).to_owned();
        server.line("ready");
        server
    }

    /// The next line of the log that has `part`.
    fn line(&self, part: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.log.recv_timeout(left).unwrap_or_else(|_| panic!("the log has no line with {part:?}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    fn send(&self, request: &str) -> TcpStream {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        socket
    }

    fn ask(&self, request: &str) -> String {
        let mut answer = String::new();
        self.send(request).read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n")
}

#[test]
fn a_line_of_the_log_is_one_object_with_the_request_in_its_trace() {
    let server = Server::start(&["--port", "0", "--log-format", "json"]);
    let parent = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-1122334455667788-01\r\nx-request-id: mine\r\n";
    let answer = server.ask(&get("/v1/models", parent));
    let echoed = answer.lines().find_map(|line| line.strip_prefix("traceparent: ")).unwrap();
    let line: Value = serde_json::from_str(&server.line("\"request\"")).unwrap();
    for (field, value) in [
        ("method", "GET"),
        ("path", "/v1/models"),
        ("request_id", "mine"),
        ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("parent_id", "1122334455667788"),
        ("span_id", &echoed[36..52]),
        ("level", "INFO"),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    assert!(line["status"] == 200 && line["ended"] == true && line["bytes"].as_u64() > Some(0) && line["ms"].is_f64(), "{line}");
    server.ask(&get("/v1/models", "traceparent: nonsense\r\n"));
    let line: Value = serde_json::from_str(&server.line("\"request\"")).unwrap();
    assert!(line.get("trace_id").is_none() && line["request_id"].as_str().is_some_and(|id| id.len() == 24), "{line}");
}

#[test]
fn a_log_that_is_no_terminal_has_no_colours() {
    let server = Server::start(&["--port", "0"]);
    let answer = server.ask(&get("/model_info", ""));
    let line = server.line("/model_info");
    assert!(line.contains(" INFO request method=\"GET\"") && !line.contains('\x1b'), "{line:?}");
    // The model behind it has been counted.
    let info: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert!(info["parameters"].as_u64() > Some(0), "{info}");
}

#[test]
fn the_log_tells_who_left_before_the_end() {
    let server = Server::start(&["--port", "0", "--log-format", "json"]);
    let request = |is_stream| complete(64, 240, is_stream);
    let logged = |path: &str| serde_json::from_str::<Value>(&server.line(path)).unwrap();
    // Before there is a response, while the model is at it.
    let socket = server.send(&request(false));
    let deadline = Instant::now() + Duration::from_secs(60);
    let is_idle = |metrics: String| metrics.lines().any(|line| line.starts_with("vllm:num_requests_running") && line.ends_with(" 0"));
    while is_idle(server.ask(&get("/metrics", ""))) {
        assert!(Instant::now() < deadline, "nothing runs");
    }
    drop(socket);
    let line = logged("/v1/completions");
    assert!(line["ended"] == false && line.get("status").is_none() && line["bytes"] == 0, "{line}");
    // Within a stream.
    begun(&mut server.send(&request(true)));
    let line = logged("/v1/completions");
    assert!(line["ended"] == false && line["status"] == 200 && line["bytes"].as_u64() > Some(0), "{line}");
    // A response without a body is whole.
    server.ask("HEAD /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let line = logged("/v1/models");
    assert!(line["ended"] == true && line["bytes"] == 0, "{line}");
}

/// A request for `n` answers of `tokens` each, streamed, on a connection that closes behind it.
fn stream(n: usize, tokens: usize) -> String {
    complete(n, tokens, true)
}

fn complete(n: usize, tokens: usize, is_stream: bool) -> String {
    let body = format!(r#"{{"prompt": "the cat", "n": {n}, "max_tokens": {tokens}, "ignore_eos": true, "stream": {is_stream}}}"#);
    format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Reads until the first event of a stream has come.
fn begun(socket: &mut TcpStream) -> String {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while !text.contains("data: ") {
        let count = socket.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "{text}");
        text += std::str::from_utf8(&buffer[..count]).unwrap();
    }
    text
}

#[test]
fn a_killed_server_leaves_nothing_and_its_successor_takes_the_port_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let args = |port: &str| {
        ["--port", port, "--max-seqs", "4", "--models-dir"]
            .map(String::from)
            .into_iter()
            .chain([folder.path().display().to_string()])
            .collect::<Vec<_>>()
    };
    let start = |port: &str| Server::start(&args(port).iter().map(String::as_str).collect::<Vec<_>>());
    let mut server = start("0");
    let address = server.address.clone();
    let port = address.rsplit_once(':').unwrap().1.to_owned();
    for _ in 0..3 {
        // Four run, and two wait.
        let mut streams: Vec<TcpStream> = (0..6).map(|_| server.send(&stream(64, 200))).collect();
        begun(&mut streams[0]);
        server.process.kill().unwrap();
        assert!(!server.process.wait().unwrap().success());
        // Its connections are ended, by the system, and at once.
        for socket in &mut streams {
            let mut rest = Vec::new();
            let _ = socket.read_to_end(&mut rest);
            assert!(!rest.ends_with(b"[DONE]\n\n"));
        }
        let dead = std::mem::replace(&mut server, start(&port));
        assert_eq!(server.address, address);
        drop(dead);
        let answer = server.ask(&stream(1, 3));
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("data: [DONE]"), "{answer}");
        assert!(server.ask(&get("/health", "")).starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "files are left");
}

#[test]
fn sigterm_lets_streams_end_takes_no_more_and_exits_with_0() {
    let mut server = Server::start(&["--port", "0"]);
    let mut streams: Vec<TcpStream> = (0..4).map(|_| server.send(&stream(32, 240))).collect();
    let mut answers: Vec<Vec<u8>> = streams.iter_mut().map(|socket| begun(socket).into_bytes()).collect();
    // Connected before, and asking behind.
    let mut late = TcpStream::connect(&server.address).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.process.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    // All that has come until now: no stream had ended at the signal.
    for (socket, answer) in streams.iter_mut().zip(&mut answers) {
        socket.set_nonblocking(true).unwrap();
        assert_eq!(socket.read_to_end(answer).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
        socket.set_nonblocking(false).unwrap();
        assert!(!String::from_utf8_lossy(answer).contains("[DONE]"));
    }
    server.line("stopping");
    let mut refused = String::new();
    let _ = late.write_all(stream(1, 3).as_bytes());
    let _ = late.read_to_string(&mut refused);
    assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(TcpStream::connect(&server.address).is_err(), "the port is closed");
    for (mut socket, mut answer) in streams.into_iter().zip(answers) {
        socket.read_to_end(&mut answer).unwrap();
        let text = String::from_utf8(answer).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("data: [DONE]"), "{text}");
        assert_eq!(text.matches("\"finish_reason\":\"length\"").count(), 32, "{text}");
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while server.process.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the server is still there");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(server.process.wait().unwrap().code(), Some(0));
}

#[test]
fn limits_and_keys_that_cannot_be_are_refused_before_anything_is_loaded() {
    let model = fixture("llama3");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, "sk-secret max-concurrent=many\n").unwrap();
    let file = file.to_str().unwrap();
    for (args, part) in [
        (&["--max-connections", "0"][..], "--max-connections"),
        (&["--max-head-kib", "1"], "--max-head-kib"),
        (&["--body-timeout-s", "0"], "--body-timeout-s"),
        (&["--write-timeout-s", "0"], "--write-timeout-s"),
        (&["--api-key", ""], "--api-key"),
        (&["--tls-cert", "cert.pem"], "--tls-key"),
        (&["--tls-cert", "no-such.pem", "--tls-key", "key.pem"], "no-such.pem"),
        (&["--api-key-file", file], "line 1: `max-concurrent`"),
        (&["--cors-origin", "a\nb"], "--cors-origin"),
    ] {
        let text = error(&[&["serve", &model], args].concat());
        assert!(text.contains(part) && !text.contains("sk-secret"), "{args:?}: {text}");
    }
    let shown = text(&["serve", "--print-config", "--head-timeout-s", "7"]);
    assert!(shown.contains("head-timeout-s = 7  # flag") && shown.contains("max-connections = 8192  # default"), "{shown}");
}
