//! Grammars of tool calls: the model family's own form around arguments that are valid under the tool's schema.

use std::collections::HashSet;

use ferrum_engine::{Grammar, MAX_GRAMMAR_BYTES};
use ferrum_models::text::Tokenizer;
use serde_json::Value;

use crate::{
    output::{GEMMA_QUOTE, ToolFormat},
    tools::{Forced, Function},
};

/// A rule that any text satisfies.
const ANY: &str = "/(?s:.*)/";

/// Text that is not taken for JSON.
const WORDS: &str = r"\s*[^\s{\[](?s:.*)";

/// One call, or one and more; where none is forced, with free text in front.
pub fn calls(forced: &Forced, format: ToolFormat, several: bool, tokenizer: &Tokenizer) -> Grammar {
    // Text that the tokenizer has a special token for is that token.
    let special = |text: &str| tokenizer.token_id(text).filter(|&id| tokenizer.is_special(id));
    calls_with(forced, format, several, special)
}

/// `special`: the special token that a mark is.
fn calls_with(forced: &Forced, format: ToolFormat, several: bool, special: impl Fn(&str) -> Option<u32>) -> Grammar {
    let mark = |text: &str| special(text).map_or_else(|| Grammar::literal(text), |id| format!("<[{id}]>"));
    let object = |(n, function): (usize, &Function)| match format {
        ToolFormat::FunctionGemma => format!("{} f{n}_first_0 \"}}\"", Grammar::literal(&format!("call:{}{{", function.name))),
        _ => {
            let arguments = if matches!(format, ToolFormat::Llama3 | ToolFormat::Json) { "parameters" } else { "arguments" };
            let head = format!("{{\"name\": {}, \"{arguments}\": ", Grammar::literal(&function.name));
            format!("{} @a{n} \"}}\"", Grammar::literal(&head))
        }
    };
    let objects: Vec<String> = forced.functions.iter().enumerate().map(object).collect();
    // Behind the opening mark, if there is one
    let rest = match (format, several) {
        (ToolFormat::Hermes, _) => format!("\"\\n\" object \"\\n\" {}", mark("</tool_call>")),
        (ToolFormat::FunctionGemma, _) => format!("object {}", mark("<end_function_call>")),
        (ToolFormat::Mistral, true) => "\"[\" object (\", \" object)* \"]\"".to_owned(),
        (ToolFormat::Mistral, false) => "\"[\" object \"]\"".to_owned(),
        (ToolFormat::Json, true) => "object (\"\\n\" object)*".to_owned(),
        // The whole answer is one call.
        (ToolFormat::Llama3, _) | (ToolFormat::Json, false) => "object".to_owned(),
    };
    let opening = (!matches!(format, ToolFormat::Llama3 | ToolFormat::Json)).then(|| format.openings()[0]);
    let repeats = several && format.closing().is_some();
    let between = if format == ToolFormat::Hermes { "\"\\n\"" } else { "" };
    let mut lark = match (opening, forced.call) {
        (None, true) => "start: rest\n".to_owned(),
        // What begins as JSON does is a call, behind whatever white space the parser skips.
        (None, false) if format.openings().is_empty() => format!("start: rest | /{WORDS}/\n"),
        // So is a block of code with JSON, wherever it stands. It ends the answer.
        (None, false) => {
            let fences: Vec<String> = format.openings().iter().map(|fence| Grammar::literal(fence)).collect();
            let fences = fences.join(" | ");
            format!("start: rest | /{WORDS}/ | before rest \"\\n\" \"```\"\nbefore[suffix=FENCE]: /({WORDS})?\\s*/\nFENCE: {fences}\n")
        }
        (Some(opening), true) => {
            let more = if repeats { format!("({between} call)*") } else { String::new() };
            format!("start: call {more}\ncall: {} rest\n", mark(opening))
        }
        (Some(opening), false) => {
            // A mark that is text ends the text in front of it as soon as it has come.
            let before = match special(opening) {
                Some(id) => format!("before: text <[{id}]>\n"),
                None => format!("before[suffix={}]: {ANY}\n", Grammar::literal(opening)),
            };
            let calls = if repeats { "(before rest)* text" } else { "text | before rest" };
            format!("start: {calls}\ntext: {ANY}\n{before}")
        }
    };
    lark += &format!("rest: {rest}\nobject: {}\n", objects.join(" | "));
    if format == ToolFormat::FunctionGemma {
        let quote = mark(GEMMA_QUOTE);
        // Any text, up to the quote
        lark += &match special(GEMMA_QUOTE) {
            Some(_) => format!("quoted: {quote} TEXT {quote}\nTEXT: {ANY}\n"),
            None => format!("quoted: {quote} inner\ninner[suffix={quote}]: {ANY}\n"),
        };
        lark += "value: quoted | WORD | \"{\" (pair (\",\" pair)*)? \"}\" | \"[\" (value (\",\" value)*)? \"]\"\npair: NAME \":\" value\n";
        lark += "WORD: /[-+.0-9a-z]+/\nNAME: /[A-Za-z0-9_.-]+/\n";
        for (n, function) in forced.functions.iter().enumerate() {
            add_gemma_arguments(&mut lark, n, &function.parameters, &quote);
        }
        return Grammar::lark(&lark);
    }
    Grammar::with_schemas(&lark, forced.functions.iter().enumerate().map(|(n, f)| (format!("a{n}"), f.parameters.clone())))
}

