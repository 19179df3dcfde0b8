//! The forms in which model families write tool calls.

/// How a model writes tool calls, told by its chat template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen, SmolLM
    Hermes,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`: Mistral
    Mistral,
    /// The whole answer is `{"name": …, "parameters": {…}}`: Llama 3
    Llama3,
    /// `<start_function_call>call:NAME{key:<escape>text<escape>,key:12}<end_function_call>`: FunctionGemma
    FunctionGemma,
    /// A model whose template knows no tools (Gemma 2 and 3 among them): the prompt explains them, and the answer is JSON as of
    /// Llama 3, one object or several, in an array or not, in a fenced block or not
    Json,
}

impl ToolFormat {
    /// `None` where the template takes tools, but writes calls in a form that is not known here.
    pub fn of_template(source: &str) -> Option<Self> {
        let has = |text: &str| source.contains(text);
        if !has("tools") && !has("<start_function_call>") {
            Some(Self::Json)
        } else if has("<function=") {
            None
        } else if has("<tool_call>") {
            Some(Self::Hermes)
        } else if has("[TOOL_CALLS]") {
            Some(Self::Mistral)
        } else if has("<start_function_call>") {
            Some(Self::FunctionGemma)
        } else if has("ipython") || has("<|python_tag|>") {
            Some(Self::Llama3)
        } else {
            None
        }
    }

    /// Whether the marks are special tokens, which decoded text usually leaves out.
    pub fn needs_special_tokens(self) -> bool {
        matches!(self, Self::Mistral | Self::FunctionGemma)
    }

    /// Marks that begin calls wherever they stand.
    pub(crate) const fn openings(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>"],
            Self::Mistral => &["[TOOL_CALLS]"],
            Self::FunctionGemma => &["<start_function_call>"],
            Self::Json => &["```json\n", "```tool_code\n", "```tool_call\n"],
            Self::Llama3 => &[],
        }
    }

    /// What begins calls at the start of an answer alone, and belongs to them.
    pub(super) const fn openings_at_start(self) -> &'static [&'static str] {
        match self {
            Self::Llama3 => &["{"],
            Self::Json => &["{", "["],
            Self::Hermes | Self::Mistral | Self::FunctionGemma => &[],
        }
    }

    /// The mark behind each call.
    pub(crate) const fn closing(self) -> Option<&'static str> {
        match self {
            Self::Hermes => Some("</tool_call>"),
            Self::FunctionGemma => Some("<end_function_call>"),
            Self::Mistral | Self::Llama3 | Self::Json => None,
        }
    }

    /// Whether one mark opens several calls.
    pub(super) const fn is_list(self) -> bool {
        matches!(self, Self::Mistral | Self::Llama3 | Self::Json)
    }

    /// Whether a call has no mark of its own: it is one only if it has both a name and arguments.
    pub(super) const fn is_bare(self) -> bool {
        matches!(self, Self::Llama3 | Self::Json)
    }
}
