use super::*;

/// Everything an answer becomes, with neighbouring deltas of one kind joined.
fn parse(tools: Option<ToolFormat>, prompt_end: &str, pieces: &[&str]) -> Vec<Delta> {
    read(OutputParser::new(tools, true, prompt_end), pieces)
}

fn read(mut parser: OutputParser, pieces: &[&str]) -> Vec<Delta> {
    let mut deltas: Vec<Delta> = pieces.iter().flat_map(|p| parser.push(p)).collect();
    deltas.extend(parser.finish());
    let mut joined: Vec<Delta> = Vec::new();
    for delta in deltas {
        match (joined.last_mut(), delta) {
            (Some(Delta::Content(a)), Delta::Content(b)) | (Some(Delta::Reasoning(a)), Delta::Reasoning(b)) => a.push_str(&b),
            (Some(Delta::CallArguments { text: a, index: i }), Delta::CallArguments { text: b, index: j }) if *i == j => a.push_str(&b),
            (_, delta) => joined.push(delta),
        }
    }
    joined
}

/// The same at every way to cut the text in two, and letter by letter.
fn check(tools: Option<ToolFormat>, prompt_end: &str, text: &str, want: &[Delta]) {
    assert_eq!(parse(tools, prompt_end, &[text]), want, "{text}");
    for cut in (0..=text.len()).filter(|&at| text.is_char_boundary(at)) {
        assert_eq!(parse(tools, prompt_end, &[&text[..cut], &text[cut..]]), want, "{text} cut at {cut}");
    }
    let letters: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(parse(tools, prompt_end, &letters.iter().map(String::as_str).collect::<Vec<_>>()), want, "{text} by letters");
}

fn content(text: &str) -> Delta {
    Delta::Content(text.into())
}

fn call(index: usize, name: &str, arguments: &str) -> [Delta; 2] {
    [Delta::CallStart { index, name: name.into() }, Delta::CallArguments { index, text: arguments.into() }]
}

#[test]
fn plain_text_goes_through() {
    check(None, "", "a <b> {\"name\": 1} <tool_call>é", &[content("a <b> {\"name\": 1} <tool_call>é")]);
    check(Some(ToolFormat::Hermes), "", "1 < 2 <tool", &[content("1 < 2 <tool")]);
}

#[test]
fn reasoning_is_split_off() {
    let want = [Delta::Reasoning("\nhm\n".into()), content("Yes.")];
    check(None, "", "<think>\nhm\n</think>\n\nYes.", &want);
    check(None, "<|im_start|>assistant\n<think>\n", "\nhm\n</think>\n\nYes.", &want);
    check(None, "", "[THINK]\nhm\n[/THINK]Yes.", &want);
    check(None, "", "<think>cut off", &[Delta::Reasoning("cut off".into())]);
}

#[test]
fn reasoning_that_stays_in_the_text_has_no_calls_either() {
    let call_text = "{\"name\": \"a\", \"parameters\": {}}";
    for (prompt_end, thought) in
        [("", "<think>\nI call ```json\n{\"name\": \"b\", \"parameters\": {}}\n``` </think>"), ("<think>", "hm</think>")]
    {
        for (rest, want) in [
            ("\n\nYes.", vec![content(&format!("{thought}\n\nYes."))]),
            (call_text, [&[content(thought)][..], &call(0, "a", "{}")].concat()),
        ] {
            let text = format!("{thought}{rest}");
            for tools in [ToolFormat::Llama3, ToolFormat::Json] {
                let parser = || OutputParser::new(Some(tools), false, prompt_end);
                assert_eq!(read(parser(), &[&text]), want, "{text}");
                let letters: Vec<String> = text.chars().map(String::from).collect();
                assert_eq!(read(parser(), &letters.iter().map(String::as_str).collect::<Vec<_>>()), want, "{text} by letters");
            }
        }
    }
    // Where nothing is looked for, it is all text.
    let text = "<think>\na</think>\n \n";
    assert_eq!(read(OutputParser::new(None, false, ""), &[text]), [content(text)]);
}

