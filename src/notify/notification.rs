//! What is told: as JSON for programs, and as text for people. docs/CONFIG.md describes the JSON, and a test compares the two.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use ulid::Ulid;

use super::ledger::{Batch, Part, STORIES_NAMED_MAX};
use super::name_of;
use crate::deadline::wall_clock;
use crate::incident::{Story, Subject, Touched, advice_for};
use crate::telemetry::duration::duration;
use crate::telemetry::escape::{self, Escaped};

/// The version of the JSON. It changes when a member changes its meaning or goes away; new members do not change it.
const FORMAT_VERSION: u32 = 1;
/// Characters of a title: it may quote mail.
const TITLE_CHARACTERS_MAX: usize = 500;

/// One notification.
#[derive(Debug, Clone)]
pub(super) struct Notification {
    id: Ulid,
    at: Timestamp,
    relay: Arc<str>,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Stories(Batch),
    Test,
}

/// The JSON of a notification.
#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    id: String,
    relay: &'a str,
    at: Timestamp,
    phase: &'a str,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    story: Option<Told<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stories: Vec<Told<'a>>,
    #[serde(skip_serializing_if = "is_zero")]
    more: usize,
    #[serde(skip_serializing_if = "is_zero")]
    missed: usize,
}

/// The JSON of a story.
#[derive(Debug, Serialize)]
struct Told<'a> {
    id: String,
    phase: &'a str,
    cause: Cause<'a>,
    kind: &'a str,
    title: String,
    began: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    back: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<Timestamp>,
    touched: &'a Touched,
    advice: String,
    command: String,
}

/// The JSON of a cause.
#[derive(Debug, Serialize)]
struct Cause<'a> {
    #[serde(rename = "type")]
    word: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<&'a str>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Part {
    fn word(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Worse => "worse",
            Self::End => "end",
        }
    }
}

impl Notification {
    pub(super) fn of(relay: &Arc<str>, batch: &Batch) -> Self {
        Self::new(relay, What::Stories(batch.clone()))
    }

    pub(super) fn test(relay: &Arc<str>) -> Self {
        Self::new(relay, What::Test)
    }

    fn new(relay: &Arc<str>, what: What) -> Self {
        Self {
            id: Ulid::generate(),
            at: wall_clock(),
            relay: relay.clone(),
            what,
        }
    }

    /// The id: the same in each try.
    pub(super) fn id(&self) -> String {
        self.id.to_string()
    }

    pub(super) fn at(&self) -> Timestamp {
        self.at
    }

    /// `begin`, `worse`, `end`, `summary` of several stories, or `test`.
    pub(super) fn phase(&self) -> &'static str {
        match self.stories() {
            _ if matches!(self.what, What::Test) => "test",
            [(part, _)] => part.word(),
            _ => "summary",
        }
    }

    fn stories(&self) -> &[(Part, Story)] {
        match &self.what {
            What::Stories(batch) => &batch.stories,
            What::Test => &[],
        }
    }

    fn missed(&self) -> usize {
        match &self.what {
            What::Stories(batch) => usize::try_from(batch.missed).unwrap_or(usize::MAX),
            What::Test => 0,
        }
    }

    /// Whether this notification says that a next hop is in trouble.
    pub(super) fn blames(&self, next_hop: &str) -> bool {
        let blamed = |(part, story): &(Part, Story)| {
            *part != Part::End && matches!(&story.cause, Subject::NextHop(name) if name == next_hop)
        };
        self.stories().iter().any(blamed)
    }

    /// One JSON object on one line. Characters that act on a terminal are escaped.
    pub(super) fn json(&self) -> String {
        let named = |(part, story)| Told::of(part, story);
        let mut stories = self.stories().iter().map(|(part, story)| (*part, story));
        let is_single = self.stories().len() == 1;
        let document = Document {
            version: FORMAT_VERSION,
            id: self.id(),
            relay: &self.relay,
            at: self.at,
            phase: self.phase(),
            text: self.headline(),
            story: stories.next().filter(|_| is_single).map(named),
            stories: match is_single {
                true => Vec::new(),
                false => self
                    .stories()
                    .iter()
                    .take(STORIES_NAMED_MAX)
                    .map(|(part, story)| Told::of(*part, story))
                    .collect(),
            },
            more: self.stories().len().saturating_sub(STORIES_NAMED_MAX),
            missed: self.missed(),
        };
        // Only a map with keys that are no texts cannot be written.
        escape::json(&serde_json::to_string(&document).unwrap_or_default())
    }

    /// One line for people, safe to show: the subject of a mail.
    pub(super) fn headline(&self) -> String {
        match (&self.what, self.stories()) {
            (What::Test, _) => "this is a test: nothing is wrong".to_owned(),
            (_, [(Part::Begin, story)]) if story.back.is_some() => {
                format!("begin again: {}", named(story))
            }
            (_, [(part, story)]) => format!("{}: {}", part.word(), named(story)),
            (_, stories) => format!("{} stories since the last notification", stories.len()),
        }
    }

    /// Several lines for people, safe to show, each with a line feed.
    pub(super) fn text(&self) -> String {
        let mut text = format!("Relay: {}\n", Escaped(&self.relay));
        if matches!(self.what, What::Test) {
            text.push_str(
                "\nThis is a test that a person has asked for (spillway notify test). Nothing is wrong.\n",
            );
            return text;
        }
        let stories = self.stories();
        if stories.len() > 1 {
            let _ = writeln!(
                text,
                "\n{} notifications were due and held back by max_per_hour. This is their summary.",
                stories.len()
            );
        }
        for (part, story) in stories.iter().take(STORIES_NAMED_MAX) {
            describe(&mut text, *part, story);
        }
        if let more @ 1.. = stories.len().saturating_sub(STORIES_NAMED_MAX) {
            let _ = writeln!(text, "\n… and {more} more: spillway incident list");
        }
        if let missed @ 1.. = self.missed() {
            let _ = writeln!(
                text,
                "\nStories that began and ended before they could be told: {missed}"
            );
        }
        text
    }
}

