//! Splitting text into the pieces that merges may not cross, by the name a GGUF file gives (`tokenizer.ggml.pre`).
//!
//! The published expressions end in `\s+(?!\S)|\s+`: a run of white space leaves its last character to the word behind it. That
//! look-ahead is the only construct here beyond regular languages, so it is done by hand ([`Space`]) and the rest runs on an engine
//! of linear time: no text can make it backtrack.

use super::error::{Result, TextError};
use regex::Regex;
use std::borrow::Cow;
use std::ops::Range;
use unicode_normalization_alignments::UnicodeNormalization;

/// What splits the text of one family of tokenizers.
pub(super) struct PreTokenizer {
    /// Applied in turn; each splits the pieces of the one before.
    stages: Vec<Stage>,
    /// A piece that is a token as a whole is not built from merges.
    pub ignore_merges: bool,
    /// Whether these tokenizers begin a text with the BOS token when the file does not say.
    pub add_bos: bool,
    compose: bool,
}

struct Stage {
    regex: Regex,
    space: Space,
}

/// How a match that is white space only is cut.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Space {
    /// As matched: the expression has no `\s+(?!\S)`.
    AsMatched,
    /// All but the last character, unless the piece ends there or it is a single one.
    LeaveLast,
    /// The same, but an earlier alternative `\s*[\r\n]+` keeps runs that end in a line break whole.
    LeaveLastUnlessLine,
}

use Space::{AsMatched, LeaveLast, LeaveLastUnlessLine};

const GPT2: (&str, Space) = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+", LeaveLast);
const LLAMA3: (&str, Space) =
    (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+", LeaveLastUnlessLine);
const QWEN2: (&str, Space) =
    (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+", LeaveLastUnlessLine);
const QWEN35: (&str, Space) = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    LeaveLastUnlessLine,
);
const TEKKEN: (&str, Space) = (
    concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
    ),
    LeaveLastUnlessLine,
);
const GPT4O: (&str, Space) = (
    concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
    ),
    LeaveLastUnlessLine,
);
const SEED: (&str, Space) =
    (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+", LeaveLastUnlessLine);
const BAILING: (&str, Space) =
    (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+", LeaveLastUnlessLine);
const DIGIT: (&str, Space) = (r"\p{N}", AsMatched);
const DIGITS: (&str, Space) = (r"\p{N}+", AsMatched);
const DIGITS_3: (&str, Space) = (r"\p{N}{1,3}", AsMatched);
const ASCII_DIGITS_3: (&str, Space) = (r"[0-9][0-9][0-9]", AsMatched);
const LINE: (&str, Space) = (r"[\r\n]", AsMatched);
const CJK: (&str, Space) = (r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+", AsMatched);
const CJK_HANGUL: (&str, Space) = (r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+", AsMatched);
const DEEPSEEK_V3: (&str, Space) = (
    concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+"
    ),
    LeaveLastUnlessLine,
);
/// Cased letters, the ranges as DeepSeek's first tokenizer lists them.
const DEEPSEEK_LETTERS: (&str, Space) = (
    concat!(
        r"\s?[",
        r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}",
        r"\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}",
        r"\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}",
        r"\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}",
        r"\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}",
        r"\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}",
        r"\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}",
        r"\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}",
        r"\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}",
        r"\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}",
        r"\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}",
        r"]+"
    ),
    AsMatched,
);
const DEEPSEEK_SIGNS: (&str, Space) = (r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+", AsMatched);
const SPACE_AT_END: (&str, Space) = (r"\s+$", AsMatched);
const SPACED_LETTERS: (&str, Space) = (r"\s?\p{L}+", AsMatched);
const SPACED_SIGNS: (&str, Space) = (r"\s?\p{P}+", AsMatched);
const SIGNS: (&str, Space) = (r"[\p{P}\$\+<=>\^~\|]+", AsMatched);
const SIGNS_TICK: (&str, Space) = (r"[\p{P}\$\+<=>\^~\|`]+", AsMatched);
const BLOOM: (&str, Space) = (r" ?[^(\s|.,!?…。，、।۔،)]+", AsMatched);

impl PreTokenizer {
    /// The splitter of a GGUF file's `tokenizer.ggml.pre`; an empty name means `default`.
    ///
    /// # Errors
    /// A name that is not in the table: guessing would tokenize almost rightly, which is worse than not at all.
    pub fn by_name(name: &str) -> Result<Self> {
        let stages: &[(&str, Space)] = match name {
            "" | "default" => &[SIGNS, GPT2, DIGITS, ASCII_DIGITS_3],
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" | "smaug-bpe" | "dbrx"
            | "chatglm-bpe" | "glm4" => &[LLAMA3],
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "stablelm2" | "hunyuan" | "solar-open" | "grok-2" => &[QWEN2],
            "qwen35" => &[QWEN35],
            "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" | "gigachat" | "mellum" | "modern-bert"
            | "a.x-4.0" | "exaone4" | "roberta-bpe" | "jina-es" | "jina-de" | "jina-v1-en" | "jina-v2-es" | "jina-v2-de"
            | "jina-v2-code" => &[GPT2],
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => &[DIGIT, GPT2],
            "tekken" => &[TEKKEN],
            "gpt-4o" | "llama4" | "kanana2" | "minimax-m2" => &[GPT4O],
            "seed-coder" => &[SEED],
            "bailingmoe" | "bailingmoe2" | "llada-moe" => &[BAILING],
            "minicpm5" => &[DIGITS_3, QWEN2_DIGITS],
            "deepseek-llm" => &[LINE, DEEPSEEK_LETTERS, DEEPSEEK_SIGNS, SPACE_AT_END, CJK_HANGUL, DIGITS],
            "deepseek-coder" => &[LINE, SPACED_LETTERS, SPACED_SIGNS, CJK_HANGUL, DIGIT],
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" => &[DIGITS_3, CJK, DEEPSEEK_V3],
            "falcon" => &[SIGNS_TICK, GPT2, ASCII_DIGITS_3],
            "poro-chat" | "bloom" | "gpt3-finnish" => &[BLOOM],
            "viking" => &[BLOOM, DIGIT],
            _ => {
                return Err(TextError::Unsupported {
                    what: "pre-tokenizer",
                    name: name.into(),
                    supported: "one of the Llama, Mistral, Qwen, SmolLM, Falcon, DeepSeek, GPT-2 or GPT-4o families",
                });
            }
        };
        let whole =
            ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "glm4", "tekken", "minicpm5"];
        let begin = ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken", "minerva-7b"];
        let compile = |&(pattern, space): &(&str, Space)| {
            let regex = Regex::new(pattern)
                .map_err(|error| TextError::Encode { problem: format!("the expression of pre-tokenizer `{name}`: {error}") })?;
            Ok(Stage { regex, space })
        };
        Ok(Self {
            stages: stages.iter().map(compile).collect::<Result<_>>()?,
            ignore_merges: whole.contains(&name),
            add_bos: begin.contains(&name),
            compose: ["qwen2", "qwen35", "mpt", "olmo"].contains(&name),
        })
    }

    /// The text as these tokenizers see it: composed (NFC) in the families that were trained so. GGUF files do not say, the
    /// `tokenizer.json` of these families does.
    pub fn normalize<'t>(&self, text: &'t str) -> Cow<'t, str> {
        // Nothing below U+0300 changes when composed.
        if self.compose && text.chars().any(|char| char >= '\u{300}') { text.nfc().map(|(char, _)| char).collect() } else { text.into() }
    }

    /// The pieces of `text` in order, as byte ranges without gaps.
    pub fn split(&self, text: &str) -> Vec<Range<usize>> {
        let mut pieces = Vec::new();
        if !text.is_empty() {
            pieces.push(0..text.len());
        }
        for stage in &self.stages {
            let mut finer = Vec::with_capacity(pieces.len() + text.len() / 4);
            for piece in pieces {
                stage.split(text, piece, &mut finer);
            }
            pieces = finer;
        }
        pieces
    }
}

