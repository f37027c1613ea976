//! Ages over time as a picture: lines on a logarithmic scale, with what happened meanwhile. Words keep their size whatever the width: only the lines are
//! stretched.

use maud::{Markup, html};

use super::ages::Window;
use super::marks::{Kind, Mark};
use super::text;

/// Height of the lines.
const HIGH: f64 = 150.0;
/// Room above them, for the marks' letters.
const ABOVE: f64 = 20.0;
/// Width that the lines are drawn on before they are stretched.
const WIDE: f64 = 1000.0;
/// Marks drawn at most; all of them stand in the table.
const MARKS_MAX: usize = 60;

/// A line: its class, its name, its points in seconds.
pub(super) struct Line {
    pub(super) class: &'static str,
    pub(super) name: &'static str,
    pub(super) points: Vec<Option<f64>>,
}

/// Decades that hold every point, at least two.
fn decades(lines: &[Line]) -> (i32, i32) {
    let known = || lines.iter().flat_map(|line| line.points.iter().flatten()).copied().filter(|s| s.is_finite());
    let (least, most) = known().fold((f64::INFINITY, 0.0_f64), |(least, most), s| (least.min(s), most.max(s)));
    if !least.is_finite() {
        return (-2, 1);
    }
    let low = (least.max(0.001).log10().floor() as i32).clamp(-3, 1);
    (low, (most.max(0.001).log10().ceil() as i32).clamp(low + 2, 4))
}

/// Where a moment lies in the window, 0 to 100.
fn percent(at_ms: i64, from_ms: i64, window: &Window) -> f64 {
    ((at_ms - from_ms) as f64 / window.span_ms() as f64 * 100.0).clamp(0.0, 100.0)
}

fn ago(ms: i64) -> String {
    match ms {
        0 => "now".to_owned(),
        ms if ms < 3_600_000 => format!("−{} min", ms / 60_000),
        ms if ms < 86_400_000 => format!("−{} h", ms / 3_600_000),
        ms => format!("−{} d", ms / 86_400_000),
    }
}

fn axis(decade: i32) -> String {
    if decade < 0 { format!("{} ms", 10_u32.pow((decade + 3).unsigned_abs())) } else { format!("{} s", 10_u32.pow(decade.unsigned_abs())) }
}

fn path(points: &[Option<f64>], (low, high): (i32, i32)) -> String {
    let step = WIDE / points.len().max(1) as f64;
    let mut path = String::new();
    let mut before: Option<usize> = None;
    for (i, seconds) in points.iter().enumerate() {
        let Some(seconds) = seconds else { continue };
        let part = (seconds.max(1e-4).log10() - f64::from(low)) / f64::from(high - low);
        let (x, y) = ((i as f64 + 0.5) * step, HIGH * (1.0 - part.clamp(0.0, 1.0)));
        match before {
            Some(before) if before + 1 == i => path.push_str(&format!("L{x:.0} {y:.1}")),
            // A point between holes is a dot.
            _ => path.push_str(&format!("M{x:.0} {y:.1}h1")),
        }
        before = Some(i);
    }
    path
}

