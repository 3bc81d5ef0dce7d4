//! Records and other values for tests of stores.

use std::time::Duration;

use jiff::Timestamp;

use crate::message::{Content, Envelope, Mailbox, MessageId, Origin};
use crate::store::{Audit, Lane, Record, Times};
use crate::verdict::{
    Answer, Decision, Disposition, EngineClass, Finding, FindingKind, Reason, Report, Verdict,
};

/// The time `seconds` after a fixed start, for tests that set the clock themselves.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("a plain time")
}

/// The time is `now`, leases last until `until`, and no wait is as long as an hour.
pub(crate) fn times(now: i64, until: i64) -> Times {
    Times {
        now: at(now),
        latest: at(now + 3599),
        until: at(until),
    }
}

/// A record with a decision that is due at once.
pub(crate) fn record(lane: Lane) -> Record {
    let mailbox = |text| Mailbox::parse(text).expect("mailbox");
    let id = MessageId::new();
    Record {
        id,
        message: id,
        lane,
        envelope: Envelope {
            reverse_path: mailbox("Sender@One.example").into(),
            recipients: vec![mailbox("Rita@two.example").into()],
            body: Default::default(),
            smtputf8: false,
            ret: None,
            envid: None,
            origin: Origin::local("smtp"),
        },
        trace: "Received: from a by b; now\r\n".into(),
        size: 0,
        sha256: String::new(),
        subject: "Quarterly Report".to_owned(),
        received_at: at(0),
        due_at: at(0),
        expires_at: at(1000),
        attempts: 1,
        spent: Duration::from_millis(1500),
        decision: Some(Decision {
            verdict: Verdict::Malicious,
            disposition: Disposition::Quarantine,
            rule: "policy.malware".to_owned(),
            reason: "clamd found Eicar-Test".to_owned(),
            score: 10.0,
            tag: false,
            missing: vec![("rspamd".into(), Reason::Timeout)],
            config: "cfg-1".into(),
        }),
        reports: vec![
            report(
                "clamd",
                Answer::Answered(vec![Finding::new(FindingKind::Malware, "Eicar-Test", 10.0)]),
            ),
            report("rspamd", Answer::none(Reason::Timeout, "5 s")),
            report("rules", Answer::Answered(Vec::new())),
        ],
        status: String::new(),
        released: false,
        cause: None,
        reputation: None,
        notification: None,
        instead_of: Vec::new(),
        late_for: Vec::new(),
        hung: false,
        timeouts: 0,
        next_hop: "".into(),
    }
}

pub(crate) fn report(engine: &str, answer: Answer) -> Report {
    Report {
        signatures: Some("27000".to_owned()),
        attempts: 1,
        elapsed: Duration::from_millis(12),
        ..Report::unasked(engine.into(), EngineClass::Av, answer)
    }
}

/// Content of `count` octets, with a different octet at each place.
pub(crate) fn octets(count: usize) -> Content {
    let bytes: Vec<u8> = (0..count).map(|i| (i * 31 % 251) as u8).collect();
    Content::uncharged(bytes)
}

pub(crate) fn audit(record: MessageId, act: &str) -> Audit {
    Audit {
        at: at(5),
        actor: "rita".to_owned(),
        act: act.to_owned(),
        object: record.into(),
        detail: String::new(),
    }
}
