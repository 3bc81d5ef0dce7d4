//! One run: engines, next hops, the relay, the load, and what is left when it is over.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

use crate::engine::{Engine, Mode, Scan};
use crate::load::{Limits, Load, Told};
use crate::mail::World;
use crate::options::{Options, Phases, USUAL_RATE};
use crate::peer::Peer;
use crate::plan::{Planned, plan};
use crate::process::{Spillway, cpu_of};
use crate::relay::{self, Books};
use crate::scene::Scene;
use crate::sink::{Book, Manner, Sink};
use crate::variant::{Event, Fault, Hop, Variant};

/// From the start of the engines to the first message: what a relay needs to start.
const LEAD: Duration = Duration::from_secs(3);
const PEER_LEAD: Duration = Duration::from_secs(10);
/// Idle sessions kept for one client. Postfix has a process for each session, so none: they would be most of its 100.
const IDLE: usize = 50;
const PEER_IDLE: usize = 0;
const FLAP: Duration = Duration::from_secs(20);
const STUTTER: Duration = Duration::from_secs(2);
/// Mail that is due so soon after the relay was killed does not count.
pub const GRACE: Duration = Duration::from_secs(5);

/// What the load is sent through.
pub enum Subject {
    Spillway(Spillway),
    Peer(Peer),
}

/// Everything that was seen. Instants count from the first message.
pub struct Outcome {
    pub variant: Variant,
    pub subject: &'static str,
    /// The mechanism that was left out.
    pub without: Option<String>,
    /// The rate, as a multiple of the usual one.
    pub times: f64,
    pub seed: u64,
    pub quick: bool,
    /// What the relay was configured with.
    pub configured: String,
    /// The figure of the run that this one is compared with, if there was one.
    pub reference: Option<f64>,
    /// When the relay was killed.
    pub killed: Option<Duration>,
    pub phases: Phases,
    pub plan: Arc<Vec<Planned>>,
    pub told: Vec<Told>,
    /// By next hop.
    pub hops: Vec<Book>,
    /// Of the first engine.
    pub scans: Vec<Scan>,
    pub zombies: usize,
    pub busiest: usize,
    pub books: Books,
    /// Of the relay, in octets.
    pub resident: Resident,
    /// Of the first engine's scans.
    pub overrun: Vec<Duration>,
    /// CPU seconds per second, of the relay and of this program.
    pub cpu: (f64, f64),
    /// The wall clock at the first message.
    pub began_at: jiff::Timestamp,
    pub ended: Duration,
    pub capped: bool,
}

/// Resident memory of the relay, in octets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Resident {
    /// At most, until the event began.
    pub calm: u64,
    /// At most.
    pub most: u64,
    /// At the end.
    pub last: u64,
}

struct Stage {
    engines: Vec<Engine>,
    hops: Vec<Sink>,
    began: Instant,
    /// Dropping them stops what runs on them: engines have a thread of their own, so that nobody else makes them slow.
    _engines_on: Runtime,
    people: Runtime,
}

impl Stage {
    fn new(scene: &Scene, plan: &Arc<Vec<Planned>>, lead: Duration) -> io::Result<Self> {
        let own = |threads| {
            Builder::new_multi_thread()
                .worker_threads(threads)
                .enable_all()
                .build()
        };
        let (engines_on, people) = (own(1)?, own(2)?);
        let began = Instant::now() + lead;
        let mut engines = Vec::new();
        for at in 0..scene.engines {
            let engine = Engine::start(at == 0, scene, plan.clone(), began);
            engines.push(engines_on.block_on(engine)?);
        }
        let hops = [
            people.block_on(Sink::start(began))?,
            people.block_on(Sink::start(began))?,
        ];
        Ok(Self {
            engines,
            hops: hops.into(),
            began,
            _engines_on: engines_on,
            people,
        })
    }

    /// Begins, or ends, what goes wrong.
    fn set(&self, event: Event, since: Option<Duration>) {
        let (mode, manner) = match (event, since) {
            (Event::Fault(fault @ (Fault::Flapping | Fault::Stutter)), Some(since)) => {
                let phase = match fault {
                    Fault::Stutter => STUTTER,
                    _ => FLAP,
                };
                match (since.as_secs() / phase.as_secs()) % 2 {
                    0 => (mode(fault), Manner::Quick),
                    _ => (Mode::Healthy, Manner::Quick),
                }
            }
            (Event::Away | Event::Backlog { .. }, Some(_)) => (Mode::Refused, Manner::Quick),
            (Event::Fault(fault), Some(_)) => (mode(fault), Manner::Quick),
            (Event::NextHop(Hop::Throttled), Some(_)) => (Mode::Healthy, Manner::Throttled(5)),
            (Event::NextHop(Hop::Tarpit), Some(_)) => {
                (Mode::Healthy, Manner::Tarpit(Duration::from_secs(30)))
            }
            _ => (Mode::Healthy, Manner::Quick),
        };
        self.engines[0]
            .mode
            .send_if_modified(|now| std::mem::replace(now, mode) != mode);
        self.hops[1]
            .manner
            .send_if_modified(|now| std::mem::replace(now, manner) != manner);
    }
}

