//! `[[engine]]`: the keys that all kinds have, and the keys of the kinds `rules` and `attachment`, whose engines run in the
//! relay's process. The other files have the keys of the other kinds: `network` those with a server, `command` that with a
//! program, `resolver` those that query name servers (`dns` and `auth`).

mod command;
mod network;
mod resolver;

use std::path::PathBuf;
use std::time::Duration;

use crate::config::reader::Section;
use crate::config::units::Wrong;
use crate::config::value::plain;
use crate::message::Rights;
use crate::scan::engine::{AttachmentSettings, Kind};
use crate::scan::{GuardSettings, Settings};
use crate::verdict::EngineClass;

use super::guard::guard_of_engine;
use super::{HOUR, secs};

/// Shortest duration of an engine's settings: 10 ms. A shorter one has no practical use.
const DURATION_MIN: Duration = Duration::from_millis(10);

/// The kinds of engines.
#[derive(Debug, Clone, Copy, PartialEq)]
enum KindName {
    Clamd,
    Spamd,
    Rspamd,
    Http,
    Icap,
    Command,
    Milter,
    Rules,
    Attachment,
    Dns,
    Auth,
}

const KINDS: [(&str, KindName); 11] = [
    ("clamd", KindName::Clamd),
    ("spamd", KindName::Spamd),
    ("rspamd", KindName::Rspamd),
    ("http", KindName::Http),
    ("icap", KindName::Icap),
    ("milter", KindName::Milter),
    ("command", KindName::Command),
    ("rules", KindName::Rules),
    ("attachment", KindName::Attachment),
    ("dns", KindName::Dns),
    ("auth", KindName::Auth),
];

/// Words for the changes of messages that an engine may request.
const EDIT_RIGHTS: [(&str, Rights); 2] = [("none", Rights::None), ("fields", Rights::Fields)];

/// Defaults of the keys for one kind: the usual purpose of its engines, and the usual cost of one call.
struct KindDefaults {
    class: EngineClass,
    timeout: Duration,
    limit: Duration,
    slow: Duration,
    probe: Duration,
    attempts: usize,
    slots: usize,
    max_size: u64,
}

impl KindName {
    /// The defaults of this kind, with the reasons for unusual values.
    fn defaults(self) -> KindDefaults {
        let of = |class, attempts, slots, mebibytes: u64| KindDefaults {
            class,
            timeout: secs(5),
            limit: secs(150),
            slow: Duration::from_millis(500),
            probe: secs(10),
            attempts,
            slots,
            max_size: mebibytes << 20,
        };
        match self {
            Self::Clamd => of(EngineClass::Av, 2, 10, 25),
            // Its rules query name servers and wait seconds for answers. Its own limit is --timeout-child, 300 seconds.
            Self::Spamd => KindDefaults {
                timeout: secs(20),
                limit: secs(330),
                slow: secs(5),
                ..of(EngineClass::Spam, 2, 5, 25)
            },
            // rspamd itself gives up after task_timeout, 8 seconds.
            Self::Rspamd => KindDefaults {
                timeout: secs(10),
                limit: secs(30),
                slow: secs(2),
                ..of(EngineClass::Spam, 2, 16, 50)
            },
            Self::Http => KindDefaults {
                timeout: secs(10),
                limit: secs(60),
                slow: secs(2),
                ..of(EngineClass::Av, 2, 10, 25)
            },
            Self::Icap => of(EngineClass::Av, 2, 10, 25),
            // Many milters query name servers.
            Self::Milter => KindDefaults {
                timeout: secs(10),
                limit: secs(60),
                slow: secs(2),
                ..of(EngineClass::Auth, 2, 10, 50)
            },
            // The relay kills the program after `limit`. A server ends a scan by a timeout of its own, and `limit` has to be
            // longer than that; a program needs no such margin.
            Self::Command => KindDefaults {
                timeout: secs(10),
                limit: secs(30),
                slow: secs(2),
                ..of(EngineClass::Av, 1, 2, 25)
            },
            Self::Rules => of(EngineClass::Av, 1, 4, 50),
            Self::Attachment => of(EngineClass::Content, 1, 4, 50),
            // A name server answers at once from its cache, but without a cached answer it queries several other servers.
            // Public lists limit the number of queries: a probe pair per minute makes 2,880 queries a day.
            Self::Dns => KindDefaults {
                limit: secs(10),
                slow: secs(2),
                probe: secs(60),
                ..of(EngineClass::Spam, 1, 100, 50)
            },
            // SPF needs up to ten queries, one after the other (RFC 7208 4.6.4).
            Self::Auth => KindDefaults {
                timeout: secs(10),
                limit: secs(20),
                slow: secs(5),
                ..of(EngineClass::Auth, 1, 100, 50)
            },
        }
    }
}

