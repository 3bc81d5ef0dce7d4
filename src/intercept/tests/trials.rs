//! Law 6: blame needs an experiment.

use super::*;
use crate::incident::Incident;

/// The traits of a known sender's message beside its content.
const KNOWN: [(Aspect, u64); 2] = [(Aspect::SenderDomain, 5), (Aspect::Client, 5)];

/// A message with these attachments, bands and other broad traits.
fn message(attachments: &[u64], near: &[u64], broad: &[(Aspect, u64)]) -> Arc<Fingerprint> {
    let near = near.iter().map(|value| (Aspect::Near, *value));
    let broad: Vec<(Aspect, u64)> = near.chain(broad.iter().copied()).collect();
    let mut f = Arc::unwrap_or_clone(fingerprint(0, &broad));
    f.exact = attached(attachments).exact.clone();
    Arc::new(f)
}

fn from_known(attachments: &[u64], near: &[u64]) -> Arc<Fingerprint> {
    message(attachments, near, &KNOWN)
}

impl World {
    /// One observation of a scan of that message.
    fn see(&mut self, id: MessageId, f: &Arc<Fingerprint>, seen: Observed) -> Vec<Incident> {
        let evidence = Evidence {
            message: id,
            fingerprint: f.clone(),
            reputation: SenderReputation::Unknown,
            scan_reason: ScanReason::Fresh,
            size: SizeClass::Tiny,
            arrived: self.now,
            started: self.now,
            at: self.now,
            what: seen,
        };
        let engine = self.engine.clone();
        self.learner.observe(self.now, &engine, &evidence)
    }

    /// Two different messages with this fingerprint are slow, and then run into their timeout.
    fn hangs(&mut self, f: &Arc<Fingerprint>) {
        for _ in 0..2 {
            self.hangs_once(f);
        }
    }

    fn hangs_once(&mut self, f: &Arc<Fingerprint>) {
        let good = fingerprint(1, &[]);
        self.see(MessageId::new(), &good, FAST);
        let id = MessageId::new();
        self.see(id, f, Observed::Slow);
        self.see(id, f, Observed::TimedOut);
    }

    fn judge(&mut self, id: MessageId, f: &Arc<Fingerprint>) -> Ruling {
        self.learner.judge(self.now, id, f)
    }

    fn is_held(&mut self, f: &Arc<Fingerprint>) -> bool {
        let id = MessageId::new();
        let exemption = self.judge(id, f).exemption;
        let envelope = envelope();
        let facts = Facts {
            envelope: &envelope,
            sender: &ComparedAddress::of_sender(&envelope.reverse_path),
            subject: "",
            fingerprint: f,
        };
        let fresh = self.learner.arrived(self.now, id, &facts, f, exemption);
        assert_eq!(
            fresh,
            self.learner.holds(&facts, exemption),
            "again as at first"
        );
        fresh.is_some()
    }

    fn patterns(&self) -> Vec<String> {
        self.learner.list().map(|i| i.pattern.to_string()).collect()
    }
}

/// A document in all messages that hung is held for unknown senders only. Once a known sender's message with the document
/// alone was scanned quickly, the document is cleared, and the part that hung with it is blocked.
#[tokio::test(start_paused = true)]
async fn what_stands_beside_the_culprit_is_cleared_by_one_message() {
    let mut world = World::new();
    let (document, culprit) = (1_000, 2_000);
    world.hangs(&message(&[document, culprit], &[], &[]));
    assert_eq!(
        world.patterns(),
        ["attachment:00000000000003e8"],
        "the first"
    );
    let (id, letter) = (MessageId::new(), from_known(&[document], &[]));
    let ruling = world.judge(id, &letter);
    assert_eq!(ruling.exemption, Exemption::All, "it is not held");
    assert!(!ruling.shown.has(letter.exact[0]), "nor blamed at a gate");
    assert!(
        world.is_held(&message(&[document], &[], &[])),
        "a stranger's is"
    );
    let incidents: Vec<String> = (world.see(id, &ruling.shown, FAST).iter())
        .map(|incident| incident.summary.clone())
        .collect();
    assert!(
        incidents[0].contains("cleared: a message with nothing else suspected"),
        "{incidents:?}"
    );
    assert_eq!(
        world.patterns(),
        ["attachment:00000000000007d0"],
        "the culprit"
    );
    assert!(!world.is_held(&letter));
    let shown = world.judge(MessageId::new(), &letter).shown;
    assert!(
        !shown.has(letter.exact[0]),
        "zombies at the gate do not matter"
    );
}

