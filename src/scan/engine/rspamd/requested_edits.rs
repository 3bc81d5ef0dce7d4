//! What rspamd wants done to a message: the same as it would have a milter do.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::answer::Reply;
use crate::message::edit::{Edit, Place, Wanted, folded};
use crate::message::header;

/// The `milter` part of an answer, as far as it is used here.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Milter {
    #[serde(default)]
    add_headers: BTreeMap<String, OneOrMore<NewField>>,
    /// Which of that name: from 1, from the end if negative, 0 for all.
    #[serde(default)]
    remove_headers: BTreeMap<String, OneOrMore<i64>>,
    /// Everything else that it may want is no change of the header section.
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

/// Members of `milter` that are about something else than the message.
const NO_CHANGES: [&str; 3] = ["no_action", "reject", "spam_header"];

impl<T> OneOrMore<T> {
    fn all(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

impl Reply {
    /// Its requested_edits about the message with that header section.
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
                if !NO_CHANGES.contains(&name.as_str()) {
                    wanted.push(Wanted::Other(format!("{name} {value}")));
                }
            }
        }
        // Below our own trace fields, where a milter puts it.
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

/// Positions are a milter's: 0 is above our own `Received`, 1 below it, and negative ones count from the end.
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
            // Further from the end than there are any.
            Some(nth).filter(|nth| *nth >= 1).map(Some)?
        }
    };
    Some(Wanted::Field(Edit::Remove {
        name: name.to_owned(),
        nth: nth.map(|nth| u32::try_from(nth).unwrap_or(u32::MAX)),
    }))
}
