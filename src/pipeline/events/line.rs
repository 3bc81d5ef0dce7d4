//! The one log line about a message at the end of a pass.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::delivery::Outcome;
use crate::message::{Mailbox, Message, Times, header};
use crate::pipeline::Passed;
use crate::smtp::Reply;
use crate::store::history::HistoryEntry;
use crate::verdict::{Decision, stand_ins};

/// Most recipients that one line names; the line also has their number.
const RECIPIENTS_NAMED_MAX: usize = 10;
/// Most parts of a message that one line names.
const PARTS_NAMED_MAX: usize = 10;
/// Longest `Message-ID` in a line, in octets. RFC 5322 allows 998 in any line.
const MESSAGE_ID_OCTETS_MAX: usize = 200;

/// What the log says of a pass beside the entries of the history.
#[derive(Debug)]
pub(in crate::pipeline) struct PassFacts {
    times: Option<PassTimes>,
    /// Whether the reply goes to a sender who waits for it.
    is_in_session: bool,
    next_hop: Option<Arc<str>>,
    /// The status code of the most serious answer, with its rank.
    answer: Option<(u8, (u16, u16, u16))>,
}

/// What one pass has taken, by the monotonic clock.
#[derive(Debug)]
pub(in crate::pipeline) struct PassTimes {
    /// Scans of this message in all passes, with the waits for slots; `None` if it was never scanned.
    scanning: Option<Duration>,
    delivering: Option<Duration>,
    /// The end of the pass, at which its outcome goes to the store.
    passed: Instant,
}

impl PassTimes {
    pub(in crate::pipeline) fn of(passed: &Passed) -> Self {
        let spent = passed.judged.spent;
        let is_scanned = !passed.judged.reports.is_empty() || !spent.is_zero();
        Self {
            scanning: is_scanned.then_some(spent),
            delivering: passed.delivering,
            passed: Instant::now(),
        }
    }
}

impl PassFacts {
    /// The facts of a pass before any next hop has answered.
    pub(in crate::pipeline) fn new(times: PassTimes, is_in_session: bool) -> Self {
        Self {
            times: Some(times),
            is_in_session,
            next_hop: None,
            answer: None,
        }
    }

    /// The facts of recipients for whom a next hop has taken the message while others of the same delivery are open.
    pub(in crate::pipeline) fn taken(next_hop: Option<Arc<str>>) -> Self {
        Self {
            times: None,
            is_in_session: false,
            next_hop,
            answer: Some((0, (2, 0, 0))),
        }
    }

    /// Adds the outcome for one recipient.
    pub(in crate::pipeline) fn answered(&mut self, outcome: &Outcome) {
        let (rank, class) = match outcome {
            Outcome::Delivered(_) => (0, 2),
            Outcome::Deferred(_) => (1, 4),
            Outcome::Failed(_) => (2, 5),
        };
        let answer = outcome.answer();
        if self.next_hop.is_none() && !answer.is_unrouted() {
            self.next_hop = Some(answer.next_hop.clone());
        }
        if self.answer.is_none_or(|(other, _)| other < rank) {
            self.answer = Some((rank, answer.status().unwrap_or((class, 0, 0))));
        }
    }
}

/// The delay of a message in milliseconds, in parts that do not overlap. A part that this process has not measured is `None`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Delays {
    receive: Option<u64>,
    wait: Option<u64>,
    scan: Option<u64>,
    store: Option<u64>,
    deliver: Option<u64>,
}

impl Delays {
    fn of(times: Option<Times>, pass: Option<&PassTimes>, now: Instant) -> Self {
        let Some(pass) = pass else {
            return Self::default();
        };
        let earlier = times.map_or(Duration::ZERO, |times| times.storing);
        let storing = earlier + now.duration_since(pass.passed);
        let worked = pass.scanning.unwrap_or_default()
            + pass.delivering.unwrap_or_default()
            + now.duration_since(pass.passed);
        // A message whose times are known has had this one pass only. What it was stored for may have run beside the scan.
        let wait = |times: Times| {
            let total = now.duration_since(times.received);
            total.saturating_sub(worked).saturating_sub(earlier)
        };
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            receive: times.map(|times| milliseconds(times.receiving)),
            wait: times.map(|times| milliseconds(wait(times))),
            scan: pass.scanning.map(milliseconds),
            store: Some(milliseconds(storing)),
            deliver: pass.delivering.map(milliseconds),
        }
    }
}

