//! The peers of the relay: engines with workers that go on when their caller has left, and a next hop.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use metrics::Gauge;
use rand::RngExt as _;
use tokio::sync::watch;

use super::world::World;
use crate::deadline::Deadline;
use crate::delivery::next_hop::{HopResult, HopSignal, NextHop as Hop};
use crate::delivery::{Answer as Said, Outbound, Outcome};
use crate::message::{Digest, MessageId};
use crate::scan::engine::{Engine, EngineAnswer, Probes, Sample, ScanError};
use crate::smtp::RemoteReply;
use crate::verdict::{Answer, Finding, FindingKind};

/// How long an engine works on poison.
pub(super) const POISON: Duration = Duration::from_secs(120);

/// What is wrong with an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EngineFault {
    /// It takes mail and never answers.
    Hang,
    /// Everything takes so much longer.
    Slow(Duration),
    /// No connection.
    Refuse,
    /// Connections end in the middle.
    Drop,
    /// Answers that mean nothing.
    Garbage,
    /// Its code panics.
    Panic,
    /// Clean, at once, whatever it is (gray failure).
    Gray,
    /// Hangs and works in turn, for so long each.
    Flapping(Duration),
}

/// One scan in the engine.
#[derive(Debug)]
struct Running {
    life: u32,
    octets: Option<Digest>,
    message: MessageId,
    ends: Duration,
}

#[derive(Debug, Default)]
struct Inside {
    /// When each worker is free again.
    free: Vec<Duration>,
    running: BTreeMap<u64, Running>,
    next: u64,
    /// Scans of poison, or of what it goes away on, that began.
    touches: u32,
    fault: Option<EngineFault>,
    /// It has said what is wrong, so its answers may have been ended.
    has_lied: bool,
}

/// An engine.
pub(super) struct Scanning {
    pub(super) at: usize,
    name: String,
    world: Arc<World>,
    /// It is the one that poison is made for.
    poisoned: bool,
    /// It knows the malware.
    knows: bool,
    /// Calls at once that the relay may make.
    slots: usize,
    /// Its own limit for one scan.
    limit: Duration,
    inside: Mutex<Inside>,
    /// How often it has gone away.
    crashes: watch::Sender<u32>,
}

/// What an engine is to be like.
pub(super) struct Build {
    pub(super) at: usize,
    pub(super) poisoned: bool,
    pub(super) knows: bool,
    pub(super) slots: usize,
    pub(super) limit: Duration,
}

/// What is to happen in one scan.
enum Plan {
    Answer(Vec<Finding>),
    Fail(ScanError),
    Panic,
    Never,
    /// It goes away, with all that it works on.
    Crash,
}

impl Scanning {
    pub(super) fn new(world: &Arc<World>, build: &Build) -> Arc<Self> {
        Arc::new(Self {
            at: build.at,
            name: format!("e{}", build.at),
            world: world.clone(),
            poisoned: build.poisoned,
            knows: build.knows,
            slots: build.slots,
            limit: build.limit,
            inside: Mutex::new(Inside {
                free: vec![Duration::ZERO; build.slots],
                ..Inside::default()
            }),
            crashes: watch::Sender::new(0),
        })
    }

    pub(super) fn set(&self, fault: Option<EngineFault>) {
        let mut inside = self.inside.lock().expect("no panic");
        inside.has_lied |= matches!(fault, Some(EngineFault::Gray | EngineFault::Garbage));
        inside.fault = fault;
    }

    /// How often poison came in.
    pub(super) fn touches(&self) -> u32 {
        self.inside.lock().expect("no panic").touches
    }

    /// Takes a sample in: how long it takes from now on, what comes of it, and its number.
    fn begin(&self, sample: &Sample) -> (Duration, Plan, u64) {
        let (now, life) = (self.world.now(), self.world.lock().life);
        let mut rng = self
            .world
            .chance((self.at, self.world.name(sample.request().id)));
        let jitter = rng.random_range(0.5..2.0_f64);
        let rare = rng.random_range(0..40) == 0;
        let text = String::from_utf8_lossy(sample.content().bytes()).into_owned();
        let mut inside = self.inside.lock().expect("no panic");
        let mut took = Duration::from_millis(if rare { 700 } else { 10 }).mul_f64(jitter);
        let bad = text.contains("EICAR-STANDARD") || text.contains("MALWARE") && self.knows;
        let found = |bad: bool| match bad {
            true => vec![Finding::new(FindingKind::Malware, "Simulated", 10.0)],
            false => Vec::new(),
        };
        let mut plan = Plan::Answer(found(bad));
        if self.poisoned && text.contains("POISON") {
            inside.touches += 1;
            took = POISON;
        }
        if self.poisoned && text.contains("KILLER") {
            inside.touches += 1;
            plan = Plan::Crash;
        }
        let fault = match inside.fault {
            Some(EngineFault::Flapping(every)) => {
                let turn = now.as_millis() / every.as_millis().max(1);
                (turn % 2 == 0).then_some(EngineFault::Hang)
            }
            fault => fault,
        };
        match fault {
            Some(EngineFault::Hang) => (took, plan) = (self.limit, Plan::Never),
            Some(EngineFault::Slow(more)) => took += more,
            Some(EngineFault::Refuse) => {
                took = Duration::ZERO;
                plan = Plan::Fail(ScanError::Unreachable("refused".to_owned()));
            }
            Some(EngineFault::Drop) => {
                plan = Plan::Fail(ScanError::Disconnected("reset".to_owned()));
            }
            Some(EngineFault::Garbage) => {
                plan = Plan::Fail(ScanError::Garbage("?!".to_owned()));
            }
            Some(EngineFault::Panic) => plan = Plan::Panic,
            Some(EngineFault::Gray) => {
                took = Duration::from_millis(1);
                plan = Plan::Answer(Vec::new());
            }
            Some(EngineFault::Flapping(_)) | None => {}
        }
        let ends = inside.queue(now, took);
        self.admit(&mut inside, sample, (now, ends, life), took);
        let number = inside.next;
        (ends - now, plan, number)
    }

