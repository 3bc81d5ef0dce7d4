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

/// Characters that Markdown gives a meaning wherever they stand; `@` and `$` have one where teams read their post-mortems.
const MARKDOWN_SPECIAL: &str = "\\`*[]~@$";
/// Characters that make something of a line that begins with them.
const MARKDOWN_SPECIAL_FIRST: &str = "#+-=>";

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
        let (first, kind) = (terminal.time(entry.first), entry.kind.as_str());
        let times = entry.times(|at| terminal.time(at));
        let summary = code(&entry.summary);
        terminal.line(format!("| {first} | {kind} | {times}{summary} |"))?;
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
    let mut lines = vec![
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
    if let Some(back) = story.back {
        lines.push(format!("- **Came back after an end:** {}", time(back)));
    }
    for line in lines {
        terminal.line(line)?;
    }
    section("Summary", terminal)?;
    touched(state, terminal)
}

/// What the cause did to mail, in sentences.
fn touched(state: &StoryState, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let cause = escaped(&state.story.cause.to_string());
    let touched = &state.story.touched;
    let all = [
        (touched.delayed, "delivered later"),
        (touched.held, "held in quarantine"),
        (touched.passed, "delivered without it"),
        (touched.found, "delivered, and found bad later"),
        (touched.refused, "refused"),
    ];
    let told = all.into_iter().filter(|(count, _)| *count > 0);
    let told: Vec<_> = told
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if let Some(waits) = state.waits() {
        terminal.line(format!("{waits} for {cause} (when this was written)."))?;
    }
    terminal.line(match told.is_empty() {
        true => {
            format!("No message was delayed, held, passed or refused because of {cause} so far.")
        }
        false => format!(
            "Messages touched by the trouble of {cause}: {}.",
            told.join(", ")
        ),
    })
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
        ("delivered, and found bad later", touched.found),
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
    let counted = touched.delayed + touched.held + touched.passed + touched.found + touched.refused;
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

/// A text in which no character has a meaning in Markdown or HTML. What would have none is left as it is, because people read
/// the post-mortem as text, too.
fn escaped(text: &str) -> String {
    let text = safe(text);
    let mut out = String::new();
    for (at, c) in text.char_indices() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            c if is_special(&text[..at], c, &text[at + c.len_utf8()..]) => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

/// Whether Markdown gives a character a meaning where it stands.
fn is_special(before: &str, c: char, after: &str) -> bool {
    let is_in_word =
        before.ends_with(char::is_alphanumeric) && after.starts_with(char::is_alphanumeric);
    match c {
        '_' => !is_in_word,
        ':' => after.starts_with("//") || is_picture(after),
        '(' => before.ends_with(']'),
        // The number of a list.
        '.' | ')' => !before.is_empty() && before.bytes().all(|b| b.is_ascii_digit()),
        c if MARKDOWN_SPECIAL.contains(c) => true,
        c => before.is_empty() && MARKDOWN_SPECIAL_FIRST.contains(c),
    }
}

/// Whether a colon and this text begin with the name of a picture: `:smile:`.
fn is_picture(after: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_+-".contains(c);
    let rest = after.trim_start_matches(is_name);
    rest.len() < after.len() && rest.starts_with(':')
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

    /// Neither links nor HTML nor emphasis nor a list come out of an escaped text.
    #[test]
    fn an_escaped_text_has_no_meaning() {
        for (text, shown) in [
            ("[x](http://e)", "\\[x\\]\\(http\\://e)"),
            ("<b>&*#`", "&lt;b>&amp;\\*#\\`"),
            ("_so_ a_b", "\\_so\\_ a_b"),
            ("# x", "\\# x"),
            ("- x", "\\- x"),
            ("> x", "\\> x"),
            ("1. x", "1\\. x"),
            (":+1: :smile:", "\\:+1: \\:smile:"),
            ("![x]", "!\\[x\\]"),
            ("~~x~~ @all", "\\~\\~x\\~\\~ \\@all"),
        ] {
            assert_eq!(escaped(text), shown);
        }
    }

    /// What has no meaning in Markdown is not escaped: a heading is read as text, too.
    #[test]
    fn plain_words_stay_as_they_are() {
        for text in [
            "stalled: no scan has ended for 5 s (3 run)",
            "engine clamd (127.0.0.1:3310): 12 of 20 scans failed, 60 %!",
            "unix:/run/clamd.sock",
            "next hop mx-1.b.example, a -> b",
        ] {
            assert_eq!(escaped(text), text);
        }
    }
}
