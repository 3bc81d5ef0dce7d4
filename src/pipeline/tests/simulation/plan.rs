//! From a seed to everything that happens in a world, as plain data: what breaks a law can be taken apart.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::peers::{EngineFault, HopFault};
use super::world::Mood;
use crate::intercept;
use crate::scan::GuardSettings;

/// One thing that happens.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// A client hands over a message.
    Arrival(Arrival),
    Engine(usize, Option<EngineFault>),
    NextHop(usize, Option<HopFault>),
    Disk(Mood),
    /// The wall clock jumps by so many milliseconds.
    Jump(i64),
    /// Another configuration.
    Reload,
    /// A reviewer decides about the oldest held message.
    Review {
        release: bool,
    },
    /// kill -9, and a start after so long.
    Crash(Duration),
    /// A stop that lets work end, and a start after so long.
    Restart(Duration),
}

/// What a message is made of, as far as the world is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nature {
    /// Like all others.
    Valid,
    /// Some engines know it.
    Malware,
    /// One engine is slow with it, for as long as it may.
    Poison,
    /// One engine goes away on it, and on all that it works on then.
    Killer,
}

/// One message that comes in.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) nature: Nature,
    /// Equal for copies of the same content.
    pub(super) body: u64,
    /// Equal for messages that are much the same.
    pub(super) alike: Option<u64>,
    /// So many words of a vocabulary that all mail shares, in an order of its own for each number; a short text otherwise.
    pub(super) words: Option<(u64, usize)>,
    /// Its attachments: equal octets for equal numbers, and whether one engine is slow with them.
    pub(super) attached: Vec<(u64, bool)>,
    pub(super) sender: Option<&'static str>,
    pub(super) recipients: Vec<&'static str>,
    pub(super) queued: bool,
}

/// A whole world.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) engines: usize,
    pub(super) slots: usize,
    /// Answers of engines that policy asks for.
    pub(super) coverage: usize,
    /// Calls of an engine for one message.
    pub(super) attempts: u32,
    /// The settings of all engines' guards, and of the learner.
    pub(super) guard: GuardSettings,
    pub(super) intercept: intercept::Settings,
    pub(super) events: Vec<(Duration, Event)>,
}

pub(super) const SENDERS: [Option<&str>; 4] = [
    Some("ann@partner.test"),
    Some("bob@shop.test"),
    Some("eve@stranger.test"),
    None,
];
pub(super) const RECIPIENTS: [&str; 5] = [
    "x@b.test",
    "y@b.test",
    "z@c.test",
    "w@c.test",
    "nobody@b.test",
];
/// How long clients send.
const ACTIVE: Duration = Duration::from_secs(60);

