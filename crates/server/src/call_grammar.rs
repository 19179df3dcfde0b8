//! Grammars of tool calls: the model family's own form around arguments that are valid under the tool's schema.

mod gemma;

use ferrum_engine::Grammar;
use ferrum_models::text::Tokenizer;

use crate::{
    output::{GEMMA_QUOTE, REASONING, ToolFormat},
    tools::Forced,
};

/// A rule that any text satisfies.
const ANY: &str = "/(?s:.*)/";

/// Text that is not taken for JSON, or, in an intersection, for reasoning.
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
    let mut gemma = gemma::Rules::new(mark(GEMMA_QUOTE), special(GEMMA_QUOTE).is_some());
    let mut objects = Vec::new();
    for (n, function) in forced.functions.iter().enumerate() {
        objects.push(if format == ToolFormat::FunctionGemma {
            format!("{} {}", Grammar::literal(&format!("call:{}", function.name)), gemma.arguments(&function.parameters))
        } else {
            let arguments = if matches!(format, ToolFormat::Llama3 | ToolFormat::Json) { "parameters" } else { "arguments" };
            let head = format!("{{\"name\": {}, \"{arguments}\": ", Grammar::literal(&function.name));
            format!("{} @a{n} \"}}\"", Grammar::literal(&head))
        });
    }
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
        (None, false) => bare(format),
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
        let (rules, schemas) = gemma.finish();
        return Grammar::with_schemas(&(lark + &rules), schemas);
    }
    Grammar::with_schemas(&lark, forced.functions.iter().enumerate().map(|(n, f)| (format!("a{n}"), f.parameters.clone())))
}

/// An answer in which nothing marks a call: what begins as JSON does is one, behind white space and reasoning, and so is a block of
/// code with JSON wherever it stands. Either ends the answer.
fn bare(format: ToolFormat) -> String {
    let pattern = |text: &str| text.replace('[', r"\[").replace(']', r"\]").replace('/', r"\/");
    let either = |regexes: [String; REASONING.len()]| regexes.join("|");
    let opened = either(REASONING.map(|(opening, _)| format!(r"\s*{}(?s:.*)", pattern(opening))));
    let closed = either(REASONING.map(|(opening, closing)| format!(r"\s*{}(?s:.*){}(?s:.*)", pattern(opening), pattern(closing))));
    let mut fenced = String::new();
    let mut lark = String::new();
    if !format.openings().is_empty() {
        let fences: Vec<String> = format.openings().iter().map(|fence| Grammar::literal(fence)).collect();
        fenced = " | before rest \"\\n\" \"```\"".to_owned();
        lark += &format!("before[suffix=FENCE]: BEFORE\nBEFORE: /({WORDS})?\\s*/ & ~/{opened}/\nFENCE: {}\n", fences.join(" | "));
    }
    // Reasoning may also be cut off.
    lark +=
        &format!("start: thought* (/\\s+/? rest | WORDS{fenced} | OPEN)\nWORDS: /{WORDS}/ & ~/{opened}/\nOPEN: /{opened}/ & ~/{closed}/\n");
    for (n, (opening, closing)) in REASONING.iter().enumerate() {
        lark += &format!("thought{n}[suffix={}]: /\\s*{}(?s:.*)/\n", Grammar::literal(closing), pattern(opening));
    }
    let thoughts: Vec<String> = (0..REASONING.len()).map(|n| format!("thought{n}")).collect();
    lark + &format!("thought: {}\n", thoughts.join(" | "))
}

#[cfg(test)]
mod tests;
