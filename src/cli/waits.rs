//! What a stored message waits for: from its record, and from what only the running relay knows.

use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;

use super::control;
use super::exit::CliError;
use super::relay::parsed;
use super::terminal::Terminal;
use crate::admin::Waits;
use crate::delivery::PaceState;
use crate::store::{Cause, Lane, Record};

/// The relay as a command finds it.
pub(super) enum Relay {
    /// It runs, and has answered.
    Running(Waits),
    /// It has not answered, for this reason.
    Absent(CliError),
}

impl Relay {
    /// Asks the relay that listens on `socket`.
    pub(super) async fn find(socket: &Path) -> Self {
        let answer = control::ask_at_once(socket, "/waits").await;
        match answer.and_then(|answer| parsed(socket, &answer)) {
            Ok(waits) => Self::Running(waits),
            Err(error) => Self::Absent(error),
        }
    }

    /// Whether it runs, as one word for programs.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Running(_) => "running",
            Self::Absent(CliError::NotRunning(_, error)) if is_nobody(error) => "not-running",
            Self::Absent(CliError::Silent(_)) => "not-answering",
            Self::Absent(_) => "unknown",
        }
    }

    /// The line for people if the relay has not answered.
    pub(super) fn note(&self) -> Option<String> {
        let Self::Absent(error) = self else {
            return None;
        };
        Some(match self.word() {
            "not-running" => {
                "the relay does not run: no stored mail is scanned or delivered".to_owned()
            }
            _ => error.to_string(),
        })
    }
}

/// Whether no process listens on the socket.
fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// What a message in the scan or in the delivery lane waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct WaitsFor {
    what: What,
    /// Name of the next hop or engine, or id of the interceptor.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// State of the next hop or engine: `healthy`, `paced`, `down`, or a state of a breaker.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    /// Since when the next hop or engine takes no mail.
    #[serde(skip_serializing_if = "Option::is_none")]
    down_since: Option<Timestamp>,
    /// Earliest time of the next probe of the next hop; none while a probe is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_probe: Option<Timestamp>,
    /// Earliest time of the message's own next try; none if this time has passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_try: Option<Timestamp>,
    /// The same for people.
    #[serde(skip)]
    text: String,
}

/// The kind of thing that a message waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    /// The relay, which does not answer.
    Relay,
    /// A scan or a delivery that is under way.
    Work,
    /// A next hop that is down.
    NextHop,
    /// An engine that is out, or was.
    Engine,
    /// The end of an interceptor.
    Interceptor,
    /// A next hop that takes the domain.
    Route,
    /// The time of the message's own next try.
    Retry,
    /// A free slot, or a turn of a paced next hop.
    Turn,
}

impl WaitsFor {
    /// What the message waits for, with times for people in the zone of `terminal`.
    pub(super) fn of(record: &Record, relay: &Relay, terminal: &Terminal<'_>) -> Self {
        let plain = Self {
            what: What::Turn,
            name: None,
            state: None,
            down_since: None,
            next_probe: None,
            next_try: Some(record.due_at).filter(|due| *due > terminal.now),
            text: String::new(),
        };
        match relay {
            Relay::Absent(_) => plain.relay(record, relay.word(), terminal),
            Relay::Running(waits) if waits.at_work.contains(&record.id) => {
                let work = match record.lane {
                    Lane::Delivery => "a delivery",
                    _ => "a scan",
                };
                Self {
                    what: What::Work,
                    next_try: None,
                    text: format!("{work} that is under way"),
                    ..plain
                }
            }
            Relay::Running(waits) => match record.lane {
                Lane::Delivery => plain.delivery(record, waits, terminal),
                _ => plain.scan(record, waits, terminal),
            },
        }
    }

