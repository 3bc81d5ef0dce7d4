//! The reference configuration as documentation: the text about each section and each key.

use std::collections::BTreeMap;

use super::REFERENCE;
use super::change::SECTION_LISTS;

/// The comments of the reference.
#[derive(Debug, Default)]
pub(super) struct Texts {
    /// By section (`guard`) and by key (`guard.canaries`, `engine.timeout`). Of a key that stands in several sections of a list,
    /// the first comment: the others only say what is special there.
    of: BTreeMap<String, String>,
    /// The keys in the order of the reference.
    order: Vec<String>,
}

impl Texts {
    /// Reads the comments of [`REFERENCE`]. A comment is about the keys below it, up to the next comment or empty line.
    pub(super) fn new() -> Self {
        let mut texts = Self::default();
        let (mut section, mut comment, mut is_used) = (String::new(), String::new(), false);
        for line in REFERENCE.lines() {
            let bare = line.strip_prefix('#').filter(|rest| is_key(rest));
            let bare = bare.unwrap_or(line);
            if let Some(header) = bare.strip_prefix('[') {
                section = header.trim_matches(['[', ']']).to_owned();
                texts.add(section.clone(), &comment);
                (comment, is_used) = (String::new(), false);
            } else if let Some(text) = bare.strip_prefix("# ") {
                if is_used || text.starts_with("---") {
                    (comment, is_used) = (String::new(), false);
                }
                if !text.starts_with("---") {
                    let gap = if comment.is_empty() { "" } else { " " };
                    comment.push_str(gap);
                    comment.push_str(text.trim());
                }
            } else if let Some((key, _)) = bare.split_once(" = ") {
                let key = format!("{section}.{key}");
                texts.add(key.clone(), &comment);
                texts.order.push(key);
                is_used = true;
            } else {
                (comment, is_used) = (String::new(), false);
            }
        }
        texts
    }

    fn add(&mut self, name: String, text: &str) {
        if !text.is_empty() {
            self.of.entry(name).or_insert_with(|| text.to_owned());
        }
    }

    /// Where the reference has the key first.
    pub(super) fn place(&self, key: &str) -> Option<usize> {
        self.order.iter().position(|known| known == key)
    }

    /// The text about a section or a key; empty if there is none.
    pub(super) fn about(&self, name: &str) -> &str {
        self.of.get(name).map_or("", String::as_str)
    }
}

/// Whether a line of the reference, without its `#`, is a key or a section.
fn is_key(line: &str) -> bool {
    let word = line.split([' ', ']']).next().unwrap_or_default();
    let letter = |c: char| c.is_ascii_lowercase() || c == '_' || c == '[';
    !word.is_empty() && word.chars().all(letter) && (line.contains(" = ") || line.starts_with("[["))
}

/// The reference with every optional key and section in force: without the `#` before a key or a section.
pub(super) fn uncommented() -> String {
    let mut text = String::new();
    for line in REFERENCE.lines() {
        text.push_str(match line.strip_prefix('#') {
            Some(rest) if is_key(rest) => rest,
            _ => line,
        });
        text.push('\n');
    }
    text
}

/// `engine.timeout` for `engine.clamd.timeout`: one name for the same key in all sections of a list.
pub(super) fn without_name(key: &str) -> String {
    match named(key) {
        Some((list, _, key)) => format!("{list}.{key}"),
        None => key.to_owned(),
    }
}

/// The list, the name and the key of `engine.clamd.timeout`; `None` for a key of a section that is no list.
pub(super) fn named(key: &str) -> Option<(&str, &str, &str)> {
    let (list, rest) = key.split_once('.')?;
    let (name, key) = rest.split_once('.')?;
    SECTION_LISTS.contains(&list).then_some((list, name, key))
}
