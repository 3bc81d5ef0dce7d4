//! A TOML text with places, and what reading it brings to light.

use std::cell::RefCell;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Place, Problem, nearest};
use super::reader::Section;

/// One key that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Setting {
    /// `limits.recipients`, `engine.clamd.timeout`.
    pub(super) key: String,
    /// As TOML; `None` when it is not set and has no default.
    pub(super) value: Option<String>,
    /// As TOML; `None` when there is none.
    pub(super) default: Option<String>,
    /// Where the value stands in the file; `None` when it is the default.
    pub(super) place: Option<Place>,
}

/// What reading has brought so far.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// The folder that relative paths start from.
    pub(super) base: PathBuf,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    pub(super) settings: Vec<Setting>,
}

impl Log {
    fn problem(&self, key: &str, what: impl Into<String>, fix: impl Into<String>) -> Problem {
        let setting = self.settings.iter().find(|setting| setting.key == key);
        Problem {
            place: setting.and_then(|setting| setting.place),
            key: key.to_owned(),
            what: what.into(),
            fix: fix.into(),
        }
    }

    /// Whether a key that has been read stands in the file.
    pub(super) fn is_written(&self, key: &str) -> bool {
        let mut settings = self.settings.iter();
        settings.any(|setting| setting.key == key && setting.place.is_some())
    }

    /// A problem with a key that has been read already.
    pub(super) fn complain(&mut self, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        let problem = self.problem(key, what, fix);
        self.problems.push(problem);
    }

    /// Something that is allowed, but probably not meant.
    pub(super) fn warn(&mut self, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        let warning = self.problem(key, what, fix);
        self.warnings.push(warning);
    }
}

/// One TOML text.
pub(super) struct Document<'a> {
    text: &'a str,
    root: Spanned<DeTable<'a>>,
    /// False for the reference file that stands in for absent sections: its lines mean nothing to the reader's user.
    shown: bool,
}

impl<'a> Document<'a> {
    /// Parses as far as possible; what is no TOML is a problem each.
    pub(super) fn parse(text: &'a str, shown: bool, log: &RefCell<Log>) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        let document = Self { text, root, shown };
        for error in errors {
            let place = error.span().and_then(|span| document.place(span.start));
            log.borrow_mut().problems.push(Problem {
                place,
                key: String::new(),
                what: format!("not TOML: {}", error.message()),
                fix: String::new(),
            });
        }
        document
    }

    /// The place of an offset.
    pub(super) fn place(&self, at: usize) -> Option<Place> {
        let before = self.text.get(..at)?;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        self.shown.then(|| Place {
            line: before.bytes().filter(|b| *b == b'\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        })
    }

    /// A `[section]`; an empty one when it is not there.
    pub(super) fn section<'s>(&'s self, name: &str, log: &'s RefCell<Log>) -> Section<'s> {
        Section::of(self, log, name.to_owned(), self.root.get_ref().get(name))
    }

    /// All `[[name]]`; `None` when there is none, or something else in its place.
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
                what: "is a list of sections".to_owned(),
                fix: format!("write [[{name}]]"),
            });
            return None;
        };
        let section =
            |(at, item)| Section::of(self, log, format!("{name}[{}]", at + 1), Some(item));
        Some(items.iter().enumerate().map(section).collect())
    }

    /// Complains about top-level keys that are none of `known`.
    pub(super) fn finish(&self, known: &[&str], log: &RefCell<Log>) {
        for key in self.root.get_ref().keys() {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                let fix = match nearest(name, known.iter().copied()) {
                    Some(meant) => format!("did you mean \"{meant}\"?"),
                    None => format!("the sections are {}", known.join(", ")),
                };
                log.borrow_mut().problems.push(Problem {
                    place: self.place(key.span().start),
                    key: name.to_owned(),
                    what: "unknown section".to_owned(),
                    fix,
                });
            }
        }
    }
}
