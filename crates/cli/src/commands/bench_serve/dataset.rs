//! Prompts that people wrote, from a file.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::random::Random;

/// Prompts in an order that the seed gives; behind the last one they begin again.
#[derive(Debug)]
pub struct Dataset {
    items: Vec<Item>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub prompt: String,
    /// Tokens that the answer shall have
    pub output_tokens: Option<usize>,
    /// The answer in the file, whose tokens the server may count
    pub answer: Option<String>,
}

/// A record in any of the known forms.
#[derive(Deserialize)]
struct Raw {
    prompt: Option<String>,
    #[serde(alias = "max_tokens", alias = "output_len")]
    output_tokens: Option<usize>,
    #[serde(alias = "completion", alias = "response")]
    answer: Option<String>,
    #[serde(alias = "conversation")]
    conversations: Option<Vec<Turn>>,
}

#[derive(Deserialize)]
struct Turn {
    from: String,
    value: String,
}

impl Dataset {
    /// A JSON array of records, or one record a line. A record that begins without a user's words is left out.
    ///
    /// # Errors
    /// When the file cannot be read, is neither, or has no prompt.
    pub fn read(path: &Path, seed: u64) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text, seed).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str, seed: u64) -> anyhow::Result<Self> {
        let records: Vec<Raw> = if text.trim_start().starts_with('[') {
            serde_json::from_str(text).context("it is no JSON array of objects with `conversations` or `prompt`")?
        } else {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            let read = |(i, line)| serde_json::from_str(line).with_context(|| format!("line {} is no record", i + 1));
            lines.map(read).collect::<anyhow::Result<_>>()?
        };
        let mut items: Vec<Item> = records.into_iter().filter_map(Raw::item).collect();
        if items.is_empty() {
            bail!("there is no prompt; a record has `conversations` of `from` and `value`, or `prompt`");
        }
        // Fisher and Yates
        let mut random = Random::of(&[seed]);
        (1..items.len()).rev().for_each(|i| items.swap(i, random.below(i + 1)));
        Ok(Self { items })
    }

    pub fn get(&self, i: usize) -> &Item {
        &self.items[i % self.items.len()]
    }

    pub fn iter(&self) -> impl Iterator<Item = &Item> {
        self.items.iter()
    }

    pub fn items_mut(&mut self) -> &mut [Item] {
        &mut self.items
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }
}

impl Raw {
    fn item(self) -> Option<Item> {
        let Self { prompt, output_tokens, answer, conversations } = self;
        let (prompt, answer) = match (prompt, conversations) {
            (Some(prompt), _) => (prompt, answer),
            (None, turns) => {
                let mut turns = turns?.into_iter().skip_while(|turn| turn.from == "system");
                let first = turns.next().filter(|turn| ["human", "user"].contains(&turn.from.as_str()))?;
                let second = turns.next().filter(|turn| ["gpt", "assistant", "chatgpt", "bing", "bard"].contains(&turn.from.as_str()));
                (first.value, second.map(|turn| turn.value))
            }
        };
        let output_tokens = output_tokens.filter(|&n| n > 0);
        (!prompt.trim().is_empty()).then_some(Item { prompt, output_tokens, answer: answer.filter(|text| !text.is_empty()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(data: &Dataset) -> Vec<&str> {
        let mut prompts: Vec<&str> = (0..data.len()).map(|i| data.get(i).prompt.as_str()).collect();
        prompts.sort_unstable();
        prompts
    }

    #[test]
    fn sharegpt_gives_the_first_words_of_each_conversation() {
        let text = r#"[
            {"id": "1", "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
            {"id": "2", "conversations": [{"from": "system", "value": "Be kind."}, {"from": "user", "value": "Hello"}]},
            {"id": "3", "conversations": [{"from": "gpt", "value": "I begin."}]},
            {"id": "4", "conversations": []}
        ]"#;
        let data = Dataset::parse(text, 0).unwrap();
        assert_eq!(prompts(&data), ["Hello", "Why?"]);
        let why = (0..2).map(|i| data.get(i)).find(|item| item.prompt == "Why?").unwrap();
        assert_eq!((why.answer.as_deref(), why.output_tokens), (Some("Because."), None));
    }

    #[test]
    fn lines_give_prompts_with_lengths() {
        let data =
            Dataset::parse("{\"prompt\": \"a\", \"output_tokens\": 7}\n\n{\"prompt\": \"b\", \"max_tokens\": 0}\n{\"prompt\": \" \"}", 0);
        let data = data.unwrap();
        assert_eq!(prompts(&data), ["a", "b"]);
        let tokens = |prompt: &str| (0..2).map(|i| data.get(i)).find(|item| item.prompt == prompt).unwrap().output_tokens;
        assert_eq!((tokens("a"), tokens("b")), (Some(7), None));
        // Behind the last the first.
        assert_eq!(data.get(2), data.get(0));
    }

    #[test]
    fn the_seed_gives_the_order() {
        let text: String = (0..50).map(|i| format!("{{\"prompt\": \"{i}\"}}\n")).collect();
        let order = |seed| {
            let data = Dataset::parse(&text, seed).unwrap();
            (0..50).map(|i| data.get(i).prompt.clone()).collect::<Vec<_>>()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn mistakes_are_explained() {
        let error = |text: &str| format!("{:#}", Dataset::parse(text, 0).unwrap_err());
        assert!(error("{\"prompt\": \"a\"}\nnonsense").contains("line 2"));
        assert!(error("[1]").contains("array of objects"));
        assert!(error("[]").contains("there is no prompt"));
        assert!(error("{\"text\": \"a\"}").contains("there is no prompt"));
    }
}
