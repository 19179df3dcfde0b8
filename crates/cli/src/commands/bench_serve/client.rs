//! One request: sent, streamed, timed.

use std::time::{Duration, Instant};

use hyper::header;

use super::{
    api::{self, Common, Dialect},
    failure::Failure,
    http::Server,
    record::{Asked, Record},
    sse::Events,
    workload::Request,
};

/// Tokens of an answer for whose times there is room from the start: a file may name any number.
const MAX_ROOM: usize = 4096;

/// A server, and how it is spoken to.
pub struct Client {
    pub server: Server,
    pub dialect: Dialect,
    pub common: Common,
    /// For a whole request
    pub timeout: Duration,
}

impl Client {
    /// Sends the request and reads its answer to the end.
    pub async fn ask(&self, request: &Request) -> Record {
        let body = self.dialect.body(&self.common, request);
        let asked = Asked { prompt_tokens: request.input_tokens, output_tokens: request.exact.then_some(request.output_tokens) };
        let prompt_tokens = request.input_tokens.unwrap_or(0);
        let tokens_s = Vec::with_capacity(request.output_tokens.min(MAX_ROOM));
        let mut record = Record { prompt_tokens, asked, tokens_s, ..Record::default() };
        let begun = Instant::now();
        let result = tokio::time::timeout(self.timeout, self.stream(body, begun, &mut record)).await;
        record.end_s = begun.elapsed().as_secs_f64();
        let slow = |_| Err(Failure::new("timeout", format!("no end of the answer within {:?}", self.timeout)));
        record.failure = result.unwrap_or_else(slow).err();
        record
    }

    async fn stream(&self, body: Vec<u8>, begun: Instant, record: &mut Record) -> Result<(), Failure> {
        let answer = self.server.post(self.dialect.path(), body).await?;
        let kind = answer.response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
        if !kind.starts_with("text/event-stream") {
            return Err(Failure::new("malformed", format!("the answer is `{kind}` and no stream of events")));
        }
        let (mut events, mut finished, mut usage) = (Events::default(), false, None);
        let piece = |bytes: &[u8]| {
            let now = begun.elapsed().as_secs_f64();
            events.feed(bytes, |data| {
                let part = api::part(data)?;
                if part.token {
                    record.tokens_s.push(now);
                }
                finished |= part.finished;
                usage = part.usage.or(usage);
                Ok(())
            })
        };
        self.server.read(answer, piece).await?;
        if !finished {
            return Err(Failure::new("cut off", "the stream ended before the answer did"));
        }
        if record.tokens_s.is_empty() {
            return Err(Failure::new("no tokens", "the answer is empty"));
        }
        record.output_tokens = record.tokens_s.len();
        if let Some(usage) = usage {
            record.counted = true;
            record.prompt_tokens = usage.prompt_tokens;
            record.output_tokens = usage.completion_tokens;
            record.cached_tokens = usage.prompt_tokens_details.and_then(|details| details.cached_tokens);
        }
        Ok(())
    }
}
