//! Why a request failed.

use std::fmt;

/// What went wrong, by kind, so that failures can be counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// `connect`, `tls`, `http 503`, `timeout`, `in stream`, `cut off`, `malformed`, `no tokens`
    pub kind: String,
    pub message: String,
    /// The status, where the server answered with another than 200
    pub status: Option<u16>,
}

/// Characters of a server's message that are kept.
const MAX_MESSAGE_CHARS: usize = 400;

/// A text of the server's as one line that moves no cursor and sets no colour.
pub fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}

impl Failure {
    pub fn new(kind: &str, message: impl fmt::Display) -> Self {
        let message = printable(&message.to_string()).chars().take(MAX_MESSAGE_CHARS).collect();
        Self { kind: kind.to_owned(), message, status: None }
    }

    /// The server said no; its reason is in `body` in one of the shapes that servers use, or as plain text.
    pub fn http(status: u16, body: &[u8]) -> Self {
        let json = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
        let places = ["/error/message", "/message", "/detail", "/error"];
        let said = places.iter().find_map(|place| json.pointer(place)).map(|said| said.as_str().map_or(said.to_string(), str::to_owned));
        let message = said.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
        Self { status: Some(status), ..Self::new(&format!("http {status}"), message) }
    }

    /// An error with its causes.
    pub fn caused(kind: &str, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message += &format!(": {error}");
            cause = error.source();
        }
        Self::new(kind, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_reason_is_found_in_every_usual_shape() {
        let reason = |body: &str| Failure::http(400, body.as_bytes()).message;
        assert_eq!(reason(r#"{"error": {"message": "too long", "code": 1}}"#), "too long");
        assert_eq!(reason(r#"{"object": "error", "message": "too long"}"#), "too long");
        assert_eq!(reason(r#"{"detail": [{"loc": ["body"]}]}"#), r#"[{"loc":["body"]}]"#);
        assert_eq!(reason(r#"{"error": "too long"}"#), "too long");
        assert_eq!(reason(" <html> "), "<html>");
        assert_eq!(reason("{\"error\": \"\\u001b[2J\\r\\nno\\u009b\"}"), " [2J  no ");
        assert_eq!(reason(&"x".repeat(9999)).len(), MAX_MESSAGE_CHARS);
        assert_eq!(Failure::http(503, b"").to_string(), "http 503");
    }
}
