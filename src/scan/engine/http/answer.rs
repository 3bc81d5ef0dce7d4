//! Reads the answer of a service.

use serde_json::Value;

use super::Reading;
use crate::scan::engine::json;
use crate::verdict::{Finding, FindingKind};

/// Names that are read from one answer, to bound the size of a report.
const NAMES_MAX: usize = 50;
/// Characters of a verdict, a version or an id. Real ones are shorter, and the bound limits what the relay stores and shows.
const TEXT_CHARACTERS_MAX: usize = 200;

/// The parsed answer of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpAnswer {
    /// The findings. A clean answer has at most its score.
    pub findings: Vec<Finding>,
    /// Version of the service's signatures, if [`Reading::signatures_at`] is configured.
    pub signatures: Option<String>,
    /// Id of the message that the answer is about, if [`Reading::id_at`] is configured.
    pub id: Option<String>,
}

/// Reads an answer. The error says what is wrong with the answer.
pub fn read(body: &[u8], reading: &Reading) -> Result<HttpAnswer, String> {
    let answer: Value = json::read(body)?;
    let at = |pointer: &str| {
        let found = answer.pointer(pointer);
        found.ok_or_else(|| format!("the answer has no value at {pointer:?}"))
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
        return Err(format!(
            "the verdict {verdict:?} is in neither list: add it to \"bad\" or to \"clean\""
        ));
    }
    let score = match &reading.score_at {
        None => None,
        Some(pointer) => {
            let number = at(pointer)?.as_f64().filter(|n| n.is_finite());
            Some(number.ok_or_else(|| format!("the value at {pointer:?} is not a number"))?)
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

/// One finding for each name. The first finding has the whole score, because the score is that of the message.
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

/// The names of an objection. A service may object without a name; then `instead` is the name.
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

/// The text of a string, a number or a boolean.
fn text(value: &Value, pointer: &str) -> Result<String, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            return Err(format!(
                "the value at {pointer:?} is not a string, a number or a boolean"
            ));
        }
    };
    if text.chars().count() > TEXT_CHARACTERS_MAX || text.contains(char::is_control) {
        return Err(format!(
            "the value at {pointer:?} is too long or contains control characters"
        ));
    }
    Ok(text)
}
