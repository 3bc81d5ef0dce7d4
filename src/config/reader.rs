//! A typed reader over TOML tables. The reader goes on after a problem, and records every key that the code reads.
//!
//! Each call names a key, its default and its allowed values. Three things follow from the calls alone: the unknown keys (no
//! call reads them), the contents of the reference file (every key that a call reads, at its default), and the list of
//! values that a reload compares. No key can be read without taking part in all three.

mod files;
mod form;
mod warnings;

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::document::{Document, Log, Setting};
use super::other_servers;
use super::problem::{Problem, SourceLocation, nearest};
use super::units::{self, Wrong};
use super::value::{chosen, expected, is_name, quantity, quoted, shown, string, within};

/// One table of the file, read key by key.
pub(super) struct Section<'a> {
    document: &'a Document<'a>,
    pub(super) log: &'a RefCell<Log>,
    /// Prefix of the names of its keys: `limits`, `engine.clamd`.
    pub(super) path: String,
    table: Option<&'a DeTable<'a>>,
    /// Start of the section.
    place: Option<SourceLocation>,
    asked: Vec<&'static str>,
    /// Keys that were read although they are keys of other kinds only.
    foreign: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub(super) fn of(
        document: &'a Document<'a>,
        log: &'a RefCell<Log>,
        path: String,
        value: Option<&'a Spanned<DeValue<'a>>>,
    ) -> Self {
        let place = value.and_then(|value| document.place(value.span().start));
        let table = value.and_then(|value| value.get_ref().as_table());
        if value.is_some() && table.is_none() {
            log.borrow_mut().problems.push(Problem {
                place,
                key: path.clone(),
                what: "must be a section".to_owned(),
                fix: format!("write [{path}] and the keys below it"),
            });
        }
        Self {
            document,
            log,
            path,
            table,
            place,
            asked: Vec::new(),
            foreign: Vec::new(),
        }
    }

    /// The section `[section.name]`.
    pub(super) fn below(&mut self, name: &'static str) -> Section<'a> {
        self.asked.push(name);
        let value = self.table.and_then(|table| table.get(name));
        Section::of(
            self.document,
            self.log,
            format!("{}.{name}", self.path),
            value,
        )
    }

    /// Whether the section has the key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Whether the section has the key, with an empty list.
    pub(super) fn is_empty_list(&self, key: &str) -> bool {
        let value = self.table.and_then(|table| table.get(key));
        let list = value.and_then(|value| value.get_ref().as_array());
        list.is_some_and(|list| list.is_empty())
    }

    /// Adds a problem with a key. Its place is the value, or the start of the section if the key is missing.
    pub(super) fn complain(&self, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        let place = match self.table.and_then(|table| table.get(key)) {
            Some(value) => self.document.place(value.span().start),
            None => self.place,
        };
        self.complain_at(place, key, what, fix);
    }

    fn complain_at(
        &self,
        place: Option<SourceLocation>,
        key: &str,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.log.borrow_mut().problems.push(Problem {
            place,
            key: format!("{}.{key}", self.path),
            what: what.into(),
            fix: fix.into(),
        });
    }

    /// All other reads use this one. Returns the value if it is set and valid, else the default; `None` without either.
    pub(super) fn read<T: Clone>(
        &mut self,
        key: &'static str,
        default: Option<T>,
        show: impl Fn(&T) -> String,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, Wrong>,
    ) -> Option<T> {
        self.asked.push(key);
        let entry = self.table.and_then(|table| table.get(key));
        let mut value = default.clone();
        if let Some(entry) = entry {
            match parse(entry.get_ref()) {
                Ok(read) => value = Some(read),
                Err(wrong) => self.complain(key, wrong.what, wrong.fix),
            }
        }
        self.log.borrow_mut().record(Setting {
            key: format!("{}.{key}", self.path),
            value: value.as_ref().map(&show),
            default: default.as_ref().map(&show),
            place: entry.and_then(|entry| self.document.place(entry.span().start)),
            unit: "text",
            allowed: None,
        });
        value
    }

    /// Adds a problem if a required key is missing.
    pub(super) fn require(&self, key: &str, example: &str) {
        if self.table.is_some() && !self.has(key) {
            self.complain(key, "is missing", format!("write {key} = {example}"));
        }
    }

    /// Adds a problem if a required list is missing or empty.
    pub(super) fn require_items(&self, key: &str, example: &str) {
        self.require(key, example);
        if self.is_empty_list(key) {
            self.complain(key, "is empty", format!("write {key} = {example}"));
        }
    }

    /// The `name` of a section of a list. It is required, and becomes part of the names of the section's keys.
    pub(super) fn name(&mut self, example: &str) -> String {
        self.require("name", example);
        let value = self.table.and_then(|table| table.get("name"));
        let text = value.and_then(|value| value.get_ref().as_str());
        let list = self.path.split('[').next().unwrap_or_default().to_owned();
        if let Some(text) = text.filter(|text| is_name(text)) {
            self.path = format!("{list}.{text}");
        }
        let read = self.read("name", None, quoted, |value| {
            let text = string(value)?;
            match is_name(&text) {
                true => Ok(text),
                false => Err(Wrong::new(
                    format!("{text:?} is not a valid name"),
                    "write 1 to 64 letters, digits, - and _",
                )),
            }
        });
        read.unwrap_or_default()
    }

    /// Reads a text.
    pub(super) fn text(&mut self, key: &'static str, default: &str) -> String {
        let default = Some(default.to_owned());
        self.read(key, default, quoted, string).unwrap_or_default()
    }

    /// Reads a text that `parse` checks.
    pub(super) fn parsed<T: Clone>(
        &mut self,
        key: &'static str,
        default: T,
        show: impl Fn(&T) -> String,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> T {
        let read = self.optional_parsed(key, Some(default.clone()), show, parse);
        read.unwrap_or(default)
    }

    /// Reads a text that may be missing and that `parse` checks.
    pub(super) fn optional_parsed<T: Clone>(
        &mut self,
        key: &'static str,
        default: Option<T>,
        show: impl Fn(&T) -> String,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        let show = |value: &T| format!("{:?}", show(value));
        self.read(key, default, show, |value| parse(&string(value)?))
    }

    /// Reads an optional text; an empty one is a problem.
    pub(super) fn optional_text(&mut self, key: &'static str) -> Option<String> {
        self.read(key, None, quoted, |value| match string(value)? {
            text if text.is_empty() => Err(Wrong::new(
                "is empty",
                "write a value, or leave the key out",
            )),
            text => Ok(text),
        })
    }

    /// Reads true or false.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        let parse = |value: &DeValue<'_>| match value {
            DeValue::Boolean(flag) => Ok(*flag),
            other => Err(expected(other, "true or false")),
        };
        let read = self.read(key, Some(default), bool::to_string, parse);
        self.takes("true or false", None);
        read.unwrap_or(default)
    }

    /// Reads a whole number.
    pub(super) fn count(
        &mut self,
        key: &'static str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> usize {
        let read = self.optional_count(key, Some(default), range);
        read.unwrap_or(default)
    }

    /// Reads a whole number that may be missing.
    pub(super) fn optional_count(
        &mut self,
        key: &'static str,
        default: Option<usize>,
        range: RangeInclusive<usize>,
    ) -> Option<usize> {
        let parse = |value: &DeValue<'_>| {
            let DeValue::Integer(number) = value else {
                let (least, most) = (range.start(), range.end());
                let what = format!("a whole number without quotes, {least} to {most}");
                return Err(expected(value, &what));
            };
            let number = usize::from_str_radix(number.as_str(), number.radix()).ok();
            within(
                number.filter(|n| range.contains(n)),
                value,
                &range,
                usize::to_string,
            )
        };
        let read = self.read(key, default, usize::to_string, parse);
        self.takes("whole number", form::range(&range, usize::to_string));
        read
    }

    /// Reads a number that may have a fraction.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        default: Option<f64>,
        range: RangeInclusive<f64>,
    ) -> Option<f64> {
        let show = |number: &f64| format!("{number:?}");
        let read = self.read(key, default, show, |value| {
            let number: Option<f64> = match value {
                DeValue::Integer(number) => number.as_str().parse().ok(),
                DeValue::Float(number) => number.as_str().parse().ok(),
                other => {
                    let (least, most) = (show(range.start()), show(range.end()));
                    let what = format!("a number without quotes, {least} to {most}");
                    return Err(expected(other, &what));
                }
            };
            within(number.filter(|n| range.contains(n)), value, &range, show)
        });
        self.takes("number", form::range(&range, show));
        read
    }

    /// Reads a duration with a unit.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let read = self.optional_duration(key, Some(default), range);
        read.unwrap_or(default)
    }

    /// Reads a duration that may be missing.
    pub(super) fn optional_duration(
        &mut self,
        key: &'static str,
        default: Option<Duration>,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let show = |value: &Duration| format!("\"{}\"", units::show_duration(*value));
        let parse = |value: &DeValue<'_>| {
            let (least, most) = (show(range.start()), show(range.end()));
            let what = format!("a duration from {least} to {most}");
            let read = units::duration(&quantity(value, &what)?)?;
            within(
                Some(read).filter(|v| range.contains(v)),
                value,
                &range,
                show,
            )
        };
        let read = self.read(key, default, show, parse);
        self.takes(form::DURATION, form::range(&range, show));
        read
    }

    /// Reads a size with a unit, in octets.
    pub(super) fn size(
        &mut self,
        key: &'static str,
        default: Option<u64>,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let show = |value: &u64| format!("\"{}\"", units::show_size(*value));
        let read = self.read(key, default, show, |value| {
            let (least, most) = (show(range.start()), show(range.end()));
            let what = format!("a size from {least} to {most}");
            let read = units::size(&quantity(value, &what)?)?;
            within(
                Some(read).filter(|v| range.contains(v)),
                value,
                &range,
                show,
            )
        });
        self.takes(form::SIZE, form::range(&range, show));
        read
    }

    /// Reads one of a few words.
    pub(super) fn choice<T: Copy + PartialEq>(
        &mut self,
        key: &'static str,
        default: Option<T>,
        words: &[(&'static str, T)],
    ) -> Option<T> {
        let show = |value: &T| {
            let word = words.iter().find(|(_, each)| each == value);
            format!("{:?}", word.map_or("", |(word, _)| word))
        };
        let read = self.read(key, default, show, |value| match value {
            DeValue::String(text) => chosen(text, words),
            other => {
                let known: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
                Err(expected(other, &format!("one of {}", known.join(", "))))
            }
        });
        self.takes("word", form::words(words));
        read
    }

    /// Reads a list of texts; `parse` reads each item. Empty if the key is missing and has no default.
    pub(super) fn list<T: Clone>(
        &mut self,
        key: &'static str,
        default: Option<Vec<T>>,
        show: impl Fn(&T) -> String,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Vec<T> {
        let show_all = |all: &Vec<T>| {
            let shown: Vec<String> = all.iter().map(|item| format!("{:?}", show(item))).collect();
            format!("[{}]", shown.join(", "))
        };
        // A wrong item must not hide another one, and each problem has the place of its item.
        let mut wrongs: Vec<(usize, Wrong)> = Vec::new();
        let read = self.read(key, default, show_all, |value| {
            let DeValue::Array(items) = value else {
                let text = shown(value);
                return Err(Wrong::new(
                    format!("{text} is not a list"),
                    format!("write [{text}]"),
                ));
            };
            let mut good = Vec::new();
            for item in items.iter() {
                match string(item.get_ref()).and_then(|text| parse(&text)) {
                    Ok(item) => good.push(item),
                    Err(wrong) => wrongs.push((item.span().start, wrong)),
                }
            }
            Ok(good)
        });
        self.takes("list of texts", None);
        for (at, wrong) in wrongs {
            self.complain_at(self.document.place(at), key, wrong.what, wrong.fix);
        }
        read.unwrap_or_default()
    }

    /// Reads a list of a few words.
    pub(super) fn choices<T: Copy + PartialEq>(
        &mut self,
        key: &'static str,
        words: &[(&'static str, T)],
    ) -> Vec<T> {
        let word = |value: &T| {
            let found = words.iter().find(|(_, each)| each == value);
            found.map_or(String::new(), |(word, _)| (*word).to_owned())
        };
        let read = self.list(key, None, word, |text| chosen(text, words));
        self.takes("list of words", form::words(words));
        read
    }

    /// Adds a problem for each of `keys` that the section has although the other keys make it meaningless.
    pub(super) fn refuse(&mut self, keys: &[&'static str], what: &str, fix: &str) {
        for key in keys {
            if self.has(key) {
                self.complain(key, what, fix);
            }
        }
        self.asked.extend(keys);
    }

    /// Marks a key of other kinds, which was read only for a problem that says more than [`Section::finish_kind`].
    pub(super) fn disown(&mut self, key: &'static str) {
        self.foreign.push(key);
    }

    /// Adds a problem for every key that no call has read.
    pub(super) fn finish(self) {
        self.finish_kind(&[], |(), _| ());
    }

    /// Does the same for a section with a kind. `read` reads the keys that depend on the kind; from these calls follows which
    /// kinds have a key that stands under a wrong kind.
    pub(super) fn finish_kind<K: Copy>(
        self,
        kinds: &[(&'static str, K)],
        read: impl Fn(K, &mut Section<'_>),
    ) {
        for key in self.table.iter().flat_map(|table| table.keys()) {
            let name: &str = key.get_ref();
            if self.asked.contains(&name) {
                continue;
            }
            let has_key =
                |(_, kind): &&(_, K)| self.is_key_of(name, |section| read(*kind, section));
            let owners = kinds.iter().filter(has_key);
            let owners: Vec<String> = owners.map(|(word, _)| format!("{word:?}")).collect();
            let meant = nearest(name, self.asked.iter().copied());
            let (what, fix) = match (owners.split_last(), meant) {
                (Some((last, [])), _) => (
                    format!("is a key of kind = {last}"),
                    "remove it, or change the kind".to_owned(),
                ),
                (Some((last, others)), _) => (
                    format!("is a key of kind = {} or {last}", others.join(", ")),
                    "remove it, or change the kind".to_owned(),
                ),
                (None, Some(meant)) => (
                    "unknown key".to_owned(),
                    format!("did you mean \"{meant}\"?"),
                ),
                (None, None) => (
                    "unknown key".to_owned(),
                    format!("the keys here are {}", self.asked.join(", ")),
                ),
            };
            let fix = other_servers::advice(name).unwrap_or(fix);
            self.complain_at(self.document.place(key.span().start), name, what, fix);
        }
    }

    /// Whether `read` asks an empty section for this key, as for a key of its own.
    fn is_key_of(&self, name: &str, read: impl FnOnce(&mut Section<'_>)) -> bool {
        let log = RefCell::default();
        let mut section = Section::of(self.document, &log, String::new(), None);
        read(&mut section);
        section.asked.contains(&name) && !section.foreign.contains(&name)
    }
}
