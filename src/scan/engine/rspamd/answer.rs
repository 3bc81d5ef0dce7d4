//! Reads the answer of rspamd.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::requested_edits::{Milter, OneOrMore};
use crate::message::header;
use crate::scan::engine::json;
use crate::verdict::{Answer, Finding, FindingKind, Reason};

/// Symbols in a report, those with the largest absolute score first, to bound its size. The score of the report is that of
/// all symbols.
const SYMBOLS_SHOWN: usize = 200;
/// Characters of a finding's detail, such as the options of a symbol, to bound the size of a report.
const DETAIL_CHARACTERS_MAX: usize = 200;

/// An answer of rspamd, with the members that the relay uses.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Reply {
    /// rspamd did not scan, or stopped scanning, because of one of its settings.
    #[serde(default)]
    is_skipped: bool,
    score: f64,
    #[serde(default)]
    required_score: Option<f64>,
    pub(super) action: String,
    #[serde(default)]
    symbols: BTreeMap<String, Symbol>,
    /// The Message-ID field without its brackets, or `undef`.
    #[serde(default, rename = "message-id")]
    message_id: Option<String>,
    /// The subject for the action `rewrite subject`, encoded.
    #[serde(default)]
    pub(super) subject: Option<String>,
    /// Changes that rspamd would request from a milter.
    #[serde(default)]
    pub(super) milter: Option<Milter>,
    /// DKIM signatures that rspamd has made.
    #[serde(default, rename = "dkim-signature")]
    pub(super) signatures: Option<OneOrMore<String>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Symbol {
    #[serde(default)]
    score: Option<f64>,
    #[serde(default)]
    options: Vec<String>,
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
}

fn cut(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    text.chars()
        .take(DETAIL_CHARACTERS_MAX)
        .map(clean)
        .collect()
}
