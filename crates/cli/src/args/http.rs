//! What the HTTP side of `ferrum serve` takes, and from whom.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use clap::{Args, ValueEnum, value_parser};
use ferrum_server::{HttpOptions, KeyLimits, Keys, Tls};

#[derive(Debug, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Only requests with this key are answered; may be given several times
    #[arg(long, value_name = "KEY")]
    pub api_key: Vec<String>,
    /// File with one API key a line, and its own limits behind it where it has some: name=NAME, max-concurrent=N,
    /// requests-per-minute=N, tokens-per-minute=N
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Requests that one API key may have running
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub max_concurrent_per_key: Option<u32>,
    /// Requests that one API key may send in a minute
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub max_per_minute_per_key: Option<u32>,
    /// Tokens that may be computed for one API key in a minute
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub max_tokens_per_minute_per_key: Option<u32>,
    /// Speak TLS with the certificates in this PEM file, the server's own first
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of the certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Web page that may send requests from a browser, e.g. https://example.org; may be given several times
    #[arg(long, value_name = "ORIGIN")]
    pub cors_origin: Vec<String>,
    /// Connections at once; more wait to be accepted
    #[arg(long, value_name = "N", default_value_t = HttpOptions::default().max_connections, value_parser = value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// Longest request line with headers, in KiB
    #[arg(long, value_name = "KIB", default_value_t = (HttpOptions::default().max_head_bytes >> 10) as u32, value_parser = value_parser!(u32).range(8..=1024))]
    pub max_head_kib: u32,
    /// Largest request body in MiB
    #[arg(long, value_name = "MIB", default_value_t = (HttpOptions::default().max_body_bytes >> 20) as u32, value_parser = value_parser!(u32).range(1..=4096))]
    pub max_body_mib: u32,
    /// Seconds that a request line with headers may take to come
    #[arg(long, value_name = "S", default_value_t = seconds(|o| o.head_timeout), value_parser = value_parser!(u32).range(1..))]
    pub head_timeout_s: u32,
    /// Seconds that a request's body may take to come
    #[arg(long, value_name = "S", default_value_t = seconds(|o| o.body_timeout), value_parser = value_parser!(u32).range(1..))]
    pub body_timeout_s: u32,
    /// Seconds that a connection is kept in front of its next request
    #[arg(long, value_name = "S", default_value_t = seconds(|o| o.idle_timeout), value_parser = value_parser!(u32).range(1..))]
    pub idle_timeout_s: u32,
    /// Seconds that a client may take nothing of its response
    #[arg(long, value_name = "S", default_value_t = seconds(|o| o.write_timeout), value_parser = value_parser!(u32).range(1..))]
    pub write_timeout_s: u32,
    /// Seconds that running requests get to end after SIGTERM
    #[arg(long, value_name = "S", default_value_t = seconds(|o| o.drain))]
    pub drain_s: u32,
}

/// A default in whole seconds.
fn seconds(of: impl FnOnce(HttpOptions) -> Duration) -> u32 {
    of(HttpOptions::default()).as_secs() as u32
}

impl HttpArgs {
    /// # Errors
    /// When a key is empty or there twice, or the file of keys cannot be read.
    pub fn keys(&self) -> anyhow::Result<Keys> {
        let limits = KeyLimits {
            concurrent: self.max_concurrent_per_key,
            requests_per_minute: self.max_per_minute_per_key,
            tokens_per_minute: self.max_tokens_per_minute_per_key,
        };
        let mut keys = Keys::new(self.api_key.clone(), limits).context("--api-key")?;
        if let Some(file) = &self.api_key_file {
            keys.add_file(file).with_context(|| format!("cannot read the API keys in {}", file.display()))?;
        }
        Ok(keys)
    }

    /// # Errors
    /// When an origin is none, or there is no TLS with the certificate and the key.
    pub fn options(&self) -> anyhow::Result<HttpOptions> {
        let origins = self.cors_origin.iter().map(|o| o.parse().with_context(|| format!("--cors-origin {o}")));
        let seconds = |s: u32| Duration::from_secs(s.into());
        let tls = self.tls_cert.as_ref().zip(self.tls_key.as_ref()).map(|(certificate, key)| Tls::read(certificate, key)).transpose()?;
        Ok(HttpOptions {
            tls,
            max_body_bytes: (self.max_body_mib as usize) << 20,
            max_head_bytes: (self.max_head_kib as usize) << 10,
            max_connections: self.max_connections,
            cors_origins: origins.collect::<anyhow::Result<_>>()?,
            drain: seconds(self.drain_s),
            head_timeout: seconds(self.head_timeout_s),
            body_timeout: seconds(self.body_timeout_s),
            idle_timeout: seconds(self.idle_timeout_s),
            write_timeout: seconds(self.write_timeout_s),
        })
    }
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One object a line
    Json,
}
