//! A store in memory that keeps the contract of [`Store`] and can be told to fail, for the tests of the path.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use crate::deadline::Deadline;
use crate::message::{Content, MessageId, canonical};
use crate::store::contract;
use crate::store::{
    AtWork, Audit, Capacity, Cause, Change, Filter, Held, Holder, INTERCEPTORS_MAX, Interceptors,
    Lane, LaneStats, LateMail, LateTimes, Object, Outgoing, Queue, Record, Store, StoreError,
    StoreFuture, StoredInterceptor, SweepPosition, Times,
};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    Read,
    /// Changes what is there.
    Change,
    /// Needs room.
    Add,
}

/// What befalls one operation.
#[derive(Debug, Clone, Default)]
pub(super) struct Fate {
    /// Before it is done, or not.
    pub(super) before: Duration,
    /// Why it is not.
    pub(super) error: Option<StoreError>,
    /// After it was done, before anybody hears of it.
    pub(super) after: Duration,
}

/// Who decides about operations, and sees what they changed.
pub(super) trait Witness: Send + Sync {
    /// An operation begins; `about` names the record or the message it is about, if it is about one.
    fn fate(&self, about: Option<MessageId>, what: Operation) -> Fate;

    /// What was `before` is now `after`: durable.
    fn changed(&self, before: &[Record], after: &[(Record, Content)], act: Option<&Audit>);
}

#[derive(Debug, Clone)]
struct Kept {
    record: Record,
    content: Content,
    leased: Option<Timestamp>,
    claimed: bool,
    /// In the order of arrival.
    number: u64,
}

impl Kept {
    fn is_free(&self, times: Times) -> bool {
        self.leased.is_none_or(|until| !times.is_leased(until))
    }
}

#[derive(Default)]
struct Tables {
    kept: BTreeMap<MessageId, Kept>,
    number: u64,
    /// Of all that ever were: ids are random, and a replay has others.
    numbers: BTreeMap<MessageId, u64>,
    audit: Vec<Audit>,
    interceptors: BTreeMap<String, StoredInterceptor>,
    version: u64,
}

/// The store. What is in it is durable: a test that drops everything else has crashed.
#[derive(Default)]
pub(super) struct Scripted {
    tables: Mutex<Tables>,
    at_work: AtWork,
    pub(super) fails: AtomicBool,
    /// There is no room for new mail.
    pub(super) full: AtomicBool,
    /// Contents that were asked for.
    pub(super) loaded: AtomicUsize,
    witness: Option<Arc<dyn Witness>>,
}

impl Scripted {
    pub(super) fn watched(witness: Arc<dyn Witness>) -> Self {
        Self {
            witness: Some(witness),
            ..Self::default()
        }
    }

    /// All records, in the order of arrival.
    pub(super) fn all(&self) -> Vec<Record> {
        let tables = self.tables();
        let mut kept: Vec<&Kept> = tables.kept.values().collect();
        kept.sort_by_key(|kept| kept.number);
        kept.into_iter().map(|kept| kept.record.clone()).collect()
    }

    /// Changes a record, as if it had been stored so.
    pub(super) fn edit(&self, id: MessageId, change: impl FnOnce(&mut Record)) {
        let mut tables = self.tables();
        let kept = tables.kept.values_mut().find(|kept| kept.record.id == id);
        change(&mut kept.expect("a record").record);
    }

    /// How many records nobody has ever worked on.
    pub(super) fn never_claimed(&self) -> usize {
        let tables = self.tables();
        let never = tables.kept.values().filter(|kept| !kept.claimed);
        never.count()
    }

    /// The process that had the leases is gone.
    pub(super) fn reopen(&self) {
        for kept in self.tables().kept.values_mut() {
            kept.leased = None;
        }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().expect("no test panics with the lock")
    }

    fn fate(&self, about: Option<MessageId>, what: Operation) -> Fate {
        if self.fails.load(Ordering::Relaxed) {
            let error = Some(StoreError::Broken("told to".to_owned()));
            return Fate {
                error,
                ..Fate::default()
            };
        }
        let witness = self.witness.as_ref();
        witness.map_or_else(Fate::default, |witness| witness.fate(about, what))
    }

