//! Files and templates made to break their reader: each is an error, soon and without a panic.

use super::fixture;
use ferrum_models::text::{ChatOptions, ChatTemplate, EncodeOptions, GgufVocab, TextError, Tokenizer, TokenizerFiles};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A small sound `gpt2` vocabulary: `a`, `b`, `ab`, `<e>`.
fn sound() -> GgufVocab<'static> {
    GgufVocab {
        model: "gpt2",
        pre: "gpt-2",
        tokens: vec!["a", "b", "ab", "<e>"],
        token_types: Some(vec![1, 1, 1, 3]),
        merges: Some(vec!["a b"]),
        eos: Some(3),
        ..GgufVocab::default()
    }
}

fn error(change: impl FnOnce(&mut GgufVocab<'static>)) -> String {
    let mut file = sound();
    change(&mut file);
    Tokenizer::from_gguf_vocab(&file).unwrap_err().to_string()
}

#[test]
fn bad_vocabularies_are_errors() {
    assert_eq!(Tokenizer::from_gguf_vocab(&sound()).unwrap().encode("ab", EncodeOptions::default()).unwrap(), [2]);
    assert!(error(|file| file.model = "rwkv").contains("`rwkv`"));
    assert!(error(|file| file.pre = "brand-new").contains("`brand-new`"));
    assert!(error(|file| file.tokens.clear()).contains("types for 0 tokens"));
    assert!(error(|file| (file.tokens, file.token_types) = (vec![], None)).contains("empty"));
    assert!(error(|file| file.tokens[1] = "a").contains("tokens 0 and 1"));
    assert!(error(|file| file.token_types = Some(vec![1])).contains("1 types for 4 tokens"));
    assert!(error(|file| file.merges = None).contains("merges"));
    assert!(error(|file| file.merges = Some(vec!["a c"])).contains("merge 0 `a c`"));
    assert!(error(|file| file.merges = Some(vec!["ab"])).contains("merge 0"));
    assert!(error(|file| file.merges = Some(vec![""])).contains("merge 0"));
    assert!(error(|file| file.merges = Some(vec!["a  b"])).contains("merge 0"));
    assert!(error(|file| file.bos = Some(4)).contains("bos_token_id"));
    assert!(error(|file| file.eos = Some(u32::MAX)).contains("eos_token_id"));
    assert!(error(|file| file.eot = Some(9)).contains("eot_token_id"));
    assert!(error(|file| file.pad = Some(9)).contains("padding_token_id"));
    assert!(error(|file| file.add_bos = Some(true)).contains("no BOS"));
    assert!(error(|file| file.tokens[0] = "a".repeat(70_000).leak()).contains("70000"));
    assert!(error(|file| file.model = "llama").contains("scores"));
    assert!(error(|file| (file.model, file.scores) = ("llama", Some(vec![0.0]))).contains("1 scores for 4 tokens"));
    assert!(error(|file| (file.model, file.scores) = ("llama", Some(vec![f32::NAN; 4]))).contains("not a number"));
    assert!(error(|file| (file.model, file.scores) = ("llama", Some(vec![0.0; 4]))).contains("byte tokens"));
    let byte = |file: &mut GgufVocab| (file.model, file.scores, file.token_types) = ("llama", Some(vec![0.0; 4]), Some(vec![6; 4]));
    assert!(error(byte).contains("<0xNN>"));
}

#[test]
fn holes_are_allowed_and_long_runs_are_fast() {
    let mut file = sound();
    file.tokens.extend(["", ""]);
    file.token_types = None;
    let tokenizer = Tokenizer::from_gguf_vocab(&file).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.token_bytes(5), tokenizer.token_bytes(6)), (6, Some(&b""[..]), None));
    let begin = Instant::now();
    for text in ["ab".repeat(1 << 19), "a".repeat(1 << 20), " ".repeat(1 << 20), "\n ".repeat(1 << 19)] {
        tokenizer.encode(&text, EncodeOptions::default()).unwrap();
    }
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
}

/// `tokenizer.json` of the fixtures with one part replaced.
fn changed(pointer: &str, value: Value) -> Result<Tokenizer, TextError> {
    let mut json: Value = serde_json::from_slice(&std::fs::read(fixture("llama3/tokenizer.json")).unwrap()).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    json.pointer_mut(parent).unwrap()[key] = value;
    from_json(json.to_string().as_bytes())
}

