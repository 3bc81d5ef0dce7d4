//! The explanation of a key: what the reference says about it, what the code allows, and which value is in force where.

use std::cell::RefCell;
use std::path::Path;

use serde::Serialize;

use super::change::at_start;
use super::change::presentable;
use super::document::{Log, Setting};
use super::problem::nearest;
use super::reference::{Texts, named, uncommented, without_name};
use super::{Problems, SECTION_NAMES, build, file_text};

/// What `explain` found.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The key or section, as the reference names it: `guard.canaries`, `engine.timeout`, `guard`.
    pub name: String,
    /// What the reference says about the section; empty for a key, whose text is in [`keys`](Self::keys).
    pub text: String,
    /// Whether [`name`](Self::name) is a section.
    pub is_section: bool,
    /// The key, or all keys of the section in the order of the reference.
    pub keys: Vec<ExplainedKey>,
    /// Number of problems of the configuration. A key with a problem is shown at its default.
    pub problems: usize,
}

/// One key.
#[derive(Debug, Serialize)]
pub struct ExplainedKey {
    /// The key, as the reference names it.
    pub key: String,
    /// The defaults; several if they depend on the kind. Empty if the key has none.
    pub defaults: Vec<DefaultValue>,
    /// The key whose value in force is the default, if it is another one: that of `[guard]` for an engine.
    pub default_of: Option<String>,
    /// The range or the words that are allowed; none if any value of the unit is.
    pub range: Option<String>,
    /// What the value is: a whole number, a duration with its units …
    pub unit: String,
    /// What the reference says about the key: its meaning, and what a larger and a smaller value trade.
    pub text: String,
    /// Whether a change needs a restart; else a reload puts it in force.
    pub needs_restart: bool,
    /// The values in force, one for each section of a list.
    pub in_force: Vec<ValueInForce>,
}

/// A default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DefaultValue {
    /// The value as TOML.
    pub value: String,
    /// The kinds of sections with this default; empty if all kinds have it.
    pub kinds: Vec<String>,
}

/// A value in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ValueInForce {
    /// The section of a list: `engine clamd`. None for a section that exists once.
    pub section: Option<String>,
    /// The value as TOML; none if the key is not set and has no default.
    pub value: Option<String>,
    /// The key that sets the value, if it is another one: an engine without the key has the value of `[guard]`.
    pub set_by: Option<String>,
    /// The line of the file that sets the value; none for the default.
    pub line: Option<usize>,
}

