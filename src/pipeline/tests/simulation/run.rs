//! One world from its beginning to its end: the real path over simulated peers, checked after every step.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::scripted::Scripted;
use super::super::{
    Generation, Lanes, MessageId, Mode, Pipeline, Policy, Scanner, Watch, message, smtp,
};
use super::peers::{Build, NextHop, Scanning, Served};
use super::plan::{Arrival, Event, Nature, Plan};
use super::world::{Mood, World, recipients};
use crate::chance;
use crate::deadline::{Budget, Deadline, set_wall_clock, wall_clock};
use crate::delivery::{Delivery, Kind as Hop, Settings as HopSettings, SmtpSettings};
use crate::incident::Incident;
use crate::message::{Content, Envelope, Mailbox, Message, ReversePath, Rights};
use crate::policy;
use crate::quarantine::{self, Act};
use crate::scan::engine::{Address, Engine, Kind};
use crate::store::history::{History, HistoryEntry};
use crate::store::incidents::Incidents;
use crate::store::{Capacity, Lane, Record};
use crate::verdict::EngineClass;

/// The longest that nothing is checked.
const STEP: Duration = Duration::from_secs(5);
/// Everything has to have its end so long after the last trouble: the lease of work that was interrupted, the longest
/// back-off, and the time for deferrals.
const SETTLE: Duration = Duration::from_secs(4000);
/// An engine's own limit.
const ENGINE_LIMIT: Duration = Duration::from_secs(130);

pub(super) fn budget() -> Budget {
    Budget {
        session: Duration::from_secs(12),
        total: Duration::from_secs(40),
        deferral: Duration::from_secs(600),
    }
}

/// What outlives the relay.
struct Outside {
    plan: Plan,
    world: Arc<World>,
    disk: Arc<Scripted>,
    engines: Vec<Arc<Scanning>>,
    hops: Vec<Arc<NextHop>>,
    history: Mutex<Vec<HistoryEntry>>,
    incidents: Mutex<Vec<String>>,
}

/// One life of the relay, from start to stop or crash.
struct Life {
    pipeline: Arc<Pipeline>,
    closing: CancellationToken,
    clients: JoinSet<()>,
    heard: Box<dyn FnMut() -> Option<HistoryEntry> + Send>,
    noticed: Box<dyn FnMut() -> Option<Incident> + Send>,
}

/// How a life ended.
enum Death {
    Crash(Duration),
    Restart(Duration),
    Age,
}

/// What a world has shown.
pub(super) struct Shown {
    pub(super) failure: Option<String>,
    /// Equal for worlds that were equal in every step.
    pub(super) digest: u64,
}

/// Plays a plan.
pub(super) fn play(plan: &Plan, loud: bool) -> Shown {
    let outside = unfold(plan, loud);
    Shown {
        failure: outside.world.failure(),
        digest: outside.world.digest(),
    }
}

/// What a drill has shown, in the world's own time.
pub(super) struct Measured {
    pub(super) failure: Option<String>,
    /// Ages of valid messages at their delivery, in order.
    pub(super) delays: Vec<Duration>,
    /// Valid messages that were not delivered at the end.
    pub(super) kept: usize,
    /// Valid messages that were delivered without the first engine.
    pub(super) without: usize,
    /// Scans of poison, or of what it goes away on, that the first engine began.
    pub(super) touches: u32,
    /// Why messages are held at the end.
    pub(super) held: Vec<String>,
    /// The most valid messages that were under way at once.
    pub(super) backlog: usize,
    /// What the relay did by itself.
    pub(super) incidents: Vec<String>,
}

impl Measured {
    /// How many valid messages were delivered later than that, and how late the last one was.
    pub(super) fn later_than(&self, bound: Duration) -> (usize, Duration) {
        let late = self.delays.iter().filter(|delay| **delay > bound).count();
        (late, self.delays.last().copied().unwrap_or_default())
    }