    /// I1: calls of this life that have not ended are at most as many as there are slots, callers that left included. I3:
    /// none of them is about the same octets.
    fn admit(
        &self,
        inside: &mut Inside,
        sample: &Sample,
        (now, ends, life): (Duration, Duration, u32),
        took: Duration,
    ) {
        inside.running.retain(|_, running| running.ends > now);
        if took.is_zero() {
            return;
        }
        let request = sample.request();
        let known = request.fingerprint.is_some();
        let octets = known.then(|| request.content.digest());
        let (message, name) = (request.id, &self.name);
        let mail = self.world.name(message);
        let called = mail.as_deref().unwrap_or("a probe");
        let mine = || inside.running.values().filter(|r| r.life == life);
        let (count, slots) = (mine().count(), self.slots);
        // One probe may be sent beyond: an engine that is out and has never ended its scans could not show that it works.
        let beyond = usize::from(mail.is_none());
        if count >= slots + beyond {
            self.world.breaks(format!(
                "I1: {name} gets {called} while it works on {count} of at most {slots}"
            ));
        }
        let same = |r: &Running| r.message == message || octets.is_some() && r.octets == octets;
        // One that began before its answers were ended by a lie is not joined, and may run beside the next.
        let older = usize::from(inside.has_lied);
        if mine().filter(|running| same(running)).count() > older {
            self.world.breaks(format!(
                "I3: {name} gets {called} while it works on the same"
            ));
        }
        let seconds = (ends - now).as_secs_f64();
        if mail.is_some() {
            self.world
                .note(|| format!("{name} takes {called} for {seconds:.3} s"));
        }
        inside.next += 1;
        let number = inside.next;
        let running = Running {
            life,
            octets,
            message,
            ends,
        };
        inside.running.insert(number, running);
    }

    /// What a caller sees of it when it goes away: its workers are free when it is there again, which is at once.
    fn gone(&self) -> ScanError {
        let mut inside = self.inside.lock().expect("no panic");
        inside.running.clear();
        inside.free.fill(self.world.now());
        ScanError::Disconnected("reset".to_owned())
    }

    /// It has ended; what it says is on its way.
    fn end(&self, number: u64, sample: &Sample, plan: Plan) -> Result<EngineAnswer, ScanError> {
        self.inside
            .lock()
            .expect("no panic")
            .running
            .remove(&number);
        match plan {
            Plan::Crash => {
                self.crashes.send_modify(|count| *count += 1);
                Err(self.gone())
            }
            Plan::Answer(findings) => {
                let mut world = self.world.lock();
                let body = world.mail(sample.request().id).map(|mail| mail.body);
                if let Some(body) = body {
                    world.answered.insert((self.at, body));
                    if !findings.is_empty() {
                        world.found.insert((self.at, body));
                    }
                }
                Ok(EngineAnswer {
                    signatures: Some("1".to_owned()),
                    ..EngineAnswer::new(Answer::Answered(findings))
                })
            }
            Plan::Fail(error) => Err(error),
            // Without the noise of the panic hook.
            Plan::Panic => std::panic::resume_unwind(Box::new("simulated")),
            Plan::Never => unreachable!("it never ends"),
        }
    }
}

/// A call under way. Dropped before the engine's own limit, the engine works on; a connection that is closed at its limit
/// is the end of the scan.
struct Call {
    engine: Arc<Scanning>,
    number: u64,
    until: Duration,
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.engine.world.now() >= self.until {
            let mut inside = self.engine.inside.lock().expect("no panic");
            inside.running.remove(&self.number);
        }
    }
}

impl Inside {
    /// First come, first served by the worker that is free first: when it will have ended.
    fn queue(&mut self, now: Duration, took: Duration) -> Duration {
        let worker = self.free.iter_mut().min().expect("a worker");
        *worker = now.max(*worker) + took;
        *worker
    }
}

