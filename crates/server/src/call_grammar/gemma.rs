//! FunctionGemma's arguments, which no JSON schema describes: `{key:<escape>text<escape>,key:{key:12},key:[true,null]}`.
//!
//! Every schema in a schema becomes one rule, however often references lead there and even where they lead in a circle, so that the
//! rules are about as long as their schemas. They bind `type`, `enum`, `const`, `anyOf`, `oneOf`, `$ref`, an `allOf` of one,
//! `properties`, `required`, `additionalProperties`, `items` with `minItems` and `maxItems`, and the ranges of numbers; not the length
//! or pattern of texts, nor what is stranger. Alternatives beside `properties`, or which only add to what stands beside them (`required`
//! alone, say), are not bound: the schema that has them is. Properties come as the model's template sorts them.

use std::collections::{BTreeMap, HashMap, HashSet};

use ferrum_engine::{Grammar, MAX_GRAMMAR_BYTES};
use serde_json::{Map, Value, json};

use crate::output::GEMMA_QUOTE;

/// References followed from one to the next.
const MAX_REFERENCES: usize = 16;
/// Most items of an array that are counted.
const MAX_ITEMS: u64 = 256;
/// What bounds a number.
const RANGES: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];

/// The rules of all functions' arguments while they are made.
pub struct Rules<'a> {
    quote: String,
    lark: String,
    /// JSON schemas, of numbers, by the names that rules have for them
    schemas: Vec<(String, Value)>,
    /// The rule of a schema, by the schema's place in memory and what is meant of it
    known: HashMap<(*const Value, Of), usize>,
    /// Rules that are still to be written: number, schema, what its references lead into, and what is meant of it
    todo: Vec<(usize, &'a Value, &'a Value, Of)>,
}

/// What is meant of the values that a schema allows.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Of {
    All,
    Objects,
}

impl<'a> Rules<'a> {
    /// `quote`: what stands around texts, as Lark; `is_token`: it is a token of its own.
    pub fn new(quote: String, is_token: bool) -> Self {
        // Any text, up to the quote
        let mut lark = if is_token {
            format!("quoted: {quote} TEXT {quote}\nTEXT: /(?s:.*)/\n")
        } else {
            format!("quoted: {quote} inner\ninner[suffix={quote}]: /(?s:.*)/\n")
        };
        lark += "value: quoted | WORD | map | \"[\" (value (\",\" value)*)? \"]\"\nmap: \"{\" (pair (\",\" pair)*)? \"}\"\n";
        lark += "pair: NAME \":\" value\nWORD: /[-+.0-9a-z]+/\nNAME: /[A-Za-z0-9_.-]+/\n";
        Self { quote, lark, schemas: Vec::new(), known: HashMap::new(), todo: Vec::new() }
    }

    /// The rule of a function's arguments, which are an object whatever their schema says.
    pub fn arguments(&mut self, parameters: &'a Value) -> String {
        let schema = resolved(parameters, parameters);
        let schemas = alternatives(schema, parameters).unwrap_or_else(|| vec![schema]);
        let has_objects =
            |schema: &&Value| !has_any(schema, &["enum", "const"]) && types(schema).is_some_and(|types| types.contains(&"object"));
        let rules: Vec<String> = schemas.into_iter().filter(has_objects).map(|schema| self.rule(schema, parameters, Of::Objects)).collect();
        if rules.is_empty() { "map".to_owned() } else { format!("({})", rules.join(" | ")) }
    }

    /// The rules, and the JSON schemas that they name. What has become too long to be compiled is not finished.
    pub fn finish(mut self) -> (String, Vec<(String, Value)>) {
        while self.lark.len() <= MAX_GRAMMAR_BYTES
            && let Some((n, schema, root, of)) = self.todo.pop()
        {
            let mut choices = self.choices(n, schema, root, of);
            if choices.is_empty() {
                // Refused as such
                self.schemas.push((format!("none{n}"), json!({"enum": []})));
                choices.push(format!("@none{n}"));
            }
            self.lark += &format!("v{n}: {}\n", choices.join(" | "));
        }
        (self.lark, self.schemas)
    }

