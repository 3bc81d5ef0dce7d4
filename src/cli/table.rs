//! Tables: one line for each row, laid out by display width.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

use super::exit::CliError;
use super::terminal::{Terminal, cut, cut_middle, safe, wide};

/// Spaces between two columns of a table: with two, a single space inside a cell is no column border.
const COLUMN_GAP: u16 = 2;
/// Minimum width of a column that is cut: less is unreadable, so the table rather gets wider than the terminal.
const COLUMN_WIDTH_MIN: usize = 8;
/// Width of a cut column that is legible: the local part of most addresses, and three words of a subject. Columns that may be
/// left out make room for it.
const COLUMN_WIDTH_LEGIBLE: usize = 18;
/// Characters of an id that are shown at least: its ten characters of time, which messages of the same millisecond share, and
/// two random ones.
const ID_CHARACTERS_MIN: usize = 12;

/// A column of a table.
pub(super) struct Column {
    name: &'static str,
    kind: Kind,
    is_optional: bool,
}

/// What happens to a column if the terminal is too narrow for the whole table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing.
    Whole,
    /// It is cut at its end.
    Cut,
    /// It loses its middle.
    Middle,
    /// Of each id, as many characters are shown as distinguish it from the others.
    Id,
    /// Its cell stands on a line of its own, below the row.
    Below,
}

impl Column {
    const fn new(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            is_optional: false,
        }
    }

    /// A column that is cut at its end if the terminal is too narrow.
    pub(super) const fn cut(name: &'static str) -> Self {
        Self::new(name, Kind::Cut)
    }

    /// A column of addresses, which lose their middle if the terminal is too narrow.
    pub(super) const fn address(name: &'static str) -> Self {
        Self::new(name, Kind::Middle)
    }

    /// A column that is never cut: times, fixed words.
    pub(super) const fn whole(name: &'static str) -> Self {
        Self::new(name, Kind::Whole)
    }

    /// A column of ids, which become unique prefixes if the terminal is too narrow. Commands take such a prefix.
    pub(super) const fn id(name: &'static str) -> Self {
        Self::new(name, Kind::Id)
    }

    /// A last column whose cells stand below the rows, after the column's name, if the terminal is too narrow.
    pub(super) const fn below(name: &'static str) -> Self {
        Self::new(name, Kind::Below)
    }

    /// The same column; it is left out if other columns would not be legible otherwise.
    pub(super) const fn optional(self) -> Self {
        Self {
            is_optional: true,
            ..self
        }
    }

    fn is_shared(&self) -> bool {
        matches!(self.kind, Kind::Cut | Kind::Middle)
    }
}

impl Terminal<'_> {
    /// Writes a table with one line for each row, with unsafe characters in cells escaped. On a terminal that is too narrow,
    /// columns are cut, left out or moved below, as their kinds say.
    pub(super) fn table(
        &mut self,
        columns: &[Column],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> Result<(), CliError> {
        let head = columns.iter().map(|column| column.name.to_owned());
        let mut lines = vec![head.collect::<Vec<_>>()];
        let safe_row = |row: Vec<String>| row.iter().map(|text| safe(text)).collect();
        lines.extend(rows.into_iter().map(safe_row));
        let widths = widths(columns, &lines, self.width.map(usize::from));
        let mut table = Table::new();
        table.load_style(NOTHING).force_no_tty();
        table.set_content_arrangement(ContentArrangement::Disabled);
        for (number, line) in lines.iter().enumerate() {
            let cells = line.iter().zip(columns).zip(&widths);
            let shown = cells.filter_map(|((text, column), width)| {
                width.map(|width| cell(text, column, width, number == 0))
            });
            table.add_row(shown);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, COLUMN_GAP));
        }
        for (number, (shown, line)) in table.lines().zip(&lines).enumerate() {
            self.line(shown.trim_end())?;
            let is_below = |((column, width), _): &((&Column, &Option<usize>), &String)| {
                number > 0 && column.kind == Kind::Below && width.is_none()
            };
            for ((column, _), text) in columns.iter().zip(&widths).zip(line).filter(is_below) {
                let first = format!("    {} ", column.name.to_lowercase());
                self.wrapped(&first, &" ".repeat(first.len()), text)?;
            }
        }
        Ok(())
    }
}

