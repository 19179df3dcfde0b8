//! Accepting connections, with bounds on what clients may hold that ask for nothing.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request, serve::Listener};
use futures_util::{StreamExt, stream};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::{Instant, timeout_at},
};
use tower::ServiceExt;

use crate::routes::HttpOptions;

/// The longest request line with headers; hyper takes at most 100 of them. Beyond it: 431.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Serves HTTP/1.1 until `stop` resolves, then lets every connection end with the request it has.
pub async fn listen(mut listener: TcpListener, router: Router, options: &HttpOptions, stop: impl Future<Output = ()>) {
    let slots = Arc::new(Semaphore::new(options.max_connections as usize));
    let (stopping, stopped) = watch::channel(());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(options.head_timeout).max_buf_size(MAX_HEAD_BYTES);
    let body_timeout = options.body_timeout;
    let mut stop = pin!(stop);
    loop {
        // Whoever comes when all slots are taken waits in the queue of the system.
        let accept = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, Listener::accept(&mut listener).await.0)
        };
        let (slot, socket) = tokio::select! {
            accepted = accept => accepted,
            () = &mut stop => break,
        };
        // A token is a small packet; none may wait for the receipt of the one before. Without it the stream is only slower.
        let _ = socket.set_nodelay(true);
        let service = router.clone().map_request(move |request: Request<Incoming>| request.map(|body| within(body, body_timeout)));
        let connection = http.serve_connection(TokioIo::new(socket), TowerToHyperService::new(service));
        let mut stopped = stopped.clone();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            let result = tokio::select! {
                result = connection.as_mut() => result,
                _ = stopped.changed() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(slot);
        });
    }
    drop((listener, stopping));
    // All slots are free when all connections have ended; the semaphore is never closed.
    let _ = slots.acquire_many(options.max_connections).await;
}

/// The body, which must have come whole within `time`.
fn within(body: Incoming, time: Duration) -> Body {
    let deadline = Instant::now() + time;
    Body::from_stream(stream::unfold(Body::new(body).into_data_stream(), move |mut chunks| async move {
        let chunk = timeout_at(deadline, chunks.next()).await;
        let chunk = chunk.unwrap_or_else(|_| Some(Err(axum::Error::new(format!("the body did not come within {time:?}")))))?;
        Some((chunk, chunks))
    }))
}
