//! What stored mail waits for: from its record, and from what only the running relay knows.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::delivery::{HopStatus, PaceState};
use crate::message::MessageId;
use crate::scan::Health;
use crate::store::{Cause, Failing, LATE_AFTER, Lane, LateMail, Record};

/// What stored mail may wait for, as only the running relay knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// The records that are scanned or delivered now.
    pub at_work: Vec<MessageId>,
    /// The state of each engine.
    pub engines: Vec<Health>,
    /// The state of each next hop.
    pub next_hops: Vec<HopStatus>,
}

/// What a message in the scan or in the delivery lane waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitsFor {
    /// The kind of thing.
    pub what: What,
    /// Name of the next hop or engine, or id of the interceptor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// State of the next hop or engine: `healthy`, `paced`, `down`, or a state of a breaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Since when the next hop or engine takes no mail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_since: Option<Timestamp>,
    /// Earliest time of the next probe of the next hop; none while a probe is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_probe: Option<Timestamp>,
    /// Earliest time of the message's own next try; none if this time has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<Timestamp>,
}

/// The kind of thing that a message waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The relay, which does not answer.
    Relay,
    /// A scan or a delivery that is under way.
    Work,
    /// A next hop that is down.
    NextHop,
    /// An engine that is out, or was, or that is slow.
    Engine,
    /// An engine that takes mail, but answers this mail with an error each time.
    Failing,
    /// The end of an interceptor.
    Interceptor,
    /// A next hop that takes the domain.
    Route,
    /// The time of the message's own next try.
    Retry,
    /// A free slot, or a turn of a paced next hop.
    Turn,
}

impl What {
    /// What mail of a running relay may wait for.
    pub(super) const OF_A_RUNNING_RELAY: [Self; 8] = [
        Self::Work,
        Self::NextHop,
        Self::Engine,
        Self::Failing,
        Self::Interceptor,
        Self::Route,
        Self::Retry,
        Self::Turn,
    ];

    /// The word in JSON and in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Work => "work",
            Self::NextHop => "next-hop",
            Self::Engine => "engine",
            Self::Failing => "failing",
            Self::Interceptor => "interceptor",
            Self::Route => "route",
            Self::Retry => "retry",
            Self::Turn => "turn",
        }
    }
}

/// One message, or several that wait for the same thing.
#[derive(Debug, Clone)]
pub struct Waiting<'a> {
    /// [`Lane::Delivery`], or a lane whose mail is scanned.
    pub lane: Lane,
    /// The name of the next hop in [`Lane::Delivery`]; may be empty.
    pub next_hop: &'a str,
    /// The cause for which the guard keeps the mail.
    pub cause: Option<&'a Cause>,
    /// Whether a worker has the mail.
    pub in_work: bool,
    /// Whether the senders still wait for the reply.
    pub in_session: bool,
    /// Whether the mail arrived longer ago than [`LATE_AFTER`].
    pub is_late: bool,
    /// How the engine of the cause fails on the mail.
    pub failing: Option<Failing>,
    /// The time of the next try, if it lies ahead.
    pub next_try: Option<Timestamp>,
    /// The domain of the recipients, where it is known.
    pub domain: Option<&'a str>,
    /// Whether these are several messages.
    pub several: bool,
}

impl<'a> Waiting<'a> {
    /// One message at `now`.
    pub fn one(record: &'a Record, in_work: bool, now: Timestamp) -> Self {
        let first = record.envelope.recipients.first();
        Self {
            lane: record.lane,
            next_hop: &record.next_hop,
            cause: record.cause.as_ref(),
            in_work,
            in_session: false,
            is_late: (record.received_at.checked_add(LATE_AFTER)).is_ok_and(|late| late <= now),
            failing: Failing::of(record),
            next_try: Some(record.due_at).filter(|due| *due > now),
            domain: first.map(|recipient| recipient.mailbox.domain()),
            several: false,
        }
    }

