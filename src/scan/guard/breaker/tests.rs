use super::*;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn opened(breaker: &mut Breaker, now: Instant) -> bool {
    matches!(breaker.stalled(now), Some(Change::Opened(_)))
}

/// Half of at least twenty outcomes must be failures: a share of fewer outcomes is noise.
#[tokio::test(start_paused = true)]
async fn a_share_of_failures_opens_it_and_a_few_do_not() {
    let now = Instant::now();
    let mut breaker = Breaker::new(now, 12, GuardSettings::default(), true);
    for _ in 0..10 {
        assert_eq!(breaker.outcome(now, true), None);
    }
    for _ in 0..9 {
        assert_eq!(breaker.outcome(now, false), None);
    }
    let last = breaker.outcome(now, false);
    assert_eq!(last, Some(Change::Opened(Cause::Failing)));
    assert_eq!(breaker.allowed(), 0);
}

/// Outcomes leave the window after 10 s, because they say nothing about the engine now.
#[tokio::test(start_paused = true)]
async fn old_outcomes_do_not_count() {
    let now = Instant::now();
    let mut breaker = Breaker::new(now, 12, GuardSettings::default(), true);
    for _ in 0..19 {
        breaker.outcome(now, true);
        breaker.outcome(now, false);
    }
    let later = now + seconds(11);
    assert_eq!(breaker.counts(later), (0, 0));
    assert_eq!(breaker.outcome(later, false), None);
}

/// On little mail five failures without a good outcome open the breaker, not twenty outcomes.
#[tokio::test(start_paused = true)]
async fn nothing_but_failures_opens_it_soon() {
    let now = Instant::now();
    let mut breaker = Breaker::new(now, 12, GuardSettings::default(), true);
    let changes: Vec<_> = (0..5).map(|_| breaker.outcome(now, false)).collect();
    assert_eq!(changes[..4], [None; 4]);
    assert_eq!(changes[4], Some(Change::Opened(Cause::Failing)));
}

/// I11: no mail passes before a right probe pair, or before two consecutive right pairs after wrong answers.
#[tokio::test(start_paused = true)]
async fn no_mail_before_a_passed_probe_pair() {
    for (answered_wrongly, pairs) in [(false, 1), (true, 2)] {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now, 12, GuardSettings::default(), true);
        match answered_wrongly {
            true => drop((breaker.probed(now, false, 0), breaker.probed(now, false, 0))),
            false => assert!(opened(&mut breaker, now)),
        }
        assert_eq!(breaker.probed(now, true, 0), None, "not asked for yet");
        now += seconds(2);
        assert_eq!(breaker.tick(now, 0), Some(Change::Probing));
        for _ in 1..pairs {
            assert_eq!(breaker.probed(now, true, 0), None);
            assert_eq!(breaker.allowed(), 0);
        }
        let readmitted = breaker.probed(now, true, 0);
        assert_eq!(readmitted, Some(Change::Readmitting));
        assert_eq!(breaker.allowed(), RAMP_WINDOW_INITIAL);
        for _ in 0..9 {
            assert_eq!(breaker.outcome(now, true), None);
        }
        assert_eq!(breaker.outcome(now, true), Some(Change::Closed));
        assert_eq!(breaker.allowed(), 12);
    }
}

/// Law 5: an open breaker is probed every second, however long it stays open, and at once when a scan is answered. The
/// change is reported once.
#[tokio::test(start_paused = true)]
async fn it_is_probed_every_second_and_at_once_when_it_answers() {
    let mut now = Instant::now();
    let mut breaker = Breaker::new(now, 12, GuardSettings::default(), true);
    assert!(opened(&mut breaker, now));
    let mut waits = Vec::new();
    for probe in 0..100 {
        let BreakerState::Open { until, .. } = breaker.state() else {
            panic!("open");
        };
        let wait = (until - now).as_secs_f64();
        assert!((0.79..1.21).contains(&wait), "{wait}");
        waits.push(wait);
        now = until;
        let told = (probe == 0).then_some(Change::Probing);
        assert_eq!(breaker.tick(now, 0), told);
        assert_eq!(breaker.probed(now, false, 0), None);
    }
    let differ = waits.windows(2).filter(|two| two[0] != two[1]).count();
    assert!(differ > 90, "not all relays at once: {waits:?}");
    breaker.answered(now);
    breaker.tick(now, 0);
    assert!(matches!(breaker.state(), BreakerState::HalfOpen { .. }));
    // After a probe that took longer than a second the next one is due at once.
    now += seconds(3);
    breaker.probed(now, false, 0);
    breaker.tick(now, 0);
    assert!(matches!(breaker.state(), BreakerState::HalfOpen { .. }));
}