    /// The words for people, to follow "waiting for".
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// As far as the store alone knows.
    fn relay(self, record: &Record, word: &str, terminal: &Terminal<'_>) -> Self {
        let (what, name) = match (record.lane, &record.cause) {
            (Lane::Delivery, _) if record.next_hop.is_empty() => ("a next hop".to_owned(), None),
            (Lane::Delivery, _) => {
                let name = record.next_hop.to_string();
                (format!("next hop {name}"), Some(name))
            }
            (_, Some(Cause::Engine(name))) => (format!("engine {name}"), Some(name.clone())),
            (_, Some(Cause::Interceptor(id))) => (format!("interceptor {id}"), Some(id.clone())),
            (_, None) => ("a scan".to_owned(), None),
        };
        let absent = match word {
            "not-running" => "the relay, which does not run; then ",
            "not-answering" => "the relay, which does not answer; then ",
            _ => "",
        };
        let text = format!("{absent}{what}{}", self.next_try_text(terminal));
        Self {
            what: What::Relay,
            name,
            text,
            ..self
        }
    }

    fn delivery(self, record: &Record, waits: &Waits, terminal: &Terminal<'_>) -> Self {
        let name = &record.next_hop;
        let next_try = self.next_try_text(terminal);
        if name.is_empty() {
            let first = record.envelope.recipients.first();
            let domain = first.map_or("its domain", |recipient| recipient.mailbox.domain());
            return Self {
                what: What::Route,
                text: format!("a next hop that takes {domain}{next_try}"),
                ..self
            };
        }
        let named = Self {
            name: Some(name.to_string()),
            ..self
        };
        let Some(hop) = waits.next_hops.iter().find(|hop| hop.name == *name) else {
            return Self {
                what: What::Route,
                text: format!("next hop {name}, which is not configured any more{next_try}"),
                ..named
            };
        };
        let words = hop.words(|at| terminal.clock(at));
        if hop.state == PaceState::Dead {
            return Self {
                what: What::NextHop,
                state: Some("down".to_owned()),
                down_since: hop.dead_since,
                next_probe: hop.until.filter(|_| !hop.probing),
                text: format!("next hop {name}, {words}{next_try}"),
                ..named
            };
        }
        let state = match hop.state {
            PaceState::Paced => "paced",
            _ => "healthy",
        };
        let (what, text) = match named.next_try {
            Some(at) => {
                let at = terminal.clock(at);
                (
                    What::Retry,
                    format!("its next try at {at}, to next hop {name} ({words})"),
                )
            }
            None => (What::Turn, format!("its turn at next hop {name} ({words})")),
        };
        Self {
            what,
            state: Some(state.to_owned()),
            text,
            ..named
        }
    }

    fn scan(self, record: &Record, waits: &Waits, terminal: &Terminal<'_>) -> Self {
        let next_try = self.next_try_text(terminal);
        match &record.cause {
            Some(Cause::Engine(name)) => {
                let health = waits.engines.iter().find(|health| *health.engine == **name);
                let words = health.map(|health| health.words(|at| terminal.clock(at)));
                let text = match (health, &words) {
                    (Some(health), Some(words)) if health.is_out() => {
                        format!("engine {name}, {words}{next_try}")
                    }
                    (Some(_), Some(words)) => {
                        format!("its turn at engine {name}, now {words}{next_try}")
                    }
                    _ => format!("engine {name}, which is not configured any more{next_try}"),
                };
                let state = health.map(|health| match (health.is_well(), health.is_out()) {
                    (true, _) => "healthy".to_owned(),
                    (_, true) => "down".to_owned(),
                    _ => health.states(),
                });
                Self {
                    what: What::Engine,
                    name: Some(name.clone()),
                    state,
                    down_since: health.and_then(|health| health.out_since()),
                    text,
                    ..self
                }
            }
            Some(Cause::Interceptor(id)) => Self {
                what: What::Interceptor,
                name: Some(id.clone()),
                text: format!("the end of interceptor {id}{next_try}"),
                ..self
            },
            None => {
                let (what, text) = match self.next_try {
                    Some(at) => (
                        What::Retry,
                        format!("its next scan at {}", terminal.clock(at)),
                    ),
                    None => (What::Turn, "its turn for a scan".to_owned()),
                };
                Self { what, text, ..self }
            }
        }
    }

