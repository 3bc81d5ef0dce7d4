//! The answer of rspamd: what rspamd found, and the edits that it requests, as it would request them from a milter.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::message::edit::{Edit, FieldPosition, Wanted, folded};
use crate::message::header;
use crate::scan::engine::json;
use crate::verdict::{Answer, Finding, FindingKind, Reason};

/// Symbols in a report, those with the largest absolute score first, to bound its size. The score of the report is that of
/// all symbols.
const SYMBOLS_SHOWN: usize = 200;
/// Characters of a finding's detail, such as the options of a symbol, to bound the size of a report.
const DETAIL_CHARACTERS_MAX: usize = 200;
/// Members of `milter` that do not request a change of the message.
const MEMBERS_WITHOUT_EDITS: [&str; 3] = ["no_action", "reject", "spam_header"];

/// An answer of rspamd, with the members that the relay uses.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Reply {
    /// rspamd did not scan, or stopped scanning, because of one of its settings.
    #[serde(default)]
    is_skipped: bool,
    score: f64,
    #[serde(default)]
    required_score: Option<f64>,
    action: String,
    #[serde(default)]
    symbols: BTreeMap<String, Symbol>,
    /// The Message-ID field without its brackets, or `undef`.
    #[serde(default, rename = "message-id")]
    message_id: Option<String>,
    /// The subject for the action `rewrite subject`, encoded.
    #[serde(default)]
    subject: Option<String>,
    /// Changes that rspamd would request from a milter.
    #[serde(default)]
    milter: Option<Milter>,
    /// DKIM signatures that rspamd has made.
    #[serde(default, rename = "dkim-signature")]
    signatures: Option<OneOrMore<String>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Symbol {
    #[serde(default)]
    score: Option<f64>,
    #[serde(default)]
    options: Vec<String>,
}

/// The `milter` part of an answer, with the members that the relay uses.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Milter {
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
enum OneOrMore<T> {
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

impl<T> OneOrMore<T> {
    fn all(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

/// Reads an answer. The error says what is wrong with the answer.
pub fn parse(body: &[u8]) -> Result<Reply, String> {
    let reply: Reply = json::read(body)?;
    match reply.score.is_finite() {
        true => Ok(reply),
        false => Err("the score is not a finite number".to_owned()),
    }
}

impl Reply {
    /// Whether the answer is about the message with this header section, as far as the relay can know: only a plain
    /// Message-ID is certain to come back unchanged.
    pub(super) fn is_about(&self, header_section: &[u8]) -> bool {
        let Some(said) = self.message_id.as_deref().filter(|id| *id != "undef") else {
            return true;
        };
        let mut fields = header::fields(header_section).filter(|f| f.is("Message-ID"));
        let (Some(field), None) = (fields.next(), fields.next()) else {
            return true;
        };
        let text = field.unfolded();
        let inner = text.strip_prefix('<').and_then(|t| t.strip_suffix('>'));
        let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '<' | '>' | '"' | '\\');
        match inner {
            Some(id) if id.len() <= 200 && id.chars().all(plain) => id == said,
            _ => true,
        }
    }

    /// The engine's answer.
    pub fn judged(&self) -> Answer {
        let info = |name: &str| Finding::new(FindingKind::Info, name, 0.0);
        if self.is_skipped && self.action == "no action" {
            return Answer::None {
                // rspamd would skip the message again.
                reason: Reason::LimitsReached,
                detail: "rspamd skipped the message because of its own settings".to_owned(),
                findings: vec![info("skipped")],
            };
        }
        let (kind, name) = match &*self.action {
            "no action" | "greylist" | "soft reject" => (FindingKind::Score, "not-spam"),
            _ => (FindingKind::Spam, "spam"),
        };
        let of = self.required_score.map(|r| format!(" of {r}"));
        let detail = format!(
            "{:.2}{}, {}",
            self.score,
            of.unwrap_or_default(),
            self.action
        );
        let total = Finding::new(kind, name, self.score).with_detail(cut(&detail));
        let action = self.action.replace(' ', "-");
        let mut findings = vec![total, info(&format!("action.{action}"))];
        let mut symbols: Vec<_> = self.symbols.iter().collect();
        let weight = |symbol: &Symbol| symbol.score.unwrap_or_default().abs();
        symbols.sort_by(|(_, a), (_, b)| weight(b).total_cmp(&weight(a)));
        for (name, symbol) in symbols.into_iter().take(SYMBOLS_SHOWN) {
            let score = symbol.score.unwrap_or_default();
            let mut detail = format!("{score:.2}");
            for option in symbol.options.iter().take(20) {
                detail.push(' ');
                detail.push_str(option);
            }
            findings.push(info(name).with_detail(cut(&detail)));
        }
        match &*self.action {
            // rspamd asks for the message again later, and may have stopped early for that: a rate limit is exceeded, or its
            // own time is spent. Rules can match the findings.
            "soft reject" => Answer::None {
                reason: Reason::EngineError,
                detail: "rspamd asks to send the message again later (soft reject)".to_owned(),
                findings,
            },
            _ => Answer::Answered(findings),
        }
    }

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
            wanted.push(add(FieldPosition::Before(1), "DKIM-Signature", signature));
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

fn cut(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    text.chars()
        .take(DETAIL_CHARACTERS_MAX)
        .map(clean)
        .collect()
}

fn add(place: FieldPosition, name: &str, value: &str) -> Wanted {
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
        None | Some(-1) => FieldPosition::End,
        Some(0) => FieldPosition::Top,
        Some(order) => {
            let from_end = || header::fields(header_section).count() as i64 + 2 + order;
            let number = if order > 0 { order } else { from_end() };
            FieldPosition::Before(u32::try_from(number.max(1)).unwrap_or(u32::MAX))
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
