//! One next hop: the trait that each kind implements, and the gate and the meters in front of it.

use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::gate::{DeliveryPermit, HopGate};
use super::pace::MailKind;
use super::{Answer, Kind, Outbound, Outcome, Settings};
use crate::deadline::Deadline;
use crate::smtp::dialog::Credentials;

/// A kind of next hop: a server that speaks SMTP or LMTP, or Maildirs.
pub trait NextHop: Send + Sync {
    /// Delivers to the recipients at these positions of the envelope before the deadline, and counts its open
    /// connections in the gauge.
    ///
    /// Cancel safety: connections in use are closed; the next hop may or may not have taken the message.
    fn deliver<'a>(
        &'a self,
        mail: &'a Outbound,
        recipients: Vec<usize>,
        open_connections: &'a Gauge,
        deadline: Deadline,
    ) -> BoxFuture<'a, HopResult>;

    /// User name and password, if the next hop requires a login.
    fn credentials(&self) -> Option<&Credentials> {
        None
    }
}

/// Result of a delivery to one next hop.
pub struct HopResult {
    /// One outcome for each recipient, in any order.
    pub outcomes: Vec<(usize, Outcome)>,
    /// What the delivery says about the hop.
    pub signal: HopSignal,
    /// Whether the hop was offered the message: a server was sent any command of the transaction.
    pub offered: bool,
}

/// What the result of a delivery says about its hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HopSignal {
    /// The hop answered about the message, positively or negatively: the hop works.
    Fine,
    /// The hop asked for a later attempt, independent of the message.
    Throttled,
    /// The hop asked for a later attempt; the reason may be the message.
    Later,
    /// As [`Self::Throttled`], in reply to the content.
    ThrottledAtEnd,
    /// As [`Self::Later`], in reply to the content.
    LaterAtEnd,
    /// No session was established, or the session broke off before the content.
    Unreachable,
    /// The session broke off or hung after the start of the content.
    Broken,
    /// The server refused our login. No message can be the reason.
    LoginRefused,
    /// No connection became free in time.
    Busy,
    /// No information: this relay gave up the delivery for its own reasons.
    Unknown,
}

impl HopSignal {
    /// Whether the trouble began after the start of the content, so that the message may be its cause.
    pub fn is_at_content(self) -> bool {
        matches!(self, Self::ThrottledAtEnd | Self::LaterAtEnd | Self::Broken)
    }
}

/// A next hop with its settings, its gate and its meters.
pub(super) struct Hop {
    pub(super) settings: Settings,
    next_hop: Arc<dyn NextHop>,
    pub(super) gate: Arc<HopGate>,
    /// Created at the first delivery, because the metrics recorder is not installed earlier.
    meters: OnceLock<Meters>,
}

impl Hop {
    /// The gate is that of the next hop with the same name, server and password in `before`; otherwise a new gate.
    pub(super) fn new(settings: Settings, next_hop: Arc<dyn NextHop>, before: &[Self]) -> Self {
        let same = |hop: &&Self| {
            hop.settings.name == settings.name
                && hop.settings.kind == settings.kind
                && hop.next_hop.credentials() == next_hop.credentials()
        };
        let gate = match (before.iter().find(same), &settings.kind) {
            (Some(hop), _) => hop.gate.clone(),
            (None, Kind::Smtp(smtp)) => {
                HopGate::new(settings.name.clone(), smtp.connections, smtp.pace)
            }
            // A folder needs no pace.
            (None, Kind::Maildir { .. }) => HopGate::new(settings.name.clone(), 1, false),
        };
        Self {
            settings,
            next_hop,
            gate,
            meters: OnceLock::new(),
        }
    }

    /// Delivers to the recipients at these positions of the envelope, with the permit or as fresh mail. Returns one
    /// outcome for each.
    ///
    /// Cancel safety: as [`NextHop::deliver`].
    pub(super) async fn deliver(
        &self,
        mail: &Outbound,
        recipients: Vec<usize>,
        turn: Option<DeliveryPermit>,
        deadline: Deadline,
    ) -> Vec<(usize, Outcome)> {
        let meters = self.meters.get_or_init(|| Meters::new(&self.settings.name));
        match turn.map_or_else(|| self.gate.ask(MailKind::Fresh), Ok) {
            Ok(turn) => {
                let start = tokio::time::Instant::now();
                let outcomes = self.attempt(mail, recipients, turn, meters, deadline).await;
                meters.seconds.record(start.elapsed());
                meters.count(&outcomes);
                outcomes
            }
            Err(text) => {
                meters.held_back.increment(1);
                let answer = Answer {
                    text,
                    held_back: true,
                    ..Answer::of(&self.settings.name)
                };
                let outcome = |at| (at, Outcome::Deferred(answer.clone()));
                recipients.into_iter().map(outcome).collect()
            }
        }
    }

    async fn attempt(
        &self,
        mail: &Outbound,
        recipients: Vec<usize>,
        turn: DeliveryPermit,
        meters: &Meters,
        deadline: Deadline,
    ) -> Vec<(usize, Outcome)> {
        let HopResult {
            mut outcomes,
            signal,
            offered,
        } = self
            .next_hop
            .deliver(mail, recipients, &meters.connections, deadline)
            .await;
        let deferred = |(_, outcome): &(usize, Outcome)| match outcome {
            Outcome::Deferred(answer) => Some(answer.text.clone()),
            _ => None,
        };
        let said = match signal {
            HopSignal::Fine => String::new(),
            _ => outcomes.iter().find_map(deferred).unwrap_or_default(),
        };
        if turn.end(signal, offered, &mail.envelope, &said) {
            for (_, outcome) in &mut outcomes {
                if let Outcome::Deferred(answer) = outcome {
                    answer.held_back = true;
                }
            }
        }
        outcomes
    }
}

/// What the relay counts for one next hop.
struct Meters {
    delivered: Counter,
    deferred: Counter,
    held_back: Counter,
    failed: Counter,
    seconds: Histogram,
    connections: Gauge,
}

impl Meters {
    fn new(next_hop: &Arc<str>) -> Self {
        let outcome = |outcome: &'static str| counter!("spillway_delivery_attempts_total", "next_hop" => next_hop.to_string(), "outcome" => outcome);
        Self {
            delivered: outcome("delivered"),
            deferred: outcome("deferred"),
            held_back: counter!("spillway_next_hop_held_back_total", "next_hop" => next_hop.to_string()),
            failed: outcome("failed"),
            seconds: histogram!("spillway_delivery_seconds", "next_hop" => next_hop.to_string()),
            connections: gauge!("spillway_next_hop_connections", "next_hop" => next_hop.to_string()),
        }
    }

    /// Counts one attempt by the best outcome of its recipients: the next hop has a copy if it took the message for any of
    /// them.
    fn count(&self, outcomes: &[(usize, Outcome)]) {
        let rank = |outcome: &Outcome| match outcome {
            Outcome::Delivered(_) => 0,
            Outcome::Deferred(answer) if answer.held_back => 1,
            Outcome::Deferred(_) => 2,
            Outcome::Failed(_) => 3,
        };
        let best = outcomes.iter().map(|(_, outcome)| rank(outcome)).min();
        match best {
            Some(0) => self.delivered.increment(1),
            Some(1) => self.held_back.increment(1),
            Some(2) => self.deferred.increment(1),
            Some(_) => self.failed.increment(1),
            None => {}
        }
    }
}
