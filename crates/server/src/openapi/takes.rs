//! The fields of request bodies. [`Fields`](crate::fields::Fields) checks them by these tables, and in debug builds lets nothing
//! be read that is not here.

use ferrum_engine::{MAX_LOGPROBS, MAX_TOKENS};
use serde_json::Value;

use crate::{
    error::{ApiError, Result},
    fields::wrong,
    sampling::MAX_CHOICES,
};

/// A field: its name, what it must be, and what it does.
#[derive(Debug)]
pub struct Field(pub &'static str, pub Kind, pub &'static str);

/// What a field must be. `null` is the same as leaving it out.
#[derive(Debug)]
pub enum Kind {
    /// A number in this range
    Number(f64, f64),
    /// An integer in this range
    Integer(i64, i64),
    Boolean,
    Text,
    OneOf(&'static [&'static str]),
    Object,
    /// false, because true is not honoured
    False,
    /// As this schema says, which whoever reads it checks
    Schema(&'static str),
    /// Changes the answer and is not honoured, so it must be left out
    Refused,
}

use Kind::{Boolean, False, Integer, Number, Object, OneOf, Refused, Schema, Text};

impl Field {
    /// # Errors
    /// When `value` is not what the field must be.
    pub fn check(&self, value: &Value) -> Result<()> {
        let &Self(name, ref kind, _) = self;
        let (ok, expected) = match *kind {
            Number(least, most) => {
                (value.as_f64().is_some_and(|n| (least..=most).contains(&n)), format!("a number from {least} to {most}"))
            }
            Integer(least, most) => {
                (value.as_i64().is_some_and(|n| (least..=most).contains(&n)), format!("an integer from {least} to {most}"))
            }
            Boolean => (value.is_boolean(), "true or false".into()),
            Text => (value.is_string(), "a string".into()),
            OneOf(texts) => (texts.iter().any(|text| value == text), texts.join(" or ")),
            Object => (value.is_object(), "an object".into()),
            False if *value == Value::Bool(true) => return Err(ApiError::unsupported(name)),
            False => (value.is_boolean(), "false".into()),
            Schema(_) => (true, String::new()),
            Refused => return Err(ApiError::unsupported(name)),
        };
        if ok { Ok(()) } else { Err(wrong(name, value, &expected)) }
    }
}

/// The body of a route.
#[derive(Debug)]
pub struct Request {
    fields: &'static [&'static [Field]],
    pub required: &'static [&'static str],
}

impl Request {
    pub fn fields(&self) -> impl Iterator<Item = &'static Field> {
        self.fields.iter().copied().flatten()
    }
}

const MOST_LOGPROBS: Kind = Integer(0, MAX_LOGPROBS as i64);
const SOME_TOKENS: Kind = Integer(1, MAX_TOKENS as i64);
const SOME_CHOICES: Kind = Integer(1, MAX_CHOICES as i64);

const MODEL: Field = Field("model", Schema("ModelName"), "Left out, it is the one model of this server");

/// How tokens are drawn, and who is served first.
const DRAWING: &[Field] = &[
    Field("temperature", Number(0.0, 100.0), "0 takes the likeliest token"),
    Field("top_k", Integer(-1, i64::MAX), "Draw from the likeliest so many; 0 or -1: from all"),
    Field("top_p", Number(0.0, 1.0), "Draw from the likeliest that have this probability together"),
    Field("min_p", Number(0.0, 1.0), "Draw from those that have at least this part of the likeliest one's probability"),
    Field("seed", Integer(i64::MIN, i64::MAX), "The same seed draws the same tokens"),
    Field("ignore_eos", Boolean, "Go on where the model would end"),
    Field("priority", Integer(i32::MIN as i64, i32::MAX as i64), "Requests with smaller numbers go first"),
];

/// What platforms bill, watch and cache by. Nothing of it changes an answer.
const HINTS: &[Field] = &[
    Field("service_tier", OneOf(&["auto", "default"]), "There is one tier"),
    Field("safety_identifier", Text, "Changes nothing here"),
    Field("prompt_cache_key", Text, "Changes nothing: prompts that begin alike share their blocks in any case"),
    Field("prompt_cache_retention", Text, "Changes nothing here"),
    Field("prompt_cache_options", Object, "Changes nothing here"),
    Field("moderation", Refused, ""),
];

/// What else changes the probabilities.
const PENALTIES: &[Field] = &[
    Field("repetition_penalty", Number(1e-4, 10.0), "Above 1: what has come, prompt included, becomes less likely"),
    Field("presence_penalty", Number(-2.0, 2.0), "Above 0: what has been generated becomes less likely"),
    Field("frequency_penalty", Number(-2.0, 2.0), "The same, for every time it has been generated"),
    Field("logit_bias", Schema("LogitBias"), "Is added to the logits of these tokens"),
    Field("stop", Schema("Stops"), "Texts that end the answer; they are not part of it"),
    USER,
];