    fn operation<'a, T: Send + 'a>(
        &'a self,
        about: Option<MessageId>,
        what: Operation,
        work: impl FnOnce(&mut Tables) -> Result<T, StoreError> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let fate = self.fate(about, what);
            pause(fate.before).await;
            if let Some(error) = fate.error {
                return Err(error);
            }
            let done = work(&mut self.tables());
            pause(fate.after).await;
            done
        })
    }

    /// Replaces `before` by `after`, with leases until `until`, all or nothing.
    fn replace(
        &self,
        tables: &mut Tables,
        before: Option<MessageId>,
        after: Vec<(Record, Content)>,
        (until, act): (Option<Timestamp>, Option<Audit>),
    ) -> Result<(), StoreError> {
        let taken = |(record, _): &&(Record, Content)| {
            Some(record.id) != before && tables.kept.contains_key(&record.id)
        };
        if let Some((record, _)) = after.iter().find(taken) {
            let why = format!("{} exists", record.id);
            return Err(StoreError::Broken(why));
        }
        let old = before.and_then(|id| tables.kept.remove(&id));
        for (record, content) in &after {
            tables.number += 1;
            let kept = Kept {
                record: record.clone(),
                content: content.clone(),
                leased: until,
                claimed: before.is_some(),
                number: match &old {
                    Some(old) if old.record.id == record.id => old.number,
                    _ => tables.number,
                },
            };
            tables.numbers.insert(record.id, kept.number);
            tables.kept.insert(record.id, kept);
        }
        tables.make_room();
        if let Some(witness) = &self.witness {
            let before: Vec<Record> = old.into_iter().map(|kept| kept.record).collect();
            witness.changed(&before, &after, act.as_ref());
        }
        tables.audit.extend(act);
        Ok(())
    }

    fn change_where(
        &self,
        lane: Option<Lane>,
        id: MessageId,
        (change, beside): (Change, Vec<(Record, Content)>),
        act: Option<Audit>,
    ) -> StoreFuture<'_, ()> {
        self.operation(Some(id), Operation::Change, move |tables| {
            let is_there = |kept: &&Kept| lane.is_none_or(|lane| kept.record.lane == lane);
            let Some(kept) = tables.kept.get(&id).filter(is_there) else {
                return Err(StoreError::NotFound(id));
            };
            let (mut after, until) = match change {
                Change::Replace(record) => (vec![(*record, kept.content.clone())], None),
                Change::Take(record, until) => (vec![(*record, kept.content.clone())], Some(until)),
                Change::Remove => (Vec::new(), None),
            };
            after.extend(beside);
            self.replace(tables, Some(id), after, (until, act))
        })
    }

    /// New mail, for which there may be no room.
    fn put_until(
        &self,
        records: Vec<Record>,
        content: Content,
        until: Option<Timestamp>,
    ) -> StoreFuture<'_, ()> {
        match self.room() {
            Err(full) => Box::pin(async { Err(full) }),
            Ok(()) => self.add(records, content, until),
        }
    }

    fn room(&self) -> Result<(), StoreError> {
        match self.full.load(Ordering::Relaxed) {
            true => Err(StoreError::Full("told to".to_owned())),
            false => Ok(()),
        }
    }

    fn add(
        &self,
        records: Vec<Record>,
        content: Content,
        until: Option<Timestamp>,
    ) -> StoreFuture<'_, ()> {
        let of_put = |r: &Record| about(r).unwrap_or(r.message);
        let about = records.first().map(of_put);
        self.operation(about, Operation::Add, move |tables| {
            let after = records.into_iter().map(|r| (r, content.clone())).collect();
            self.replace(tables, None, after, (until, None))
        })
    }
}

/// The message that a notification is about.
pub(super) fn about(record: &Record) -> Option<MessageId> {
    let about = record.status.strip_prefix("notification about ")?;
    about.parse().ok()
}

async fn pause(span: Duration) {
    if !span.is_zero() {
        Deadline::after(span).wait().await;
    }
}

