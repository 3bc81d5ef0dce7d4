//! Stories at the limits: of time, of a restart, and of what the relay can follow.

use super::*;

fn clamd() -> Subject {
    Subject::engine("clamd")
}

/// Trouble that comes back within [`STORY_QUIET`] continues its story, and the story has no end again; after that it is a new
/// story. A restart changes nothing of this.
#[test]
fn trouble_that_comes_back_soon_is_the_same_story() {
    for restarts in [false, true] {
        for (pause, is_same) in [(300, true), (900, false)] {
            let mut world = World::new();
            let first = world.record(Kind::BreakerOpened, clamd());
            world.record(Kind::BreakerClosed, clamd());
            world.pass(STORY_SETTLE.as_secs());
            assert_ne!(world.state(first.id).ended_by, "");
            world.pass(pause);
            if restarts {
                world.restart();
            }
            let again = world.record(Kind::BreakerOpened, clamd());
            assert_eq!(again.story == first.story, is_same, "{pause} {restarts}");
            let state = world.state(again.story.expect("a story"));
            assert_eq!((state.story.ended, &*state.ended_by), (None, ""));
        }
    }
}

/// Mail that was touched shortly before the first incident belongs to the story; what was touched earlier does not.
#[test]
fn only_mail_of_the_last_minute_is_claimed() {
    for (seconds, claimed) in [(59, 1), (60, 0)] {
        let mut world = World::new();
        assert!(world.touch(clamd(), TouchOutcome::Passed, 0).is_none());
        world.pass(seconds);
        let first = world.record(Kind::BreakerOpened, clamd());
        let touched = world.state(first.id).story.touched;
        assert_eq!(touched.passed, claimed, "after {seconds} s");
    }
}

/// If there are more causes at once than the relay can follow, the oldest story ends and says so, and whom the relay told of its
/// beginning hears of its end.
#[test]
fn a_story_that_is_lost_sight_of_ends() {
    let mut world = World::new();
    let hop = |number: usize| Subject::NextHop(format!("hop {number}"));
    let first = world.record(Kind::NextHopDead, hop(0));
    for number in 1..=STORIES_MAX {
        world.record(Kind::NextHopDead, hop(number));
    }
    assert_eq!(world.tracker.follows(), STORIES_MAX);
    assert_eq!(
        world.phases_of(first.id),
        [StoryPhase::Begin, StoryPhase::End]
    );
    let state = world.state(first.id);
    assert!(state.ended_by.starts_with("too many causes"), "{state:?}");
}