/// Extensions of files that run when opened, and of disk images that hide such files from mail programs.
const BLOCKED_EXTENSIONS: [&str; 38] = [
    "ade", "adp", "bat", "chm", "cmd", "com", "cpl", "exe", "hta", "ins", "isp", "jar", "js",
    "jse", "lib", "lnk", "mde", "msc", "msi", "msp", "mst", "nsh", "pif", "ps1", "scr", "sct",
    "shb", "sys", "vb", "vbe", "vbs", "vxd", "wsc", "wsf", "wsh", "iso", "img", "vhd",
];

/// Media types of programs for Windows.
const BLOCKED_TYPES: [&str; 2] = [
    "application/x-msdownload",
    "application/vnd.microsoft.portable-executable",
];

/// Reads an `[[engine]]`; `guard` are the settings of `[guard]`. `None` if its kind is missing or unknown; that problem is in the list of problems.
pub(in crate::config) fn engine(
    mut section: Section<'_>,
    hostname: &str,
    guard: &GuardSettings,
) -> Option<Settings> {
    let name = section.name("\"clamd\"");
    section.require("kind", "\"clamd\"");
    let kind = section.choice("kind", None, &KINDS)?;
    let defaults = kind.defaults();
    let classes = EngineClass::ALL.map(|class| (class.as_str(), class));
    let class = section
        .choice("class", Some(defaults.class), &classes)
        .unwrap_or(defaults.class);
    let (timeout, limit, slow) = times(&mut section, &defaults);
    let wait = section.duration("wait", secs(1), DURATION_MIN..=secs(HOUR));
    let probe = section.duration("probe", defaults.probe, secs(0)..=secs(HOUR));
    let days = secs(24 * HOUR);
    let age = section.duration("signature_age", days * 3, secs(0)..=days * 365);
    let attempts = section.count("attempts", defaults.attempts, 1..=10);
    let slots = section.count("slots", defaults.slots, 1..=10_000);
    let max_size = section
        .size("max_size", Some(defaults.max_size), 1024..=2 << 30)
        .unwrap_or(defaults.max_size);
    let weight = section
        .number("weight", Some(1.0), 0.0..=1000.0)
        .unwrap_or(1.0);
    let guard = guard_of_engine(&mut section, guard);
    let read = |kind: KindName, section: &mut Section<'_>| {
        of_kind(kind, section, (timeout, class, hostname))
    };
    let (edits, kind) = read(kind, &mut section);
    // For each key that this kind does not have, `finish_kind` runs the reads of every kind on an empty section: the kinds
    // that ask for the key are named in the problem ("is a key of kind = …"). Their results are of no use.
    section.finish_kind(&KINDS, |kind, section| drop(read(kind, section)));
    Some(Settings {
        name: name.into(),
        class,
        timeout,
        limit,
        slow,
        wait,
        probe: Some(probe).filter(|probe| !probe.is_zero()),
        signature_age: Some(age).filter(|age| !age.is_zero()),
        attempts: u32::try_from(attempts).unwrap_or(1),
        slots,
        max_size,
        weight,
        edits,
        guard,
        kind,
    })
}