impl std::fmt::Debug for Scanning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Engine for Scanning {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        Box::pin(async move {
            let mut crashes = self.crashes.subscribe();
            let (left, plan, number) = self.begin(&sample);
            let began = self.world.now();
            let _call = Call {
                engine: self.clone(),
                number,
                until: began + self.limit,
            };
            let ends = async {
                if matches!(plan, Plan::Never) {
                    std::future::pending::<()>().await;
                }
                Deadline::after(left).wait().await;
            };
            let is_gone = tokio::select! {
                biased;
                gone = crashes.changed() => gone.is_ok(),
                () = ends => false,
            };
            match is_gone {
                true => Err(self.gone()),
                false => self.end(number, &sample, plan),
            }
        })
    }

    fn replica(&self) -> Option<&str> {
        Some(&self.name)
    }

    fn probes(&self) -> Option<Probes> {
        Some(Probes::malware())
    }
}

/// What is wrong with the next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HopFault {
    /// 451 to everybody.
    Later,
    /// 421 before the message is offered.
    Throttle,
    /// No answer until the relay gives up.
    Hang,
    /// It takes the message, and its answer does not arrive.
    Ambiguous,
    /// 451 to every second recipient.
    Partial,
}

/// A next hop. It refuses everybody whose name begins with `nobody`.
pub(super) struct NextHop {
    pub(super) name: Arc<str>,
    pub(super) world: Arc<World>,
    pub(super) fault: Mutex<Option<HopFault>>,
}

/// Taken, but not told yet.
struct Untold {
    world: Arc<World>,
    id: MessageId,
    recipient: Option<String>,
}

impl Drop for Untold {
    fn drop(&mut self) {
        if let Some(recipient) = self.recipient.take() {
            self.world.answer_lost(self.id, &recipient);
        }
    }
}

impl NextHop {
    fn said(&self, code: u16) -> Said {
        let reply = RemoteReply {
            code,
            enhanced: None,
            text: "simulated".to_owned(),
        };
        Said {
            text: reply.to_string(),
            reply: Some(reply),
            ..Said::of(&self.name)
        }
    }

    fn silent(&self, why: &str) -> Said {
        Said {
            reply: None,
            text: why.to_owned(),
            ..self.said(451)
        }
    }

    async fn serve(
        self: Arc<Self>,
        mail: Outbound,
        recipients: Vec<usize>,
        deadline: Deadline,
    ) -> HopResult {
        let fault = *self.fault.lock().expect("no panic");
        if fault == Some(HopFault::Hang) {
            deadline.wait().await;
            let outcome = Outcome::Deferred(self.silent("no answer"));
            let outcome = |at| (at, outcome.clone());
            return HopResult {
                outcomes: recipients.into_iter().map(outcome).collect(),
                signal: HopSignal::Broken,
                offered: true,
            };
        }
        let (there, back) = {
            let mut rng = self.world.chance((&self.name, self.world.name(mail.id)));
            let mut span = || Duration::from_millis(rng.random_range(1..50));
            (span(), span())
        };
        Deadline::after(there).wait().await;
        let header = String::from_utf8_lossy(&mail.prefix).into_owned();
        let mut untold = Vec::new();
        let mut outcomes = Vec::new();
        for (nth, at) in recipients.into_iter().enumerate() {
            let recipient = mail.envelope.recipients[at].mailbox.as_str().to_owned();
            let outcome = match fault {
                _ if recipient.starts_with("nobody") => {
                    self.world.refused(mail.id);
                    Outcome::Failed(self.said(550))
                }
                Some(HopFault::Later | HopFault::Throttle) => Outcome::Deferred(self.said(451)),
                Some(HopFault::Partial) if nth % 2 == 1 => Outcome::Deferred(self.said(451)),
                _ => {
                    self.world.taken(mail.id, &recipient, &header);
                    untold.push(Untold {
                        world: self.world.clone(),
                        id: mail.id,
                        recipient: Some(recipient),
                    });
                    match fault {
                        Some(HopFault::Ambiguous) => Outcome::Deferred(self.silent("reset")),
                        _ => Outcome::Delivered(self.said(250)),
                    }
                }
            };
            outcomes.push((at, outcome));
        }
        Deadline::after(back).wait().await;
        if fault != Some(HopFault::Ambiguous) {
            for untold in &mut untold {
                untold.recipient = None;
            }
        }
        let signal = match fault {
            Some(HopFault::Later) => HopSignal::Later,
            Some(HopFault::Throttle) => HopSignal::Throttled,
            Some(HopFault::Ambiguous) => HopSignal::Broken,
            Some(HopFault::Hang | HopFault::Partial) | None => HopSignal::Fine,
        };
        HopResult {
            outcomes,
            signal,
            offered: signal != HopSignal::Throttled,
        }
    }
}

/// The next hop as delivery has it.
pub(super) struct Served(pub(super) Arc<NextHop>);

impl Hop for Served {
    fn deliver<'a>(
        &'a self,
        mail: &'a Outbound,
        recipients: Vec<usize>,
        _: &'a Gauge,
        deadline: Deadline,
    ) -> BoxFuture<'a, HopResult> {
        Box::pin(self.0.clone().serve(mail.clone(), recipients, deadline))
    }
}
