//! Which files of a repository make the model the user asked for.

use super::HubError;
use super::local::{INDEX_FILE, gguf_sets, gguf_stem, is_weight_shard};

/// Files to fetch, in the order to fetch them: weights come last, so complete weights imply a complete model.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Picked {
    Gguf(Vec<String>),
    Safetensors(Vec<String>),
}

/// Preference among the quantisations of a GGUF repository when the user names none.
const DEFAULT_QUANTS: &[&str] = &[
    "Q4_K_M", "Q8_0", "Q4_0", "Q5_K_M", "Q6_K", "Q4_K_S", "Q5_K_S", "Q4_1", "Q5_0", "Q5_1", "IQ4_XS", "IQ4_NL", "Q3_K_M", "BF16", "F16",
    "F32",
];

/// Everything beside the weights that a model folder may hold and that we read.
const SIDE_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "1_Pooling/config.json",
    INDEX_FILE,
];

/// Chooses from `names`, the repository's listing.
///
/// With `select`: the GGUF file of that name, else the GGUF of that quantisation. Without: safetensors with a `config.json`,
/// else the first of the default quantisations (`Q4_K_M`, then `Q8_0`, …), else the only GGUF.
///
/// # Errors
/// [`HubError::NoMatch`] with what the repository has.
pub(crate) fn pick(repo: &str, names: &[&str], select: Option<&str>) -> Result<Picked, HubError> {
    let sets = gguf_sets(names.iter().copied());
    let no_match = |wanted: &str| HubError::NoMatch {
        repo: repo.to_owned(),
        wanted: wanted.to_owned(),
        available: if sets.is_empty() {
            names.iter().map(|n| (*n).to_owned()).collect()
        } else {
            sets.iter().map(|s| s[0].clone()).collect()
        },
    };
    if let Some(select) = select {
        let named = sets.iter().find(|set| set.iter().any(|part| part == select || gguf_stem(part) == select));
        return named.or_else(|| by_quant(&sets, select)).map(|set| Picked::Gguf(set.clone())).ok_or_else(|| no_match(select));
    }
    let has = |name: &str| names.contains(&name);
    let mut weights: Vec<&str> = names.iter().copied().filter(|n| is_weight_shard(n)).collect();
    if has("config.json") && !weights.is_empty() {
        if has("model.safetensors") && !has(INDEX_FILE) {
            weights = vec!["model.safetensors"];
        } else if has(INDEX_FILE) {
            weights.retain(|n| n.starts_with("model-") || *n == "model.safetensors");
        }
        weights.sort_unstable();
        let side = SIDE_FILES.iter().copied().filter(|n| has(n));
        return Ok(Picked::Safetensors(side.chain(weights).map(str::to_owned).collect()));
    }
    let default = DEFAULT_QUANTS.iter().find_map(|quant| by_quant(&sets, quant));
    match (default, sets.as_slice()) {
        (Some(set), _) | (None, [set]) => Ok(Picked::Gguf(set.clone())),
        (None, _) => Err(no_match("*.gguf or config.json with *.safetensors")),
    }
}

/// The set whose name carries `quant` as a word; among several the one with the shortest name, which has no further marks.
fn by_quant<'a>(sets: &'a [Vec<String>], quant: &str) -> Option<&'a Vec<String>> {
    sets.iter().filter(|set| has_word(gguf_stem(&set[0]), quant)).min_by_key(|set| (set[0].len(), set[0].as_str()))
}

/// True when `word` occurs in `text`, case aside, with no letter, digit or underscore around it: `Q4_K` is not in `Q4_K_M`.
fn has_word(text: &str, word: &str) -> bool {
    let (text, word) = (text.to_ascii_lowercase(), word.to_ascii_lowercase());
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    !word.is_empty()
        && text.match_indices(&word).any(|(at, _)| !text[..at].ends_with(in_word) && !text[at + word.len()..].starts_with(in_word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gguf(names: &[&str], select: Option<&str>) -> Option<String> {
        match pick("o/n", names, select) {
            Ok(Picked::Gguf(set)) => Some(set[0].clone()),
            _ => None,
        }
    }

    #[test]
    fn quantisations() {
        let names = ["m-Q4_K_S.gguf", "m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf", "m-q8_0.gguf", "m.Q2_K.gguf", "mmproj-Q4_K_M.gguf", "README.md"];
        assert_eq!(gguf(&names, None).unwrap(), "m-Q4_K_M.gguf");
        assert_eq!(gguf(&names, Some("q4_k_m")).unwrap(), "m-Q4_K_M.gguf");
        assert_eq!(gguf(&names, Some("UD-Q4_K_M")).unwrap(), "m-UD-Q4_K_M.gguf");
        assert_eq!(gguf(&names, Some("Q8_0")).unwrap(), "m-q8_0.gguf");
        assert_eq!(gguf(&names, Some("m-Q4_K_S.gguf")).unwrap(), "m-Q4_K_S.gguf");
        assert_eq!(gguf(&names, Some("Q2_K")).unwrap(), "m.Q2_K.gguf");
        let err = pick("o/n", &names, Some("Q4_K")).unwrap_err().to_string();
        assert!(err.contains("m-q8_0.gguf") && !err.contains("README"), "{err}");
        assert_eq!(gguf(&["m-q8_0.gguf", "m-f16.gguf"], None).unwrap(), "m-q8_0.gguf");
        assert_eq!(gguf(&["odd.gguf"], None).unwrap(), "odd.gguf");
        assert_eq!(gguf(&["odd.gguf", "even.gguf"], None), None);
    }

    #[test]
    fn split_quantisations_in_folders() {
        let names = ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf", "Q4_0/m-Q4_0-00001-of-00002.gguf"];
        let Ok(Picked::Gguf(set)) = pick("o/n", &names, None) else { panic!() };
        assert_eq!(set, names[..2]);
        assert!(pick("o/n", &names, Some("Q4_0")).is_err(), "its second part is not in the repository");
    }

    #[test]
    fn safetensors_come_after_the_small_files() {
        let names = [
            "model-00002-of-00002.safetensors",
            "model-00001-of-00002.safetensors",
            INDEX_FILE,
            "consolidated.safetensors",
            "original/x.safetensors",
            "tokenizer.json",
            "config.json",
            "pytorch_model.bin",
        ];
        let Ok(Picked::Safetensors(files)) = pick("o/n", &names, None) else { panic!() };
        assert_eq!(
            files,
            ["config.json", "tokenizer.json", INDEX_FILE, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        );
        assert!(pick("o/n", &["pytorch_model.bin", "config.json"], None).unwrap_err().to_string().contains("pytorch_model.bin"));
    }
}
