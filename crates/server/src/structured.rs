//! Fields that say what an answer must look like: OpenAI's `response_format`, vLLM's `structured_outputs` and `guided_*`, and
//! `logit_bias`.

use ferrum_engine::Grammar;
use serde_json::Value;

use crate::{
    error::{ApiError, Result},
    fields::{Fields, wrong},
};

/// Most texts of a choice.
const MAX_CHOICES: usize = 4096;

/// A grammar that a request asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The field that asks for it
    pub param: String,
    pub grammar: Grammar,
}

/// The one grammar of a request.
///
/// # Errors
/// Naming the field that is wrong, or that asks for a second grammar.
pub fn read(fields: &mut Fields) -> Result<Option<Wanted>> {
    let mut wanted = Vec::new();
    if let Some(format) = fields.take("response_format") {
        wanted.extend(response_format(Fields::of(format, "response_format")?)?);
    }
    if let Some(outputs) = fields.take("structured_outputs") {
        let mut outputs = Fields::of(outputs, "structured_outputs")?;
        outputs.refuse(&["structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"])?;
        let names = ["json", "regex", "choice", "grammar"];
        for (kind, name) in Kind::ALL.into_iter().zip(names) {
            wanted.extend(kind.read(&mut outputs, name)?);
        }
        if outputs.bool("json_object")?.unwrap_or(false) {
            wanted.push(Wanted { param: outputs.name("json_object"), grammar: Grammar::json_object() });
        }
    }
    let names = ["guided_json", "guided_regex", "guided_choice", "guided_grammar"];
    for (kind, name) in Kind::ALL.into_iter().zip(names) {
        wanted.extend(kind.read(fields, name)?);
    }
    let mut wanted = wanted.into_iter();
    match (wanted.next(), wanted.next()) {
        (Some(first), Some(second)) => Err(excluded(&second.param, &first.param)),
        (first, _) => Ok(first),
    }
}

/// The error of a field that asks for a grammar where another one asks already.
pub fn excluded(second: &str, first: &str) -> ApiError {
    ApiError::invalid(second, format!("`{second}` and `{first}` each say what the answer must look like; send one of them"))
}

/// `{"type": "text" | "json_object" | "json_schema", "json_schema": {"name", "schema", …}}`.
fn response_format(mut format: Fields) -> Result<Option<Wanted>> {
    let grammar = match format.string("type")?.unwrap_or_default() {
        "text" => return Ok(None),
        "json_object" => Grammar::json_object(),
        "json_schema" => {
            let path = format.name("json_schema");
            let missing = || ApiError::invalid(&path, format!("`{path}` is missing"));
            let mut inner = Fields::of(format.take("json_schema").ok_or_else(missing)?, &path)?;
            inner.string("name")?;
            // Without `strict`, OpenAI follows a schema as well as it can; here every schema is followed exactly.
            inner.bool("strict")?;
            let path = inner.name("schema");
            let schema = inner.take("schema").ok_or_else(|| ApiError::invalid(&path, format!("`{path}` is missing")))?;
            return Ok(Some(Wanted { grammar: Grammar::json_schema(object(schema, &path)?), param: path }));
        }
        other => return Err(wrong(&format.name("type"), &other.into(), "text, json_object or json_schema")),
    };
    Ok(Some(Wanted { param: format.name("type"), grammar }))
}

/// How a field gives its grammar.
#[derive(Clone, Copy)]
enum Kind {
    /// A JSON schema, or the text of one
    Json,
    Regex,
    /// A list of texts
    Choice,
    Lark,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Json, Self::Regex, Self::Choice, Self::Lark];

    fn read(self, fields: &mut Fields, field: &str) -> Result<Option<Wanted>> {
        let param = fields.name(field);
        let grammar = match self {
            Self::Json => fields.take(field).map(|schema| {
                let schema = match schema {
                    Value::String(text) => serde_json::from_str(&text)
                        .map_err(|error| ApiError::invalid(&param, format!("`{param}` is no JSON schema: {error}")))?,
                    schema => schema,
                };
                Ok::<_, ApiError>(Grammar::json_schema(object(schema, &param)?))
            }),
            Self::Regex => fields.string(field)?.map(|pattern| Ok(Grammar::regex(pattern))),
            Self::Lark => fields.string(field)?.map(|source| Ok(Grammar::lark(source))),
            Self::Choice => fields.take(field).map(|value| {
                let texts: Option<Vec<String>> =
                    value.as_array().and_then(|texts| texts.iter().map(|text| text.as_str().map(str::to_owned)).collect());
                let ok = |texts: &Vec<String>| (1..=MAX_CHOICES).contains(&texts.len()) && texts.iter().all(|text| !text.is_empty());
                let expected = format!("a list of 1 to {MAX_CHOICES} texts, none of them empty");
                let texts = texts.filter(ok).ok_or_else(|| wrong(&param, &value, &expected))?;
                Ok(Grammar::choice(&texts))
            }),
        };
        grammar.transpose().map(|grammar| grammar.map(|grammar| Wanted { param, grammar }))
    }
}

