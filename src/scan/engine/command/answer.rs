//! Interprets the exit code and the output of a program.

use regex::{Regex, RegexBuilder};

use super::{Exit, Saying};
use crate::process::Ended;
use crate::scan::engine::http::{self, Reading, objections};
use crate::verdict::{Answer, Finding, FindingKind};

/// Most names that one answer may report, to bound the report.
const NAMES_MAX: usize = 50;
/// Octets of a line that the regular expression sees. The relay ignores the rest of a longer line.
const LINE_OCTETS_MAX: usize = 4096;
/// Memory in octets for a compiled regular expression: 1 MiB.
const PATTERN_OCTETS_MAX: usize = 1 << 20;

/// Why the end of a program is not an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wrong {
    /// The program failed: it ended with an unexpected exit code, or by a signal.
    Failed(String),
    /// The output cannot be parsed, or contradicts the exit code.
    Garbage(String),
}

/// Reads the answers of one program.
#[derive(Debug)]
pub(super) enum Reader {
    Exit(Exit, Option<Lines>),
    Json(Reading),
}

impl Reader {
    /// # Errors
    /// What is wrong with the regular expression.
    pub(super) fn new(saying: &Saying) -> Result<Self, String> {
        Ok(match saying {
            Saying::Exit(exit) => {
                let lines = exit.pattern.as_deref().map(Lines::new).transpose()?;
                Self::Exit(exit.clone(), lines)
            }
            Saying::Json(reading) => Self::Json(reading.clone()),
        })
    }

    /// The answer, and the version of the signatures of the program, if the output contains a version.
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
                // The name and the exit code contradict each other, and the relay cannot know which one is right.
                if let (false, Some(name)) = (bad, said.names.first()) {
                    let wrong =
                        format!("the program names {name:.100} and ends with a clean exit code");
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

/// How the program ended, and the beginning of its standard error output.
fn failed(how: &str, ended: &Ended) -> Wrong {
    let complaints = String::from_utf8_lossy(&ended.complaints);
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let complaints: String = complaints.trim().chars().take(200).map(clean).collect();
    Wrong::Failed(match complaints.is_empty() {
        true => how.to_owned(),
        false => format!("{how}: {complaints}"),
    })
}

/// A regular expression for lines of output. Matching takes time linear in the length of the line, for every expression.
#[derive(Debug, Clone)]
pub struct Lines(Regex);

impl Lines {
    /// Compiles a regular expression, which must contain a group `name` or a group `score`.
    ///
    /// # Errors
    /// What is wrong with the expression, as a text for the administrator.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let compiled = RegexBuilder::new(pattern)
            .size_limit(PATTERN_OCTETS_MAX)
            .build();
        let compiled = compiled.map_err(|error| {
            // The last line has the reason. The lines before it show the position.
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            last.trim_start_matches("error: ").to_owned()
        })?;
        let known = |name: Option<&str>| matches!(name, Some("name" | "score"));
        match compiled.capture_names().any(known) {
            true => Ok(Self(compiled)),
            false => Err("has neither a group (?<name>…) nor (?<score>…)".to_owned()),
        }
    }
}

/// Names and score from the output of a program.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CommandAnswer {
    /// The names, each once.
    pub names: Vec<String>,
    /// The first score in the output, if there is one.
    pub score: Option<f64>,
}

/// Reads the matching lines of the output of a program, and ignores all other lines.
///
/// # Errors
/// A score that is not a finite number, as a text for the administrator.
pub fn read(output: &[u8], lines: &Lines) -> Result<CommandAnswer, String> {
    let mut judged = CommandAnswer::default();
    let text = String::from_utf8_lossy(output);
    for line in text.lines() {
        let line = &line[..line.floor_char_boundary(LINE_OCTETS_MAX)];
        let Some(found) = lines.0.captures(line) else {
            continue;
        };
        let group = |name: &str| found.name(name).map(|group| group.as_str().trim());
        if let (Some(text), None) = (group("score"), judged.score) {
            let number = text.parse().ok().filter(|number: &f64| number.is_finite());
            judged.score =
                Some(number.ok_or_else(|| format!("the score {text:.50?} is not a number"))?);
        }
        let name = group("name").filter(|name| !name.is_empty());
        if let Some(name) = name.map(str::to_owned)
            && judged.names.len() < NAMES_MAX
            && !judged.names.contains(&name)
        {
            judged.names.push(name);
        }
    }
    Ok(judged)
}