    /// The delay that so many of a thousand valid messages do not exceed.
    pub(super) fn within(&self, of_thousand: usize) -> Duration {
        let at = (self.delays.len() * of_thousand).div_ceil(1000);
        let delay = self.delays.get(at.saturating_sub(1));
        delay.copied().unwrap_or_default()
    }
}

/// Plays a plan and looks at its valid mail.
pub(super) fn measure(plan: &Plan) -> Measured {
    let outside = unfold(plan, false);
    let world = outside.world.lock();
    let valid = || {
        let mails = world.mails.values();
        mails.filter(|mail| mail.nature == Some(Nature::Valid))
    };
    let mut delays: Vec<Duration> = valid().filter_map(|mail| mail.delay).collect();
    delays.sort_unstable();
    let mut moves: Vec<(Duration, i32)> = Vec::new();
    for mail in valid() {
        moves.push((mail.sent, 1));
        moves.extend(mail.delay.map(|delay| (mail.sent + delay, -1)));
    }
    moves.sort_unstable();
    let under_way = moves.iter().scan(0, |count, (_, step)| {
        *count += step;
        Some(*count)
    });
    let backlog = under_way.max().unwrap_or_default();
    Measured {
        failure: world.broken.clone(),
        kept: valid().count() - delays.len(),
        without: valid().filter(|mail| mail.without).count(),
        touches: outside.engines[0].touches(),
        held: outside.held(),
        backlog: usize::try_from(backlog).unwrap_or_default(),
        incidents: outside.incidents.lock().expect("lock").clone(),
        delays,
    }
}

fn unfold(plan: &Plan, loud: bool) -> Outside {
    chance::seed(Some(plan.seed ^ 0x5EED));
    let outside = Outside::new(plan, loud);
    let mut events = plan.events.clone();
    events.reverse();
    loop {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let death = runtime.block_on(outside.live(&mut events));
        let pause = match death {
            Death::Crash(pause) | Death::Restart(pause) => pause,
            Death::Age => Duration::ZERO,
        };
        // Nothing of the relay is left but what is durable.
        drop(runtime);
        if matches!(death, Death::Age) || outside.world.failure().is_some() {
            break;
        }
        outside.world.note(|| format!("starts after {pause:?}"));
    }
    set_wall_clock(None);
    chance::seed(None);
    outside
}

impl Outside {
    /// Why messages are held.
    fn held(&self) -> Vec<String> {
        let records = self.disk.all();
        let held = records.iter().filter(|r| r.lane == Lane::Held);
        let decisions = held.filter_map(|record| record.decision.as_ref());
        decisions.map(|decision| decision.reason.clone()).collect()
    }

    fn new(plan: &Plan, loud: bool) -> Self {
        let world = World::new(plan.seed, loud, (plan.coverage, plan.engines));
        let engine = |at| {
            let build = Build {
                at,
                poisoned: at == 0,
                knows: at != 1,
                slots: plan.slots,
                limit: ENGINE_LIMIT,
            };
            Scanning::new(&world, &build)
        };
        let hop = |name: &str| {
            Arc::new(NextHop {
                name: name.into(),
                world: world.clone(),
                fault: Mutex::new(None),
            })
        };
        Self {
            plan: plan.clone(),
            disk: Arc::new(Scripted::watched(world.clone())),
            engines: (0..plan.engines).map(engine).collect(),
            hops: vec![hop("b"), hop("others")],
            history: Mutex::default(),
            incidents: Mutex::default(),
            world,
        }
    }