impl Tables {
    /// The rescan lane is bounded: what expires first gives way.
    fn make_room(&mut self) {
        loop {
            let rescans = || self.kept.values().filter(|k| k.record.lane == Lane::Rescan);
            let octets: usize = rescans().map(|kept| kept.content.len()).sum();
            let first = rescans().min_by_key(|k| k.record.expires_at);
            match first.map(|kept| kept.record.id) {
                Some(first) if octets as u64 > contract::RESCAN_BYTES => {
                    self.kept.remove(&first);
                }
                _ => return,
            }
        }
    }

    /// Those that `wanted` says, in the order of `key`, leased, and none that somebody works on.
    fn lease<K: Ord>(
        &mut self,
        (times, at_work): (Times, &AtWork),
        limit: usize,
        wanted: impl Fn(&Record) -> bool,
        key: impl Fn(&Kept) -> K,
    ) -> Vec<Record> {
        let free = |kept: &&mut Kept| {
            kept.is_free(times) && !at_work.has(kept.record.id) && wanted(&kept.record)
        };
        let mut found: Vec<&mut Kept> = self.kept.values_mut().filter(free).collect();
        found.sort_by_key(|kept| key(kept));
        found.truncate(limit);
        for kept in &mut found {
            kept.leased = Some(times.until);
            kept.claimed = true;
        }
        found.into_iter().map(|kept| kept.record.clone()).collect()
    }

    fn keep_interceptor(
        &mut self,
        mut wanted: StoredInterceptor,
        act: Option<Audit>,
    ) -> Result<Option<u64>, StoreError> {
        let there = self.interceptors.get(&wanted.id).map(|i| i.version);
        if there.unwrap_or(0) != wanted.version {
            return Ok(None);
        }
        if there.is_none() && self.interceptors.len() >= INTERCEPTORS_MAX {
            return Err(StoreError::Full("too many interceptors".to_owned()));
        }
        self.version += 1;
        wanted.version = self.version;
        self.interceptors.insert(wanted.id.clone(), wanted);
        self.audit.extend(act);
        Ok(Some(self.version))
    }
}

/// Whether a record is what is searched for.
fn matches(filter: &Filter, record: &Record, size: usize) -> bool {
    let part = |wanted: &Option<String>, text: &str| {
        let found = |wanted: &String| text.to_lowercase().contains(&wanted.to_lowercase());
        wanted.as_ref().is_none_or(found)
    };
    let spelled = |wanted: &Option<String>, addresses: &[&str]| {
        let any = addresses.iter().any(|address| {
            let spelling = wanted.as_deref().map_or("".into(), canonical::part);
            part(wanted, address) || canonical::mailbox(address).contains(&*spelling)
        });
        wanted.is_none() || any
    };
    let decision = record.decision.as_ref();
    let reason = decision.map_or(String::new(), |d| format!("{}\n{}", d.rule, d.reason));
    let findings = record.reports.iter().flat_map(|r| r.findings());
    let findings: Vec<&str> = findings.map(|f| f.name.as_str()).collect();
    let recipients = record.envelope.recipients.iter();
    let recipients: Vec<&str> = recipients.map(|r| r.mailbox.as_str()).collect();
    let speaks = |name: &String| {
        record.reports.iter().any(|report| {
            let says = report.missing().is_some() || !report.findings().is_empty();
            says && report.engine.eq_ignore_ascii_case(name)
        })
    };
    (filter.lanes.is_empty() || filter.lanes.contains(&record.lane))
        && (filter.id_prefix.as_ref())
            .is_none_or(|prefix| record.id.to_string().starts_with(prefix.as_str()))
        && part(&filter.reason, &reason)
        && part(&filter.finding, &findings.join("\n"))
        && spelled(&filter.sender, &[record.envelope.reverse_path.as_str()])
        && spelled(&filter.recipient, &recipients)
        && part(&filter.subject, &record.subject)
        && filter.engine.as_ref().is_none_or(speaks)
        && (filter.cause.is_none() || filter.cause == record.cause)
        && filter.before.is_none_or(|at| record.received_at < at)
        && filter.after.is_none_or(|at| record.received_at >= at)
        && filter.expired.is_none_or(|at| record.expires_at <= at)
        && (filter.size.as_ref()).is_none_or(|range| range.contains(&(size as u64)))
}