const USER: Field = Field("user", Text, "Whoever has been served the fewest tokens goes first");

/// The answers' number, length and form, as `/v1/chat/completions` and `/v1/completions` have them.
const ANSWERS: &[Field] = &[
    Field("max_completion_tokens", SOME_TOKENS, "Goes before `max_tokens`"),
    Field("n", SOME_CHOICES, "Answers wanted"),
    Field("stop_token_ids", Schema("TokenIds"), "Tokens that end the answer"),
    Field("skip_special_tokens", Boolean, "Leave special tokens out of the text"),
    Field("stream", Boolean, "Send the answer as it is made"),
    Field("stream_options", Schema("StreamOptions"), "Only with `stream`"),
    Field("response_format", Schema("ResponseFormat"), "Make the answer JSON"),
    Field("structured_outputs", Schema("StructuredOutputs"), "Make the answer follow a grammar"),
    Field("guided_json", Schema("SchemaOrText"), "As `structured_outputs.json`"),
    Field("guided_regex", Text, "As `structured_outputs.regex`"),
    Field("guided_choice", Schema("Choices"), "As `structured_outputs.choice`"),
    Field("guided_grammar", Text, "As `structured_outputs.grammar`"),
    Field("guided_whitespace_pattern", Refused, ""),
    Field("guided_json_object", False, ""),
    Field("structural_tag", Refused, ""),
    Field("use_beam_search", False, ""),
    Field("length_penalty", Refused, ""),
    Field("min_tokens", Refused, ""),
    Field("bad_words", Refused, ""),
    Field("allowed_token_ids", Refused, ""),
    Field("truncate_prompt_tokens", Refused, ""),
    Field("prompt_logprobs", Refused, ""),
    Field("spaces_between_special_tokens", Refused, ""),
    Field("include_stop_str_in_output", False, ""),
    Field("kv_transfer_params", Refused, ""),
    Field("vllm_xargs", Refused, ""),
    Field("prediction", Refused, ""),
    Field("suffix", Refused, ""),
    Field("add_special_tokens", Refused, ""),
    Field("cache_salt", Refused, ""),
    Field("return_token_ids", False, ""),
    Field("return_tokens_as_token_ids", False, ""),
    // Grammars, as other servers call them
    Field("grammar", Refused, ""),
    Field("json_schema", Refused, ""),
    Field("regex", Refused, ""),
    Field("ebnf", Refused, ""),
];

const TEMPLATE_ARGUMENTS: Field = Field("chat_template_kwargs", Object, "Variables of the chat template");

/// What the chat template renders.
const CONVERSATION: &[Field] = &[
    Field("messages", Schema("ChatMessages"), "The conversation so far"),
    Field("tools", Schema("ChatTools"), "What the model may call"),
    TEMPLATE_ARGUMENTS,
    Field("reasoning_effort", Text, "A variable of the chat template"),
    Field("add_generation_prompt", Boolean, "Begin a new message behind the last one"),
    Field("continue_final_message", False, ""),
    Field("chat_template", Refused, ""),
    Field("documents", Refused, ""),
    Field("mm_processor_kwargs", Refused, ""),
    Field("functions", Refused, ""),
    Field("function_call", Refused, ""),
];

pub static CHAT: Request = Request {
    required: &["messages"],
    fields: &[
        &[MODEL],
        DRAWING,
        PENALTIES,
        ANSWERS,
        CONVERSATION,
        HINTS,
        &[
            Field("max_tokens", SOME_TOKENS, "Left out: as many as the context has room for"),
            Field("logprobs", Boolean, "Show the tokens with their log-probabilities"),
            Field("top_logprobs", MOST_LOGPROBS, "And those of the likeliest; only with `logprobs`"),
            Field("tool_choice", Schema("ToolChoice"), "Whether a tool may or must be called"),
            Field("parallel_tool_calls", Boolean, "Whether an answer may have several calls"),
            Field("separate_reasoning", Boolean, "Reasoning as `reasoning_content`; false leaves it in the text"),
            Field("modalities", Schema("TextOnly"), ""),
            Field("store", False, ""),
            Field("audio", Refused, ""),
            Field("web_search_options", Refused, ""),
            Field("echo", False, ""),
            Field("best_of", Refused, ""),
            Field("verbosity", OneOf(&["medium"]), "How much the model writes is up to it"),
            Field("metadata", Object, "Changes nothing here"),
        ],
    ],
};

pub static COMPLETION: Request = Request {
    required: &["prompt"],
    fields: &[
        &[MODEL],
        DRAWING,
        PENALTIES,
        ANSWERS,
        &[
            Field("prompt", Schema("Texts"), "What the answers continue"),
            Field("max_tokens", Integer(0, MAX_TOKENS as i64), "Left out: 16; 0 only with `echo`"),
            Field("logprobs", MOST_LOGPROBS, "Show log-probabilities, and those of this many of the likeliest tokens"),
            Field("echo", Boolean, "Begin the answer with the prompt"),
            Field("best_of", SOME_CHOICES, "Make this many answers and show the `n` likeliest; not with `stream`"),
        ],
    ],
};