fn mode(fault: Fault) -> Mode {
    match fault {
        Fault::SlowLarge => Mode::SlowLarge,
        Fault::SlowAll => Mode::SlowAll,
        Fault::Hung | Fault::Flapping => Mode::Hung,
        Fault::Refused => Mode::Refused,
        Fault::Garbage => Mode::Garbage,
        Fault::Gray => Mode::Gray,
        Fault::Stutter => Mode::Stuck,
    }
}

/// Runs a variant against a fresh relay.
pub fn spillway(options: &Options, variant: &Variant) -> io::Result<Outcome> {
    run(options, variant, LEAD, |engines, hops| {
        let listener = relay::listener(options, &variant.scene);
        let config = relay::config(options, &variant.scene, engines, hops);
        let built = Path::new(env!("CARGO_BIN_EXE_spillway"));
        let program = options.relay.as_deref().unwrap_or(built);
        let mut spillway = Spillway::start_as(program, &environment(options), &listener, &config);
        if options.keep {
            spillway.keep();
        }
        Subject::Spillway(spillway)
    })
}

fn environment(options: &Options) -> [(&str, &str); 1] {
    let left_out = options.without.as_deref().unwrap_or_default();
    [("SPILLWAY_WITHOUT", left_out)]
}

/// Runs a variant against Postfix with clamav-milter.
pub fn peer(options: &Options, variant: &Variant) -> io::Result<Outcome> {
    run(options, variant, PEER_LEAD, |engines, hops| {
        Subject::Peer(Peer::start(engines[0], hops[0]))
    })
}

/// Runs a variant against anything.
fn run(
    options: &Options,
    variant: &Variant,
    lead: Duration,
    start: impl FnOnce(&[u16], [u16; 2]) -> Subject,
) -> io::Result<Outcome> {
    let scene = &variant.scene;
    let phases = options.phases(scene);
    let plan = Arc::new(plan(options, variant, &phases));
    let world = World::new(options, scene);
    let stage = Stage::new(scene, &plan, lead)?;
    // What is away from the beginning is away before the relay looks.
    stage.set(
        variant.event,
        phases.event_begins.is_zero().then_some(Duration::ZERO),
    );
    let ports: Vec<u16> = stage.engines.iter().map(|engine| engine.port).collect();
    let mut subject = start(&ports, [stage.hops[0].port, stage.hops[1].port]);
    let relay = ([127, 0, 0, 1], subject.port()).into();
    let load = Arc::new(Load::new(
        relay,
        world,
        plan.clone(),
        stage.began,
        Limits {
            sessions: options.sessions,
            idle: subject.idle(),
        },
    ));
    let sending = stage.people.spawn(load.clone().run());
    let began_at = jiff::Timestamp::now() + until(stage.began);
    let seen = watch(&stage, options, variant, &phases, &mut subject, &plan);
    sending.abort();
    let _ = stage.people.block_on(sending);
    let ended = stage.began.elapsed();
    let books = subject.finish();
    let take =
        |told: &std::sync::Mutex<Told>| told.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let first = &stage.engines[0].seen;
    Ok(Outcome {
        variant: *variant,
        subject: subject.name(),
        without: options.without.clone(),
        times: options.rate() * scene.rate / USUAL_RATE,
        seed: options.seed,
        quick: options.quick,
        configured: relay::used(options, scene),
        reference: None,
        killed: seen.killed,
        phases,
        told: load.told.iter().map(take).collect(),
        hops: stage
            .hops
            .iter()
            .map(|hop| std::mem::take(&mut *lock(&hop.book)))
            .collect(),
        scans: lock(&first.scans).clone(),
        zombies: first.most_zombies(),
        busiest: first.busiest(),
        overrun: lock(&first.overrun).clone(),
        books,
        resident: seen.resident,
        cpu: seen.cpu,
        began_at,
        ended,
        capped: load.capped.load(std::sync::atomic::Ordering::Relaxed),
        plan,
    })
}