const QWEN2_DIGITS: (&str, Space) =
    (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+", LeaveLastUnlessLine);

impl Stage {
    fn split(&self, text: &str, piece: Range<usize>, out: &mut Vec<Range<usize>>) {
        let whole = &text[piece.clone()];
        let mut at = 0;
        while at < whole.len() {
            let Some(found) = self.regex.find_at(whole, at) else { break };
            if found.start() > at {
                out.push(piece.start + at..piece.start + found.start());
            }
            let end = self.end(whole, found.as_str(), found.start());
            out.push(piece.start + found.start()..piece.start + end);
            at = end;
        }
        if at < whole.len() {
            out.push(piece.start + at..piece.end);
        }
    }

    /// Where the match ends once the look-ahead is applied. No expression matches the empty text, so this is past `start`.
    fn end(&self, whole: &str, found: &str, start: usize) -> usize {
        let end = start + found.len();
        if self.space == AsMatched || end == whole.len() {
            return end;
        }
        let Some(last) = found.chars().next_back().filter(|last| last.is_whitespace()) else { return end };
        if found.len() == last.len_utf8() || (self.space == LeaveLastUnlessLine && matches!(last, '\r' | '\n')) {
            return end;
        }
        if found.chars().all(char::is_whitespace) { end - last.len_utf8() } else { end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split<'t>(pre: &str, text: &'t str) -> Vec<&'t str> {
        PreTokenizer::by_name(pre).unwrap().split(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn runs_of_space_leave_one_for_the_next_word() {
        assert_eq!(split("gpt-2", "a   b\n\n c  "), ["a", "  ", " b", "\n\n", " c", "  "]);
        assert_eq!(split("llama-bpe", "a   b \n\n c  "), ["a", "  ", " b", " \n\n", " c", "  "]);
        assert_eq!(split("gpt-2", "a\n\nb"), ["a", "\n", "\n", "b"]);
        assert_eq!(split("qwen2", "a\n\nb"), ["a", "\n\n", "b"]);
    }

    #[test]
    fn digits_split_as_each_family_does() {
        assert_eq!(split("qwen2", "x 1234"), ["x", " ", "1", "2", "3", "4"]);
        assert_eq!(split("llama-bpe", "x 1234"), ["x", " ", "123", "4"]);
        assert_eq!(split("smollm", "x  1234"), ["x", "  ", "1", "2", "3", "4"]);
        assert_eq!(split("gpt-2", "x 1234"), ["x", " 1234"]);
    }

    #[test]
    fn every_piece_is_kept_once() {
        let text = "It's  \u{3000}日本語 ЁЖ '\u{17F}x\r\n\t\u{85} 12345٣٤ _-/** 🤦🏽‍♀️e\u{301}\n\n \n";
        for name in [
            "default",
            "llama-bpe",
            "qwen2",
            "smollm",
            "tekken",
            "gpt-4o",
            "deepseek-llm",
            "deepseek-coder",
            "deepseek-v3",
            "falcon",
            "viking",
        ] {
            assert_eq!(split(name, text).concat(), text, "{name}");
        }
    }

    #[test]
    fn unknown_names_are_refused() {
        assert!(PreTokenizer::by_name("brand-new").err().unwrap().to_string().contains("`brand-new`"));
    }
}
