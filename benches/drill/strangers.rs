//! The variants of the way back and the stranger: half of the valid mail is from senders who never wrote before, the relay
//! has its defaults, and what counts is also what follows the event.

use std::time::Duration;

use crate::scene::{Scene, Senders};
use crate::variant::{Event, Fault, Flood, Variant, fault, flood};

/// Scans that a relay with few slots has for its engine, and one with many.
const FEW_SLOTS: usize = 8;
const MANY_SLOTS: usize = 32;
/// How long an engine is away: longer than any breaker's rest.
const AWAY: f64 = 160.0;
/// The relay is killed when it has had time to learn what the flood has in common.
const KILLED_AFTER: Duration = Duration::from_secs(12);

/// One engine; a drip hurts by and by.
const DRIP: Scene = Scene {
    rate: 0.5,
    full: [15.0, 30.0, 600.0, 5.0, 300.0],
    quick: [6.0, 8.0, 180.0, 2.0, 60.0],
    ..Scene::SINGLE
};

/// What the slots do not carry is scanned by and by when the drip has ended.
const HEAVY_DRIP: Scene = Scene {
    full: [15.0, 30.0, 600.0, 5.0, 900.0],
    ..DRIP
};

const BACKLOG: Scene = Scene {
    slots: FEW_SLOTS,
    engine: "slots = 8\n",
    largest: 64,
    full: [15.0, 15.0, 30.0, 0.0, 300.0],
    quick: [8.0, 6.0, 12.0, 0.0, 200.0],
    ..Scene::SINGLE
};

/// More messages that hang than the slots carry at once: they take turns of two minutes.
const BACKLOG_OF_TURNS: Scene = Scene {
    full: [15.0, 15.0, 30.0, 0.0, 700.0],
    ..BACKLOG
};

const BACKLOG_OF_MANY: Scene = Scene {
    slots: MANY_SLOTS,
    engine: "slots = 32\n",
    ..BACKLOG
};

const RETURN: Scene = Scene {
    largest: 64,
    full: [15.0, 15.0, AWAY, 90.0, 120.0],
    quick: [8.0, 6.0, 90.0, 40.0, 60.0],
    ..Scene::SINGLE
};

const LATE: Scene = Scene {
    full: [0.0, 0.0, AWAY, 90.0, 120.0],
    quick: [0.0, 0.0, 90.0, 40.0, 60.0],
    ..RETURN
};

const FLAP: Scene = Scene {
    largest: 64,
    full: [15.0, 15.0, 60.0, 0.0, 120.0],
    quick: [8.0, 8.0, 20.0, 0.0, 60.0],
    ..Scene::SINGLE
};

/// Scans that take a while, so that others are in flight when one ends badly.
const KILLER: Scene = Scene {
    usual: Duration::from_millis(100),
    full: [15.0, 15.0, 60.0, 0.0, 120.0],
    quick: [8.0, 8.0, 30.0, 0.0, 60.0],
    ..Scene::SINGLE
};

/// About 150 good messages, then the event.
const BESIDE: Scene = Scene {
    rate: 0.25,
    full: [5.0, 10.0, 40.0, 0.0, 120.0],
    quick: [5.0, 10.0, 40.0, 0.0, 90.0],
    ..Scene::SINGLE
};

/// In the event a fifth more than 10 workers can do; small, so that it is they who are slow.
const OVERLOAD: Scene = Scene {
    rate: 2.0,
    strangers: 1.0,
    largest: 8,
    full: [10.0, 5.0, 30.0, 0.0, 0.0],
    quick: [6.0, 2.0, 10.0, 0.0, 0.0],
    ..Scene::SINGLE
};

/// A message a second.
const TRICKLE: Scene = Scene {
    rate: 0.025,
    full: [60.0, 30.0, 120.0, 10.0, 60.0],
    quick: [20.0, 10.0, 40.0, 5.0, 20.0],
    ..Scene::HALF
};

const fn drip(name: &'static str, about: &'static str, every: u64, scene: Scene) -> Variant {
    Variant {
        name,
        about,
        event: Event::Drip {
            every: Duration::from_secs(every),
        },
        scene,
    }
}

const fn backlog(name: &'static str, about: &'static str, hangs: usize, scene: Scene) -> Variant {
    Variant {
        name,
        about,
        event: Event::Backlog { valid: 1000, hangs },
        scene,
    }
}

const fn on(scene: Scene, variant: Variant) -> Variant {
    Variant { scene, ..variant }
}

const fn from(senders: Senders, scene: Scene) -> Scene {
    Scene { senders, ..scene }
}

const ONE_CLIENT: Senders = Senders::OneClient { xforward: false };
const TOLD_CLIENT: Senders = Senders::OneClient { xforward: true };

