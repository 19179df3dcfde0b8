//! A server that answers as a test tells it to.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tokio_rustls::rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::common::repository;

/// An answer to one request.
#[derive(Clone)]
pub enum Reply {
    Json(u16, Value),
    /// Events, each after so much time; then the end of the stream
    Stream(Vec<(Duration, String)>),
    /// The same, and the connection breaks before the end
    Broken(Vec<(Duration, String)>),
    /// The connection ends without an answer
    Nothing,
}

/// A request: its path and its JSON body, and how many such paths came before.
pub struct Asked<'a> {
    pub path: &'a str,
    pub body: Value,
    pub authorization: Option<String>,
    pub before: usize,
}

pub struct Fake {
    pub url: String,
    /// The bodies of all requests for answers, in the order they came
    pub bodies: Arc<Mutex<Vec<Value>>>,
    /// Most requests for answers at the same time
    pub most: Arc<AtomicUsize>,
}

type Script = dyn Fn(&Asked) -> Reply + Send + Sync;

struct State {
    script: Box<Script>,
    bodies: Arc<Mutex<Vec<Value>>>,
    now: AtomicUsize,
    most: Arc<AtomicUsize>,
}

impl Fake {
    /// Answers by the script, until the test ends. `/v1/models` has the model `fake`; what the script need not know is 404.
    pub fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(script, None)
    }

    /// The same with the certificate for `localhost`.
    pub fn start_tls(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let folder = repository().join("crates/cli/tests/cli/tls");
        let certificate = CertificateDer::from_pem_slice(&fs::read(folder.join("server.pem")).unwrap()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&fs::read(folder.join("server.key")).unwrap()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
        Self::listen(script, Some(Arc::new(config)))
    }

    fn listen(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = if tls.is_some() { format!("https://localhost:{port}") } else { format!("http://127.0.0.1:{port}") };
        let (bodies, most) = (Arc::<Mutex<Vec<Value>>>::default(), Arc::<AtomicUsize>::default());
        let state = State { script: Box::new(script), bodies: Arc::clone(&bodies), now: AtomicUsize::new(0), most: Arc::clone(&most) };
        let state = Arc::new(state);
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (state, tls) = (Arc::clone(&state), tls.clone());
                let talk = move || {
                    socket.set_nodelay(true)?;
                    match tls {
                        None => talk(&state, socket),
                        Some(config) => talk(&state, Tls(StreamOwned::new(ServerConnection::new(config).unwrap(), socket))),
                    }
                };
                // A client may go away at any time.
                thread::Builder::new().stack_size(256 << 10).spawn(|| drop::<io::Result<()>>(talk())).unwrap();
            }
        });
        Self { url, bodies, most }
    }
}

/// One connection in both directions
trait Connection: Read {
    fn out(&mut self) -> &mut dyn Write;
}

impl Connection for TcpStream {
    fn out(&mut self) -> &mut dyn Write {
        self
    }
}

struct Tls(StreamOwned<ServerConnection, TcpStream>);

impl Read for Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Connection for Tls {
    fn out(&mut self) -> &mut dyn Write {
        &mut self.0
    }
}

fn talk(state: &State, connection: impl Connection) -> io::Result<()> {
    let mut input = BufReader::new(connection);
    loop {
        let (mut first, mut length, mut authorization) = (String::new(), 0, None);
        if input.read_line(&mut first)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            input.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().unwrap(),
                Some((name, value)) if name.eq_ignore_ascii_case("authorization") => authorization = Some(value.to_owned()),
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        input.read_exact(&mut body)?;
        let path = first.split(' ').nth(1).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let answers = path.ends_with("completions");
        let before = {
            let mut bodies = state.bodies.lock().unwrap();
            if answers {
                bodies.push(body.clone());
            }
            bodies.len().saturating_sub(1)
        };
        let reply = match (state.script)(&Asked { path, body, authorization, before }) {
            Reply::Json(404, _) if path == "/v1/models" => Reply::Json(200, json!({"data": [{"id": "fake"}]})),
            reply => reply,
        };
        if answers {
            state.most.fetch_max(state.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        }
        let goes_on = write(input.get_mut().out(), reply);
        if answers {
            state.now.fetch_sub(1, Ordering::SeqCst);
        }
        if !goes_on? {
            return Ok(());
        }
    }
}

/// Whether the connection can have another request.
fn write(out: &mut dyn Write, reply: Reply) -> io::Result<bool> {
    let (events, whole) = match reply {
        Reply::Json(status, value) => {
            let body = value.to_string();
            write!(out, "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
            out.flush()?;
            return Ok(true);
        }
        Reply::Stream(events) => (events, true),
        Reply::Broken(events) => (events, false),
        Reply::Nothing => return Ok(false),
    };
    out.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")?;
    for (after, event) in events {
        thread::sleep(after);
        let event = format!("data: {event}\n\n");
        out.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())?;
        out.flush()?;
    }
    if whole {
        out.write_all(b"0\r\n\r\n")?;
        out.flush()?;
    }
    Ok(whole)
}

/// Completion events for `tokens` tokens: the first after `first`, the others `each` apart, then the count if `usage` is told.
pub fn answer(first: u64, each: u64, tokens: usize, usage: Option<usize>) -> Vec<(Duration, String)> {
    let ms = Duration::from_millis;
    let token =
        |i| (ms(if i == 0 { first } else { each }), json!({"choices": [{"index": 0, "text": " a", "finish_reason": null}]}).to_string());
    let mut events: Vec<_> = (0..tokens).map(token).collect();
    events.push((ms(0), json!({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}).to_string()));
    let count = |prompt| json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": tokens}}).to_string();
    events.extend(usage.map(|prompt| (ms(0), count(prompt))));
    events.push((ms(0), "[DONE]".into()));
    events
}

/// The number of tokens asked for.
pub fn max_tokens(body: &Value) -> usize {
    body["max_tokens"].as_u64().unwrap() as usize
}

/// 404 for what is no request for an answer.
pub fn only_answers(asked: &Asked, script: impl FnOnce(&Asked) -> Reply) -> Reply {
    if asked.path == "/v1/completions" { script(asked) } else { Reply::Json(404, json!({"error": {"message": "not here"}})) }
}
