//! Keys of engines that are programs of this machine.

use toml::de::DeValue;

use crate::config::reader::Section;
use crate::config::sections::{HOUR, arguments, check_program, secs};
use crate::config::units::Wrong;
use crate::config::value::{expected, shown};
use crate::scan::engine::{
    CommandSettings, Exit, FILE_PLACEHOLDER, Kind, Limits, Lines, NOT_RUN_EXIT_CODES, Reading,
    Saying,
};

use crate::verdict::FindingKind;

use super::network::{objection, probe_with, reading, user};

/// Form of a program's answer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Output {
    Lines,
    Json,
}

pub(super) fn command(section: &mut Section<'_>, hostname: &str) -> Kind {
    let words = [("lines", Output::Lines), ("json", Output::Json)];
    let output = section.choice("output", Some(Output::Lines), &words);
    section.disown("id_at");
    Kind::Command(CommandSettings {
        command: program(section),
        hostname: hostname.to_owned(),
        saying: match output {
            Some(Output::Json) => Saying::Json(answer(section)),
            Some(Output::Lines) | None => Saying::Exit(exit(section)),
        },
        user: user(section),
        limits: limits(section),
        probe_with: probe_with(section),
    })
}

/// The program and its arguments. The program must exist and be executable.
fn program(section: &mut Section<'_>) -> Vec<String> {
    let command = arguments(section, "[\"/usr/local/bin/scan\", \"--quiet\"]");
    match command.first() {
        Some(program) if program.starts_with('/') && program.contains(FILE_PLACEHOLDER) => section
            .complain(
                "command",
                "the message would be run as a program",
                format!(
                    "write the path of a program first, and \"{FILE_PLACEHOLDER}\" as an argument"
                ),
            ),
        Some(program) => check_program(section, program),
        None => {}
    }
    command
}

/// Reads the keys of answers in JSON. There is no `id_at`: each message has a process of its own, so an answer cannot be
/// about another message.
fn answer(section: &mut Section<'_>) -> Reading {
    section.refuse(
        &["exit_clean", "exit_found", "pattern"],
        "is used with output = \"lines\" only",
        "remove it, or write output = \"lines\"",
    );
    let reading = reading(section);
    if reading.id_at.is_some() {
        section.complain(
            "id_at",
            "is used with kind = \"http\" only",
            "remove it: each message has a process of its own",
        );
    }
    reading
}

/// Reads the keys of answers by exit code and lines.
fn exit(section: &mut Section<'_>) -> Exit {
    section.refuse(
        &[
            "verdict_at",
            "bad",
            "clean",
            "name_at",
            "score_at",
            "signatures_at",
            "id_at",
        ],
        "is used with output = \"json\" only",
        "remove it, or write output = \"json\"",
    );
    let clean = codes(section, "exit_clean", 0);
    let found = codes(section, "exit_found", 1);
    if let Some(code) = [&clean, &found]
        .into_iter()
        .flatten()
        .find(|code| NOT_RUN_EXIT_CODES.contains(code))
    {
        let key = if clean.contains(code) {
            "exit_clean"
        } else {
            "exit_found"
        };
        section.complain(
            key,
            format!("{code} is the exit code of a program that could not be run"),
            "let the program use another exit code",
        );
    }
    if let Some(both) = found.iter().find(|code| clean.contains(code)) {
        section.complain(
            "exit_found",
            format!("{both} is in exit_clean as well"),
            "write each exit code in only one of the lists",
        );
    }
    let pattern = section.optional_text("pattern");
    if let Some(Err(wrong)) = pattern.as_deref().map(Lines::new) {
        section.complain(
            "pattern",
            wrong,
            "write a regular expression, such as '^(?<name>.+) FOUND$'",
        );
    }
    let (bad_kind, bad_score) = objection(section, FindingKind::Malware);
    Exit {
        clean,
        found,
        pattern,
        bad_kind,
        bad_score,
    }
}

/// Reads a list of exit codes.
fn codes(section: &mut Section<'_>, key: &'static str, default: u8) -> Vec<u8> {
    let show = |codes: &Vec<u8>| {
        let codes: Vec<String> = codes.iter().map(u8::to_string).collect();
        format!("[{}]", codes.join(", "))
    };
    let read = section.read(key, Some(vec![default]), show, |value| {
        let DeValue::Array(items) = value else {
            return Err(expected(value, "a list of exit codes: [0]"));
        };
        let code = |item: &DeValue<'_>| match item {
            DeValue::Integer(number) => u8::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        let codes = items.iter().map(|item| {
            code(item.get_ref()).ok_or_else(|| {
                Wrong::new(
                    format!("{} is not an exit code", shown(item.get_ref())),
                    "write 0 to 255, without quotes",
                )
            })
        });
        let codes: Vec<u8> = codes.collect::<Result<_, _>>()?;
        match codes.is_empty() {
            true => Err(Wrong::new(
                "is empty: the program could report only one result",
                "write the exit codes of the program",
            )),
            false => Ok(codes),
        }
    });
    read.unwrap_or_default()
}

fn limits(section: &mut Section<'_>) -> Limits {
    let size = |section: &mut Section<'_>, key, default: u64| {
        let most = 1 << 44;
        let size = section.size(key, Some(default), 1 << 20..=most);
        size.unwrap_or(default)
    };
    Limits {
        cpu: section.duration("max_cpu", secs(10), secs(1)..=secs(HOUR)),
        memory: size(section, "max_memory", 1 << 30),
        file_size: size(section, "max_file_size", 64 << 20),
    }
}