#[test]
fn a_mark_waits_for_a_longer_one() {
    let want = [&[Delta::Reasoning("hm".into())][..], &call(0, "a", "{}")].concat();
    check(Some(ToolFormat::Json), "", "[THINK]hm[/THINK][{\"name\": \"a\", \"parameters\": {}}]", &want);
    check(Some(ToolFormat::Json), "", "[THIN", &[content("[THIN")]);
}

#[test]
fn hermes_calls() {
    let one = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Zürich {\\\"}\", \"days\": [1, 2]}}\n</tool_call>";
    let arguments = "{\"city\": \"Zürich {\\\"}\", \"days\": [1, 2]}";
    check(Some(ToolFormat::Hermes), "", one, &call(0, "weather", arguments));
    let two = format!("Let me look.\n{one}\n<tool_call>{{\"arguments\": {{}}, \"name\": \"now\"}}</tool_call>");
    let want = [&[content("Let me look.")][..], &call(0, "weather", arguments), &call(1, "now", "{}")].concat();
    check(Some(ToolFormat::Hermes), "", &two, &want);
}

/// Text in pieces of any length gives the same calls.
fn check_bare(text: &str, want: &[Delta]) {
    let parser = || OutputParser::new(Some(ToolFormat::Hermes), true, "").bare_calls(&["now".into(), "there".into()]);
    assert_eq!(read(parser(), &[text]), want, "{text}");
    let letters: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(read(parser(), &letters.iter().map(String::as_str).collect::<Vec<_>>()), want, "{text} by letters");
}

#[test]
fn calls_without_their_marks() {
    let (now, there) = ("{\"name\": \"now\", \"arguments\": {}}", "{\"name\": \"there\", \"arguments\": {\"x\": 1}}");
    let both = [call(0, "now", "{}"), call(1, "there", "{\"x\": 1}")].concat();
    for text in [
        format!("{now}\n{there}"),
        format!("```json\n{now}\n```\n```json\n{there}\n```"),
        format!("\n```json\n[{now},\n{there}]\n```\n"),
        format!("<tool_call>\n{now}\n</tool_call>\n<tool_call>\n{there}\n</tool_call>"),
        format!("{now}\n<tool_call>\n{there}\n</tool_call>"),
        // With its mark it may go without arguments.
        format!("<tool_call>{{\"name\": \"now\"}}</tool_call>\n<tool_call>{there}</tool_call>"),
    ] {
        check_bare(&text, &both);
    }
    for text in [
        "{\"name\": \"Bob\", \"age\": 30}",
        "```json\n{\"name\": \"Bob\"}\n```",
        "Write `{\"name\": \"now\", \"arguments\": {}}`.",
        // Members of a call, but no tool of that name.
        "{\"name\": \"grep\", \"arguments\": {\"flags\": \"-r\"}}",
        "```json\n{\"name\": \"grep\", \"parameters\": {}}\n```\nThat is it.",
        "{\"arguments\": {}, \"name\": \"nowhere\"}\n{\"name\": \"now\", \"arguments\": {}}",
        "As JSON:\n```json\n{\"name\": \"now\", \"arguments\": {}}\n```",
    ] {
        check_bare(text, &[content(text)]);
    }
    // The mark says that it is a call, whatever its name.
    check_bare("<tool_call>\n{\"name\": \"grep\", \"arguments\": {}}\n</tool_call>", &call(0, "grep", "{}"));
    let text = "{\"name\": \"grep\", \"arguments\": {}}";
    check_bare(&format!("{now}\n{text}"), &[&call(0, "now", "{}")[..], &[content(text)]].concat());
    // Nothing is taken for a call where a grammar makes the answer.
    check(Some(ToolFormat::Hermes), "", now, &[content(now)]);
}

#[test]
fn what_is_no_call_is_shown() {
    let broken = "<tool_call>{\"title\": \"x\"}</tool_call>";
    check(Some(ToolFormat::Hermes), "", broken, &[content(broken)]);
    check(Some(ToolFormat::Hermes), "", "<tool_call>{\"name", &[content("<tool_call>{\"name")]);
}

#[test]
fn mistral_calls() {
    let text = "[TOOL_CALLS][{\"name\": \"a\", \"arguments\": {\"x\": 1}}, {\"name\": \"b\", \"arguments\": {}}]";
    check(Some(ToolFormat::Mistral), "", text, &[call(0, "a", "{\"x\": 1}"), call(1, "b", "{}")].concat());
}

#[test]
fn llama_calls() {
    check(Some(ToolFormat::Llama3), "", "{\"name\": \"a\", \"parameters\": {\"x\": \"1\"}}", &call(0, "a", "{\"x\": \"1\"}"));
    check(
        Some(ToolFormat::Llama3),
        "",
        "Use {\"name\": \"a\", \"parameters\": {}}",
        &[content("Use {\"name\": \"a\", \"parameters\": {}}")],
    );
    check(Some(ToolFormat::Llama3), "", "{\"answer\": 42}", &[content("{\"answer\": 42}")]);
}

#[test]
fn formats_are_told_by_the_template() {
    assert_eq!(ToolFormat::of_template("{% if tools %}<tool_call>"), Some(ToolFormat::Hermes));
    assert_eq!(ToolFormat::of_template("{% if tools %}[TOOL_CALLS]"), Some(ToolFormat::Mistral));
    assert_eq!(ToolFormat::of_template("{% if tools %}Environment: ipython"), Some(ToolFormat::Llama3));
    assert_eq!(ToolFormat::of_template("{% if tools %}<start_function_call>call:"), Some(ToolFormat::FunctionGemma));
    assert_eq!(ToolFormat::of_template("{{ messages }}"), Some(ToolFormat::Json));
    assert_eq!(ToolFormat::of_template("{% if tools %}<tool_call><function="), None);
    assert_eq!(ToolFormat::of_template("{% if tools %}some other form"), None);
}

#[test]
fn one_call_is_reported_where_no_more_are_wanted() {
    let two = "[TOOL_CALLS][{\"name\": \"a\", \"arguments\": {\"x\": 1}}, {\"name\": \"b\", \"arguments\": {}}]";
    let mut parser = OutputParser::new(Some(ToolFormat::Mistral), true, "").one_call();
    let mut deltas = parser.push(two);
    deltas.extend(parser.finish());
    assert_eq!(deltas, call(0, "a", "{\"x\": 1}"));
}

#[test]
fn function_gemma_calls() {
    let text = "On it. <start_function_call>call:get_weather{city:<escape>Bern, {\"x\"}\n<escape>,days:3,deep:{a:[1,<escape>é<escape>,{}],\
                b:true},word:soon}<end_function_call><start_function_call>call:now{}<end_function_call>";
    let arguments = r#"{"city":"Bern, {\"x\"}\n","days":3,"deep":{"a":[1,"é",{}],"b":true},"word":"soon"}"#;
    let want = [&[content("On it.")][..], &call(0, "get_weather", arguments), &call(1, "now", "{}")].concat();
    check(Some(ToolFormat::FunctionGemma), "", text, &want);
    // What is malformed becomes the nearest JSON.
    let text = "<start_function_call>call:f{a,<escape>b<escape>:[1},c:}<end_function_call>done";
    let want = [&call(0, "f", r#"{"a":null,"b":[1],"c":null}"#)[..], &[content("done")]].concat();
    check(Some(ToolFormat::FunctionGemma), "", text, &want);
    for broken in ["<start_function_call>name{}<end_function_call>", "<start_function_call>call:two words{}", "<start_function_call>call"] {
        check(Some(ToolFormat::FunctionGemma), "", broken, &[content(broken)]);
    }
}

#[test]
fn json_calls() {
    let json = Some(ToolFormat::Json);
    let (a, b) = ("{\"name\": \"a\", \"parameters\": {\"x\": [1, \"}\"]}}", "{\"arguments\": {}, \"name\": \"b\"}");
    let both = [call(0, "a", "{\"x\": [1, \"}\"]}"), call(1, "b", "{}")].concat();
    for text in [
        format!("{a}\n{b}"),
        format!("  [{a}, {b}]\n"),
        format!("```json\n{a}\n{b}\n```"),
        format!("```tool_code\n[{a},{b}]\n```\n"),
        format!("```json\n{a}\n```\n\n```json\n{b}\n```"),
        format!("<think></think>{a}; {b}"),
    ] {
        check(json, "", &text, &both);
    }
    let text = format!("I will call it:\n```json\n{a}\n```\nand wait");
    check(json, "", &text, &[&[content("I will call it:")][..], &both[..2], &[content("\nand wait")]].concat());
    for text in [
        "{\"name\": \"Ann\", \"age\": 3}",
        "[1, 2, {\"name\": \"x\"}]",
        "{\"name\": \"x\"} and so on",
        "Like ```json\n{\"a\": 1}\n``` and ```json\n[1, 2]```",
        "a {\"name\": \"a\", \"parameters\": {}}",
        "{",
        "```json\n",
        "```json\n{\"name\": \"a\", \"para",
        "```python\nprint(1)\n```",
    ] {
        check(json, "", text, &[content(text)]);
    }
}

#[test]
fn a_call_behind_what_is_none_is_found() {
    let (broken, good) = ("<tool_call>{\"title\": \"x\"}</tool_call>", "<tool_call>{\"name\": \"a\", \"arguments\": {}}</tool_call>");
    check(Some(ToolFormat::Hermes), "", &format!("{broken}{good}"), &[&[content(broken)][..], &call(0, "a", "{}")].concat());
}

/// Whatever a model writes: no panic, the same at every way to cut it, and FunctionGemma's arguments are JSON when their call ends.
#[test]
fn hostile_text_is_read_the_same_however_it_is_cut() {
    const PARTS: [&str; 32] = [
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<start_function_call>",
        "<end_function_call>",
        "call:f{",
        "<escape>",
        "```json\n",
        "```",
        "`",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\"name\": \"f\"",
        "\"arguments\": ",
        "\"parameters\": {",
        "<think>",
        "</think>",
        "[THINK]",
        "[/THINK]",
        " ",
        "\n",
        "é",
        "🦀",
        "1",
        "null",
        "<",
    ];
    let formats = [ToolFormat::Hermes, ToolFormat::Mistral, ToolFormat::Llama3, ToolFormat::FunctionGemma, ToolFormat::Json];
    let mut random = 1u64;
    let mut next = |n: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize % n
    };
    let mut ended = 0;
    for round in 0..20_000 {
        let format = formats[round % formats.len()];
        let opening = format.openings().first().filter(|_| round % 3 > 0).copied().unwrap_or_default();
        let call = if format == ToolFormat::FunctionGemma { "call:f{" } else { "{" };
        let text: String =
            [opening, if round % 3 > 1 { call } else { "" }].into_iter().chain((0..next(14)).map(|_| PARTS[next(PARTS.len())])).collect();
        let whole = parse(Some(format), "", &[&text]);
        let letters: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(parse(Some(format), "", &letters.iter().map(String::as_str).collect::<Vec<_>>()), whole, "{format:?}: {text:?}");
        let cut = (0..=next(text.len() + 1)).rev().find(|&at| text.is_char_boundary(at)).unwrap();
        assert_eq!(parse(Some(format), "", &[&text[..cut], &text[cut..]]), whole, "{format:?}: {text:?} at {cut}");
        if let call::Parts { arguments: Some(arguments), end: Some(_), .. } = gemma::scan(&format!("call:f{{{text}")) {
            assert!(serde_json::from_str::<serde_json::Value>(&arguments).is_ok(), "{text:?}: {arguments}");
            ended += 1;
        }
    }
    assert!(ended > 1000, "{ended} of FunctionGemma's calls came to their end");
}