impl Store for Scripted {
    fn put(&self, records: Vec<Record>, content: Content) -> StoreFuture<'_, ()> {
        self.put_until(records, content, None)
    }

    fn put_new(
        &self,
        records: Vec<Record>,
        content: Content,
        quarantine: Capacity,
    ) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let held = |record: &&Record| record.lane == Lane::Held;
            let more = records.iter().filter(held).count() * content.len();
            let nobody = Holder {
                name: String::new(),
                octets: 0,
            };
            let full = self.held(quarantine).await?.refuses(more as u64, &nobody);
            match full.filter(|_| more > 0) {
                Some(why) => Err(StoreError::Full(why)),
                None => self.put_until(records, content, None).await,
            }
        })
    }

    fn put_rest(&self, records: Vec<Record>, content: Content) -> StoreFuture<'_, ()> {
        self.add(records, content, None)
    }

    fn put_leased(
        &self,
        records: Vec<Record>,
        content: Content,
        until: Timestamp,
    ) -> StoreFuture<'_, ()> {
        self.put_until(records, content, Some(until))
    }

    fn settle(
        &self,
        lane: Lane,
        id: MessageId,
        change: Change,
        beside: Vec<(Record, Content)>,
    ) -> StoreFuture<'_, ()> {
        self.change_where(Some(lane), id, (change, beside), None)
    }

    fn change(&self, id: MessageId, change: Change, act: Option<Audit>) -> StoreFuture<'_, ()> {
        self.change_where(None, id, (change, Vec::new()), act)
    }

    fn change_in(
        &self,
        lane: Lane,
        id: MessageId,
        change: Change,
        act: Option<Audit>,
    ) -> StoreFuture<'_, ()> {
        self.change_where(Some(lane), id, (change, Vec::new()), act)
    }

    fn make_due(&self, id: MessageId, now: Timestamp) -> StoreFuture<'_, bool> {
        self.operation(None, Operation::Change, move |tables| {
            let waits = |kept: &&mut Kept| {
                matches!(kept.record.lane, Lane::Scan | Lane::Delivery)
                    && kept.leased.is_none_or(|leased| leased <= now)
            };
            let kept = tables.kept.get_mut(&id).filter(waits);
            Ok(kept.map(|kept| kept.record.due_at = now).is_some())
        })
    }

    fn claim(&self, lane: Lane, times: Times, limit: usize) -> StoreFuture<'_, Vec<Record>> {
        self.operation(None, Operation::Change, move |tables| {
            let due = |record: &Record| record.lane == lane && times.is_due(record.due_at);
            let key = |kept: &Kept| (kept.record.due_at, kept.record.received_at, kept.number);
            Ok(tables.lease((times, &self.at_work), limit, due, key))
        })
    }

    fn claim_outgoing(
        &self,
        what: Outgoing,
        times: Times,
        limit: usize,
    ) -> StoreFuture<'_, Vec<Record>> {
        self.operation(None, Operation::Change, move |tables| {
            let wanted = |record: &Record| {
                record.lane == Lane::Delivery
                    && match &what {
                        Outgoing::To(hop) => record.next_hop == *hop && times.is_due(record.due_at),
                        Outgoing::GivenUp(by) => record.expires_at <= *by,
                    }
            };
            let key = |kept: &Kept| match what {
                Outgoing::To(_) => (kept.record.due_at, kept.record.received_at, kept.number),
                Outgoing::GivenUp(_) => {
                    (kept.record.expires_at, kept.record.received_at, kept.number)
                }
            };
            Ok(tables.lease((times, &self.at_work), limit, wanted, key))
        })
    }

    fn queues(&self, times: Times) -> StoreFuture<'_, Vec<Queue>> {
        self.operation(None, Operation::Read, move |tables| {
            let free = tables.kept.values().filter(|kept| kept.is_free(times));
            let mut queues = BTreeMap::<Arc<str>, Queue>::new();
            for record in free.map(|kept| &kept.record) {
                if record.lane != Lane::Delivery {
                    continue;
                }
                let queue = queues.entry(record.next_hop.clone());
                let queue = queue.or_insert_with(|| Queue {
                    next_hop: record.next_hop.clone(),
                    first: record.due_at,
                    last: record.due_at,
                });
                queue.first = queue.first.min(record.due_at);
                queue.last = queue.last.max(record.due_at);
            }
            Ok(queues.into_values().collect())
        })
    }

    fn causes(&self) -> StoreFuture<'_, Vec<Cause>> {
        self.operation(None, Operation::Read, |tables| {
            let causes = tables.kept.values().filter_map(|k| k.record.cause.clone());
            Ok(causes.collect::<BTreeSet<_>>().into_iter().collect())
        })
    }

    fn recover(
        &self,
        lane: Lane,
        cause: Cause,
        after: Option<SweepPosition>,
        times: Times,
        limit: usize,
    ) -> StoreFuture<'_, Vec<Record>> {
        self.operation(None, Operation::Change, move |tables| {
            let numbers = tables.numbers.clone();
            let order =
                |place: SweepPosition| (!place.known, place.received_at, numbers.get(&place.id));
            let waits = |record: &Record| {
                let is_behind =
                    |after: SweepPosition| order(SweepPosition::of(record)) > order(after);
                record.lane == lane
                    && record.cause.as_ref() == Some(&cause)
                    && after.is_none_or(is_behind)
            };
            let key = |kept: &Kept| order(SweepPosition::of(&kept.record));
            Ok(tables.lease((times, &self.at_work), limit, waits, key))
        })
    }

    fn at_work(&self) -> &AtWork {
        &self.at_work
    }

    fn get(&self, id: MessageId) -> StoreFuture<'_, Option<Record>> {
        self.operation(None, Operation::Read, move |tables| {
            Ok(tables.kept.get(&id).map(|kept| kept.record.clone()))
        })
    }

    fn content(&self, id: MessageId) -> StoreFuture<'_, Bytes> {
        self.loaded.fetch_add(1, Ordering::SeqCst);
        self.operation(None, Operation::Read, move |tables| {
            match tables.kept.get(&id) {
                Some(kept) => Ok(kept.content.bytes().clone()),
                None => Err(StoreError::NotFound(id)),
            }
        })
    }

    fn search(&self, filter: Filter) -> StoreFuture<'_, Vec<Record>> {
        self.operation(None, Operation::Read, move |tables| {
            let wanted = |kept: &&Kept| matches(&filter, &kept.record, kept.content.len());
            let mut found: Vec<&Kept> = tables.kept.values().filter(wanted).collect();
            found.sort_by_key(|kept| std::cmp::Reverse((kept.record.received_at, kept.number)));
            if filter.expired.is_some() {
                found.sort_by_key(|kept| kept.record.expires_at);
            }
            let found = found.into_iter().skip(filter.offset).take(filter.limit);
            Ok(found.map(|kept| kept.record.clone()).collect())
        })
    }

    fn count(&self, filter: Filter) -> StoreFuture<'_, u64> {
        self.operation(None, Operation::Read, move |tables| {
            let wanted = |kept: &&Kept| matches(&filter, &kept.record, kept.content.len());
            Ok(tables.kept.values().filter(wanted).count() as u64)
        })
    }

    fn audit(&self, entry: Audit) -> StoreFuture<'_, ()> {
        self.operation(None, Operation::Change, move |tables| {
            tables.audit.push(entry);
            Ok(())
        })
    }

    fn audited(&self, of: Option<Object>, limit: usize) -> StoreFuture<'_, Vec<Audit>> {
        self.operation(None, Operation::Read, move |tables| {
            let wanted = |act: &&Audit| of.as_ref().is_none_or(|of| act.object == *of);
            let newest = tables.audit.iter().rev().filter(wanted).take(limit);
            Ok(newest.cloned().collect())
        })
    }

    fn interceptors(&self, known: Option<u64>) -> StoreFuture<'_, Option<Interceptors>> {
        self.operation(None, Operation::Read, move |tables| {
            let version = tables.version;
            let all = tables.interceptors.values().cloned().collect();
            Ok((known != Some(version)).then_some(Interceptors { version, all }))
        })
    }

    fn keep_interceptor(
        &self,
        interceptor: StoredInterceptor,
        act: Option<Audit>,
    ) -> StoreFuture<'_, Option<u64>> {
        self.operation(None, Operation::Change, move |tables| {
            tables.keep_interceptor(interceptor, act)
        })
    }

    fn drop_interceptor(&self, id: String, act: Option<Audit>) -> StoreFuture<'_, bool> {
        self.operation(None, Operation::Change, move |tables| {
            let dropped = tables.interceptors.remove(&id).is_some();
            if dropped {
                tables.version += 1;
                tables.audit.extend(act);
            }
            Ok(dropped)
        })
    }

    fn held(&self, quarantine: Capacity) -> StoreFuture<'_, Held> {
        self.operation(None, Operation::Read, move |tables| {
            let held = tables.kept.values().filter(|k| k.record.lane == Lane::Held);
            Ok(Held {
                octets: held.map(|kept| kept.content.len() as u64).sum(),
                limit: match quarantine {
                    Capacity::Octets(octets) => octets,
                    Capacity::Percent(_) => u64::MAX,
                },
                largest: None,
            })
        })
    }

    fn oldest_outgoing(&self) -> StoreFuture<'_, Vec<(Arc<str>, Timestamp)>> {
        self.operation(None, Operation::Read, move |tables| {
            let mut oldest = BTreeMap::<Arc<str>, Timestamp>::new();
            for record in tables.kept.values().map(|kept| &kept.record) {
                if record.lane == Lane::Delivery {
                    let first = oldest.entry(record.next_hop.clone());
                    let first = first.or_insert(record.received_at);
                    *first = record.received_at.min(*first);
                }
            }
            Ok(oldest.into_iter().collect())
        })
    }

    fn late(&self, times: LateTimes) -> StoreFuture<'_, Vec<LateMail>> {
        self.operation(None, Operation::Read, move |tables| {
            let leased = |kept: &Kept| kept.leased.is_some_and(|until| until > times.now);
            let records = tables.kept.values();
            Ok(contract::late_of(
                records.map(|k| (&k.record, leased(k))),
                times,
            ))
        })
    }

    fn stats(&self) -> StoreFuture<'_, [LaneStats; Lane::ALL.len()]> {
        self.operation(None, Operation::Read, move |tables| {
            Ok(Lane::ALL.map(|lane| {
                let of_lane = || tables.kept.values().filter(move |k| k.record.lane == lane);
                LaneStats {
                    messages: of_lane().count() as u64,
                    octets: of_lane().map(|kept| kept.content.len() as u64).sum(),
                    oldest: of_lane().map(|kept| kept.record.received_at).min(),
                }
            }))
        })
    }

    fn unjudged(&self) -> StoreFuture<'_, u64> {
        self.operation(None, Operation::Read, move |tables| {
            let scan = tables.kept.values().filter(|k| k.record.lane == Lane::Scan);
            Ok(scan.count() as u64)
        })
    }

    fn rescan_room(&self) -> StoreFuture<'_, u64> {
        self.operation(None, Operation::Read, move |tables| {
            let rescans = tables
                .kept
                .values()
                .filter(|k| k.record.lane == Lane::Rescan);
            let octets: usize = rescans.map(|kept| kept.content.len()).sum();
            Ok((contract::RESCAN_BYTES / 2).saturating_sub(octets as u64))
        })
    }

    fn accepts(&self) -> Result<(), StoreError> {
        match self.fate(None, Operation::Add).error {
            None => self.room(),
            Some(error) => Err(error),
        }
    }
}

/// A model that kept another contract than the store would prove nothing about the path.
#[tokio::test]
async fn the_store_of_the_tests_keeps_the_contract() {
    contract::holds(async || ((), Arc::new(Scripted::default()) as Arc<dyn Store>)).await;
}