    fn generation(&self, number: u32, before: Option<&Generation>) -> Generation {
        static POLICY: OnceLock<policy::Settings> = OnceLock::new();
        let defaults = || {
            let config = crate::config::load(None);
            config
                .unwrap_or_else(|problems| panic!("{problems}"))
                .policy
        };
        let mut policy = POLICY.get_or_init(defaults).clone();
        policy.coverage = [(EngineClass::Av, self.plan.coverage)].into();
        let engines = self.engines.iter().map(|engine| {
            let replicas: Vec<Arc<dyn Engine>> = vec![engine.clone()];
            (self.engine(engine.at, number), replicas)
        });
        let scanner = Scanner::of_engines(engines.collect(), before.map(|b| &b.scanner));
        scanner.watch();
        let hops = self.hops.iter().map(|hop| {
            let served: Arc<dyn crate::delivery::next_hop::NextHop> = Arc::new(Served(hop.clone()));
            (next_hop(&hop.name), served)
        });
        let config: Arc<str> = format!("c{number}").into();
        Generation {
            config: config.clone(),
            hostname: "relay.test".into(),
            scanner,
            policy: Policy::new(policy, config),
            delivery: Delivery::scripted(hops.collect(), before.map(|b| &b.delivery))
                .expect("next hops"),
            budget: budget(),
            retention: Duration::from_secs(86_400),
            quarantine: Capacity::default(),
        }
    }

    fn engine(&self, at: usize, number: u32) -> crate::scan::Settings {
        let address = Address::Tcp(format!("e{at}:3310"));
        crate::scan::Settings {
            name: format!("e{at}").into(),
            class: EngineClass::Av,
            timeout: Duration::from_secs(if number % 2 == 1 { 5 } else { 4 }),
            limit: ENGINE_LIMIT,
            slow: Duration::from_millis(500),
            wait: Duration::from_secs(2),
            probe: (self.plan.seed.is_multiple_of(2)).then_some(Duration::from_secs(10)),
            signature_age: None,
            attempts: self.plan.attempts,
            slots: self.plan.slots,
            max_size: 1 << 20,
            weight: 1.0,
            edits: Rights::None,
            guard: self.plan.guard,
            kind: Kind::Clamd {
                addresses: vec![address],
                connect_timeout: Duration::from_secs(1),
            },
        }
    }

    async fn start(&self) -> Life {
        self.world.begin_life();
        self.disk.reopen();
        let (history, heard) = History::detached();
        let (incidents, noticed) = Incidents::detached();
        let generation = self.generation(1, None);
        let logs = (history, incidents);
        let pipeline = Pipeline::new(
            generation,
            self.disk.clone(),
            logs,
            self.plan.intercept.clone(),
            64 << 20,
        );
        let closing = CancellationToken::new();
        let watch = Watch::begin(pipeline.clone()).await;
        tokio::spawn(Lanes::new(pipeline.clone()).run(closing.clone()));
        tokio::spawn(watch.run(closing.clone()));
        tokio::spawn(pipeline.clone().recover(closing.clone()));
        Life {
            pipeline,
            closing,
            clients: JoinSet::new(),
            heard: Box::new(heard),
            noticed: Box::new(noticed),
        }
    }

    /// Until the relay is stopped or killed, or everything has its end. `events` are those that are left, the last one
    /// first.
    async fn live(&self, events: &mut Vec<(Duration, Event)>) -> Death {
        let mut life = self.start().await;
        let mut reloads = 1;
        let death = loop {
            let now = self.world.now();
            let next = events.last().map(|(at, _)| *at);
            match next {
                Some(at) if at <= now => {}
                Some(at) => {
                    Deadline::after((at - now).min(STEP)).wait().await;
                    self.check(&mut life);
                    continue;
                }
                None => break self.settle(&mut life).await,
            }
            let Some((_, event)) = events.pop() else {
                continue;
            };
            self.world.note(|| format!("{event:?}"));
            match event {
                Event::Arrival(arrival) => self.arrives(&mut life, arrival),
                Event::Engine(at, fault) => self.engines[at].set(fault),
                Event::NextHop(at, fault) => *self.hops[at].fault.lock().expect("lock") = fault,
                Event::Disk(mood) => self.set_mood(mood),
                Event::Jump(milliseconds) => self.world.jump(milliseconds),
                Event::Reload => {
                    reloads += 1;
                    let before = life.pipeline.generation();
                    let next = self.generation(reloads, Some(&before));
                    life.pipeline.replace(next, self.plan.intercept.clone());
                }
                Event::Review { release } => self.review(release).await,
                Event::Crash(pause) => break Death::Crash(pause),
                Event::Restart(pause) => {
                    life.closing.cancel();
                    let patience = Deadline::after(Duration::from_secs(20));
                    life.pipeline.drained(patience).await;
                    break Death::Restart(pause);
                }
            }
            self.check(&mut life);
            if self.world.failure().is_some() {
                break Death::Age;
            }
        };
        self.check(&mut life);
        let pause = match death {
            Death::Crash(pause) | Death::Restart(pause) => pause,
            Death::Age => Duration::ZERO,
        };
        self.world.end_life(pause);
        death
    }