fn from_json(json: &[u8]) -> Result<Tokenizer, TextError> {
    Tokenizer::from_files(&TokenizerFiles { tokenizer_json: json, ..TokenizerFiles::default() })
}

#[test]
fn bad_json_is_an_error() {
    assert!(changed("/version", json!("1.0")).is_ok());
    for json in [&b""[..], b"{", b"[]", b"null", b"{}", b"{\"model\": 1}", b"\xFF\xFE", &b"[".repeat(1 << 20)] {
        assert!(from_json(json).is_err());
    }
    let cases = [
        ("/decoder", json!({"type": "ByteLevel2"})),
        ("/decoder", json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true})),
        ("/decoder", Value::Null),
        ("/decoder", json!({"type": "Strip", "content": " ", "start": 4_000_000_000u32, "stop": 0})),
        ("/decoder", json!({"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""})),
        ("/model/dropout", json!(0.5)),
        ("/model/vocab/x", json!(-1)),
        ("/model/vocab/x", json!(4_294_967_295u32)),
        ("/model/vocab/xy", json!(17)),
        ("/model/merges", json!([["nope", "none"]])),
        ("/normalizer", json!({"type": "Replace", "pattern": {"Regex": "("}, "content": ""})),
        (
            "/normalizer",
            json!({"type": "Sequence", "normalizers": vec![json!({"type": "Replace", "pattern": {"String": "l"}, "content": "ll"}); 60]}),
        ),
        ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        (
            "/post_processor",
            json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "pair": [], "special_tokens": {}}),
        ),
    ];
    for (pointer, value) in cases {
        let begin = Instant::now();
        assert!(changed(pointer, value.clone()).is_err(), "{pointer} {value}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{pointer} {value}");
    }
}

