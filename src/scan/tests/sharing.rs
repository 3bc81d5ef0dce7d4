//! Which messages share a scan or its answer: equal octets always, equal content only while slots are short.

use super::*;

/// A reader with `slots` slots, and a scanner that uses it.
fn reader(takes: Duration, slots: usize) -> (Arc<Reader>, Scanner) {
    let engine = Arc::new(Reader {
        takes,
        ..Reader::default()
    });
    let settings = Settings {
        slots,
        // Shorter than the time in which a gate sees that an engine is stalled.
        wait: Duration::from_millis(400),
        ..settings("one")
    };
    let guarded = guard::guard(vec![engine.clone()], Arc::new(settings), None);
    (engine, Scanner::of(vec![guarded]))
}

/// Takes the slot of an engine with one slot, by a scan of other content.
async fn take_all_slots(scanner: &Scanner) {
    let all = scanner.clone();
    let stuck = printed("Subject: other\r\n\r\nstuck\r\n");
    tokio::spawn(async move { all.scan(stuck).await });
    until(|| {
        let health = scanner.engines()[0].health();
        health.running == health.slots
    })
    .await;
}

/// A finding may lie in any octet that an engine gets. The second of two messages is scanned, whichever header field differs
/// and whatever content they share.
#[tokio::test(start_paused = true)]
async fn a_finding_in_a_field_that_differs_between_copies_is_found() {
    for field in [
        "ARC-Authentication-Results",
        "ARC-Message-Signature",
        "ARC-Seal",
        "Authentication-Results",
        "Bcc",
        "Cc",
        "Date",
        "Delivered-To",
        "DKIM-Signature",
        "In-Reply-To",
        "List-Unsubscribe",
        "Message-ID",
        "Received",
        "Received-SPF",
        "References",
        "Return-Path",
        "To",
        "X-Received",
        "X-Spam-Score",
        "X-Spam-Status",
    ] {
        let (engine, scanner) = reader(Duration::ZERO, 4);
        let good = printed(&format!("{field}: good-id\r\n{CONTENT}"));
        let bad = printed(&format!("{field}: bad-id\r\n{CONTENT}"));
        let content = |r: &ScanRequest| r.fingerprint.as_ref().map(|f| f.identity);
        assert_eq!(content(&good), content(&bad), "{field}");
        let reports = scanner.scan(good).await;
        assert_eq!(
            (reports[0].missing(), reports[0].findings()),
            (None, &[][..])
        );
        let reports = scanner.scan(bad).await;
        assert_eq!(reports[0].findings().len(), 1, "{field}");
        assert_eq!(engine.asked.load(Ordering::SeqCst), 2, "{field}");
    }
}

/// The same octets are scanned once, and the second report says which message its answer is about.
#[tokio::test(start_paused = true)]
async fn the_same_octets_are_scanned_once() {
    let (engine, scanner) = reader(Duration::ZERO, 4);
    let first = printed(CONTENT);
    let from = first.id;
    assert_eq!(scanner.scan(first).await[0].reused, None, "it was asked");
    let second = scanner.scan(printed(CONTENT)).await;
    let same = Same::Octets;
    assert_eq!(second[0].reused, Some(Reused { from, same }));
    assert_eq!((second[0].attempts, second[0].stand_in()), (0, None));
    assert_eq!(engine.asked.load(Ordering::SeqCst), 1);
}

/// An answer about another message with the same content and another header stands in only while the engine is short of
/// slots, only if it found nothing, and only if the message is scanned later. The report says that it stands in.
#[tokio::test(start_paused = true)]
async fn an_answer_stands_in_only_while_slots_are_short() {
    let copy = |id: &str| printed(&format!("Message-ID: <{id}>\r\n{CONTENT}"));
    let (engine, scanner) = reader(Duration::ZERO, 1);
    let asked = || engine.asked.load(Ordering::SeqCst);
    scanner.scan(copy("1")).await;
    let last = copy("2");
    let from = last.id;
    let second = scanner.scan(last).await;
    assert_eq!((second[0].reused, asked()), (None, 2), "a slot is free");
    take_all_slots(&scanner).await;
    let before = asked();
    let third = scanner.scan(copy("bad-id")).await;
    assert_eq!(third[0].missing(), None);
    assert_eq!(third[0].stand_in(), Some(from));
    let exactly = ScanRequest {
        stand_ins: false,
        ..copy("bad-id")
    };
    let reports = scanner.scan(exactly).await;
    assert_eq!(
        reports[0].missing(),
        Some(Reason::Busy),
        "it waits for its own"
    );
    assert_eq!(asked(), before);
}

