//! OpenAI's two text routes: what requests look like, and what the events of an answer say.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, Visitor},
};
use serde_json::{Map, Value, json};

use super::{
    failure::Failure,
    workload::{Prompt, Request},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    Completions,
    Chat,
}

/// What a server understands.
#[derive(Clone, Debug, PartialEq)]
pub struct Dialect {
    pub api: Api,
    /// Whether prompts may be token ids
    pub ids: bool,
    /// Whether it can be told to go on behind the model's own end
    pub ignore_eos: bool,
    /// Whether it counts tokens at the end of a stream
    pub usage: bool,
    /// Whether the bound is called `max_completion_tokens`
    pub max_completion_tokens: bool,
}

/// What requests say beside their prompt.
#[derive(Clone, Debug)]
pub struct Common {
    pub model: String,
    pub temperature: f64,
    /// Further fields; they win over ours
    pub extra: Map<String, Value>,
}

impl Dialect {
    /// Behind the base address
    pub fn path(&self) -> &'static str {
        match self.api {
            Api::Completions => "/v1/completions",
            Api::Chat => "/v1/chat/completions",
        }
    }

    pub fn body(&self, common: &Common, request: &Request) -> Vec<u8> {
        let mut body = json!({"model": common.model, "stream": true, "temperature": common.temperature});
        match (&request.prompt, self.api) {
            (Prompt::Ids(ids), _) => body["prompt"] = ids.as_slice().into(),
            (Prompt::Text(text), Api::Completions) => body["prompt"] = text.as_str().into(),
            (Prompt::Text(text), Api::Chat) => body["messages"] = json!([{"role": "user", "content": text}]),
        }
        let bound = if self.max_completion_tokens { "max_completion_tokens" } else { "max_tokens" };
        body[bound] = request.output_tokens.into();
        if self.ignore_eos && request.exact {
            body["ignore_eos"] = true.into();
        }
        if self.usage {
            body["stream_options"] = json!({"include_usage": true});
        }
        for (name, value) in &common.extra {
            body[name] = value.clone();
        }
        body.to_string().into_bytes()
    }

    /// What to try after the server refused this one; `None` where nothing is left.
    pub fn without_what_was_refused(&self, refusal: &Failure, any_api: bool) -> Option<Self> {
        let status = refusal.status?;
        let named = |name: &str| refusal.message.contains(name);
        let less = self.clone();
        match status {
            400 | 422 | 500 | 501 if self.ignore_eos && named("ignore_eos") => Some(Self { ignore_eos: false, ..less }),
            400 | 422 | 500 | 501 if self.usage && (named("stream_options") || named("include_usage")) => {
                Some(Self { usage: false, ..less })
            }
            400 | 422 if !self.max_completion_tokens && named("max_completion_tokens") => {
                Some(Self { max_completion_tokens: true, ..less })
            }
            404 | 405 | 501 if any_api && self.api == Api::Completions => Some(Self { api: Api::Chat, ids: false, ..less }),
            // It does not say what it dislikes, so one after the other is left out.
            400 | 422 | 500 if self.ids => Some(Self { ids: false, ..less }),
            400 | 422 if self.ignore_eos => Some(Self { ignore_eos: false, ..less }),
            400 | 422 if self.usage => Some(Self { usage: false, ..less }),
            400 | 422 if any_api && self.api == Api::Completions => Some(Self { api: Api::Chat, ids: false, ..less }),
            _ => None,
        }
    }
}

/// What one event says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Whether it brought a part of the answer
    pub token: bool,
    /// Whether the answer has ended
    pub finished: bool,
    pub usage: Option<Usage>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    pub prompt_tokens: usize,
    #[serde(default)]
    pub completion_tokens: usize,
    #[serde(default)]
    pub prompt_tokens_details: Option<Details>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Details {
    #[serde(default)]
    pub cached_tokens: Option<usize>,
}

/// Reads the data of an event.
///
/// # Errors
/// When it is not JSON, or says that the request failed.
pub fn part(data: &[u8]) -> Result<Part, Failure> {
    if data == b"[DONE]" {
        return Ok(Part { finished: true, ..Part::default() });
    }
    let event: Event = serde_json::from_slice(data)
        .map_err(|error| Failure::new("malformed", format!("{error} in the event {}", String::from_utf8_lossy(data))))?;
    if let Some(error) = event.error {
        let message = error.get("message").and_then(Value::as_str).map_or_else(|| error.to_string(), str::to_owned);
        return Err(Failure::new("in stream", message));
    }
    let choice = event.choices.into_iter().flatten().next().unwrap_or_default();
    let finished = choice.finish_reason.is_some();
    let delta = choice.delta.unwrap_or_default();
    let says = |text: Option<Text>| text == Some(Text::Some);
    let chat = says(delta.content)
        || says(delta.reasoning_content)
        || says(delta.reasoning)
        || delta.tool_calls.is_some_and(|calls| !calls.is_empty());
    // A token may have no text of its own, like a part of a character. In a chat, an empty text announces the role.
    let completion = match choice.text {
        Some(Text::Some) => true,
        Some(Text::Empty) => !finished,
        None => false,
    };
    Ok(Part { token: chat || completion, finished, usage: event.usage })
}

