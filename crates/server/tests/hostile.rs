//! Hostile input at the boundary where it arrives: numbers, HTTP, overload. `docs/security.md` names the test of every class.

mod common;

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use common::{get, loaded, post, question, send, server, with};
use ferrum_server::{App, HttpOptions, Keys, serve};
use futures_util::{StreamExt, future::join_all};
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::sleep};
use tower::ServiceExt;

/// Waits until nothing runs, and checks that no block is still held.
async fn assert_idle(app: &App) {
    for _ in 0..500 {
        let snapshot = app.snapshot().unwrap();
        if (snapshot.running, snapshot.waiting) == (0, 0) {
            assert_eq!(snapshot.blocks.0, snapshot.blocks.1, "blocks are still in use");
            assert_eq!(app.health(), Ok(()));
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("requests still run: {:?}", app.snapshot());
}

#[tokio::test]
async fn row_10_numbers_are_checked_on_every_route() {
    let (app, router) = loaded();
    let completion = json!({"prompt": "the", "max_tokens": 2});
    let mut fields = vec!["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"];
    fields.extend(["max_tokens", "min_tokens", "n", "seed", "logprobs", "priority"]);
    for (path, body) in [("/v1/chat/completions", question("x")), ("/v1/completions", completion)] {
        for field in &fields {
            for value in [json!(1e308), json!(-1e308), json!("NaN"), json!([1]), json!({"a": 1})] {
                let (status, answer) = post(&router, path, with(body.clone(), json!({*field: value}))).await;
                assert_eq!((status, &answer["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(field)), "{path} {value}: {answer}");
            }
            // Some of these are allowed for some fields; none may be the server's failure.
            for value in [json!(i64::MIN), json!(u64::MAX), json!(-1), json!(0), json!(1e-320), json!(true)] {
                let (status, answer) = post(&router, path, with(body.clone(), json!({*field: value}))).await;
                let fine = status == StatusCode::OK || (status == StatusCode::BAD_REQUEST && answer["error"]["param"] == *field);
                assert!(fine, "{path} {field} = {value}: {status} {answer}");
            }
            // JSON has no such numbers.
            for value in ["1e999", "NaN", "-Infinity", "01", "0x10"] {
                let text = body.to_string().replacen('{', &format!("{{\"{field}\": {value}, "), 1);
                assert_eq!(send(&router, path, Some(text.into_bytes())).await.0, StatusCode::BAD_REQUEST, "{path} {field} = {value}");
            }
        }
        let (status, answer) = post(&router, path, with(body, json!({"min_tokens": 20, "max_tokens": 10}))).await;
        assert_eq!((status, &answer["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("min_tokens")), "{path}: {answer}");
    }
    for prompt in [json!([u32::MAX]), json!([-1]), json!([1u64 << 40]), json!([[]]), json!([0.5])] {
        let (status, answer) = post(&router, "/v1/completions", json!({"prompt": prompt})).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{prompt}: {answer}");
    }
    assert_idle(&app).await;
}

/// A server on a port, with timeouts of 300 ms and 32 connections.
async fn listening() -> (Arc<App>, String) {
    let soon = Duration::from_millis(300);
    listening_with(HttpOptions { head_timeout: soon, body_timeout: soon, idle_timeout: soon, ..HttpOptions::default() }).await
}

async fn listening_with(options: HttpOptions) -> (Arc<App>, String) {
    let (app, _) = server(Keys::default());
    common::load(&app);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let options = HttpOptions { max_body_bytes: 1 << 20, max_connections: 32, ..options };
    tokio::spawn(serve(Arc::clone(&app), listener, options, std::future::pending()));
    (app, address)
}

/// What the server says to these bytes until it closes the connection, which it must do by itself.
async fn raw(address: &str, bytes: &[u8]) -> String {
    let (address, bytes) = (address.to_owned(), bytes.to_vec());
    let exchange = move || {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The server may close before it has read all.
        let _ = socket.write_all(&bytes);
        let mut answer = Vec::new();
        // A reset is a close as well.
        let open = socket.read_to_end(&mut answer).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        assert!(!open, "still open after {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(60)]));
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::task::spawn_blocking(exchange).await.unwrap()
}

fn chat(body: &[u8]) -> Vec<u8> {
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_14_http_is_bounded() {
    let (app, address) = listening().await;
    let line = "GET /health HTTP/1.1\r\nHost: x\r\n";
    let mut deep = b"{\"messages\": ".to_vec();
    deep.extend(vec![b'['; 100_000]);
    let cases: [(&str, Vec<u8>, &str); 10] = [
        ("a header of 1 MB", format!("{line}X-A: {}\r\n\r\n", "a".repeat(1 << 20)).into_bytes(), "431"),
        ("10,000 headers", format!("{line}{}\r\n", "A: b\r\n".repeat(10_000)).into_bytes(), "431"),
        ("101 headers", format!("{line}{}\r\n", "A: b\r\n".repeat(101)).into_bytes(), "431"),
        ("a body that never ends", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{".to_vec(), "408"),
        ("a negative length", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n".to_vec(), "400"),
        ("two lengths", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}".to_vec(), "400"),
        ("JSON 100,000 deep", chat(&deep), "400"),
        ("invalid UTF-8", chat(b"{\"messages\": \"\xff\xfe\"}"), "400"),
        ("a body beyond the limit", chat(&vec![b' '; (1 << 20) + 1]), "413"),
        ("a length beyond the limit", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n".to_vec(), "413"),
    ];
    for (name, bytes, status) in cases {
        let answer = raw(&address, &bytes).await;
        // A client that still sends when the server closes may see a reset in place of the answer.
        let reset = answer.is_empty() && bytes.len() > 64 << 10;
        assert!(reset || answer.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {answer}");
    }
    // HTTP/2 with its floods of frames is not spoken at all.
    let answer = raw(&address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(!answer.contains("200 OK"), "{answer}");
    // A head that never ends, and a chunk longer than any number: closed.
    assert!(!raw(&address, line.as_bytes()).await.contains("200 OK"));
    let chunk = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}";
    assert!(!raw(&address, chunk).await.contains("200 OK"));
    // More idle sockets than connections are allowed: they are closed in time, and the next request is answered.
    let idle: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let answer = raw(&address, &chat(question("x").to_string().as_bytes())).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(idle);
    assert_idle(&app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_14_a_body_that_is_too_slow_gets_an_answer_in_the_shape_of_its_api() {
    let (_app, address) = listening().await;
    for (path, pointer, kind) in [("/v1/chat/completions", "/error/param", Value::Null), ("/v1/messages", "/type", json!("error"))] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{{");
        // The connection is closed as well, or this would not come back.
        let answer = raw(&address, head.as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 408 ") && head.contains("application/json"), "{head}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert!(body["error"]["message"].as_str().unwrap().contains("300ms"), "{body}");
        assert_eq!(body.pointer(pointer), Some(&kind), "{body}");
    }
    // One that ends early, and one whose framing is wrong, have that shape as well.
    let chunk = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}";
    let answer = raw(&address, chunk).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"invalid_request_error\""), "{answer}");
}

/// Writes, waits, and tells what has been answered, and whether the connection is still open.
fn exchange(socket: &mut TcpStream, bytes: &[u8], wait_ms: u64) -> (String, bool) {
    let _ = socket.write_all(bytes);
    std::thread::sleep(Duration::from_millis(wait_ms));
    socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    let mut answer = Vec::new();
    let open = socket.read_to_end(&mut answer).is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    (String::from_utf8(answer).unwrap(), open)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_phase_of_a_connection_has_its_own_time() {
    let (short, long) = (Duration::from_millis(300), Duration::from_secs(3));
    let request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    let slow_head = HttpOptions { head_timeout: long, idle_timeout: short, ..HttpOptions::default() };
    let slow_idle = HttpOptions { head_timeout: short, idle_timeout: long, ..HttpOptions::default() };
    for (options, idle_is_long) in [(slow_head, false), (slow_idle, true)] {
        let (_app, address) = listening_with(options).await;
        let checks = move || {
            let connect = || TcpStream::connect(&address).unwrap();
            assert_eq!(exchange(&mut connect(), b"", 1000).1, idle_is_long, "idle at first");
            assert_eq!(exchange(&mut connect(), &request[..20], 1000).1, !idle_is_long, "in a head");
            let mut socket = connect();
            let (answer, open) = exchange(&mut socket, request, 100);
            assert!(answer.starts_with("HTTP/1.1 200 ") && open, "{answer}");
            let (answer, open) = exchange(&mut socket, request, 1000);
            assert!(answer.starts_with("HTTP/1.1 200 ") && open == idle_is_long, "idle behind a request: {answer}");
        };
        tokio::task::spawn_blocking(checks).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_15_overload_is_refused_and_the_vanished_leave_nothing() {
    let (app, router) = server(Keys::default());
    common::load_with(&app, common::Load { max_waiting: 6, ..Default::default() });
    let body = with(question("Tell me"), json!({"stream": true, "max_tokens": 150})).to_string();
    let crowd = (0..64).map(|_| {
        let request = Request::post("/v1/chat/completions").body(Body::from(body.clone())).unwrap();
        router.clone().oneshot(request)
    });
    let (mut taken, mut refused) = (Vec::new(), 0);
    for response in join_all(crowd).await.into_iter().map(Result::unwrap) {
        if response.status() == StatusCode::OK {
            taken.push(response.into_body().into_data_stream());
            continue;
        }
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key(header::RETRY_AFTER));
        refused += 1;
    }
    assert!(taken.len() >= 6 && refused > 0, "{} taken, {refused} refused", taken.len());
    // Half of them go away; the others get all of their answer.
    for (i, mut stream) in taken.into_iter().enumerate() {
        if i % 2 == 0 {
            assert!(stream.next().await.unwrap().is_ok());
            continue;
        }
        let mut text = Vec::new();
        while let Some(chunk) = stream.next().await {
            text.extend(chunk.unwrap());
        }
        assert!(text.ends_with(b"data: [DONE]\n\n"));
    }
    assert_idle(&app).await;
    assert_eq!(get(&router, "/health").await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_15_a_closed_socket_cancels_its_request() {
    let (app, address) = listening().await;
    let body: Value = with(question("Tell me"), json!({"stream": true, "max_tokens": 200, "n": 4}));
    let vanish = move || {
        for _ in 0..8 {
            let mut socket = TcpStream::connect(&address).unwrap();
            socket.write_all(&chat(body.to_string().as_bytes())).unwrap();
            assert_ne!(socket.read(&mut [0; 64]).unwrap(), 0);
        }
    };
    tokio::task::spawn_blocking(vanish).await.unwrap();
    assert_idle(&app).await;
    // Eight answers of four times 200 tokens were not computed to their end.
    assert!(app.snapshot().unwrap().stats.counts.generated_tokens < 8 * 4 * 200);
}