fn cell(text: &str, column: &Column, width: usize, is_head: bool) -> String {
    match column.kind {
        // The characters of an id are ASCII.
        Kind::Id if !is_head => text.chars().take(width).collect(),
        Kind::Middle if !is_head => cut_middle(text, width),
        _ => cut(text, width),
    }
}

/// The width of each column; none for a column that is left out or stands below. Without a terminal, and if there is room,
/// each column has the width of its longest cell.
fn widths(columns: &[Column], lines: &[Vec<String>], room: Option<usize>) -> Vec<Option<usize>> {
    let needs = (0..columns.len()).map(|index| {
        let cells = lines.iter().filter_map(|line| line.get(index));
        cells.map(|text| wide(text)).max().unwrap_or(0)
    });
    let needs: Vec<usize> = needs.collect();
    let gaps = columns.len().saturating_sub(1) * usize::from(COLUMN_GAP);
    let Some(room) = room.filter(|room| needs.iter().sum::<usize>() + gaps > *room) else {
        return needs.into_iter().map(Some).collect();
    };
    let least = |(index, need): (usize, &usize)| match columns[index].kind {
        Kind::Below => None,
        Kind::Id => Some(distinct(lines, index).min(*need)),
        Kind::Whole | Kind::Cut | Kind::Middle => Some(*need),
    };
    let mut widths: Vec<Option<usize>> = needs.iter().enumerate().map(least).collect();
    let optional = |index: &usize| columns[*index].is_optional;
    for index in (0..columns.len()).rev().filter(optional) {
        if is_legible(columns, &widths, room) {
            break;
        }
        widths[index] = None;
    }
    share(columns, &mut widths, room);
    widths
}

/// The number of characters that distinguish the ids in this column.
fn distinct(lines: &[Vec<String>], column: usize) -> usize {
    let ids = lines.iter().skip(1).filter_map(|line| line.get(column));
    let mut ids: Vec<&String> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    let common = ids.windows(2).map(|pair| {
        let both = pair[0].chars().zip(pair[1].chars());
        both.take_while(|(a, b)| a == b).count() + 1
    });
    common.max().unwrap_or(0).max(ID_CHARACTERS_MIN)
}

/// The columns that share what the others leave, and their room.
fn shared(columns: &[Column], widths: &[Option<usize>], room: usize) -> (Vec<usize>, usize) {
    let shown = widths.iter().flatten().count();
    let mut left = room.saturating_sub(shown.saturating_sub(1) * usize::from(COLUMN_GAP));
    let mut shared = Vec::new();
    for (index, width) in widths.iter().enumerate() {
        match width {
            Some(_) if columns[index].is_shared() => shared.push(index),
            Some(width) => left = left.saturating_sub(*width),
            None => {}
        }
    }
    (shared, left)
}

/// Whether each column that is cut gets what it needs or a legible width.
fn is_legible(columns: &[Column], widths: &[Option<usize>], room: usize) -> bool {
    let (shared, left) = shared(columns, widths, room);
    let wanted = shared.iter().filter_map(|index| widths[*index]);
    wanted
        .map(|need| need.min(COLUMN_WIDTH_LEGIBLE))
        .sum::<usize>()
        <= left
}

/// Gives each shared column the width that it needs, or an equal share of the remaining width, whichever is less.
fn share(columns: &[Column], widths: &mut [Option<usize>], room: usize) {
    let (mut shared, mut left) = shared(columns, widths, room);
    // Columns with the least need come first: the width that they leave is shared by the others.
    shared.sort_by_key(|index| widths[*index]);
    let mut sharers = shared.len();
    for index in shared {
        let share = (left / sharers).max(COLUMN_WIDTH_MIN);
        let width = widths[index].unwrap_or(0).min(share);
        widths[index] = Some(width);
        left = left.saturating_sub(width);
        sharers -= 1;
    }
}
