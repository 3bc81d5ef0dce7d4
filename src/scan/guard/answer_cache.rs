//! Answers that are used again: for the same octets, while the signatures are the same; and which of them may stand in for
//! messages of the same content (ADR 7).
//!
//! New signatures end all of them, from whomever they become known: a scan, a probe, the engine that is asked for nothing else.
//! A scan that began before is no better, and its answer is not kept.
//!
//! An answer that comes after its caller has given up ends here too, and waits for the message to be scanned again.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::message::{Digest, Identity, MessageId, edit};
use crate::scan::engine::EngineAnswer;
use crate::verdict::{Answer, Finding};

/// How long an answer with nothing found holds: signatures get better.
const CLEAN: Duration = Duration::from_secs(3600);
/// The same where the engine does not tell the version of its signatures, or has not told it for so long.
const UNVERSIONED: Duration = Duration::from_secs(300);
/// How long a finding holds.
const FOUND: Duration = Duration::from_secs(86_400);
/// Octets of what an answer wants done to its message, beyond which it is not kept.
const WANTED: usize = 4096;
/// Answers in each of two generations.
const ENTRIES: usize = 10_000;
/// Messages that an engine gave up on, and for how long that is remembered: as long as a message waits for its next pass at most.
const GIVEN_UP: usize = 1024;
const GIVEN_UP_AGE: Duration = Duration::from_secs(86_400);

/// What an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// All messages of these octets: for engines that get nothing else.
    Octets(Digest),
    /// One message: for engines that look at its envelope and trace fields too.
    Message(MessageId),
}

/// What a scan is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct AnswerScope {
    /// The message that is scanned.
    pub(super) message: MessageId,
    /// Where its answer is the same.
    pub(super) key: Key,
    /// Where its answer may stand in; none where what is found depends on more than content.
    pub(super) content: Option<Identity>,
    /// By which signatures: how often others than before had become known when it began.
    pub(super) epoch: u64,
}

/// An answer that is kept.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) answer: EngineAnswer,
    /// The message that was scanned.
    pub(super) from: MessageId,
    until: Instant,
    /// It is true of the signatures that made it, and they must still be known to be the same.
    needs_signatures: bool,
}

/// The answers of one engine.
#[derive(Debug)]
pub(super) struct AnswerCache {
    generations: [HashMap<Key, Kept>; 2],
    /// Of the answers above, the one that is about each content: the last, or the last with an objection.
    contents: [HashMap<Identity, Key>; 2],
    epoch: u64,
    /// When the version of the signatures was last told.
    told: Option<Instant>,
    /// What it gave up on, and when. New signatures do not end that: it says nothing about what is in the message.
    given_up: HashMap<Key, Instant>,
}

impl AnswerCache {
    pub(super) fn new() -> Self {
        Self {
            generations: Default::default(),
            contents: Default::default(),
            epoch: 0,
            told: None,
            given_up: HashMap::new(),
        }
    }

    /// The engine has given up on a message after its caller had left.
    pub(super) fn give_up(&mut self, now: Instant, key: Key) {
        if self.given_up.len() >= GIVEN_UP {
            self.given_up.retain(|_, at| now < *at + GIVEN_UP_AGE);
        }
        if self.given_up.len() < GIVEN_UP {
            self.given_up.insert(key, now);
        }
    }

    /// Whether the engine gave up on it. Told once: if the engine was at fault the next pass is a scan.
    pub(super) fn take_given_up(&mut self, now: Instant, key: Key) -> bool {
        let at = self.given_up.remove(&key);
        at.is_some_and(|at| now < at + GIVEN_UP_AGE)
    }

    /// For [`AnswerScope::epoch`].
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The version of the signatures was told, and whether it is another one than before.
    pub(super) fn signed(&mut self, now: Instant, is_new: bool) {
        self.told = Some(now);
        if is_new {
            self.end();
        }
    }

