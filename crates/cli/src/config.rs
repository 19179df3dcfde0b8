//! Options from a file: it says what flags would say, under their long names, and a flag wins over it.
//!
//! Keys at the top of the file hold for every command that has such a flag; those in a table named after a command, for that one
//! (`[bench.serve]` for `ferrum bench serve`):
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
    let (path_to_command, flags) = innermost(&first);
    if path_to_command.is_empty() {
        return Ok(Parsed::Args(Box::new(Args::from_arg_matches(&command.try_get_matches_from(given)?)?)));
    }
    let chosen = flags.get_one::<PathBuf>("config").cloned();
    let path = chosen.or_else(|| user_file().filter(|path| path.is_file()));
    let mut settings = Vec::new();
    if let Some(path) = &path {
        settings = read(path, &command, &path_to_command)?;
        settings.retain(|s| flags.value_source(&s.id) != Some(ValueSource::CommandLine));
    }
    let end = given.iter().position(|arg| arg == "--").unwrap_or(given.len());
    given.splice(end..end, settings.iter().flat_map(|s| s.words.iter().map(OsString::from)));

    let explain = flags.get_flag("print_config");
    if explain {
        command = without_required(command, &path_to_command);
    }
    let matches = command.clone().try_get_matches_from(given).map_err(|error| match &path {
        Some(path) if !settings.is_empty() && error.use_stderr() => {
            let keys: Vec<_> = settings.iter().map(|s| s.key.as_str()).collect();
            anyhow!("{error}\nof these, {} are from {}", keys.join(", "), path.display())
        }
        _ => error.into(),
    })?;
    if explain {
        let (names, flags) = innermost(&matches);
        return Ok(Parsed::Explained(explanation(&command, &names, flags, &settings, path.as_deref())));
    }
    Ok(Parsed::Args(Box::new(Args::from_arg_matches(&matches)?)))
}

/// The names of the command and the command within it that are called, and its flags.
fn innermost(matches: &ArgMatches) -> (Vec<&str>, &ArgMatches) {
    let (mut names, mut flags) = (Vec::new(), matches);
    while let Some((name, of_command)) = flags.subcommand() {
        names.push(name);
        flags = of_command;
    }
    (names, flags)
}

/// The command that `names` lead to.
fn find<'a>(command: &'a Command, names: &[&str]) -> Option<&'a Command> {
    names.iter().try_fold(command, |command, name| command.find_subcommand(name))
}

/// With nothing that must be given to the command that `names` lead to.
fn without_required(command: Command, names: &[&str]) -> Command {
    match names {
        [] => command.mut_args(|arg| arg.required(false)),
        [name, rest @ ..] => command.mut_subcommand(*name, |within| without_required(within, rest)),
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

fn read(path: &Path, command: &Command, names: &[&str]) -> anyhow::Result<Vec<Setting>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let table: Table = toml::from_str(&text).with_context(|| format!("{} is not TOML", path.display()))?;
    settings(&table, command, names).with_context(|| format!("in {}", path.display()))
}

/// What the table says for the command that `names` lead to.
fn settings(table: &Table, command: &Command, names: &[&str]) -> anyhow::Result<Vec<Setting>> {
    let mut found: Vec<Setting> = Vec::new();
    let (tables, keys): (Vec<_>, Vec<_>) = table.iter().partition(|(_, value)| value.is_table());
    let mut known = Vec::new();
    keys_within(command, &mut known);
    for (key, value) in keys {
        let key = key.replace('_', "-");
        if !known.contains(&key) {
            bail!("`{key}` is no option of any command{}", nearest(&key, known.into_iter()));
        }
        if let Some(arg) = find(command, names).and_then(|c| args_of(c).find(|arg| key_of(arg) == key)) {
            found.push(setting(arg, key, value)?);
        }
    }
    for (of, table) in tables {
        let Some(sub) = command.find_subcommand(of) else {
            bail!("there is no command `{of}`{}", nearest(of, command.get_subcommands().map(|c| c.get_name().to_owned())));
        };
        let Some(table) = table.as_table() else { continue };
        settings_of(table, (of, sub), names.strip_prefix(&[of.as_str()]), &mut found)?;
    }
    Ok(found)
}

/// Adds what the table of one command says, when `rest` of the names is empty: it is then the command that is called. Its own
/// tables are those of the commands within it.
fn settings_of(table: &Table, (name, command): (&str, &Command), rest: Option<&[&str]>, found: &mut Vec<Setting>) -> anyhow::Result<()> {
    for (key, value) in table {
        if let (Some(within), Some(sub)) = (value.as_table(), command.find_subcommand(key)) {
            let rest = rest.and_then(|rest| rest.strip_prefix(&[key.as_str()]));
            settings_of(within, (&format!("{name} {key}"), sub), rest, found)?;
            continue;
        }
        let key = key.replace('_', "-");
        let Some(arg) = args_of(command).find(|arg| key_of(arg) == key) else {
            bail!("`{key}` is no option of `ferrum {name}`{}", nearest(&key, args_of(command).map(key_of)));
        };
        if rest == Some(&[]) {
            found.retain(|s| s.key != key);
            found.push(setting(arg, key, value)?);
        }
    }
    Ok(())
}

/// The keys of all commands.
fn keys_within(command: &Command, keys: &mut Vec<String>) {
    for sub in command.get_subcommands() {
        keys.extend(args_of(sub).map(key_of));
        keys_within(sub, keys);
    }
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
fn explanation(command: &Command, names: &[&str], flags: &ArgMatches, settings: &[Setting], path: Option<&Path>) -> String {
    let mut out = format!("[{}]\n", names.join("."));
    for arg in find(command, names).into_iter().flat_map(args_of) {
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

    fn words(text: &str, names: &str) -> anyhow::Result<Vec<String>> {
        let names: Vec<&str> = names.split(' ').collect();
        let found = settings(&toml::from_str(text)?, &Args::command(), &names)?;
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
    fn commands_within_commands_have_tables_within_tables() {
        let text = "seed = 4\n[bench]\nprompt = 9\n[bench.serve]\nurl = \"http://h\"\nconcurrency = [1, 8]\n";
        assert_eq!(words(text, "bench serve").unwrap(), ["--seed=4", "--concurrency=1", "--concurrency=8", "http://h"]);
        assert_eq!(words(text, "bench").unwrap(), ["--prompt=9"]);
        let error = words("[bench.serve]\nconcurrencies = 1", "run").unwrap_err().to_string();
        assert_eq!(error, "`concurrencies` is no option of `ferrum bench serve`; did you mean `concurrency`?");
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
        let text = explanation(&command, &["serve"], matches.subcommand().unwrap().1, &[], None);
        let table: Table = toml::from_str(&text).unwrap();
        assert_eq!(table["serve"]["port"].as_integer(), Some(9));
        assert!(text.contains("\n# Port to listen on; 0: any that is free\nport = 9  # flag\n"), "{text}");
        assert!(text.contains("host = \"127.0.0.1\"  # default\n"), "{text}");
        settings(&table, &command, &["serve"]).unwrap();
    }
}
