use super::{fixture, read_json};
use ferrum_models::text::{ChatOptions, ChatTemplate, TextError};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::HashMap;

#[derive(Deserialize)]
struct Golden {
    template: String,
    tokens: Map<String, Value>,
    now_s: i64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    /// The conversation's.
    name: String,
    add_generation_prompt: bool,
    text: Option<String>,
    refused: Option<String>,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
    #[serde(default)]
    arguments: Map<String, Value>,
}

#[test]
fn templates_render_as_python() {
    let mut files: Vec<_> = std::fs::read_dir(fixture("text/chat")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let conversations: HashMap<String, Conversation> = serde_json::from_value(read_json("text/conversations.json")).unwrap();
    let mut wrong = Vec::new();
    let mut count = 0;
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let golden: Golden = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let tokens = golden.tokens.iter().map(|(name, text)| (name.clone(), text.as_str().unwrap().to_owned())).collect();
        let template = match ChatTemplate::new(&golden.template, tokens) {
            Ok(template) => template,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        for case in &golden.cases {
            let conversation = &conversations[&case.name];
            let options = ChatOptions {
                tools: conversation.tools.as_deref(),
                add_generation_prompt: case.add_generation_prompt,
                arguments: conversation.arguments.clone(),
                now_s: Some(golden.now_s),
            };
            count += 1;
            let problem = match (template.render(&conversation.messages, &options), &case.text, &case.refused) {
                (Ok(got), Some(want), _) if got == *want => continue,
                (Ok(got), Some(want), _) => difference(&got, want),
                (Err(TextError::Refused { message }), _, Some(want)) if message == *want => continue,
                (result, _, _) => format!("{result:?}"),
            };
            wrong.push(format!("{name}, {} ({}): {problem}", case.name, case.add_generation_prompt));
        }
    }
    assert!(wrong.is_empty(), "{} of {count} renderings differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Where two texts part, with a little of both.
fn difference(got: &str, want: &str) -> String {
    let at = got.bytes().zip(want.bytes()).take_while(|(a, b)| a == b).count();
    let show = |text: &str| String::from_utf8_lossy(&text.as_bytes()[at.saturating_sub(30)..text.len().min(at + 50)]).into_owned();
    format!("at byte {at}: got {:?}, want {:?}", show(got), show(want))
}

#[test]
fn only_listed_arguments_may_be_set() {
    let template = ChatTemplate::new("{{ enable_thinking }}{{ tokenize }}", Vec::new()).unwrap();
    let with = |name: &str| {
        let arguments = Map::from_iter([(name.to_owned(), Value::Bool(true))]);
        template.render(&[], &ChatOptions { arguments, ..ChatOptions::default() })
    };
    assert_eq!(with("enable_thinking").unwrap(), "True");
    for name in ["tokenize", "messages", "add_generation_prompt", "bos_token", "chat_template", "strftime_now", "raise_exception"] {
        assert!(matches!(with(name), Err(TextError::Argument { .. })), "{name}");
    }
}