impl Plan {
    /// The world of a seed.
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let engines = rng.random_range(1..=3);
        let mut plan = Self {
            seed,
            engines,
            slots: rng.random_range(2..=4),
            coverage: rng.random_range(1..=engines),
            attempts: rng.random_range(1..=2),
            guard: GuardSettings::default(),
            intercept: intercept::Settings::default(),
            events: Vec::new(),
        };
        for _ in 0..rng.random_range(4..=24) {
            let arrival = plan.arrival(&mut rng);
            plan.add(&mut rng, Event::Arrival(arrival));
        }
        if rng.random_bool(0.4) {
            plan.flood(&mut rng);
        }
        for _ in 0..rng.random_range(0..=5) {
            plan.trouble(&mut rng);
        }
        plan.events.sort_by_key(|(at, _)| *at);
        plan
    }

    /// Mail as the drill has it: valid messages to three engines, two of which must answer, and from ten seconds on a flood
    /// of so many messages a second that the first engine cannot do: copies of one, or each a little different.
    pub(super) fn drill(seed: u64, valid: u32, (flood, differ): (u32, bool)) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plan = Self {
            engines: 3,
            slots: 12,
            coverage: 2,
            attempts: 1,
            events: Vec::new(),
            ..Self::new(seed)
        };
        let poison = rng.random();
        let span = ACTIVE.as_millis() as u64;
        for (nature, from, rate) in [(Nature::Valid, 0, valid), (Nature::Poison, 10_000, flood)] {
            for _ in 0..(span - from) * u64::from(rate) / 1000 {
                let is_valid = nature == Nature::Valid;
                let arrival = Arrival {
                    nature,
                    body: match is_valid || differ {
                        true => rng.random(),
                        false => poison,
                    },
                    alike: (!is_valid).then_some(poison),
                    words: None,
                    attached: Vec::new(),
                    sender: SENDERS[if is_valid { rng.random_range(0..2) } else { 2 }],
                    recipients: vec![RECIPIENTS[rng.random_range(0..4)]],
                    queued: false,
                };
                let at = Duration::from_millis(rng.random_range(from..span));
                plan.events.push((at, Event::Arrival(arrival)));
            }
        }
        plan.events.sort_by_key(|(at, _)| *at);
        plan
    }

    fn add(&mut self, rng: &mut StdRng, event: Event) -> Duration {
        let at = ACTIVE.mul_f64(rng.random());
        self.events.push((at, event));
        at
    }

    fn arrival(&self, rng: &mut StdRng) -> Arrival {
        let nature = match rng.random_range(0..10) {
            0 => Nature::Malware,
            1 => Nature::Poison,
            _ => Nature::Valid,
        };
        let mut recipients = Vec::new();
        for _ in 0..rng.random_range(1..=3) {
            let recipient = RECIPIENTS[rng.random_range(0..RECIPIENTS.len())];
            if !recipients.contains(&recipient) {
                recipients.push(recipient);
            }
        }
        Arrival {
            nature,
            body: rng.random(),
            alike: None,
            words: None,
            attached: Vec::new(),
            sender: SENDERS[rng.random_range(0..SENDERS.len())],
            recipients,
            queued: rng.random_bool(0.3),
        }
    }

    /// Copies of one message in a few seconds.
    fn flood(&mut self, rng: &mut StdRng) {
        let from = ACTIVE.mul_f64(rng.random());
        let nature = match rng.random_bool(0.7) {
            true => Nature::Poison,
            false => Nature::Valid,
        };
        let body = rng.random();
        for _ in 0..rng.random_range(3..=20) {
            let arrival = self.arrival(rng);
            let at = from + Duration::from_millis(rng.random_range(0..4000));
            let copy = Arrival {
                nature,
                body,
                ..arrival
            };
            self.events.push((at, Event::Arrival(copy)));
        }
    }

    /// Something goes wrong, and in most cases ends before long.
    fn trouble(&mut self, rng: &mut StdRng) {
        let span = Duration::from_secs(rng.random_range(1..40));
        let span = match rng.random_bool(0.2) {
            true => span.saturating_mul(5),
            false => span,
        };
        let pause = Duration::from_millis(rng.random_range(100..30_000));
        let (begin, end) = match rng.random_range(0..12) {
            0..=4 => {
                let at = rng.random_range(0..self.engines);
                let fault = engine_fault(rng);
                (
                    Event::Engine(at, Some(fault)),
                    Some(Event::Engine(at, None)),
                )
            }
            5..=6 => {
                let at = rng.random_range(0..2);
                let fault = match rng.random_range(0..5) {
                    0 => HopFault::Later,
                    4 => HopFault::Throttle,
                    1 => HopFault::Hang,
                    2 => HopFault::Ambiguous,
                    _ => HopFault::Partial,
                };
                (
                    Event::NextHop(at, Some(fault)),
                    Some(Event::NextHop(at, None)),
                )
            }
            7 => {
                let mood = match rng.random_range(0..4) {
                    0 => Mood::Slow(Duration::from_millis(rng.random_range(10..3000))),
                    1 => Mood::Full,
                    2 => Mood::Flaky(rng.random_range(2..6)),
                    _ => Mood::Broken,
                };
                (Event::Disk(mood), Some(Event::Disk(Mood::Well)))
            }
            8 => (Event::Crash(pause), None),
            9 => (Event::Restart(pause), None),
            10 => (Event::Jump(rng.random_range(-30_000..30_000)), None),
            _ => (Event::Reload, None),
        };
        let at = self.add(rng, begin);
        if let Some(end) = end {
            self.events.push((at + span, end));
        }
        if rng.random_bool(0.3) {
            let release = rng.random_bool(0.5);
            self.events.push((at + span, Event::Review { release }));
        }
    }
}

fn engine_fault(rng: &mut StdRng) -> EngineFault {
    match rng.random_range(0..8) {
        0 => EngineFault::Hang,
        1 => EngineFault::Slow(Duration::from_millis(rng.random_range(100..10_000))),
        2 => EngineFault::Refuse,
        3 => EngineFault::Drop,
        4 => EngineFault::Garbage,
        5 => EngineFault::Panic,
        6 => EngineFault::Gray,
        _ => EngineFault::Flapping(Duration::from_secs(rng.random_range(1..20))),
    }
}
