//! What a service says.

use serde_json::Value;

use super::Reading;
use crate::scan::engine::json;
use crate::verdict::{Finding, FindingKind};

/// Names of one answer.
const NAMES_MAX: usize = 50;
/// Characters of a version or an id.
const VERSION_CHARACTERS_MAX: usize = 200;

/// An answer, read.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpAnswer {
    /// What it found and counts.
    pub findings: Vec<Finding>,
    /// Its version.
    pub signatures: Option<String>,
    /// The id of the message that it is about.
    pub id: Option<String>,
}

/// Reads an answer; the error says what is wrong with it.
pub fn read(body: &[u8], reading: &Reading) -> Result<HttpAnswer, String> {
    let answer: Value = json::read(body)?;
    let at = |pointer: &str| {
        let found = answer.pointer(pointer);
        found.ok_or_else(|| format!("nothing at {pointer:?}"))
    };
    let text_at = |pointer: &Option<String>| {
        let pointer = pointer.as_deref();
        pointer
            .map(|pointer| text(at(pointer)?, pointer))
            .transpose()
    };
    let verdict = text(at(&reading.verdict_at)?, &reading.verdict_at)?;
    let is_bad = reading.bad.contains(&verdict);
    if !is_bad && !reading.clean.contains(&verdict) {
        return Err(format!("the verdict {verdict:?} is on no list"));
    }
    let score = match &reading.score_at {
        None => None,
        Some(pointer) => {
            let number = at(pointer)?.as_f64().filter(|n| n.is_finite());
            Some(number.ok_or_else(|| format!("no number at {pointer:?}"))?)
        }
    };
    let findings = match (is_bad, score) {
        (true, score) => {
            let names = match reading.name_at.as_deref() {
                Some(pointer) => names(answer.pointer(pointer), &verdict),
                None => vec![verdict],
            };
            objections(names, reading.bad_kind, score.unwrap_or(reading.bad_score))
        }
        (false, Some(score)) => vec![Finding::new(FindingKind::Score, &verdict, score)],
        (false, None) => Vec::new(),
    };
    Ok(HttpAnswer {
        findings,
        signatures: text_at(&reading.signatures_at)?,
        id: text_at(&reading.id_at)?,
    })
}

/// The first has the whole score: it is that of the message.
pub(in crate::scan::engine) fn objections(
    names: Vec<String>,
    kind: FindingKind,
    score: f64,
) -> Vec<Finding> {
    let one = |(at, name): (usize, String)| {
        let score = if at == 0 { score } else { 0.0 };
        Finding::new(kind, &name, score)
    };
    names.into_iter().enumerate().map(one).collect()
}

/// At least one name, for what is bad may have none.
fn names(value: Option<&Value>, instead: &str) -> Vec<String> {
    let named = |value: &Value| value.as_str().filter(|s| !s.is_empty()).map(str::to_owned);
    let mut names: Vec<String> = match value {
        Some(Value::Array(all)) => all.iter().filter_map(named).take(NAMES_MAX).collect(),
        Some(one) => named(one).into_iter().collect(),
        None => Vec::new(),
    };
    if names.is_empty() {
        names.push(instead.to_owned());
    }
    names
}

/// A text, a number, true or false.
fn text(value: &Value, pointer: &str) -> Result<String, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            return Err(format!("no text at {pointer:?}"));
        }
    };
    if text.chars().count() > VERSION_CHARACTERS_MAX || text.contains(char::is_control) {
        return Err(format!("too long a text at {pointer:?}"));
    }
    Ok(text)
}
