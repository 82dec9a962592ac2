//! The ratios as a picture: one bar for each, from 1 to the median, with a whisker from the least to the most and a mark at
//! the goal. Plain SVG with its own ground, so that it can be read on light and on dark pages.

use std::fmt::Write;

use super::case::Who;
use super::figures::{Figures, Ratio};

/// From the left edge to where the scale begins, in pixels: room for the texts.
const TEXT: f64 = 520.0;
/// The scale's width.
const SCALE: f64 = 330.0;
/// Right of it: room for the figures.
const RIGHT: f64 = 150.0;
/// From one bar to the next.
const STEP: f64 = 22.0;
/// Above the first bar.
const TOP: f64 = 62.0;

/// Text as it may stand in XML, without characters that XML does not know.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// The scale: logarithmic, so that half and double are as far from 1.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    /// Wide enough for all, at most from a twentieth to twenty.
    fn of(all: &[&Ratio]) -> Self {
        let ends = all.iter().flat_map(|r| [r.times.low, r.times.high, r.goal.unwrap_or(1.0)]);
        let (low, high) = ends
            .filter(|v| v.is_finite() && *v > 0.0)
            .fold((0.5_f64, 2.0_f64), |(l, h), v| (l.min(v), h.max(v)));
        Self { low: (low * 0.95).max(0.05), high: (high * 1.05).min(20.0) }
    }

    fn x(&self, v: f64) -> f64 {
        let v = v.clamp(self.low, self.high);
        TEXT + SCALE * (v / self.low).ln() / (self.high / self.low).ln()
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let (low, high) = (self.low, self.high);
        [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0].into_iter().filter(move |t| *t >= low && *t <= high)
    }
}

