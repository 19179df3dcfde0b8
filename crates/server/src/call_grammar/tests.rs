use ferrum_engine::{Constraint, GrammarCompiler, GrammarError, MAX_GRAMMAR_BYTES};
use serde_json::{Map, Value, json};

use super::*;
use crate::tools::Function;

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
    let gemma = "<start_function_call>call:weather{days:3,unit:<escape>C<escape>}<end_function_call>";
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

/// Whoever thinks first does not get around the schema, and is free to write whatever it likes while it thinks.
#[test]
fn json_behind_reasoning_is_a_call() {
    for format in [ToolFormat::Llama3, ToolFormat::Json] {
        let free = compile(&calls_with(&forced(false), format, true, |_| None));
        let ends = |text: &str| assert!(after(&free, text).is_some_and(|next| next.contains(&256)), "{format:?}: {text:?}");
        for thoughts in [
            "<think></think>",
            "\n<think>\nMaybe {\"name\": 1} or\n```json\n[1]\n``` </thin <think> [/THINK]</think>",
            "[THINK]{[/THINK]",
            "<think>a</think>\n[THINK]b</think>[/THINK]",
        ] {
            let call = "{\"name\": \"weather\", \"parameters\": {\"unit\":\"C\"}}";
            for gap in ["", "\n\n", "\u{2003}"] {
                ends(&format!("{thoughts}{gap}{call}"));
                ends(&format!("{thoughts}{gap}Well, {{1}}."));
                for broken in ["{\"name\": 1", "{\"name\": \"now\"", "[{"] {
                    assert_eq!(after(&free, &format!("{thoughts}{gap}{broken}")), None, "{format:?}: {thoughts:?}{gap:?}{broken}");
                }
                if format == ToolFormat::Json {
                    ends(&format!("{thoughts}{gap}So: ```json\n{call}\n```"));
                    assert_eq!(after(&free, &format!("{thoughts}{gap}So: ```json\n{{\"name\": 1")), None);
                }
            }
            // Cut off
            ends(&thoughts[..thoughts.len() - 3]);
        }
        // What is not at the start is text.
        ends("Yes <think>{</think>{");
        ends("<thin{");
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

fn gemma(parameters: Value) -> Grammar {
    let forced = Forced { functions: vec![Function { name: "f".into(), parameters }], call: true };
    calls_with(&forced, ToolFormat::FunctionGemma, false, |text| (text == GEMMA_QUOTE).then_some(257))
}

/// Whether a call may have these arguments; `'` stands for the quote.
fn takes(constraint: &Constraint, arguments: &str) -> bool {
    let call = format!("<start_function_call>call:f{}<end_function_call>", arguments.replace('\'', "\u{1}"));
    after(constraint, &call).is_some_and(|next| next.contains(&256))
}

#[test]
fn gemma_takes_properties_as_its_template_sorts_them_and_leaves_out_optional_ones() {
    let must = compile(&gemma(forced(true).functions[0].parameters.clone()));
    for (arguments, ok) in [
        ("{unit:'F'}", true),
        ("{days:-12,unit:'C'}", true),
        ("{}", false),
        ("{days:3}", false),
        ("{unit:'K'}", false),
        ("{unit:C}", false),
        ("{days:x,unit:'C'}", false),
        ("{unit:'C',days:3}", false),
        ("{days:3,unit:'C',more:1}", false),
    ] {
        assert_eq!(takes(&must, arguments), ok, "{arguments}");
    }
}

#[test]
fn gemma_follows_nested_schemas() {
    let constraint = compile(&gemma(json!({
        "type": "object",
        "properties": {
            "at": {"type": "object", "properties": {"y": {"type": "number", "minimum": 0, "maximum": 9}, "X": {"$ref": "#/$defs/x"}}, "required": ["y", "X"]},
            "tags": {"type": "array", "items": {"enum": ["a", 1, null, {"k": ["b"]}]}, "minItems": 1, "maxItems": 2},
            "any": {"anyOf": [{"type": "null"}, {"type": ["integer", "boolean"]}, {"const": "é"}]},
            "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
            "tree": {"$ref": "#/$defs/tree"},
            "free": {},
        },
        "$defs": {
            "x": {"type": "integer"},
            "tree": {"type": "object", "properties": {"kids": {"items": {"$ref": "#/$defs/tree"}, "type": "array"}}},
        },
    })));
    for (arguments, ok) in [
        ("{}", true),
        ("{any:null,at:{X:1,y:2.5}}", true),
        ("{at:{y:2,X:1}}", false),
        ("{at:{X:1}}", false),
        ("{at:{X:1,y:10}}", false),
        ("{at:{X:'1',y:1}}", false),
        ("{at:3}", false),
        ("{tags:['a']}", true),
        ("{tags:[1,null]}", true),
        ("{tags:[{k:['b']}]}", true),
        ("{tags:[]}", false),
        ("{tags:['a','a','a']}", false),
        ("{tags:['c']}", false),
        ("{any:true}", true),
        ("{any:'é'}", true),
        ("{any:'e'}", false),
        ("{any:1.5}", false),
        ("{counts:{}}", true),
        ("{counts:{a:1,b.c:-2}}", true),
        ("{counts:{a:'1'}}", false),
        ("{tree:{kids:[{},{kids:[{kids:[]}]}]}}", true),
        ("{tree:{kids:[{},{kids:[{kids:1}]}]}}", false),
        ("{free:{a:['b',{}],c:soon}}", true),
        ("{free:'x',tree:{}}", true),
    ] {
        assert_eq!(takes(&constraint, arguments), ok, "{arguments}");
    }
}

/// Whatever else stands in the schema of an object, its properties hold, at the top and in a property.
#[test]
fn gemma_binds_objects_beside_alternatives_and_behind_references() {
    let a = || json!({"a": {"type": "integer"}});
    let required = json!([{"required": ["a"]}, {"required": ["b"]}]);
    let two = json!([
        {"properties": {"kind": {"const": "a"}, "n": {"type": "integer"}}, "required": ["kind", "n"]},
        {"properties": {"kind": {"const": "b"}}, "required": ["kind"]},
    ]);
    let defs = json!({"o": {"type": "object", "properties": a(), "required": ["a"]}});
    let one: &[(&str, bool)] = &[("{a:1}", true), ("{a:'x'}", false), ("{}", false), ("{a:1,c:1}", false), ("'x'", false)];
    let either: &[(&str, bool)] =
        &[("{kind:'a',n:1}", true), ("{kind:'b'}", true), ("{kind:'a'}", false), ("{kind:'b',n:1}", false), ("{kind:'c'}", false)];
    let any: &[(&str, bool)] = &[("{a:1}", true), ("{}", true), ("'x'", false), ("x", false)];
    for (schema, cases) in [
        (json!({"type": "object", "properties": a(), "required": ["a"], "anyOf": required}), one),
        (json!({"properties": a(), "required": ["a"], "oneOf": required}), one),
        (json!({"type": ["object", "null"], "properties": a(), "required": ["a"]}), one),
        (json!({"properties": a(), "required": ["a"]}), one),
        (json!({"description": "…", "allOf": [{"$ref": "#/$defs/o"}]}), one),
        (json!({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/o"}]}), one),
        (json!({"anyOf": two}), either),
        (json!({"type": "object", "oneOf": two}), either),
        (json!({"type": "object", "anyOf": required}), any),
    ] {
        let mut top = schema.clone();
        top["$defs"] = defs.clone();
        let constraint = compile(&gemma(top));
        for &(arguments, ok) in cases {
            assert_eq!(takes(&constraint, arguments), ok, "{schema}: {arguments}");
        }
        assert!(!takes(&constraint, "null"), "{schema}: arguments are an object");
        let inner = compile(&gemma(json!({"type": "object", "properties": {"p": schema}, "required": ["p"], "$defs": defs})));
        for &(value, ok) in cases {
            assert_eq!(takes(&inner, &format!("{{p:{value}}}")), ok, "{schema} in a property: {value}");
        }
        assert_eq!(takes(&inner, "{p:null}"), schema.to_string().contains("null"), "{schema} in a property");
    }
}

/// Row 8: each is compiled, or refused with a reason, in bounded time; and none takes the process with it.
#[test]
fn hostile_schemas_of_gemma_are_bounded() {
    let chain =
        |n: usize| -> Map<String, Value> { (0..n).map(|i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", i + 1)}))).collect() };
    let doubling: Map<String, Value> = (0..40)
        .map(|i| {
            let next = json!({"$ref": format!("#/$defs/d{}", (i + 1) % 40)});
            (format!("d{i}"), json!({"type": "object", "properties": {"a": next, "b": next}, "required": ["a", "b"]}))
        })
        .collect();
    let deep = (0..100).fold(json!({"type": "integer"}), |inner, _| json!({"type": "array", "items": inner}));
    let wide: Vec<Value> = (0..3000).map(|n| json!({"const": format!("value {n}")})).collect();
    let of = |schema: Value| json!({"type": "object", "properties": {"p": schema}, "required": ["p"]});
    let with = |schema: Value, defs: Map<String, Value>| json!({"type": "object", "properties": {"p": schema}, "$defs": defs});
    let tokens: Vec<Vec<u8>> = (0..256u32).map(|byte| vec![byte as u8]).chain([b"\xff<end>".to_vec(), b"\xff<mark>".to_vec()]).collect();
    let compiler = GrammarCompiler::from_tokens(&[&tokens[..255], &[vec![]], &tokens[256..]].concat(), &[256]).unwrap();
    for (name, schema, ok) in [
        ("circle", with(json!({"$ref": "#/$defs/d0"}), Map::from_iter([("d0".into(), json!({"$ref": "#/$defs/d0"}))])), true),
        ("chain", with(json!({"$ref": "#/$defs/d0"}), chain(5000)), true),
        ("doubling", with(json!({"$ref": "#/$defs/d0"}), doubling), true),
        ("itself", json!({"type": "object", "properties": {"p": {"$ref": "#"}}}), true),
        (
            "choice of itself",
            with(json!({"$ref": "#/$defs/d0"}), Map::from_iter([("d0".into(), json!({"anyOf": [{"$ref": "#/$defs/d0"}]}))])),
            true,
        ),
        ("no value", of(json!({"enum": ["<escape>"]})), false),
        ("no choice", of(json!({"anyOf": []})), false),
        ("no type", of(json!({"type": []})), false),
        ("strange type", of(json!({"type": "strange"})), false),
        ("ranges", of(json!({"type": "integer", "minimum": 3, "maximum": 1})), false),
        ("items", of(json!({"type": "array", "minItems": 2, "maxItems": 1})), false),
        ("many items", of(json!({"type": "array", "minItems": u64::MAX, "maxItems": u64::MAX})), true),
        (
            "counted in depth",
            of((0..8).fold(json!({}), |inner, _| json!({"type": "array", "items": inner, "minItems": 250, "maxItems": 256}))),
            true,
        ),
        ("deep", of(deep), true),
        ("wide", of(json!({"anyOf": wide})), true),
        ("no object", json!({"type": "string", "$ref": 7, "properties": []}), true),
    ] {
        let begun = std::time::Instant::now();
        let grammar = gemma(schema);
        let compiled = compiler.compile(&grammar);
        println!("{name}: {:?}, {} bytes, {:?}", begun.elapsed(), grammar.key().len(), compiled.as_ref().err());
        assert_eq!(compiled.is_ok(), ok, "{name}: {:?}", compiled.err());
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{name}");
    }
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
