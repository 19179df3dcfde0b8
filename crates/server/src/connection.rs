//! One connection: HTTP/1.1 on it, and how long it may take for what.

use std::{
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, body::Body, http::Request};
use futures_util::{StreamExt, stream};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tower::ServiceExt;

use crate::{
    held::{Held, Watch},
    routes::HttpOptions,
};

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing; a request may come
    Idle,
    /// The first bytes of a request's head have come
    Head,
    /// There is a request, and its response is on the way
    Request,
}

/// What the timeouts depend on.
#[derive(Clone, Copy, Debug)]
struct State {
    phase: Phase,
    /// Bytes of a response wait for the client to take some
    is_stalled: bool,
}

/// Serves requests until the client, a timeout or `stop` ends the connection; after `stop`, the request that runs is the last.
pub async fn serve<S>(socket: S, router: Router, options: &HttpOptions, mut stop: watch::Receiver<()>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (state, mut states) = watch::channel(State { phase: Phase::Idle, is_stalled: false });
    let (state, body_timeout) = (Arc::new(state), options.body_timeout);
    let io = TokioIo::new(Observed { socket, state: Arc::clone(&state) });
    let begun = Arc::clone(&state);
    let service = router
        .map_request(move |request| {
            begun.send_modify(|state| state.phase = Phase::Request);
            with_deadline(request, body_timeout)
        })
        .map_response(move |response| response.map(|body| Body::new(Held::new(body, Busy(Arc::clone(&state))))));
    let service = TowerToHyperService::new(service);
    let mut http = http1::Builder::new();
    // The phases below bound this time.
    http.header_read_timeout(None).max_buf_size(options.max_head_bytes);
    let mut connection = pin!(http.serve_connection(io, service));
    let mut is_last = false;
    let result = loop {
        let State { phase, is_stalled } = *states.borrow_and_update();
        let time = match phase {
            // hyper lets go of a body when it has buffered the last piece, so any phase may have a response to send.
            _ if is_stalled => Some(options.write_timeout),
            Phase::Idle => Some(options.idle_timeout),
            Phase::Head => Some(options.head_timeout),
            Phase::Request => None,
        };
        let timeout = pin!(sleep(time.unwrap_or_default()));
        tokio::select! {
            result = connection.as_mut() => break result,
            _ = stop.changed(), if !is_last => {
                connection.as_mut().graceful_shutdown();
                is_last = true;
            }
            _ = states.changed() => {}
            () = timeout, if time.is_some() => break Ok(()),
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// The time that a request's body has to come, and whether it was over before.
#[derive(Clone, Debug)]
pub struct BodyDeadline {
    time: Duration,
    passed: Arc<AtomicBool>,
}

impl BodyDeadline {
    pub fn time(&self) -> Duration {
        self.time
    }

    pub fn has_passed(&self) -> bool {
        self.passed.load(Ordering::Acquire)
    }
}

/// The request with a body that must have come whole within `time`, and a [`BodyDeadline`] that tells if not.
fn with_deadline(request: Request<Incoming>, time: Duration) -> Request<Body> {
    let deadline = BodyDeadline { time, passed: Arc::default() };
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(deadline.clone());
    let end = Instant::now() + time;
    let chunks = stream::unfold(Body::new(body).into_data_stream(), move |mut chunks| {
        let deadline = deadline.clone();
        async move {
            let late = |_| {
                deadline.passed.store(true, Ordering::Release);
                Some(Err(axum::Error::new("the body was too slow")))
            };
            let chunk = timeout_at(end, chunks.next()).await.unwrap_or_else(late)?;
            Some((chunk, chunks))
        }
    });
    Request::from_parts(parts, Body::from_stream(chunks))
}

/// Held while a request runs; the connection is idle from then on.
struct Busy(Arc<watch::Sender<State>>);

impl Watch for Busy {}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|state| state.phase = Phase::Idle);
    }
}

/// A socket that tells when a request begins to come, and when the client takes nothing of a response.
struct Observed<S> {
    socket: S,
    state: Arc<watch::Sender<State>>,
}

impl<S> Observed<S> {
    /// Tells whether a write waits. One that goes on after it waited is told too, and so begins the time anew.
    fn written<T>(&self, result: Poll<T>) -> Poll<T> {
        self.state.send_if_modified(|state| std::mem::replace(&mut state.is_stalled, result.is_pending()) != result.is_pending());
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.state.send_if_modified(|state| {
                let begins = state.phase == Phase::Idle;
                state.phase = if begins { Phase::Head } else { state.phase };
                begins
            });
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.written(result)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write_vectored(context, parts);
        self.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.socket).poll_flush(context);
        self.written(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::timeout,
    };

    use super::*;

    const SHORT: Duration = Duration::from_millis(500);
    const LONG: Duration = Duration::from_secs(60);
    const BODY_BYTES: usize = 1 << 20;

    /// A connection on which a request has been sent, through a pipe of 1 KiB, and what is held while its response of
    /// [`BODY_BYTES`] is on the way.
    async fn asked(options: HttpOptions) -> (DuplexStream, tokio::task::JoinHandle<()>, Arc<()>) {
        let permit = Arc::new(());
        let held = Arc::downgrade(&permit);
        let body = move || async move { Body::new(Held::new(Body::from(vec![b'x'; BODY_BYTES]), held.upgrade())) };
        let (mut client, socket) = duplex(1 << 10);
        let (stopping, stop) = watch::channel(());
        let server = tokio::spawn(async move {
            serve(socket, Router::new().route("/", get(body)), &options, stop).await;
            drop(stopping);
        });
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        (client, server, permit)
    }

    #[tokio::test]
    async fn a_response_that_is_on_the_way_is_no_idle_time() {
        let options = HttpOptions { idle_timeout: SHORT, head_timeout: SHORT, write_timeout: LONG, ..HttpOptions::default() };
        let (mut client, server, permit) = asked(options).await;
        sleep(SHORT).await;
        assert_eq!(Arc::strong_count(&permit), 2, "the permit is back, and nothing has been read");
        client.read_exact(&mut vec![0; BODY_BYTES - (32 << 10)]).await.unwrap();
        // hyper has the rest, and the next request begins to come.
        client.write_all(b"GET").await.unwrap();
        sleep(3 * SHORT).await;
        assert_eq!(Arc::strong_count(&permit), 1);
        let mut rest = Vec::new();
        timeout(LONG, client.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert!(rest.len() > 32 << 10, "{} bytes came", rest.len());
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_left_and_a_slow_one_is_not() {
        let options = HttpOptions { write_timeout: SHORT, ..HttpOptions::default() };
        let (mut client, server, permit) = asked(options).await;
        for _ in 0..3 * SHORT.as_millis() / 50 {
            sleep(Duration::from_millis(50)).await;
            client.read_exact(&mut [0; 1 << 10]).await.unwrap();
        }
        assert!(!server.is_finished());
        timeout(LONG / 6, server).await.expect("it waits for a client that does not read").unwrap();
        assert_eq!(Arc::strong_count(&permit), 1);
    }
}
