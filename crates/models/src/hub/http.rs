//! The HTTP side of the Hugging Face source: one GET that follows redirects itself, so that the token goes nowhere else.

use super::HubError;
use std::time::Duration;
use ureq::http::{HeaderMap, Uri, header};

const MAX_REDIRECTS: usize = 8;
const MAX_JSON_BYTES: u64 = 32 << 20;
const TIMEOUT_CONNECT: Duration = Duration::from_secs(15);
/// A transfer that stays silent this long counts as broken, and is resumed.
const TIMEOUT_READ: Duration = Duration::from_secs(60);

/// Access token; never printed.
#[derive(Clone)]
pub struct Token(pub String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(***)")
    }
}

#[derive(Debug)]
pub(crate) struct Http {
    agent: ureq::Agent,
    endpoint: String,
    origin: Origin,
    token: Option<Token>,
}

/// An answer with status 200 or 206.
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Headers of the endpoint's own answer, before any redirect: they describe the file, the rest only its storage.
    pub(crate) first: HeaderMap,
    pub(crate) headers: HeaderMap,
    pub(crate) body: ureq::Body,
}

impl Http {
    pub(crate) fn new(endpoint: &str, token: Option<Token>) -> Result<Http, HubError> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let origin = Origin::of(&endpoint)?;
        let agent = ureq::Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(TIMEOUT_CONNECT))
            .timeout_per_read(Some(TIMEOUT_READ))
            .user_agent(concat!("ferrum/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Http { agent, endpoint, origin, token })
    }

    /// The endpoint joined with path segments, each percent-encoded; a segment's own `/` separates.
    pub(crate) fn url(&self, path: &str) -> String {
        let mut url = format!("{}/", self.endpoint);
        for byte in path.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => url.push(char::from(byte)),
                _ => url.push_str(&format!("%{byte:02X}")),
            }
        }
        url
    }

    /// GETs `url`, from byte `from` on when that is not 0.
    ///
    /// # Errors
    /// [`HubError::Network`] when the same request may succeed later, [`HubError::Status`] for other answers.
    pub(crate) fn get(&self, url: &str, from: u64) -> Result<Reply, HubError> {
        let mut at = url.to_owned();
        let mut first: Option<HeaderMap> = None;
        for _ in 0..=MAX_REDIRECTS {
            let origin = Origin::of(&at)?;
            let mut request = self.agent.get(&at).header(header::ACCEPT_ENCODING, "identity");
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            if let Some(Token(token)) = self.token.as_ref().filter(|_| origin == self.origin) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = request.call().map_err(|e| HubError::Network { url: at.clone(), why: e.to_string() })?;
            let (parts, body) = response.into_parts();
            let status = parts.status.as_u16();
            let first_headers = first.get_or_insert_with(|| parts.headers.clone()).clone();
            match status {
                200 | 206 => return Ok(Reply { status, first: first_headers, headers: parts.headers, body }),
                301 | 302 | 303 | 307 | 308 => {
                    let location = parts.headers.get(header::LOCATION).and_then(|v| v.to_str().ok());
                    let next = location.and_then(|l| join(&at, l)).ok_or_else(|| bad_reply(&at, "a redirect without a usable target"))?;
                    if at.starts_with("https://") && !next.starts_with("https://") {
                        return Err(bad_reply(&at, "a redirect from https to an unencrypted address"));
                    }
                    at = next;
                }
                429 | 500..=599 => {
                    return Err(HubError::Network { url: at, why: format!("the server answered {status}, try again later") });
                }
                _ => return Err(HubError::Status { url: at, status, hint: self.hint(status) }),
            }
        }
        Err(bad_reply(url, "too many redirects"))
    }

    /// GETs a JSON document of at most 32 MiB.
    ///
    /// # Errors
    /// As [`Http::get`], and [`HubError::BadReply`] for a body that is too long or not of the expected form.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, HubError> {
        let mut reply = self.get(url, 0)?;
        let text = reply.body.with_config().limit(MAX_JSON_BYTES).read_to_vec().map_err(|e| bad_reply(url, &e.to_string()))?;
        serde_json::from_slice(&text).map_err(|e| bad_reply(url, &format!("not the expected JSON: {e}")))
    }

    fn hint(&self, status: u16) -> String {
        match (status, &self.token) {
            (401 | 403 | 404, None) => {
                "Check the spelling; if the model is private or gated, accept its terms on its page and set HF_TOKEN to your access token"
                    .to_owned()
            }
            (401 | 403, Some(_)) => {
                "The token was sent but gives no access: accept the model's terms on its page with the same account".to_owned()
            }
            (404, Some(_)) => "Check the spelling of the model, file and revision".to_owned(),
            _ => "Check the endpoint".to_owned(),
        }
    }
}

pub(crate) fn bad_reply(url: &str, why: &str) -> HubError {
    HubError::BadReply { url: url.to_owned(), why: why.to_owned() }
}

/// Scheme, host and port: what a token is bound to.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    https: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn of(url: &str) -> Result<Origin, HubError> {
        let uri: Uri = url.parse().map_err(|_| bad_reply(url, "not a valid address"))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad_reply(url, "only http and https addresses are followed")),
        };
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(|| bad_reply(url, "the address has no host"))?;
        Ok(Origin { https, host: host.to_ascii_lowercase(), port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }) })
    }
}

/// Resolves a `Location` against the address that sent it.
fn join(base: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    let (scheme, rest) = base.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    if location.starts_with("//") {
        Some(format!("{scheme}:{location}"))
    } else if location.starts_with('/') {
        Some(format!("{scheme}://{authority}{location}"))
    } else if location.is_empty() || location.contains(':') {
        None
    } else {
        let path = rest[authority.len()..].split(['?', '#']).next()?;
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        Some(format!("{scheme}://{authority}{folder}/{location}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_do_not_confuse_user_names_ports_or_schemes() {
        let hub = Origin::of("https://hub.example/a").unwrap();
        assert_eq!(hub, Origin::of("https://HUB.example:443/b").unwrap());
        for other in
            ["http://hub.example/", "https://hub.example:444/", "https://hub.example@evil.example/", "https://hub.example.evil.example/"]
        {
            assert_ne!(hub, Origin::of(other).unwrap(), "{other}");
        }
        for bad in ["ftp://hub.example/", "hub.example/x", "file:///etc/passwd", ""] {
            assert!(Origin::of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn locations() {
        let base = "https://h:1/a/b?q=1";
        assert_eq!(join(base, "/c").unwrap(), "https://h:1/c");
        assert_eq!(join(base, "c").unwrap(), "https://h:1/a/c");
        assert_eq!(join(base, "//other/c").unwrap(), "https://other/c");
        assert_eq!(join(base, "http://x/y").unwrap(), "http://x/y");
        assert_eq!(join(base, "file:///etc/passwd"), None);
    }

    #[test]
    fn a_token_is_not_printed() {
        assert!(!format!("{:?}", Http::new("http://h", Some(Token("secret".into()))).unwrap()).contains("secret"));
    }
}
