//! `check-config --explain KEY`: what a key means, what it may be, and what is in force.

use std::path::Path;

use serde_json::json;

use super::exit::{CliError, Exit, Outcome};
use super::settings;
use super::table::Column;
use super::terminal::{Terminal, count, safe, wide};
use crate::config::{self, ExplainedKey, Explanation, NotExplained, ValueInForce};

/// Width of the text if the output is no terminal: 80 columns.
const TEXT_WIDTH: usize = 80;

/// Explains a key or a section of the configuration.
pub(super) fn run(asked: &str, given: Option<&Path>, terminal: &mut Terminal<'_>) -> Outcome {
    let path = settings::path(given);
    let explanation = config::explain(path.as_deref(), asked).map_err(|why| match why {
        NotExplained::File(problems) => CliError::Config(problems),
        NotExplained::Unknown(what) => CliError::Usage(what),
    })?;
    let file = path.as_ref().map(|path| path.display().to_string());
    if terminal.json {
        terminal.json(&json!({"file": file, "explained": explanation}))?;
        return Ok(Exit::Done);
    }
    if explanation.problems > 0 {
        terminal.note(format!(
            "spillway: the configuration has {}, and is not in force as shown; `spillway check-config` lists them",
            count(explanation.problems, "problem")
        ))?;
    }
    let file = file.unwrap_or_else(|| "none: built-in defaults".to_owned());
    match &explanation.keys[..] {
        [key] if !explanation.is_section => one(key, file, terminal)?,
        _ => section(&explanation, terminal)?,
    }
    Ok(Exit::Done)
}

/// One key, with everything about it.
fn one(key: &ExplainedKey, file: String, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    terminal.line(&key.key)?;
    let mut fields = vec![
        ("default", defaults(key)),
        ("range", key.range.clone().unwrap_or_default()),
        ("unit", key.unit.clone()),
    ];
    let mut values: Vec<(&str, String)> = key
        .in_force
        .iter()
        .map(|value| (" ", in_force(value)))
        .collect();
    match values.first_mut() {
        Some((name, _)) => *name = "in force",
        None => values.push(("in force", "nowhere: no section has this key".to_owned())),
    }
    fields.extend(values);
    fields.push(("file", file));
    let change = match key.needs_restart {
        true => "needs a restart",
        false => "in force after a reload",
    };
    fields.push(("a change", change.to_owned()));
    terminal.fields(&fields)?;
    paragraph(&key.text, terminal)
}

/// All keys of a section, one line for each.
fn section(explanation: &Explanation, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    terminal.line(format!("[{}]", explanation.name))?;
    paragraph(&explanation.text, terminal)?;
    terminal.line("")?;
    let columns = [
        Column::whole("KEY"),
        Column::cut("DEFAULT"),
        Column::cut("RANGE"),
        Column::cut("IN FORCE"),
    ];
    let mut rows = Vec::new();
    for key in &explanation.keys {
        let mut values = key.in_force.iter().map(in_force);
        let name = key.key.rsplit('.').next().unwrap_or_default();
        rows.push(vec![
            name.to_owned(),
            defaults(key),
            key.range.clone().unwrap_or_else(|| key.unit.clone()),
            values.next().unwrap_or_default(),
        ]);
        rows.extend(values.map(|value| vec![String::new(), String::new(), String::new(), value]));
    }
    terminal.table(&columns, rows)?;
    terminal.line(format!(
        "\n`spillway check-config --explain {}.KEY` says what a key means and what it trades.",
        explanation.name
    ))
}

/// The defaults: `5`, or `"5s"; "20s" for kind spamd`.
fn defaults(key: &ExplainedKey) -> String {
    let default = |(at, default): (usize, &config::DefaultValue)| match at {
        0 => default.value.clone(),
        _ => format!("{} for kind {}", default.value, default.kinds.join(", ")),
    };
    if let Some(other) = &key.default_of {
        return format!("that of {other}");
    }
    let defaults: Vec<String> = key.defaults.iter().enumerate().map(default).collect();
    match defaults.is_empty() {
        true => "none".to_owned(),
        false => defaults.join("; "),
    }
}

/// `2 (the default)`, `engine clamd: 4 (line 12)`.
fn in_force(value: &ValueInForce) -> String {
    let section = value.section.as_ref();
    let section = section.map_or(String::new(), |section| format!("{section}: "));
    let shown = value.value.as_deref().unwrap_or("not set");
    let source = match (&value.set_by, value.line) {
        (None, None) if value.value.is_none() => String::new(),
        (None, None) => " (the default)".to_owned(),
        (None, Some(line)) => format!(" (line {line})"),
        (Some(key), None) => format!(" (the default of {key})"),
        (Some(key), Some(line)) => format!(" ({key}, line {line})"),
    };
    format!("{section}{shown}{source}")
}

/// An empty line and the text, in lines of at most the width of the terminal.
fn paragraph(text: &str, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let width = terminal.width.map_or(TEXT_WIDTH, usize::from);
    let mut line = String::new();
    if !text.is_empty() {
        terminal.line("")?;
    }
    for word in text.split(' ') {
        if !line.is_empty() && wide(&line) + 1 + wide(word) > width {
            terminal.line(safe(&std::mem::take(&mut line)))?;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    match line.is_empty() {
        true => Ok(()),
        false => terminal.line(safe(&line)),
    }
}