/// A pass has ended: one line for all recipients of the message in this pass.
pub(in crate::pipeline) fn message(
    message: &Message,
    entries: &[HistoryEntry],
    facts: &PassFacts,
    reply: &Reply,
) {
    let Some(first) = entries.iter().find(|entry| entry.part_of.is_none()) else {
        return;
    };
    let reused = stand_ins(&first.reports).map(|(engine, from)| format!("{engine}:{from}"));
    let reused: Vec<String> = reused.collect();
    let origin = &message.envelope.origin;
    let delays = Delays::of(message.times, facts.times.as_ref(), Instant::now());
    let all = Addresses::of(entries);
    let event = event(entries);
    // The reply to the sender repeats what the next hop said.
    let is_told = facts.is_in_session && event == "delivered";
    tracing::info!(
        id = %message.id,
        event,
        message_id = header::first(message.content.header_section(), "Message-ID").map(shown_id).as_deref(),
        from = %message.envelope.reverse_path,
        recipients = all.0.len(),
        to = %all,
        client = %origin.client,
        helo = (!origin.helo.is_empty()).then_some(&*origin.helo),
        user = origin.user.as_deref(),
        tls = origin.tls.as_deref(),
        listener = &*origin.listener,
        size = message.content.len(),
        verdict = first.decision.as_ref().map(|decision| decision.verdict.as_str()),
        rule = first.decision.is_some().then(|| rules(entries)).as_deref(),
        reused = (!reused.is_empty()).then(|| reused.join(", ")),
        next_hop = facts.next_hop.as_deref(),
        dsn = facts.answer.map(|(_, code)| tracing::field::display(Code(code))),
        parts = entries.iter().any(is_part).then(|| tracing::field::display(Parts(entries))),
        detail = (!is_told).then(|| detail(entries)).filter(|detail| !detail.is_empty()).as_deref(),
        reply = facts.is_in_session.then(|| tracing::field::display(reply)),
        receive_ms = delays.receive,
        wait_ms = delays.wait,
        scan_ms = delays.scan,
        store_ms = delays.store,
        deliver_ms = delays.deliver,
        "message"
    );
}

fn is_part(entry: &HistoryEntry) -> bool {
    entry.part_of.is_some()
}

/// The event of all recipients, or `several`.
fn event(entries: &[HistoryEntry]) -> &str {
    let mut events = entries.iter().filter(|entry| !is_part(entry));
    let first = events.next().map_or("", |entry| &*entry.event);
    match events.all(|entry| entry.event == first) {
        true => first,
        false => "several",
    }
}

/// The rules that decided, each once.
fn rules(entries: &[HistoryEntry]) -> Cow<'_, str> {
    let decisions = entries.iter().filter_map(|entry| entry.decision.as_ref());
    let mut rules = decisions.map(|decision: &Decision| &*decision.rule);
    let mut all = Cow::Borrowed(rules.next().unwrap_or_default());
    for rule in rules {
        if all.split(", ").all(|known| known != rule) {
            let all = all.to_mut();
            all.push_str(", ");
            all.push_str(rule);
        }
    }
    all
}

/// The details of the first recipient with each event. With several events, each begins with its number of recipients.
fn detail(entries: &[HistoryEntry]) -> Cow<'_, str> {
    let told = || entries.iter().filter(|entry| !is_part(entry));
    if event(entries) != "several" {
        return told().next().map_or("", |entry| &*entry.detail).into();
    }
    let mut text = String::new();
    let mut events: Vec<&str> = Vec::new();
    for entry in told() {
        if events.contains(&&*entry.event) {
            continue;
        }
        events.push(&entry.event);
        let same = told().filter(|other| other.event == entry.event);
        let count: usize = same.map(|entry| entry.recipients.len()).sum();
        let between = if text.is_empty() { "" } else { "; " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{between}{count} {}: {}", entry.event, entry.detail);
    }
    text.into()
}

/// The body of a `Message-ID` field, which any sender may have written.
fn shown_id(field: header::Field<'_>) -> Cow<'_, str> {
    let id = field.body.trim_ascii();
    String::from_utf8_lossy(&id[..id.len().min(MESSAGE_ID_OCTETS_MAX)])
}

/// A status code (RFC 3463).
struct Code((u16, u16, u16));

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (class, subject, detail) = self.0;
        write!(f, "{class}.{subject}.{detail}")
    }
}

/// The recipients of some entries, each once: `a@b.test, c@d.test, … and 5 more`.
pub(super) struct Addresses<'a>(Vec<&'a Mailbox>);

impl<'a> Addresses<'a> {
    pub(super) fn of(entries: &'a [HistoryEntry]) -> Self {
        let mut all: Vec<&Mailbox> = entries.iter().flat_map(|entry| &entry.recipients).collect();
        // Only entries with different events are about the same recipient: refused, then bounced.
        if event(entries) == "several" {
            let mut seen = HashSet::new();
            all.retain(|mailbox| seen.insert(mailbox.as_str()));
        }
        Self(all)
    }
}

