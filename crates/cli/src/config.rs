//! Options from a file: it says what flags would say, under their long names, and a flag wins over it.
//!
//! Keys at the top of the file hold for every command that has such a flag; those in a table named after a command, for that one:
//!
//! ```toml
//! threads = 8
//! [serve]
//! model = "smollm2:135m"
//! port = 9000
//! ```

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches, parser::ValueSource};
use toml::{Table, Value};

use crate::args::Args;

/// What the command line and the file say together.
pub enum Parsed {
    Args(Box<Args>),
    /// What `--print-config` prints
    Explained(String),
}

/// Reads the arguments of the process (the first is its name) and the file that they name, or else the user's own.
///
/// # Errors
/// A [`clap::Error`] when the arguments are wrong or ask for help; when the file cannot be read, or has a key that is no flag.
pub fn parse(mut given: Vec<OsString>) -> anyhow::Result<Parsed> {
    let mut command = Args::command();
    // Errors come out below, when the file has been heard too: it may have what is missing here.
    let first = command.clone().ignore_errors(true).try_get_matches_from(&given)?;
    let Some((name, flags)) = first.subcommand() else {
        return Ok(Parsed::Args(Box::new(Args::from_arg_matches(&command.try_get_matches_from(given)?)?)));
    };
    let chosen = flags.get_one::<PathBuf>("config").cloned();
    let path = chosen.or_else(|| user_file().filter(|path| path.is_file()));
    let mut settings = Vec::new();
    if let Some(path) = &path {
        settings = read(path, &command, name)?;
        settings.retain(|s| flags.value_source(&s.id) != Some(ValueSource::CommandLine));
    }
    let end = given.iter().position(|arg| arg == "--").unwrap_or(given.len());
    given.splice(end..end, settings.iter().flat_map(|s| s.words.iter().map(OsString::from)));

    let explain = flags.get_flag("print_config");
    if explain {
        command = command.mut_subcommand(name, |c| c.mut_args(|arg| arg.required(false)));
    }
    let matches = command.clone().try_get_matches_from(given).map_err(|error| match &path {
        Some(path) if !settings.is_empty() && error.use_stderr() => {
            let keys: Vec<_> = settings.iter().map(|s| s.key.as_str()).collect();
            anyhow!("{error}\nof these, {} are from {}", keys.join(", "), path.display())
        }
        _ => error.into(),
    })?;
    match matches.subcommand() {
        Some((name, flags)) if explain => Ok(Parsed::Explained(explanation(&command, name, flags, &settings, path.as_deref()))),
        _ => Ok(Parsed::Args(Box::new(Args::from_arg_matches(&matches)?))),
    }
}

/// `ferrum/ferrum.toml` in the user's configuration folder.
fn user_file() -> Option<PathBuf> {
    let set = std::env::var_os("XDG_CONFIG_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
    let folder = set.or_else(|| Some(std::env::home_dir()?.join(".config")))?;
    Some(folder.join("ferrum").join("ferrum.toml"))
}

/// A key of the file that the command has a flag for.
struct Setting {
    id: String,
    key: String,
    /// As on a command line
    words: Vec<String>,
}

fn read(path: &Path, command: &Command, name: &str) -> anyhow::Result<Vec<Setting>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let table: Table = toml::from_str(&text).with_context(|| format!("{} is not TOML", path.display()))?;
    settings(&table, command, name).with_context(|| format!("in {}", path.display()))
}

/// What the table says for the command `name`.
fn settings(table: &Table, command: &Command, name: &str) -> anyhow::Result<Vec<Setting>> {
    let mut found: Vec<Setting> = Vec::new();
    let (tables, keys): (Vec<_>, Vec<_>) = table.iter().partition(|(_, value)| value.is_table());
    for (key, value) in keys {
        let key = key.replace('_', "-");
        let known: Vec<String> = command.get_subcommands().flat_map(args_of).map(key_of).collect();
        if !known.contains(&key) {
            bail!("`{key}` is no option of any command{}", nearest(&key, known.into_iter()));
        }
        if let Some(arg) = command.find_subcommand(name).and_then(|c| args_of(c).find(|arg| key_of(arg) == key)) {
            found.push(setting(arg, key, value)?);
        }
    }
    for (of, table) in tables {
        let Some(sub) = command.find_subcommand(of) else {
            bail!("there is no command `{of}`{}", nearest(of, command.get_subcommands().map(|c| c.get_name().to_owned())));
        };
        for (key, value) in table.as_table().into_iter().flatten() {
            let key = key.replace('_', "-");
            let Some(arg) = args_of(sub).find(|arg| key_of(arg) == key) else {
                bail!("`{key}` is no option of `ferrum {of}`{}", nearest(&key, args_of(sub).map(key_of)));
            };
            if of == name {
                found.retain(|s| s.key != key);
                found.push(setting(arg, key, value)?);
            }
        }
    }
    Ok(found)
}

/// What can be set in a file: all but help, and where the file is.
fn args_of(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| !["config", "print_config", "help", "version"].contains(&arg.get_id().as_str()))
}

fn key_of(arg: &Arg) -> String {
    arg.get_long().unwrap_or(arg.get_id().as_str()).to_owned()
}

