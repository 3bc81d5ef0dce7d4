//! The status page for people: one table, without scripts and without content from other servers.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;

use super::{Status, Stored};
use crate::deadline::wall_clock;
use crate::delivery::PaceState;
use crate::store::LaneStats;
use crate::telemetry::duration::duration;
use crate::telemetry::escape::Escaped;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:48rem;margin:2rem auto;padding:0 1rem;color:#222;\
background:#fff}h1{font-size:1.4rem}table{border-collapse:collapse;width:100%}\
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid #ddd}th{font-weight:600;width:12rem}\
.bad{color:#a00;font-weight:600}@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}\
th,td{border-color:#333}.bad{color:#f77}}";

/// Renders the page.
pub(super) fn render(status: &Status) -> String {
    let mut rows = Rows(String::new());
    rows.add_delays(status);
    rows.add_late(status);
    match &status.not_ready {
        None => rows.add("New mail", "accepted"),
        Some(reason) => rows.add_bad("New mail", &format!("not accepted: {reason}")),
    }
    if status.draining {
        rows.add_bad("Draining", "finishing the mail in flight, then exiting");
    }
    for listener in &status.listeners {
        let addresses: Vec<String> = listener.addresses.iter().map(ToString::to_string).collect();
        let name = format!("Listener {}", listener.name);
        rows.add(&name, &addresses.join(", "));
    }
    rows.add("Sessions", &status.sessions.to_string());
    let memory = format!("{} MiB", status.memory_available >> 20);
    rows.add("Memory free for messages", &memory);
    match &status.stored {
        Some(stored) => rows.add_stored(stored),
        None => rows.add_bad("Stored messages", Stored::UNKNOWN_TEXT),
    }
    for health in &status.engines {
        let name = format!("Engine {}", health.engine);
        let text = format!(
            "{}; {} of {} slots taken, {} past their timeout, {} messages waiting",
            health.words(|at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()),
            health.running,
            health.slots,
            health.zombies,
            health.waiting
        );
        match health.is_well() {
            true => rows.add(&name, &text),
            false => rows.add_bad(&name, &text),
        }
    }
    for hop in &status.next_hops {
        let name = format!("Next hop {}", hop.name);
        match hop.state {
            PaceState::Free => rows.add(&name, &hop.to_string()),
            PaceState::Paced | PaceState::Dead => rows.add_bad(&name, &hop.to_string()),
        }
    }
    rows.add("Configuration", &configuration(status));
    rows.add("Running since", &status.started.to_string());
    rows.add("Version", &status.version);
    let host = html(&status.hostname);
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Spillway on {host}</title>\
         <style>{STYLE}</style></head><body><main><h1>Spillway on {host}</h1>\
         <table>{}</table></main></body></html>\n",
        rows.0
    )
}

fn configuration(status: &Status) -> String {
    match &status.config_file {
        Some(file) => format!("{} ({})", status.config, file.display()),
        None => status.config.clone(),
    }
}

fn lane(stats: &LaneStats) -> String {
    let mut text = format!("{} messages, {} octets", stats.messages, stats.octets);
    if let Some(oldest) = stats.oldest {
        // Writing to a String cannot fail.
        let _ = write!(text, ", the oldest of {oldest}");
    }
    text
}

/// The time since `at`.
fn age(at: Timestamp) -> String {
    let seconds = wall_clock().duration_since(at).as_secs();
    duration(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

struct Rows(String);

impl Rows {
    fn add(&mut self, name: &str, value: &str) {
        self.row("", name, value);
    }

    /// The delays of valid mail, and beside them the age of the oldest message that no percentile contains.
    fn add_delays(&mut self, status: &Status) {
        let delay = &status.delay;
        for (name, times) in [
            ("Delay of valid mail now", &delay.now),
            ("in the last hour", &delay.last_hour),
            ("in the same hour last week", &delay.week_ago),
        ] {
            let text = match (times.p50_ms, times.p99_ms) {
                (Some(p50), Some(p99)) => format!(
                    "half within {p50} ms, 99 % within {p99} ms, {} messages",
                    times.messages
                ),
                _ => "no mail".to_owned(),
            };
            self.add(name, &text);
        }
        if let Some(oldest) = status.oldest_waiting() {
            self.add("Oldest waiting message", &format!("of {oldest:.0}"));
        }
    }

    fn add_late(&mut self, status: &Status) {
        let lines = status.late_lines(&|at| format!("{at:.0}"), &age);
        if lines.is_empty() {
            self.add("Late", "nothing");
        }
        for line in lines {
            self.add_bad("Late", &format!("{}. {}", line.text, line.advice));
        }
    }

    fn add_stored(&mut self, stored: &Stored) {
        self.add("Waiting for a scan", &lane(&stored.scan));
        self.add("Waiting for delivery", &lane(&stored.delivery));
        self.add("In quarantine", &lane(&stored.held));
        let quarantine = &stored.quarantine;
        let room = format!("{} of {} octets", quarantine.octets, quarantine.limit);
        match quarantine.part() < 1.0 {
            true => self.add("Used room of the quarantine", &room),
            false => self.add_bad("Used room of the quarantine", &room),
        }
        self.add("Delivered, waiting for another scan", &lane(&stored.rescan));
    }

    fn add_bad(&mut self, name: &str, value: &str) {
        self.row(" class=\"bad\"", name, value);
    }

    fn row(&mut self, class: &str, name: &str, value: &str) {
        let (name, value) = (html(name), html(value));
        let _ = write!(
            self.0,
            "<tr><th scope=\"row\">{name}</th><td{class}>{value}</td></tr>"
        );
    }
}

/// Escapes text for HTML: no character acts as markup or reorders the line.
fn html(text: &str) -> String {
    let text = Escaped(text).to_string();
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
    }
    html
}
