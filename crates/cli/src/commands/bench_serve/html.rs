//! The report as one page of HTML that needs nothing else.

use std::fmt::Write;

use super::{
    plot::{Axis, Plot, Series, escape},
    report::Point,
    stats::{Estimate, Summary},
    table::{estimate, latencies, number, rates, varied},
};

/// What stands above the figures: names and values.
pub type Facts = Vec<(&'static str, String)>;

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1180px;padding:0 1em;color:#222}\
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse}\
td,th{padding:.15em .8em;text-align:right;border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}\
td:first-child,th:first-child{text-align:left}.facts td{text-align:left;border:0;padding:.1em .8em}\
.scroll{overflow-x:auto}.plots{display:flex;flex-wrap:wrap;gap:1em}svg{width:560px;max-width:100%;border:1px solid #eee}\
svg text{font:11px system-ui,sans-serif;fill:#333}svg .title{font-size:13px;font-weight:600}svg .y{text-anchor:end}\
svg .x{text-anchor:middle}.grid{stroke:#eee}.ci{color:#888;font-size:.85em}.error{color:#b00020}";

pub fn page(title: &str, facts: &Facts, notes: &[String], points: &[Point]) -> String {
    let mut html = String::new();
    // Strings cannot fail to be written to.
    let _ = write_page(&mut html, (title, facts, notes), points);
    html
}

fn write_page(html: &mut String, (title, facts, notes): (&str, &Facts, &[String]), points: &[Point]) -> std::fmt::Result {
    let title = escape(title);
    writeln!(html, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">")?;
    // Nothing is loaded and no script runs, whatever a server has said.
    writeln!(
        html,
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>"
    )?;
    writeln!(html, "<table class=\"facts\">")?;
    for (name, value) in facts {
        writeln!(html, "<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(value))?;
    }
    writeln!(html, "</table>")?;
    for note in notes {
        writeln!(html, "<p>Note: {}</p>", escape(note))?;
    }
    overview(html, points)?;
    writeln!(html, "<div class=\"plots\">")?;
    plots(points).iter().try_for_each(|plot| html.write_str(&plot.svg()))?;
    writeln!(html, "</div>")?;
    points.iter().try_for_each(|point| details(html, point))?;
    writeln!(
        html,
        "<p class=\"ci\">In brackets: 95 % confidence intervals by bootstrap, over requests for latencies and over slices of time for rates. \
         ferrum {}</p></body></html>",
        env!("CARGO_PKG_VERSION")
    )
}

fn overview(html: &mut String, points: &[Point]) -> std::fmt::Result {
    let Some(first) = points.first() else { return Ok(()) };
    let names = ["completed", "failed", "requests/s", "output tok/s", "total tok/s"];
    let latency = ["TTFT p50 ms", "TTFT p99", "TPOT p50", "TPOT p99", "ITL p50", "ITL p99", "e2e p50", "e2e p99"];
    let goodput = first.goodput.is_some().then_some("goodput req/s");
    let heads = [varied(first.arrivals)].into_iter().chain(names).chain(latency).chain(goodput);
    writeln!(html, "<div class=\"scroll\"><table><tr>{}</tr>", heads.map(|head| format!("<th>{head}</th>")).collect::<String>())?;
    for point in points {
        let both = |summary: &Option<Summary>| summary.map_or([f64::NAN; 2], |s| [s.median.value, s.p99.value]);
        let rates = [point.requests_s, point.output_tok_s, point.total_tok_s].map(|rate| rate.value);
        let latencies = [point.ttft_ms, point.tpot_ms, point.itl_ms, point.e2e_ms].iter().flat_map(both).collect::<Vec<_>>();
        let goodput = point.goodput.as_ref().map(|goodput| goodput.requests_s.value);
        let cells = rates.into_iter().chain(latencies).chain(goodput).map(|value| format!("<td>{}</td>", number(value)));
        let (label, completed, failed) = (escape(&point.label()), point.completed, point.failed);
        writeln!(html, "<tr><td>{label}</td><td>{completed}</td><td>{failed}</td>{}</tr>", cells.collect::<String>())?;
    }
    writeln!(html, "</table></div>")
}

fn details(html: &mut String, point: &Point) -> std::fmt::Result {
    let cell = |value: &Estimate| {
        let (value, interval) = (number(value.value), estimate(value));
        let interval = interval.split_once(' ').map_or("", |(_, interval)| interval);
        format!("<td>{value} <span class=\"ci\">{interval}</span></td>")
    };
    writeln!(html, "<h2>{} {}</h2>", varied(point.arrivals), escape(&point.label()))?;
    let (prompt, output) = (point.tokens.prompt, point.tokens.output);
    writeln!(html, "<p>{prompt} prompt tokens, {output} output tokens in {:.2} s</p><table>", point.span_s)?;
    for (name, rate) in rates(point) {
        writeln!(html, "<tr><td>{name}</td>{}</tr>", cell(&rate))?;
    }
    writeln!(
        html,
        "</table><div class=\"scroll\"><table><tr><th>ms</th><th>mean</th><th>median</th><th>p90</th><th>p95</th><th>p99</th></tr>"
    )?;
    for (name, s) in latencies(point) {
        let cells: String = [s.mean, s.median, s.p90, s.p95, s.p99].iter().map(cell).collect();
        writeln!(html, "<tr><td>{name}</td>{cells}</tr>")?;
    }
    writeln!(html, "</table></div>")?;
    for error in &point.errors {
        writeln!(html, "<p class=\"error\">failed: {} × {}: {}</p>", error.count, escape(&error.kind), escape(&error.example))?;
    }
    point.notes.iter().try_for_each(|note| writeln!(html, "<p>Note: {}</p>", escape(note)))
}

fn plots(points: &[Point]) -> Vec<Plot<'static>> {
    let name = points.first().map_or("", |point| varied(point.arrivals));
    let x = || Axis::Names(name, points.iter().map(Point::label).collect());
    let over = |title: &str, value: &dyn Fn(&Point) -> Option<Estimate>| {
        let found = points.iter().enumerate().filter_map(|(i, point)| Some((i as f64, value(point)?)));
        let (points, bars) = found.map(|(i, e)| ((i, e.value), (e.low, e.high))).unzip();
        Series { name: title.to_owned(), points, bars, labels: vec![] }
    };
    type Latency = fn(&Point) -> Option<Summary>;
    let percentiles = |of: Latency| {
        vec![
            over("median", &|point| Some(of(point)?.median)),
            over("p90", &|point| Some(of(point)?.p90)),
            over("p99", &|point| Some(of(point)?.p99)),
        ]
    };
    let distribution = |curve: fn(&Point) -> &[f64]| {
        let of = |point: &Point| Series {
            name: format!("{name} {}", point.label()),
            // The last hundredth would make all else narrow.
            points: curve(point).iter().enumerate().take(100).map(|(level, &ms)| (ms, level as f64)).collect(),
            bars: vec![],
            labels: vec![],
        };
        points.iter().map(of).collect()
    };
    // What one user gets against what all get together: the curve by which operating points are chosen.
    let trade = points.iter().filter_map(|point| {
        let at = (1000.0 / point.tpot_ms?.median.value, point.output_tok_s.value);
        Some((at, point.label()))
    });
    let (trade, labels) = trade.unzip();
    let speed = vec![over("output tok/s", &|point| Some(point.output_tok_s))];
    let mut plots = vec![
        Plot { title: "Output tokens per second", x: x(), y: "tok/s", series: speed },
        Plot { title: "Time to first token", x: x(), y: "ms", series: percentiles(|point| point.ttft_ms) },
        Plot { title: "Time per output token", x: x(), y: "ms", series: percentiles(|point| point.tpot_ms) },
        Plot {
            title: "All users' speed against one user's",
            x: Axis::Linear("tok/s of one user (1 / median TPOT)"),
            y: "tok/s of all",
            series: vec![Series { name: String::new(), points: trade, bars: vec![], labels }],
        },
        Plot {
            title: "Time to first token: share of requests within, up to 99 %",
            x: Axis::Linear("ms"),
            y: "%",
            series: distribution(|point| &point.curves.ttft_ms),
        },
        Plot {
            title: "Time between tokens: share within, up to 99 %",
            x: Axis::Linear("ms"),
            y: "%",
            series: distribution(|point| &point.curves.itl_ms),
        },
    ];
    if points.iter().any(|point| point.goodput.is_some()) {
        let series = vec![over("good requests/s", &|point| Some(point.goodput.as_ref()?.requests_s))];
        plots.insert(1, Plot { title: "Goodput", x: x(), y: "requests/s", series });
    }
    plots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench_serve::{
        failure::Failure,
        load::{Arrivals, Plan},
        record::Record,
    };

    #[test]
    fn a_page_holds_every_point_and_nothing_that_a_server_wrote_unescaped() {
        let answered = Record { tokens_s: vec![0.1, 0.2], end_s: 0.2, output_tokens: 2, prompt_tokens: 4, ..Record::default() };
        let failed = Record { failure: Some(Failure::new("in stream", "<script>alert('x')</script>")), ..Record::default() };
        let point = |streams| {
            let plan = Plan { arrivals: Arrivals::Concurrency(streams), requests: 2, duration: None, series: 0, seed: 0 };
            Point::new(&plan, &[answered.clone(), failed.clone()], "ttft=150".parse().ok(), None, true)
        };
        let html = page("a & \"b\"", &vec![("model", "<img src=x>".into())], &["<b>".into()], &[point(1), point(64)]);
        for part in
            ["a &amp; &quot;b&quot;", "&lt;img src=x&gt;", "&lt;b&gt;", "&lt;script&gt;", "<h2>concurrency 64</h2>", "goodput req/s"]
        {
            assert!(html.contains(part), "{part} is missing from\n{html}");
        }
        for part in ["<script", "<img", "http://", "https://", "url(", "src=\"", "href", "NaN", "inf,"] {
            assert!(!html.contains(part), "{part} is in\n{html}");
        }
        assert_eq!(html.matches("<svg").count(), 7);
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    }
}
