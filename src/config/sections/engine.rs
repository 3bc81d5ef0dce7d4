//! `[[engine]]`.

use std::path::PathBuf;

use crate::config::reader::Section;
use crate::config::units::Wrong;
use crate::config::value::plain;
use crate::scan::Settings;
use crate::scan::engine::{AttachmentSettings, ClamdAddress, Kind};
use crate::verdict::EngineClass;

use super::{HOUR, host_and_port, secs};

/// The shortest time that means something.
const SHORTEST: std::time::Duration = std::time::Duration::from_millis(10);

/// The kinds, and what depends on them: the class that most of them are used for, and what one call costs.
#[derive(Debug, Clone, Copy, PartialEq)]
enum KindName {
    Clamd,
    Rules,
    Attachment,
}

const KINDS: [(&str, KindName); 3] = [
    ("clamd", KindName::Clamd),
    ("rules", KindName::Rules),
    ("attachment", KindName::Attachment),
];

/// Keys that only one kind has, for the answer to a key in the wrong place.
const OWN_KEYS: [(&str, &[&str]); 3] = [
    ("clamd", &["address", "connect_timeout"]),
    ("rules", &["builtin", "paths"]),
    (
        "attachment",
        &[
            "block_extensions",
            "block_types",
            "block_encrypted",
            "max_depth",
            "max_parts",
            "max_archive_files",
            "max_ratio",
        ],
    ),
];

/// Extensions that run something when opened, and archives that hide them from mail programs.
const EXTENSIONS: [&str; 38] = [
    "ade", "adp", "bat", "chm", "cmd", "com", "cpl", "exe", "hta", "ins", "isp", "jar", "js",
    "jse", "lib", "lnk", "mde", "msc", "msi", "msp", "mst", "nsh", "pif", "ps1", "scr", "sct",
    "shb", "sys", "vb", "vbe", "vbs", "vxd", "wsc", "wsf", "wsh", "iso", "img", "vhd",
];

const TYPES: [&str; 2] = [
    "application/x-msdownload",
    "application/vnd.microsoft.portable-executable",
];

/// `None` when the kind is not known, which has been complained about.
pub(in crate::config) fn engine(mut section: Section<'_>) -> Option<Settings> {
    let name = section.name("\"clamd\"");
    section.require("kind", "\"clamd\"");
    let kind = section.choice("kind", None, &KINDS)?;
    let classes = EngineClass::ALL.map(|class| (class.as_str(), class));
    let (class, attempts, slots, max_size) = match kind {
        KindName::Clamd => (EngineClass::Av, 2, 10, 25 << 20),
        KindName::Rules => (EngineClass::Av, 1, 4, 50 << 20),
        KindName::Attachment => (EngineClass::Content, 1, 4, 50 << 20),
    };
    let class = section
        .choice("class", Some(class), &classes)
        .unwrap_or(class);
    let timeout = section.duration("timeout", secs(5), SHORTEST..=secs(HOUR));
    let limit = section.duration("limit", secs(150).max(timeout), SHORTEST..=secs(24 * HOUR));
    if limit < timeout {
        section.complain(
            "limit",
            "is shorter than timeout",
            "write how long the engine itself may work on one message, at least timeout",
        );
    }
    let half = std::time::Duration::from_millis(500);
    let slow = section.duration("slow", half.min(timeout), SHORTEST..=secs(HOUR));
    if slow > timeout {
        section.complain(
            "slow",
            "is longer than timeout",
            "write a few times what a scan usually takes, and less than timeout",
        );
    }
    let wait = section.duration("wait", secs(1), SHORTEST..=secs(HOUR));
    let probe = section.duration("probe", secs(10), secs(0)..=secs(HOUR));
    let attempts = section.count("attempts", attempts, 1..=10);
    let slots = section.count("slots", slots, 1..=10_000);
    let max_size = section
        .size("max_size", Some(max_size), 1024..=2 << 30)
        .unwrap_or(max_size);
    let weight = section
        .number("weight", Some(1.0), 0.0..=1000.0)
        .unwrap_or(1.0);
    let kind = match kind {
        KindName::Clamd => clamd(&mut section, timeout),
        KindName::Rules => rules(&mut section),
        KindName::Attachment => attachment(&mut section),
    };
    section.finish(&OWN_KEYS);
    Some(Settings {
        name: name.into(),
        class,
        timeout,
        limit,
        slow,
        wait,
        probe: Some(probe).filter(|probe| !probe.is_zero()),
        attempts: u32::try_from(attempts).unwrap_or(1),
        slots,
        max_size,
        weight,
        kind,
    })
}

fn clamd(section: &mut Section<'_>, timeout: std::time::Duration) -> Kind {
    section.require_items("address", "[\"unix:/run/clamav/clamd.ctl\"]");
    let show = |address: &ClamdAddress| match address {
        ClamdAddress::Tcp(text) => text.clone(),
        ClamdAddress::Unix(path) => format!("unix:{}", path.display()),
        ClamdAddress::Socket(address) => address.to_string(),
    };
    let addresses = section.list("address", None, show, clamd_address);
    let connect_timeout = section.duration("connect_timeout", secs(1), SHORTEST..=secs(HOUR));
    if connect_timeout > timeout {
        section.complain(
            "connect_timeout",
            "is longer than timeout, which includes it",
            "write less than timeout",
        );
    }
    Kind::Clamd {
        addresses,
        connect_timeout,
    }
}

fn clamd_address(text: &str) -> Result<ClamdAddress, Wrong> {
    if let Some(path) = text.strip_prefix("unix:") {
        return match path.starts_with('/') {
            true => Ok(ClamdAddress::Unix(path.into())),
            false => Err(Wrong::new(
                format!("{text:?} is not an absolute path"),
                "write \"unix:/run/clamav/clamd.ctl\"",
            )),
        };
    }
    if text.starts_with('/') {
        return Err(Wrong::new(
            format!("{text:?} is not a host with a port"),
            format!("write \"unix:{text}\""),
        ));
    }
    match text.parse() {
        Ok(address) => Ok(ClamdAddress::Socket(address)),
        Err(_) => host_and_port(text).map(ClamdAddress::Tcp),
    }
}

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

fn attachment(section: &mut Section<'_>) -> Kind {
    let owned = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
    let block_extensions = section.list(
        "block_extensions",
        Some(owned(&EXTENSIONS)),
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
    let block_types = section.list("block_types", Some(owned(&TYPES)), plain, |text| match text
        .split_once('/')
    {
        Some((kind, sub)) if !kind.is_empty() && !sub.is_empty() => Ok(text.to_lowercase()),
        _ => Err(Wrong::new(
            format!("{text:?} is not a media type"),
            "write \"application/x-msdownload\" or \"image/*\"",
        )),
    });
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