    /// The rule of a schema within `root`.
    fn value(&mut self, schema: &'a Value, root: &'a Value) -> String {
        self.rule(resolved(schema, root), root, Of::All)
    }

    /// The rule of a schema that refers to no other.
    fn rule(&mut self, schema: &'a Value, root: &'a Value, of: Of) -> String {
        let next = self.known.len();
        let n = *self.known.entry((std::ptr::from_ref(schema), of)).or_insert(next);
        if n == next {
            self.todo.push((n, schema, root, of));
        }
        format!("v{n}")
    }

    fn choices(&mut self, n: usize, schema: &'a Value, root: &'a Value, of: Of) -> Vec<String> {
        if of == Of::Objects {
            return vec![self.object(n, schema, root)];
        }
        let list = || schema.get("enum").and_then(Value::as_array).map(Vec::as_slice);
        if let Some(values) = schema.get("const").map(std::slice::from_ref).or_else(list) {
            // This form has no way to write its own mark.
            return values.iter().filter(|value| !value.to_string().contains(GEMMA_QUOTE)).map(|value| self.literal(value)).collect();
        }
        if let Some(schemas) = alternatives(schema, root) {
            return schemas.into_iter().map(|schema| self.rule(schema, root, Of::All)).collect();
        }
        let Some(types) = types(schema) else { return vec!["value".to_owned()] };
        let choice = |name| {
            Some(match name {
                "string" => "quoted".to_owned(),
                "integer" | "number" if has_any(schema, &RANGES) => {
                    let bounds = RANGES.iter().filter_map(|&field| Some((field.to_owned(), schema.get(field)?.clone())));
                    let bounds: Map<String, Value> = bounds.chain([("type".to_owned(), name.into())]).collect();
                    self.schemas.push((format!("n{n}{name}"), bounds.into()));
                    format!("@n{n}{name}")
                }
                "integer" => "/-?(0|[1-9][0-9]{0,17})/".to_owned(),
                "number" => r"/-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?/".to_owned(),
                "boolean" => "\"true\" | \"false\"".to_owned(),
                "null" => "\"null\"".to_owned(),
                "array" => self.array(schema, root),
                "object" => self.object(n, schema, root),
                _ => return None,
            })
        };
        types.into_iter().filter_map(choice).collect()
    }

    fn array(&mut self, schema: &'a Value, root: &'a Value) -> String {
        let item = match schema.get("items") {
            Some(items @ Value::Object(_)) => self.value(items, root),
            _ => "value".to_owned(),
        };
        let number = |field: &str| schema.get(field).and_then(Value::as_u64);
        let least = number("minItems").unwrap_or(0).min(MAX_ITEMS);
        let most = number("maxItems").filter(|&n| n <= MAX_ITEMS);
        let more = most.map_or(String::new(), |n| n.saturating_sub(1).to_string());
        match (least, most) {
            (_, Some(0)) => "\"[\" \"]\"".to_owned(),
            (0, _) => format!("\"[\" ({item} (\",\" {item}){{0,{more}}})? \"]\""),
            (n, _) => format!("\"[\" {item} (\",\" {item}){{{},{more}}} \"]\"", n - 1),
        }
    }