/// Why nothing was explained.
#[derive(Debug, thiserror::Error)]
pub enum NotExplained {
    /// The file cannot be read.
    #[error("{0}")]
    File(#[from] Problems),
    /// There is no such key or section; the text names the nearest one.
    #[error("{0}")]
    Unknown(String),
}

/// Explains a key or a section under the configuration of `path`; under the defaults without a path. A section name may stand
/// within the key (`engine.clamd.timeout`). A configuration with problems is no error: its problems may be the reason to ask.
/// Blocks on the disk like [`load`](super::load).
///
/// # Errors
/// The file cannot be read, or there is no such key.
pub fn explain(path: Option<&Path>, asked: &str) -> Result<Explanation, NotExplained> {
    let text = match path {
        Some(path) => file_text(path).map_err(|what| Problems::of_file(path, what))?,
        None => String::new(),
    };
    let base = path.and_then(Path::parent).unwrap_or(Path::new(""));
    let (all, _) = settings(&uncommented(), base);
    let (mut given, problems) = settings(&text, base);
    if given.is_empty() {
        // Not TOML: nothing of it is in force.
        (given, _) = settings("", base);
    }
    let texts = Texts::new();
    let known = Known::new(&all, &texts);
    let (name, only) = known.find(asked)?;
    let is_section = !known.keys.contains(&name);
    let of_it = |key: &&String| **key == name || is_section && section_of(key) == name;
    let keys = known.keys.iter().filter(of_it);
    let keys = keys.map(|key| explained(key, only.as_deref(), (&all, &given), &texts));
    Ok(Explanation {
        text: match is_section {
            true => texts.about(&name).to_owned(),
            false => String::new(),
        },
        is_section,
        keys: keys.collect(),
        name,
        problems,
    })
}

/// The settings of a text and the number of its problems.
fn settings(text: &str, base: &Path) -> (Vec<Setting>, usize) {
    let log = RefCell::new(Log::at(base));
    build(text, "explained".into(), &log);
    let log = log.into_inner();
    let problems = log.problems.len();
    (log.into_settings(), problems)
}

/// `policy.missing` of `policy.missing.timeout`.
fn section_of(key: &str) -> &str {
    key.rsplit_once('.').map_or("", |(section, _)| section)
}

/// The names that can be asked for.
struct Known {
    /// Every key, in the order of the reference.
    keys: Vec<String>,
    sections: Vec<String>,
}

impl Known {
    fn new(all: &[Setting], texts: &Texts) -> Self {
        let mut keys: Vec<String> = Vec::new();
        for key in all.iter().map(|setting| without_name(&setting.key)) {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys.sort_by_key(|key| texts.place(key));
        let mut sections: Vec<String> = SECTION_NAMES.map(str::to_owned).into();
        for section in keys.iter().map(|key| section_of(key)) {
            if !sections.iter().any(|known| known == section) {
                sections.push(section.to_owned());
            }
        }
        Self { keys, sections }
    }

    /// The name as the reference writes it, and the section of a list that was asked for.
    fn find(&self, asked: &str) -> Result<(String, Option<String>), NotExplained> {
        let is_known = |name: &String| self.keys.contains(name) || self.sections.contains(name);
        let plain = asked.trim_matches(['[', ']']).to_owned();
        if is_known(&plain) {
            return Ok((plain, None));
        }
        let bare = without_name(&plain);
        if is_known(&bare)
            && let Some((_, name, _)) = named(&plain)
        {
            return Ok((bare, Some(name.to_owned())));
        }
        Err(NotExplained::Unknown(self.unknown(asked, &bare)))
    }

    fn unknown(&self, asked: &str, bare: &str) -> String {
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let same: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        let same = same.into_iter().filter(|key| last(key) == last(bare));
        let all = self.keys.iter().chain(&self.sections).map(String::as_str);
        // A right key of a wrong section is meant more often than a word that is spelled like another.
        match (same.collect::<Vec<_>>().join(", "), nearest(bare, all)) {
            (same, _) if !same.is_empty() => format!("no key {asked:?}; did you mean {same}?"),
            (_, Some(meant)) => format!("no key {asked:?}; did you mean {meant}?"),
            _ => format!(
                "no key {asked:?}; the sections are {}",
                self.sections.join(", ")
            ),
        }
    }
}

fn explained(
    key: &str,
    only: Option<&str>,
    (all, given): (&[Setting], &[Setting]),
    texts: &Texts,
) -> ExplainedKey {
    let is_it = |setting: &&Setting| without_name(&setting.key) == key;
    let first = all.iter().find(is_it);
    // An engine's key of the guard has the meaning and the default of that in `[guard]`.
    let of_guard = key
        .strip_prefix("engine.")
        .map(|key| format!("guard.{key}"));
    let of_guard = of_guard.filter(|key| all.iter().any(|one| one.key == *key));
    let about = of_guard.as_deref().unwrap_or(key);
    ExplainedKey {
        key: key.to_owned(),
        defaults: defaults(all, about),
        default_of: of_guard.clone(),
        range: first.and_then(|setting| setting.allowed.clone()),
        unit: first.map_or("", |setting| setting.unit).to_owned(),
        text: match texts.about(about) {
            // The text of the section is about all its keys.
            "" => texts.about(section_of(about)).to_owned(),
            text => text.to_owned(),
        },
        needs_restart: at_start(key),
        in_force: in_force(given, key, only),
    }
}

/// The defaults of a key in the sections of the reference, each with the kinds that have it.
fn defaults(all: &[Setting], key: &str) -> Vec<DefaultValue> {
    let mut defaults: Vec<DefaultValue> = Vec::new();
    for setting in all.iter().filter(|one| without_name(&one.key) == key) {
        let Some(value) = &setting.default else {
            continue;
        };
        let kind_key = format!("{}.kind", section_of(&setting.key));
        let kind = all.iter().find(|one| one.key == kind_key);
        let kind = kind.and_then(|kind| kind.value.clone()).unwrap_or_default();
        let kind = kind.trim_matches('"').to_owned();
        match defaults.iter_mut().find(|known| known.value == *value) {
            Some(known) if known.kinds.contains(&kind) => {}
            Some(known) => known.kinds.push(kind),
            None => defaults.push(DefaultValue {
                value: value.clone(),
                kinds: vec![kind],
            }),
        }
    }
    if let [one] = &mut defaults[..] {
        one.kinds.clear();
    }
    defaults
}

/// The values in force: of the section, or of each section of the list (`only` one of them). Keys of engines that override
/// `[guard]` are shown with it.
fn in_force(given: &[Setting], key: &str, only: Option<&str>) -> Vec<ValueInForce> {
    let mut values = Vec::new();
    for setting in given.iter().filter(|one| without_name(&one.key) == key) {
        let name = named(&setting.key);
        if only.is_some_and(|only| name.is_none_or(|(_, name, _)| name != only)) {
            continue;
        }
        let section = name.map(|(list, name, _)| format!("{list} {name}"));
        // Only an engine has keys of the guard. A search for each of many rules would take long.
        let of_engine = name.filter(|(list, ..)| *list == "engine" && setting.value.is_none());
        let of_guard = of_engine.and_then(|(_, _, key)| {
            let key = format!("guard.{key}");
            given.iter().find(|one| one.key == key)
        });
        let shown = of_guard.unwrap_or(setting);
        values.push(ValueInForce {
            section,
            value: shown
                .value
                .as_ref()
                .map(|value| presentable(&shown.key, value)),
            set_by: of_guard.map(|guard| guard.key.clone()),
            line: shown.place.map(|place| place.line),
        });
    }
    if let Some(of_engine) = key.strip_prefix("guard.") {
        let of_engine = format!("engine.{of_engine}");
        let own = in_force(given, &of_engine, None).into_iter();
        values.extend(own.filter(|value| value.set_by.is_none()));
    }
    values
}