    /// Late messages that wait for the same thing.
    pub fn late(mail: &'a LateMail) -> Self {
        Self {
            lane: mail.lane,
            next_hop: &mail.next_hop,
            cause: mail.cause.as_ref(),
            in_work: mail.in_work,
            in_session: mail.in_session,
            is_late: true,
            failing: mail.failing.clone(),
            next_try: mail.next_try,
            domain: None,
            several: mail.messages != 1,
        }
    }
}

/// How times are written for people.
pub type Clock<'a> = &'a dyn Fn(Timestamp) -> String;

impl WaitsFor {
    /// What mail waits for at a running relay, for programs and, to follow "waiting for", for people.
    pub fn of(
        mail: &Waiting<'_>,
        engines: &[Health],
        next_hops: &[HopStatus],
        clock: Clock<'_>,
    ) -> (Self, String) {
        let plain = Self {
            what: What::Turn,
            name: None,
            state: None,
            down_since: None,
            next_probe: None,
            next_try: mail.next_try,
        };
        match mail.lane {
            _ if mail.in_work => plain.work(mail, engines, next_hops, clock),
            Lane::Delivery => plain.delivery(mail, next_hops, clock),
            _ => plain.scan(mail, engines, clock),
        }
    }

    /// For mail that a worker has. Of late mail that is scanned, the engine with the oldest message is the one that is slow.
    fn work(
        self,
        mail: &Waiting<'_>,
        engines: &[Health],
        next_hops: &[HopStatus],
        clock: Clock<'_>,
    ) -> (Self, String) {
        let work = Self {
            what: What::Work,
            next_try: None,
            ..self
        };
        let slow = slow(engines).filter(|_| mail.is_late && mail.lane != Lane::Delivery);
        let (what, mut text) = match (mail.lane, slow) {
            (Lane::Delivery, _) => work.under_way(mail.next_hop, next_hops, clock),
            (_, Some(health)) => {
                let name = health.engine.to_string();
                let text = format!("a scan at engine {name} ({})", health.load(clock));
                let what = Self {
                    what: What::Engine,
                    name: Some(name),
                    state: Some(state_of(health)),
                    down_since: health.out_since(),
                    ..work
                };
                (what, text)
            }
            (_, None) => (work, "a scan that is under way".to_owned()),
        };
        if mail.in_session {
            text.push_str(match mail.several {
                true => ", and their senders for the reply",
                false => ", and its sender for the reply",
            });
        }
        (what, text)
    }

    /// For mail that is being delivered.
    fn under_way(self, name: &str, next_hops: &[HopStatus], clock: Clock<'_>) -> (Self, String) {
        let hop = next_hops.iter().find(|hop| *hop.name == *name);
        let Some(hop) = hop.filter(|_| !name.is_empty()) else {
            return (self, "a delivery that is under way".to_owned());
        };
        let words = hop.words(clock);
        let text = format!("a delivery to next hop {name} that is under way ({words})");
        let name = Some(name.to_owned());
        (Self { name, ..self }, text)
    }

    fn delivery(
        self,
        mail: &Waiting<'_>,
        next_hops: &[HopStatus],
        clock: Clock<'_>,
    ) -> (Self, String) {
        let name = mail.next_hop;
        let next_try = self.next_try_text(clock);
        let hop = next_hops.iter().find(|hop| *hop.name == *name);
        let Some(hop) = hop.filter(|_| !name.is_empty()) else {
            return self.route(mail, &next_try);
        };
        let named = Self {
            name: Some(name.to_owned()),
            ..self
        };
        let words = hop.words(clock);
        if hop.state == PaceState::Dead {
            let what = Self {
                what: What::NextHop,
                state: Some("down".to_owned()),
                down_since: hop.dead_since,
                next_probe: hop.until.filter(|_| !hop.probing),
                ..named
            };
            return (what, format!("next hop {name}, {words}{next_try}"));
        }
        let state = match hop.state {
            PaceState::Paced => "paced",
            _ => "healthy",
        };
        let its = its(mail);
        let (what, text) = match named.next_try {
            Some(at) => {
                let at = clock(at);
                let at = format!("{} {at}", from(mail));
                let text = format!("{its} next try {at}, to next hop {name} ({words})");
                (What::Retry, text)
            }
            None => (
                What::Turn,
                format!("{its} turn at next hop {name} ({words})"),
            ),
        };
        let what = Self {
            what,
            state: Some(state.to_owned()),
            ..named
        };
        (what, text)
    }

