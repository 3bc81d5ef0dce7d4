//! Laws of the ledger, on instants that the test makes.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use super::super::ledger::{Ledger, Next, Part, STORIES_MAX};
use super::{IncidentKind, settings, story};
use crate::incident::{Story, StoryPhase};
use crate::notify::{Cause, Settings};

use StoryPhase::{Begin, End};

/// A ledger with a clock.
struct Book {
    ledger: Ledger,
    settings: Settings,
    now: Instant,
}

impl Book {
    fn new(settings: Settings) -> Self {
        Self {
            ledger: Ledger::default(),
            settings,
            now: Instant::now(),
        }
    }

    fn note(&mut self, phase: StoryPhase, story: &Story) -> u64 {
        self.ledger.note(phase, story, &self.settings, self.now)
    }

    fn passes(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    /// Tells all that is due, and returns each notification as its parts and the numbers of their stories.
    fn tell(&mut self) -> Vec<Vec<(Part, u128)>> {
        let mut all = Vec::new();
        while let Next::Tell(batch) = self.ledger.next(&self.settings, self.now, false) {
            self.ledger.settle(&batch, true);
            let numbered = batch
                .stories
                .iter()
                .map(|(part, story)| (*part, story.id.0));
            all.push(numbered.collect());
        }
        all
    }
}

/// One beginning and one end, however often the same is reported, and nothing after that.
#[test]
fn each_part_is_told_once() {
    let mut book = Book::new(settings("x"));
    for _ in 0..3 {
        book.note(Begin, &story(1));
    }
    assert_eq!(book.tell(), [[(Part::Begin, 1)]]);
    book.note(Begin, &story(1));
    assert!(book.tell().is_empty());
    for _ in 0..3 {
        book.note(End, &story(1));
    }
    assert_eq!(book.tell(), [[(Part::End, 1)]]);
    book.note(End, &story(1));
    assert!(book.tell().is_empty());
}

/// Trouble that goes and comes again before its end was told is still the same trouble: nobody hears of it twice.
#[test]
fn a_flap_is_told_once() {
    let mut book = Book::new(Settings {
        end_after: Duration::from_secs(120),
        ..settings("x")
    });
    book.note(Begin, &story(1));
    assert_eq!(book.tell(), [[(Part::Begin, 1)]]);
    for _ in 0..20 {
        book.note(End, &story(1));
        book.passes(60);
        book.note(Begin, &story(1));
        book.passes(60);
        assert!(book.tell().is_empty());
    }
    book.note(End, &story(1));
    assert_eq!(
        book.ledger.next(&book.settings, book.now, false),
        Next::At(book.now + Duration::from_secs(120))
    );
    book.passes(120);
    assert_eq!(book.tell(), [[(Part::End, 1)]]);
    book.note(Begin, &story(1));
    assert_eq!(book.tell(), [[(Part::Begin, 1)]], "all was well");
}

/// With `begin_after`, trouble that is over by then is not told: neither its beginning nor its end.
#[test]
fn short_trouble_can_be_left_out() {
    let mut book = Book::new(Settings {
        begin_after: Duration::from_secs(60),
        ..settings("x")
    });
    book.note(Begin, &story(1));
    book.passes(59);
    assert!(book.tell().is_empty());
    book.note(End, &story(1));
    book.passes(1000);
    assert!(book.tell().is_empty());
    book.note(Begin, &story(2));
    book.passes(60);
    assert_eq!(book.tell(), [[(Part::Begin, 2)]]);
}

/// Trouble that was held back by `max_per_hour` and is over before it could be told is counted; trouble that was over before its
/// beginning was due is not.
#[test]
fn what_was_due_and_is_over_is_counted() {
    for (seconds, missed) in [(59, 0), (60, 1)] {
        let mut book = Book::new(Settings {
            begin_after: Duration::from_secs(60),
            max_per_hour: 1,
            ..settings("x")
        });
        book.note(Begin, &story(1));
        book.passes(60);
        assert_eq!(book.tell(), [[(Part::Begin, 1)]]);
        book.note(Begin, &story(2));
        book.passes(seconds);
        book.note(End, &story(2));
        book.note(Begin, &story(3));
        book.passes(3600);
        let Next::Tell(batch) = book.ledger.next(&book.settings, book.now, false) else {
            panic!("a beginning");
        };
        assert_eq!(batch.missed, missed, "after {seconds} s");
    }
}

/// An end is told only if the beginning was: not for stories before the way, not for those that could not be told.
#[test]
fn no_end_without_a_beginning() {
    let mut book = Book::new(settings("x"));
    book.note(End, &story(1));
    assert!(book.tell().is_empty());
    book.note(Begin, &story(2));
    let Next::Tell(batch) = book.ledger.next(&book.settings, book.now, false) else {
        panic!("a beginning");
    };
    // The end comes while the beginning is being told, in vain.
    book.note(End, &story(2));
    assert_eq!(
        book.ledger.next(&book.settings, book.now, false),
        Next::Idle
    );
    book.ledger.settle(&batch, false);
    assert!(book.tell().is_empty());
    assert_eq!(book.ledger.open_ends(), 0);
    book.ledger.resume(&story(3), &book.settings);
    book.note(End, &story(3));
    assert_eq!(book.tell(), [[(Part::End, 3)]], "told before the restart");
}

/// Who knows of some trouble hears when it becomes another, once.
#[test]
fn worse_trouble_is_told() {
    let mut book = Book::new(settings("x"));
    let worse = Story {
        kind: IncidentKind::WorkersLost,
        ..story(1)
    };
    book.note(Begin, &story(1));
    assert_eq!(book.tell(), [[(Part::Begin, 1)]]);
    book.note(Begin, &worse);
    book.note(Begin, &worse);
    assert_eq!(book.tell(), [[(Part::Worse, 1)]]);
    book.note(Begin, &worse);
    assert!(book.tell().is_empty());
    book.note(End, &worse);
    assert_eq!(book.tell(), [[(Part::End, 1)]]);
}

/// A way tells of its causes, its kinds and its parts only.
#[test]
fn a_way_tells_what_it_is_for() {
    let named = |word: &'static str, name: Option<&str>| Cause {
        word,
        name: name.map(str::to_owned),
    };
    for (causes, is_told) in [
        (vec![], true),
        (vec![named("engine", None)], true),
        (
            vec![named("store", None), named("engine", Some("clamd"))],
            true,
        ),
        (vec![named("engine", Some("rspamd"))], false),
        (vec![named("next-hop", None)], false),
    ] {
        let mut book = Book::new(Settings {
            causes: causes.clone(),
            ..settings("x")
        });
        book.note(Begin, &story(1));
        assert_eq!(book.tell().len(), usize::from(is_told), "{causes:?}");
    }
    let mut book = Book::new(Settings {
        kinds: vec![IncidentKind::WorkersLost],
        ..settings("x")
    });
    book.note(Begin, &story(1));
    assert!(book.tell().is_empty());
    let worse = Story {
        kind: IncidentKind::WorkersLost,
        ..story(1)
    };
    book.note(Begin, &worse);
    assert_eq!(book.tell(), [[(Part::Begin, 1)]]);
    for (begin, end) in [(true, false), (false, true)] {
        let mut book = Book::new(Settings {
            begin,
            end,
            ..settings("x")
        });
        book.note(Begin, &story(1));
        assert_eq!(book.tell().len(), usize::from(begin));
        book.note(End, &story(1));
        assert_eq!(book.tell().len(), usize::from(end));
    }
}

