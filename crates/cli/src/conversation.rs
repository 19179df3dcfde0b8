//! Messages, and the tokens they become.

use anyhow::Context;
use ferrum_models::text::{ChatOptions, ChatTemplate, EncodeOptions, Tokenizer};
use serde_json::{Value, json};

/// A chat: its messages, and the tokens of the last prompt and answer.
pub struct Conversation {
    template: ChatTemplate,
    pub system: Option<String>,
    /// `{"role", "content"}`, without the system message
    pub messages: Vec<Value>,
    /// Text and tokens that the engine has seen
    seen: Option<(String, Vec<u32>)>,
}

impl Conversation {
    /// # Errors
    /// When the model has no chat template, or it does not compile.
    pub fn new(tokenizer: &Tokenizer, system: Option<String>) -> anyhow::Result<Self> {
        Ok(Self { template: tokenizer.chat_template()?, system, messages: Vec::new(), seen: None })
    }

    /// Adds what the user says; returns the tokens of the whole conversation up to where the answer begins.
    ///
    /// What the engine has seen keeps its tokens: text that is encoded anew may fall into other tokens than those the model
    /// generated, and then nothing behind them could be reused.
    ///
    /// # Errors
    /// When the template refuses the conversation; it is then unchanged.
    pub fn ask(&mut self, tokenizer: &Tokenizer, text: &str) -> anyhow::Result<Vec<u32>> {
        self.messages.push(json!({"role": "user", "content": text}));
        let result = self.prompt(tokenizer);
        match result {
            Ok((text, ids)) => {
                self.seen = Some((text, ids.clone()));
                Ok(ids)
            }
            Err(error) => {
                self.messages.pop();
                Err(error)
            }
        }
    }

    /// Adds the model's answer: `text` as shown, and its tokens.
    pub fn answered(&mut self, text: &str, tokens: &[u32]) {
        self.messages.push(json!({"role": "assistant", "content": text}));
        if let Some((seen, ids)) = &mut self.seen {
            seen.push_str(text);
            ids.extend_from_slice(tokens);
        }
    }

    /// Takes the last question back, e.g. because there is no answer to it.
    pub fn unask(&mut self) {
        self.messages.pop();
        self.seen = None;
    }

    pub fn clear(&mut self) {
        self.messages.clear();
        self.seen = None;
    }

    /// How many tokens at the start are the system message: what a context shift keeps.
    pub fn system_tokens(&self, tokenizer: &Tokenizer, prompt: &[u32]) -> usize {
        let ids = self.with_system(&[]).and_then(|m| self.encode(tokenizer, &m, false).ok()).map(|(_, ids)| ids);
        let shared = ids.map_or(0, |ids| ids.iter().zip(prompt).take_while(|(a, b)| a == b).count());
        // BOS stays in any case.
        shared.max(usize::from(prompt.first().is_some_and(|&id| Some(id) == tokenizer.bos())))
    }

    fn prompt(&self, tokenizer: &Tokenizer) -> anyhow::Result<(String, Vec<u32>)> {
        let messages = self.with_system(&self.messages).unwrap_or_else(|| self.messages.clone());
        let text = self.render(&messages, true)?;
        if let Some((seen, ids)) = &self.seen
            && let Some(new) = text.strip_prefix(seen.as_str())
        {
            let mut ids = ids.clone();
            ids.extend(tokenizer.encode(new, TEMPLATED)?);
            return Ok((text, ids));
        }
        let ids = tokenizer.encode(&text, TEMPLATED)?;
        Ok((text, ids))
    }

    fn with_system(&self, messages: &[Value]) -> Option<Vec<Value>> {
        let system = self.system.as_ref()?;
        Some([json!({"role": "system", "content": system})].into_iter().chain(messages.iter().cloned()).collect())
    }

    fn encode(&self, tokenizer: &Tokenizer, messages: &[Value], generate: bool) -> anyhow::Result<(String, Vec<u32>)> {
        let text = self.render(messages, generate)?;
        let ids = tokenizer.encode(&text, TEMPLATED)?;
        Ok((text, ids))
    }

    fn render(&self, messages: &[Value], generate: bool) -> anyhow::Result<String> {
        let options = ChatOptions { add_generation_prompt: generate, ..ChatOptions::default() };
        self.template.render(messages, &options).context("the chat template cannot be applied; `--raw` does without it")
    }
}

/// Templates write BOS themselves.
const TEMPLATED: EncodeOptions = EncodeOptions { add_special: false, parse_special: true };

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ferrum_models::Checkpoint;

    use super::*;

    fn tokenizer() -> Tokenizer {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/llama3");
        Checkpoint::open(&fixture).unwrap().tokenizer().unwrap()
    }

    #[test]
    fn what_the_engine_has_seen_keeps_its_tokens() {
        let tokenizer = tokenizer();
        let mut chat = Conversation::new(&tokenizer, Some("Be brief.".into())).unwrap();
        let mut seen = chat.ask(&tokenizer, "count").unwrap();
        // One letter a token: encoding the same text gives fewer.
        let answer: Vec<u32> = "the".chars().flat_map(|c| tokenizer.encode(&c.to_string(), EncodeOptions::default()).unwrap()).collect();
        assert!(tokenizer.encode("the", EncodeOptions::default()).unwrap().len() < answer.len());
        chat.answered("the", &answer);
        seen.extend(&answer);
        let next = chat.ask(&tokenizer, "more").unwrap();
        assert_eq!(next[..seen.len()], seen);
        assert!(tokenizer.decode(&next, false).ends_with("the<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"));
        assert_eq!(chat.messages.len(), 3);

        chat.unask();
        assert_eq!(chat.messages.len(), 2);
        let anew = chat.ask(&tokenizer, "more").unwrap();
        assert_eq!(tokenizer.decode(&anew, false), tokenizer.decode(&next, false));
        assert!(anew.len() < next.len());
    }

    #[test]
    fn a_context_shift_keeps_the_system_message() {
        let tokenizer = tokenizer();
        let mut chat = Conversation::new(&tokenizer, Some("Be brief.".into())).unwrap();
        let prompt = chat.ask(&tokenizer, "count").unwrap();
        let kept = tokenizer.decode(&prompt[..chat.system_tokens(&tokenizer, &prompt)], false);
        assert!(kept.starts_with("<|im_start|>system\nBe brief.<|im_end|>") && !kept.contains("count"), "{kept}");
    }
}