/// Law 3: content that a trial has cleared is cleared for everybody, also at the gate, where it is still in scans that hang
/// for the part beside it. So gates see an unknown sender's message without that content and without its bands. Gates do see
/// content that is only alike, and content that has hung alone since.
#[tokio::test(start_paused = true)]
async fn what_was_cleared_is_blamed_for_nobodys_mail_at_a_gate() {
    let mut world = World::new();
    let (document, culprit) = (1_000, 2_000);
    let near: Vec<u64> = (100..108).map(|n| n * 2).collect();
    world.hangs(&message(&[document, culprit], &near, &[]));
    let strangers = message(&[document], &near, &[]);
    let band = strangers.broad[0];
    let shown = world.judge(MessageId::new(), &strangers).shown;
    assert!(
        shown.has(strangers.exact[0]) && shown.has(band),
        "suspected"
    );
    let (id, letter) = (MessageId::new(), from_known(&[document], &near));
    let shown = world.judge(id, &letter).shown;
    world.see(id, &shown, FAST);
    let id = MessageId::new();
    let shown = world.judge(id, &strangers).shown;
    assert!(
        !shown.has(strangers.exact[0]) && !shown.has(band),
        "cleared"
    );
    assert!(!world.is_held(&strangers));
    let both = message(&[document, culprit], &near, &[]);
    let shown = world.judge(MessageId::new(), &both).shown;
    assert!(!shown.has(both.exact[0]) && shown.has(both.exact[1]));
    assert!(shown.has(band), "it may be the culprit's");
    let alike = message(&[document + 1], &near, &[]);
    assert!(world.judge(MessageId::new(), &alike).shown.has(band));
    // It was shown without it, and hangs: with all that it has, and with nothing beside it.
    let shown = world.judge(id, &strangers).shown;
    world.pass(Duration::from_secs(1));
    world.see(id, &shown, Observed::Slow);
    let shown = world.judge(MessageId::new(), &strangers).shown;
    assert!(shown.has(strangers.exact[0]) && shown.has(band));
}

/// The next messages that hang do not block cleared content, even after the quick scan is forgotten: the cause is the part
/// that hangs beside it each time.
#[tokio::test(start_paused = true)]
async fn what_was_cleared_is_not_convicted_for_what_stands_beside_it() {
    let mut world = World::new();
    world.hangs(&message(&[1000, 2000], &[], &[]));
    let (id, letter) = (MessageId::new(), from_known(&[1000], &[]));
    let shown = world.judge(id, &letter).shown;
    world.see(id, &shown, FAST);
    let removed: Vec<String> = world.learner.list().map(|i| i.id.clone()).collect();
    removed.iter().for_each(|id| drop(world.learner.remove(id)));
    // Quick scans are remembered for a minute.
    world.pass(Duration::from_secs(120));
    for n in 0..3 {
        world.hangs_once(&message(&[1000, 3000 + n], &[], &[]));
    }
    assert_eq!(world.patterns(), [""; 0]);
    // Alone it was well, and is not any more.
    assert_eq!(
        world.judge(MessageId::new(), &letter).exemption,
        Exemption::All
    );
    let id = MessageId::new();
    let shown = world.judge(id, &letter).shown;
    world.see(id, &shown, Observed::Slow);
    assert_eq!(
        world.judge(MessageId::new(), &letter).exemption,
        Exemption::Near
    );
}

/// A slow trial is the missing proof: the content that it confirms is held for everybody.
#[tokio::test(start_paused = true)]
async fn what_is_slow_alone_is_held_for_known_senders_too() {
    let mut world = World::new();
    world.hangs(&message(&[1000, 2000], &[], &[]));
    let (id, letter) = (MessageId::new(), from_known(&[1000], &[]));
    let shown = world.judge(id, &letter).shown;
    let incidents = world.see(id, &shown, Observed::Slow);
    assert!(
        incidents[0].summary.contains("known senders' mail too"),
        "{incidents:?}"
    );
    assert!(world.is_held(&from_known(&[1000, 3000], &[])));
    // One that was slow and ended in time proves nothing.
    world.see(id, &shown, IN_TIME);
    assert!(!world.is_held(&letter));
}