fn setting(arg: &Arg, key: String, value: &Value) -> anyhow::Result<Setting> {
    let word = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Ok(value.to_string()),
        _ => bail!("`{key}` must be a text, a number, true or false, or an array of these"),
    };
    let words = match (arg.get_action(), value) {
        (ArgAction::SetTrue, Value::Boolean(on)) => on.then(|| format!("--{key}")).into_iter().collect(),
        (ArgAction::SetTrue, _) => bail!("`{key}` must be true or false"),
        (_, Value::Array(values)) => values.iter().map(word).collect::<anyhow::Result<Vec<_>>>()?,
        _ => vec![word(value)?],
    };
    let is_flag = matches!(arg.get_action(), ArgAction::SetTrue) || arg.is_positional();
    let words = if is_flag { words } else { words.into_iter().map(|w| format!("--{key}={w}")).collect() };
    Ok(Setting { id: arg.get_id().to_string(), key, words })
}

/// `; did you mean …?`, when a name is near.
fn nearest(wrong: &str, known: impl Iterator<Item = String>) -> String {
    let near = known.map(|name| (strsim::jaro_winkler(wrong, &name), name)).max_by(|a, b| a.0.total_cmp(&b.0));
    near.filter(|near| near.0 > 0.7).map_or(String::new(), |near| format!("; did you mean `{}`?", near.1))
}

/// Every option of the command with what it means, its value, and where that is from, as a file of its own.
fn explanation(command: &Command, name: &str, flags: &ArgMatches, settings: &[Setting], path: Option<&Path>) -> String {
    let mut out = format!("[{name}]\n");
    for arg in command.find_subcommand(name).into_iter().flat_map(args_of) {
        let key = key_of(arg);
        let values: Vec<String> = flags
            .get_raw(arg.get_id().as_str())
            .map(|values| values.map(|v| v.to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        let source = match (settings.iter().any(|s| s.key == key), flags.value_source(arg.get_id().as_str())) {
            (true, _) => path.map_or(String::new(), |p| p.display().to_string()),
            (false, Some(ValueSource::CommandLine)) => "flag".to_owned(),
            _ => "default".to_owned(),
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        // Strings cannot fail to be written to.
        let _ = writeln!(out, "\n# {}", help.replace('\n', "\n# "));
        let _ = if values.is_empty() {
            writeln!(out, "# {key} =  # {source}: not set")
        } else if key == "api-key" {
            writeln!(out, "# {key} =  # {source}: {} secret", values.len())
        } else {
            let many = matches!(arg.get_action(), ArgAction::Append);
            let values: Vec<String> = values.iter().map(|v| literal(v)).collect();
            let value = if many { format!("[{}]", values.join(", ")) } else { values.join(",") };
            writeln!(out, "{key} = {value}  # {source}")
        };
    }
    out
}

/// The value in TOML: a number or a truth value where it reads as one.
fn literal(text: &str) -> String {
    let plain = text.parse::<i64>().is_ok()
        || text.parse::<f64>().is_ok_and(f64::is_finite) && text.contains('.')
        || ["true", "false"].contains(&text);
    if plain { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str, name: &str) -> anyhow::Result<Vec<String>> {
        let found = settings(&toml::from_str(text)?, &Args::command(), name)?;
        Ok(found.into_iter().flat_map(|s| s.words).collect())
    }

    #[test]
    fn tables_win_over_the_top_and_reach_their_command_alone() {
        let text =
            "threads = 3\nport = 1\n[serve]\nport = 2\nlog_format = \"json\"\napi-key = [\"a\", \"b\"]\nmodel = \"m\"\n[run]\nraw = false";
        assert_eq!(words(text, "serve").unwrap(), ["--threads=3", "--api-key=a", "--api-key=b", "--log-format=json", "m", "--port=2"]);
        assert_eq!(words(text, "run").unwrap(), ["--threads=3"]);
        assert_eq!(words(text, "list").unwrap(), [""; 0]);
    }

    #[test]
    fn wrong_keys_are_named_with_the_nearest_right_one() {
        let error = |text| words(text, "run").unwrap_err().to_string();
        assert_eq!(error("treads = 3"), "`treads` is no option of any command; did you mean `threads`?");
        assert_eq!(error("[serve]\nprot = 3"), "`prot` is no option of `ferrum serve`; did you mean `port`?");
        assert_eq!(error("[sreve]\nport = 3"), "there is no command `sreve`; did you mean `serve`?");
        assert_eq!(error("raw = 3"), "`raw` must be true or false");
        assert!(error("seed = 1979-05-27").starts_with("`seed` must be a text"));
        assert!(error("config = \"x\"").contains("no option"));
    }

    #[test]
    fn an_explanation_reads_back_as_a_file() {
        let command = Args::command();
        let given = ["ferrum", "serve", "m", "--port=9", "--cors-origin=https://a"];
        let matches = command.clone().try_get_matches_from(given).unwrap();
        let text = explanation(&command, "serve", matches.subcommand().unwrap().1, &[], None);
        let table: Table = toml::from_str(&text).unwrap();
        assert_eq!(table["serve"]["port"].as_integer(), Some(9));
        assert!(text.contains("\n# Port to listen on; 0: any that is free\nport = 9  # flag\n"), "{text}");
        assert!(text.contains("host = \"127.0.0.1\"  # default\n"), "{text}");
        settings(&table, &command, "serve").unwrap();
    }
}
