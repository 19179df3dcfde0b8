//! The report as text: a line for each point while it is measured, and the details behind the last.

use std::fmt::Write;

use super::{
    load::Arrivals,
    report::Point,
    stats::{Estimate, Summary},
};

/// Head of the column that says what is varied
pub fn varied(arrivals: Arrivals) -> &'static str {
    match arrivals {
        Arrivals::Concurrency(_) => "concurrency",
        Arrivals::Rate(_) => "requests/s",
    }
}

/// The line above those of [`line`].
pub fn head(arrivals: Arrivals, goodput: bool) -> String {
    let mut text = format!(
        "{:>11} {:>9} {:>7} {:>8} {:>10} {:>10}   {:>15}   {:>15}   {:>15}   {:>17}",
        varied(arrivals),
        "completed",
        "failed",
        "req/s",
        "output t/s",
        "total t/s",
        "TTFT p50/p99 ms",
        "TPOT p50/p99 ms",
        "ITL p50/p99 ms",
        "e2e p50/p99 ms",
    );
    if goodput {
        text += &format!("   {:>15}", "goodput req/s");
    }
    text + "\n"
}

pub fn line(point: &Point) -> String {
    let pair = |summary: &Option<Summary>| summary.map_or("-".into(), |s| format!("{} / {}", number(s.median.value), number(s.p99.value)));
    let mut text = format!(
        "{:>11} {:>9} {:>7} {:>8} {:>10} {:>10}   {:>15}   {:>15}   {:>15}   {:>17}",
        point.label(),
        point.completed,
        point.failed,
        number(point.requests_s.value),
        number(point.output_tok_s.value),
        number(point.total_tok_s.value),
        pair(&point.ttft_ms),
        pair(&point.tpot_ms),
        pair(&point.itl_ms),
        pair(&point.e2e_ms),
    );
    if let Some(goodput) = &point.goodput {
        text += &format!("   {:>15}", format!("{} ({:.0} %)", number(goodput.requests_s.value), 100.0 * goodput.share));
    }
    text + "\n"
}

/// Every figure of a point, with its 95 % confidence interval.
pub fn details(point: &Point) -> String {
    let mut text = String::new();
    // Strings cannot fail to be written to.
    let _ = write_details(&mut text, point);
    text
}

fn write_details(text: &mut String, point: &Point) -> std::fmt::Result {
    let tokens = &point.tokens;
    write!(text, "\n{} {}: {} prompt tokens", varied(point.arrivals), point.label(), tokens.prompt)?;
    if let Some(cached) = tokens.cached {
        write!(text, " ({cached} cached)")?;
    }
    writeln!(text, ", {} output tokens in {:.2} s", tokens.output, point.span_s)?;
    for (name, rate) in rates(point) {
        writeln!(text, "  {name:<14} {}", estimate(&rate))?;
    }
    if point.ttft_ms.is_some() {
        let [mean, median, p90, p95, p99] = ["mean", "median", "p90", "p95", "p99"];
        writeln!(text, "  {:<8} {mean:>22} {median:>22} {p90:>22} {p95:>22} {p99:>22}", "ms")?;
    }
    for (name, summary) in latencies(point) {
        let [mean, median, p90, p95, p99] =
            [summary.mean, summary.median, summary.p90, summary.p95, summary.p99].map(|value| estimate(&value));
        writeln!(text, "  {name:<8} {mean:>22} {median:>22} {p90:>22} {p95:>22} {p99:>22}")?;
    }
    if let (Some(us), Some(share)) = (point.client.cpu_us_per_token, point.client.cpu_share) {
        writeln!(text, "  this program: {us:.1} µs of processor time per token, {:.1} % of a core", 100.0 * share)?;
    }
    for error in &point.errors {
        writeln!(text, "  failed: {} × {}: {}", error.count, error.kind, error.example)?;
    }
    for note in &point.notes {
        writeln!(text, "  note: {note}")?;
    }
    Ok(())
}

/// The rates of a point by name
pub fn rates(point: &Point) -> Vec<(&'static str, Estimate)> {
    let mut rates = vec![("output tok/s", point.output_tok_s), ("total tok/s", point.total_tok_s), ("requests/s", point.requests_s)];
    rates.extend(point.goodput.as_ref().map(|goodput| ("good req/s", goodput.requests_s)));
    rates
}

/// The latencies of a point by name, as far as there are any
pub fn latencies(point: &Point) -> Vec<(&'static str, Summary)> {
    let all = [("TTFT", point.ttft_ms), ("TPOT", point.tpot_ms), ("ITL", point.itl_ms), ("e2e", point.e2e_ms)];
    all.into_iter().filter_map(|(name, summary)| Some((name, summary?))).collect()
}

/// `12.3 [11.9–12.8]`
pub fn estimate(estimate: &Estimate) -> String {
    format!("{} [{}–{}]", number(estimate.value), number(estimate.low), number(estimate.high))
}

/// Three or four digits that count.
pub fn number(value: f64) -> String {
    match value.abs() {
        a if !a.is_finite() => "-".into(),
        a if a >= 100.0 => format!("{value:.0}"),
        a if a >= 10.0 => format!("{value:.1}"),
        a if a >= 0.1 || a == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_count() {
        let numbers = [0.0, 0.0123, 0.5, 9.876, 42.42, 123.4, 98765.4, f64::NAN];
        assert_eq!(numbers.map(number), ["0.00", "0.012", "0.50", "9.88", "42.4", "123", "98765", "-"]);
        assert_eq!(estimate(&Estimate { value: 1.0, low: 0.5, high: 20.0 }), "1.00 [0.50–20.0]");
    }
}
