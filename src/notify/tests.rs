//! Notifications, while the thing itself is broken.

mod ledger;
mod mail;
mod programs;
mod ways;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::ledger::{Batch, Part};
use super::*;
use crate::incident::{Kind as IncidentKind, Touched};

/// A way that tells everything at once.
fn settings(name: &str) -> Settings {
    Settings {
        name: name.into(),
        kind: Kind::Command(Vec::new()),
        begin: true,
        end: true,
        causes: Vec::new(),
        kinds: Vec::new(),
        begin_after: Duration::ZERO,
        end_after: Duration::ZERO,
        max_per_hour: 10,
        attempts: 3,
        timeout: Duration::from_secs(10),
    }
}

/// The story of an engine with this number in its id and its title.
fn story(number: u128) -> Story {
    Story {
        id: ulid::Ulid(number),
        cause: Subject::Engine {
            name: "clamd".to_owned(),
            replica: None,
        },
        kind: IncidentKind::BreakerOpened,
        title: format!("story {number}"),
        began: Timestamp::UNIX_EPOCH,
        back: None,
        ended: None,
        touched: Touched::default(),
    }
}

fn about_next_hop(name: &str) -> Story {
    Story {
        cause: Subject::NextHop(name.to_owned()),
        kind: IncidentKind::NextHopDead,
        ..story(1)
    }
}

fn begun(story: Story) -> Notification {
    let relay: Arc<str> = "mx.example.com".into();
    let stories = vec![(Part::Begin, story)];
    Notification::of(&relay, &Batch { stories, missed: 0 })
}

/// The JSON of the guide is what the code writes, member for member.
#[test]
fn the_guide_shows_the_json() {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CONFIG.md");
    let guide = std::fs::read_to_string(guide).expect("the guide");
    let (_, section) = guide.split_once("\n## Who is told\n").expect("the section");
    let block = section.split("```json\n").nth(1).expect("an example");
    let block = block.split("```").next().expect("its end");
    let shown: serde_json::Value = serde_json::from_str(block).expect("JSON");
    let at = |key: &str| -> Timestamp {
        let text = shown.pointer(key).and_then(serde_json::Value::as_str);
        text.expect(key).parse().expect("a time")
    };
    let id = shown["story"]["id"].as_str().expect("an id");
    let story = Story {
        id: ulid::Ulid::from_string(id).expect("an id"),
        cause: Subject::Engine {
            name: "clamd".to_owned(),
            replica: Some("unix:/run/clamav/clamd.ctl".to_owned()),
        },
        title: shown["story"]["title"]
            .as_str()
            .expect("a title")
            .to_owned(),
        began: at("/story/began"),
        ended: Some(at("/story/ended")),
        touched: serde_json::from_value(shown["story"]["touched"].clone()).expect("counts"),
        ..story(1)
    };
    let stories = vec![(Part::End, story)];
    let told = Notification::of(&"mx.example.com".into(), &Batch { stories, missed: 0 });
    let mut written: serde_json::Value = serde_json::from_str(&told.json()).expect("JSON");
    for key in ["id", "at"] {
        assert!(written[key].is_string());
        written[key] = shown[key].clone();
    }
    assert_eq!(
        serde_json::to_string_pretty(&written).expect("text"),
        serde_json::to_string_pretty(&shown).expect("text")
    );
}

/// A story may quote mail. No text of it ends a line of the mail, moves a cursor or leaves its place in the JSON.
#[test]
fn text_from_mail_is_escaped() {
    let title = "x\r\nBcc: eve@a.test\r\n\r\n\u{1b}[2J\u{202e}\"} end";
    let told = begun(Story {
        title: title.to_owned(),
        ..story(1)
    });
    for text in [told.headline(), told.text(), told.json()] {
        assert!(!text.contains(['\r', '\u{1b}', '\u{202e}']), "{text:?}");
        assert!(!text.contains("\nBcc:"), "{text:?}");
    }
    assert_eq!(told.json().lines().count(), 1);
    let json: serde_json::Value = serde_json::from_str(&told.json()).expect("JSON");
    assert_eq!(json["story"]["title"], title);
}
