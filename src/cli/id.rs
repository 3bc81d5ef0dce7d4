//! Ids on the command line: whole, or any beginning that only one object has.

use std::path::Path;
use std::str::FromStr;

use super::exit::CliError;
use super::terminal::safe;
use crate::message::MessageId;
use crate::store::{Filter, Record, Store, history};

/// Ids that the error about an ambiguous beginning lists: as many as a person compares.
const AMBIGUOUS_IDS_SHOWN: usize = 10;
/// The characters of an id: Crockford's base 32, without I, L, O and U.
const ID_CHARACTERS: &str = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// An id, or the beginning of one, in upper case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IdPrefix(String);

impl FromStr for IdPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = text.trim().to_ascii_uppercase();
        let is_id = id.chars().all(|c| ID_CHARACTERS.contains(c));
        match is_id && (1..=MessageId::LENGTH).contains(&id.len()) {
            true => Ok(Self(id)),
            false => {
                let start: String = text.chars().take(40).collect();
                Err(format!(
                    "{start:?} is neither an id (26 letters and digits, as the lists, the reply and the log print it) nor the \
                     beginning of one"
                ))
            }
        }
    }
}

impl IdPrefix {
    /// The text in upper case.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The stored message that it names, in any lane. A whole id names its message, stored or not.
    pub(super) async fn message(&self, store: &dyn Store) -> Result<MessageId, CliError> {
        if let Ok(id) = self.0.parse() {
            return Ok(id);
        }
        let found = self.stored(store).await?;
        let lines = found.iter().map(|record| (record.id, told(record)));
        self.only(lines, "stored message")
    }

    /// Like [`Self::message`], among stored messages and those of the history in the file `history`.
    pub(super) async fn known_message(
        &self,
        store: &dyn Store,
        history: &Path,
    ) -> Result<MessageId, CliError> {
        if let Ok(id) = self.0.parse() {
            return Ok(id);
        }
        let found = self.stored(store).await?;
        let mut known: Vec<_> = found
            .iter()
            .map(|record| (record.id, told(record)))
            .collect();
        let left = history::messages(history, self.0.clone(), AMBIGUOUS_IDS_SHOWN + 1).await?;
        for id in left {
            if known.iter().all(|(stored, _)| *stored != id) {
                known.push((id, "not stored any more".to_owned()));
            }
        }
        self.only(known, "message")
    }

    async fn stored(&self, store: &dyn Store) -> Result<Vec<Record>, CliError> {
        let filter = Filter {
            id_prefix: Some(self.0.clone()),
            limit: AMBIGUOUS_IDS_SHOWN + 1,
            ..Filter::default()
        };
        Ok(store.search(filter).await?)
    }

    /// The only one of these objects with this beginning, each with its id and a description. `what` names the kind of object
    /// for the error if there are none or several.
    pub(super) fn only<I: ToString>(
        &self,
        objects: impl IntoIterator<Item = (I, String)>,
        what: &str,
    ) -> Result<I, CliError> {
        let id_and_line = |(id, line): (I, String)| (id.to_string(), id, line);
        let objects = objects.into_iter().map(id_and_line);
        let mut matching: Vec<_> = objects
            .filter(|(text, ..)| text.starts_with(&self.0))
            .take(AMBIGUOUS_IDS_SHOWN + 1)
            .collect();
        match matching.len() {
            0 => Err(CliError::NotFound(format!(
                "there is no {what} whose id begins with {}",
                self.0
            ))),
            1 => Ok(matching.remove(0).1),
            many => {
                let is_more = many > AMBIGUOUS_IDS_SHOWN;
                let mut text = format!("several ids begin with {}; give more of the id:", self.0);
                for (id, _, line) in matching.iter().take(AMBIGUOUS_IDS_SHOWN) {
                    text.push_str(&format!("\n  {id}  {}", safe(line)));
                }
                if is_more {
                    text.push_str("\n  … and more");
                }
                Err(CliError::Usage(text))
            }
        }
    }
}

fn told(record: &Record) -> String {
    let (lane, sender) = (
        record.lane.as_str(),
        record.envelope.reverse_path.to_string(),
    );
    format!("{lane}  {sender}  {}", record.subject)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A beginning of an id is taken as typed, in any case; text that cannot begin an id is an error at once.
    #[test]
    fn beginnings_of_ids_are_read() {
        for text in ["01kaj", " 01KAJ ", "0", "01KAJ0000000000000000MA001"] {
            let id: IdPrefix = text.parse().expect(text);
            assert_eq!(id.as_str(), text.trim().to_uppercase());
        }
        for text in [
            "",
            " ",
            "01KAI",
            "01-",
            "ü",
            "%",
            "01KAJ0000000000000000MA0012",
        ] {
            let error = text.parse::<IdPrefix>().expect_err(text);
            assert!(error.contains("neither an id"), "{error}");
        }
    }

    /// One object: it is meant. Several: they are listed, not too many of them, and nothing is chosen.
    #[test]
    fn an_ambiguous_beginning_lists_its_matches() {
        let ids = |many: usize| (0..many).map(|n| (format!("01AB{n:02}"), format!("\u{1b}{n}")));
        let prefix = |text: &str| text.parse::<IdPrefix>().expect(text);
        assert_eq!(
            prefix("01ab03").only(ids(30), "thing").expect("one"),
            "01AB03"
        );
        let none = prefix("02").only(ids(30), "thing").expect_err("none");
        assert_eq!(
            none.to_string(),
            "there is no thing whose id begins with 02"
        );
        let several = prefix("01AB").only(ids(3), "thing").expect_err("several");
        assert_eq!(
            several.to_string(),
            "several ids begin with 01AB; give more of the id:\n  01AB00  \\u{1b}0\n  01AB01  \\u{1b}1\n  01AB02  \\u{1b}2"
        );
        let many = prefix("01AB").only(ids(30), "thing").expect_err("many");
        let text = many.to_string();
        assert_eq!(text.lines().count(), 12);
        assert!(text.ends_with("… and more"), "{text}");
    }
}
