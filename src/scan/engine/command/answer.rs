//! What a program says.

use regex::{Regex, RegexBuilder};

use super::process::Ended;
use super::{Exit, Saying};
use crate::scan::engine::http::{self, Reading, objections};
use crate::verdict::{Answer, Finding, FindingKind};

/// Findings of one answer.
const NAMES: usize = 50;
/// Octets of a line that are looked at.
const LINE: usize = 4096;
/// Octets that a regular expression may take when it is compiled.
const PATTERN: usize = 1 << 20;

/// Why an end is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wrong {
    /// The program itself says, or shows, that it has failed.
    Failed(String),
    /// What it says cannot be read.
    Garbage(String),
}

/// How the answers of one program are read.
#[derive(Debug)]
pub(super) enum Reader {
    Exit(Exit, Option<Lines>),
    Json(Reading),
}

impl Reader {
    /// The error says what is wrong with the regular expression.
    pub(super) fn new(saying: &Saying) -> Result<Self, String> {
        Ok(match saying {
            Saying::Exit(exit) => {
                let lines = exit.pattern.as_deref().map(Lines::new).transpose()?;
                Self::Exit(exit.clone(), lines)
            }
            Saying::Json(reading) => Self::Json(reading.clone()),
        })
    }

    /// The answer and the version of what the program knows.
    pub(super) fn judge(&self, ended: &Ended) -> Result<(Answer, Option<String>), Wrong> {
        let code = match (ended.code, ended.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => return Err(failed(&format!("signal {signal}"), ended)),
            (None, None) => return Err(failed("no exit code", ended)),
        };
        match self {
            Self::Exit(exit, lines) => {
                let bad = exit.found.contains(&code);
                if !bad && !exit.clean.contains(&code) {
                    return Err(failed(&format!("exit code {code}"), ended));
                }
                let said = match lines {
                    Some(lines) => read(&ended.output, lines).map_err(Wrong::Garbage)?,
                    None => CommandAnswer::default(),
                };
                // Whichever of the two is meant, the other is not to be believed.
                if let (false, Some(name)) = (bad, said.names.first()) {
                    let wrong = format!("it names {name:.100} and ends with a clean exit code");
                    return Err(Wrong::Garbage(wrong));
                }
                Ok((Answer::Answered(findings(exit, bad, said)), None))
            }
            Self::Json(reading) if code == 0 => {
                let said = http::read(&ended.output, reading).map_err(Wrong::Garbage)?;
                Ok((Answer::Answered(said.findings), said.signatures))
            }
            Self::Json(_) => Err(failed(&format!("exit code {code}"), ended)),
        }
    }
}

fn findings(exit: &Exit, bad: bool, said: CommandAnswer) -> Vec<Finding> {
    let CommandAnswer { mut names, score } = said;
    match (bad, score) {
        (true, score) => {
            if names.is_empty() {
                names.push("found".to_owned());
            }
            objections(names, exit.bad_kind, score.unwrap_or(exit.bad_score))
        }
        (false, Some(score)) => vec![Finding::new(FindingKind::Score, "clean", score)],
        (false, None) => Vec::new(),
    }
}

/// How it has ended, and the beginning of what it complained of.
fn failed(how: &str, ended: &Ended) -> Wrong {
    let complaints = String::from_utf8_lossy(&ended.complaints);
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let complaints: String = complaints.trim().chars().take(200).map(clean).collect();
    Wrong::Failed(match complaints.is_empty() {
        true => how.to_owned(),
        false => format!("{how}: {complaints}"),
    })
}

/// A regular expression for lines. It runs in time linear in them, whatever it is.
#[derive(Debug, Clone)]
pub struct Lines(Regex);

impl Lines {
    /// The error says what is wrong with it. It needs a group called `name` or one called `score`.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let compiled = RegexBuilder::new(pattern).size_limit(PATTERN).build();
        let compiled = compiled.map_err(|error| {
            // The last line is the reason; those before show the place.
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            last.trim_start_matches("error: ").to_owned()
        })?;
        let known = |name: Option<&str>| matches!(name, Some("name" | "score"));
        match compiled.capture_names().any(known) {
            true => Ok(Self(compiled)),
            false => Err("it has neither a group (?<name>…) nor (?<score>…)".to_owned()),
        }
    }
}

/// What the lines of a program say.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CommandAnswer {
    /// What is named, each once.
    pub names: Vec<String>,
    /// The score, if one is told; the first counts.
    pub score: Option<f64>,
}

/// Reads what a program has printed: the lines that match. Others are passed over; the error is a score that is no number.
pub fn read(output: &[u8], lines: &Lines) -> Result<CommandAnswer, String> {
    let mut judged = CommandAnswer::default();
    let text = String::from_utf8_lossy(output);
    for line in text.lines() {
        let line = &line[..line.floor_char_boundary(LINE)];
        let Some(found) = lines.0.captures(line) else {
            continue;
        };
        let group = |name: &str| found.name(name).map(|group| group.as_str().trim());
        if let (Some(text), None) = (group("score"), judged.score) {
            let number = text.parse().ok().filter(|number: &f64| number.is_finite());
            judged.score = Some(number.ok_or_else(|| format!("the score {text:.50?}"))?);
        }
        let name = group("name").filter(|name| !name.is_empty());
        if let Some(name) = name.map(str::to_owned)
            && judged.names.len() < NAMES
            && !judged.names.contains(&name)
        {
            judged.names.push(name);
        }
    }
    Ok(judged)
}
