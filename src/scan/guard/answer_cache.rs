//! The cache of an engine's answers. An answer is reused for the same octets while the signatures stay the same. Some answers
//! may also stand in for messages of the same content (ADR 7).
//!
//! New signatures end all cached answers, whatever reveals them: a scan, a probe or a query for the version. The answer of a
//! scan that began before is not cached either, because the scan may have used the old signatures.
//!
//! A late answer, whose caller has given up, is cached too and waits for the next scan of the message. If the engine *abandoned*
//! the message instead, because the scan reached a limit of the engine, the cache remembers that for one scan.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::message::{Digest, Identity, MessageId, edit};
use crate::scan::engine::EngineAnswer;
use crate::verdict::{Answer, Finding};

/// Lifetime of an answer without a finding: signatures improve, and a later scan may find something.
const CLEAN_LIFETIME: Duration = Duration::from_secs(3600);
/// Lifetime of an answer without a finding from an engine that does not report its signature version: shorter, because new
/// signatures go unnoticed. Also the maximum age of the last report of a version: after it the signatures may have changed.
const UNVERSIONED_LIFETIME: Duration = Duration::from_secs(300);
/// Lifetime of a finding: longer than that of a clean answer, because a later scan rarely finds less. New signatures end it
/// earlier.
const FINDING_LIFETIME: Duration = Duration::from_secs(86_400);
/// Octets of the edits that an answer may ask for and still be cached. The cache is bounded by the number of answers, so
/// each answer must be small: 20,000 answers of this size need about 80 MB.
const WANTED_OCTETS_MAX: usize = 4096;
/// Answers in each of the two generations, which bounds memory. The old generation is dropped when the new one is full.
const ANSWERS_PER_GENERATION: usize = 10_000;
/// Messages remembered that the engine abandoned, which bounds memory.
const ABANDONED_MAX: usize = 1024;
/// How long the cache remembers that the engine abandoned a message: no message waits longer for its next scan.
const ABANDONED_LIFETIME: Duration = Duration::from_secs(86_400);

/// The key of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// All messages with these octets, for engines that get only the content.
    Octets(Digest),
    /// One message, for engines that also get its envelope or trace fields.
    Message(MessageId),
}

/// The messages that the answer of a scan holds for.
#[derive(Debug, Clone, Copy)]
pub(super) struct AnswerScope {
    /// The scanned message.
    pub(super) message: MessageId,
    /// Messages for which the answer would be the same.
    pub(super) key: Key,
    /// Messages for which the answer may stand in; none if the findings depend on more than the content.
    pub(super) content: Option<Identity>,
    /// [`AnswerCache::epoch`] at the start of the scan: the number of times that the answers had ended by then.
    pub(super) epoch: u64,
}

/// A cached answer.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) answer: EngineAnswer,
    /// The scanned message.
    pub(super) from: MessageId,
    until: Instant,
    /// The answer holds only while the signature version is known to be unchanged.
    needs_signatures: bool,
}

/// The cached answers of one engine.
#[derive(Debug)]
pub(super) struct AnswerCache {
    generations: [HashMap<Key, Kept>; 2],
    /// For each content, the key of the answer that may stand in: the last one with an objection, else the last one.
    contents: [HashMap<Identity, Key>; 2],
    /// Number of times that all answers have ended. A scan of an earlier epoch may have used older signatures.
    epoch: u64,
    /// Time of the last report of the signature version.
    reported: Option<Instant>,
    /// Messages that the engine abandoned, and when. New signatures keep these entries, because an abandoned scan has found
    /// nothing out about the content.
    abandoned: HashMap<Key, Instant>,
}

impl AnswerCache {
    pub(super) fn new() -> Self {
        Self {
            generations: Default::default(),
            contents: Default::default(),
            epoch: 0,
            reported: None,
            abandoned: HashMap::new(),
        }
    }

    /// Notes that the engine abandoned a message after the caller had left: the scan reached a limit of the engine. The next
    /// call for the message then gets no scan ([`take_abandoned`](Self::take_abandoned)).
    pub(super) fn abandon(&mut self, now: Instant, key: Key) {
        if self.abandoned.len() >= ABANDONED_MAX {
            self.abandoned
                .retain(|_, at| now < *at + ABANDONED_LIFETIME);
        }
        if self.abandoned.len() < ABANDONED_MAX {
            self.abandoned.insert(key, now);
        }
    }

    /// Whether the engine abandoned the message. The caller then reports [`NoAnswer`](crate::scan::engine::ScanError::NoAnswer)
    /// without a scan: another scan would end at the same limit, and would hold a slot until then. This counts as
    /// another timeout of the message. The entry is forgotten, so a further call scans the message again: the engine may have
    /// been at fault.
    pub(super) fn take_abandoned(&mut self, now: Instant, key: Key) -> bool {
        let at = self.abandoned.remove(&key);
        at.is_some_and(|at| now < at + ABANDONED_LIFETIME)
    }

