//! Lists as JSON: an object with the total, the items, and the number of items shown. The items are written one after the other,
//! so that a list of a million messages needs no memory.

use serde::Serialize;
use serde_json::Value;

use super::exit::CliError;
use super::terminal::Terminal;
use crate::telemetry::escape;

/// The beginning of a list, before its items.
pub(super) struct JsonList<'t, 'a> {
    terminal: &'t mut Terminal<'a>,
}

/// The items of a list.
pub(super) struct JsonItems<'t, 'a> {
    terminal: &'t mut Terminal<'a>,
    shown: usize,
}

impl<'t, 'a> JsonList<'t, 'a> {
    /// Begins a list of objects of which there are `total`, shown or not.
    pub(super) fn begin(terminal: &'t mut Terminal<'a>, total: u64) -> Result<Self, CliError> {
        terminal.line("{")?;
        let mut list = Self { terminal };
        list.member("total", &total.into())?;
        Ok(list)
    }

    /// Adds a member before the items.
    pub(super) fn member(&mut self, name: &str, value: &Value) -> Result<(), CliError> {
        let line = format!("  \"{name}\": {value},");
        self.terminal.line(escape::json(&line))
    }

    /// Begins the items.
    pub(super) fn items(self, name: &str) -> Result<JsonItems<'t, 'a>, CliError> {
        write!(self.terminal.out, "  \"{name}\": [")?;
        Ok(JsonItems {
            terminal: self.terminal,
            shown: 0,
        })
    }
}

impl<'a> JsonItems<'_, 'a> {
    /// Writes one item.
    pub(super) fn item<T: Serialize>(
        &mut self,
        item: impl FnOnce(&Terminal<'a>) -> T,
    ) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(&item(self.terminal))
            .map_err(|error| CliError::Internal(error.to_string()))?;
        let comma = if self.shown == 0 { "" } else { "," };
        // A line feed in a string is escaped, so each line begins outside of strings.
        let text = escape::json(&text).replace('\n', "\n    ");
        write!(self.terminal.out, "{comma}\n    {text}")?;
        self.shown += 1;
        Ok(())
    }

    /// Ends the list; returns the number of items.
    pub(super) fn end(self) -> Result<usize, CliError> {
        let line = if self.shown == 0 { "" } else { "\n  " };
        write!(
            self.terminal.out,
            "{line}],\n  \"shown\": {}\n}}\n",
            self.shown
        )?;
        Ok(self.shown)
    }
}

/// Writes a list whose items are all here.
pub(super) fn print<T: Serialize>(
    name: &str,
    items: &[T],
    total: u64,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let mut list = JsonList::begin(terminal, total)?.items(name)?;
    for item in items {
        list.item(|_| item)?;
    }
    list.end().map(drop)
}

/// Tells that a list shows not all objects, as text and beside JSON.
pub(super) fn note_more(
    shown: usize,
    total: u64,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    match (shown as u64) < total {
        true => terminal.note(format!(
            "only the newest {shown} of {total} are shown; --limit shows more, --all shows all"
        )),
        false => Ok(()),
    }
}
