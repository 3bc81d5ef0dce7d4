//! What everybody in a simulated world shares: its time, its chance, its trace, and the book of every message, in which
//! the promises are checked at the moment they could be broken.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use crate::deadline::set_wall_clock;
use crate::message::{Content, MessageId};
use crate::store::{Audit, Lane, Record, StoreError};

use super::plan::Nature;

use super::super::scripted::{Fate, Operation, Witness, about};

/// Steps that are shown when a law is broken.
const SHOWN: usize = 80;

/// What became of one recipient of one message.
#[derive(Debug, Clone, Default)]
pub(super) struct Ends {
    /// How often a next hop took the message for it.
    pub(super) taken: u32,
    /// How often an answer about that was lost, so that once more is allowed (RFC 5321 6.1 leaves that window).
    pub(super) excuses: u32,
    /// A next hop took it, and the relay has not made that durable yet.
    doubt: bool,
    /// The sender was told.
    pub(super) bounced: bool,
    /// A person or its age ended it.
    pub(super) ended: bool,
}

/// One message.
#[derive(Debug, Clone)]
pub(super) struct Mail {
    pub(super) number: usize,
    id: MessageId,
    /// None for what the relay wrote.
    pub(super) nature: Option<Nature>,
    /// When a next hop took it first, how old it was.
    pub(super) delay: Option<Duration>,
    /// Delivered without the first engine's answer.
    pub(super) without: bool,
    pub(super) body: u64,
    /// Whether we are responsible for it: answered 250, or our own.
    pub(super) accepted: Option<bool>,
    pub(super) sent: Duration,
    pub(super) ends: BTreeMap<String, Ends>,
    /// When the last of it was delivered or refused; history of the last second before a crash is lost.
    touched: Duration,
}

/// How the disk feels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    /// Every operation takes up to so long.
    Slow(Duration),
    /// Writes find no room.
    Full,
    /// One write in so many fails.
    Flaky(u32),
    /// Nothing works.
    Broken,
}

pub(super) struct Inner {
    seed: u64,
    /// Age of the world at the start of this life of the relay, and that start.
    base: Duration,
    since: Option<Instant>,
    /// By how much the wall clock is wrong, milliseconds.
    skew: i64,
    pub(super) life: u32,
    steps: VecDeque<String>,
    /// In no order: what happens at one moment may happen in any.
    digest: u64,
    loud: bool,
    pub(super) mails: BTreeMap<usize, Mail>,
    numbers: HashMap<MessageId, usize>,
    pub(super) mood: Mood,
    /// Since when the disk has always worked.
    pub(super) disk_well_since: Duration,
    /// Bodies that an engine has really answered about, and those in which one found something.
    pub(super) answered: BTreeSet<(usize, u64)>,
    pub(super) found: BTreeSet<(usize, u64)>,
    engines: usize,
    /// Answers that policy asks for before mail is clean.
    pub(super) coverage: usize,
    /// When the relay was stopped or killed.
    pub(super) crashes: Vec<Duration>,
    pub(super) broken: Option<String>,
}

/// A world.
pub(super) struct World {
    inner: Mutex<Inner>,
}

impl World {
    pub(super) fn new(seed: u64, loud: bool, (coverage, engines): (usize, usize)) -> Arc<Self> {
        let inner = Inner {
            seed,
            base: Duration::ZERO,
            since: None,
            skew: 0,
            life: 0,
            steps: VecDeque::new(),
            digest: 0,
            loud,
            mails: BTreeMap::new(),
            numbers: HashMap::new(),
            mood: Mood::Well,
            disk_well_since: Duration::ZERO,
            answered: BTreeSet::new(),
            found: BTreeSet::new(),
            engines,
            coverage,
            crashes: Vec::new(),
            broken: None,
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no law panics with the lock")
    }

    /// The age of the world.
    pub(super) fn now(&self) -> Duration {
        self.lock().now()
    }

    /// What chance brings to `whom`. It does not depend on what was asked before, as what happens at one moment may happen
    /// in any order.
    pub(super) fn chance(&self, whom: impl Hash) -> StdRng {
        self.lock().chance(whom)
    }

    /// Notes what happened.
    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        self.lock().note(what);
    }

    /// A law is broken. The first one counts.
    pub(super) fn breaks(&self, law: String) {
        self.lock().breaks(law);
    }

    /// The relay is started; on its runtime.
    pub(super) fn begin_life(&self) {
        let mut inner = self.lock();
        inner.life += 1;
        inner.since = Some(Instant::now());
        inner.set_clock();
    }