    /// The number of times that the answers have ended, for [`AnswerScope::epoch`].
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The engine has reported its signature version; `is_new` tells whether the version has changed.
    pub(super) fn signed(&mut self, now: Instant, is_new: bool) {
        self.reported = Some(now);
        if is_new {
            self.end();
        }
    }

    /// Ends all answers, also the future answers of scans under way.
    pub(super) fn end(&mut self) {
        self.generations = Default::default();
        self.contents = Default::default();
        self.epoch += 1;
    }

    /// The answer with that key, unless it has expired.
    pub(super) fn get(&self, now: Instant, key: Key) -> Option<&Kept> {
        let [new, old] = &self.generations;
        let kept = new.get(&key).or(old.get(&key))?;
        let is_known = || {
            self.reported
                .is_some_and(|reported| now < reported + UNVERSIONED_LIFETIME)
        };
        (now < kept.until && (!kept.needs_signatures || is_known())).then_some(kept)
    }

    /// The answer about a message of the same content, unless it has expired.
    pub(super) fn get_by_content(&self, now: Instant, content: Identity) -> Option<&Kept> {
        let [new, old] = &self.contents;
        let key = new.get(&content).or(old.get(&content))?;
        self.get(now, *key)
    }

    /// Caches an answer, unless the engine gave none or the answers have ended since the scan began. Returns whether it is
    /// cached.
    pub(super) fn put(&mut self, now: Instant, scope: AnswerScope, answer: &EngineAnswer) -> bool {
        let Some(holds) = holds(answer).filter(|_| scope.epoch == self.epoch) else {
            return false;
        };
        if self.generations[0].len() >= ANSWERS_PER_GENERATION {
            self.generations.swap(0, 1);
            self.generations[0].clear();
            self.contents.swap(0, 1);
            self.contents[0].clear();
        }
        // A finding in a content outlasts later clean answers about copies of it, or a sender could hide it behind a clean copy.
        let stands = |content: &Identity| {
            let like = self.get_by_content(now, *content);
            !stands_in(answer) || like.is_none_or(|kept| stands_in(&kept.answer))
        };
        if let Some(content) = scope.content.filter(stands) {
            self.contents[0].insert(content, scope.key);
        }
        let kept = Kept {
            answer: answer.clone(),
            from: scope.message,
            until: now + holds,
            needs_signatures: holds == CLEAN_LIFETIME,
        };
        self.generations[0].insert(scope.key, kept);
        true
    }
}

/// The lifetime of an answer; none if the answer must not be cached.
fn holds(answer: &EngineAnswer) -> Option<Duration> {
    let Answer::Answered(findings) = &answer.answer else {
        return None;
    };
    // The cache is bounded by the number of answers, so each answer must be small.
    if edit::octets(&answer.wanted) > WANTED_OCTETS_MAX {
        return None;
    }
    Some(match (is_bad(findings), &answer.signatures) {
        (true, _) => FINDING_LIFETIME,
        (false, Some(_)) => CLEAN_LIFETIME,
        (false, None) => UNVERSIONED_LIFETIME,
    })
}

