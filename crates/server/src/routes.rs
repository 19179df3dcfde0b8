//! The routes, what stands in front of them, and the listening itself.

use std::{future::Future, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::net::TcpListener;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::{
    anthropic, app::App, error::ApiError, held::Held, limits::Client, listen::listen, openai, openapi, operations, page, tls::Tls, trace,
};

/// What the HTTP side can be told.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Largest request body
    pub max_body_bytes: usize,
    /// Origins that browsers may send requests from; none: CORS is off
    pub cors_origins: Vec<HeaderValue>,
    /// How long running requests may take to end after the signal to stop
    pub drain: Duration,
    /// Speak TLS
    pub tls: Option<Tls>,
    /// Connections at once; more wait to be accepted
    pub max_connections: u32,
    /// Longest request line with headers; 8 KiB at the least
    pub max_head_bytes: usize,
    /// How long they may take to come
    pub head_timeout: Duration,
    /// How long a request's body may take to come
    pub body_timeout: Duration,
    /// How long a connection may be idle in front of a request
    pub idle_timeout: Duration,
    /// How long a client may take nothing of its response
    pub write_timeout: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            max_body_bytes: 32 << 20,
            cors_origins: Vec::new(),
            drain: Duration::from_secs(300),
            tls: None,
            max_connections: 8192,
            max_head_bytes: 64 << 10,
            head_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
        }
    }
}

/// All routes.
pub fn router(app: Arc<App>, options: &HttpOptions) -> Router {
    let guarded = Router::new()
        .route("/v1/chat/completions", post(openai::chat::create))
        .route("/v1/completions", post(openai::completions::create))
        .route("/v1/embeddings", post(openai::embeddings::create))
        .route("/v1/responses", post(openai::responses::create))
        .route("/v1/messages", post(anthropic::create))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*name}", get(openai::models::get))
        .route("/tokenize", post(operations::tokenize))
        .route("/detokenize", post(operations::detokenize))
        .route("/metrics", get(operations::metrics))
        .route("/version", get(operations::version))
        .route("/server_info", get(operations::server_info))
        .route("/get_server_info", get(operations::server_info))
        .route("/model_info", get(operations::model_info))
        .route("/get_model_info", get(operations::model_info))
        .route("/v1/loads", get(operations::loads))
        .route("/get_load", get(operations::load))
        .route("/tokenizer_info", get(operations::tokenizer_info))
        .route("/openapi.json", get(openapi::document))
        .route("/v1/kv_events", get(operations::kv_events))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), admit));
    let max_body_bytes = options.max_body_bytes as u64;
    let mut router = Router::new()
        .route("/health", get(operations::health))
        .route("/ping", get(operations::health).post(operations::health))
        .merge(guarded)
        .merge(page::routes())
        .fallback(|| async { ApiError::not_found("there is nothing at this path; the routes begin with /v1/") })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(DefaultBodyLimit::max(options.max_body_bytes))
        .layer(middleware::from_fn(move |request, next| refuse_announced(max_body_bytes, request, next)))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), trace::request));
    if !options.cors_origins.is_empty() {
        let cors = CorsLayer::new()
            .allow_origin(AllowOrigin::list(options.cors_origins.iter().cloned()))
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(tower_http::cors::Any);
        router = router.layer(cors);
    }
    router.with_state(app)
}

/// Serves until `stop` resolves, then ends what is running within `options.drain`.
pub async fn serve(app: Arc<App>, listener: TcpListener, options: HttpOptions, stop: impl Future<Output = ()> + Send + 'static) {
    let router = router(Arc::clone(&app), &options);
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let drain = options.drain;
    let server = listen(listener, router, Arc::new(options), async move {
        stop.await;
        app.drain();
        tracing::info!("stopping: no more requests are taken");
        // The receiver waits as long as the server lives.
        let _ = stopping.send(());
    });
    let deadline = async {
        // An error means that the server ended by itself.
        let _ = stopped.await;
        tokio::time::sleep(drain).await;
    };
    tokio::select! {
        () = server => {}
        () = deadline => tracing::warn!("some requests did not end in {:?} and are cut off", drain),
    }
}

/// Refuses a body that says itself that it is too large, before it has come.
async fn refuse_announced(max_body_bytes: u64, request: Request, next: Next) -> Response {
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    match announced.filter(|&bytes| bytes > max_body_bytes) {
        Some(_) => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        None => next.run(request).await,
    }
}

/// Checks the key, and the limits of those who send work. The permit is held until the whole response has been sent.
async fn admit(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let client = match app.keys.client(request.headers()) {
        Ok(client) => client,
        Err(error) => return error.into_response(),
    };
    let permit = match (request.method() == Method::POST).then(|| client.admit()).transpose() {
        Ok(permit) => permit,
        Err(error) => return of_client(error.into_response(), client),
    };
    request.extensions_mut().insert(client.clone());
    let response = next.run(request).await;
    of_client(response.map(|body| Body::new(Held::new(body, permit))), client)
}

/// The response with whose it is, for its headers and its line in the log.
fn of_client(mut response: Response, client: Client) -> Response {
    response.extensions_mut().insert(client);
    response
}
