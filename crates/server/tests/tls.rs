//! TLS in front of the routes, with a certificate made for the test.

mod common;

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use common::question;
use ferrum_server::{App, HttpOptions, Keys, Tls, serve};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::CertificateDer},
};

/// Files that are gone when the test is.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("ferrum-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server for `localhost` with two connections and little time, and a client that trusts it.
async fn secured(name: &str) -> (Arc<App>, String, TlsConnector) {
    let folder = Folder::new(name);
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (folder.write("cert.pem", &cert.pem()), folder.write("key.pem", &signing_key.serialize_pem()));
    let (app, _) = common::server(Keys::default());
    common::load(&app);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let soon = Duration::from_millis(500);
    let options = HttpOptions {
        tls: Some(Tls::read(&certificate, &key).unwrap()),
        max_connections: 2,
        head_timeout: soon,
        idle_timeout: soon,
        ..HttpOptions::default()
    };
    tokio::spawn(serve(Arc::clone(&app), listener, options, std::future::pending()));
    let connector = client(Some(cert.der()));
    (app, address, connector)
}

fn client(trusts: Option<&CertificateDer<'static>>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    if let Some(certificate) = trusts {
        roots.add(certificate.clone()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
    Arc::new(config.unwrap().with_root_certificates(roots).with_no_client_auth()).into()
}

/// What comes until the other side closes, which it must do by itself.
async fn all(mut socket: impl AsyncRead + Unpin) -> String {
    let mut answer = Vec::new();
    // A reset is a close as well.
    let _ = timeout(Duration::from_secs(20), socket.read_to_end(&mut answer)).await.expect("still open");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_over_tls_and_over_nothing_else() {
    let (_app, address, trusting) = secured("answers").await;
    let name = || "localhost".try_into().unwrap();
    let body = common::with(question("Tell me"), serde_json::json!({"stream": true})).to_string();
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut socket = trusting.connect(name(), TcpStream::connect(&address).await.unwrap()).await.unwrap();
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    let answer = all(&mut socket).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("data: [DONE]"), "{answer}");
    // Whoever does not trust the certificate sends nothing.
    assert!(client(None).connect(name(), TcpStream::connect(&address).await.unwrap()).await.is_err());
    // Plain HTTP is no handshake.
    let mut plain = TcpStream::connect(&address).await.unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(!all(plain).await.contains("HTTP/1.1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_do_nothing_are_closed_in_time() {
    let (_app, address, trusting) = secured("bounds").await;
    // Both places are taken by sockets that begin no handshake, and by some that wait behind them.
    let silent: Vec<TcpStream> = {
        let mut sockets = Vec::new();
        for _ in 0..5 {
            sockets.push(TcpStream::connect(&address).await.unwrap());
        }
        sockets
    };
    let ask = async {
        let mut socket = trusting.connect("localhost".try_into().unwrap(), TcpStream::connect(&address).await.unwrap()).await.unwrap();
        socket.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        all(socket).await
    };
    // It is idle behind its request, and closed then.
    assert!(timeout(Duration::from_secs(20), ask).await.unwrap().starts_with("HTTP/1.1 200 "));
    for socket in silent {
        assert_eq!(all(socket).await, "");
    }
}

#[test]
fn files_that_do_not_fit_are_named() {
    let folder = Folder::new("files");
    let pair = || generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (one, other) = (pair(), pair());
    let certificate = folder.write("cert.pem", &one.cert.pem());
    let key = folder.write("key.pem", &one.signing_key.serialize_pem());
    let wrong = folder.write("wrong.pem", &other.signing_key.serialize_pem());
    let (text, none) = (folder.write("text.pem", "no PEM"), folder.0.join("none.pem"));
    let broken = folder.write("broken.pem", &one.cert.pem().replace('M', "!"));
    assert!(Tls::read(&certificate, &key).is_ok());
    for (certificate, key, part) in [
        (&none, &key, "none.pem"),
        (&certificate, &none, "none.pem"),
        (&text, &key, "text.pem has no certificate"),
        (&certificate, &text, "text.pem: it has no private key"),
        (&broken, &key, "broken.pem: it is not PEM"),
        (&certificate, &wrong, "wrong.pem does not go with"),
        (&key, &key, "key.pem has no certificate"),
    ] {
        let error = Tls::read(certificate, key).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
