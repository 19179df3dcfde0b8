//! Line plots as SVG, without a script and without anything from elsewhere.

use std::fmt::Write;

/// A plot with one line for each series.
pub struct Plot<'a> {
    pub title: &'a str,
    pub x: Axis<'a>,
    /// What the vertical axis shows; it begins at 0
    pub y: &'a str,
    pub series: Vec<Series>,
}

pub enum Axis<'a> {
    /// Points with names, at equal distances: `x` of a series is their number
    Names(&'a str, Vec<String>),
    /// From 0
    Linear(&'a str),
}

pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// Ends of a vertical bar at each point; none or as many as points
    pub bars: Vec<(f64, f64)>,
    /// What stands beside each point; none or as many as points
    pub labels: Vec<String>,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 46.0;
/// Series with more points are lines alone.
const MAX_MARKS: usize = 40;
/// Okabe and Ito's colours, which people with colour blindness can tell apart
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

impl Plot<'_> {
    pub fn svg(&self) -> String {
        let mut svg = String::new();
        // Strings cannot fail to be written to.
        let _ = self.write(&mut svg);
        svg
    }

    fn write(&self, svg: &mut String) -> std::fmt::Result {
        let points = || self.series.iter().flat_map(|s| s.points.iter().chain(&s.bars));
        let y_ticks = ticks(self.series.iter().flat_map(|s| s.points.iter().map(|p| p.1).chain(s.bars.iter().map(|b| b.1))));
        let (x_name, x_ticks) = match &self.x {
            Axis::Names(name, names) => (name, names.iter().enumerate().map(|(i, name)| (i as f64, name.clone())).collect()),
            Axis::Linear(name) => {
                let at = ticks(points().map(|p| p.0));
                (name, at.iter().map(|&x| (x, plain(x))).collect::<Vec<_>>())
            }
        };
        let (y_max, x_max) = (y_ticks.last().copied().unwrap_or(1.0), x_ticks.last().map_or(1.0, |t| t.0).max(1e-9));
        let inset = if matches!(self.x, Axis::Names(..)) { 24.0 } else { 0.0 };
        let x = |value: f64| LEFT + inset + value / x_max * (WIDTH - LEFT - RIGHT - 2.0 * inset);
        let y = |value: f64| HEIGHT - BOTTOM - value / y_max * (HEIGHT - TOP - BOTTOM);
        writeln!(svg, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", escape(self.title))?;
        writeln!(svg, "<text x=\"{LEFT}\" y=\"16\" class=\"title\">{}</text>", escape(self.title))?;
        for &value in &y_ticks {
            let at = y(value);
            writeln!(svg, "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{}\"/>", WIDTH - RIGHT)?;
            writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" class=\"y\">{}</text>", LEFT - 6.0, at + 4.0, plain(value))?;
        }
        for (value, name) in &x_ticks {
            let (at, below) = (x(*value), HEIGHT - BOTTOM + 16.0);
            writeln!(svg, "<text x=\"{at:.1}\" y=\"{below}\" class=\"x\">{}</text>", escape(name))?;
        }
        writeln!(svg, "<text x=\"{}\" y=\"{}\" class=\"x\">{}</text>", (LEFT + WIDTH) / 2.0, HEIGHT - 10.0, escape(x_name))?;
        let middle = HEIGHT / 2.0;
        writeln!(svg, "<text transform=\"translate(14 {middle}) rotate(-90)\" class=\"x\">{}</text>", escape(self.y))?;
        for (i, series) in self.series.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let line: Vec<String> = series.points.iter().map(|&(px, py)| format!("{:.1},{:.1}", x(px), y(py))).collect();
            writeln!(svg, "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" points=\"{}\"/>", line.join(" "))?;
            for (&(px, _), &(low, high)) in series.points.iter().zip(&series.bars) {
                writeln!(svg, "<path stroke=\"{colour}\" d=\"M{:.1} {:.1}V{:.1}\"/>", x(px), y(low), y(high))?;
            }
            if series.points.len() <= MAX_MARKS {
                for &(px, py) in &series.points {
                    writeln!(svg, "<circle fill=\"{colour}\" r=\"3\" cx=\"{:.1}\" cy=\"{:.1}\"/>", x(px), y(py))?;
                }
            }
            for (&(px, py), label) in series.points.iter().zip(&series.labels) {
                writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x(px) + 6.0, y(py) - 4.0, escape(label))?;
            }
            if self.series.len() == 1 {
                continue;
            }
            // Where the lines are not: distributions rise from below on the left.
            let (legend, at) = match self.x {
                Axis::Names(..) => (LEFT + 10.0, TOP + 4.0 + 15.0 * i as f64),
                Axis::Linear(_) => (WIDTH - 150.0, HEIGHT - BOTTOM - 12.0 - 15.0 * (self.series.len() - 1 - i) as f64),
            };
            writeln!(svg, "<path stroke=\"{colour}\" stroke-width=\"3\" d=\"M{legend} {at}h14\"/>")?;
            writeln!(svg, "<text x=\"{}\" y=\"{}\">{}</text>", legend + 20.0, at + 4.0, escape(&series.name))?;
        }
        writeln!(svg, "</svg>")
    }
}

/// Round numbers from 0 to above the largest value: a step of 1, 2 or 5 times a power of ten, four to ten of them.
fn ticks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let max = values.filter(|v| v.is_finite()).fold(0.0, f64::max);
    let max = if max > 0.0 { max } else { 1.0 };
    let power = 10f64.powf((max / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| max / step <= 6.0).unwrap_or(power * 10.0);
    (0..=(max / step).ceil() as usize).map(|i| i as f64 * step).collect()
}

fn plain(value: f64) -> String {
    if value >= 10_000.0 { format!("{}k", (value / 100.0).round() / 10.0) } else { ((value * 1e6).round() / 1e6).to_string() }
}

/// Text that is safe between tags and within quotes.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        let of = |max: f64| ticks([max].into_iter());
        assert_eq!(of(10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(of(0.0).iter().map(|&tick| plain(tick)).collect::<Vec<_>>(), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        for max in [0.013, 0.7, 1.0, 3.3, 47.0, 1234.5, 98765.0] {
            let ticks = of(max);
            assert!((4..=10).contains(&ticks.len()) && *ticks.last().unwrap() >= max, "{max}: {ticks:?}");
            assert!(ticks[ticks.len() - 2] < max, "{max}: {ticks:?}");
        }
        assert_eq!(ticks([f64::NAN].into_iter()).len(), 6);
    }

    #[test]
    fn a_plot_shows_its_points_where_they_belong() {
        let series = || Series {
            name: "a<b".into(),
            points: vec![(0.0, 0.0), (1.0, 10.0)],
            bars: vec![(0.0, 0.0), (5.0, 10.0)],
            labels: vec!["<1>".into(), "2".into()],
        };
        let x = Axis::Names("x", vec!["one".into(), "\"two\"".into()]);
        let svg = Plot { title: "t", x, y: "y", series: vec![series(), series()] }.svg();
        // The first at the bottom, the second at the top.
        let (left, right, bottom, top) = (LEFT + 24.0, WIDTH - RIGHT - 24.0, HEIGHT - BOTTOM, TOP);
        assert!(svg.contains(&format!("points=\"{left:.1},{bottom:.1} {right:.1},{top:.1}\"")), "{svg}");
        assert!(svg.contains("a&lt;b") && svg.contains("&lt;1&gt;") && svg.contains("&quot;two&quot;") && !svg.contains("a<b"), "{svg}");
    }
}
