//! The functions, filters and tests that Python's Jinja2 has and that behave differently, or not at all, in minijinja.

use super::json::{self, Layout};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};
use serde_json::Value as Json;

/// Source of the error that `raise_exception` makes.
#[derive(Debug)]
pub(super) struct Refusal(pub String);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |state: &State, value: Value| python_str(state, &value));
    environment.add_test("sequence", |value: Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Bytes | ValueKind::Seq | ValueKind::Map)
    });
    environment.add_test("iterable", |value: Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Bytes | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
    });
    environment.set_formatter(|out, state, value| {
        if value.is_undefined() || value.as_str().is_some() {
            return minijinja::escape_formatter(out, state, value);
        }
        let text = python_str(state, value)?;
        state.consume_fuel(text.len() as u64 / 8)?;
        out.write_str(&text).map_err(|_| Error::new(ErrorKind::WriteFailure, "the prompt is too long"))
    });
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Refusal(message)))
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`
fn tojson(state: &State, value: Value, options: Kwargs) -> Result<Value, Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        None => (None, None),
        Some([item, key]) => (Some(item.clone()), Some(key.clone())),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be a pair")),
    };
    let indent: Option<Value> = options.get("indent")?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => match (indent.as_str(), usize::try_from(indent.clone())) {
            (Some(text), _) => Some(text.to_owned()),
            (None, Ok(width)) if width <= 64 => Some(" ".repeat(width)),
            _ => return Err(Error::new(ErrorKind::InvalidOperation, "indent must be a string or a number up to 64")),
        },
    };
    let layout = Layout {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        // Python drops the space behind the comma when lines are indented.
        item: item.unwrap_or_else(|| if indent.is_some() { "," } else { ", " }.into()),
        key: key.unwrap_or_else(|| ": ".into()),
        indent,
    };
    options.assert_all_used()?;
    let text = layout.write(&plain(state, &value, 0)?);
    state.consume_fuel(text.len() as u64 / 8)?;
    Ok(Value::from(text))
}

/// `str(value)`
fn python_str(state: &State, value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => {
            Ok(json::python_repr(&plain(state, value, 0)?))
        }
        _ => Ok(value.to_string()),
    }
}

/// Deepest nesting that is written out; messages are no deeper, so only a template that builds its own lists can be.
const MAX_DEPTH: usize = 256;

/// The value as plain data. Costs fuel by the item, because a list may hold itself many times over.
fn plain(state: &State, value: &Value, depth: usize) -> Result<Json, Error> {
    state.consume_fuel(1)?;
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::BadSerialization, "the value is nested too deeply"));
    }
    match value.kind() {
        ValueKind::Undefined => Err(Error::new(ErrorKind::BadSerialization, "an undefined value cannot be written as JSON")),
        ValueKind::Seq | ValueKind::Iterable => value.try_iter()?.map(|item| plain(state, &item, depth + 1)).collect(),
        ValueKind::Map => {
            let mut map = serde_json::Map::new();
            for key in value.try_iter()? {
                let item = plain(state, &value.get_item(&key)?, depth + 1)?;
                let key = match plain(state, &key, depth + 1)? {
                    Json::String(text) => text,
                    other => other.to_string(),
                };
                map.insert(key, item);
            }
            Ok(Json::Object(map))
        }
        _ => {
            state.consume_fuel(value.as_str().map_or(0, |text| text.len() as u64 / 8))?;
            serde_json::to_value(value).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
        }
    }
}

/// `strftime_now(format)` at a fixed time, in UTC.
pub(super) fn strftime_now(now_s: i64) -> Value {
    Value::from_function(move |format: String| strftime(&format, now_s))
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];

fn strftime(format: &str, now_s: i64) -> Result<String, Error> {
    let (days, second) = (now_s.div_euclid(86_400), now_s.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = DAYS[(days + 4).rem_euclid(7) as usize];
    let month_name = MONTHS[(month - 1) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        let code = chars.next();
        // `%-d`: without the leading zero.
        let (code, bare) = if code == Some('-') { (chars.next(), true) } else { (code, false) };
        let number = |value: i64, width: usize| if bare { value.to_string() } else { format!("{value:0width$}") };
        out.push_str(&match code {
            Some('Y') => year.to_string(),
            Some('y') => number(year.rem_euclid(100), 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('H') => number(hour, 2),
            Some('I') => number((hour + 11) % 12 + 1, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('j') => number(days - days_before(year) + 1, 3),
            Some('b' | 'h') => month_name[..3].into(),
            Some('B') => month_name.into(),
            Some('a') => weekday[..3].into(),
            Some('A') => weekday.into(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".into(),
            Some('z') => "+0000".into(),
            Some('%') => "%".into(),
            other => {
                let code = other.map(String::from).unwrap_or_default();
                return Err(Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know `%{code}`")));
            }
        });
    }
    Ok(out)
}

/// Year, month (1–12) and day (1–31) of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    let mut year = 1970 + days.div_euclid(366);
    while days_before(year + 1) <= days {
        year += 1;
    }
    let mut rest = days - days_before(year);
    let leap = days_before(year + 1) - days_before(year) == 366;
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    for (month, length) in (1..).zip(lengths) {
        if rest < length {
            return (year, month, rest + 1);
        }
        rest -= length;
    }
    (year, 12, 31)
}

/// Days from 1970-01-01 to January 1 of `year`.
fn days_before(year: i64) -> i64 {
    let past = year - 1;
    past * 365 + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400) - 719_162
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |now_s| strftime("%Y-%m-%d %H:%M:%S %a %j", now_s).unwrap();
        assert_eq!(at(0), "1970-01-01 00:00:00 Thu 001");
        assert_eq!(at(951_827_696), "2000-02-29 12:34:56 Tue 060");
        assert_eq!(at(4_107_542_399), "2100-02-28 23:59:59 Sun 059");
        assert_eq!(at(1_735_689_599), "2024-12-31 23:59:59 Tue 366");
        assert_eq!(strftime("%d %b %Y", 1_721_952_000).unwrap(), "26 Jul 2024");
        assert!(strftime("%Q", 0).is_err());
    }
}
