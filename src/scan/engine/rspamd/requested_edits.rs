//! Edits that rspamd requests: the same as it would request from a milter.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::answer::Reply;
use crate::message::edit::{Edit, Place, Wanted, folded};
use crate::message::header;

/// The `milter` part of an answer, with the members that the relay uses.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Milter {
    #[serde(default)]
    add_headers: BTreeMap<String, OneOrMore<NewField>>,
    /// Which fields of a name: counted from 1, or from the end if negative; 0 means all.
    #[serde(default)]
    remove_headers: BTreeMap<String, OneOrMore<i64>>,
    /// All other members. Their requests do not change the header section.
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
enum NewField {
    Value(String),
    Placed {
        value: String,
        #[serde(default, alias = "index")]
        order: Option<i64>,
    },
}

/// Members of `milter` that do not request a change of the message.
const MEMBERS_WITHOUT_EDITS: [&str; 3] = ["no_action", "reject", "spam_header"];

impl<T> OneOrMore<T> {
    fn all(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

impl Reply {
    /// Edits that rspamd requests for the message with this header section.
    pub(super) fn wanted(&self, header_section: &[u8]) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        if let Some(milter) = &self.milter {
            for (name, which) in &milter.remove_headers {
                for which in which.all() {
                    wanted.extend(removal(name, *which, header_section));
                }
            }
            for (name, fields) in &milter.add_headers {
                let fields = fields.all().iter();
                wanted.extend(fields.map(|field| addition(name, field, header_section)));
            }
            for (name, value) in &milter.others {
                if !MEMBERS_WITHOUT_EDITS.contains(&name.as_str()) {
                    wanted.push(Wanted::Other(format!("{name} {value}")));
                }
            }
        }
        // The signature goes below the relay's own trace field, where a milter puts it.
        for signature in self.signatures.iter().flat_map(OneOrMore::all) {
            wanted.push(add(Place::Before(1), "DKIM-Signature", signature));
        }
        if let ("rewrite subject", Some(subject)) = (&*self.action, &self.subject) {
            wanted.push(Wanted::Field(Edit::Change {
                name: "Subject".to_owned(),
                nth: 1,
                value: folded(subject),
            }));
        }
        wanted
    }
}

fn add(place: Place, name: &str, value: &str) -> Wanted {
    Wanted::Field(Edit::Add {
        place,
        name: name.to_owned(),
        value: folded(value),
    })
}

/// A requested field. Positions are those of a milter: 0 is above the relay's own `Received`, 1 is below it, and negative
/// positions count from the end.
fn addition(name: &str, field: &NewField, header_section: &[u8]) -> Wanted {
    let (value, order) = match field {
        NewField::Value(value) => (value, None),
        NewField::Placed { value, order } => (value, *order),
    };
    let place = match order {
        None | Some(-1) => Place::End,
        Some(0) => Place::Top,
        Some(order) => {
            let from_end = || header::fields(header_section).count() as i64 + 2 + order;
            let number = if order > 0 { order } else { from_end() };
            Place::Before(u32::try_from(number.max(1)).unwrap_or(u32::MAX))
        }
    };
    add(place, name, value)
}

fn removal(name: &str, which: i64, header_section: &[u8]) -> Option<Wanted> {
    let nth = match which {
        0 => None,
        1.. => Some(which),
        _ => {
            let nth = header::count(header_section, name) as i64 + 1 + which;
            // The message has fewer fields of this name.
            Some(nth).filter(|nth| *nth >= 1).map(Some)?
        }
    };
    Some(Wanted::Field(Edit::Remove {
        name: name.to_owned(),
        nth: nth.map(|nth| u32::try_from(nth).unwrap_or(u32::MAX)),
    }))
}