pub static EMBEDDING: Request = Request {
    required: &["input"],
    fields: &[&[
        MODEL,
        USER,
        Field("priority", Integer(i32::MIN as i64, i32::MAX as i64), "Requests with smaller numbers go first"),
        Field("input", Schema("Texts"), "What the vectors are made of"),
        Field("encoding_format", OneOf(&["float", "base64"]), "Numbers, or little-endian 32-bit floats in base64"),
        Field("dimensions", Integer(1, i64::MAX), "Keep the first so many elements, at most the model's"),
        Field("messages", Refused, ""),
        Field("truncate_prompt_tokens", Refused, ""),
        Field("add_special_tokens", Refused, ""),
        Field("normalize", Refused, ""),
    ]],
};

pub static RESPONSE: Request = Request {
    required: &["input"],
    fields: &[
        &[MODEL],
        DRAWING,
        PENALTIES,
        HINTS,
        &[
            Field("input", Schema("ResponseInput"), "The conversation so far"),
            Field("instructions", Text, "Stand in front of the conversation"),
            Field("max_output_tokens", SOME_TOKENS, "Left out: as many as the context has room for"),
            Field("stream", Boolean, "Send the answer as it is made"),
            Field("tools", Schema("ResponseTools"), "What the model may call"),
            Field("tool_choice", Schema("ResponseToolChoice"), "Whether a tool may or must be called"),
            Field("parallel_tool_calls", Boolean, "Whether an answer may have several calls"),
            Field("reasoning", Schema("Reasoning"), "A variable of the chat template"),
            Field("text", Schema("ResponseText"), "Make the answer JSON"),
            Field("metadata", Object, "Is part of the response"),
            TEMPLATE_ARGUMENTS,
            Field("store", Boolean, "Nothing is stored, whatever this says, and the response has `store: false`"),
            Field("include", Schema("Include"), "Reasoning comes as it is; nothing else that this names is made here"),
            Field("stream_options", Schema("ResponseStreamOptions"), ""),
            Field("truncation", OneOf(&["disabled"]), ""),
            Field("previous_response_id", Refused, ""),
            Field("conversation", Refused, ""),
            Field("context_management", Refused, ""),
            Field("background", False, ""),
            Field("prompt", Refused, ""),
            Field("max_tool_calls", Refused, ""),
            Field("top_logprobs", Refused, ""),
        ],
    ],
};

/// A conversation as Anthropic has it.
const MESSAGES: &[Field] = &[
    MODEL,
    Field("messages", Schema("Messages"), "The conversation so far"),
    Field("system", Schema("TextOrBlocks"), "Stands in front of the conversation"),
    Field("tools", Schema("MessageTools"), "What the model may call"),
    Field("tool_choice", Schema("MessageToolChoice"), "Whether a tool may or must be called"),
    Field("service_tier", OneOf(&["auto", "standard_only"]), "There is one tier"),
    Field("thinking", Schema("Thinking"), "The variable `enable_thinking` of the chat template"),
    TEMPLATE_ARGUMENTS,
    Field("container", Refused, ""),
    Field("output_config", Schema("OutputConfig"), "How much the model reasons, and a schema that its answer follows"),
    Field("context_management", Schema("ContextManagement"), "Nothing is taken out of a conversation here"),
    Field("cache_control", Object, "Changes nothing: prompts that begin alike share their blocks in any case"),
    Field("inference_geo", Text, "Changes nothing here"),
    Field("speed", OneOf(&["standard"]), "There is one speed"),
    Field("diagnostics", Refused, ""),
    Field("mcp_servers", Refused, ""),
    Field("output_format", Refused, ""),
];

pub static MESSAGE: Request = Request {
    required: &["max_tokens", "messages"],
    fields: &[
        MESSAGES,
        DRAWING,
        &[
            Field("max_tokens", SOME_TOKENS, ""),
            Field("metadata", Schema("MessageMetadata"), "Of the users, whoever has been served the fewest tokens goes first"),
            Field("stop_sequences", Schema("Stops"), "Texts that end the answer; they are not part of it"),
            Field("stream", Boolean, "Send the answer as it is made"),
        ],
    ],
};

pub static COUNT: Request = Request { required: &["messages"], fields: &[MESSAGES] };

pub static TOKENIZE: Request = Request {
    required: &[],
    fields: &[
        CONVERSATION,
        &[
            MODEL,
            Field("prompt", Text, "The text; or else `messages`"),
            Field("add_special_tokens", Boolean, "Whether the text's tokens begin with BOS where the model's do"),
            Field("return_token_strs", Boolean, "Show the tokens' texts too"),
        ],
    ],
};

pub static DETOKENIZE: Request =
    Request { required: &["tokens"], fields: &[&[MODEL, Field("tokens", Schema("Tokens"), "What the text is made of")]] };