/// All of them, in the order in which they run.
pub const ALL: [Variant; 28] = [
    drip(
        "drip-30s",
        "a unique message on which the only engine hangs every 30 s",
        30,
        DRIP,
    ),
    drip(
        "drip-10s",
        "the same every 10 s: more than the slots carry",
        10,
        HEAVY_DRIP,
    ),
    drip(
        "drip-10s-covered",
        "the same, and a second engine sees nothing in them",
        10,
        Scene { engines: 2, ..DRIP },
    ),
    backlog(
        "poisoned-1",
        "the engine is back, and 1 of what waited hangs; 8 slots",
        1,
        BACKLOG,
    ),
    backlog("poisoned-5", "the same, 5 of them", 5, BACKLOG),
    backlog(
        "poisoned-20",
        "the same, 20 of them; 32 slots",
        20,
        BACKLOG_OF_MANY,
    ),
    backlog(
        "poisoned-20-few",
        "the same, 20 of them; 8 slots",
        20,
        BACKLOG_OF_TURNS,
    ),
    Variant {
        name: "return",
        about: "the only engine is away for 160 s, then it is back",
        event: Event::Away,
        scene: RETURN,
    },
    Variant {
        name: "late-start",
        about: "the only engine comes 160 s after the relay",
        event: Event::Away,
        scene: LATE,
    },
    on(
        FLAP,
        fault(
            "flap-2s",
            "the only engine answers probes, and hangs on mail for 2 s of 4",
            Fault::Stutter,
        ),
    ),
    Variant {
        name: "killer",
        about: "one message makes the only engine crash whenever it is scanned",
        event: Event::Killer,
        scene: KILLER,
    },
    Variant {
        name: "beside",
        about: "strangers send a good document beside a part that hangs, known senders the document alone",
        event: Event::Beside,
        scene: BESIDE,
    },
    on(
        Scene::HALF,
        flood(
            "other-words",
            "text flood of 40 KiB whose words valid mail uses too",
            Flood::Words,
        ),
    ),
    on(
        Scene::HALF,
        flood(
            "constant-half",
            "constant, and half of the valid mail from strangers",
            Flood::Constant,
        ),
    ),
    on(
        Scene {
            kill: Some(KILLED_AFTER),
            ..Scene::HALF
        },
        flood(
            "restart-in-flood",
            "the same, and the relay is killed in the flood and started again",
            Flood::Constant,
        ),
    ),
    on(
        from(ONE_CLIENT, Scene::HALF),
        flood(
            "upstream-flood",
            "the same flood; all mail has one client address",
            Flood::Constant,
        ),
    ),
    on(
        from(TOLD_CLIENT, Scene::HALF),
        flood(
            "upstream-xforward-flood",
            "the same, and the client tells by XFORWARD who brought it the mail",
            Flood::Constant,
        ),
    ),
    on(
        from(Senders::OneDomain, Scene::HALF),
        flood(
            "outbound-flood",
            "one domain of 500 users, one of whom sends that flood",
            Flood::Constant,
        ),
    ),
    drip(
        "upstream-drip",
        "drip-30s; all mail has one client address",
        30,
        from(ONE_CLIENT, DRIP),
    ),
    drip(
        "upstream-xforward-drip",
        "the same, and the client tells by XFORWARD who brought it the mail",
        30,
        from(TOLD_CLIENT, DRIP),
    ),
    drip(
        "outbound-drip",
        "one domain of 500 users, one of whom sends that drip",
        30,
        from(Senders::OneDomain, DRIP),
    ),
    drip(
        "outbound-drip-10s",
        "the same every 10 s: more than the slots carry",
        10,
        from(Senders::OneDomain, DRIP),
    ),
    on(
        Scene::HALF,
        fault(
            "hung-half",
            "hung, and half of the valid mail from strangers",
            Fault::Hung,
        ),
    ),
    on(
        TRICKLE,
        fault("hung-1", "the same with a message a second", Fault::Hung),
    ),
    on(
        Scene::HALF,
        fault(
            "slow-class-half",
            "slow-class, and half of the valid mail from strangers",
            Fault::SlowLarge,
        ),
    ),
    on(
        Scene::HALF,
        flood(
            "mimic-half",
            "mimic, and half of the valid mail from strangers",
            Flood::Mimic,
        ),
    ),
    Variant {
        name: "overload-strangers",
        about: "more mail than the only engine can do, all of it from strangers",
        event: Event::Overload,
        scene: OVERLOAD,
    },
    Variant {
        name: "overload-mixed",
        about: "the same, and one message in thirteen from a known sender",
        event: Event::Overload,
        scene: Scene {
            strangers: 0.925,
            ..OVERLOAD
        },
    },
];
