//! A distribution of durations, drawn with characters: one row for each step of a logarithmic scale.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::exit::CliError;
use super::super::terminal::{Terminal, pad, wide};
use crate::measure::Latencies;
use crate::measure::proposal::grouped;

/// Most rows with scans: with more, the steps get longer.
const CHART_ROWS_MAX: usize = 16;
/// Width of a chart that goes to a file or a program.
const CHART_WIDTH_DEFAULT: usize = 80;
/// Width of the longest bar, at least.
const BAR_WIDTH_MIN: usize = 10;
/// Upper end of the first step: 100 µs.
const STEP_FIRST: Duration = Duration::from_micros(100);
/// Powers of ten above [`STEP_FIRST`]: up to 100,000 s; longer durations do not exist.
const STEP_DECADES: u32 = 9;

/// A duration that is marked in its row.
pub(super) struct Mark {
    pub(super) name: &'static str,
    pub(super) at: Duration,
}

struct Row {
    upper: Duration,
    count: u64,
    marks: Vec<&'static str>,
}

/// Draws a distribution that has durations. The marks for the percentiles are added; `marks` beyond all durations get a row of
/// their own.
pub(super) fn draw(
    latencies: &Latencies,
    marks: &[Mark],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let rows = rows(latencies, marks);
    let (all, most) = (latencies.count(), rows.iter().map(|row| row.count).max());
    let most = most.unwrap_or_default().max(1);
    let label = |row: &Row| label(row.upper);
    let number = |row: &Row| grouped(row.count);
    let widest = |text: &dyn Fn(&Row) -> usize| rows.iter().map(text).max().unwrap_or_default();
    let labels = widest(&|row| wide(&label(row)));
    let numbers = widest(&|row| number(row).len());
    let names = widest(&|row| row.marks.join(" ").len());
    // Two spaces between the columns, and 7 for a percentage.
    let taken = "up to ".len() + labels + 2 + numbers + 2 + 7 + 2 + names + 1;
    let width = terminal.width.map_or(CHART_WIDTH_DEFAULT, usize::from);
    let room = width.saturating_sub(taken).max(BAR_WIDTH_MIN);
    // A file or a program gets plain ASCII.
    let block = if terminal.width.is_some() { "█" } else { "#" };
    for row in &rows {
        let share = row.count as f64 / all.max(1) as f64;
        let length = (row.count as f64 / most as f64 * room as f64).ceil() as usize;
        let bar = block.repeat(length.min(room));
        let percent = match share * 100.0 {
            0.0 => String::new(),
            percent @ ..1.0 => format!("{percent:.2} %"),
            percent => format!("{percent:.1} %"),
        };
        let space = if bar.is_empty() || row.marks.is_empty() {
            ""
        } else {
            " "
        };
        let line = format!(
            "up to {}  {:>numbers$}  {percent:>7}  {bar}{space}{}",
            pad(&label(row), labels),
            number(row),
            row.marks.join(" "),
        );
        terminal.line(line.trim_end())?;
    }
    Ok(())
}

fn rows(latencies: &Latencies, marks: &[Mark]) -> Vec<Row> {
    let scales: [&[u32]; 3] = [&[1, 2, 5], &[1, 3], &[1]];
    let mut bounds = Vec::new();
    for scale in scales {
        bounds = scale_of(scale);
        let place = |duration: Option<Duration>| duration.map(|d| place(&bounds, middle(d)));
        let ends = (place(latencies.within(0.0)), place(latencies.longest()));
        if let (Some(first), Some(last)) = ends
            && last - first < CHART_ROWS_MAX
        {
            break;
        }
    }
    let mut rows: BTreeMap<usize, Row> = BTreeMap::new();
    let row = |at: usize| Row {
        upper: bounds[at],
        count: 0,
        marks: Vec::new(),
    };
    for (upper, count) in latencies.steps() {
        let at = place(&bounds, middle(upper));
        rows.entry(at).or_insert_with(|| row(at)).count += count;
    }
    // A gap between two rows is part of the picture.
    let ends = rows.keys().next().zip(rows.keys().next_back());
    for at in ends
        .map(|(first, last)| *first..*last)
        .into_iter()
        .flatten()
    {
        rows.entry(at).or_insert_with(|| row(at));
    }
    let percentiles = [("p50", 0.5), ("p99", 0.99)].into_iter();
    let percentiles =
        percentiles.filter_map(|(name, share)| Some((name, middle(latencies.within(share)?))));
    for (name, duration) in percentiles.chain(marks.iter().map(|mark| (mark.name, mark.at))) {
        let at = place(&bounds, duration);
        rows.entry(at).or_insert_with(|| row(at)).marks.push(name);
    }
    rows.into_values().collect()
}

/// The middle of the step of a distribution with this upper end.
fn middle(upper: Duration) -> Duration {
    upper * 15 / 16
}

/// The upper ends of the steps of a scale, by their digits in each decade.
fn scale_of(digits: &[u32]) -> Vec<Duration> {
    let decades = (0..STEP_DECADES).map(|power| STEP_FIRST * 10_u32.pow(power));
    let all = decades.flat_map(|decade| digits.iter().map(move |digit| decade * *digit));
    all.collect()
}

/// The index of the first step that is not shorter than `duration`, or of the last step.
fn place(bounds: &[Duration], duration: Duration) -> usize {
    let at = bounds.partition_point(|bound| *bound < duration);
    at.min(bounds.len().saturating_sub(1))
}

fn label(upper: Duration) -> String {
    match upper.as_micros() {
        micros @ ..1000 => format!("{micros} µs"),
        micros @ 1000..1_000_000 => format!("{} ms", micros / 1000),
        micros => format!("{} s", micros / 1_000_000),
    }
}
