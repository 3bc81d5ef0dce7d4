//! Who sends what, when: settled before the run begins, from one seed, so that a slow relay cannot slow the load down.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::options::{Options, Phases};
use crate::variant::{Event, Fault, Flood, POISON, Variant};

/// Domains that send all the time, each from an address of its own.
pub const KNOWN: u32 = 40;
/// What an engine that is well takes for a message.
pub const USUAL: Duration = Duration::from_millis(5);

/// One message that is going to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Planned {
    pub due: Duration,
    pub kind: Kind,
    pub from: From,
    /// Whether it goes to the second next hop.
    pub second_hop: bool,
    pub seed: u64,
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Valid,
    /// Valid, and 1 to 2 MiB.
    Large,
    /// Only the first engine knows that it is bad, and does so at once.
    Malware,
    Newsletter {
        personal: bool,
        scan: Duration,
    },
    /// Valid, small, and of the client that sends too much; every engine takes so long for it.
    Greedy {
        scan: Duration,
    },
    Flood(Flood),
}

/// Who sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Known(u32),
    /// Somebody whom nobody has seen before.
    Fresh(u32),
    Greedy,
}

impl Kind {
    pub fn is_flood(self) -> bool {
        matches!(self, Self::Flood(_))
    }

    /// Mail that people want.
    pub fn is_valid(self) -> bool {
        !self.is_flood() && self != Self::Malware
    }

    /// What it costs the first engine on a good day.
    pub fn cost(self) -> Duration {
        match self {
            Self::Flood(_) => POISON,
            Self::Newsletter { scan, .. } | Self::Greedy { scan } => scan,
            Self::Valid | Self::Large | Self::Malware => USUAL,
        }
    }
}

/// All messages of a run, in the order of their times; a message's place is its number.
pub fn plan(options: &Options, variant: &Variant, phases: &Phases) -> Vec<Planned> {
    let mut planner = Planner {
        rng: SmallRng::seed_from_u64(options.seed),
        fresh: 0,
        planned: Vec::new(),
    };
    let rate = options.rate();
    let is_flood = matches!(variant.event, Event::Flood(_));
    let valid_rate = if is_flood { rate * 0.7 } else { rate };
    let always = (Duration::ZERO, phases.load_ends);
    let event = (phases.event_begins, phases.event_ends);
    planner.arrivals(always, valid_rate, |planner| planner.valid(variant));
    match variant.event {
        Event::Flood(flood) => planner.arrivals(event, rate * 0.3, |planner| {
            (Kind::Flood(flood), planner.fresh(), false)
        }),
        Event::Newsletter { personal, scan } => {
            let burst = (event.1 - event.0).min(Duration::from_secs(30));
            let rate = if personal { rate / 2.0 } else { rate };
            planner.arrivals((event.0, event.0 + burst), rate, |_| {
                (Kind::Newsletter { personal, scan }, From::Known(0), false)
            });
        }
        Event::Greedy { scan } => {
            let greedy = (Kind::Greedy { scan }, From::Greedy, false);
            planner.arrivals(event, rate * 9.0, |_| greedy);
        }
        Event::Fault(_) | Event::NextHop(_) => {}
    }
    planner.planned.sort_by_key(|planned| planned.due);
    planner.planned
}

struct Planner {
    rng: SmallRng,
    fresh: u32,
    planned: Vec<Planned>,
}

impl Planner {
    /// A Poisson stream between two instants.
    fn arrivals(
        &mut self,
        (begins, ends): (Duration, Duration),
        rate: f64,
        mut what: impl FnMut(&mut Self) -> (Kind, From, bool),
    ) {
        let mut due = begins;
        loop {
            let draw: f64 = self.rng.random();
            due += Duration::from_secs_f64(-(1.0 - draw).ln() / rate);
            if due >= ends {
                return;
            }
            let (kind, from, second_hop) = what(self);
            self.planned.push(Planned {
                due,
                kind,
                from,
                second_hop,
                seed: self.rng.random(),
            });
        }
    }

    fn fresh(&mut self) -> From {
        self.fresh += 1;
        From::Fresh(self.fresh)
    }

    fn valid(&mut self, variant: &Variant) -> (Kind, From, bool) {
        let kind = match variant.event {
            Event::Fault(Fault::SlowLarge) if self.rng.random_bool(0.03) => Kind::Large,
            Event::Fault(Fault::Gray) if self.rng.random_bool(0.01) => Kind::Malware,
            _ => Kind::Valid,
        };
        let from = match self.rng.random_bool(0.03) {
            true => self.fresh(),
            false => From::Known(self.rng.random_range(0..KNOWN)),
        };
        let second_hop = matches!(variant.event, Event::NextHop(_)) && self.rng.random_bool(0.5);
        (kind, from, second_hop)
    }
}
