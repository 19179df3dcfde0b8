//! `ferrum`: the command line.
#![forbid(unsafe_code)]

mod answer;
mod args;
mod commands;
mod config;
mod conversation;
mod cuda;
mod grammar;
mod interrupt;
mod open;
mod output;
mod random;
mod sampling;

use std::{process::ExitCode, time::Instant};

use args::{BenchCommand, Command};
use config::Parsed;

fn main() -> ExitCode {
    let started = Instant::now();
    let args = match config::parse(std::env::args_os().collect()) {
        Ok(Parsed::Args(args)) => *args,
        Ok(Parsed::Explained(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let Some(usage) = error.downcast_ref::<clap::Error>() else {
                output::report(&error);
                return ExitCode::FAILURE;
            };
            // Help and version are no errors. A closed pipe is: nobody reads it.
            let _ = usage.print();
            return if usage.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let result = interrupt::install().and_then(|()| match args.command {
        Command::Run(args) => commands::run::run(&args, started),
        Command::Serve(args) => commands::serve::run(args),
        Command::Pull(args) => commands::pull::run(&args),
        Command::List(args) => commands::list::run(&args),
        Command::Show(args) => commands::show::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Bench(args) => match &args.command {
            None => commands::bench::run(&args),
            Some(BenchCommand::Serve(args)) => commands::bench_serve::run(args),
        },
        Command::Perplexity(args) => commands::perplexity::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Completions(args) => commands::completions::run(&args),
        Command::Man(args) => commands::man::run(&args),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::report(&error);
            ExitCode::FAILURE
        }
    }
}
