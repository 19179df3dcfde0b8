//! Chat templates: Jinja, rendered byte for byte as `transformers` renders it, and safe on any template.
//!
//! What bounds a hostile template: its size, the nesting depth of the parser, fuel (instructions and bytes), the size of the output,
//! and a thread with a stack of known size, so that neither compiling nor rendering can overflow the caller's.

mod functions;
mod json;
mod source;

use super::error::{Result, TextError, cap};
use minijinja::value::{Serde, Value};
use minijinja::{Environment, Error, syntax::SyntaxConfig};
use serde_json::Value as Json;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// Largest template source; the longest real ones have about 40 KB.
const MAX_TEMPLATE_BYTES: usize = 128 << 10;
/// Largest rendered prompt.
const MAX_OUTPUT_BYTES: usize = 32 << 20;
/// Instructions plus one for each 64 bytes produced. A conversation of 1,000 messages takes about 100,000.
const FUEL: u64 = 8_000_000;
/// Deepest nesting of messages, tools and arguments; JSON parsers stop at the same depth.
const MAX_DATA_DEPTH: usize = 128;
/// Enough for one stack frame per two bytes of source, which is the most that operators can nest.
const STACK_BYTES: usize = 256 << 20;

/// Variables that a request may set besides messages and tools. What the renderer itself sets is not among them.
pub const TEMPLATE_ARGUMENTS: [&str; 14] = [
    "add_vision_id",
    "builtin_tools",
    "clear_thinking",
    "custom_instructions",
    "date_string",
    "documents",
    "enable_thinking",
    "model_identity",
    "preserve_thinking",
    "python_tools",
    "reasoning_effort",
    "thinking",
    "thinking_budget",
    "tools_in_user_message",
];

/// What a rendering varies on besides the messages.
#[derive(Debug, Clone, Default)]
pub struct ChatOptions<'a> {
    /// Tool definitions (JSON schemas), as the `tools` of a request.
    pub tools: Option<&'a [Json]>,
    /// End with the header of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Further variables; each name must be one of [`TEMPLATE_ARGUMENTS`].
    pub arguments: serde_json::Map<String, Json>,
    /// The time that templates see, in seconds since 1970 (UTC); `None` is now.
    pub now_s: Option<i64>,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token`, … and their texts.
    tokens: Vec<(String, String)>,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles `source`; `tokens` are variables such as `bos_token` with their texts.
    ///
    /// # Errors
    /// A template that is too large, too deep, or not Jinja.
    pub fn new(source: &str, tokens: Vec<(String, String)>) -> Result<Self> {
        cap("the chat template", source.len(), MAX_TEMPLATE_BYTES, "bytes")?;
        let source = source::adapt(source)?;
        let environment = on_own_stack(|| {
            let mut environment = environment()?;
            environment.add_template_owned(NAME, source).map_err(|error| describe(&error))?;
            Ok(environment)
        })?;
        Ok(Self { environment, tokens })
    }

    /// Renders a conversation: `messages` as in an OpenAI request (`{"role", "content", …}`).
    ///
    /// # Errors
    /// [`TextError::Refused`] where the template raises an exception, [`TextError::Argument`] for a variable that may not be set,
    /// [`TextError::Template`] for anything else that stops it, limits included.
    pub fn render(&self, messages: &[Json], options: &ChatOptions) -> Result<String> {
        if let Some(name) = options.arguments.keys().find(|name| !TEMPLATE_ARGUMENTS.contains(&name.as_str())) {
            return Err(TextError::Argument { name: name.clone(), allowed: TEMPLATE_ARGUMENTS.join(", ") });
        }
        let data = messages.iter().chain(options.tools.into_iter().flatten()).chain(options.arguments.values());
        for value in data {
            check_depth(value)?;
        }
        on_own_stack(|| {
            let now_s = options.now_s.unwrap_or_else(|| {
                let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                i64::try_from(elapsed.as_secs()).unwrap_or_default()
            });
            let mut context: Vec<(String, Value)> = Vec::new();
            context.extend(self.tokens.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str()))));
            context.extend(options.arguments.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value)))));
            context.push(("messages".into(), Value::from(Serde(messages))));
            context.push(("tools".into(), options.tools.map_or(Value::from(()), |tools| Value::from(Serde(tools)))));
            if !options.arguments.contains_key("documents") {
                context.push(("documents".into(), Value::from(())));
            }
            context.push(("add_generation_prompt".into(), options.add_generation_prompt.into()));
            context.push(("strftime_now".into(), functions::strftime_now(now_s)));
            let mut output = Limited(Vec::new());
            let template = self.environment.get_template(NAME).map_err(|error| describe(&error))?;
            // A `Value` collected from pairs would be a list of pairs.
            let context = Value::from_pairs(context);
            template.render_captured_to(context, &mut output).map_err(|error| describe(&error))?;
            String::from_utf8(output.0).map_err(|error| TextError::Template { problem: error.to_string() })
        })
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

/// The environment that `transformers` sets up, as far as templates can tell.
fn environment() -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|error| describe(&error))?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    functions::install(&mut environment);
    Ok(environment)
}

/// Runs `work` on a thread with [`STACK_BYTES`] of stack; pages that stay untouched cost nothing.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat-template".into()).stack_size(STACK_BYTES).spawn_scoped(scope, work);
        match thread.map(|thread| thread.join()) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(TextError::Template { problem: "the template engine failed on it".into() }),
            Err(error) => Err(TextError::Template { problem: format!("no thread to render it: {error}") }),
        }
    })
}

/// The engine's error as ours: what it was, where, and why.
fn describe(error: &Error) -> TextError {
    let mut causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    if let Some(refusal) = causes.find_map(|cause| cause.downcast_ref::<functions::Refusal>()) {
        return TextError::Refused { message: refusal.0.clone() };
    }
    TextError::Template { problem: error.to_string() }
}

fn check_depth(value: &Json) -> Result<()> {
    let mut open = vec![(value, 1)];
    while let Some((value, depth)) = open.pop() {
        cap("a message, tool or argument", depth, MAX_DATA_DEPTH, "levels of nesting")?;
        match value {
            Json::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
            Json::Object(items) => open.extend(items.values().map(|item| (item, depth + 1))),
            _ => {}
        }
    }
    Ok(())
}

/// A buffer that refuses to grow past [`MAX_OUTPUT_BYTES`].
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other(format!("the prompt would be longer than {MAX_OUTPUT_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