    /// The relay is gone, and nothing happens for `pause`.
    pub(super) fn end_life(&self, pause: Duration) {
        let mut inner = self.lock();
        let now = inner.now();
        inner.base = now + pause;
        inner.since = None;
        inner.crashes.push(now);
        for mail in inner.mails.values_mut() {
            for ends in mail.ends.values_mut() {
                if std::mem::take(&mut ends.doubt) {
                    ends.excuses += 1;
                }
            }
        }
    }

    /// The wall clock jumps.
    pub(super) fn jump(&self, milliseconds: i64) {
        let mut inner = self.lock();
        inner.skew += milliseconds;
        inner.set_clock();
    }

    /// A client begins to hand over a message.
    pub(super) fn sends(
        &self,
        id: MessageId,
        (nature, body): (Nature, u64),
        recipients: &[&str],
    ) -> usize {
        let mut inner = self.lock();
        let number = inner.register(id, recipients.iter().copied());
        if let Some(mail) = inner.mails.get_mut(&number) {
            mail.body = body;
            mail.nature = Some(nature);
        }
        number
    }

    /// The client has its reply. `kept` are the recipients for whom the message is durable here.
    pub(super) fn replied(&self, id: MessageId, code: u16, kept: &BTreeSet<String>) {
        let mut inner = self.lock();
        let Some(number) = inner.numbers.get(&id).copied() else {
            return;
        };
        inner.note(|| format!("reply to m{number}: {code}"));
        let Some(mail) = inner.mails.get_mut(&number) else {
            return;
        };
        let accepted = code < 300;
        mail.accepted = Some(accepted);
        let mut broken = None;
        for (recipient, ends) in &mut mail.ends {
            // What is kept is in doubt until the store knows.
            ends.doubt &= kept.contains(recipient);
            let safe = ends.taken > 0 || ends.bounced || ends.ended || kept.contains(recipient);
            if accepted && !safe {
                broken = Some(format!(
                    "P5: m{number} was answered {code}, and nobody has it for {recipient}"
                ));
            }
            if !accepted && kept.contains(recipient) {
                broken = Some(format!(
                    "P5: m{number} was answered {code}, and is kept for {recipient}: its sender sends it again"
                ));
            }
        }
        if let Some(broken) = broken {
            inner.breaks(broken);
        }
    }

    /// A next hop has taken the message for a recipient.
    pub(super) fn taken(&self, id: MessageId, recipient: &str, header: &str) {
        let mut inner = self.lock();
        let now = inner.now();
        let Some(number) = inner.numbers.get(&id).copied() else {
            return inner.breaks(format!("a next hop got {id}, which nobody has sent"));
        };
        inner.note(|| format!("the next hop takes m{number} for {recipient}"));
        inner.judge_honesty(number, header);
        let Some(mail) = inner.mails.get_mut(&number) else {
            return;
        };
        mail.touched = now;
        let age = mail.age(now);
        mail.delay.get_or_insert(age);
        mail.without |= header.contains("missing=e0:");
        let Some(ends) = mail.ends.get_mut(recipient) else {
            return inner.breaks(format!(
                "m{number} went to {recipient}, who is no recipient"
            ));
        };
        ends.taken += 1;
        ends.doubt = true;
        let (taken, excuses) = (ends.taken, ends.excuses);
        if taken > 1 + excuses {
            inner.breaks(format!(
                "P5: m{number} was delivered {taken} times to {recipient}, and its answers were lost {excuses} times"
            ));
        }
    }

    /// The next hop's answer about it did not arrive.
    pub(super) fn answer_lost(&self, id: MessageId, recipient: &str) {
        let mut inner = self.lock();
        inner.note(|| format!("the answer about it is lost ({recipient})"));
        if let Some(ends) = inner.ends(id, recipient)
            && std::mem::take(&mut ends.doubt)
        {
            ends.excuses += 1;
        }
    }

    /// Whether a next hop has taken something and the store does not know yet.
    pub(super) fn in_doubt(&self) -> bool {
        let inner = self.lock();
        let mut all = inner.mails.values().flat_map(|mail| mail.ends.values());
        all.any(|ends| ends.doubt)
    }

    /// A next hop has refused it for good.
    pub(super) fn refused(&self, id: MessageId) {
        let mut inner = self.lock();
        let now = inner.now();
        if let Some(mail) = inner.mail(id) {
            mail.touched = now;
        }
    }

    /// How a message is called in the trace; probes have no name.
    pub(super) fn name(&self, id: MessageId) -> Option<String> {
        let number = self.lock().numbers.get(&id).copied();
        number.map(|number| format!("m{number}"))
    }

