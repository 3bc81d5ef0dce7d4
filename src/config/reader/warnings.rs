//! Warnings about the keys of a section.

use super::Section;
use crate::config::problem::Problem;

impl Section<'_> {
    /// Adds a warning about a key: the value is allowed, but probably not intended.
    pub(in crate::config) fn warn(
        &self,
        key: &str,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let key = format!("{}.{key}", self.path);
        self.log.borrow_mut().warn(&key, what, fix);
    }

    /// Adds a warning about the item `at` of a list, from 0. Its place is the item: in a configuration without problems, all items
    /// are read, so that they count as in the file.
    pub(in crate::config) fn warn_item(
        &self,
        key: &str,
        at: usize,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let list = self.table.and_then(|table| table.get(key));
        let list = list.and_then(|list| list.get_ref().as_array());
        let item = list.and_then(|list| list.get(at));
        self.log.borrow_mut().warnings.push(Problem {
            place: item.and_then(|item| self.document.place(item.span().start)),
            key: format!("{}.{key}", self.path),
            what: what.into(),
            fix: fix.into(),
        });
    }
}
