//! The post-mortem of an incident in Markdown, to be completed by a person.
//!
//! Words from mail stand in code spans, in which neither Markdown nor HTML has a meaning, or are escaped.

use super::messages::{delay, recipients};
use super::show::lasts;
use super::timeline::timeline;
use super::{duration, lasted};
use crate::cli::exit::{CliError, Exit, Outcome};
use crate::cli::terminal::{Terminal, safe};
use crate::config::Config;
use crate::incident::{Incident, StoryState, Touch, advice_for};

/// Characters that Markdown or HTML may give a meaning.
const MARKDOWN_SPECIAL: &str = "\\`*_{}[]()<>#+-!|~&@:$";

pub(super) fn print(
    state: &StoryState,
    told: &[Incident],
    touched: &(Vec<Touch>, u64),
    config: &Config,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    summary(state, config, terminal)?;
    impact(state, touched, terminal)?;
    section("Timeline", terminal)?;
    terminal.line("| time | event | what |\n|---|---|---|")?;
    for entry in timeline(state, told) {
        let when = entry.when(|at| terminal.time(at));
        let (what, summary) = (entry.what(), code(&entry.summary));
        terminal.line(format!("| {when} | {what} | {summary} |"))?;
    }
    cause(state, told, terminal)?;
    section("What ended it", terminal)?;
    terminal.line(match state.story.ended {
        Some(_) => format!("{}.", escaped(&state.ended_by)),
        None => format!("It has not ended ({}).", escaped(&lasts(state))),
    })?;
    section("Open questions", terminal)?;
    for question in questions(state, touched.1) {
        terminal.line(format!("- [ ] {question}"))?;
    }
    Ok(Exit::Done)
}

fn summary(
    state: &StoryState,
    config: &Config,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let story = &state.story;
    let time = |at| terminal.time_and_zone(at);
    let began = time(story.began);
    let ended = story.ended.map_or_else(|| "not yet".to_owned(), time);
    let lines = [
        format!("# Incident: {}", escaped(&story.title)),
        String::new(),
        format!(
            "- **Cause:** {} ({})",
            escaped(&story.cause.to_string()),
            story.kind.as_str()
        ),
        format!("- **Began:** {began}"),
        format!("- **Ended:** {ended}"),
        format!("- **Lasted:** {}", lasted(story, terminal)),
        format!("- **Id:** {}", story.id),
        format!(
            "- **Relay:** {}, version {}, configuration {} (when this was written)",
            escaped(&config.relay.hostname),
            env!("CARGO_PKG_VERSION"),
            escaped(&config.version)
        ),
    ];
    for line in lines {
        terminal.line(line)?;
    }
    section("Summary", terminal)?;
    let (cause, touched) = (escaped(&story.cause.to_string()), &story.touched);
    terminal.line(format!(
        "Because of {cause}, {} messages were delivered later, {} went to quarantine, {} were delivered without it, and {} were refused.",
        touched.delayed, touched.held, touched.passed, touched.refused
    ))
}

fn impact(
    state: &StoryState,
    (touches, total): &(Vec<Touch>, u64),
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let touched = &state.story.touched;
    section("Impact", terminal)?;
    terminal.line("| what | messages |\n|---|---|")?;
    for (what, count) in [
        ("delivered later", touched.delayed),
        ("held in quarantine", touched.held),
        ("delivered without the engine", touched.passed),
        ("refused (their senders keep them)", touched.refused),
    ] {
        terminal.line(format!("| {what} | {count} |"))?;
    }
    if touched.delayed > 0 {
        terminal.line(format!(
            "\nDelay of those that were delivered later: {} at the median, {} at the 99th percentile, {} at most.",
            duration(touched.delay_median),
            duration(touched.delay_p99),
            duration(touched.delay_max)
        ))?;
    }
    if touches.is_empty() {
        return Ok(());
    }
    section("Who was concerned", terminal)?;
    terminal.line(
        "| message | outcome | delay | sender | recipients | subject |\n|---|---|---|---|---|---|",
    )?;
    for touch in touches {
        terminal.line(format!(
            "| {} | {} | {} | {} | {} | {} |",
            touch.message,
            touch.outcome.as_str(),
            delay(touch),
            code(&touch.sender),
            code(&recipients(touch)),
            code(&touch.subject)
        ))?;
    }
    let (shown, id) = (touches.len(), state.story.id);
    terminal.line(format!(
        "\n{shown} of {total}; all of them: `spillway incident messages {id} --all`"
    ))
}

fn cause(
    state: &StoryState,
    told: &[Incident],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    section("Cause", terminal)?;
    terminal.line(format!(
        "{}.",
        escaped(state.story.title.trim_end_matches('.'))
    ))?;
    let main = told.iter().find(|incident| incident.id == state.main);
    let evidence = main.map_or(&[][..], |incident| &incident.evidence);
    if !evidence.is_empty() {
        terminal.line("\n| evidence | value |\n|---|---|")?;
    }
    for (what, value) in evidence {
        terminal.line(format!("| {} | {} |", code(what), code(value)))?;
    }
    terminal.line(format!(
        "\nWhat helps: {}",
        advice_for(state.story.kind, &state.story.cause)
    ))
}

/// What the relay cannot know.
fn questions(state: &StoryState, total: u64) -> Vec<String> {
    let touched = &state.story.touched;
    let mut all = vec![
        format!(
            "Why did this happen to {}?",
            escaped(&state.story.cause.to_string())
        ),
        "Who noticed it first, and when?".to_owned(),
        "What will prevent it, or make it shorter?".to_owned(),
    ];
    if touched.held > 0 {
        all.push(
            "Is anything of the held mail still in quarantine (`spillway quarantine list`)?"
                .to_owned(),
        );
    }
    if touched.passed > 0 {
        all.push("Was a finding reported in mail that was delivered without the engine (`spillway incident list --events --kind late-finding`)?".to_owned());
    }
    let counted = touched.delayed + touched.held + touched.passed + touched.refused;
    if counted > total {
        all.push(format!(
            "Who sent the {} messages that were only counted?",
            counted - total
        ));
    }
    all
}

fn section(title: &str, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    terminal.line(format!("\n## {title}\n"))
}

/// A text in a code span that also fits into a cell of a table: no Markdown, HTML or link in it has a meaning.
fn code(text: &str) -> String {
    let text = safe(text).replace('|', "\u{2502}");
    if text.is_empty() {
        return String::new();
    }
    // A fence that is longer than every run of backticks inside.
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    match longest {
        0 => format!("{fence}{text}{fence}"),
        _ => format!("{fence} {text} {fence}"),
    }
}

/// A text in which no character has a meaning in Markdown or HTML.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in safe(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c if MARKDOWN_SPECIAL.contains(c) => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A code span ends where it should, whatever is in it, and a cell of a table does too.
    #[test]
    fn nothing_leaves_a_code_span() {
        for (text, shown) in [
            ("plain", "`plain`"),
            ("a`b", "`` a`b ``"),
            ("``x```", "```` ``x``` ````"),
            ("a|b\n| c", "`a\u{2502}b\\n\u{2502} c`"),
            ("<script>", "`<script>`"),
            ("", ""),
        ] {
            assert_eq!(code(text), shown);
        }
    }

    /// Neither links nor HTML nor emphasis come out of an escaped text.
    #[test]
    fn an_escaped_text_has_no_meaning() {
        assert_eq!(
            escaped("[x](http://e) <b>&*_#`"),
            "\\[x\\]\\(http\\://e\\) &lt;b&gt;&amp;\\*\\_\\#\\`"
        );
    }
}