    fn set_mood(&self, mood: Mood) {
        let mut world = self.world.lock();
        world.mood = mood;
        world.disk_well_since = world.now();
    }

    fn arrives(&self, life: &mut Life, arrival: Arrival) {
        let mut message = message(&arrival.recipients);
        message.received_at = wall_clock();
        message.content = Content::uncharged(written(&arrival));
        let envelope = Envelope {
            reverse_path: match arrival.sender {
                Some(sender) => Mailbox::parse(sender).expect("mailbox").into(),
                None => ReversePath::NULL,
            },
            ..(*message.envelope).clone()
        };
        message.envelope = Arc::new(envelope);
        let to = &arrival.recipients[..];
        let number = self
            .world
            .sends(message.id, (arrival.nature, arrival.body), to);
        let mode = match arrival.queued {
            true => Mode::Queue,
            false => Mode::CutThrough,
        };
        let others = arrival.recipients.len().saturating_sub(1);
        if !life.pipeline.has_room(mode, others) {
            return self
                .world
                .note(|| format!("m{number} is refused at the door"));
        }
        let (world, disk, pipeline) =
            (self.world.clone(), self.disk.clone(), life.pipeline.clone());
        life.clients
            .spawn(client(world, disk, pipeline, message, mode));
    }

    async fn review(&self, release: bool) {
        let held = |r: &Record| r.lane == Lane::Held;
        let Some(record) = self.disk.all().into_iter().find(held) else {
            return;
        };
        let act = Act {
            actor: "rita".to_owned(),
            at: wall_clock(),
        };
        let give_up = Duration::from_secs(900);
        // A reviewer is told what went wrong, and that is all.
        let _ = match release {
            true => quarantine::release(&*self.disk, record.id, None, give_up, &act)
                .await
                .map(drop),
            false => quarantine::delete(&*self.disk, record.id, &act).await,
        };
    }

    /// All trouble is over: everything has its end before long.
    async fn settle(&self, life: &mut Life) -> Death {
        for engine in &self.engines {
            engine.set(None);
        }
        for hop in &self.hops {
            *hop.fault.lock().expect("lock") = None;
        }
        self.set_mood(Mood::Well);
        self.world.note(|| "all trouble is over".to_owned());
        let end = self.world.now() + SETTLE;
        while self.world.now() < end && self.world.failure().is_none() {
            Deadline::after(STEP).wait().await;
            self.check(life);
            let waits = |r: &Record| match r.lane {
                Lane::Scan | Lane::Delivery => true,
                // P6: what the guard keeps, and what was delivered without an engine.
                Lane::Rescan => true,
                Lane::Held => r.cause.is_some(),
            };
            if life.clients.is_empty()
                && !self.world.in_doubt()
                && !self.disk.all().iter().any(waits)
            {
                self.last_check();
                return Death::Age;
            }
        }
        if self.world.failure().is_some() {
            return Death::Age;
        }
        let waiting = self.disk.all();
        let waiting: Vec<String> = waiting
            .iter()
            .map(|r| {
                let name = self.world.name(r.message);
                format!(
                    "{name:?} in {} ({}, {:?})",
                    r.lane.as_str(),
                    r.status,
                    r.cause
                )
            })
            .collect();
        let clients = life.clients.len();
        self.world.breaks(format!(
            "P1, P6: {SETTLE:?} after all trouble there still wait: {waiting:?}, and {clients} clients"
        ));
        Death::Age
    }