impl fmt::Display for Addresses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = self.0.iter();
        for (at, mailbox) in all.by_ref().take(RECIPIENTS_NAMED_MAX).enumerate() {
            let between = if at == 0 { "" } else { ", " };
            write!(f, "{between}{mailbox}")?;
        }
        match all.count() {
            0 => Ok(()),
            more => write!(f, ", … and {more} more"),
        }
    }
}

/// The ids under which the message continues for some of its recipients.
struct Parts<'a>(&'a [HistoryEntry]);

impl fmt::Display for Parts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = self.0.iter().filter(|entry| is_part(entry));
        for (at, part) in all.by_ref().take(PARTS_NAMED_MAX).enumerate() {
            let between = if at == 0 { "" } else { ", " };
            write!(f, "{between}{}", part.message)?;
        }
        match all.count() {
            0 => Ok(()),
            more => write!(f, ", … and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{MessageId, ReversePath};

    fn entry(event: &'static str, recipients: &[&str], detail: &str) -> HistoryEntry {
        let mailbox = |text: &&str| Mailbox::parse(text).expect("an address");
        HistoryEntry {
            at: jiff::Timestamp::UNIX_EPOCH,
            message: MessageId::new(),
            part_of: None,
            event: event.into(),
            sender: ReversePath::NULL,
            recipients: recipients.iter().map(mailbox).collect(),
            client: [192, 0, 2, 1].into(),
            listener: "smtp".into(),
            size: 1,
            decision: None,
            reports: Vec::new(),
            subject: String::new(),
            attachments: Vec::new(),
            basis: None,
            detail: detail.to_owned(),
        }
    }

    /// One line says what became of all recipients: one word if all have the same end, otherwise each end with its number.
    #[test]
    fn recipients_with_different_ends_are_counted_by_their_end() {
        let same = [
            entry("delivered", &["a@x.test"], "250 one"),
            entry("delivered", &["b@x.test"], "250 two"),
        ];
        assert_eq!(event(&same), "delivered");
        assert_eq!(detail(&same), "250 one");
        assert_eq!(Addresses::of(&same).to_string(), "a@x.test, b@x.test");
        let mut differing = same.to_vec();
        differing.push(entry("refused", &["c@x.test"], "550 no"));
        differing.push(entry("bounced", &["c@x.test"], "is told"));
        differing.push(HistoryEntry {
            part_of: Some(MessageId::new()),
            ..entry("parted", &[], "")
        });
        assert_eq!(event(&differing), "several");
        let all = "2 delivered: 250 one; 1 refused: 550 no; 1 bounced: is told";
        assert_eq!(detail(&differing), all);
        let addresses = Addresses::of(&differing);
        assert_eq!(addresses.to_string(), "a@x.test, b@x.test, c@x.test");
        assert_eq!(
            Parts(&differing).to_string(),
            differing[4].message.to_string()
        );
    }

    /// A line stays short, however many recipients and however long a Message-ID a sender invents.
    #[test]
    fn a_line_is_bounded() {
        let many: Vec<_> = (0..1000)
            .map(|n| entry("delivered", &[&format!("u{n}@x.test")], ""))
            .collect();
        let addresses = Addresses::of(&many);
        assert_eq!(addresses.0.len(), 1000);
        let text = addresses.to_string();
        assert!(text.ends_with("u9@x.test, … and 990 more"), "{text}");
        let body = "é".repeat(500);
        let field = header::Field {
            name: b"Message-ID",
            body: body.as_bytes(),
        };
        assert_eq!(shown_id(field), "é".repeat(100));
    }

    /// The parts of the delay do not overlap and add up to the whole time; what this process has not measured is left out.
    #[tokio::test(start_paused = true)]
    async fn the_delay_is_split_into_parts() {
        let (millis, now) = (Duration::from_millis, Instant::now());
        let pass = PassTimes {
            scanning: Some(millis(100)),
            delivering: Some(millis(30)),
            passed: now + millis(190),
        };
        let times = Times {
            received: now,
            receiving: millis(7),
            storing: millis(20),
        };
        let delays = Delays::of(Some(times), Some(&pass), now + millis(200));
        let expected = Delays {
            receive: Some(7),
            wait: Some(40),
            scan: Some(100),
            store: Some(30),
            deliver: Some(30),
        };
        assert_eq!(delays, expected);
        let restarted = Delays::of(None, Some(&pass), now + millis(200));
        let known = Delays {
            receive: None,
            wait: None,
            store: Some(10),
            ..expected
        };
        assert_eq!(restarted, known);
        let of_own = PassTimes {
            scanning: None,
            delivering: None,
            ..pass
        };
        let nothing = Delays {
            store: Some(10),
            ..Delays::default()
        };
        assert_eq!(Delays::of(None, Some(&of_own), now + millis(200)), nothing);
    }
}
