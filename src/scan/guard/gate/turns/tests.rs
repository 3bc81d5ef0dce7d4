use super::*;

fn fairness_key(client: u64, party: u64) -> FairnessKey {
    FairnessKey { client, party }
}

/// Takes up to `count` messages; all waiting messages may start.
fn take(turns: &mut Turns, count: usize) -> Vec<Ticket> {
    let pop = || turns.pop(|_, _| true, |_| true, |_| true);
    std::iter::from_fn(pop).take(count).collect()
}

/// A backlog gets one start in 25, and fresh mail gets the other starts.
#[test]
fn classes_share_by_weight() {
    let mut turns = Turns::default();
    for ticket in 0..1000 {
        turns.push(
            Class::FreshKnown,
            Level::Proven,
            fairness_key(ticket, ticket),
            ticket,
        );
        turns.push(
            Class::FreshUnknown,
            Level::Unknown,
            fairness_key(ticket, ticket),
            1000 + ticket,
        );
        turns.push(
            Class::AgainKnown,
            Level::Proven,
            fairness_key(0, 0),
            2000 + ticket,
        );
    }
    let taken = take(&mut turns, 500);
    let of = |from: u64| {
        taken
            .iter()
            .filter(|t| (from..from + 1000).contains(t))
            .count()
    };
    assert_eq!((of(0), of(1000), of(2000)), (320, 160, 20));
}

/// Law 4: a message that may not start does not block the messages behind it.
#[test]
fn who_may_not_start_is_passed_over() {
    let mut turns = Turns::default();
    for ticket in 0..100 {
        turns.push(
            Class::FreshUnknown,
            Level::Unknown,
            fairness_key(1, 1),
            ticket,
        );
    }
    turns.push(Class::FreshUnknown, Level::Unknown, fairness_key(2, 2), 100);
    let next = turns.pop(|_, _| true, |_| true, |ticket| ticket >= 100);
    assert_eq!(next, Some(100));
    turns.push(Class::FreshKnown, Level::Unproven, fairness_key(1, 1), 101);
    turns.push(Class::FreshKnown, Level::Proven, fairness_key(3, 3), 102);
    let next = turns.pop(|_, level| level == Level::Proven, |_| true, |_| true);
    assert_eq!(next, Some(102));
}

/// A client that uses another sender name for each message gets the turns of one client: beside two others, one turn in
/// three.
#[test]
fn many_names_of_one_client_are_one_turn() {
    let mut turns = Turns::default();
    for ticket in 0..1000 {
        turns.push(
            Class::FreshUnknown,
            Level::Unknown,
            fairness_key(1, ticket),
            ticket,
        );
    }
    for ticket in 1000..1020 {
        let other = fairness_key(2 + ticket % 2, 2 + ticket % 2);
        turns.push(Class::FreshUnknown, Level::Unknown, other, ticket);
    }
    let others = take(&mut turns, 30).into_iter().filter(|t| *t >= 1000);
    assert_eq!(others.count(), 20);
}

/// Law 9: behind one mail server, whose mail has one client address, a sender that floods is served after the other
/// senders.
#[test]
fn one_sender_of_a_client_is_behind_its_others() {
    let mut turns = Turns::default();
    for ticket in 0..1000 {
        turns.push(
            Class::FreshUnknown,
            Level::Unknown,
            fairness_key(1, 1),
            ticket,
        );
    }
    take(&mut turns, 100);
    for ticket in 1000..1010 {
        turns.push(
            Class::FreshUnknown,
            Level::Unknown,
            fairness_key(1, ticket),
            ticket,
        );
    }
    let others = take(&mut turns, 11).into_iter().filter(|t| *t >= 1000);
    assert_eq!(others.count(), 10);
}

/// Messages that have left do not hide waiting messages, and their places are removed.
#[test]
fn who_has_left_hides_nobody() {
    let mut turns = Turns::default();
    let stuck = 5000;
    turns.push(
        Class::FreshUnknown,
        Level::Unknown,
        fairness_key(0, 0),
        stuck,
    );
    for ticket in 0..2000 {
        let of = fairness_key(1 + ticket % 1000, ticket);
        turns.push(Class::FreshUnknown, Level::Unknown, of, ticket);
    }
    turns.push(
        Class::FreshUnknown,
        Level::Unknown,
        fairness_key(3000, 0),
        6000,
    );
    let waits = |ticket| ticket >= stuck;
    let next = turns.pop(|_, _| true, waits, |ticket| ticket != stuck);
    assert_eq!(next, Some(6000));
    turns.tidy(waits, 1);
    assert_eq!(turns.lines[Class::FreshUnknown as usize].places(), 1);
    assert!(turns.lines.iter().all(|lines| lines.lines.len() <= 1));
}

/// The number of remembered idle lines is bounded by the number of waiting messages, even if each sender name comes only
/// once: with one client or with as many clients, and while a message waits that may not start.
#[test]
fn who_had_a_turn_is_forgotten() {
    for of in [
        |name| fairness_key(1, name),
        |name| fairness_key(name, name),
    ] {
        for stuck in [false, true] {
            let mut turns = Turns::default();
            if stuck {
                turns.push(Class::FreshUnknown, Level::Unknown, of(0), 0);
            }
            for ticket in 1..1000 {
                turns.push(Class::FreshUnknown, Level::Unknown, of(ticket), ticket);
                let next = turns.pop(|_, _| true, |_| true, |ticket| ticket > 0);
                assert_eq!(next, Some(ticket));
                let clients = &turns.lines[Class::FreshUnknown as usize];
                let all = clients.lines.values().chain(clients.idle.values());
                let parties: usize = all.map(|client| client.line.idle.len()).sum();
                let all = clients.idle.len() + parties;
                assert!(all <= 140, "{all} at {ticket}, {stuck}");
            }
        }
    }
}

/// A class without waiting messages does not save up turns.
#[test]
fn nothing_is_saved_up() {
    let mut turns = Turns::default();
    for ticket in 0..1000 {
        turns.push(
            Class::FreshKnown,
            Level::Proven,
            fairness_key(ticket, ticket),
            ticket,
        );
    }
    take(&mut turns, 500);
    for ticket in 1000..1100 {
        turns.push(Class::AgainKnown, Level::Proven, fairness_key(0, 0), ticket);
    }
    let again = take(&mut turns, 68)
        .into_iter()
        .filter(|ticket| *ticket >= 1000);
    assert!(again.count() <= 5);
}