    /// What must hold after every step.
    fn check(&self, life: &mut Life) {
        while let Some(client) = life.clients.try_join_next() {
            if let Err(error) = client {
                self.world.breaks(format!("accept panicked: {error}"));
            }
        }
        let mut history = self.history.lock().expect("lock");
        while let Some(entry) = (life.heard)() {
            history.push(entry);
        }
        drop(history);
        while let Some(incident) = (life.noticed)() {
            let (kind, summary) = (incident.kind.as_str(), incident.summary);
            self.world.note(|| kind.to_owned());
            self.world.lock().show(&format!("  {summary}"));
            let mut incidents = self.incidents.lock().expect("lock");
            incidents.push(format!("{kind}: {summary}"));
        }
        self.check_deferrals();
    }

    /// P1: nothing waits for a scan longer than deferrals are allowed to take, as long as the disk works and the relay
    /// runs.
    fn check_deferrals(&self) {
        let budget = budget();
        let mut inner = self.world.lock();
        let now = inner.now();
        let lease = super::super::lanes::lease(&budget);
        let longest = budget.deferral + Duration::from_secs(900) + lease + budget.total;
        let disturbed = inner.crashes.last().copied().unwrap_or_default();
        let since = disturbed.max(inner.disk_well_since);
        if now < since + longest {
            return;
        }
        for record in self.disk.all() {
            let age = inner.mail(record.message).map(|mail| mail.age(now));
            if record.lane == Lane::Scan && age.is_some_and(|age| age > longest) {
                let id = record.message;
                inner.breaks(format!("P1: {id} has waited for a verdict for {age:?}"));
            }
        }
    }

    /// What must hold when everything has its end.
    fn last_check(&self) {
        let mut inner = self.world.lock();
        let kept = self.disk.all();
        let history = self.history.lock().expect("lock");
        let names: Vec<(usize, MessageId)> = inner.names();
        let mut broken = Vec::new();
        for (number, id) in names {
            let mail = inner.mails[&number].clone();
            if mail.accepted != Some(true) {
                continue;
            }
            for (recipient, ends) in &mail.ends {
                let held = kept
                    .iter()
                    .any(|r| r.message == id && recipients(r).any(|other| other == recipient));
                let has_end = ends.taken > 0 || ends.bounced || ends.ended || held;
                let told: Vec<&str> = history
                    .iter()
                    .filter(|e| e.message == id)
                    .filter(|e| e.recipients.iter().any(|r| r.as_str() == recipient))
                    .map(|e| &*e.event)
                    .collect();
                let wanted: &[&str] = match (ends.taken > 0, held) {
                    // The relay may not know that it was taken, if no answer about that came.
                    (true, _) if ends.taken <= ends.excuses => {
                        &["delivered", "refused", "given-up", "held"]
                    }
                    (true, _) => &["delivered"],
                    (_, true) => &["held", "refused"],
                    _ => &["refused", "given-up", "held"],
                };
                let explained = told.iter().any(|event| wanted.contains(event));
                if !has_end {
                    broken.push(format!(
                        "P5: m{number} was accepted, and has no end for {recipient} ({told:?})"
                    ));
                }
                if !explained && !mail.is_forgotten(&inner.crashes) {
                    broken.push(format!(
                        "P7: history does not tell the end of m{number} for {recipient}: {ends:?}, held {held}, told {told:?}"
                    ));
                }
            }
        }
        for law in broken {
            inner.breaks(law);
        }
    }
}

