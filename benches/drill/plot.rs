//! Delay and backlog over time, in the terminal and as SVG.

use std::fmt::Write as _;

use crate::figures::Figures;
use crate::report::Row;
use crate::run::Outcome;

const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Characters across, at most.
const WIDTH: usize = 110;
const ROWS: usize = 4;
/// The delay's axis is logarithmic, from here.
const SHORTEST: f64 = 0.001;

/// The largest of each group of neighbours, so that the series fits.
fn squeezed(values: &[f64], width: usize) -> Vec<f64> {
    let group = values.len().div_ceil(width).max(1);
    values
        .chunks(group)
        .map(|chunk| chunk.iter().copied().fold(0.0, f64::max))
        .collect()
}

/// Decades above [`SHORTEST`].
fn decades(seconds: f64) -> f64 {
    (seconds.max(SHORTEST) / SHORTEST).log10()
}

/// Prints both curves.
pub fn terminal(row: &Row) {
    let Row {
        outcome, figures, ..
    } = row;
    let delay = delays(figures);
    let top = delay.iter().copied().fold(decades(1.0), f64::max).ceil();
    let label = |level: f64| {
        let seconds = SHORTEST * 10f64.powf(level);
        match seconds < 1.0 {
            true => format!("{:.0} ms", seconds * 1000.0),
            false => format!("{seconds:.0} s"),
        }
    };
    println!("  valid mail, p99 of the delay (logarithmic)");
    rows(&delay, top, label);
    let backlog = backlogs(figures);
    let top = backlog.iter().copied().fold(10.0, f64::max);
    println!("  valid mail that waits");
    rows(&backlog, top, |level| format!("{level:.0}"));
    println!("  {:>8} {}", "", phases(outcome, delay.len()));
}

fn rows(values: &[f64], top: f64, label: impl Fn(f64) -> String) {
    let values = squeezed(values, WIDTH);
    for row in (0..ROWS).rev() {
        let line: String = values
            .iter()
            .map(|value| {
                let level = value / top * ROWS as f64 - row as f64;
                BARS[(level.clamp(0.0, 1.0) * 8.0).round() as usize]
            })
            .collect();
        let level = top * (row + 1) as f64 / ROWS as f64;
        println!("  {:>8} {line}", label(level));
    }
}

/// A line under the curves: warm-up, calm, event, after, settling.
fn phases(outcome: &Outcome, seconds: usize) -> String {
    let group = seconds.div_ceil(WIDTH).max(1);
    let phases = outcome.phases;
    let line = (0..seconds.div_ceil(group)).map(|at| {
        let now = (at * group) as f64;
        match now {
            now if now < phases.calm_begins.as_secs_f64() => 'w',
            now if now < phases.event_begins.as_secs_f64() => 'c',
            now if now < phases.event_ends.as_secs_f64() => 'E',
            now if now < phases.load_ends.as_secs_f64() => 'a',
            _ => '.',
        }
    });
    let line: String = line.collect();
    format!("{line}  (w warm-up, c calm, E event, a after, . no load; {group} s each)")
}

/// What of a run is drawn.
type Curve = fn(&Figures) -> Vec<f64>;

/// Size of a panel of the picture, and its margins.
const PANEL: (f64, f64) = (720.0, 150.0);
const LEFT: f64 = 70.0;
const GAP: f64 = 50.0;

fn delays(figures: &Figures) -> Vec<f64> {
    let series = figures.series.delay.iter();
    series.map(|seconds| decades(*seconds)).collect()
}

fn backlogs(figures: &Figures) -> Vec<f64> {
    let series = figures.series.backlog.iter();
    series.map(|count| *count as f64).collect()
}

/// Both curves of the relay, and of a peer if there was one.
pub fn svg(rows: &[Row]) -> String {
    const COLOURS: [&str; 2] = ["#0b6e4f", "#c1121f"];
    let Some(outcome) = rows.first().map(|row| &row.outcome) else {
        return String::new();
    };
    let longest = rows.iter().map(|row| row.figures.series.delay.len()).max();
    let seconds = longest.unwrap_or(1) as f64;
    let height = 2.0 * (PANEL.1 + GAP) + 20.0;
    let width = PANEL.0 + LEFT + 20.0;
    // Writing to a String cannot fail.
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let panels: [(&str, Curve, f64); 2] = [
        ("p99 of the delay of valid mail", delays, 3.0),
        ("valid mail that waits", backlogs, 10.0),
    ];
    for (number, (title, of, least)) in panels.into_iter().enumerate() {
        let y = GAP + number as f64 * (GAP + PANEL.1);
        let all = rows.iter().flat_map(|row| of(&row.figures));
        let top = all.fold(least, f64::max).ceil();
        let title = format!("{}: {title}", outcome.variant.name);
        frame(&mut out, y, &title, outcome, seconds);
        grid(&mut out, y, top, number == 0);
        for (row, colour) in rows.iter().zip(COLOURS) {
            let curve = of(&row.figures).into_iter().enumerate();
            let point = |(at, value): (usize, f64)| {
                let x = LEFT + PANEL.0 * (at as f64 + 0.5) / seconds;
                format!("{x:.1},{:.1}", y + PANEL.1 * (1.0 - value / top))
            };
            let points: Vec<String> = curve.map(point).collect();
            let _ = writeln!(
                out,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>",
                points.join(" ")
            );
        }
    }
    for (at, (row, colour)) in rows.iter().zip(COLOURS).enumerate() {
        let (x, name) = (LEFT + 180.0 * at as f64, row.outcome.subject);
        let _ = writeln!(
            out,
            "<text x=\"{x}\" y=\"18\" fill=\"{colour}\">{name}</text>"
        );
    }
    out + "</svg>\n"
}

/// The panel's border, title, and the time of the event.
fn frame(out: &mut String, y: f64, title: &str, outcome: &Outcome, seconds: f64) {
    let at =
        |instant: std::time::Duration| LEFT + PANEL.0 * (instant.as_secs_f64() / seconds).min(1.0);
    let (begins, ends) = (
        at(outcome.phases.event_begins),
        at(outcome.phases.event_ends),
    );
    let _ = writeln!(
        out,
        "<rect x=\"{begins:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"#f4e3c1\"/>\n\
         <rect x=\"{LEFT}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#555\"/>\n\
         <text x=\"{LEFT}\" y=\"{}\">{title}</text>\n<text x=\"{LEFT}\" y=\"{}\">0 s</text>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{seconds:.0} s</text>",
        ends - begins,
        PANEL.1,
        PANEL.0,
        PANEL.1,
        y - 6.0,
        y + PANEL.1 + 14.0,
        LEFT + PANEL.0,
        y + PANEL.1 + 14.0,
    );
}

/// Lines at decades, or at quarters.
fn grid(out: &mut String, y: f64, top: f64, is_delay: bool) {
    let steps = if is_delay { top as usize } else { 4 };
    for step in 0..=steps {
        let level = top * step as f64 / steps as f64;
        let at = y + PANEL.1 * (1.0 - level / top);
        let label = match (is_delay, level) {
            (false, level) => format!("{level:.0}"),
            (true, level) if level < 3.0 => format!("{:.0} ms", 10f64.powf(level)),
            (true, level) => format!("{:.0} s", 10f64.powf(level - 3.0)),
        };
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\n\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT + PANEL.0,
            LEFT - 6.0,
            at + 4.0,
        );
    }
}
