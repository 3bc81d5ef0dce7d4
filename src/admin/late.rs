//! What is late: the stored mail that has waited for too long, by what it waits for, since when, and what a person should do.

mod advice;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::waits::{Clock, Waiting, Waits, WaitsFor, What};
use super::{Status, Stored};
use crate::incident::{Kind, Story, Subject, advice, advice_for};
use crate::pipeline::Shortage;
use crate::scan::Health;
use crate::store::{LATE_AFTER, Lane, LateMail, LateTimes};
use advice::{Advice, advised, troubled};

/// Most causes that a status shows, those with the oldest mail first. More next hops than this are rarely down at once.
const CAUSES_SHOWN_MAX: usize = 10;

/// Late mail that waits for one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Late {
    /// The mail.
    #[serde(flatten)]
    pub mail: LateMail,
    /// What it waits for.
    pub waits_for: WaitsFor,
    /// What a person should do about it, in one sentence.
    pub advice: String,
    /// The story of that thing's trouble, for `spillway incident show`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<Ulid>,
}

/// One thing that makes mail late, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateLine {
    /// How much mail waits for what since when.
    pub text: String,
    /// What to do, in one sentence; may be empty.
    pub advice: String,
}

impl Late {
    /// The times that [`Store::late`](crate::store::Store::late) needs.
    pub fn times(now: Timestamp) -> LateTimes {
        LateTimes {
            now,
            before: now.checked_sub(LATE_AFTER).unwrap_or(Timestamp::MIN),
        }
    }

    /// Finds out what each kind of late mail waits for; the oldest first.
    pub fn all(mut late: Vec<LateMail>, waits: &Waits) -> Vec<Self> {
        late.sort_by_key(|mail| mail.oldest);
        let of = |mail: LateMail| {
            let (engines, next_hops) = (&waits.engines, &waits.next_hops);
            let waiting = Waiting::late(&mail);
            let (waits_for, _) = WaitsFor::of(&waiting, engines, next_hops, &|_| String::new());
            let (advice, engine) = advised(&mail, &waits_for, engines);
            let advice = advice.about(&mail, &waits_for, engine);
            Self {
                mail,
                waits_for,
                advice,
                incident: None,
            }
        };
        late.into_iter().map(of).collect()
    }

    /// Names the story of each cause. `open` are the stories that last.
    pub fn name_incidents(late: &mut [Self], open: &[Story], engines: &[Health]) {
        for one in late {
            let engine = match is_scan_without_cause(&one.mail) {
                true => troubled(engines).map(|health| health.engine.to_string()),
                false => None,
            };
            let name = one.waits_for.name.as_ref().or(engine.as_ref());
            let is_about = |story: &&Story| match &story.cause {
                Subject::NextHop(hop) => one.mail.lane == Lane::Delivery && Some(hop) == name,
                Subject::Engine { name: engine, .. } => {
                    one.mail.lane != Lane::Delivery && Some(engine) == name
                }
                Subject::Interceptor(id) => {
                    one.waits_for.what == What::Interceptor && Some(id) == name
                }
                _ => false,
            };
            one.incident = open.iter().find(is_about).map(|story| story.id);
        }
    }

    fn line(&self, status: &Status, clock: Clock<'_>, age: Clock<'_>) -> LateLine {
        let mail = &self.mail;
        let waiting = Waiting::late(mail);
        let (_, what) = WaitsFor::of(&waiting, &status.engines, &status.next_hops, clock);
        let [many, waits] = match (mail.more, mail.messages) {
            (true, n) => [format!("{} or more messages", grouped(n)), "wait".into()],
            (false, 1) => ["1 message".into(), "waits".into()],
            (false, n) => [format!("{} messages", grouped(n)), "wait".into()],
        };
        let what = match mail.lane {
            Lane::Held => format!("{waits} in quarantine for {what}"),
            _ => format!("{waits} for {what}"),
        };
        // Which engine a message without a cause waits for is not stored.
        let troubled = match is_scan_without_cause(mail) {
            true if self.waits_for.what != What::Engine => troubled(&status.engines)
                .map(|health| format!(" (engine {} is {})", health.engine, health.load(clock))),
            _ => None,
        };
        let troubled: String = troubled.into_iter().collect();
        let (since, age) = (clock(mail.oldest), age(mail.oldest));
        let incident = self.incident.map(|id| format!("; incident {id}"));
        let incident = incident.unwrap_or_default();
        let held_at = mail.failing.as_ref().and_then(|failing| failing.held_at);
        let held = match held_at.filter(|_| self.waits_for.what == What::Failing) {
            Some(at) => format!(", goes to quarantine at {}", clock(at)),
            None => String::new(),
        };
        LateLine {
            text: format!(
                "{many} {what}{troubled}; the oldest since {since} ({age}){held}{incident}"
            ),
            advice: self.advice.clone(),
        }
    }
}

impl Status {
    /// What is late or kept from coming in, for people: the troubles of the relay as a whole, then the mail that waits, the
    /// oldest first. `clock` writes a time, `age` the time since then.
    pub fn late_lines(&self, clock: Clock<'_>, age: Clock<'_>) -> Vec<LateLine> {
        let mut lines = Vec::new();
        let mut add = |text: String, kind| {
            let advice = advice(kind).to_owned();
            lines.push(LateLine { text, advice });
        };
        if self.stored.is_none() {
            let what = Stored::UNKNOWN_TEXT;
            add(format!("how much mail waits is {what}"), Kind::StoreTrouble);
        }
        if let Some(reason) = self.not_ready.as_ref().filter(|_| !self.draining) {
            let text = format!("senders keep their mail, because none is accepted: {reason}");
            add(text, Kind::StoreTrouble);
        }
        if let Some(refused) = self.refused {
            lines.push(self.refusal_line(refused));
        }
        let late = self.stored.iter().flat_map(|stored| &stored.late);
        let shown = late.clone().take(CAUSES_SHOWN_MAX);
        lines.extend(shown.map(|late| late.line(self, clock, age)));
        let more = late.count().saturating_sub(CAUSES_SHOWN_MAX);
        if more > 0 {
            lines.push(LateLine {
                text: format!("mail waits for {more} other things"),
                advice: Advice::More.text().to_owned(),
            });
        }
        lines
    }

    /// That admission refuses mail, and what is short.
    fn refusal_line(&self, refused: u64) -> LateLine {
        let shortage = self.refused_for.as_ref();
        let because =
            shortage.map_or_else(String::new, |short| format!(", because {}", short.words()));
        let cause = match shortage {
            Some(Shortage::Wait { engine }) => Subject::engine(&**engine),
            _ => Subject::Relay,
        };
        LateLine {
            text: format!(
                "some senders keep their mail ({} refused so far){because}",
                grouped(refused)
            ),
            advice: advice_for(Kind::AdmissionRefuses, &cause),
        }
    }

    /// The end of data of the oldest message that waits for a scan or for delivery. Percentiles of delays do not contain it.
    pub fn oldest_waiting(&self) -> Option<Timestamp> {
        let stored = self.stored.as_ref()?;
        let in_session = stored.late.iter().filter(|late| late.mail.in_session);
        let in_session = in_session.map(|late| late.mail.oldest).min();
        let all = [stored.scan.oldest, stored.delivery.oldest, in_session];
        all.into_iter().flatten().min()
    }
}

fn is_scan_without_cause(mail: &LateMail) -> bool {
    mail.lane == Lane::Scan && mail.cause.is_none()
}

/// A number with a comma between groups of three digits: `10,000`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