/// Whether an answer may stand in for messages of the same content: the engine has scanned everything and found nothing. A
/// finding may be about the header section. Then a header section that another sender wrote above the same content would hold
/// the original sender's mail.
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

    const CONTENT_IDENTITY: Identity = Identity([7; 32]);

    /// The scope of a new message of the common content.
    fn answer_scope() -> AnswerScope {
        let message = MessageId::new();
        AnswerScope {
            message,
            key: Key::Message(message),
            content: Some(CONTENT_IDENTITY),
            epoch: 0,
        }
    }

    /// New signatures may know a message that was clean by the old ones. A scan that began under the old signatures is not
    /// cached either.
    #[tokio::test(start_paused = true)]
    async fn new_signatures_end_all_answers() {
        let now = Instant::now();
        let mut reuse = AnswerCache::new();
        let one = answer_scope();
        reuse.signed(now, false);
        reuse.put(now, one, &answer(Some("1"), false));
        assert!(reuse.get(now, one.key).is_some());
        reuse.signed(now, true);
        assert!(reuse.get(now, one.key).is_none());
        assert!(reuse.get_by_content(now, CONTENT_IDENTITY).is_none());
        reuse.put(now, one, &answer(Some("2"), false));
        assert!(reuse.get(now, one.key).is_none(), "it began before");
        let epoch = reuse.epoch();
        reuse.put(now, AnswerScope { epoch, ..one }, &answer(Some("2"), false));
        assert!(reuse.get(now, one.key).is_some());
    }

    /// If an engine has not reported its signature version for a while, its signatures may have changed.
    #[tokio::test(start_paused = true)]
    async fn an_answer_needs_a_recent_report_of_signatures() {
        let now = Instant::now();
        let mut reuse = AnswerCache::new();
        let scope = answer_scope();
        reuse.signed(now, false);
        reuse.put(now, scope, &answer(Some("1"), false));
        let last = now + UNVERSIONED_LIFETIME - Duration::from_secs(1);
        assert!(reuse.get(last, scope.key).is_some());
        assert!(reuse.get(now + UNVERSIONED_LIFETIME, scope.key).is_none());
        reuse.signed(last, false);
        assert!(reuse.get(now + UNVERSIONED_LIFETIME, scope.key).is_some());
    }

    /// A finding lives longer than a clean answer. A clean answer lives longer if new signatures would be noticed.
    #[tokio::test(start_paused = true)]
    async fn answers_expire() {
        let now = Instant::now();
        for (signatures, found, holds) in [
            (None, false, UNVERSIONED_LIFETIME),
            (Some("1"), false, CLEAN_LIFETIME),
            (None, true, FINDING_LIFETIME),
        ] {
            let mut reuse = AnswerCache::new();
            let scope = answer_scope();
            reuse.put(now, scope, &answer(signatures, found));
            let last = now + holds - Duration::from_secs(1);
            reuse.signed(last, false);
            assert!(
                reuse.get(last, scope.key).is_some(),
                "{signatures:?} {found}"
            );
            assert!(reuse.get(now + holds, scope.key).is_none());
            assert!(
                reuse
                    .get_by_content(now + holds, CONTENT_IDENTITY)
                    .is_none()
            );
        }
    }

    /// P4: a missing answer is never reused as an answer.
    #[tokio::test(start_paused = true)]
    async fn missing_answers_are_not_kept() {
        let now = Instant::now();
        let mut reuse = AnswerCache::new();
        let none = EngineAnswer::new(Answer::none(crate::verdict::Reason::Encrypted, "zip"));
        let scope = answer_scope();
        reuse.put(now, scope, &none);
        assert!(reuse.get(now, scope.key).is_none());
        assert!(reuse.get_by_content(now, CONTENT_IDENTITY).is_none());
    }

    /// I13: an answer is cached with the edits that it asks for only if they are small, because the number of answers bounds
    /// memory.
    #[tokio::test(start_paused = true)]
    async fn answers_that_want_much_are_not_kept() {
        let now = Instant::now();
        for (octets, is_kept) in [(WANTED_OCTETS_MAX, true), (WANTED_OCTETS_MAX + 1, false)] {
            let mut reuse = AnswerCache::new();
            let scope = answer_scope();
            let wants = EngineAnswer {
                wanted: vec![edit::Wanted::Other("x".repeat(octets))],
                ..answer(Some("1"), true)
            };
            reuse.put(now, scope, &wants);
            assert_eq!(reuse.get(now, scope.key).is_some(), is_kept, "{octets}");
            assert_eq!(
                reuse.get_by_content(now, CONTENT_IDENTITY).is_some(),
                is_kept
            );
        }
    }

    /// After a finding in a content, no answer stands in for that content until the finding expires. Otherwise a sender could
    /// send a clean copy after a bad one and so choose the answer for the next copy.
    #[tokio::test(start_paused = true)]
    async fn a_good_copy_does_not_make_up_for_a_bad_one() {
        let now = Instant::now();
        let mut reuse = AnswerCache::new();
        let stands = |reuse: &AnswerCache, at| {
            reuse
                .get_by_content(at, CONTENT_IDENTITY)
                .is_some_and(|k| stands_in(&k.answer))
        };
        let good = answer_scope();
        reuse.put(now, good, &answer(None, false));
        assert!(stands(&reuse, now));
        assert_eq!(
            reuse.get_by_content(now, CONTENT_IDENTITY).map(|k| k.from),
            Some(good.message)
        );
        reuse.put(now, answer_scope(), &answer(None, true));
        reuse.put(now, answer_scope(), &answer(None, false));
        assert!(!stands(&reuse, now));
        let later = now + FINDING_LIFETIME;
        reuse.put(later, answer_scope(), &answer(None, false));
        assert!(stands(&reuse, later));
    }

    /// I13: the number of messages does not change the bound on memory.
    #[tokio::test(start_paused = true)]
    async fn no_more_than_two_generations_are_kept() {
        let now = Instant::now();
        let mut reuse = AnswerCache::new();
        for _ in 0..3 * ANSWERS_PER_GENERATION {
            let content = Identity(std::array::from_fn(|_| rand::random()));
            let scope = AnswerScope {
                content: Some(content),
                ..answer_scope()
            };
            reuse.put(now, scope, &answer(None, false));
        }
        let kept: usize = reuse.generations.iter().map(HashMap::len).sum();
        assert!(kept <= 2 * ANSWERS_PER_GENERATION, "{kept}");
        let contents: usize = reuse.contents.iter().map(HashMap::len).sum();
        assert!(contents <= 2 * ANSWERS_PER_GENERATION, "{contents}");
    }
}
