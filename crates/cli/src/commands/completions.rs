//! `ferrum completions`: a completion script from the flags.

use clap::CommandFactory;

use crate::{
    args::{Args, CompletionsArgs},
    output,
};

pub fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "ferrum", &mut script);
    Ok(output::text(&String::from_utf8(script)?)?)
}
