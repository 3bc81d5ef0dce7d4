//! A TOML text with the places of its values, and the results of reading it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::other_servers;
use super::problem::{Problem, SourceLocation, nearest};
use super::reader::Section;

/// One key that the code has read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Setting {
    /// `limits.recipients`, `engine.clamd.timeout`.
    pub(super) key: String,
    /// Value as TOML; `None` if the key is not set and has no default.
    pub(super) value: Option<String>,
    /// Default as TOML; `None` if the key has no default.
    pub(super) default: Option<String>,
    /// Place of the value in the file; `None` if the value is the default.
    pub(super) place: Option<SourceLocation>,
    /// What the value is: a text, a whole number, a duration …
    pub(super) unit: &'static str,
    /// The range or the words that are allowed; `None` if every value of the unit is.
    pub(super) allowed: Option<String>,
}

/// Results of reading so far.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Folder at which relative paths start.
    pub(super) base: PathBuf,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    settings: Vec<Setting>,
    /// Where [`settings`](Self::settings) has each key that the file sets. Without it, a check of each of many sections would
    /// search all keys of all of them.
    written: HashMap<String, usize>,
}

impl Log {
    /// A log of a file whose relative paths start at `base`.
    pub(super) fn at(base: &Path) -> Self {
        Self {
            base: base.to_owned(),
            ..Self::default()
        }
    }

    /// Adds a key that has been read.
    pub(super) fn record(&mut self, setting: Setting) {
        if setting.place.is_some() {
            let key = self.written.entry(setting.key.clone());
            key.or_insert(self.settings.len());
        }
        self.settings.push(setting);
    }

    /// The key that was read last.
    pub(super) fn last(&mut self) -> Option<&mut Setting> {
        self.settings.last_mut()
    }

    /// Every key that was read, in the order of reading.
    #[cfg(test)]
    pub(super) fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// The keys that were read, in the order of reading.
    pub(super) fn into_settings(self) -> Vec<Setting> {
        self.settings
    }

    /// The key, if the file sets it.
    fn written(&self, key: &str) -> Option<&Setting> {
        self.settings.get(*self.written.get(key)?)
    }

    fn problem(&self, key: &str, what: impl Into<String>, fix: impl Into<String>) -> Problem {
        Problem {
            place: self.written(key).and_then(|setting| setting.place),
            key: key.to_owned(),
            what: what.into(),
            fix: fix.into(),
        }
    }

    /// Whether the file sets the key. The key must have been read before.
    pub(super) fn is_written(&self, key: &str) -> bool {
        self.written(key).is_some()
    }

    /// Whether the file sets the key to another value than the default. The key must have been read before.
    pub(super) fn is_changed(&self, key: &str) -> bool {
        self.written(key)
            .is_some_and(|one| one.value != one.default)
    }

    /// Adds a problem with a key that has been read already.
    pub(super) fn complain(&mut self, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        let problem = self.problem(key, what, fix);
        self.problems.push(problem);
    }

    /// Adds a warning: the value is allowed, but probably not intended.
    pub(super) fn warn(&mut self, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        let warning = self.problem(key, what, fix);
        self.warnings.push(warning);
    }
}

/// A parsed TOML text.
pub(super) struct Document<'a> {
    text: &'a str,
    /// The offset of each line, so that a place costs no look at the text before it.
    line_starts: Vec<usize>,
    root: Spanned<DeTable<'a>>,
    /// Whether problems show places. False for the reference that replaces absent sections: its lines are not in the file of
    /// the administrator.
    shown: bool,
}

impl<'a> Document<'a> {
    /// Parses as much as possible. Each syntax error becomes a problem.
    pub(super) fn parse(text: &'a str, shown: bool, log: &RefCell<Log>) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        let ends = text
            .bytes()
            .enumerate()
            .filter(|(_, octet)| *octet == b'\n');
        let document = Self {
            text,
            line_starts: [0].into_iter().chain(ends.map(|(at, _)| at + 1)).collect(),
            root,
            shown,
        };
        for error in errors {
            let start = error.span().map(|span| span.start);
            let advice = start.and_then(|start| other_servers::advice(document.first_word(start)));
            log.borrow_mut().problems.push(Problem {
                place: start.and_then(|start| document.place(start)),
                key: String::new(),
                what: format!("not TOML: {}", error.message()),
                fix: advice.unwrap_or_else(|| "correct the TOML syntax".to_owned()),
            });
        }
        document
    }

    /// The first word of the line of an offset, in octets from the start of the text.
    fn first_word(&self, at: usize) -> &str {
        let start = self.text.get(..at).and_then(|before| before.rfind('\n'));
        let line = &self.text[start.map_or(0, |newline| newline + 1)..];
        let line = line.trim_start_matches([' ', '\t', '$', '@']);
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        &line[..line.find(|c| !is_word(c)).unwrap_or(line.len())]
    }

    /// The place of an offset, in octets from the start of the text.
    pub(super) fn place(&self, at: usize) -> Option<SourceLocation> {
        let line = self.line_starts.partition_point(|start| *start <= at);
        let start = self.line_starts.get(line.checked_sub(1)?)?;
        (self.shown && at <= self.text.len()).then_some(SourceLocation {
            line,
            column: at - start + 1,
        })
    }

    /// The section `[name]`; an empty one if the text has none.
    pub(super) fn section<'s>(&'s self, name: &str, log: &'s RefCell<Log>) -> Section<'s> {
        Section::of(self, log, name.to_owned(), self.root.get_ref().get(name))
    }

    /// All sections `[[name]]`; `None` if the text has none, or if the key has a value of another type (a problem).
    pub(super) fn sections<'s>(
        &'s self,
        name: &str,
        log: &'s RefCell<Log>,
    ) -> Option<Vec<Section<'s>>> {
        let value = self.root.get_ref().get(name)?;
        let DeValue::Array(items) = value.get_ref() else {
            log.borrow_mut().problems.push(Problem {
                place: self.place(value.span().start),
                key: name.to_owned(),
                what: "must be a list of sections".to_owned(),
                fix: format!("write [[{name}]]"),
            });
            return None;
        };
        let section =
            |(at, item)| Section::of(self, log, format!("{name}[{}]", at + 1), Some(item));
        Some(items.iter().enumerate().map(section).collect())
    }

    /// Adds a problem for each top-level key that is not in `known`.
    pub(super) fn finish(&self, known: &[&str], log: &RefCell<Log>) {
        for key in self.root.get_ref().keys() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let (what, fix) = match (
                other_servers::advice(name),
                nearest(name, known.iter().copied()),
            ) {
                (Some(advice), _) => ("unknown key", advice),
                (None, Some(meant)) => ("unknown section", format!("did you mean \"{meant}\"?")),
                (None, None) => (
                    "unknown section",
                    format!("the sections are {}", known.join(", ")),
                ),
            };
            log.borrow_mut().problems.push(Problem {
                place: self.place(key.span().start),
                key: name.to_owned(),
                what: what.to_owned(),
                fix,
            });
        }
    }
}
