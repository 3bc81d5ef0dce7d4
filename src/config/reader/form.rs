//! What a key takes, for `spillway check-config --explain`: noted by the same calls that read the value, so that the explanation
//! and the check cannot differ.

use std::ops::RangeInclusive;

use super::Section;

/// Units of a duration.
pub(super) const DURATION: &str = "duration: ms, s, m, h or d";
/// Units of a size.
pub(super) const SIZE: &str = "size: B, KiB, MiB, GiB or TiB";

impl Section<'_> {
    /// Notes the unit of the key that was read last, and what is allowed: a range, or words.
    pub(in crate::config) fn takes(&self, unit: &'static str, allowed: Option<String>) {
        if let Some(setting) = self.log.borrow_mut().last() {
            (setting.unit, setting.allowed) = (unit, allowed);
        }
    }
}

/// The range as text: `1 to 64`.
pub(super) fn range<T>(range: &RangeInclusive<T>, show: impl Fn(&T) -> String) -> Option<String> {
    Some(format!("{} to {}", show(range.start()), show(range.end())))
}

/// The words as text: `on, shadow, off`.
pub(super) fn words<T>(words: &[(&'static str, T)]) -> Option<String> {
    let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    Some(words.join(", "))
}
