//! Any text as a chat template: an error or a prompt, within the limits of time, stack and memory.
#![no_main]

use ferrum_models::text::{ChatOptions, ChatTemplate};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|data: &[u8]| {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let Ok(template) = ChatTemplate::new(source, vec![("bos_token".into(), "<s>".into())]) else { return };
    let messages = [json!({"role": "system", "content": "s"}), json!({"role": "user", "content": " ü\n", "n": [1, 2.5, null, true]})];
    let tools = [json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}})];
    for tools in [None, Some(&tools[..])] {
        let options = ChatOptions { tools, add_generation_prompt: tools.is_none(), now_s: Some(0), ..ChatOptions::default() };
        let first = template.render(&messages, &options);
        // Rendering is a function of its inputs.
        if let Ok(text) = &first {
            assert_eq!(template.render(&messages, &options).as_ref().ok(), Some(text));
        }
    }
});
