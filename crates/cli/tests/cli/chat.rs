//! The chat at a terminal.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    common::{fixture, read_json},
    terminal::{CTRL_C, CTRL_D, PROMPT, Terminal, UP},
};

/// A chat that waits for its first message.
fn chat(home: &Path, args: &[&str]) -> Terminal {
    let model = fixture("llama3");
    let mut terminal = Terminal::start(&[&["run", &model, "--temperature", "0", "--ignore-eos"], args].concat(), home);
    terminal.expect("/help for commands");
    terminal.expect(PROMPT);
    terminal
}

/// The conversation as `/save` writes it.
fn saved(terminal: &mut Terminal, home: &Path) -> Value {
    let file = home.join("saved.json");
    terminal.line(&format!("/save {}", file.display()));
    read_json(file)
}

/// What was said by the user.
fn questions(chat: &Value) -> Vec<&str> {
    let messages = chat["messages"].as_array().unwrap();
    messages.iter().filter(|m| m["role"] == "user").map(|m| m["content"].as_str().unwrap()).collect()
}

#[test]
fn messages_have_many_lines_and_history_is_kept() {
    let home = tempfile::tempdir().unwrap();
    let mut terminal = chat(home.path(), &["-n", "4"]);
    terminal.press("two\\\r");
    terminal.expect("... ");
    terminal.line("lines");
    for line in ["\"\"\"\r", "a\\\r", "\r", "b = \"\"\"b\"\"\"\r", "\"\"\"b\r"] {
        terminal.press(line);
        terminal.expect("... ");
    }
    terminal.line("\"\"\"");
    terminal.press("\"\"\"c\r");
    terminal.expect("... ");
    terminal.line("d\"\"\"");
    terminal.line("one line");
    // The editor puts a line back, to be changed and sent again.
    terminal.press(UP);
    terminal.expect("one line");
    terminal.line("!");
    let first = saved(&mut terminal, home.path());
    assert_eq!(questions(&first), ["two\nlines", "a\\\n\nb = \"\"\"b\"\"\"\n\"\"\"b\n", "c\nd", "one line", "one line!"]);
    terminal.press("/exit\r");
    assert_eq!(terminal.wait(), Some(0));

    let mut terminal = chat(home.path(), &["-n", "4"]);
    // Behind /exit and /save lies the last message.
    terminal.press(&UP.repeat(3));
    terminal.expect("one line!");
    terminal.line("");
    assert_eq!(questions(&saved(&mut terminal, home.path())), ["one line!"]);
    terminal.press(CTRL_D);
    assert_eq!(terminal.wait(), Some(0));
}

#[test]
fn commands_change_the_conversation() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("chat.json");
    let mut terminal = chat(home.path(), &["-n", "8", "--stats", "--system", "Be brief."]);
    let help = terminal.line("/help");
    for command in ["/system", "/clear", "/save", "/load", "/params", "/help", "/exit"] {
        assert!(help.contains(command), "{command} is missing from {help}");
    }
    assert!(terminal.line("/system").contains("Be brief."));

    assert!(terminal.line("Hello").contains("(0 reused)"));
    let second = terminal.line("And then?");
    assert!(second.contains("reused") && !second.contains("(0 reused)"), "the second turn computes only what is new: {second}");
    terminal.line(&format!("/save {}", file.display()));
    let whole = read_json(&file);
    assert_eq!((whole["system"].as_str(), questions(&whole).len(), whole["messages"].as_array().unwrap().len()), (Some("Be brief."), 2, 4));

    terminal.line("/clear");
    assert_eq!(saved(&mut terminal, home.path())["messages"], json!([]));
    terminal.line("/system Speak Latin.");
    terminal.line("Salve");
    let latin = saved(&mut terminal, home.path());
    assert_eq!((latin["system"].as_str(), questions(&latin)), (Some("Speak Latin."), vec!["Salve"]));

    terminal.line(&format!("/load {}", file.display()));
    assert_eq!(saved(&mut terminal, home.path()), whole);
    terminal.line("Go on");
    assert_eq!(questions(&saved(&mut terminal, home.path())), ["Hello", "And then?", "Go on"]);

    // What fails is said and changes nothing.
    fs::write(&file, "{\"messages\": [1]}").unwrap();
    for (line, complaint) in [
        ("/sing", "there is no command /sing"),
        ("/save", "needs a file name"),
        ("/load /no/such/file", "/no/such/file"),
        (&format!("/load {}", file.display()), "not a conversation"),
        ("/params warmth 3", "no parameter `warmth`"),
        ("/params temperature hot", "not a number"),
        ("/params top_p 1.5", "top_p"),
    ] {
        let said = terminal.line(line);
        assert!(said.contains("error: ") && said.contains(complaint), "{line}: {said}");
    }
    assert_eq!(questions(&saved(&mut terminal, home.path())).len(), 3);
    terminal.press("/exit\r");
    assert_eq!(terminal.wait(), Some(0));
}

#[test]
fn parameters_are_shown_and_set() {
    let home = tempfile::tempdir().unwrap();
    let mut terminal = chat(home.path(), &["-n", "3", "--stats"]);
    for (name, value) in [
        ("temperature", "1.5"),
        ("top_k", "7"),
        ("top_p", "0.5"),
        ("min_p", "0.25"),
        ("repeat_penalty", "1.1"),
        ("presence_penalty", "-1"),
        ("frequency_penalty", "0.125"),
        ("seed", "42"),
        ("max_tokens", "6"),
    ] {
        terminal.line(&format!("/params {name} {value}"));
        let shown = terminal.line("/params");
        assert!(shown.lines().any(|line| line.trim() == format!("{name} {value}")), "{name}: {shown}");
    }
    assert!(terminal.line("x").contains("answer 6 tokens"));
    terminal.line("/params seed random");
    terminal.line("/params max_tokens none");
    let shown = terminal.line("/params");
    assert!(shown.contains("seed random") && shown.contains("max_tokens none"), "{shown}");
}

#[test]
fn ctrl_c_stops_the_answer_and_not_the_program() {
    let home = tempfile::tempdir().unwrap();
    let mut terminal = chat(home.path(), &["--context-shift"]);
    terminal.press("Tell me everything\r");
    terminal.expect("\n");
    // Some of the answer, which has no end of its own, shows that it runs.
    terminal.glimpse();
    terminal.press(CTRL_C);
    terminal.expect("(stopped)");
    terminal.expect(PROMPT);
    terminal.press(CTRL_C);
    terminal.expect("Ctrl-D leaves");
    terminal.expect(PROMPT);
    // A message that was begun is dropped.
    terminal.press("half of a\\\r");
    terminal.expect("... ");
    terminal.press(CTRL_C);
    terminal.expect(PROMPT);
    let chat = saved(&mut terminal, home.path());
    assert_eq!(questions(&chat), ["Tell me everything"]);
    assert!(!chat["messages"][1]["content"].as_str().unwrap().is_empty(), "what was answered stays");
    terminal.press(CTRL_D);
    assert_eq!(terminal.wait(), Some(0));
}

#[test]
fn a_full_context_is_said_and_the_chat_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let mut terminal = chat(home.path(), &["--ctx", "64"]);
    assert!(terminal.line("Tell me everything").contains("the context of 64 tokens is full"));
    let refused = terminal.line("And more");
    assert!(refused.contains("error: ") && refused.contains("64"), "{refused}");
    terminal.line("/clear");
    assert!(terminal.line("Again").contains("the context of 64 tokens is full"));
}