    /// For mail that has no next hop, or one that is gone.
    fn route(self, mail: &Waiting<'_>, next_try: &str) -> (Self, String) {
        let name = Some(mail.next_hop).filter(|name| !name.is_empty());
        let text = match name {
            None => {
                let domain = mail.domain.unwrap_or("its domain");
                format!("a next hop that takes {domain}{next_try}")
            }
            Some(name) => {
                format!("next hop {name}, which is not configured any more{next_try}")
            }
        };
        let what = Self {
            what: What::Route,
            name: name.map(str::to_owned),
            ..self
        };
        (what, text)
    }

    fn scan(self, mail: &Waiting<'_>, engines: &[Health], clock: Clock<'_>) -> (Self, String) {
        let (next_try, its) = (self.next_try_text(clock), its(mail));
        match mail.cause {
            Some(Cause::Engine(name)) => {
                let health = engines.iter().find(|health| *health.engine == **name);
                let failing = mail.failing.as_ref();
                let failing = failing.filter(|_| health.is_some_and(|health| !health.is_out()));
                let words = health.map(|health| health.words(clock));
                let text = match (health, &words, failing) {
                    (Some(_), Some(words), Some(failing)) => {
                        let them = if mail.several { "them" } else { "it" };
                        let how = failing.words();
                        format!(
                            "engine {name}, now {words}, which fails on {them} ({how}){next_try}"
                        )
                    }
                    (Some(health), Some(words), None) if health.is_out() => {
                        format!("engine {name}, {words}{next_try}")
                    }
                    (Some(_), Some(words), None) => {
                        format!("{its} turn at engine {name}, now {words}{next_try}")
                    }
                    _ => format!("engine {name}, which is not configured any more{next_try}"),
                };
                let what = Self {
                    what: match failing {
                        Some(_) => What::Failing,
                        None => What::Engine,
                    },
                    name: Some(name.clone()),
                    state: health.map(state_of),
                    down_since: health.and_then(Health::out_since),
                    ..self
                };
                (what, text)
            }
            Some(Cause::Interceptor(id)) => {
                let what = Self {
                    what: What::Interceptor,
                    name: Some(id.clone()),
                    ..self
                };
                (what, format!("the end of interceptor {id}{next_try}"))
            }
            None => {
                let (what, text) = match self.next_try {
                    Some(at) => {
                        let at = clock(at);
                        (What::Retry, format!("{its} next scan {} {at}", from(mail)))
                    }
                    None => (What::Turn, format!("{its} turn for a scan")),
                };
                (Self { what, ..self }, text)
            }
        }
    }

    fn next_try_text(&self, clock: Clock<'_>) -> String {
        match self.next_try {
            Some(at) => format!("; next try {}", clock(at)),
            None => String::new(),
        }
    }
}

/// The engine that has had a message for so long that it makes mail late; of several, the one that has had one for longest.
pub(super) fn slow(engines: &[Health]) -> Option<&Health> {
    let slow = engines
        .iter()
        .filter(|health| health.oldest_call_age >= Some(LATE_AFTER));
    slow.max_by_key(|health| health.oldest_call_age)
}

fn state_of(health: &Health) -> String {
    match (health.is_well(), health.is_out()) {
        (true, _) => "healthy".to_owned(),
        (_, true) => "down".to_owned(),
        _ => health.states(),
    }
}

fn its(mail: &Waiting<'_>) -> &'static str {
    match mail.several {
        true => "their",
        false => "its",
    }
}

/// Of several messages the first try is known.
fn from(mail: &Waiting<'_>) -> &'static str {
    match mail.several {
        true => "from",
        false => "at",
    }
}
