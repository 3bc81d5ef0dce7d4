//! The variants: what goes wrong in each.

use std::time::Duration;

use crate::scene::Scene;

/// What flood content costs the first engine, whoever has stopped waiting.
pub const POISON: Duration = Duration::from_secs(120);

/// One way in which a day can go wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variant {
    pub name: &'static str,
    pub about: &'static str,
    pub event: Event,
    pub scene: Scene,
}

impl Variant {
    /// What it is compared with: the same without what hangs, or without strangers.
    pub fn reference(&self) -> Option<Self> {
        match self.event {
            Event::Backlog { valid, .. } => {
                let event = Event::Backlog { valid, hangs: 0 };
                Some(Self { event, ..*self })
            }
            Event::Overload => {
                let scene = Scene {
                    strangers: 0.0,
                    ..self.scene
                };
                Some(Self { scene, ..*self })
            }
            _ => None,
        }
    }
}

/// What happens between the calm and the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Mail from unknown senders that costs the first engine [`POISON`].
    Flood(Flood),
    /// The first engine misbehaves on mail that is as always.
    Fault(Fault),
    /// One known sender writes to everybody; the first engine takes so long for it.
    Newsletter { personal: bool, scan: Duration },
    /// One next hop of two misbehaves; half of the mail goes there.
    NextHop(Hop),
    /// One client sends nine times as much as all others together; every engine takes so long for it.
    Greedy { scan: Duration },
    /// Now and then a message on which the first engine hangs; they have nothing in common.
    Drip { every: Duration },
    /// The engine is away while so many valid messages come, and such on which it hangs when it is back; no mail after.
    Backlog { valid: usize, hangs: usize },
    /// The engine is away, and mail goes on.
    Away,
    /// One message that makes the engine close all its connections whenever it is scanned.
    Killer,
    /// Three times as much mail as usual.
    Overload,
    /// Four strangers send a document beside a part on which the engine hangs, ten known senders the document alone.
    Beside,
}

/// What the messages of a flood have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// The attachment.
    Constant,
    /// 85 % of the attachment's octets, its kind of name, type and size.
    Polymorphic,
    /// Three of five the body text; all else is drawn as for valid mail.
    Mimic,
    /// Most sentences; there is no attachment.
    Text,
    /// The same, and ten times as many sentences: hardly a word that valid mail does not use too.
    Words,
}

/// How an engine misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 20 s for content from 1 MiB.
    SlowLarge,
    /// 3 s more for everything.
    SlowAll,
    /// Accepts and is silent.
    Hung,
    /// Nobody listens.
    Refused,
    /// Answers what is not in the protocol.
    Garbage,
    /// 20 s well, 20 s hung.
    Flapping,
    /// Everything is clean, at once.
    Gray,
    /// 2 s hung on mail but not on probes, 2 s well.
    Stutter,
}

/// How a next hop misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// 451 4.7.1 beyond 5 messages a second.
    Throttled,
    /// 30 s for the reply to MAIL.
    Tarpit,
}

pub const fn flood(name: &'static str, about: &'static str, flood: Flood) -> Variant {
    Variant {
        name,
        about,
        event: Event::Flood(flood),
        scene: Scene::USUAL,
    }
}

pub const fn fault(name: &'static str, about: &'static str, fault: Fault) -> Variant {
    Variant {
        name,
        about,
        event: Event::Fault(fault),
        scene: Scene::USUAL,
    }
}

const fn letter(name: &'static str, about: &'static str, personal: bool, scan: u64) -> Variant {
    Variant {
        name,
        about,
        event: Event::Newsletter {
            personal,
            scan: Duration::from_millis(scan),
        },
        scene: Scene::USUAL,
    }
}

const fn hop(name: &'static str, about: &'static str, hop: Hop) -> Variant {
    Variant {
        name,
        about,
        event: Event::NextHop(hop),
        scene: Scene::USUAL,
    }
}

/// Those of the table in docs/DRILL.md, in the order in which they run; the others are in [`crate::strangers`].
pub const TABLE: [Variant; 19] = [
    flood(
        "constant",
        "the same attachment in every flood message, text differs",
        Flood::Constant,
    ),
    flood(
        "polymorphic",
        "the attachment differs in every message; 85 % of its octets are shared",
        Flood::Polymorphic,
    ),
    flood(
        "mimic",
        "flood that looks like valid mail but for its text",
        Flood::Mimic,
    ),
    flood(
        "text",
        "flood without attachments whose sentences are mostly the same",
        Flood::Text,
    ),
    fault(
        "slow-class",
        "the first engine takes 20 s from 1 MiB",
        Fault::SlowLarge,
    ),
    fault(
        "slow-all",
        "the first engine takes 3 s more for everything",
        Fault::SlowAll,
    ),
    fault(
        "hung",
        "the first engine accepts and is silent",
        Fault::Hung,
    ),
    fault(
        "refused",
        "the first engine refuses connections",
        Fault::Refused,
    ),
    fault(
        "garbage",
        "the first engine answers nonsense",
        Fault::Garbage,
    ),
    fault(
        "flapping",
        "the first engine works for 20 s and hangs for 20 s",
        Fault::Flapping,
    ),
    fault(
        "gray",
        "the first engine says clean to everything at once",
        Fault::Gray,
    ),
    hop(
        "slow-hop",
        "one next hop of two takes 5 messages a second (451 4.7.1)",
        Hop::Throttled,
    ),
    hop(
        "tarpit-hop",
        "one next hop of two takes 30 s for each reply to MAIL",
        Hop::Tarpit,
    ),
    letter(
        "newsletter",
        "40/s more from one known sender, all with the same PDF",
        false,
        5,
    ),
    letter(
        "newsletter-slow",
        "the same, and the PDF takes 3 s to scan",
        false,
        3000,
    ),
    letter(
        "newsletter-personal",
        "20/s more from one known sender, PDFs that differ and take 0.3 s",
        true,
        300,
    ),
    letter(
        "newsletter-heavy",
        "20/s more from one known sender, PDFs that differ and take 8 s",
        true,
        8000,
    ),
    Variant {
        name: "greedy",
        about: "one client sends 90 % of the mail",
        event: Event::Greedy {
            scan: Scene::USUAL.usual,
        },
        scene: Scene::USUAL,
    },
    Variant {
        name: "greedy-heavy",
        about: "the same, and its mail is twice what the engines can do: 60 ms each",
        event: Event::Greedy {
            scan: Duration::from_millis(60),
        },
        scene: Scene::USUAL,
    },
];
