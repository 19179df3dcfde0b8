//! `ferrum man`: manual pages from the flags.

use std::fs;

use anyhow::Context;
use clap::CommandFactory;
use clap_mangen::Man;

use crate::{
    args::{Args, ManArgs},
    output,
};

pub fn run(args: &ManArgs) -> anyhow::Result<()> {
    let mut command = Args::command();
    command.build();
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        Man::new(command).render(&mut page)?;
        return Ok(output::text(&String::from_utf8(page)?)?);
    };
    fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    clap_mangen::generate_to(command, dir).with_context(|| format!("cannot write manual pages into {}", dir.display()))
}