/// One message at a time is on trial for a suspected trait. Other messages wait meanwhile, and are not held.
#[tokio::test(start_paused = true)]
async fn one_trial_at_a_time() {
    let mut world = World::new();
    world.hangs(&message(&[1000, 2000], &[], &[]));
    let (first, letter) = (MessageId::new(), from_known(&[1000], &[]));
    assert!(!world.judge(first, &letter).shown.has(letter.exact[0]));
    let other = world.judge(MessageId::new(), &letter);
    assert!(other.shown.has(letter.exact[0]), "it waits at the gate");
    assert_eq!(other.exemption, Exemption::All);
    // One with everything that is suspected is slow, and says nothing of its parts: less goes, and no more of the same.
    let mut world = World::new();
    world.hangs(&message(&[1000, 2000, 77], &[], &[]));
    let (first, both) = (MessageId::new(), from_known(&[1000, 2000, 3], &[]));
    let shown = world.judge(first, &both).shown;
    world.see(first, &shown, Observed::Slow);
    let ruling = world.judge(MessageId::new(), &letter);
    assert!(
        !ruling.shown.has(letter.exact[0]),
        "less is suspected in it"
    );
    assert_eq!(
        world.judge(MessageId::new(), &both).exemption,
        Exemption::Near
    );
}

/// A trial whose message never reached the engine does not keep others waiting for long.
#[tokio::test(start_paused = true)]
async fn a_trial_that_never_began_is_forgotten() {
    let mut world = World::new();
    world.hangs(&message(&[1000, 2000], &[], &[]));
    let letter = from_known(&[1000], &[]);
    world.judge(MessageId::new(), &letter);
    world.pass(Duration::from_secs(16));
    let shown = world.judge(MessageId::new(), &letter).shown;
    assert!(!shown.has(letter.exact[0]));
}

/// One band in common is an accident: no interceptor is made for it, an interceptor for nearly the same content does not
/// match it, and gates do not see it.
#[tokio::test(start_paused = true)]
async fn one_band_is_no_near_match() {
    let mut world = World::new();
    let even = |from: u64| -> Vec<u64> { (from..from + 8).map(|n| n * 2).collect() };
    // Two unrelated messages that hang, with one band in common.
    let (one, mut other) = (even(100), even(200));
    other[0] = one[0];
    world.hangs_once(&message(&[11], &one, &[]));
    world.hangs_once(&message(&[12], &other, &[]));
    assert_eq!(world.patterns(), [""; 0]);
    // Two that are nearly the same.
    let mut like = one.clone();
    like[5..].copy_from_slice(&even(300)[5..]);
    world.hangs_once(&message(&[13], &like, &[]));
    assert_eq!(world.patterns().len(), 1);
    assert!(world.patterns()[0].starts_with("nearly the same content"));
    let mut letter = even(400);
    letter[3] = one[3];
    assert!(
        !world.is_held(&message(&[14], &letter, &[])),
        "a stranger's"
    );
    let valid = from_known(&[14], &letter);
    assert!(!world.is_held(&valid));
    let shown = world.judge(MessageId::new(), &valid).shown;
    let near = |value| crate::message::Trait {
        aspect: Aspect::Near,
        value,
    };
    assert!(!shown.has(near(one[3])) && shown.has(near(letter[4])));
    let third = message(&[15], &[&one[..3], &even(500)[3..]].concat(), &[]);
    assert!(world.is_held(&third), "three of eight bands");
}

/// Known senders' messages that are nearly the same as held content are not held, whatever trials showed: other engines
/// decide.
#[tokio::test(start_paused = true)]
async fn known_senders_are_not_held_for_a_near_match() {
    let mut world = World::new();
    let near: Vec<u64> = (100..108).map(|n| n * 2).collect();
    world.hangs_once(&message(&[11], &near, &[]));
    world.hangs_once(&message(&[12], &near, &[]));
    assert!(world.patterns()[0].starts_with("nearly the same content"));
    let letter = from_known(&[13], &near);
    let id = MessageId::new();
    let ruling = world.judge(id, &letter);
    world.see(id, &ruling.shown, Observed::Slow);
    assert_eq!(
        world.judge(MessageId::new(), &letter).exemption,
        Exemption::Near
    );
    assert!(!world.is_held(&letter));
}