/// Reads the keys that only some kinds have: `edits`, and the keys of this kind's settings.
fn of_kind(
    kind: KindName,
    section: &mut Section<'_>,
    (timeout, class, hostname): (Duration, EngineClass, &str),
) -> (Rights, Kind) {
    let edits = match kind {
        KindName::Rspamd | KindName::Milter => {
            section.choice("edits", Some(Rights::None), &EDIT_RIGHTS)
        }
        KindName::Auth => section.choice("edits", Some(Rights::Fields), &EDIT_RIGHTS),
        _ => None,
    };
    let kind = match kind {
        KindName::Clamd => network::clamd(section, timeout),
        KindName::Spamd => network::spamd(section, timeout),
        KindName::Rspamd => network::rspamd(section, timeout, hostname),
        KindName::Http => network::http(section, timeout, hostname),
        KindName::Icap => network::icap(section, timeout),
        KindName::Command => command::command(section, hostname),
        KindName::Milter => network::milter(section, timeout, hostname),
        KindName::Rules => rules(section),
        KindName::Attachment => attachment(section),
        KindName::Dns => resolver::dns(section, timeout, class),
        KindName::Auth => resolver::auth(section, timeout, class),
    };
    (edits.unwrap_or_default(), kind)
}

/// Reads `timeout`, `limit` and `slow`, which depend on each other.
fn times(section: &mut Section<'_>, defaults: &KindDefaults) -> (Duration, Duration, Duration) {
    let timeout = section.duration("timeout", defaults.timeout, DURATION_MIN..=secs(HOUR));
    let limit = defaults.limit.max(timeout);
    let limit = section.duration("limit", limit, DURATION_MIN..=secs(24 * HOUR));
    if limit < timeout {
        section.complain(
            "limit",
            "is shorter than timeout",
            "write the engine's own limit for one scan, at least timeout",
        );
    }
    let slow = section.duration(
        "slow",
        defaults.slow.min(timeout),
        DURATION_MIN..=secs(HOUR),
    );
    if slow > timeout {
        section.complain(
            "slow",
            "is longer than timeout",
            "write a few times the usual duration of a scan, at most timeout",
        );
    }
    (timeout, limit, slow)
}

/// Reads the keys of the kind `rules`.
fn rules(section: &mut Section<'_>) -> Kind {
    let builtin = section.flag("builtin", true);
    let written = section.list("paths", Some(Vec::new()), plain, |text| Ok(text.to_owned()));
    let paths: Vec<PathBuf> = written.iter().map(|text| section.resolve(text)).collect();
    for path in &paths {
        section.must_be_readable("paths", path);
    }
    if !builtin && paths.is_empty() {
        section.complain(
            "builtin",
            "is false and paths is empty: the engine would have no rules",
            "add paths = [\"…\"], or write builtin = true",
        );
    }
    Kind::Rules { builtin, paths }
}

/// Reads the keys of the kind `attachment`.
fn attachment(section: &mut Section<'_>) -> Kind {
    let owned = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
    let block_extensions = section.list(
        "block_extensions",
        Some(owned(&BLOCKED_EXTENSIONS)),
        plain,
        |text| {
            let bare = text.trim_start_matches(['*', '.']).to_lowercase();
            match bare.is_empty() || text.starts_with(['*', '.']) || text.contains('/') {
                true => Err(Wrong::new(
                    format!("{text:?} is not a file name extension"),
                    match bare.is_empty() {
                        true => "write \"exe\"".to_owned(),
                        false => format!("write {bare:?}"),
                    },
                )),
                false => Ok(bare),
            }
        },
    );
    let block_types =
        section.list(
            "block_types",
            Some(owned(&BLOCKED_TYPES)),
            plain,
            |text| match text.split_once('/') {
                Some((kind, sub)) if !kind.is_empty() && !sub.is_empty() => Ok(text.to_lowercase()),
                _ => Err(Wrong::new(
                    format!("{text:?} is not a media type"),
                    "write \"application/x-msdownload\" or \"image/*\"",
                )),
            },
        );
    Kind::Attachment(AttachmentSettings {
        block_extensions,
        block_types,
        block_encrypted: section.flag("block_encrypted", false),
        max_depth: section.count("max_depth", 16, 1..=64),
        max_parts: section.count("max_parts", 1000, 1..=100_000),
        max_archive_files: section.count("max_archive_files", 10_000, 1..=1_000_000),
        max_ratio: section.count("max_ratio", 200, 2..=1_000_000) as u64,
    })
}