/// One client from end of data to its reply.
async fn client(
    world: Arc<World>,
    disk: Arc<Scripted>,
    pipeline: Arc<Pipeline>,
    message: Message,
    mode: Mode,
) {
    let (id, began) = (message.id, world.now());
    let slow = |mood: Mood| match mood {
        Mood::Slow(most) => most,
        _ => Duration::ZERO,
    };
    let before = world.lock().mood;
    let reply = pipeline.accept(message, mode).await;
    let (took, after, well) = {
        let inner = world.lock();
        let well = inner.disk_well_since;
        (inner.now() - began, inner.mood, well)
    };
    // P1. An operation of a slow disk has two halves, and a reply may wait for two of them; a disk that fails at the end
    // of budget.session leaves the sender with the next hop's answer.
    let disk_time = slow(before).max(slow(after)) * 4;
    let undisturbed = before == after
        && well <= began
        && !matches!(after, Mood::Full | Mood::Flaky(_) | Mood::Broken);
    let patience = budget().session + disk_time + Duration::from_millis(10);
    if undisturbed && took > patience {
        world.breaks(format!("P1: {id} was answered after {took:?}"));
    }
    let kept: BTreeSet<String> = disk
        .all()
        .iter()
        .filter(|r| r.message == id && r.lane != Lane::Rescan)
        .flat_map(|r| recipients(r).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    world.replied(id, reply.code(), &kept);
}

/// What a message is made of.
fn written(arrival: &Arrival) -> String {
    let nature = match arrival.nature {
        Nature::Malware => "MALWARE",
        // It is its attachment that is slow.
        Nature::Poison if !arrival.attached.is_empty() => "",
        Nature::Poison => "POISON",
        Nature::Killer => "KILLER",
        Nature::Valid => "",
    };
    let text = match (arrival.words, arrival.alike) {
        (Some((order, count)), _) => shared_words(order, count),
        (None, None) => words(arrival.body),
        (None, Some(most)) => format!("{} {}", words(most), &words(arrival.body)[..14]),
    };
    let subject = match arrival.words {
        Some(_) => words(arrival.body),
        None => text.clone(),
    };
    let subject = &subject[..8];
    if arrival.attached.is_empty() {
        return format!("Subject: {subject}\r\n\r\n{nature} {text}\r\n");
    }
    let part = |(number, is_slow): &(u64, bool)| {
        let octets: String = (0..20).map(|n| words(number.wrapping_add(n))).collect();
        let poison = if *is_slow { "POISON" } else { "" };
        format!(
            "--=b\r\nContent-Type: application/pdf; name=\"{number}.pdf\"\r\n\
             Content-Disposition: attachment; filename=\"{number}.pdf\"\r\n\r\n{poison}{octets}\r\n"
        )
    };
    let parts: String = arrival.attached.iter().map(part).collect();
    format!(
        "Subject: {subject}\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"=b\"\r\n\r\n\
         --=b\r\nContent-Type: text/plain\r\n\r\n{text}\r\n{parts}--=b--\r\n"
    )
}

/// Words that all mail uses, in an order of its own for every number.
fn shared_words(order: u64, count: usize) -> String {
    const VOCABULARY: u64 = 30;
    let all: Vec<String> = (0..VOCABULARY).map(words).collect();
    let mut rng = StdRng::seed_from_u64(order);
    let mut text = String::with_capacity(count * 7);
    for at in 0..count {
        let word = &all[rng.random_range(0..VOCABULARY) as usize];
        text.push_str(&word[..6]);
        text.push_str(if at % 10 == 9 { "\r\n" } else { " " });
    }
    text
}

/// A text of its own for every number; digits alone would make two messages copies of one mailing.
fn words(number: u64) -> String {
    let mut rng = StdRng::seed_from_u64(number);
    let letter = |at: usize| match at % 7 {
        6 => ' ',
        _ => char::from(rng.random_range(b'a'..=b'z')),
    };
    (0..140).map(letter).collect()
}

fn next_hop(name: &Arc<str>) -> HopSettings {
    let domain = match &**name {
        "b" => "b.test",
        _ => "*",
    };
    let kind = Hop::Smtp(SmtpSettings {
        connections: 8,
        ..smtp(([192, 0, 2, 1], 25).into(), Duration::from_secs(60))
    });
    HopSettings {
        retry_first: Duration::from_secs(5),
        retry_max: Duration::from_secs(60),
        give_up: Duration::from_secs(900),
        ..HopSettings::sample(name, &[domain], kind)
    }
}
