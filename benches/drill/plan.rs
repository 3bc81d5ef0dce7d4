//! Who sends what, when: settled before the run begins, from one seed, so that a slow relay cannot slow the load down.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::options::{Options, Phases};
use crate::scene::Senders;
use crate::variant::{Event, Fault, Flood, POISON, Variant};

/// Domains that send all the time, each from an address of its own.
pub const KNOWN: u32 = 40;
/// Users of the one domain where there is one only. The first of them does what the event is about.
pub const USERS: u32 = 500;
/// Mail that comes while an engine is away ends so long before it is back, so that all of it is deferred.
const DEFERRED_BY: Duration = Duration::from_secs(3);

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
    /// The first engine works on it for [`POISON`]; like no other message.
    Hang,
    /// The engine that scans it crashes.
    Killer,
    /// A good document beside a part that hangs.
    Beside,
    /// Valid: that document alone.
    Alone,
}

/// Who sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Known(u32),
    /// Somebody whom nobody has seen before.
    Fresh(u32),
    Greedy,
    /// One of [`USERS`].
    User(u32),
}

impl Kind {
    pub fn is_flood(self) -> bool {
        matches!(self, Self::Flood(_))
    }

    /// Mail that people want.
    pub fn is_valid(self) -> bool {
        !self.is_flood() && self != Self::Malware && !self.is_culprit()
    }

    /// What engines suffer from, and what is none of a flood.
    pub fn is_culprit(self) -> bool {
        matches!(self, Self::Hang | Self::Killer | Self::Beside)
    }

    /// What it costs the first engine on a good day, of which this is what it takes for a message.
    pub fn cost(self, usual: Duration) -> Duration {
        match self {
            Self::Flood(_) | Self::Hang | Self::Beside => POISON,
            Self::Newsletter { scan, .. } | Self::Greedy { scan } => scan,
            Self::Valid | Self::Large | Self::Malware | Self::Killer | Self::Alone => usual,
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
    let rate = options.rate() * variant.scene.rate;
    let is_flood = matches!(variant.event, Event::Flood(_));
    let valid_rate = if is_flood { rate * 0.7 } else { rate };
    let valid_ends = match variant.event {
        Event::Backlog { .. } => phases.event_begins,
        _ => phases.load_ends,
    };
    let event = (phases.event_begins, phases.event_ends);
    planner.arrivals((Duration::ZERO, valid_ends), valid_rate, |planner| {
        planner.valid(variant)
    });
    match variant.event {
        Event::Flood(flood) => planner.arrivals(event, rate * 0.3, |planner| {
            (Kind::Flood(flood), planner.culprit(variant), false)
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
        Event::Drip { every } => {
            let drops = std::iter::successors(Some(event.0), |at| Some(*at + every));
            for due in drops.take_while(|at| *at < event.1) {
                let from = planner.culprit(variant);
                planner.push(due, (Kind::Hang, from, false));
            }
        }
        Event::Backlog { valid, hangs } => planner.backlog(variant, event, valid, hangs),
        Event::Killer => {
            let from = planner.culprit(variant);
            planner.push(event.0, (Kind::Killer, from, false));
        }
        Event::Beside => planner.beside(event.0),
        Event::Overload => {
            planner.arrivals(event, rate * 2.0, |planner| planner.valid(variant));
        }
        Event::Fault(_) | Event::NextHop(_) | Event::Away => {}
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
            let what = what(self);
            self.push(due, what);
        }
    }

    fn push(&mut self, due: Duration, (kind, from, second_hop): (Kind, From, bool)) {
        self.planned.push(Planned {
            due,
            kind,
            from,
            second_hop,
            seed: self.rng.random(),
        });
    }

    /// So many messages of either kind at any time while the engine is away.
    fn backlog(
        &mut self,
        variant: &Variant,
        (begins, ends): (Duration, Duration),
        valid: usize,
        hangs: usize,
    ) {
        let span = (ends - begins).saturating_sub(DEFERRED_BY);
        for at in 0..valid + hangs {
            let due = begins + span.mul_f64(self.rng.random());
            let what = match at < valid {
                true => self.valid(variant),
                false => (Kind::Hang, self.culprit(variant), false),
            };
            self.push(due, what);
        }
    }

    /// Strangers first; known senders when the strangers' messages have run into their timeouts.
    fn beside(&mut self, begins: Duration) {
        for at in 0..4 {
            let stranger = self.fresh();
            let due = begins + Duration::from_secs(at);
            self.push(due, (Kind::Beside, stranger, false));
        }
        for at in 0..10 {
            let due = begins + Duration::from_secs(12 + u64::from(at));
            self.push(due, (Kind::Alone, From::Known(at), false));
        }
    }

    /// Whoever sends what the event is about.
    fn culprit(&mut self, variant: &Variant) -> From {
        match variant.scene.senders {
            Senders::OneDomain => From::User(0),
            Senders::Apart | Senders::OneClient { .. } => self.fresh(),
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
        let from = match variant.scene.senders {
            Senders::OneDomain => From::User(self.rng.random_range(1..USERS)),
            _ if self.rng.random_bool(variant.scene.strangers) => self.fresh(),
            _ => From::Known(self.rng.random_range(0..KNOWN)),
        };
        let second_hop = matches!(variant.event, Event::NextHop(_)) && self.rng.random_bool(0.5);
        (kind, from, second_hop)
    }
}