const STYLE: &str = "
 .ground{fill:#fff;stroke:#d0d7de} text{fill:#1f2328;font:12px system-ui,sans-serif} .soft{fill:#59636e}
 .head{font-size:15px;font-weight:600} .end{text-anchor:end} .mid{text-anchor:middle} .grid{stroke:#d8dee4}
 .one{stroke:#59636e;stroke-width:1.5} .good{fill:#2da44e} .bad{fill:#cf5b16} .bound{fill:#8c959f}
 .spread{stroke:#1f2328;stroke-width:1.5} .goal{stroke:#0969da;stroke-width:2.5}
 @media (prefers-color-scheme:dark){
  .ground{fill:#0d1117;stroke:#3d444d} text{fill:#e6edf3} .soft{fill:#9198a1} .grid{stroke:#262c36}
  .one{stroke:#9198a1} .good{fill:#2ea043} .bad{fill:#db6d28} .bound{fill:#6e7681}
  .spread{stroke:#e6edf3} .goal{stroke:#58a6ff}}
";

/// The picture; `caption` says where and when. None if there is no ratio.
#[must_use]
pub fn svg(f: &Figures, caption: &str) -> Option<String> {
    let ratios = f.ratios();
    // Ratios that no goal speaks of would bury the others.
    let all: Vec<&Ratio> = ratios
        .iter()
        .filter(|r| r.ours == Who::Netreeve && (r.goal.is_some() || r.beside != Who::XskRs))
        .filter(|r| r.figure.goals.iter().any(|g| matches!(g, super::row::Goal::Times(..))) || r.figure.more)
        .collect();
    if all.is_empty() {
        return None;
    }
    let scale = Scale::of(&all);
    let rows = f64::from(u16::try_from(all.len()).unwrap_or(u16::MAX));
    let (width, bottom) = (TEXT + SCALE + RIGHT, TOP + rows * STEP);
    let height = bottom + 46.0;
    let mut t = String::new();
    let mut put = |words: std::fmt::Arguments<'_>| {
        let _infallible = writeln!(t, "{words}");
    };
    put(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\" aria-label=\"netreeve beside others, as ratios\">\n<style>{STYLE}</style>"
    ));
    put(format_args!(
        "<rect class=\"ground\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"6\"/>",
        width - 1.0,
        height - 1.0
    ));
    put(format_args!("<text class=\"head\" x=\"14\" y=\"25\">netreeve: times as good as …</text>"));
    for tick in scale.ticks() {
        let (x, class) = (scale.x(tick), if (tick - 1.0).abs() < 1e-9 { "one" } else { "grid" });
        put(format_args!(
            "<line class=\"{class}\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>\
             <text class=\"soft mid\" x=\"{x:.1}\" y=\"{:.1}\">{tick}</text>",
            TOP - 8.0,
            TOP - 14.0
        ));
    }
    let mut y = TOP;
    for r in all {
        put(format_args!("{}", bar(r, &scale, y)));
        y += STEP;
    }
    put(format_args!(
        "<text class=\"soft\" x=\"14\" y=\"{:.1}\">bar: median of the rounds; line: least to most; blue: goal; grey: the \
         load was the limit; logarithmic scale</text>\n<text class=\"soft\" x=\"14\" y=\"{:.1}\">{}</text>\n</svg>",
        bottom + 18.0,
        bottom + 35.0,
        escape(caption)
    ));
    Some(t)
}

/// One ratio: its text, its bar, its spread, its goal, its figure.
fn bar(r: &Ratio, scale: &Scale, y: f64) -> String {
    let middle = y + STEP / 2.0 - 3.0;
    let (one, at) = (scale.x(1.0), scale.x(r.times.mid));
    let wanted = r.goal.unwrap_or(1.0);
    let class = match r.times.mid {
        m if m >= wanted => "good",
        _ if r.load_bound => "bound",
        _ => "bad",
    };
    let name = if r.figure.name.is_empty() { r.row.clone() } else { format!("{}, {}", r.row, r.figure.name) };
    let mut t = format!(
        "<text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{} <tspan class=\"soft\">/ {}</tspan></text>",
        TEXT - 10.0,
        middle + 4.0,
        escape(&name),
        escape(r.beside.name())
    );
    let _infallible = write!(
        t,
        "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\"/>\
         <line class=\"spread\" x1=\"{:.1}\" y1=\"{middle:.1}\" x2=\"{:.1}\" y2=\"{middle:.1}\"/>",
        one.min(at),
        middle - 6.0,
        (one - at).abs().max(1.0),
        scale.x(r.times.low),
        scale.x(r.times.high),
    );
    if let Some(goal) = r.goal {
        let x = scale.x(goal);
        let _infallible = write!(
            t,
            "<line class=\"goal\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>",
            middle - 8.0,
            middle + 8.0
        );
    }
    let _infallible = write!(
        t,
        "<text x=\"{:.1}\" y=\"{:.1}\">{:.2} <tspan class=\"soft\">({:.2}–{:.2})</tspan></text>",
        TEXT + SCALE + 12.0,
        middle + 4.0,
        r.times.mid,
        r.times.low,
        r.times.high
    );
    t
}

#[cfg(test)]
mod tests {
    use super::super::figures::Sampled;
    use super::super::row::{Row, Value};
    use super::*;

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escape("a<b>&\"c'\u{1b}d"), "a&lt;b&gt;&amp;&quot;c&#39; d");
    }

    #[test]
    fn a_bar_goes_from_one_to_the_ratio() {
        let row = Row::all().remove(0);
        let mut f = Figures::new(std::slice::from_ref(&row));
        assert!(svg(&f, "").is_none());
        let value = |value| Sampled::Values(vec![Value { value, ..Value::default() }]);
        f.add(0, Who::Dpdk, value(2.0));
        f.add(0, Who::Netreeve, value(4.0));
        let text = svg(&f, "here & <now>").unwrap();
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"), "{text}");
        assert!(text.contains("here &amp; &lt;now&gt;"), "{text}");
        let ratios = f.ratios();
        let scale = Scale::of(&[&ratios[0]]);
        let (one, two) = (scale.x(1.0), scale.x(2.0));
        assert!(text.contains(&format!("x=\"{one:.1}\" y=\"64.0\" width=\"{:.1}\"", two - one)), "{text}");
        // Half and double are as far from 1.
        assert!((scale.x(0.5) - one + two - one).abs() < 1e-9 || scale.low > 0.5);
        assert_eq!(text.matches('<').count(), text.matches('>').count());
    }
}
