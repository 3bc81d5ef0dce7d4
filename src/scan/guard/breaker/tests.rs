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

fn tuned(change: impl FnOnce(&mut GuardSettings)) -> GuardSettings {
    let mut settings = GuardSettings::default();
    change(&mut settings);
    settings
}

/// After how many such outcomes, of at most 1,000, the breaker opens; `spaced` apart.
fn opens_after(
    settings: GuardSettings,
    before: usize,
    spaced: Duration,
    is_good: impl Fn(usize) -> bool,
) -> Option<usize> {
    let mut now = Instant::now();
    let mut breaker = Breaker::new(now, 12, settings, true);
    for _ in 0..before {
        breaker.outcome(now, true);
    }
    (1..=1000).find(|nth| {
        now += spaced;
        breaker.outcome(now, is_good(*nth)).is_some()
    })
}

/// `failure_share`: with a larger one the breaker opens later among the same outcomes.
#[tokio::test(start_paused = true)]
async fn a_larger_share_of_failures_opens_it_later() {
    let after = [0.2, 0.5, 0.8].map(|share| {
        let settings = tuned(|guard| guard.failure_share = share);
        opens_after(settings, 20, Duration::ZERO, |_| false)
    });
    assert_eq!(after, [Some(5), Some(20), Some(80)]);
}

/// `failure_window`: a longer one sees a slow decay, and older answers outweigh a burst of failures; a shorter one needs more
/// mail.
#[tokio::test(start_paused = true)]
async fn a_longer_window_sees_less_mail_and_weighs_older_answers() {
    let windows = [5, 10, 60].map(|time| tuned(|guard| guard.failure_window = seconds(time)));
    let slow = |settings| opens_after(settings, 0, Duration::from_millis(500), |nth| nth % 2 == 0);
    assert_eq!(windows.map(slow), [None, Some(21), Some(21)]);
    let sparse = |settings| opens_after(settings, 0, seconds(2), |nth| nth % 2 == 0);
    assert_eq!(
        windows.map(sparse).map(|n| n.is_some()),
        [false, false, true]
    );
    let burst = |settings| {
        let now = Instant::now();
        let mut breaker = Breaker::new(now, 12, settings, true);
        for _ in 0..100 {
            breaker.outcome(now, true);
        }
        let later = now + seconds(20);
        (0..30).any(|_| breaker.outcome(later, false).is_some())
    };
    assert_eq!(windows.map(burst), [true, true, false]);
}

/// `failure_outcomes` and `failures_in_a_row`: as many as they say, and not one less.
#[tokio::test(start_paused = true)]
async fn it_opens_at_the_numbers_of_the_settings() {
    let outcomes = [6, 20, 100].map(|n| {
        let settings = tuned(|guard| guard.failure_outcomes = n);
        opens_after(settings, 0, Duration::ZERO, |nth| nth % 2 == 1)
    });
    assert_eq!(outcomes, [Some(6), Some(20), Some(100)]);
    let in_a_row = [3, 5, 12].map(|n| {
        let settings = tuned(|guard| guard.failures_in_a_row = n);
        opens_after(settings, 0, Duration::ZERO, |_| false)
    });
    assert_eq!(in_a_row, [Some(3), Some(5), Some(12)]);
}

fn open_for(breaker: &Breaker, now: Instant) -> f64 {
    let BreakerState::Open { until, .. } = breaker.state() else {
        panic!("{}", breaker.state())
    };
    (until - now).as_secs_f64()
}

/// `open_first`: with a longer one the first probe is later. `open_max`: the pause after failed trials grows up to it.
#[tokio::test(start_paused = true)]
async fn it_stays_open_for_the_times_of_the_settings() {
    for (first, most) in [(0.5, 2.0), (1.0, 16.0), (5.0, 60.0)] {
        let settings = tuned(|guard| {
            guard.open_first = Duration::from_secs_f64(first);
            guard.open_max = Duration::from_secs_f64(most);
        });
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now, 12, settings, true);
        assert!(opened(&mut breaker, now));
        let pause = open_for(&breaker, now);
        assert!((0.8..=1.2).contains(&(pause / first)), "{first} {pause}");
        for _ in 0..8 {
            now += seconds(100);
            breaker.tick(now, 0);
            breaker.probed(now, true, 0);
            breaker.outcome(now, false);
        }
        let pause = open_for(&breaker, now);
        assert!((0.8..=1.2).contains(&(pause / most)), "{most} {pause}");
    }
}

/// A reload puts its settings in force: a long pause under way ends with the new longest one, and outcomes are counted anew only
/// if the window has another length.
#[tokio::test(start_paused = true)]
async fn a_reload_puts_the_settings_in_force() {
    let long = tuned(|guard| {
        guard.open_first = seconds(300);
        guard.open_max = seconds(300);
    });
    let now = Instant::now();
    let mut breaker = Breaker::new(now, 12, long, true);
    breaker.outcome(now, true);
    breaker.retune(now, 12, tuned(|guard| guard.failure_share = 0.9));
    assert_eq!(breaker.counts(now), (1, 0));
    breaker.retune(now, 12, tuned(|guard| guard.failure_window = seconds(60)));
    assert_eq!(breaker.counts(now), (0, 0));
    breaker.retune(now, 12, long);
    assert!(opened(&mut breaker, now));
    assert!(open_for(&breaker, now) > 200.0);
    breaker.retune(now, 12, GuardSettings::default());
    assert!(open_for(&breaker, now) <= 16.0);
}
