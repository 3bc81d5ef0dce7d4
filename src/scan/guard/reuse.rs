//! Answers that are used again: for the same content, while the signatures are the same.
//!
//! An answer that comes after its caller has given up ends here too, and waits for the message to be scanned again.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::message::{Identity, MessageId, edit};
use crate::scan::engine::EngineAnswer;
use crate::verdict::{Answer, Finding};

/// How long an answer with nothing found holds: signatures get better.
const CLEAN: Duration = Duration::from_secs(3600);
/// The same where the engine does not tell the version of its signatures.
const UNVERSIONED: Duration = Duration::from_secs(300);
/// How long a finding holds.
const FOUND: Duration = Duration::from_secs(86_400);
/// Octets of what an answer wants done to its message, beyond which it is not kept.
const WANTED: usize = 4096;
/// Answers in each of two generations.
const ENTRIES: usize = 10_000;

/// What an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// All messages of that content: for engines that look at nothing else.
    Content(Identity),
    /// One message: for engines that look at its envelope and trace fields too.
    Message(MessageId),
}

#[derive(Debug, Clone)]
struct Entry {
    answer: EngineAnswer,
    until: Instant,
}

/// The answers of one engine.
#[derive(Debug)]
pub(super) struct Reuse {
    generations: [HashMap<Key, Entry>; 2],
    signatures: Option<String>,
}

impl Reuse {
    pub(super) fn new() -> Self {
        Self {
            generations: Default::default(),
            signatures: None,
        }
    }

    /// The answer about the same content, if one holds.
    pub(super) fn get(&self, now: Instant, key: Key) -> Option<EngineAnswer> {
        let [new, old] = &self.generations;
        let entry = new.get(&key).or(old.get(&key))?;
        (now < entry.until).then(|| entry.answer.clone())
    }

    /// Keeps an answer. Returns whether the signatures have changed since the last one, which ends all others.
    pub(super) fn put(&mut self, now: Instant, key: Key, answer: &EngineAnswer) -> bool {
        let changed = answer.signatures.is_some() && answer.signatures != self.signatures;
        let news = changed && self.signatures.is_some();
        if changed {
            self.generations = Default::default();
            self.signatures.clone_from(&answer.signatures);
        }
        if let Some(holds) = holds(answer) {
            if self.generations[0].len() >= ENTRIES {
                self.generations.swap(0, 1);
                self.generations[0].clear();
            }
            let entry = Entry {
                answer: answer.clone(),
                until: now + holds,
            };
            self.generations[0].insert(key, entry);
        }
        news
    }
}

/// How long an answer may be used for the same content; not at all if it is none.
fn holds(answer: &EngineAnswer) -> Option<Duration> {
    let Answer::Answered(findings) = &answer.answer else {
        return None;
    };
    // All that are kept are bounded by their number.
    if edit::octets(&answer.wanted) > WANTED {
        return None;
    }
    Some(match (is_bad(findings), &answer.signatures) {
        (true, _) => FOUND,
        (false, Some(_)) => CLEAN,
        (false, None) => UNVERSIONED,
    })
}

/// Whether the engine objects to something.
pub(super) fn is_bad(findings: &[Finding]) -> bool {
    findings.iter().any(|f| f.kind.is_objection())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::FindingKind;

    fn answer(signatures: Option<&str>, found: bool) -> EngineAnswer {
        let finding = Finding::new(FindingKind::Malware, "Eicar", 10.0);
        EngineAnswer {
            answer: Answer::Answered(found.then_some(finding).into_iter().collect()),
            replica: None,
            signatures: signatures.map(str::to_owned),
            wanted: Vec::new(),
        }
    }

    const KEY: Key = Key::Content(Identity([7; 32]));

    /// What was clean by yesterday's signatures may be known by today's.
    #[tokio::test(start_paused = true)]
    async fn new_signatures_end_all_answers() {
        let now = Instant::now();
        let mut reuse = Reuse::new();
        assert!(!reuse.put(now, KEY, &answer(Some("1"), false)), "the first");
        assert!(reuse.get(now, KEY).is_some());
        let other = Key::Message(MessageId::new());
        assert!(reuse.put(now, other, &answer(Some("2"), false)), "new ones");
        assert!(reuse.get(now, KEY).is_none());
        assert!(reuse.get(now, other).is_some());
    }

    /// A finding holds longer than its absence, and its absence longest where new signatures would be noticed.
    #[tokio::test(start_paused = true)]
    async fn answers_expire() {
        let now = Instant::now();
        for (signatures, found, holds) in [
            (None, false, UNVERSIONED),
            (Some("1"), false, CLEAN),
            (None, true, FOUND),
        ] {
            let mut reuse = Reuse::new();
            reuse.put(now, KEY, &answer(signatures, found));
            let last = now + holds - Duration::from_secs(1);
            assert!(reuse.get(last, KEY).is_some(), "{signatures:?} {found}");
            assert!(reuse.get(now + holds, KEY).is_none());
        }
    }

    /// P4: what is no answer is never used as one.
    #[tokio::test(start_paused = true)]
    async fn missing_answers_are_not_kept() {
        let now = Instant::now();
        let mut reuse = Reuse::new();
        let none = EngineAnswer::local(Answer::none(crate::verdict::Reason::Encrypted, "zip"));
        reuse.put(now, KEY, &none);
        assert!(reuse.get(now, KEY).is_none());
    }

    /// I13: memory is bounded whatever comes.
    #[tokio::test(start_paused = true)]
    async fn no_more_than_two_generations_are_kept() {
        let now = Instant::now();
        let mut reuse = Reuse::new();
        for _ in 0..3 * ENTRIES {
            let key = Key::Message(MessageId::new());
            reuse.put(now, key, &answer(None, false));
        }
        let kept: usize = reuse.generations.iter().map(HashMap::len).sum();
        assert!(kept <= 2 * ENTRIES, "{kept}");
    }
}
