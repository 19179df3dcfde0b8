//! Results as a table for `docs/performance.md`.

use serde_json::Value;
use std::fmt::Write;

/// One row per model and test.
pub fn markdown(results: &[Value]) -> String {
    let mut text = "| model | test | Ferrum | llama.cpp | ratio | limit reached |\n|---|---|---|---|---|---|\n".to_owned();
    for r in results {
        let number = |key: &str| r[key].as_f64().unwrap_or(f64::NAN);
        let limit = r["read_bytes_s"]["all_threads"].as_f64().map_or(String::new(), |rate| {
            let share = |tokens: f64| tokens * number("bytes_per_token") / rate * 100.0;
            format!("{:.0} % of {:.1} GB/s (llama.cpp {:.0} %)", share(number("ferrum")), rate / 1e9, share(number("peer")))
        });
        let (model, test) = (r["model"].as_str().unwrap_or(""), r["test"].as_str().unwrap_or(""));
        let unit = r["unit"].as_str().unwrap_or("");
        let show = |v: f64| if unit == "s" { format!("{v:.3}") } else { format!("{v:.1}") };
        let _ = writeln!(
            text,
            "| {model} | {test} | {} {unit} | {} {unit} | {:.2} | {limit} |",
            show(number("ferrum")),
            show(number("peer")),
            number("ratio")
        );
    }
    text
}
