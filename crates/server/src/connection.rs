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

/// Serves requests until the client, a timeout or `stop` ends the connection; after `stop`, the request that runs is the last.
pub async fn serve<S>(socket: S, router: Router, options: &HttpOptions, mut stop: watch::Receiver<()>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (phase, mut phases) = watch::channel(Phase::Idle);
    let (phase, body_timeout) = (Arc::new(phase), options.body_timeout);
    let io = TokioIo::new(Observed { socket, phase: Arc::clone(&phase) });
    let begun = Arc::clone(&phase);
    let service = router
        .map_request(move |request| {
            begun.send_replace(Phase::Request);
            with_deadline(request, body_timeout)
        })
        .map_response(move |response| response.map(|body| Body::new(Held::new(body, Busy(Arc::clone(&phase))))));
    let service = TowerToHyperService::new(service);
    let mut http = http1::Builder::new();
    // The phases below bound this time.
    http.header_read_timeout(None).max_buf_size(options.max_head_bytes);
    let mut connection = pin!(http.serve_connection(io, service));
    let mut is_last = false;
    let result = loop {
        let time = match *phases.borrow_and_update() {
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
            _ = phases.changed() => {}
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
struct Busy(Arc<watch::Sender<Phase>>);

impl Watch for Busy {}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_replace(Phase::Idle);
    }
}

/// A socket that tells when a request begins to come.
struct Observed<S> {
    socket: S,
    phase: Arc<watch::Sender<Phase>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.phase.send_if_modified(|phase| {
                let begins = *phase == Phase::Idle;
                *phase = if begins { Phase::Head } else { *phase };
                begins
            });
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
