//! What a stored message waits for: from its record, and from what only the running relay knows.

use std::io;
use std::path::Path;

use serde::Serialize;

use super::control;
use super::exit::CliError;
use super::relay::parsed;
use super::terminal::Terminal;
use crate::admin::{self, Waiting, Waits, What};
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

/// What a message in the scan or in the delivery lane waits for, as far as the relay answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct WaitsFor {
    #[serde(flatten)]
    thing: admin::WaitsFor,
    /// The same for people.
    #[serde(skip)]
    text: String,
}

impl WaitsFor {
    /// What the message waits for, with times for people in the zone of `terminal`.
    pub(super) fn of(record: &Record, relay: &Relay, terminal: &Terminal<'_>) -> Self {
        let clock = |at| terminal.clock(at);
        let (thing, text) = match relay {
            Relay::Absent(_) => stored(record, relay.word(), terminal),
            Relay::Running(waits) => {
                let in_work = waits.at_work.contains(&record.id);
                let mail = Waiting::one(record, in_work, terminal.now);
                admin::WaitsFor::of(&mail, &waits.engines, &waits.next_hops, &clock)
            }
        };
        Self { thing, text }
    }

    /// The words for people, to follow "waiting for".
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

/// As far as the store alone knows.
fn stored(record: &Record, word: &str, terminal: &Terminal<'_>) -> (admin::WaitsFor, String) {
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
    let next_try = Some(record.due_at).filter(|due| *due > terminal.now);
    let at = next_try.map(|at| format!("; next try {}", terminal.clock(at)));
    let text = format!("{absent}{what}{}", at.unwrap_or_default());
    let thing = admin::WaitsFor {
        what: What::Relay,
        name,
        state: None,
        down_since: None,
        next_probe: None,
        next_try,
    };
    (thing, text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::tz::TimeZone;

    use super::*;
    use crate::delivery::{HopStatus, PaceState};
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
            next_probe_in: None,
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
            oldest_call_age: None,
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
            assert_eq!(told.thing.next_try.is_some(), due > 0, "{text}");
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
            assert_eq!((told.text(), told.thing.what), (text, What::Work));
        }
    }
}