    fn next_try_text(&self, terminal: &Terminal<'_>) -> String {
        match self.next_try {
            Some(at) => format!("; next try {}", terminal.clock(at)),
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::tz::TimeZone;

    use super::*;
    use crate::delivery::HopStatus;
    use crate::scan::{Health, ReplicaHealth};
    use crate::store::contract::{at, record};
    use crate::verdict::EngineClass;

    fn hop(name: &str, state: PaceState) -> HopStatus {
        HopStatus {
            name: name.into(),
            state,
            per_minute: (state == PaceState::Paced).then_some(90),
            at_once: None,
            until: None,
            dead_since: (state == PaceState::Dead).then(|| at(-300)),
            probing: false,
            said: None,
            login_refused: false,
        }
    }

    fn engine(name: &str, breaker: &str) -> Health {
        let replica = ReplicaHealth {
            address: None,
            breaker: breaker.to_owned(),
            running: 0,
            drained: false,
            drain: None,
            resting: false,
            since: (breaker != "closed").then(|| at(-60)),
            signatures: None,
            signed: None,
        };
        Health {
            engine: name.into(),
            class: EngineClass::Av,
            timeout: Duration::from_secs(5),
            slots: 4,
            running: 0,
            zombies: 0,
            waiting: 0,
            half_within: None,
            most_within: None,
            replicas: vec![replica],
        }
    }

    fn waits() -> Waits {
        let dead = hop("dead", PaceState::Dead);
        Waits {
            at_work: Vec::new(),
            engines: vec![
                engine("well", "closed"),
                engine("out", "open (failing)"),
                engine("ramping", "ramp (3 at once)"),
            ],
            next_hops: vec![
                hop("well", PaceState::Free),
                hop("paced", PaceState::Paced),
                HopStatus {
                    name: "dead".into(),
                    until: Some(at(10)),
                    ..dead.clone()
                },
                HopStatus {
                    name: "probed".into(),
                    probing: true,
                    ..dead.clone()
                },
                HopStatus {
                    name: "unprobed".into(),
                    ..dead
                },
            ],
        }
    }

    fn with_terminal<T>(work: impl FnOnce(&Terminal<'_>) -> T) -> T {
        work(&Terminal {
            out: &mut io::sink(),
            err: &mut io::sink(),
            input: &mut io::empty(),
            width: None,
            interactive: false,
            zone: TimeZone::UTC,
            now: at(0),
            json: false,
        })
    }

    /// A list says what each message waits for: the next hop or the engine that is down, since when, and what happens next; its
    /// own time; or its turn. It never names a time that has passed as one to come.
    #[test]
    fn what_a_message_waits_for_is_told() {
        let clock = |seconds| with_terminal(|terminal| terminal.clock(at(seconds)));
        let (dead, out, next) = (clock(-300), clock(-60), clock(60));
        let probe = clock(10);
        let engine = |name: &str| Some(Cause::Engine(name.to_owned()));
        let interceptor = Some(Cause::Interceptor("01X".to_owned()));
        for (lane, hop, cause, due, text) in [
            (
                Lane::Delivery,
                "dead",
                None,
                -9,
                format!("next hop dead, down since {dead}, next probe {probe}"),
            ),
            (
                Lane::Delivery,
                "dead",
                None,
                60,
                format!("next hop dead, down since {dead}, next probe {probe}; next try {next}"),
            ),
            (
                Lane::Delivery,
                "probed",
                None,
                -9,
                format!("next hop probed, down since {dead}, a probe is under way"),
            ),
            (
                Lane::Delivery,
                "unprobed",
                None,
                -9,
                format!(
                    "next hop unprobed, down since {dead}, next probe with the next message to be tried"
                ),
            ),
            (
                Lane::Delivery,
                "paced",
                None,
                -9,
                "its turn at next hop paced (paced, 90 a minute)".to_owned(),
            ),
            (
                Lane::Delivery,
                "well",
                None,
                -9,
                "its turn at next hop well (healthy)".to_owned(),
            ),
            (
                Lane::Delivery,
                "well",
                None,
                60,
                format!("its next try at {next}, to next hop well (healthy)"),
            ),
            (
                Lane::Delivery,
                "gone",
                None,
                -9,
                "next hop gone, which is not configured any more".to_owned(),
            ),
            (
                Lane::Delivery,
                "",
                None,
                60,
                format!("a next hop that takes two.example; next try {next}"),
            ),
            (
                Lane::Scan,
                "",
                engine("out"),
                60,
                format!("engine out, down since {out} (open (failing)); next try {next}"),
            ),
            (
                Lane::Scan,
                "",
                engine("well"),
                60,
                format!("its turn at engine well, now healthy; next try {next}"),
            ),
            (
                Lane::Scan,
                "",
                engine("ramping"),
                -9,
                "its turn at engine ramping, now ramp (3 at once)".to_owned(),
            ),
            (
                Lane::Scan,
                "",
                engine("gone"),
                -9,
                "engine gone, which is not configured any more".to_owned(),
            ),
            (
                Lane::Scan,
                "",
                interceptor,
                60,
                format!("the end of interceptor 01X; next try {next}"),
            ),
            (Lane::Scan, "", None, 60, format!("its next scan at {next}")),
            (Lane::Scan, "", None, -9, "its turn for a scan".to_owned()),
        ] {
            let mut waiting = record(lane);
            waiting.next_hop = hop.into();
            waiting.cause = cause;
            waiting.due_at = at(due);
            let relay = Relay::Running(waits());
            let told = with_terminal(|terminal| WaitsFor::of(&waiting, &relay, terminal));
            assert_eq!(told.text(), text);
            assert_eq!(told.next_try.is_some(), due > 0, "{text}");
        }
    }

    /// While the relay does not run or does not answer, a list says so, and shows what the store knows.
    #[test]
    fn without_the_relay_the_store_is_told() {
        let socket = Path::new("control.sock");
        let refused = CliError::NotRunning(socket.into(), io::ErrorKind::ConnectionRefused.into());
        let denied = CliError::NotRunning(socket.into(), io::ErrorKind::PermissionDenied.into());
        let silent = CliError::Silent("the relay (pid 7) does not answer".to_owned());
        for (error, word, before) in [
            (
                refused,
                "not-running",
                "the relay, which does not run; then ",
            ),
            (denied, "unknown", ""),
            (
                silent,
                "not-answering",
                "the relay, which does not answer; then ",
            ),
        ] {
            let relay = Relay::Absent(error);
            assert_eq!(relay.word(), word);
            assert!(relay.note().is_some());
            let mut waiting = record(Lane::Delivery);
            waiting.next_hop = "hop".into();
            waiting.due_at = at(-9);
            let told = with_terminal(|terminal| WaitsFor::of(&waiting, &relay, terminal));
            assert_eq!(told.text(), format!("{before}next hop hop"));
        }
    }

    /// A message in work waits for nothing else.
    #[test]
    fn work_under_way_is_told() {
        for (lane, text) in [
            (Lane::Scan, "a scan that is under way"),
            (Lane::Delivery, "a delivery that is under way"),
        ] {
            let waiting = record(lane);
            let at_work = vec![waiting.id];
            let relay = Relay::Running(Waits { at_work, ..waits() });
            let told = with_terminal(|terminal| WaitsFor::of(&waiting, &relay, terminal));
            assert_eq!((told.text(), told.what), (text, What::Work));
        }
    }
}