    /// The last steps, and which law was broken.
    pub(super) fn failure(&self) -> Option<String> {
        let inner = self.lock();
        let law = inner.broken.as_ref()?;
        let steps: Vec<&str> = inner.steps.iter().map(String::as_str).collect();
        Some(format!("{}\n{law}", steps.join("\n")))
    }

    /// All steps, for comparison.
    pub(super) fn digest(&self) -> u64 {
        self.lock().digest
    }
}

impl Inner {
    pub(super) fn now(&self) -> Duration {
        self.base + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn chance(&self, whom: impl Hash) -> StdRng {
        let mut hasher = DefaultHasher::new();
        (self.seed, self.now(), whom).hash(&mut hasher);
        StdRng::seed_from_u64(hasher.finish())
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        let step = what();
        let mut hasher = DefaultHasher::new();
        (self.now(), &step).hash(&mut hasher);
        self.digest = self.digest.wrapping_add(hasher.finish());
        self.show(&step);
    }

    /// As [`note`](Self::note), for words that name ids and the like, which differ from replay to replay.
    pub(super) fn show(&mut self, step: &str) {
        let seconds = self.now().as_secs_f64();
        let step = format!("{seconds:10.3} {}", step.replace('\n', " "));
        if self.loud {
            eprintln!("{step}");
        }
        if self.steps.len() == SHOWN {
            self.steps.pop_front();
        }
        self.steps.push_back(step);
    }

    pub(super) fn breaks(&mut self, law: String) {
        let life = self.life;
        self.note(|| format!("BROKEN in life {life}: {law}"));
        self.broken.get_or_insert(law);
    }

    fn set_clock(&self) {
        let real = Timestamp::from_second(1_800_000_000).expect("a plain time") + self.now();
        let skew = jiff::SignedDuration::from_millis(self.skew);
        set_wall_clock(Some(real + skew));
    }

    /// All messages, by number.
    pub(super) fn names(&self) -> Vec<(usize, MessageId)> {
        let mut names: Vec<(usize, MessageId)> = Vec::new();
        for (id, number) in &self.numbers {
            if self.mails[number].id == *id {
                names.push((*number, *id));
            }
        }
        names.sort_unstable();
        names
    }

    pub(super) fn mail(&mut self, id: MessageId) -> Option<&mut Mail> {
        let number = self.numbers.get(&id)?;
        self.mails.get_mut(number)
    }

    fn ends(&mut self, id: MessageId, recipient: &str) -> Option<&mut Ends> {
        self.mail(id)?.ends.get_mut(recipient)
    }

    fn register<'a>(&mut self, id: MessageId, recipients: impl Iterator<Item = &'a str>) -> usize {
        let number = self.mails.len();
        let sent = self.now();
        self.numbers.insert(id, number);
        let mail = Mail {
            number,
            id,
            nature: None,
            delay: None,
            without: false,
            body: 0,
            accepted: None,
            sent,
            ends: recipients
                .map(|r| (r.to_owned(), Ends::default()))
                .collect(),
            touched: sent,
        };
        self.mails.insert(number, mail);
        number
    }

    /// P4: what is delivered as clean names the engines that did not look at it, all others really did and found nothing, and
    /// they are as many as policy asks for.
    fn judge_honesty(&mut self, number: usize, header: &str) {
        let body = self.mails[&number].body;
        if !header.contains("X-Spillway-Result: clean") {
            return;
        }
        for at in 0..self.engines {
            if header.contains(&format!("missing=e{at}:")) {
                continue;
            }
            if !self.answered.contains(&(at, body)) {
                self.breaks(format!(
                    "P4: m{number} is delivered as clean, and e{at} has never answered about it"
                ));
            }
            if self.found.contains(&(at, body)) {
                self.breaks(format!(
                    "P4: m{number} is delivered as clean, and e{at} has found something in it"
                ));
            }
        }
        let missing = header.matches("missing=").count();
        if self.engines < self.coverage + missing {
            self.breaks(format!(
                "P4: m{number} is delivered as clean without {missing} of {} engines",
                self.engines
            ));
        }
    }

    /// P5: a recipient may leave the store when a next hop has the message, when its sender is told, or when a person (or
    /// the message's age) has ended it; where its sender may not be told it stays.
    fn may_leave(&mut self, record: &Record, recipient: &str, act: Option<&Audit>) {
        let by_act = act.is_some_and(|act| matches!(&*act.act, "delete" | "expire"));
        let Some(mail) = self.mail(record.message) else {
            return;
        };
        let number = mail.number;
        let Some(ends) = mail.ends.get_mut(recipient) else {
            return;
        };
        ends.doubt = false;
        ends.ended |= by_act;
        if ends.taken == 0 && !ends.bounced && !ends.ended {
            self.breaks(format!(
                "P5: m{number} leaves the store, and nobody has it for {recipient}"
            ));
        }
    }

