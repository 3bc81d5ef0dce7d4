//! The waits between refused logins.

use super::super::probing::{LOGIN_WAIT_INITIAL, LOGIN_WAIT_MAX};
use super::*;

/// A hop whose login was refused just now.
fn refused(now: Instant) -> Pace {
    let mut pace = Pace::new(20);
    let change = deliver(&mut pace, MailKind::Fresh, HopSignal::LoginRefused, now);
    assert_eq!(change, Some(PaceChange::LoginRefused(LOGIN_WAIT_INITIAL)));
    pace
}

/// After a refused login nothing goes out for a minute, then one stored message; each further refusal doubles the wait, up to
/// an hour. No wait is shorter than that, so that a minute, and then an hour, has one login.
#[test]
fn logins_have_growing_waits() {
    let start = Instant::now();
    let (mut pace, mut now) = (refused(start), start);
    for minutes in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
        let wait = Duration::from_secs(60 * minutes);
        assert!(wait <= LOGIN_WAIT_MAX);
        let refusal = pace.ask(MailKind::Waiting, now).expect_err("a wait");
        assert_eq!(refusal.reason, RefusalReason::LoginRefused);
        let until = refusal.until.expect("time alone decides");
        assert!(
            (wait..=wait.mul_f64(1.25)).contains(&(until - now)),
            "{minutes}"
        );
        now = until;
        pace.ask(MailKind::Fresh, now)
            .expect_err("fresh mail is no probe");
        assert_eq!(pace.room(9, now).0, 1);
        let probe = pace.ask(MailKind::Waiting, now).expect("a probe");
        pace.ask(MailKind::Waiting, now).expect_err("one at a time");
        assert!(pace.view(now).login_refused);
        let change = pace.ended(&probe, HopSignal::LoginRefused, None, now, &mut rng());
        let next = (2 * wait).min(LOGIN_WAIT_MAX);
        assert_eq!(change, Some(PaceChange::LoginRefusedAgain(next)));
    }
}

/// Deliveries that were under way when the login was refused end without effect on the wait.
#[test]
fn deliveries_under_way_do_not_lengthen_the_wait() {
    let (mut pace, now) = (Pace::new(20), Instant::now());
    let under_way: Vec<_> = (0..20)
        .map(|_| pace.ask(MailKind::Fresh, now).expect("free"))
        .collect();
    let mut changes = under_way
        .iter()
        .filter_map(|ticket| pace.ended(ticket, HopSignal::LoginRefused, None, now, &mut rng()));
    assert!(changes.next().is_some() && changes.next().is_none());
    assert!(opens(&pace, now) <= now + LOGIN_WAIT_INITIAL.mul_f64(1.25));
}

/// An accepted login ends the waits. A probe that fails before its login says nothing about the login: the next refused login
/// has the next longer wait.
#[test]
fn an_accepted_login_ends_the_waits() {
    let start = Instant::now();
    let mut pace = refused(start);
    let now = opens(&pace, start);
    deliver(&mut pace, MailKind::Waiting, HopSignal::Unreachable, now);
    assert!(!pace.view(now).login_refused);
    let later = opens(&pace, now);
    assert!(later - now <= PROBE_WAIT_MAX);
    let change = deliver(&mut pace, MailKind::Waiting, HopSignal::LoginRefused, later);
    assert_eq!(
        change,
        Some(PaceChange::LoginRefusedAgain(2 * LOGIN_WAIT_INITIAL))
    );
    let now = opens(&pace, later);
    let change = deliver(&mut pace, MailKind::Waiting, HopSignal::Fine, now);
    assert_eq!(change, Some(PaceChange::Alive(now - start)));
    let change = deliver(&mut pace, MailKind::Waiting, HopSignal::LoginRefused, now);
    assert_eq!(change, Some(PaceChange::LoginRefused(LOGIN_WAIT_INITIAL)));
}

/// A nudge by an administrator shortens a long wait to the first one, but allows no second login within a minute.
#[test]
fn a_nudge_allows_one_login_a_minute() {
    let start = Instant::now();
    let mut pace = refused(start);
    for _ in 0..3 {
        let now = opens(&pace, start);
        deliver(&mut pace, MailKind::Waiting, HopSignal::LoginRefused, now);
        pace.nudge(now);
        assert_eq!(pace.room(9, now).0, 0);
        assert_eq!(opens(&pace, now), now + LOGIN_WAIT_INITIAL);
    }
}

/// A hop without a pace is stopped by refused logins only, and takes everything after an accepted one.
#[test]
fn a_hop_without_a_pace_stops_for_refused_logins_only() {
    let (mut pace, start) = (Pace::unlimited(), Instant::now());
    deliver(&mut pace, MailKind::Fresh, HopSignal::LoginRefused, start);
    assert_eq!(pace.room(9, start).0, 0);
    let now = opens(&pace, start);
    deliver(&mut pace, MailKind::Waiting, HopSignal::Fine, now);
    assert_eq!(
        (pace.view(now).state, pace.room(99, now).0),
        (PaceState::Free, 99)
    );
}