fn lock<T>(of: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn until(instant: Instant) -> Duration {
    instant.saturating_duration_since(Instant::now())
}

/// What was seen of the relay while it ran.
#[derive(Debug, Default)]
struct Seen {
    resident: Resident,
    cpu: (f64, f64),
    killed: Option<Duration>,
}

/// Directs the event and looks at the relay until everything valid is settled, or the time for it is over.
fn watch(
    stage: &Stage,
    options: &Options,
    variant: &Variant,
    phases: &Phases,
    subject: &mut Subject,
    plan: &[Planned],
) -> Seen {
    const LOOK: Duration = Duration::from_millis(50);
    std::thread::sleep(until(stage.began));
    let own = std::process::id();
    let (relay_before, own_before) = (subject.cpu(), cpu_of(own).0);
    let valid = plan
        .iter()
        .filter(|planned| planned.kind.is_valid())
        .count();
    let every = if outlives(variant) { 40 } else { 10 };
    let kill = variant.scene.kill.map(|after| phases.event_begins + after);
    let mut seen = Seen::default();
    let mut looks = 0u32;
    let mut loaded = None;
    loop {
        let now = stage.began.elapsed();
        let in_event = now >= phases.event_begins && now < phases.event_ends;
        stage.set(variant.event, in_event.then(|| now - phases.event_begins));
        if seen.killed.is_none() && kill.is_some_and(|at| now >= at) {
            seen.killed = Some(now);
            subject.kill_and_start(options);
        }
        if looks.is_multiple_of(10) {
            let resident = &mut seen.resident;
            resident.last = subject.resident();
            resident.most = resident.most.max(resident.last);
            if now < phases.event_begins {
                resident.calm = resident.most;
            }
        }
        looks += 1;
        if now >= phases.load_ends {
            let seconds = now.as_secs_f64();
            seen.cpu = *loaded.get_or_insert((
                (subject.cpu() - relay_before).max(0.0) / seconds,
                (cpu_of(own).0 - own_before) / seconds,
            ));
            let enough = || {
                delivered(stage, plan) >= valid
                    && rescanned(stage, variant)
                    && !awaits_culprits(variant, subject)
            };
            if now >= phases.settled_by || (looks.is_multiple_of(every) && enough()) {
                return seen;
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// Whether the run goes on until the relay has judged what it has, valid or not.
fn outlives(variant: &Variant) -> bool {
    matches!(variant.event, Event::Backlog { .. } | Event::Killer)
}

fn awaits_culprits(variant: &Variant, subject: &Subject) -> bool {
    match subject {
        Subject::Spillway(spillway) => outlives(variant) && relay::waits(spillway),
        Subject::Peer(_) => false,
    }
}

/// Valid messages that have arrived.
fn delivered(stage: &Stage, plan: &[Planned]) -> usize {
    let mut arrived = vec![false; plan.len()];
    for hop in &stage.hops {
        for arrival in &lock(&hop.book).arrivals {
            if let Some(seen) = arrival.message.and_then(|at| arrived.get_mut(at)) {
                *seen = true;
            }
        }
    }
    let both = arrived.iter().zip(plan);
    both.filter(|(arrived, planned)| **arrived && planned.kind.is_valid())
        .count()
}

/// Whether the first engine has seen again what it made answers up for; trivially so unless it did.
fn rescanned(stage: &Stage, variant: &Variant) -> bool {
    let is_gray = variant.event == Event::Fault(Fault::Gray);
    !is_gray || crate::figures::not_rescanned(&lock(&stage.engines[0].seen.scans)).is_empty()
}

impl Subject {
    fn name(&self) -> &'static str {
        match self {
            Self::Spillway(_) => "spillway",
            Self::Peer(_) => "postfix + clamav-milter",
        }
    }

    fn idle(&self) -> usize {
        match self {
            Self::Spillway(_) => IDLE,
            Self::Peer(_) => PEER_IDLE,
        }
    }

    fn port(&self) -> u16 {
        match self {
            Self::Spillway(spillway) => spillway.port,
            Self::Peer(peer) => peer.postfix.port,
        }
    }

    fn cpu(&self) -> f64 {
        match self {
            Self::Spillway(spillway) => spillway.cpu(),
            Self::Peer(peer) => peer.cpu(),
        }
    }

    fn resident(&self) -> u64 {
        match self {
            Self::Spillway(spillway) => spillway.resident(),
            Self::Peer(_) => 0,
        }
    }

    /// SIGKILL, and another start.
    fn kill_and_start(&mut self, options: &Options) {
        if let Self::Spillway(spillway) = self {
            spillway.kill_and_start(&environment(options));
        }
    }

    /// Stops it, so that its books do not change while they are read.
    fn finish(&mut self) -> Books {
        match self {
            Self::Spillway(spillway) => {
                spillway.finish();
                Books::read(spillway)
            }
            Self::Peer(peer) => peer.books(),
        }
    }
}