/// Padding, truncation and slow expressions change nothing and stop nothing.
#[test]
fn padding_is_ignored_and_backtracking_is_bounded() {
    let plain = changed("/version", json!("1.0")).unwrap();
    let padding = json!({"strategy": {"Fixed": 1_000_000_000}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"});
    let padded = changed("/padding", padding).unwrap();
    let cut = json!({"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0});
    let truncated = changed("/truncation", cut).unwrap();
    let text = "the other one";
    let encode = |tokenizer: &Tokenizer, text: &str| tokenizer.encode(text, EncodeOptions::default());
    assert_eq!(encode(&padded, text).unwrap(), encode(&plain, text).unwrap());
    assert_eq!(encode(&truncated, text).unwrap(), encode(&plain, text).unwrap());
    for part in [
        ("/normalizer", json!({"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"})),
        ("/pre_tokenizer", json!({"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": false})),
    ] {
        let begin = Instant::now();
        if let Ok(tokenizer) = changed(part.0, part.1) {
            let _ = encode(&tokenizer, &("a".repeat(4_000) + "b"));
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    }
}

#[test]
fn ids_of_configurations_are_checked() {
    let json = std::fs::read(fixture("llama3/tokenizer.json")).unwrap();
    let with = |config: &str, generation: &str| {
        Tokenizer::from_files(&TokenizerFiles {
            tokenizer_json: &json,
            tokenizer_config: Some(config.as_bytes()),
            generation_config: Some(generation.as_bytes()),
            chat_template: None,
        })
    };
    assert_eq!(with(r#"{"eos_token": {"content": "<|eos|>"}}"#, r#"{"eos_token_id": [3, 7]}"#).unwrap().end_ids(), [1, 3, 7]);
    assert!(with("{}", r#"{"eos_token_id": 99999999}"#).unwrap_err().to_string().contains("99999999"));
    assert!(with(r#"{"eos_token": "<nope>"}"#, "{}").unwrap_err().to_string().contains("<nope>"));
    assert!(with("{", "{}").unwrap_err().to_string().contains("tokenizer_config.json"));
    assert!(with("{}", r#"{"eos_token_id": -1}"#).unwrap_err().to_string().contains("generation_config.json"));
}

#[test]
fn no_template_says_what_to_do() {
    let tokenizer = Tokenizer::from_gguf_vocab(&sound()).unwrap();
    assert!(tokenizer.chat_template().unwrap_err().to_string().contains("--raw"));
}

/// Compiles and renders; the test's own small stack must not matter.
fn render(source: &str) -> Result<String, TextError> {
    let begin = Instant::now();
    let message = json!({"role": "user", "content": "x"});
    let result = ChatTemplate::new(source, Vec::new()).and_then(|template| template.render(&[message], &ChatOptions::default()));
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?} for {:.60}", begin.elapsed(), source);
    result
}

#[test]
fn hostile_templates_are_errors() {
    let nest = |open: &str, body: &str, close: &str, times: usize| open.repeat(times) + body + &close.repeat(times);
    let errors = [
        nest("{% if true %}", "", "{% endif %}", 5_500),
        nest("{% for x in [1] %}", "", "{% endfor %}", 3_000),
        format!("{{{{ {} }}}}", nest("(", "1", ")", 6_000)),
        format!("{{{{ {} }}}}", nest("[", "1", "]", 6_000)),
        format!("{{{{ {} }}}}", nest("-", "1", "", 60_000)),
        format!("{{{{ {}true }}}}", "not ".repeat(20_000)),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(),
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}".into(),
        "{% for i in range(10**9) %}{% endfor %}".into(),
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".into(),
        "{{ 'a' * 10**10 }}".into(),
        "{{ [1] * 10**10 }}".into(),
        "{% set ns = namespace(s='aaaaaaaaaa') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}".into(),
        "{% set ns = namespace(s=[1]) %}{% for i in range(100) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}".into(),
        "{{ '%1000000000d' % 1 }}".into(),
        "{{ 'x' | center(10**10) }}".into(),
        "{{ 'x' | indent(10**10) }}".into(),
        "{{ messages | tojson(indent=10**10) }}".into(),
        "{% include 'chat_template' %}".into(),
        "{% extends 'chat_template' %}".into(),
        "{% import '/etc/passwd' as x %}".into(),
        "{{ messages.__class__.__mro__ }}".into(),
        "{{ raise_exception('no') }}".into(),
        "{{ undefined.x }}".into(),
        "{{ undefined | tojson }}".into(),
        "{{ 1 // 0 }}".into(),
        "{% if %}".into(),
        "{{ 'open".into(),
        "x".repeat(200_000),
    ];
    for source in errors {
        let result = render(&source);
        assert!(result.is_err(), "{source:.60} gave {:.60}", result.unwrap());
    }
}

/// Long flat constructs nest in the syntax tree without brackets; each may be an error or not, but none may overflow a stack.
#[test]
fn long_templates_end() {
    let flat = [
        format!("{{{{ 1{} }}}}", "+1".repeat(60_000)),
        format!("{{{{ a{} }}}}", ".b".repeat(60_000)),
        format!("{{{{ a{} }}}}", "[0]".repeat(40_000)),
        format!("{{{{ a{} }}}}", "()".repeat(60_000)),
        format!("{{{{ 'a'{} }}}}", "|e".repeat(60_000)),
        format!("{{{{ 'a'{} }}}}", "~1".repeat(60_000)),
        format!("{{{{ 1{} }}}}", " if 1".repeat(20_000)),
        format!("{{{{ 1{} }}}}", "<1".repeat(60_000)),
        format!("{{{{ 1{} }}}}", "**1".repeat(40_000)),
        format!("{{{{ 1{} }}}}", " or 1".repeat(20_000)),
        format!("{{{{ 1{} }}}}", " is string".repeat(10_000)),
        format!("{{{{ '%s'{} }}}}", " % '%s'".repeat(15_000)),
        format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(10_000)),
        format!("{{% set x = 1{} %}}", " if 1 else 1".repeat(10_000)),
        "{{ x }}".repeat(18_000),
    ];
    for source in flat {
        let _ = render(&source);
    }
}

#[test]
fn deep_messages_are_errors() {
    let template = ChatTemplate::new("{{ messages | tojson }}", Vec::new()).unwrap();
    let deep = (0..200).fold(json!(1), |value, _| json!([value]));
    assert!(matches!(template.render(&[deep], &ChatOptions::default()), Err(TextError::TooLarge { .. })));
}
