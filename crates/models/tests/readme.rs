//! The README's table says what the registry says.

use std::{fs, path::Path};

#[test]
fn support_table_is_current() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let table = ferrum_models::families::support_table();
    assert!(readme.contains(&table), "run `cargo run -p ferrum-models --example support_table` and paste:\n{table}");
}
