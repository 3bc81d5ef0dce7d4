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

    /// Adds a warning about an item of a list. Its place is the item.
    pub(in crate::config) fn warn_item(
        &self,
        key: &str,
        item: &str,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let list = self.table.and_then(|table| table.get(key));
        let list = list.and_then(|list| list.get_ref().as_array());
        let mut items = list.into_iter().flat_map(|list| list.iter());
        let found = items.find(|found| found.get_ref().as_str() == Some(item));
        self.log.borrow_mut().warnings.push(Problem {
            place: found.and_then(|found| self.document.place(found.span().start)),
            key: format!("{}.{key}", self.path),
            what: what.into(),
            fix: fix.into(),
        });
    }
}
