//! What spamd says.

use std::time::Duration;

use crate::scan::engine::ScanError;
use crate::scan::engine::head::{Head, Malformed, first_line};
use crate::verdict::{Answer, Finding, FindingKind, Reason};

/// Names of rules that are shown; the score is that of all of them.
const RULES_SHOWN: usize = 200;
/// The rule that stands for the end of SpamAssassin's own time.
const CUT_SHORT: &str = "TIME_LIMIT_EXCEEDED";

/// An answer of spamd.
#[derive(Debug, Clone, PartialEq)]
pub enum SpamdAnswer {
    /// It has looked at the message.
    Judged {
        /// Whether it calls it spam.
        spam: bool,
        /// The score.
        score: f64,
        /// From where on it calls a message spam.
        required: f64,
        /// The rules that matched, the first of them.
        rules: Vec<String>,
        /// It ran out of time (`time_limit` of SpamAssassin), and this is what it had until then.
        cut_short: bool,
    },
    /// It could not: an exit code of `sysexits.h`, or 79 for a timeout, and its words.
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
    // More than one answer is for more than one message, and nobody knows which of them is ours.
    if body.len() > length {
        return Err(garbage());
    }
    let spam = head.only("Spam")?.ok_or_else(garbage)?;
    let judgement = judgement(&spam).ok_or_else(|| Malformed::garbage(spam.as_bytes()));
    let (spam, score, required) = judgement?;
    let rules = std::str::from_utf8(body).map_err(|_| garbage())?;
    let rules = rules.trim().split(',').filter(|rule| !rule.is_empty());
    let cut_short = rules.clone().any(|rule| rule == CUT_SHORT);
    Ok(SpamdAnswer::Judged {
        spam,
        score,
        required,
        rules: rules.take(RULES_SHOWN).map(str::to_owned).collect(),
        cut_short,
    })
}

/// `True ; 15.0 / 5.0`
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
    /// What it means, from a replica of that name after so long.
    pub(super) fn judged(self, replica: &str, took: Duration) -> Result<Answer, ScanError> {
        /// EX_TIMEOUT of spamd: its child ran into `--timeout-child`.
        const TIMEOUT: u16 = 79;
        match self {
            Self::Failed(TIMEOUT, _) => Err(ScanError::NoAnswer(took)),
            Self::Failed(code, text) => Err(ScanError::Engine {
                replica: replica.to_owned(),
                message: format!("{code} {text}"),
            }),
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
                        detail: "SpamAssassin ran into its own time_limit".to_owned(),
                        findings,
                    },
                    false => Answer::Answered(findings),
                })
            }
        }
    }
}