/// Adds rules for the arguments of function `n` in FunctionGemma's form, which no JSON schema describes: the properties in their
/// order, the required ones all, with values of their simple type, or any value where the type is not simple. A grammar that has
/// become too long to be compiled grows no further: references can make it longer than the request many times over.
fn add_gemma_arguments(lark: &mut String, n: usize, parameters: &Value, quote: &str) {
    let none = serde_json::Map::new();
    let properties = parameters.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let required = parameters.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let required: HashSet<&str> = required.iter().filter_map(Value::as_str).collect();
    for (i, (name, schema)) in properties.iter().enumerate() {
        if lark.len() > MAX_GRAMMAR_BYTES {
            return;
        }
        let pair = format!("{} {}", Grammar::literal(&format!("{name}:")), gemma_value(resolved(schema, parameters), quote));
        // `first`: nothing stands in front of it yet.
        for (rule, comma) in [("first", ""), ("then", "\",\" ")] {
            let skip = if required.contains(name.as_str()) { String::new() } else { format!(" | f{n}_{rule}_{}", i + 1) };
            *lark += &format!("f{n}_{rule}_{i}: {comma}{pair} f{n}_then_{}{skip}\n", i + 1);
        }
    }
    let last = properties.len();
    if properties.is_empty() && parameters.get("additionalProperties") != Some(&Value::Bool(false)) {
        *lark += &format!("f{n}_first_{last}: (pair (\",\" pair)*)?\n");
    } else {
        *lark += &format!("f{n}_first_{last}: \"\"\n");
        if last > 0 {
            *lark += &format!("f{n}_then_{last}: \"\"\n");
        }
    }
}

/// The schema that a `$ref` within `root` leads to; itself where there is none, or where it leads in a circle.
fn resolved<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    let mut at = schema;
    for _ in 0..8 {
        let target = at.get("$ref").and_then(Value::as_str).and_then(|path| root.pointer(path.strip_prefix('#')?));
        let Some(target) = target else { return at };
        at = target;
    }
    schema
}