/// Beyond `max_per_hour` nothing is lost: one summary tells all that is due as soon as the hour allows, and the ends of what the
/// summary told are told.
#[test]
fn a_flood_is_summed_up() {
    let mut book = Book::new(settings("x"));
    for number in 0..30 {
        book.note(Begin, &story(number));
        assert_eq!(book.tell().len(), usize::from(number < 10));
        book.passes(1);
    }
    book.note(End, &story(29));
    book.passes(3569);
    assert!(book.tell().is_empty(), "the hour is not over");
    book.passes(1);
    let told = book.tell();
    let [summary] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(summary.len(), 19, "but not the one that is over");
    book.passes(3600);
    book.note(End, &story(20));
    assert_eq!(book.tell(), [[(Part::End, 20)]]);
}

/// The memory of a way is bounded: new trouble replaces the oldest, and what is lost is known.
#[test]
fn a_ledger_is_bounded() {
    let mut book = Book::new(settings("x"));
    let mut dropped = 0;
    for number in 0..10_000 {
        dropped += book.note(Begin, &story(number));
    }
    assert_eq!(dropped, 10_000 - STORIES_MAX as u64);
    assert_eq!(book.ledger.open_ends(), STORIES_MAX);
}

/// In any history, with tries that fail: beginnings and ends of a story alternate, never more than the limit go out in an hour,
/// and what is told last is the truth once everything is quiet.
#[test]
fn any_history_is_told_in_order() {
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut book = Book::new(Settings {
            begin_after: Duration::from_secs(rng.random_range(0..100)),
            end_after: Duration::from_secs(rng.random_range(0..100)),
            max_per_hour: rng.random_range(1..20),
            ..settings("x")
        });
        let (mut truth, mut known, mut sent) = ([End; 4], [End; 4], Vec::new());
        for step in 0..300 {
            if step < 250 {
                let number: usize = rng.random_range(0..4);
                truth[number] = if rng.random() { Begin } else { End };
                book.note(truth[number], &story(number as u128));
            }
            book.passes(rng.random_range(0..if step < 250 { 200 } else { 2000 }));
            while let Next::Tell(batch) = book.ledger.next(&book.settings, book.now, false) {
                let is_told = step > 240 || rng.random_bool(0.8);
                sent.push(book.now);
                for (part, story) in batch.stories.iter().filter(|_| is_told) {
                    let phase = if *part == Part::End { End } else { Begin };
                    let known = &mut known[usize::try_from(story.id.0).expect("a number")];
                    assert_ne!(*known, phase, "told twice, seed {seed}");
                    *known = phase;
                }
                if !is_told {
                    // Nobody knows what was told last, so the next beginning is told.
                    for (_, story) in &batch.stories {
                        known[usize::try_from(story.id.0).expect("a number")] = End;
                    }
                }
                book.ledger.settle(&batch, is_told);
            }
        }
        let hour = Duration::from_secs(3600);
        let busiest = sent.iter().map(|from| {
            let within = |at: &&Instant| **at >= *from && **at < *from + hour;
            sent.iter().filter(within).count()
        });
        assert!(busiest.max().unwrap_or(0) <= book.settings.max_per_hour);
        for number in 0..4 {
            let is_lost = known[number] == End && truth[number] == Begin;
            assert!(known[number] == truth[number] || is_lost, "seed {seed}");
        }
    }
}
