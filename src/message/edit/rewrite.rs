//! Applies edits in one pass over the header section, whatever their number. The body is neither changed nor copied.

use std::collections::{BTreeMap, HashMap};

use super::results;
use super::{Edit, FieldPosition, NAME_OCTETS_MAX};
use crate::message::header::{self, Field};

/// A header section after its edits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// New fields that go above all others, including the relay's own trace fields.
    pub top: Vec<u8>,
    /// The header section, with a CRLF at its end.
    pub section: Vec<u8>,
}

/// The edits of fields of one name.
#[derive(Default)]
struct Named<'a> {
    /// Number of fields of that name so far.
    seen: u32,
    /// Removes all fields that are not in `some`.
    remove_all: bool,
    /// By number of the field: a new value, or `None` to remove it.
    some: BTreeMap<u32, Option<&'a str>>,
}

/// All edits, by the fields that they concern.
#[derive(Default)]
struct Plan<'a> {
    /// By name in lower case.
    named: HashMap<Vec<u8>, Named<'a>>,
    authserv_ids: Vec<&'a str>,
    /// New fields by the number of the field after them, in their order.
    before: BTreeMap<u32, Vec<(&'a str, &'a str)>>,
    top: Vec<(&'a str, &'a str)>,
}

/// Applies edits, in order, to a header section as received ([`header::section`]). Edits of missing fields do nothing, except
/// for [`Edit::Change`]. If two edits concern one field, the later one applies. Takes time proportional to the section and the
/// edits together, and memory for one more section.
pub fn rewrite(section: &[u8], edits: &[Edit]) -> Rewritten {
    let mut plan = Plan::of(edits);
    let mut out = Vec::with_capacity(section.len() + 1024);
    let mut number = 0;
    // The position of new fields at the end: before a piece that is not a field, because some readers end the header section
    // there.
    let mut end = None;
    for (piece, field) in header::pieces(section) {
        match field {
            Some(field) => {
                number += 1;
                for (name, value) in plan.before.remove(&number).into_iter().flatten().rev() {
                    write(&mut out, name.as_bytes(), value);
                }
                plan.field(&mut out, piece, &field);
            }
            None => {
                // Folding at the top continues a line above the message, not a field that is added here.
                if !header::is_folding(piece) {
                    end.get_or_insert(out.len());
                }
                out.extend_from_slice(piece);
            }
        }
    }
    if !out.is_empty() && !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    let last = out.split_off(end.unwrap_or(out.len()));
    for edit in edits {
        if let Some((name, value)) = plan.left_over(edit) {
            write(&mut out, name.as_bytes(), value);
        }
    }
    out.extend_from_slice(&last);
    let mut top = Vec::new();
    for (name, value) in plan.top.iter().rev() {
        write(&mut top, name.as_bytes(), value);
    }
    Rewritten { top, section: out }
}

impl<'a> Plan<'a> {
    fn of(edits: &'a [Edit]) -> Self {
        let mut plan = Self::default();
        for edit in edits {
            match edit {
                Edit::Add { place, name, value } => match place {
                    FieldPosition::Top => plan.top.push((name, value)),
                    FieldPosition::Before(number) => {
                        let before = plan.before.entry(*number).or_default();
                        before.push((name, value));
                    }
                    FieldPosition::End => {}
                },
                Edit::Change { name, nth, value } => {
                    plan.named(name).some.insert(*nth, Some(value));
                }
                Edit::Remove { name, nth: Some(n) } => {
                    plan.named(name).some.insert(*n, None);
                }
                Edit::Remove { name, nth: None } => {
                    let named = plan.named(name);
                    named.remove_all = true;
                    named.some.clear();
                }
                Edit::RemoveSome { name, nths } => {
                    let removed = nths.iter().map(|nth| (*nth, None));
                    plan.named(name).some.extend(removed);
                }
                Edit::RemoveResults { authserv_id } => plan.authserv_ids.push(authserv_id),
            }
        }
        plan
    }

    fn named(&mut self, name: &str) -> &mut Named<'a> {
        let name = name.to_ascii_lowercase().into_bytes();
        self.named.entry(name).or_default()
    }

    /// Writes one field after its edits.
    fn field(&mut self, out: &mut Vec<u8>, piece: &[u8], field: &Field<'_>) {
        // No edit concerns a longer name, and senders can write names of any length.
        if field.name.len() > NAME_OCTETS_MAX {
            return out.extend_from_slice(piece);
        }
        let ours = |id: &&str| results::may_be_of(field.body, id);
        let is_results = !self.authserv_ids.is_empty() && field.is("Authentication-Results");
        let forged = is_results && self.authserv_ids.iter().any(ours);
        let named = self.named.get_mut(&field.name.to_ascii_lowercase());
        let wanted = named.map(|named| {
            named.seen += 1;
            (named.some.get(&named.seen).copied(), named.remove_all)
        });
        match wanted {
            Some((Some(Some(value)), _)) => write(out, field.name, value),
            Some((Some(None), _) | (None, true)) => {}
            _ if forged => {}
            _ => out.extend_from_slice(piece),
        }
    }

    /// The field that an edit adds at the end, after all fields were processed.
    fn left_over(&self, edit: &'a Edit) -> Option<(&'a str, &'a str)> {
        match edit {
            Edit::Add { place, name, value } => match place {
                FieldPosition::Top => None,
                FieldPosition::Before(number) => {
                    let left = self.before.contains_key(number);
                    left.then_some((name, value))
                }
                FieldPosition::End => Some((name, value)),
            },
            Edit::Change { name, nth, value } => {
                let named = self.named.get(name.to_ascii_lowercase().as_bytes())?;
                (*nth > named.seen).then_some((name, value))
            }
            Edit::Remove { .. } | Edit::RemoveSome { .. } | Edit::RemoveResults { .. } => None,
        }
    }
}

fn write(out: &mut Vec<u8>, name: &[u8], value: &str) {
    out.extend_from_slice(name);
    out.push(b':');
    if !value.starts_with([' ', '\t', '\r']) {
        out.push(b' ');
    }
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}