/// A schema, which in all these fields is an object.
fn object(schema: Value, param: &str) -> Result<Value> {
    if schema.is_object() { Ok(schema) } else { Err(wrong(param, &schema, "a JSON schema: an object")) }
}

/// `logit_bias`: an object of token ids, as texts, and biases. The engine checks both.
///
/// # Errors
/// When it is anything else.
pub fn logit_bias(fields: &Fields) -> Result<Vec<(u32, f64)>> {
    let Some(value) = fields.get("logit_bias") else { return Ok(Vec::new()) };
    let entry = |(id, bias): (&String, &Value)| Some((id.parse().ok()?, bias.as_f64()?));
    let biases = value.as_object().and_then(|biases| biases.iter().map(entry).collect());
    biases.ok_or_else(|| wrong("logit_bias", value, "an object of token ids and numbers from -100 to 100"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::openapi::takes;

    fn ask(body: &Value) -> Result<Option<Wanted>> {
        read(&mut Fields::parse(body.to_string().as_bytes(), &takes::CHAT)?)
    }

    #[test]
    fn every_way_to_ask_is_read() {
        let schema = json!({"type": "integer"});
        let json_schema = Grammar::json_schema(schema.clone());
        for (body, param, grammar) in [
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}}}),
                "response_format.json_schema.schema",
                json_schema.clone(),
            ),
            (json!({"response_format": {"type": "json_object"}}), "response_format.type", Grammar::json_object()),
            (json!({"structured_outputs": {"json": schema}}), "structured_outputs.json", json_schema.clone()),
            (json!({"structured_outputs": {"json_object": true}}), "structured_outputs.json_object", Grammar::json_object()),
            (
                json!({"structured_outputs": {"choice": ["a", "b"]}}),
                "structured_outputs.choice",
                Grammar::choice(&["a".into(), "b".into()]),
            ),
            (json!({"guided_json": schema.to_string()}), "guided_json", json_schema),
            (json!({"guided_regex": "a+"}), "guided_regex", Grammar::regex("a+")),
            (json!({"guided_grammar": "start: \"a\""}), "guided_grammar", Grammar::lark("start: \"a\"")),
        ] {
            assert_eq!(ask(&body).unwrap(), Some(Wanted { param: param.into(), grammar }), "{body}");
        }
        for nothing in [json!({}), json!({"response_format": {"type": "text"}}), json!({"guided_json": null, "structured_outputs": {}})] {
            assert_eq!(ask(&nothing).unwrap(), None, "{nothing}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (body, param) in [
            (json!({"response_format": "json"}), "response_format"),
            (json!({"response_format": {"type": "xml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}), "response_format.json_schema.schema"),
            (json!({"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}}), "response_format.json_schema.schema"),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"guided_regex": 7}), "guided_regex"),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_choice": ["a", 1]}), "guided_choice"),
            (json!({"structured_outputs": {"structural_tag": "x"}}), "structured_outputs.structural_tag"),
            (json!({"guided_regex": "a", "response_format": {"type": "json_object"}}), "guided_regex"),
        ] {
            assert_eq!(ask(&body).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
        for bias in [json!([1]), json!({"x": 1}), json!({"-1": 1}), json!({"1": "2"}), json!({"4294967296": 1})] {
            let fields = Fields::parse(json!({"logit_bias": bias}).to_string().as_bytes(), &takes::CHAT).unwrap();
            assert_eq!(logit_bias(&fields).unwrap_err().param.as_deref(), Some("logit_bias"), "{bias}");
        }
    }
}