#[derive(Deserialize)]
struct Event {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Default, Deserialize)]
struct Choice {
    text: Option<Text>,
    delta: Option<Delta>,
    finish_reason: Option<Text>,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<Text>,
    reasoning_content: Option<Text>,
    reasoning: Option<Text>,
    tool_calls: Option<Vec<IgnoredAny>>,
}

/// A text of which only this is of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Empty,
    Some,
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IsEmpty;
        impl Visitor<'_> for IsEmpty {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(if text.is_empty() { Text::Empty } else { Text::Some })
            }
        }
        deserializer.deserialize_str(IsEmpty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Dialect = Dialect { api: Api::Completions, ids: true, ignore_eos: true, usage: true, max_completion_tokens: false };

    fn read(event: Value) -> Part {
        part(event.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn events_with_text_are_tokens() {
        let token = |choice: Value| read(json!({"id": "x", "choices": [choice]})).token;
        assert!(token(json!({"text": "a", "finish_reason": null})));
        assert!(token(json!({"text": ""})));
        assert!(!token(json!({"text": "", "finish_reason": "length"})));
        assert!(token(json!({"text": "a", "finish_reason": "length"})));
        assert!(!token(json!({"delta": {"role": "assistant", "content": ""}})));
        assert!(!token(json!({"delta": {"role": "assistant", "content": null}})));
        assert!(!token(json!({"delta": {"role": "assistant", "content": null, "tool_calls": []}})));
        assert!(!token(json!({"delta": {}, "finish_reason": "stop"})));
        for field in ["content", "reasoning_content", "reasoning"] {
            assert!(token(json!({"delta": {field: "\n"}})));
        }
        assert!(token(json!({"delta": {"tool_calls": [{"index": 0}]}})));
    }

    #[test]
    fn ends_and_counts_are_found() {
        assert!(part(b"[DONE]").unwrap().finished);
        assert!(read(json!({"choices": [{"text": "", "finish_reason": "stop"}]})).finished);
        let usage = read(json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}})).usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (5, 7));
        let details = json!({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}});
        assert_eq!(read(json!({"usage": details})).usage.unwrap().prompt_tokens_details.unwrap().cached_tokens, Some(4));
        assert_eq!(read(json!({"choices": null, "usage": null})), Part::default());
    }

    #[test]
    fn errors_within_a_stream_are_failures() {
        let failed = part(br#"{"error": {"message": "out of memory", "code": 500}}"#).unwrap_err();
        assert_eq!((failed.kind.as_str(), failed.message.as_str()), ("in stream", "out of memory"));
        assert_eq!(part(b"{\"choices\": [").unwrap_err().kind, "malformed");
    }

    #[test]
    fn bodies_say_what_the_server_understands() {
        let common = Common { model: "m".into(), temperature: 0.5, extra: json!({"top_k": 1}).as_object().unwrap().clone() };
        let request = Request { prompt: Prompt::Ids(vec![1, 2]), input_tokens: Some(2), output_tokens: 3, exact: true };
        let body = |dialect: &Dialect, request: &Request| serde_json::from_slice::<Value>(&dialect.body(&common, request)).unwrap();
        let all = json!({"model": "m", "stream": true, "temperature": 0.5, "prompt": [1, 2], "max_tokens": 3, "ignore_eos": true,
            "stream_options": {"include_usage": true}, "top_k": 1});
        assert_eq!(body(&FULL, &request), all);
        let least = Dialect { api: Api::Chat, ids: false, ignore_eos: false, usage: false, max_completion_tokens: true };
        let text = Request { prompt: Prompt::Text("hi".into()), ..request.clone() };
        let chat = json!({"model": "m", "stream": true, "temperature": 0.5, "messages": [{"role": "user", "content": "hi"}],
            "max_completion_tokens": 3, "top_k": 1});
        assert_eq!(body(&least, &text), chat);
        // Where the model may end the answer, it is not told to go on.
        assert!(body(&FULL, &Request { exact: false, ..request }).get("ignore_eos").is_none());
    }

    #[test]
    fn refused_fields_are_left_out_by_name_and_else_one_by_one() {
        let next =
            |dialect: &Dialect, status, message: &str| dialect.without_what_was_refused(&Failure::http(status, message.as_bytes()), true);
        assert_eq!(next(&FULL, 400, "unknown field ignore_eos"), Some(Dialect { ignore_eos: false, ..FULL }));
        assert_eq!(next(&FULL, 422, "stream_options"), Some(Dialect { usage: false, ..FULL }));
        assert_eq!(next(&FULL, 400, "use max_completion_tokens instead"), Some(Dialect { max_completion_tokens: true, ..FULL }));
        assert_eq!(next(&FULL, 404, "not found"), Some(Dialect { api: Api::Chat, ids: false, ..FULL }));
        let (mut dialect, mut steps) = (FULL, 0);
        while let Some(less) = next(&dialect, 400, "no") {
            (dialect, steps) = (less, steps + 1);
        }
        assert_eq!((steps, dialect), (4, Dialect { api: Api::Chat, ids: false, ignore_eos: false, usage: false, ..FULL }));
        assert_eq!(next(&FULL, 401, "no key"), None);
        assert_eq!(FULL.without_what_was_refused(&Failure::http(404, b""), false), None);
    }
}
