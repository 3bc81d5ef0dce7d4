//! What went wrong, told by cause: the lists, one incident, its messages, and the post-mortem.

use super::fabricated::{EARLIER, Fabricated, OPENED, STRIKE};
use super::golden::golden;
use super::listed;

/// The tables and the JSON of incidents are as they were reviewed: of stories, of their single events, and of an incident of
/// an earlier version. The list fits into 80 columns.
#[test]
fn tables_of_incidents_are_as_reviewed() {
    let store = Fabricated::new();
    for (name, width, arguments) in [
        ("incident-list-80.txt", Some(80), &["incident", "list"][..]),
        ("incident-list.txt", None, &["incident", "list"]),
        ("incident-list.json", None, &["incident", "list", "--json"]),
        (
            "incident-events-100.txt",
            Some(100),
            &["incident", "list", "--events"],
        ),
        (
            "incident-events.json",
            None,
            &["incident", "list", "--events", "--json"],
        ),
        (
            "incident-show.txt",
            Some(100),
            &["incident", "show", OPENED],
        ),
        (
            "incident-show.json",
            None,
            &["incident", "show", OPENED, "--json"],
        ),
        (
            "incident-show-earlier.txt",
            None,
            &["incident", "show", EARLIER],
        ),
        (
            "incident-show-event.txt",
            None,
            &["incident", "show", "--event", OPENED],
        ),
        (
            "incident-show-event.json",
            None,
            &["incident", "show", "--event", OPENED, "--json"],
        ),
        (
            "incident-show-hostile.txt",
            Some(80),
            &["incident", "show", STRIKE],
        ),
        (
            "incident-show.md",
            None,
            &["incident", "show", "--markdown", OPENED],
        ),
        (
            "incident-messages-80.txt",
            Some(80),
            &["incident", "messages", OPENED],
        ),
        (
            "incident-messages.json",
            None,
            &["incident", "messages", OPENED, "--json"],
        ),
    ] {
        let ran = store.run(width, arguments, "");
        assert_eq!((ran.exit, &*ran.err), (0, ""), "{arguments:?}");
        let acts = |c: char| c != '\n' && spillway::telemetry::escape::is_unsafe(c);
        assert!(!ran.out.contains(acts), "{arguments:?}: {:?}", ran.out);
        if name.ends_with("-80.txt") {
            let widest = ran
                .out
                .lines()
                .map(unicode_width::UnicodeWidthStr::width)
                .max();
            assert!(widest <= Some(80), "{}", ran.out);
        }
        golden(name, &ran.out);
    }
}

/// Whatever a subject, a sender or a title contains, the post-mortem has no HTML, no link, no heading and no row of a table
/// that the relay did not write.
#[test]
fn mail_writes_no_markdown() {
    let store = Fabricated::new();
    for id in [OPENED, STRIKE] {
        let text = store
            .run(None, &["incident", "show", "--markdown", id], "")
            .out;
        let mut outside = String::new();
        for line in text.lines() {
            assert!(!line.starts_with("# Owned"), "{line}");
            // Without code spans: a span ends at the next run of as many backticks as it began with.
            let mut rest = line;
            while let Some(at) = rest.find('`') {
                let fence = rest[at..].len() - rest[at..].trim_start_matches('`').len();
                let (before, span) = (&rest[..at], &rest[at + fence..]);
                outside.push_str(before);
                let mark = "`".repeat(fence);
                let end = span.find(&mark).expect("the span ends on its line");
                assert!(
                    !line.starts_with('|') || !span[..end].contains('|'),
                    "{line}"
                );
                rest = &span[end + fence..];
            }
            outside.push_str(rest);
            outside.push('\n');
        }
        for part in ["<script", "<img", "](", "http://", "onerror"] {
            assert!(!outside.contains(part), "{part} in {outside}");
        }
    }
}

/// Incidents are found by when, what and whom, and so are their events.
#[test]
fn incidents_are_filtered() {
    let store = Fabricated::new();
    for (filter, stories, events) in [
        (&[][..], 3, 4),
        (&["--since", "2h"], 2, 2),
        (&["--kind", "strike"], 1, 1),
        (&["--kind", "strike", "--kind", "breaker-closed"], 2, 2),
        (&["--engine", "clamd"], 1, 2),
        (&["--engine", "clamd", "--since", "2h"], 1, 1),
        (&["--limit", "1"], 1, 1),
    ] {
        for (command, found, all) in [
            (&["incident", "list", "--json"][..], stories, 3),
            (&["incident", "list", "--events", "--json"], events, 4),
        ] {
            let ran = store.run(None, &[command, filter].concat(), "");
            let (total, list) = listed(&ran.out, "incidents");
            assert_eq!(list.len(), found, "{command:?} {filter:?}");
            let limited = filter.contains(&"--limit");
            assert_eq!(total, if limited { all } else { found }, "{filter:?}");
        }
    }
    let all = store.run(None, &["incident", "list", "--json", "--all"], "");
    assert_eq!(listed(&all.out, "incidents").1.len(), 3);
    for (filter, found) in [
        (&[][..], 4),
        (&["--outcome", "delayed"], 2),
        (&["--limit", "1"], 1),
    ] {
        let messages = ["incident", "messages", OPENED, "--json"];
        let ran = store.run(None, &[&messages, filter].concat(), "");
        assert_eq!(listed(&ran.out, "messages").1.len(), found, "{filter:?}");
    }
}