    /// Ends all answers, those to come of scans under way included.
    pub(super) fn end(&mut self) {
        self.generations = Default::default();
        self.contents = Default::default();
        self.epoch += 1;
    }

    /// The answer about the same octets, if one holds.
    pub(super) fn get(&self, now: Instant, key: Key) -> Option<&Kept> {
        let [new, old] = &self.generations;
        let kept = new.get(&key).or(old.get(&key))?;
        let is_known = || self.told.is_some_and(|told| now < told + UNVERSIONED);
        (now < kept.until && (!kept.needs_signatures || is_known())).then_some(kept)
    }

    /// The answer about a message of the same content, if one holds.
    pub(super) fn get_like(&self, now: Instant, content: Identity) -> Option<&Kept> {
        let [new, old] = &self.contents;
        let key = new.get(&content).or(old.get(&content))?;
        self.get(now, *key)
    }

    /// Keeps an answer, if it is one and other signatures have not become known since its scan began. Whether it is kept.
    pub(super) fn put(&mut self, now: Instant, about: AnswerScope, answer: &EngineAnswer) -> bool {
        let Some(holds) = holds(answer).filter(|_| about.epoch == self.epoch) else {
            return false;
        };
        if self.generations[0].len() >= ENTRIES {
            self.generations.swap(0, 1);
            self.generations[0].clear();
            self.contents.swap(0, 1);
            self.contents[0].clear();
        }
        // Once something was found in a content, a copy in which nothing is found does not make up for it.
        let stands = |content: &Identity| {
            let like = self.get_like(now, *content);
            !stands_in(answer) || like.is_none_or(|kept| stands_in(&kept.answer))
        };
        if let Some(content) = about.content.filter(stands) {
            self.contents[0].insert(content, about.key);
        }
        let kept = Kept {
            answer: answer.clone(),
            from: about.message,
            until: now + holds,
            needs_signatures: holds == CLEAN,
        };
        self.generations[0].insert(about.key, kept);
        true
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

/// Whether an answer may stand in for messages of the same content: it looked at everything, and nothing was found. A finding may
/// be about the header, and then mail that has the content from its sender would be held for what somebody else wrote above it.
pub(super) fn stands_in(answer: &EngineAnswer) -> bool {
    matches!(&answer.answer, Answer::Answered(findings) if !is_bad(findings))
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

    const CONTENT: Identity = Identity([7; 32]);

    /// One of many messages of one content.
    fn about() -> AnswerScope {
        let message = MessageId::new();
        AnswerScope {
            message,
            key: Key::Message(message),
            content: Some(CONTENT),
            epoch: 0,
        }
    }

    /// What was clean by yesterday's signatures may be known by today's, whatever has answered meanwhile: a scan that began
    /// by yesterday's is not kept either.
    #[tokio::test(start_paused = true)]
    async fn new_signatures_end_all_answers() {
        let now = Instant::now();
        let mut reuse = AnswerCache::new();
        let one = about();
        reuse.signed(now, false);
        reuse.put(now, one, &answer(Some("1"), false));
        assert!(reuse.get(now, one.key).is_some());
        reuse.signed(now, true);
        assert!(reuse.get(now, one.key).is_none());
        assert!(reuse.get_like(now, CONTENT).is_none());
        reuse.put(now, one, &answer(Some("2"), false));
        assert!(reuse.get(now, one.key).is_none(), "it began before");
        let epoch = reuse.epoch();
        reuse.put(now, AnswerScope { epoch, ..one }, &answer(Some("2"), false));
        assert!(reuse.get(now, one.key).is_some());
    }

    /// Of an engine that was asked nothing for a while nobody knows whether its signatures are still the same.
    #[tokio::test(start_paused = true)]
    async fn signatures_must_have_been_told_lately() {
        let now = Instant::now();
        let mut reuse = AnswerCache::new();
        let about = about();
        reuse.signed(now, false);
        reuse.put(now, about, &answer(Some("1"), false));
        let last = now + UNVERSIONED - Duration::from_secs(1);
        assert!(reuse.get(last, about.key).is_some());
        assert!(reuse.get(now + UNVERSIONED, about.key).is_none());
        reuse.signed(last, false);
        assert!(reuse.get(now + UNVERSIONED, about.key).is_some());
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
            let mut reuse = AnswerCache::new();
            let about = about();
            reuse.put(now, about, &answer(signatures, found));
            let last = now + holds - Duration::from_secs(1);
            reuse.signed(last, false);
            assert!(
                reuse.get(last, about.key).is_some(),
                "{signatures:?} {found}"
            );
            assert!(reuse.get(now + holds, about.key).is_none());
            assert!(reuse.get_like(now + holds, CONTENT).is_none());
        }
    }

    /// P4: what is no answer is never used as one.
    #[tokio::test(start_paused = true)]
    async fn missing_answers_are_not_kept() {
        let now = Instant::now();
        let mut reuse = AnswerCache::new();
        let none = EngineAnswer::local(Answer::none(crate::verdict::Reason::Encrypted, "zip"));
        let about = about();
        reuse.put(now, about, &none);
        assert!(reuse.get(now, about.key).is_none());
        assert!(reuse.get_like(now, CONTENT).is_none());
    }

    /// I13: what an answer wants done to its message is kept with it, but not without bound: answers are bounded by their number.
    #[tokio::test(start_paused = true)]
    async fn answers_that_want_much_are_not_kept() {
        let now = Instant::now();
        for (octets, is_kept) in [(WANTED, true), (WANTED + 1, false)] {
            let mut reuse = AnswerCache::new();
            let about = about();
            let wants = EngineAnswer {
                wanted: vec![edit::Wanted::Other("x".repeat(octets))],
                ..answer(Some("1"), true)
            };
            reuse.put(now, about, &wants);
            assert_eq!(reuse.get(now, about.key).is_some(), is_kept, "{octets}");
            assert_eq!(reuse.get_like(now, CONTENT).is_some(), is_kept);
        }
    }

    /// Of a content in which something was found once, nothing stands in until that finding ends: who sends a good copy after a
    /// bad one does not choose by which of them the next is judged.
    #[tokio::test(start_paused = true)]
    async fn a_good_copy_does_not_make_up_for_a_bad_one() {
        let now = Instant::now();
        let mut reuse = AnswerCache::new();
        let stands = |reuse: &AnswerCache, at| {
            reuse
                .get_like(at, CONTENT)
                .is_some_and(|k| stands_in(&k.answer))
        };
        let good = about();
        reuse.put(now, good, &answer(None, false));
        assert!(stands(&reuse, now));
        assert_eq!(
            reuse.get_like(now, CONTENT).map(|k| k.from),
            Some(good.message)
        );
        reuse.put(now, about(), &answer(None, true));
        reuse.put(now, about(), &answer(None, false));
        assert!(!stands(&reuse, now));
        let later = now + FOUND;
        reuse.put(later, about(), &answer(None, false));
        assert!(stands(&reuse, later));
    }

    /// I13: memory is bounded whatever comes.
    #[tokio::test(start_paused = true)]
    async fn no_more_than_two_generations_are_kept() {
        let now = Instant::now();
        let mut reuse = AnswerCache::new();
        for _ in 0..3 * ENTRIES {
            let content = Identity(std::array::from_fn(|_| rand::random()));
            let about = AnswerScope {
                content: Some(content),
                ..about()
            };
            reuse.put(now, about, &answer(None, false));
        }
        let kept: usize = reuse.generations.iter().map(HashMap::len).sum();
        assert!(kept <= 2 * ENTRIES, "{kept}");
        let contents: usize = reuse.contents.iter().map(HashMap::len).sum();
        assert!(contents <= 2 * ENTRIES, "{contents}");
    }
}