    /// A bounce is durable: those it names have their end.
    fn bounce(&mut self, record: &Record, content: &Content) {
        let Some(about) = about(record) else {
            return;
        };
        if !self.numbers.contains_key(&record.id) {
            let recipients = record.envelope.recipients.iter();
            let recipients = recipients.map(|r| r.mailbox.as_str());
            let number = self.register(record.id, recipients);
            let of = self.numbers.get(&about).copied();
            self.note(|| format!("m{number} is a bounce of m{of:?}"));
            if let Some(mail) = self.mails.get_mut(&number) {
                mail.accepted = Some(true);
            }
        }
        let text = String::from_utf8_lossy(content.bytes()).into_owned();
        let named = text
            .lines()
            .filter_map(|l| l.strip_prefix("Final-Recipient: rfc822; "));
        for recipient in named {
            if let Some(ends) = self.ends(about, recipient) {
                ends.bounced = true;
            }
        }
    }
}

impl Witness for World {
    fn fate(&self, about: Option<MessageId>, what: Operation) -> Fate {
        let mut inner = self.lock();
        let number = about.and_then(|id| inner.numbers.get(&id)).copied();
        let mut rng = inner.chance((number, what));
        let mut fate = Fate::default();
        let writes = what != Operation::Read;
        match inner.mood {
            Mood::Slow(most) => {
                fate.before = most.mul_f64(rng.random());
                fate.after = most.mul_f64(rng.random());
            }
            Mood::Full if what == Operation::Add => {
                fate.error = Some(StoreError::Full("simulated".to_owned()));
            }
            Mood::Flaky(one_in) if writes && rng.random_range(0..one_in) == 0 => {
                fate.error = Some(StoreError::Broken("simulated".to_owned()));
            }
            Mood::Broken => fate.error = Some(StoreError::Broken("simulated".to_owned())),
            Mood::Well | Mood::Full | Mood::Flaky(_) => {}
        }
        if fate.error.is_some() && matches!(inner.mood, Mood::Broken | Mood::Full) {
            // What a next hop took meanwhile is not known to the store, and may come once more if that lasts.
            let mail = about.and_then(|id| inner.mail(id));
            for ends in mail.into_iter().flat_map(|mail| mail.ends.values_mut()) {
                if std::mem::take(&mut ends.doubt) {
                    ends.excuses += 1;
                }
            }
        }
        fate
    }

    fn changed(&self, before: &[Record], after: &[(Record, Content)], act: Option<&Audit>) {
        let mut inner = self.lock();
        for (record, content) in after {
            inner.bounce(record, content);
            // Recipients that part from the others have a record of another name.
            if let Some(number) = inner.numbers.get(&record.message).copied() {
                inner.numbers.entry(record.id).or_insert(number);
            }
        }
        for record in before.iter().filter(|r| r.lane != Lane::Rescan) {
            let stays = |recipient: &str| {
                let mut same = after.iter().filter(|(r, _)| r.message == record.message);
                same.any(|(r, _)| {
                    r.lane != Lane::Rescan && recipients(r).any(|other| other == recipient)
                })
            };
            for recipient in recipients(record).filter(|r| !stays(r)) {
                inner.may_leave(record, recipient, act);
            }
        }
        let lanes: Vec<String> = after
            .iter()
            .map(|(r, _)| format!("{}({})", r.lane.as_str(), r.envelope.recipients.len()))
            .collect();
        let of = before.first().or(after.first().map(|(r, _)| r));
        if let Some(number) = of.and_then(|r| inner.numbers.get(&r.message)).copied() {
            let from = before.first().map_or("-", |r| r.lane.as_str());
            inner.note(|| format!("store: m{number} {from} -> {}", lanes.join("+")));
        }
    }
}

/// The recipients of a record.
pub(super) fn recipients(record: &Record) -> impl Iterator<Item = &str> {
    record
        .envelope
        .recipients
        .iter()
        .map(|r| r.mailbox.as_str())
}

impl Mail {
    /// Whether its last event may be in the second of history that a crash takes away.
    pub(super) fn is_forgotten(&self, crashes: &[Duration]) -> bool {
        crashes
            .iter()
            .any(|at| (self.touched..=self.touched + Duration::from_secs(1)).contains(at))
    }

    pub(super) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.sent)
    }
}
