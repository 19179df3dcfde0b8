//! Prints the README's table of families and formats.

use std::io::{self, Write};

fn main() -> io::Result<()> {
    io::stdout().write_all(ferrum_models::families::support_table().as_bytes())
}
