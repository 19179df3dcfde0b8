//! HTTP/1.1 to one server, with connections that are kept for the next request.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, Uri,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::{self, HeaderValue},
    rt::{Read, Write},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use super::failure::Failure;

/// Most bytes of an answer that is not streamed: a list of models, an error.
const MAX_ANSWER_BYTES: usize = 16 << 20;

type Connection = SendRequest<Full<Bytes>>;

/// A server and the connections to it.
pub struct Server {
    addresses: Vec<SocketAddr>,
    host: HeaderValue,
    /// In front of every path
    base: String,
    bearer: Option<HeaderValue>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    idle: Mutex<Vec<Connection>>,
}

/// The answer to a request, and the connection it comes over.
pub struct Answer {
    pub response: Response<Incoming>,
    connection: Connection,
}

impl Server {
    /// # Errors
    /// When the address makes no sense, its host is not known, or the certificates cannot be read.
    pub async fn new(url: &str, api_key: Option<&str>, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("`{url}` is no address; write http://HOST:PORT"))?;
        let encrypted = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => bail!("`{url}` must begin with http:// or https://"),
        };
        let authority = uri.authority().with_context(|| format!("`{url}` has no host"))?;
        // An IPv6 address stands in brackets there, and nowhere else.
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let found = lookup_host((name, port)).await.with_context(|| format!("the host `{name}` is not known"))?;
        let tls = encrypted.then(|| anyhow::Ok((connector(ca_file)?, ServerName::try_from(name.to_owned())?))).transpose()?;
        let bearer = api_key.map(|key| HeaderValue::try_from(format!("Bearer {key}"))).transpose();
        let mut bearer = bearer.context("the API key has characters that no header may have")?;
        bearer.iter_mut().for_each(|bearer| bearer.set_sensitive(true));
        let base = uri.path().trim_end_matches('/');
        Ok(Self {
            addresses: found.collect(),
            host: HeaderValue::try_from(authority.as_str())?,
            base: base.strip_suffix("/v1").unwrap_or(base).to_owned(),
            bearer,
            tls,
            idle: Mutex::default(),
        })
    }

    /// Sends a request and returns the beginning of its answer.
    ///
    /// # Errors
    /// `connect`, `tls`, `cut off`; another status than 200 with what the server says about it.
    pub async fn post(&self, path: &str, body: Vec<u8>) -> Result<Answer, Failure> {
        self.checked(Method::POST, path, body.into()).await
    }

    /// # Errors
    /// Those of [`Self::post`], and `malformed` where the answer is not JSON.
    pub async fn get_json(&self, path: &str) -> Result<Value, Failure> {
        self.json(self.checked(Method::GET, path, Bytes::new()).await?).await
    }

    /// # Errors
    /// As [`Self::get_json`]
    pub async fn post_json(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(self.post(path, body.to_string().into_bytes()).await?).await
    }

    async fn json(&self, answer: Answer) -> Result<Value, Failure> {
        let Answer { response, connection } = answer;
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| Failure::caused("cut off", &*error))?.to_bytes();
        self.keep(connection);
        serde_json::from_slice(&body).map_err(|error| Failure::caused("malformed", &error))
    }

    async fn checked(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, Failure> {
        let answer = self.send(method, path, body).await?;
        let status = answer.response.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = Limited::new(answer.response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        self.keep(answer.connection);
        Err(Failure::http(status.as_u16(), &body))
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, Failure> {
        let mut request = Request::new(Full::new(body));
        *request.uri_mut() = Uri::try_from(format!("{}{path}", self.base)).map_err(|error| Failure::caused("connect", &error))?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, self.host.clone());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("ferrum/", env!("CARGO_PKG_VERSION"))));
        headers.extend(self.bearer.clone().map(|bearer| (header::AUTHORIZATION, bearer)));
        *request.method_mut() = method;
        while let Some(mut connection) = self.idle() {
            if connection.ready().await.is_err() {
                continue;
            }
            match connection.try_send_request(request).await {
                Ok(response) => return Ok(Answer { response, connection }),
                // A server may end a connection that waits at any time. What was not sent over it goes over another one; what was
                // sent may be in work, and would be measured twice.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(Failure::caused("cut off", error.error())),
                },
            }
        }
        let mut connection = self.connect().await?;
        let response = connection.send_request(request).await.map_err(|error| Failure::caused("cut off", &error))?;
        Ok(Answer { response, connection })
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let tcp = TcpStream::connect(&self.addresses[..]).await.map_err(|error| Failure::caused("connect", &error))?;
        // A request is a small packet, which must not wait for others.
        tcp.set_nodelay(true).map_err(|error| Failure::caused("connect", &error))?;
        match &self.tls {
            None => handshake(tcp).await,
            Some((tls, name)) => handshake(tls.connect(name.clone(), tcp).await.map_err(|error| Failure::caused("tls", &error))?).await,
        }
    }

    fn idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(|connection| !connection.is_closed())
    }

    /// Keeps the connection of an answer that was read to its end.
    fn keep(&self, connection: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    /// Calls `piece` with the body as it comes.
    ///
    /// # Errors
    /// `cut off` where the body ends early, and those of `piece`.
    pub async fn read(&self, answer: Answer, mut piece: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        let Answer { mut response, connection } = answer;
        while let Some(frame) = response.body_mut().frame().await {
            let frame = frame.map_err(|error| Failure::caused("cut off", &error))?;
            if let Some(data) = frame.data_ref() {
                piece(data)?;
            }
        }
        self.keep(connection);
        Ok(())
    }
}

async fn handshake<S>(stream: S) -> Result<Connection, Failure>
where
    TokioIo<S>: Read + Write + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| Failure::caused("connect", &error))?;
    // What goes wrong there is told to the request that it concerns.
    tokio::spawn(connection);
    Ok(sender)
}

fn connector(ca_file: Option<&Path>) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(file) = ca_file {
        let pem = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            roots.add(certificate?)?;
        }
        if roots.is_empty() {
            bail!("{} has no certificate in PEM form", file.display());
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions()?;
    Ok(TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
}
