//! Accepting connections, with a bound on how many there are.

use std::{future::Future, pin::pin, sync::Arc};

use axum::{Router, serve::Listener};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::timeout,
};

use crate::{connection, routes::HttpOptions};

/// Serves HTTP/1.1 until `stop` resolves, then lets every connection end with the request it has.
pub async fn listen(mut listener: TcpListener, router: Router, options: Arc<HttpOptions>, stop: impl Future<Output = ()>) {
    let slots = Arc::new(Semaphore::new(options.max_connections as usize));
    let (stopping, stopped) = watch::channel(());
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
        let (router, options, stopped) = (router.clone(), Arc::clone(&options), stopped.clone());
        tokio::spawn(async move {
            match &options.tls {
                None => connection::serve(socket, router, &options, stopped).await,
                // The handshake has the time of a head.
                Some(tls) => match timeout(options.head_timeout, tls.acceptor().accept(socket)).await {
                    Ok(Ok(socket)) => connection::serve(socket, router, &options, stopped).await,
                    Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                    Err(_) => {}
                },
            }
            drop(slot);
        });
    }
    drop((listener, stopping));
    // All slots are free when all connections have ended; the semaphore is never closed.
    let _ = slots.acquire_many(options.max_connections).await;
}
