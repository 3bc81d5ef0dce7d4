//! Single values: from TOML to a type, or to a problem and its fix.

use std::ops::RangeInclusive;

use toml::de::DeValue;

use super::problem::nearest;
use super::units::Wrong;

/// Whether a text can be the name of a section. The allowed characters are safe in keys, paths, labels of metrics and on a
/// command line.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

pub(super) fn chosen<T: Copy>(text: &str, words: &[(&'static str, T)]) -> Result<T, Wrong> {
    let known = || words.iter().map(|(word, _)| *word);
    match words.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(*value),
        None => Err(Wrong::new(
            format!(
                "{text:?} is not one of {}",
                known().collect::<Vec<_>>().join(", ")
            ),
            match nearest(text, known()) {
                Some(meant) => format!("did you mean \"{meant}\"?"),
                None => "write one of them".to_owned(),
            },
        )),
    }
}

/// The value if it is within the range (`value` is set then), else a problem that names the range.
pub(super) fn within<T>(
    value: Option<T>,
    written: &DeValue<'_>,
    range: &RangeInclusive<T>,
    show: impl Fn(&T) -> String,
) -> Result<T, Wrong> {
    value.ok_or_else(|| {
        Wrong::new(
            format!("{} is out of range", shown(written)),
            format!("write {} to {}", show(range.start()), show(range.end())),
        )
    })
}

pub(super) fn quoted(text: &String) -> String {
    format!("{text:?}")
}

pub(super) fn string(value: &DeValue<'_>) -> Result<String, Wrong> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        other => Err(expected(other, "a text in quotes")),
    }
}

/// The text of a duration or size. A bare number becomes a text, so that the problem is about its missing unit.
pub(super) fn quantity(value: &DeValue<'_>, what: &str) -> Result<String, Wrong> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => Ok(number.to_string()),
        other => Err(expected(other, what)),
    }
}

pub(super) fn expected(found: &DeValue<'_>, what: &str) -> Wrong {
    Wrong::new(
        format!("{} is not allowed here", shown(found)),
        format!("write {what}"),
    )
}

/// A value as TOML; long and nested values are only named, to keep the line of a problem short.
pub(super) fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if text.len() <= 100 => format!("{text:?}"),
        DeValue::String(_) => "a long text".to_owned(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    }
}

/// Shows a value that has [`ToString`].
pub(super) fn plain<T: ToString>(value: &T) -> String {
    value.to_string()
}