/// A finding in one message holds no other message: the finding may lie in the header, which every sender can write above
/// content of another sender.
#[tokio::test(start_paused = true)]
async fn a_finding_never_stands_in() {
    let copy = |id: &str| printed(&format!("Message-ID: <{id}>\r\n{CONTENT}"));
    let (_, scanner) = reader(Duration::ZERO, 1);
    scanner.scan(copy("1")).await;
    assert_eq!(scanner.scan(copy("bad-id")).await[0].findings().len(), 1);
    take_all_slots(&scanner).await;
    let reports = scanner.scan(copy("2")).await;
    assert_eq!(reports[0].missing(), Some(Reason::Busy));
}

/// A message with the same octets joins a running scan at any time. Another message with the same content joins only while
/// slots are short. If the scan finds something, the message that joined is scanned itself.
#[tokio::test(start_paused = true)]
async fn scans_under_way_are_joined_by_the_same_rule() {
    let copy = |id: &str| printed(&format!("Message-ID: <{id}>\r\n{CONTENT}"));
    let takes = Duration::from_millis(300);
    for (slots, first, second, same, calls) in [
        (4, "1", "1", Some(Same::Octets), 1),
        (1, "1", "1", Some(Same::Octets), 1),
        (4, "1", "2", None, 2),
        (1, "1", "2", Some(Same::Content), 1),
        (1, "bad-id", "2", None, 2),
    ] {
        let (engine, scanner) = reader(takes, slots);
        let first = copy(first);
        let from = first.id;
        let scanning = scanner.clone();
        let first = tokio::spawn(async move { scanning.scan(first).await });
        until(|| scanner.engines()[0].health().running == 1).await;
        let reports = scanner.scan(copy(second)).await;
        first.await.expect("no panic");
        let report = &reports[0];
        assert_eq!((report.missing(), report.findings()), (None, &[][..]));
        assert_eq!(report.reused, same.map(|same| Reused { from, same }));
        let asked = engine.asked.load(Ordering::SeqCst);
        assert_eq!(asked, calls, "{slots} slots, {second}");
    }
}

/// An engine that gets more than the content judges each message: its answer counts for no other message with the same
/// octets, whatever the engine's class.
#[tokio::test(start_paused = true)]
async fn an_engine_that_gets_the_envelope_scans_each_message() {
    let spamd = engine::Kind::Spamd {
        addresses: Vec::new(),
        settings: engine::SpamdSettings {
            user: None,
            tls: None,
            connect_timeout: SECONDS_20,
        },
    };
    let settings = Settings {
        kind: spamd,
        ..settings("one")
    };
    let engine = Arc::new(Reader::default());
    let guarded = guard::guard(vec![engine.clone()], Arc::new(settings), None);
    let scanner = Scanner::of(vec![guarded]);
    for _ in 0..2 {
        assert_eq!(scanner.scan(printed(CONTENT)).await[0].reused, None);
    }
    assert_eq!(engine.asked.load(Ordering::SeqCst), 2);
}

/// A filter's answer may depend on sender and recipients, whatever the filter's class, so it counts for no other message. An
/// engine that gets only the content scans the same octets once.
#[tokio::test(start_paused = true)]
async fn a_filters_answer_is_about_one_message() {
    let milter = engine::Kind::Milter {
        addresses: Vec::new(),
        settings: engine::MilterSettings {
            hostname: "relay.test".to_owned(),
            bad_kind: FindingKind::Policy,
            bad_score: 10.0,
            tempfail: engine::TempFail::NoAnswer,
            probe_with: engine::ProbeWith::Nothing,
            connect_timeout: SECONDS_20,
        },
    };
    for (kind, calls) in [(settings("one").kind, 1), (milter, 2)] {
        for class in [EngineClass::Av, EngineClass::Content] {
            let settings = Settings {
                kind: kind.clone(),
                class,
                ..settings("one")
            };
            let (engine, guarded) = scripted([Act::Clean], settings);
            let scanner = Scanner::of(vec![guarded]);
            for _ in 0..2 {
                let mut request = request("Subject: x\r\n\r\nx", SECONDS_20);
                request.fingerprint = Some(Arc::new(Fingerprint {
                    identity: Identity([7; 32]),
                    exact: Box::new([]),
                    broad: Box::new([]),
                    attachments: Box::new([]),
                }));
                let reports = scanner.scan(request).await;
                assert_eq!(reports[0].missing(), None);
            }
            assert_eq!(engine.calls.load(Ordering::SeqCst), calls, "{kind:?}");
        }
    }
}