/// Mail that is only alike may be imitated. A known sender's quick scan clears it for known senders; unknown senders'
/// messages stay held, however many quick scans follow. Once it is slow for a known sender as well, there is a new trial.
#[tokio::test(start_paused = true)]
async fn what_is_only_alike_is_cleared_for_known_senders_only() {
    let mut world = World::new();
    let shape = (Aspect::Skeleton, 99);
    world.minute(|rng| message(&[rng.random()], &[], &[shape]));
    assert!(world.holds());
    let mut letters = (0..4).map(|n| message(&[50 + n], &[], &[KNOWN[0], KNOWN[1], shape]));
    let mut next = || (MessageId::new(), letters.next().expect("enough"));
    for _ in 0..3 {
        let (id, letter) = next();
        let Ruling { exemption, shown } = world.judge(id, &letter);
        assert_eq!(exemption, Exemption::All);
        world.see(id, &shown, FAST);
    }
    assert!(
        world.is_held(&message(&[60], &[], &[shape])),
        "strangers' mail is"
    );
    let (id, letter) = next();
    let shown = world.judge(id, &letter).shown;
    world.see(id, &shown, Observed::Slow);
    let again = message(&[61], &[], &[KNOWN[0], KNOWN[1], shape]);
    let (one, other) = (MessageId::new(), MessageId::new());
    let is_shown = |ruling: Ruling| ruling.shown.broad.iter().any(|t| t.aspect == shape.0);
    assert!(!is_shown(world.judge(one, &again)), "one goes");
    assert!(is_shown(world.judge(other, &again)), "the next one waits");
}

/// The memory of trials is bounded under any load.
#[tokio::test(start_paused = true)]
async fn trials_are_bounded() {
    let mut world = World::new();
    for n in 0..600 {
        world.hangs_once(&message(&[1_000 + n, 5_000 + n], &[], &[]));
    }
    for n in 0..600 {
        let (id, letter) = (MessageId::new(), from_known(&[1_000 + n], &[]));
        let shown = world.judge(id, &letter).shown;
        world.see(id, &shown, if n % 2 == 0 { Observed::Slow } else { FAST });
    }
    let [hanging, open, slow, cleared] = world.learner.trials.counts();
    assert!(
        hanging <= 512 && open <= 256 && slow <= 256,
        "{hanging} {open} {slow}"
    );
    assert!(cleared <= 1024, "{cleared}");
}

/// A trial that hung is the answer for its own message too: the message is not tried again, and is held for its suspected
/// keys.
#[tokio::test(start_paused = true)]
async fn a_message_is_tried_once() {
    let mut world = World::new();
    let culprit = 2_000;
    world.hangs_once(&message(&[culprit, 3_000], &[], &[]));
    let (id, letter) = (MessageId::new(), from_known(&[culprit], &[]));
    let ruling = world.judge(id, &letter);
    assert_eq!(ruling.exemption, Exemption::All, "it is the trial");
    world.see(id, &ruling.shown, Observed::Slow);
    world.see(id, &ruling.shown, Observed::TimedOut);
    let ruling = world.judge(id, &letter);
    assert_eq!(ruling.exemption, Exemption::Near);
    assert!(ruling.shown.has(letter.exact[0]));
}

/// Of a flood of nearly the same content the gate lets in the messages that share few bands with the slow scans there. Two
/// failures with one band in common are enough if messages like one of them come in a burst. Without a burst they are not:
/// one band is equal by accident.
#[tokio::test(start_paused = true)]
async fn a_burst_of_what_is_nearly_the_same_makes_up_for_a_failure() {
    let bands = |from: u64| (from..from + 8).map(|n| n * 2).collect::<Vec<u64>>();
    let (first, mut second) = (bands(100), bands(200));
    second[0] = first[0];
    let mut like_second = bands(300);
    like_second[..3].copy_from_slice(&second[4..7]);
    for burst in [false, true] {
        let mut world = World::new();
        for n in 0..15 {
            let near = if burst {
                &like_second
            } else {
                &bands(1000 + 10 * n)
            };
            world.is_held(&message(&[5_000 + n], near, &[]));
        }
        world.hangs_once(&message(&[1], &first, &[]));
        world.hangs_once(&message(&[2], &second, &[]));
        assert_eq!(
            world.patterns().len(),
            usize::from(burst),
            "{:?}",
            world.patterns()
        );
        assert_eq!(world.is_held(&message(&[3], &like_second, &[])), burst);
    }
}
