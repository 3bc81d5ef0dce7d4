//! Reads the answer of spamd.

use std::time::Duration;

use crate::scan::engine::ScanError;
use crate::scan::engine::head::{Head, Malformed, first_line};
use crate::verdict::{Answer, Finding, FindingKind, Reason};

/// Names of rules in a report, to bound its size. The score is that of all rules.
const RULES_SHOWN: usize = 200;
/// The rule by which SpamAssassin reports that its own time is over.
const TIME_LIMIT_RULE: &str = "TIME_LIMIT_EXCEEDED";

/// An answer of spamd.
#[derive(Debug, Clone, PartialEq)]
pub enum SpamdAnswer {
    /// spamd has scanned the message.
    Judged {
        /// Whether spamd calls the message spam.
        spam: bool,
        /// The score.
        score: f64,
        /// Score from which spamd calls a message spam.
        required: f64,
        /// Names of the rules that matched, the first 200 of them.
        rules: Vec<String>,
        /// Whether SpamAssassin ran out of time (`time_limit`), so that the answer has only the results until then.
        cut_short: bool,
    },
    /// spamd could not scan the message: an exit code of `sysexits.h`, or 79 for a timeout, and spamd's text.
    Failed(u16, String),
}

/// Reads a whole answer to SYMBOLS.
pub fn parse(answer: &[u8]) -> Result<SpamdAnswer, Malformed> {
    let Some(line) = first_line(answer) else {
        return Err(match answer.len() < 100 && !answer.contains(&b'\n') {
            true => Malformed::CutOff,
            false => Malformed::garbage(answer),
        });
    };
    let garbage = || Malformed::garbage(answer);
    let rest = line.strip_prefix("SPAMD/").ok_or_else(garbage)?;
    let mut words = rest.splitn(3, ' ');
    let (_version, code) = (words.next(), words.next());
    let code: u16 = code
        .and_then(|code| code.parse().ok())
        .ok_or_else(garbage)?;
    if code != 0 {
        let text = words.next().unwrap_or_default();
        return Ok(SpamdAnswer::Failed(code, text.chars().take(200).collect()));
    }
    let Some((head, body)) = Head::split(answer)? else {
        return Err(Malformed::CutOff);
    };
    let length = head.number("Content-length")?.ok_or_else(garbage)?;
    if body.len() < length {
        return Err(Malformed::CutOff);
    }
    // Further octets may be the answer about another message, and the relay cannot tell which one is about this message.
    if body.len() > length {
        return Err(garbage());
    }
    let spam = head.only("Spam")?.ok_or_else(garbage)?;
    let judgement = judgement(&spam).ok_or_else(|| Malformed::garbage(spam.as_bytes()));
    let (spam, score, required) = judgement?;
    let rules = std::str::from_utf8(body).map_err(|_| garbage())?;
    let rules = rules.trim().split(',').filter(|rule| !rule.is_empty());
    let cut_short = rules.clone().any(|rule| rule == TIME_LIMIT_RULE);
    Ok(SpamdAnswer::Judged {
        spam,
        score,
        required,
        rules: rules.take(RULES_SHOWN).map(str::to_owned).collect(),
        cut_short,
    })
}

/// Reads the value of the field Spam: `True ; 15.0 / 5.0`
fn judgement(text: &str) -> Option<(bool, f64, f64)> {
    let (word, numbers) = text.split_once(';')?;
    let spam = match word.trim() {
        "True" | "Yes" => true,
        "False" | "No" => false,
        _ => return None,
    };
    let (score, required) = numbers.split_once('/')?;
    let number = |text: &str| text.trim().parse().ok().filter(|n: &f64| n.is_finite());
    Some((spam, number(score)?, number(required)?))
}

impl SpamdAnswer {
    /// The engine's answer. `took` is the duration of the scan.
    pub(super) fn judged(self, took: Duration) -> Result<Answer, ScanError> {
        /// EX_TIMEOUT of spamd: a child of spamd reached `--timeout-child`.
        const TIMEOUT_CODE: u16 = 79;
        match self {
            Self::Failed(TIMEOUT_CODE, _) => Err(ScanError::NoAnswer(took)),
            Self::Failed(code, text) => Err(ScanError::Engine(format!("{code} {text}"))),
            Self::Judged {
                spam,
                score,
                required,
                rules,
                cut_short,
            } => {
                let (kind, name) = match spam {
                    true => (FindingKind::Spam, "spam"),
                    false => (FindingKind::Score, "not-spam"),
                };
                let total = Finding::new(kind, name, score);
                let mut findings = vec![total.with_detail(format!("{score} of {required}"))];
                let rule = |rule: &String| Finding::new(FindingKind::Info, rule, 0.0);
                findings.extend(rules.iter().map(rule));
                Ok(match cut_short && !spam {
                    true => Answer::None {
                        reason: Reason::LimitsReached,
                        detail: "SpamAssassin reached its own time_limit".to_owned(),
                        findings,
                    },
                    false => Answer::Answered(findings),
                })
            }
        }
    }
}