/// Law 5: a failed trial costs a pause, which grows up to 16 s. Its stuck scans stay in the window of the next trial and
/// hold at most a third of the slots.
#[tokio::test(start_paused = true)]
async fn a_failed_trial_costs_a_pause() {
    let mut now = Instant::now();
    let mut breaker = Breaker::new(now, 12, GuardSettings::default(), true);
    assert!(opened(&mut breaker, now));
    for (stuck, (allowed, pause)) in [(2, 1.0), (3, 2.0), (4, 4.0)].into_iter().enumerate() {
        let BreakerState::Open { until, .. } = breaker.state() else {
            panic!("open");
        };
        now = until;
        breaker.tick(now, stuck);
        let stuck = if stuck == 0 { 0 } else { stuck + 1 };
        assert_eq!(breaker.probed(now, true, stuck), Some(Change::Readmitting));
        assert_eq!(breaker.allowed(), allowed);
        assert!(breaker.ramp_began().is_some());
        assert!(opened(&mut breaker, now));
        let BreakerState::Open { until, .. } = breaker.state() else {
            panic!("open");
        };
        let wait = (until - now).as_secs_f64() / pause;
        assert!((0.79..1.21).contains(&wait), "{wait} of {pause}");
    }
    now += seconds(5);
    breaker.tick(now, 4);
    assert_eq!(breaker.probed(now, true, 4), None, "a third is stuck");
    assert!(matches!(breaker.state(), BreakerState::Open { .. }));
    now += seconds(2);
    breaker.tick(now, 0);
    let readmitted = breaker.probed(now, true, 0);
    assert_eq!(readmitted, Some(Change::Readmitting), "all have ended");
    assert_eq!(breaker.allowed(), RAMP_WINDOW_INITIAL);
}

/// Outcomes from before the breaker opened do not count afterwards. They do not open the breaker again, and the gate does
/// not prefer another replica because of them, or this replica would get no mail that shows its recovery.
#[tokio::test(start_paused = true)]
async fn what_came_before_it_was_out_is_forgotten() {
    for probed in [true, false] {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now, 4, GuardSettings::default(), probed);
        for _ in 0..GuardSettings::default().failure_outcomes {
            breaker.outcome(now, false);
        }
        assert!(matches!(breaker.state(), BreakerState::Open { .. }));
        now += seconds(2);
        breaker.tick(now, 0);
        assert_eq!(breaker.counts(now), (0, 0));
        assert!(!breaker.failed_last());
        if probed {
            breaker.probed(now, true, 0);
        }
        while breaker.outcome(now, true) != Some(Change::Closed) {}
        assert_eq!(breaker.outcome(now, false), None, "one of few");
        assert_eq!(breaker.state(), BreakerState::Closed);
    }
}

/// One failure in the ramp opens the breaker again.
#[tokio::test(start_paused = true)]
async fn a_failure_in_the_ramp_opens_it_again() {
    let mut now = Instant::now();
    let mut breaker = Breaker::new(now, 12, GuardSettings::default(), false);
    assert!(opened(&mut breaker, now));
    now += seconds(2);
    assert_eq!(breaker.tick(now, 0), Some(Change::Readmitting), "no probes");
    assert_eq!(breaker.allowed(), 1);
    let again = breaker.outcome(now, false);
    assert_eq!(again, Some(Change::Opened(Cause::Stalled)));
}

/// The second consecutive failed probe opens the breaker of an engine that answers quickly and wrongly.
#[tokio::test(start_paused = true)]
async fn two_wrong_probes_in_a_row_open_it() {
    let now = Instant::now();
    let mut breaker = Breaker::new(now, 12, GuardSettings::default(), true);
    assert_eq!(breaker.probed(now, false, 0), None);
    assert_eq!(breaker.probed(now, true, 0), None);
    assert_eq!(breaker.probed(now, false, 0), None);
    let second = breaker.probed(now, false, 0);
    assert_eq!(second, Some(Change::Opened(Cause::Untrusted)));
}
