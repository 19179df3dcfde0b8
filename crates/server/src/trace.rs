//! What is told of every request: its id, its place in a distributed trace, and one line of the log when it has ended.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{
    app::App,
    connection::BodyDeadline,
    error::ApiError,
    held::{Held, Watch},
    limits::Client,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The same in Anthropic's API
const ANTHROPIC_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const MAX_ID_BYTES: usize = 128;

/// Gives the request an id and a place in its trace, and puts errors, those that axum makes itself too, into the API's shape. The
/// line of the log is written when the response has been sent, or its client has gone.
pub async fn request(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let sent = request.headers().get(&REQUEST_ID).filter(|id| id.len() <= MAX_ID_BYTES).cloned();
    let id = sent.unwrap_or_else(|| HeaderValue::from_str(&app.id("")).unwrap_or(HeaderValue::from_static("")));
    let trace = TraceParent::of(request.headers());
    let span = trace.map(|parent| TraceParent { span_id: app.random() | 1, ..parent });
    let path = request.extensions().get::<MatchedPath>().map_or_else(|| request.uri().path().to_owned(), |path| path.as_str().to_owned());
    let mut line = Line {
        started: Instant::now(),
        method: request.method().to_string(),
        path,
        request_id: id.to_str().unwrap_or_default().to_owned(),
        key: None,
        parent: trace,
        span,
        answered: None,
        bytes: 0,
        ended: false,
    };
    let deadline = request.extensions().get::<BodyDeadline>().cloned();
    let is_head = request.method() == Method::HEAD;
    let mut response = next.run(request).await;
    let client = response.extensions_mut().remove::<Client>();
    if let Some(error) = axums_own(&response, deadline) {
        let closes = error.status == StatusCode::REQUEST_TIMEOUT;
        response = error.into_response();
        if closes {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    if line.path.starts_with("/v1/messages") {
        if let Some(error) = response.extensions_mut().remove::<ApiError>() {
            let connection = response.headers_mut().remove(header::CONNECTION);
            let mut body = error.anthropic();
            body["request_id"] = line.request_id.as_str().into();
            response = error.response(body);
            response.headers_mut().extend(connection.map(|value| (header::CONNECTION, value)));
        }
        response.headers_mut().insert(ANTHROPIC_REQUEST_ID, id.clone());
    }
    if let Some(client) = &client {
        client.tell(response.headers_mut());
    }
    response.headers_mut().insert(REQUEST_ID, id);
    if let Some(value) = span.and_then(|span| HeaderValue::from_str(&span.to_string()).ok()) {
        response.headers_mut().insert(TRACE_PARENT, value);
    }
    line.key = client.as_ref().and_then(|client| client.name().map(str::to_owned));
    line.answered = Some((response.status(), line.started.elapsed()));
    // Such a body is never asked for.
    line.ended = is_head || response.body().is_end_stream();
    response.map(|body| Body::new(Held::new(body, line)))
}

/// The error in the place of a response that axum made itself, in plain text.
fn axums_own(response: &Response, deadline: Option<BodyDeadline>) -> Option<ApiError> {
    if response.extensions().get::<ApiError>().is_some() {
        return None;
    }
    match response.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Some(ApiError::body("the body is larger than this server takes").status(StatusCode::PAYLOAD_TOO_LARGE))
        }
        StatusCode::BAD_REQUEST => Some(match deadline.filter(BodyDeadline::has_passed) {
            Some(deadline) => {
                ApiError::body(format!("the body did not come within {:?}", deadline.time())).status(StatusCode::REQUEST_TIMEOUT)
            }
            None => ApiError::body("the body cannot be read: it ended early, or its framing is wrong"),
        }),
        _ => None,
    }
}

/// A request in the log.
struct Line {
    started: Instant,
    method: String,
    path: String,
    request_id: String,
    /// The name of the API key
    key: Option<String>,
    parent: Option<TraceParent>,
    span: Option<TraceParent>,
    /// The status, and when it was there; `None`: the client left before
    answered: Option<(StatusCode, Duration)>,
    bytes: usize,
    ended: bool,
}

impl Watch for Line {
    fn sent(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    fn ended(&mut self) {
        self.ended = true;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let ms = |time: Duration| time.as_micros() as f64 / 1e3;
        let hex = |id: u64| format!("{id:016x}");
        tracing::info!(
            method = self.method,
            path = self.path,
            status = self.answered.map(|(status, _)| status.as_u16()),
            ms = ms(self.started.elapsed()),
            first_byte_ms = self.answered.map(|(_, time)| ms(time)),
            bytes = self.bytes,
            ended = self.ended,
            request_id = self.request_id,
            key = self.key,
            trace_id = self.span.map(|span| format!("{:032x}", span.trace_id)),
            span_id = self.span.map(|span| hex(span.span_id)),
            parent_id = self.parent.map(|parent| hex(parent.span_id)),
            "request"
        );
    }
}

/// A `traceparent` header (W3C Trace Context, level 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TraceParent {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

impl TraceParent {
    /// `None` where there is none, several, or one that is malformed: all these are as if there were none.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(&TRACE_PARENT).iter();
        let (value, more) = (values.next()?, values.next());
        Self::parse(value.to_str().ok()?).filter(|_| more.is_none())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim_matches([' ', '\t']).splitn(5, '-');
        let mut field = |digits: usize| {
            let part = parts.next()?;
            let is_hex = part.len() == digits && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            if is_hex { u128::from_str_radix(part, 16).ok() } else { None }
        };
        let (version, trace_id, span_id, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        // Later versions may have more fields behind these.
        let fits = version != 0xff && (version > 0 || parts.next().is_none());
        (fits && trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id: span_id as u64, flags: flags as u8 })
    }
}

impl fmt::Display for TraceParent {
    /// As version 00, which knows one flag: whether the caller records the trace.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags & 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "1122334455667788";

    #[test]
    fn well_formed_parents_are_read() {
        let want = TraceParent { trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, span_id: 0x1122_3344_5566_7788, flags: 1 };
        for text in [format!("00-{TRACE}-{SPAN}-01"), format!(" 00-{TRACE}-{SPAN}-01\t"), format!("cc-{TRACE}-{SPAN}-01-what-else")] {
            assert_eq!(TraceParent::parse(&text), Some(want), "{text}");
        }
        assert_eq!(want.to_string(), format!("00-{TRACE}-{SPAN}-01"));
        assert_eq!(TraceParent { flags: 0xff, ..want }.to_string(), want.to_string());
    }

    #[test]
    fn malformed_parents_are_none() {
        let zeros = "0".repeat(32);
        for text in [
            String::new(),
            "00".into(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", &zeros[..16]),
            format!("00-{}-{SPAN}-01", &TRACE[1..]),
            format!("00-{TRACE}-+122334455667788-01"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("0é-{TRACE}-{SPAN}-01"),
        ] {
            assert_eq!(TraceParent::parse(&text), None, "{text}");
        }
        let value: HeaderValue = format!("00-{TRACE}-{SPAN}-01").parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.append(&TRACE_PARENT, value.clone());
        assert!(TraceParent::of(&headers).is_some());
        headers.append(&TRACE_PARENT, value);
        assert_eq!(TraceParent::of(&headers), None, "two are none");
    }
}
