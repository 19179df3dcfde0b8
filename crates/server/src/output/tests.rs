use super::*;

/// Everything an answer becomes, with neighbouring deltas of one kind joined.
fn parse(tools: Option<ToolFormat>, prompt_end: &str, pieces: &[&str]) -> Vec<Delta> {
    let mut parser = OutputParser::new(tools, true, prompt_end);
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
fn hermes_calls() {
    let one = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Zürich {\\\"}\", \"days\": [1, 2]}}\n</tool_call>";
    let arguments = "{\"city\": \"Zürich {\\\"}\", \"days\": [1, 2]}";
    check(Some(ToolFormat::Hermes), "", one, &call(0, "weather", arguments));
    let two = format!("Let me look.\n{one}\n<tool_call>{{\"arguments\": {{}}, \"name\": \"now\"}}</tool_call>");
    let want = [&[content("Let me look.")][..], &call(0, "weather", arguments), &call(1, "now", "{}")].concat();
    check(Some(ToolFormat::Hermes), "", &two, &want);
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
    assert_eq!(ToolFormat::of_template("{{ messages }}"), None);
}

#[test]
fn one_call_is_reported_where_no_more_are_wanted() {
    let two = "[TOOL_CALLS][{\"name\": \"a\", \"arguments\": {\"x\": 1}}, {\"name\": \"b\", \"arguments\": {}}]";
    let mut parser = OutputParser::new(Some(ToolFormat::Mistral), true, "").one_call();
    let mut deltas = parser.push(two);
    deltas.extend(parser.finish());
    assert_eq!(deltas, call(0, "a", "{\"x\": 1}"));
}