/// The picture. `from_ms` is where the window begins, `known_ms` since when anything is known.
pub(super) fn chart(what: &str, lines: &[Line], marks: &[&Mark], window: &Window, from_ms: i64, known_ms: i64) -> Markup {
    let decades = decades(lines);
    let last = |line: &Line| line.points.iter().rev().find_map(|p| *p);
    let told: Vec<String> = lines.iter().filter_map(|line| last(line).map(|s| format!("{} {}", line.name, text::span(s)))).collect();
    let label = match told.is_empty() {
        true => format!("{what}: nothing took effect in this time"),
        false => format!("{what}: at last {}", told.join(", ")),
    };
    let at = |ms: i64| percent(ms, from_ms, window);
    let p = |x: f64| format!("{x:.2}%");
    let y = |decade: i32| ABOVE + HIGH * (1.0 - f64::from(decade - decades.0) / f64::from(decades.1 - decades.0));
    let (to_ms, floor) = (from_ms + window.span_ms(), ABOVE + HIGH);
    let seen: Vec<&&Mark> = marks.iter().filter(|m| m.until_ms.unwrap_or(m.at_ms) >= from_ms || m.open).collect();
    let seen = &seen[seen.len().saturating_sub(MARKS_MAX)..];
    let ticks = (1..).map(|n| n * window.tick_ms).take_while(|ago| *ago < window.span_ms());
    html! {
        figure.chart {
            svg width="100%" height=(format!("{:.0}", floor + 20.0)) role="img" aria-label=(label) {
                @for mark in seen.iter().filter(|m| m.kind == Kind::Peak || m.kind == Kind::Incident) {
                    @let (from, to) = (at(mark.at_ms), at(mark.until_ms.unwrap_or(to_ms)));
                    rect class=(if mark.kind == Kind::Peak { "peak" } else { "incident" }) x=(p(from)) width=(p((to - from).max(0.25))) y=(ABOVE) height=(HIGH) { title { (text::inert(&mark.what, 200)) } }
                }
                @if known_ms > from_ms { rect.before x="0" width=(p(at(known_ms))) y=(ABOVE) height=(HIGH) { title { "before this process began" } } }
                @for decade in decades.0..=decades.1 { line.base x1="0" x2="100%" y1=(y(decade)) y2=(y(decade)) {} }
                @for ago_ms in ticks {
                    line.tick x1=(p(at(to_ms - ago_ms))) x2=(p(at(to_ms - ago_ms))) y1=(floor) y2=(floor + 4.0) {}
                    text.axis x=(p(at(to_ms - ago_ms))) y=(floor + 16.0) text-anchor="middle" { (ago(ago_ms)) }
                }
                text.axis x="100%" y=(floor + 16.0) text-anchor="end" { (ago(0)) }
                svg x="0" y=(ABOVE) width="100%" height=(HIGH) viewBox=(format!("0 0 {WIDE} {HIGH}")) preserveAspectRatio="none" {
                    @for line in lines { path class=(line.class) d=(path(&line.points, decades)) {} }
                }
                @for decade in decades.0..=decades.1 { text.axis x="3" y=(y(decade) - 3.0) { (axis(decade)) } }
                @for mark in seen.iter() {
                    @if mark.kind != Kind::Peak { line class=(format!("mark m-{}", mark.kind.letter())) x1=(p(at(mark.at_ms))) x2=(p(at(mark.at_ms))) y1=(ABOVE - 2.0) y2=(floor) {} }
                    @let x = at(mark.at_ms);
                    text class=(format!("letter m-{}", mark.kind.letter())) x=(p(x)) y=(ABOVE - 6.0) text-anchor=(if x < 1.0 { "start" } else if x > 99.0 { "end" } else { "middle" }) {
                        title { (text::inert(&mark.what, 200)) } (mark.kind.letter())
                    }
                }
            }
            figcaption { (label) }
        }
    }
}

/// What lines and letters mean.
pub(super) fn legend(lines: &[(&str, &str)]) -> Markup {
    html! {
        p.legend {
            @for (class, name) in lines { span { svg width="26" height="10" aria-hidden="true" { path class=(class) d="M1 5h24" {} } (name) } }
            @for (kind, letter, word) in Kind::ALL { span { b class=(format!("m-{}", kind.letter())) { (letter) } (word) } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ages::WINDOWS;
    use super::*;

    #[test]
    fn lines_have_holes_marks_stand_where_they_belong_and_nothing_acts() {
        let window = &WINDOWS[0];
        let mut points = vec![None; window.points];
        (points[0], points[30], points[31]) = (Some(0.01), Some(1.0), Some(0.1));
        let lines = [Line { class: "p95", name: "p95", points }];
        let mark = |kind, at_ms, until_ms, what: &str| Mark { kind, at_ms, until_ms, open: false, connector: None, what: what.to_owned() };
        let from = 1_000_000_000;
        let marks = [
            mark(Kind::Config, from + window.span_ms() / 2, None, "<script>"),
            mark(Kind::Peak, from, Some(from + window.span_ms() / 4), "peak"),
            mark(Kind::Incident, from - 9_000_000, Some(from - 8_000_000), "long over"),
        ];
        let marks: Vec<&Mark> = marks.iter().collect();
        let drawn = chart("crm", &lines, &marks, window, from, from + window.span_ms() / 10).into_string();
        assert!(drawn.contains("M8 150.0h1M508 0.0h1L525 75.0"), "{drawn}");
        assert!(drawn.contains("x1=\"50.00%\"") && drawn.contains("&lt;script&gt;") && !drawn.contains("long over"), "{drawn}");
        assert!(
            drawn.contains("class=\"peak\" x=\"0.00%\" width=\"25.00%\"") && drawn.contains("class=\"before\" x=\"0\" width=\"10.00%\""),
            "{drawn}"
        );
        assert!(
            drawn.contains("at last p95 100 ms") && drawn.contains("−15 min") && drawn.contains(">1 s<") && drawn.contains(">10 ms<"),
            "{drawn}"
        );
        let nothing = chart("crm", &[Line { class: "p95", name: "p95", points: vec![None; 60] }], &[], window, from, from).into_string();
        assert!(nothing.contains("nothing took effect"), "{nothing}");
    }
}
