//! `ferrum serve` as a process: what it writes, and how it ends.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::common::{command, fixture};

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
    let parent = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nx-request-id: mine\r\n";
    let answer = server.ask(&get("/v1/models", parent));
    let echoed = answer.lines().find_map(|line| line.strip_prefix("traceparent: ")).unwrap();
    let line: Value = serde_json::from_str(&server.line("\"request\"")).unwrap();
    for (field, value) in [
        ("method", "GET"),
        ("path", "/v1/models"),
        ("request_id", "mine"),
        ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("parent_id", "00f067aa0ba902b7"),
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
