//! Errors in the shapes of the two APIs.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use ferrum_engine::SubmitError;
use ferrum_models::text::TextError;
use serde_json::{Value, json};

use crate::service::Refused;

/// Anything that ends a request. Becomes `{"error": {"message", "type", "param", "code"}}`.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub status: StatusCode,
    /// OpenAI's `type`, e.g. `invalid_request_error`
    pub kind: &'static str,
    /// The field of the request that is at fault
    pub param: Option<String>,
    pub code: Option<&'static str>,
    pub message: String,
    pub retry_after_s: Option<u32>,
}

pub type Result<T, E = ApiError> = std::result::Result<T, E>;

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, param: None, code: None, message: message.into(), retry_after_s: None }
    }

    /// 400: `param` is at fault.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message) }
    }

    /// 400 for a field of the API that this server does not honour.
    pub fn unsupported(param: &str) -> Self {
        let message = format!("`{param}` is not supported by this server; leave it out");
        Self { code: Some("unsupported_parameter"), ..Self::invalid(param, message) }
    }

    /// 400: the body as a whole is at fault.
    pub fn body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    pub fn unauthorized() -> Self {
        let message = "no valid API key: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`";
        Self { code: Some("invalid_api_key"), ..Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message) }
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    pub fn model_not_found(asked: &str, served: &str) -> Self {
        let message = format!("the model `{asked}` is not served here; this server has `{served}`");
        Self { param: Some("model".into()), code: Some("model_not_found"), ..Self::not_found(message) }
    }

    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "this path does not take that method")
    }

    /// 503: try again, here or elsewhere.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { retry_after_s: Some(5), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable_error", message) }
    }

    /// 429: this key sends too much.
    pub fn rate_limited(message: impl Into<String>, retry_after_s: u32) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        Self { code: Some("rate_limit_exceeded"), retry_after_s: Some(retry_after_s), ..error }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// The same in a route's own names: the first of `names` that `param` begins with is replaced.
    pub fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        if let Some(param) = &mut self.param
            && let Some((from, to)) = names.iter().find(|(from, _)| param.starts_with(from))
        {
            self.message = self.message.replace(&format!("`{from}"), &format!("`{to}"));
            *param = param.replacen(from, to, 1);
        }
        self
    }

    /// The body in OpenAI's shape.
    pub fn openai(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }

    /// The body in Anthropic's shape.
    pub fn anthropic(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        };
        let message = match &self.param {
            Some(param) if !self.message.contains(param.as_str()) => format!("{param}: {}", self.message),
            _ => self.message.clone(),
        };
        json!({"type": "error", "error": {"type": kind, "message": message}})
    }

    /// A response with this body.
    pub fn response(&self, body: Value) -> Response {
        let mut response = (self.status, Json(body)).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl IntoResponse for ApiError {
    /// In OpenAI's shape; `routes.rs` finds the error beside it and gives it the shape of the path's API.
    fn into_response(self) -> Response {
        let mut response = self.response(self.openai());
        response.extensions_mut().insert(self);
        response
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::Invalid { field, .. } => Self::invalid(field, message).renamed(&[("stop_tokens", "stop_token_ids")]),
            SubmitError::PromptTooLong { .. } | SubmitError::ContextExceeded { .. } => {
                Self { code: Some("context_length_exceeded"), ..Self::invalid("messages", message) }
            }
            SubmitError::QueueFull { .. } => Self::unavailable(message),
        }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Submit(error) => error.into(),
            Refused::Draining | Refused::Dead => Self::unavailable(refused.to_string()),
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        let message = error.to_string();
        match error {
            TextError::Argument { .. } => Self::invalid("chat_template_kwargs", message),
            TextError::NoChatTemplate => Self::invalid("messages", format!("{message}; use /v1/completions")),
            _ => Self::invalid("messages", message),
        }
    }
}