    /// Adds rules for the properties, each of them with those behind it: `first` where nothing stands in front of it yet.
    fn object(&mut self, n: usize, schema: &'a Value, root: &'a Value) -> String {
        let properties = schema.get("properties").and_then(Value::as_object);
        let required = schema.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let required: HashSet<&str> = required.iter().filter_map(Value::as_str).collect();
        let mut all: BTreeMap<&str, Option<&Value>> = required.iter().map(|&name| (name, None)).collect();
        all.extend(properties.into_iter().flatten().map(|(name, schema)| (name.as_str(), Some(schema))));
        // As the filter `dictsort` does
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_by_key(|(name, _)| name.to_lowercase());
        if all.is_empty() {
            let more = match schema.get("additionalProperties") {
                Some(Value::Bool(false)) => return "\"{\" \"}\"".to_owned(),
                Some(more @ Value::Object(_)) => self.value(more, root),
                _ => return "map".to_owned(),
            };
            return format!("\"{{\" (NAME \":\" {more} (\",\" NAME \":\" {more})*)? \"}}\"");
        }
        for (i, (name, schema)) in all.iter().enumerate() {
            if self.lark.len() > MAX_GRAMMAR_BYTES {
                break;
            }
            let value = schema.map_or_else(|| "value".to_owned(), |schema| self.value(schema, root));
            let pair = format!("{} {value}", Grammar::literal(&format!("{name}:")));
            for (rule, comma) in [("first", ""), ("then", "\",\" ")] {
                let skip = if required.contains(name) { String::new() } else { format!(" | v{n}_{rule}_{}", i + 1) };
                self.lark += &format!("v{n}_{rule}_{i}: {comma}{pair} v{n}_then_{}{skip}\n", i + 1);
            }
        }
        let last = all.len();
        self.lark += &format!("v{n}_first_{last}: \"\"\nv{n}_then_{last}: \"\"\n");
        format!("\"{{\" v{n}_first_0 \"}}\"")
    }

    fn literal(&self, value: &Value) -> String {
        let quote = &self.quote;
        match value {
            Value::String(text) => format!("{quote} {} {quote}", Grammar::literal(text)),
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(|item| self.literal(item)).collect();
                format!("\"[\" {} \"]\"", items.join(" \",\" "))
            }
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                fields.sort_by_key(|(name, _)| name.to_lowercase());
                let pair = |(name, value): &(&String, &Value)| format!("{} {}", Grammar::literal(&format!("{name}:")), self.literal(value));
                format!("\"{{\" {} \"}}\"", fields.iter().map(pair).collect::<Vec<_>>().join(" \",\" "))
            }
            other => Grammar::literal(&other.to_string()),
        }
    }
}

fn has_any(schema: &Value, fields: &[&str]) -> bool {
    fields.iter().any(|field| schema.get(field).is_some())
}

/// The types that a schema names, or that its fields are about; `None` where it leaves them open.
fn types(schema: &Value) -> Option<Vec<&str>> {
    Some(match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ if has_any(schema, &["properties"]) => vec!["object"],
        _ if has_any(schema, &["items"]) => vec!["array"],
        _ => return None,
    })
}

/// The schemas of which one holds, where each of them says by itself what its values are. Else they only add to the schema they
/// stand in, as `{"required": […]}` does.
fn alternatives<'a>(schema: &'a Value, root: &'a Value) -> Option<Vec<&'a Value>> {
    let list = schema.get("anyOf").and_then(Value::as_array).or_else(|| schema.get("oneOf").and_then(Value::as_array))?;
    let list: Vec<&Value> = list.iter().map(|schema| resolved(schema, root)).collect();
    let complete = |schema: &&Value| types(schema).is_some() || has_any(schema, &["enum", "const", "anyOf", "oneOf"]);
    (!has_any(schema, &["properties"]) && list.iter().all(complete)).then_some(list)
}

/// The schema that a `$ref` within `root` or an `allOf` of one leads to; itself where there is none, or where it leads in a circle.
fn resolved<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    let mut at = schema;
    for _ in 0..MAX_REFERENCES {
        let target = at.get("$ref").and_then(Value::as_str).and_then(|path| root.pointer(path.strip_prefix('#')?));
        let all = at.get("allOf").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        at = match (target, all) {
            (Some(target), _) => target,
            // As older Pydantic writes a reference with a description
            (None, [only]) if types(at).is_none() && !has_any(at, &["enum", "const", "anyOf", "oneOf"]) => only,
            _ => return at,
        };
    }
    schema
}