fn gemma_value(schema: &Value, quote: &str) -> String {
    if let Some(values) = schema.get("enum").and_then(Value::as_array)
        && !values.is_empty()
    {
        let value = |value: &Value| match value {
            Value::String(text) => format!("{quote} {} {quote}", Grammar::literal(text)),
            other => Grammar::literal(&other.to_string()),
        };
        return format!("({})", values.iter().map(value).collect::<Vec<_>>().join(" | "));
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("string") => "quoted".to_owned(),
        Some("integer") => "/-?(0|[1-9][0-9]{0,17})/".to_owned(),
        Some("number") => r"/-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?/".to_owned(),
        Some("boolean") => "(\"true\" | \"false\")".to_owned(),
        _ => "value".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use ferrum_engine::{Constraint, GrammarCompiler, GrammarError};
    use serde_json::json;

    use super::*;

    /// Bytes are tokens; 256 ends the answer, 257 is the mark `special` of a test.
    fn compile(grammar: &Grammar) -> Constraint {
        let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
        tokens[255] = Vec::new();
        tokens.extend([b"\xff<end>".to_vec(), b"\xff<mark>".to_vec()]);
        GrammarCompiler::from_tokens(&tokens, &[256]).unwrap().compile(grammar).unwrap()
    }

    /// What may follow on a text whose every byte is allowed; `None` where one is not.
    fn after(constraint: &Constraint, text: &str) -> Option<Vec<u32>> {
        let mut constraint = constraint.clone();
        let allowed = |constraint: &mut Constraint| {
            let mut mask = Vec::new();
            constraint.fill_mask(9, &mut mask).unwrap();
            (0..258).filter(|&t| mask[t as usize / 32] as u32 >> (t % 32) & 1 == 1).collect::<Vec<u32>>()
        };
        for byte in text.bytes() {
            // `\u{1}` stands for the special mark.
            let token = if byte == 1 { 257 } else { u32::from(byte) };
            if !allowed(&mut constraint).contains(&token) {
                return None;
            }
            if constraint.take(token).unwrap() {
                return Some(vec![256]);
            }
        }
        Some(allowed(&mut constraint))
    }

    fn forced(call: bool) -> Forced {
        let parameters = json!({
            "type": "object",
            "properties": {"unit": {"enum": ["C", "F"]}, "days": {"type": "integer"}},
            "required": ["unit"],
            "additionalProperties": false,
        });
        Forced { functions: vec![Function { name: "weather".into(), parameters }], call }
    }

    #[test]
    fn arguments_are_forced_once_a_call_has_been_opened() {
        let hermes = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"unit\":\"C\"}}\n</tool_call>";
        let mistral = "[TOOL_CALLS][{\"name\": \"weather\", \"arguments\": {\"unit\":\"F\"}}]";
        let gemma = "<start_function_call>call:weather{unit:<escape>C<escape>,days:3}<end_function_call>";
        let llama = "{\"name\": \"weather\", \"parameters\": {\"unit\":\"C\"}}";
        for (format, call, opening, text_in_front) in [
            (ToolFormat::Hermes, hermes, "<tool_call>", true),
            (ToolFormat::Mistral, mistral, "[TOOL_CALLS]", true),
            (ToolFormat::FunctionGemma, gemma, "<start_function_call>", true),
            (ToolFormat::Llama3, llama, "{", false),
            (ToolFormat::Json, llama, "{", false),
        ] {
            for several in [false, true] {
                let free = compile(&calls_with(&forced(false), format, several, |_| None));
                let must = compile(&calls_with(&forced(true), format, several, |_| None));
                assert!(after(&must, call).is_some_and(|next| next.contains(&256)), "{call}");
                assert_eq!(after(&must, "Well"), None, "{format:?}");
                assert!(after(&free, call).is_some_and(|next| next.contains(&256)), "{call}");
                assert!(after(&free, "Well, 1 < 2 é.").is_some_and(|next| next.contains(&256)), "{format:?}");
                assert_eq!(after(&free, &format!("{opening}x")), None, "{format:?}: the call is open");
                assert_eq!(after(&free, &call.replace("unit", "units")), None, "{format:?}");
                if text_in_front {
                    let text = format!("Let me look.\n{call}");
                    assert!(after(&free, &text).is_some_and(|next| next.contains(&256)), "{text}");
                    assert_eq!(after(&free, &format!("Let me look.\n{opening}x")), None, "{format:?}");
                }
            }
        }
    }

    #[test]
    fn marks_that_are_tokens_are_tokens() {
        let special = |text: &str| (text == "<tool_call>").then_some(257);
        let free = compile(&calls_with(&forced(false), ToolFormat::Hermes, true, special));
        let call = "\u{1}\n{\"name\": \"weather\", \"arguments\": {\"unit\":\"C\"}}\n</tool_call>";
        assert!(after(&free, &format!("Now{call}and{call}")).is_some_and(|next| next.contains(&256)));
        assert_eq!(after(&free, "Now\u{1}x"), None);
        // The same letters are no mark.
        assert!(after(&free, "<tool_call>x").is_some());
        assert_eq!(after(&compile(&calls_with(&forced(true), ToolFormat::Hermes, true, special)), ""), Some(vec![257]));
    }

    #[test]
    fn json_in_a_block_of_code_is_a_call_wherever_it_stands() {
        let call = |days: &str| format!("{{\"name\": \"weather\", \"parameters\": {{\"unit\":\"C\",\"days\":{days}}}}}");
        for several in [false, true] {
            let free = compile(&calls_with(&forced(false), ToolFormat::Json, several, |_| None));
            for front in ["", "\n", "Let me look: `x`, ```python\n1\n```\n", "``````", "A ```json ```tool\u{a0}"] {
                for fence in ToolFormat::Json.openings() {
                    let text = format!("{front}{fence}{}\n```", call("3"));
                    assert!(after(&free, &text).is_some_and(|next| next.contains(&256)), "{text}");
                    for broken in ["[1]", &call("true"), "{\"name\": \"now\""] {
                        assert_eq!(after(&free, &format!("{front}{fence}{broken}")), None, "{front}{fence}{broken}");
                    }
                    let two = after(&free, &format!("{front}{fence}{}\n{}\n```", call("3"), call("4")));
                    assert_eq!(two.is_some(), several);
                }
            }
            // All that the parser skips in front of a call
            for front in ["\r\n", "\u{a0}", "\u{2003}\u{85}", "\u{3000} \t\u{b}"] {
                for text in ["{\"name\": 1", "[{\"name\""] {
                    assert_eq!(after(&free, &format!("{front}{text}")), None, "{front:?}{text}");
                }
                assert!(after(&free, &format!("{front}Well")).is_some_and(|next| next.contains(&256)), "{front:?}");
            }
        }
    }

    #[test]
    fn strings_of_gemma_hold_any_text() {
        let parameters = json!({"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]});
        let forced = Forced { functions: vec![Function { name: "run".into(), parameters }], call: true };
        let call = |quote: &str, text: &str| format!("<start_function_call>call:run{{code:{quote}{text}{quote}}}<end_function_call>");
        let special = |text: &str| (text == GEMMA_QUOTE).then_some(257);
        let tokens = compile(&calls_with(&forced, ToolFormat::FunctionGemma, false, special));
        let letters = compile(&calls_with(&forced, ToolFormat::FunctionGemma, false, |_| None));
        for text in ["", "if a < b {\n\"é\"}", "<esc", "<<escape"] {
            assert!(after(&tokens, &call("\u{1}", text)).is_some_and(|next| next.contains(&256)), "{text}");
            assert!(after(&letters, &call(GEMMA_QUOTE, text)).is_some_and(|next| next.contains(&256)), "{text}");
        }
        assert_eq!(after(&letters, "<start_function_call>call:run{code:<escape>a<escape>b"), None);
    }

    #[test]
    fn grammars_that_become_too_long_are_not_finished() {
        let names: Vec<String> = (0..2000).map(|n| format!("p{n}")).collect();
        let values: Vec<String> = (0..2000).map(|n| format!("value {n}")).collect();
        let properties: serde_json::Map<String, Value> = names.iter().map(|name| (name.clone(), json!({"$ref": "#/$defs/v"}))).collect();
        let parameters = json!({"type": "object", "properties": properties, "required": names, "$defs": {"v": {"enum": values}}});
        let functions = (0..4).map(|n| Function { name: format!("f{n}"), parameters: parameters.clone() }).collect();
        let grammar = calls_with(&Forced { functions, call: true }, ToolFormat::FunctionGemma, false, |_| None);
        let bytes = grammar.key().len();
        assert!((MAX_GRAMMAR_BYTES..2 * MAX_GRAMMAR_BYTES).contains(&bytes), "{bytes}");
        let tokens: Vec<Vec<u8>> = (0..256u32).map(|byte| vec![byte as u8]).collect();
        let refused = GrammarCompiler::from_tokens(&tokens[..255], &[]).unwrap().compile(&grammar);
        assert!(matches!(refused, Err(GrammarError::TooLong { .. })), "{refused:?}");
    }

    #[test]
    fn gemma_takes_properties_in_order_and_leaves_out_optional_ones() {
        let must = compile(&calls_with(&forced(true), ToolFormat::FunctionGemma, false, |_| None));
        let call = |arguments: &str| format!("<start_function_call>call:weather{{{arguments}}}<end_function_call>");
        for arguments in ["unit:<escape>F<escape>", "unit:<escape>C<escape>,days:-12"] {
            assert!(after(&must, &call(arguments)).is_some(), "{arguments}");
        }
        for arguments in
            ["", "days:3", "unit:<escape>K<escape>", "unit:C", "unit:<escape>C<escape>,days:x", "days:3,unit:<escape>C<escape>"]
        {
            assert_eq!(after(&must, &call(arguments)), None, "{arguments}");
        }
    }
}