impl<'a> Told<'a> {
    fn of(part: Part, story: &'a Story) -> Self {
        let replica = match &story.cause {
            Subject::Engine { replica, .. } => replica.as_deref(),
            _ => None,
        };
        Self {
            id: story.id.to_string(),
            phase: part.word(),
            cause: Cause {
                word: story.cause.word(),
                name: name_of(&story.cause),
                replica,
            },
            kind: story.kind.as_str(),
            title: story.title.chars().take(TITLE_CHARACTERS_MAX).collect(),
            began: story.began,
            back: story.back,
            ended: story.ended,
            touched: &story.touched,
            advice: advice_for(story.kind, &story.cause),
            command: command(story),
        }
    }
}

fn command(story: &Story) -> String {
    format!("spillway incident show {}", story.id)
}

/// The title, which names its cause or gets it.
fn named(story: &Story) -> String {
    let title: String = story.title.chars().take(TITLE_CHARACTERS_MAX).collect();
    let cause = story.cause.to_string();
    let text = match title.contains(&cause) {
        true => title,
        false => format!("{cause}: {title}"),
    };
    Escaped(text).to_string()
}

/// One story for people.
fn describe(text: &mut String, part: Part, story: &Story) {
    let lead = match part {
        Part::Begin if story.back.is_some() => "The trouble is back",
        Part::Begin => "The trouble has begun",
        Part::Worse => "The trouble has become worse",
        Part::End => "The trouble has ended",
    };
    let _ = write!(text, "\n{lead}: {}\n", named(story));
    let _ = writeln!(text, "  Began:    {}", time(story.began));
    if let Some(back) = story.back {
        let _ = writeln!(text, "  Back:     {}, after an end", time(back));
    }
    if let Some(ended) = story.ended {
        let lasted = ended.duration_since(story.began);
        let lasted = Duration::try_from(lasted).unwrap_or_default();
        let _ = writeln!(
            text,
            "  Ended:    {}, after {}",
            time(ended),
            duration(lasted)
        );
    }
    let touched = &story.touched;
    if touched.delayed > 0 {
        let _ = writeln!(
            text,
            "  Delayed:  {} messages, by {} (median), {} (99 %), {} (at most)",
            touched.delayed,
            duration(touched.delay_median),
            duration(touched.delay_p99),
            duration(touched.delay_max)
        );
    }
    for (what, count) in [
        ("Held:     ", touched.held),
        ("Unscanned:", touched.passed),
        ("Found bad:", touched.found),
        ("Refused:  ", touched.refused),
    ] {
        if count > 0 {
            let _ = writeln!(text, "  {what} {count}");
        }
    }
    if part != Part::End {
        let _ = writeln!(text, "  To do:    {}", advice_for(story.kind, &story.cause));
    }
    let _ = writeln!(text, "  More:     {}", command(story));
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}
