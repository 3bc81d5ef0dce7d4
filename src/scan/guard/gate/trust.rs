//! Who may take a free slot: one rule, from what speaks for a message (RESILIENCE section 2, "Levels of trust").
//!
//! A scan counts against its own level of trust and against those below it, as long as it runs, slow or not. So what a level
//! may hold is bounded by what better-known mail needs, and never by how much of its own kind is stuck: mail of strangers that
//! hangs takes slots from mail of strangers.

use std::time::Duration;

use tokio::time::Instant;

use super::{Gate, GateRequest, Scan};
use crate::ablation::{Mechanism, without};
use crate::message::Standing;

/// The time over which the use of slots by better-known mail is averaged: a reserve that follows it has to be there before
/// the next message of such mail, and mail comes in bursts of seconds.
const USE_TIME: Duration = Duration::from_secs(10);
/// Scans of strangers that end well, for one that is stuck, below which what waits of their mail is suspected. Good mail has a
/// few in a thousand that hang, and a flood that is worth the trouble is as much as the good mail beside it.
const WELL_FOR_ONE_STUCK: usize = 3;
/// Mail that has not come for this time has no slots kept for it.
const ABSENT_AFTER: Duration = Duration::from_secs(600);

/// What speaks for a message; the least speaks for the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// A known sender, and text or attachments that were scanned well before.
    Proven,
    /// A known sender with an attachment that nobody has seen.
    Unproven,
    /// An unknown sender.
    Unknown,
}

impl Level {
    pub(super) const ALL: [Self; 3] = [Self::Proven, Self::Unproven, Self::Unknown];

    /// The level of a message; `proven` tells whether all its attachments were scanned in time before.
    pub(super) fn of(standing: Standing, proven: bool) -> Self {
        match (standing, proven) {
            (Standing::Known, true) => Self::Proven,
            (Standing::Known, false) => Self::Unproven,
            (Standing::Unknown, _) => Self::Unknown,
        }
    }

    /// The most slots that are kept free of it.
    fn most_kept(self, slots: usize) -> usize {
        match self {
            Self::Proven => 0,
            Self::Unproven => (slots / 6).max(1),
            Self::Unknown => (slots / 3).max(1),
        }
    }
}

/// How many slots mail better known than a level has used of late, for the two levels that have such.
#[derive(Debug)]
pub(super) struct Use {
    at: Instant,
    /// Scans that run now and are not slow.
    live: [u32; 3],
    /// Exponentially weighted means of `live` over [`USE_TIME`], each summed over the levels up to its own.
    means: [f64; 2],
    /// When such mail last began a scan.
    last: [Option<Instant>; 2],
}

impl Use {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            at: now,
            live: [0; 3],
            means: [0.0; 2],
            last: [None; 2],
        }
    }

    pub(super) fn begins(&mut self, now: Instant, level: Level) {
        self.pass(now);
        self.live[level as usize] += 1;
        for last in self.last.iter_mut().skip(level as usize) {
            *last = Some(now);
        }
    }

    /// A scan became slow, or ended before it was.
    pub(super) fn ceases(&mut self, now: Instant, level: Level) {
        self.pass(now);
        self.live[level as usize] = self.live[level as usize].saturating_sub(1);
    }

    /// Lets time pass.
    pub(super) fn pass(&mut self, now: Instant) {
        let time = now.saturating_duration_since(self.at);
        if time.is_zero() {
            return;
        }
        self.at = now;
        let kept = (-time.div_duration_f64(USE_TIME)).exp();
        let mut live = 0;
        for (mean, level) in self.means.iter_mut().zip(self.live) {
            live += level;
            *mean = *mean * kept + f64::from(live) * (1.0 - kept);
        }
    }

    /// Slots that are kept free of a level while none of its scans is slow: what better-known mail uses, and one more.
    fn kept(&self, now: Instant, level: Level, slots: usize) -> usize {
        let Some(better) = (level as usize).checked_sub(1) else {
            return 0;
        };
        match self.last[better] {
            Some(last) if now < last + ABSENT_AFTER => {
                level.most_kept(slots).min(1 + self.means[better] as usize)
            }
            _ => 0,
        }
    }
}

/// The slots of the replicas that take mail, and the scans that hold them, at one moment.
#[derive(Debug)]
pub(super) struct Load {
    slots: usize,
    /// Scans of each level or of one that is less trusted.
    held: [usize; 3],
    /// Those of them that are slow.
    slow: [usize; 3],
    /// Scans of large content, of each level or of one that is *more* trusted, and those of them that are slow.
    large: [usize; 3],
    slow_large: [usize; 3],
    /// Scans of messages that ran into their timeout before.
    struck: usize,
}

impl Load {
    fn of<'a>(slots: usize, scans: impl Iterator<Item = &'a Scan>) -> Self {
        let mut load = Self {
            slots,
            held: [0; 3],
            slow: [0; 3],
            large: [0; 3],
            slow_large: [0; 3],
            struck: 0,
        };
        for scan in scans.filter(|scan| !scan.is_probe) {
            for level in 0..=scan.level as usize {
                load.held[level] += 1;
                load.slow[level] += usize::from(scan.is_slow);
            }
            for level in scan.level as usize..3 {
                load.large[level] += usize::from(scan.entrant.large);
                load.slow_large[level] += usize::from(scan.entrant.large && scan.is_slow);
            }
            load.struck += usize::from(scan.entrant.struck);
        }
        load
    }

    /// Whether a message of that level may take a free slot. Strangers begin no scan while those that run are as many as the
    /// slots less those kept free of them; of unproven mail of known senders one scan may always run.
    pub(super) fn admits(&self, now: Instant, level: Level, used: &Use) -> bool {
        if without(Mechanism::Lanes) || level == Level::Proven {
            return true;
        }
        let at = level as usize;
        let kept = match self.slow[at] {
            0 => used.kept(now, level, self.slots),
            _ => level.most_kept(self.slots),
        };
        let alone = level == Level::Unproven && self.held[1] == self.held[2];
        alone || self.held[at] < self.slots.saturating_sub(kept).max(1)
    }

    /// A message that ran into its timeout once may do so again: one of them at a time, and only while half of the slots are
    /// free or at work. One that has done so counts until the engine lets go of it: two of them, and five of a drip every 30 s
    /// within a `limit` of 150 s, are all of ten slots that strangers may hold. If it is large it waits for other large mail that
    /// is slow: then that is not its own fault.
    pub(super) fn admits_struck(&self, large: bool) -> bool {
        let explained = large && self.slow_large[Level::Unknown as usize] > 0;
        self.struck == 0 && 2 * self.slow[0] <= self.slots && !explained
    }

    /// Whether a large message of that level may take a free slot. Large content takes an engine as long as small content never
    /// does: once such a scan is slow, all of that level and of better ones have half of what strangers may hold, and small mail
    /// has the rest. Large mail of strangers that hangs takes nothing from large mail of known senders.
    pub(super) fn admits_large(&self, level: Level) -> bool {
        let at = level as usize;
        without(Mechanism::Lanes) || self.slow_large[at] == 0 || !self.is_too_much(self.large[at])
    }

    /// Whether so many scans of one sort, one of which is slow, are all that may run: half of what strangers may hold.
    fn is_too_much(&self, of_one_sort: usize) -> bool {
        let most = self
            .slots
            .saturating_sub(Level::Unknown.most_kept(self.slots));
        of_one_sort >= (most / 2).max(1)
    }
}

impl Gate {
    /// What the slots of the replicas that take mail are used for.
    pub(super) fn load(&self) -> Load {
        let takes = |at: usize| self.replicas[at].allowed() > 0;
        let replicas = self.replicas.iter().filter(|replica| replica.allowed() > 0);
        let scans = self.scans.values().filter(|scan| takes(scan.replica));
        Load::of(replicas.count() * self.slots, scans)
    }

    /// Parties that may begin no scan: one of theirs is slow, and the rest of the slots that strangers may hold is for others.
    pub(super) fn stuck_parties(&self, load: &Load) -> Vec<u64> {
        if load.slow[0] == 0 || without(Mechanism::Lanes) {
            return Vec::new();
        }
        let scans = || self.scans.values().filter(|scan| !scan.is_probe);
        let of = |party| {
            scans()
                .filter(|scan| scan.entrant.turn.party == party)
                .count()
        };
        let mut stuck: Vec<u64> = scans()
            .filter(|scan| scan.is_slow)
            .map(|s| s.entrant.turn.party)
            .collect();
        stuck.sort_unstable();
        stuck.dedup();
        stuck.retain(|party| load.is_too_much(of(*party)));
        stuck
    }

    /// Whether the engine is short of slots for such a message: it takes mail, but this one would have to wait now, for a slot
    /// that its level of trust may take or behind copies of itself. An engine that is out is not short of slots: it has none.
    pub(in crate::scan::guard) fn is_short(&self, now: Instant, entrant: &GateRequest) -> bool {
        if self.refuses().is_some() {
            return false;
        }
        let admits = || {
            let (load, level) = (self.load(), self.level(entrant));
            load.admits(now, level, &self.used) && (!entrant.large || load.admits_large(level))
        };
        self.free() == 0 || self.canaries.blocking(entrant).is_some() || !admits()
    }

    /// Whether it is the strangers' mail that fails, as far as statistics can tell: of those that began since the oldest scan of
    /// a stranger that is stuck, a quarter or more are. It is what a flood from many senders looks like whose messages have
    /// nothing in common; then other engines do not make up for this one.
    pub(super) fn blames_strangers(&self) -> bool {
        let of_strangers = |scan: &&Scan| scan.level == Level::Unknown && !scan.is_probe;
        let slow = self
            .scans
            .values()
            .filter(of_strangers)
            .filter(|s| s.is_slow);
        let (count, oldest) = slow.fold((0, None), |(count, oldest), scan| {
            let first = oldest.map_or(scan.started, |at| scan.started.min(at));
            (count + 1, Some(first))
        });
        let Some(oldest) = oldest else {
            return false;
        };
        let well = self.strangers_well.iter().filter(|began| **began >= oldest);
        let most = WELL_FOR_ONE_STUCK * count;
        well.take(most + 1).count() <= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(slots: usize, held: [usize; 3], slow: [usize; 3]) -> Load {
        Load {
            slots,
            held,
            slow,
            large: [0; 3],
            slow_large: [0; 3],
            struck: 0,
        }
    }

    /// Law 1: where no better-known mail comes, strangers have every slot; what such mail uses is kept free of them, and one
    /// more; a third at most, and a third as soon as one of their scans is slow.
    #[tokio::test(start_paused = true)]
    async fn what_is_kept_follows_what_is_used() {
        let now = Instant::now();
        let mut used = Use::new(now);
        let most = |now, used: &Use, slow| {
            let admits = |n: &usize| {
                let slow = usize::from(slow);
                load(12, [*n; 3], [slow; 3]).admits(now, Level::Unknown, used)
            };
            (0..12).take_while(admits).count()
        };
        assert_eq!(most(now, &used, false), 12, "nobody else is there");
        used.begins(now, Level::Proven);
        assert_eq!(most(now, &used, false), 11);
        let later = now + 3 * USE_TIME;
        used.pass(later);
        assert_eq!(most(later, &used, false), 11, "one is used nearly always");
        (0..9).for_each(|_| used.begins(later, Level::Unproven));
        let later = later + 3 * USE_TIME;
        used.pass(later);
        assert_eq!(most(later, &used, false), 8, "a third at most");
        (0..9).for_each(|_| used.ceases(later, Level::Unproven));
        used.ceases(later, Level::Proven);
        let later = later + 6 * USE_TIME;
        used.pass(later);
        assert_eq!(most(later, &used, false), 11);
        assert_eq!(most(later, &used, true), 8, "a third once one is slow");
        assert_eq!(most(later + ABSENT_AFTER, &used, false), 12);
    }

    /// Law 2: known senders with new attachments are not in one pot with strangers, however many of those are stuck.
    #[tokio::test(start_paused = true)]
    async fn strangers_that_hang_leave_room_for_what_is_unproven() {
        let now = Instant::now();
        let used = Use::new(now);
        let stuck = load(12, [8, 8, 8], [8, 8, 8]);
        assert!(!stuck.admits(now, Level::Unknown, &used));
        assert!(stuck.admits(now, Level::Unproven, &used));
        let more = load(12, [10, 10, 8], [10, 10, 8]);
        assert!(!more.admits(now, Level::Unproven, &used));
        assert!(more.admits(now, Level::Proven, &used));
        let alone = load(3, [2, 2, 2], [2, 2, 2]);
        assert!(alone.admits(now, Level::Unproven, &used), "one may always");
    }

    /// Law 4: of messages that hung once one is scanned at a time, and only while half of the slots are live; a large one not while
    /// large mail is slow.
    #[test]
    fn what_hung_once_is_scanned_alone() {
        assert!(load(8, [8, 0, 0], [4, 0, 0]).admits_struck(false));
        assert!(!load(8, [8, 0, 0], [5, 0, 0]).admits_struck(false));
        let one = Load {
            struck: 1,
            ..load(8, [1, 1, 1], [0; 3])
        };
        assert!(!one.admits_struck(false));
        let large = Load {
            large: [0, 1, 1],
            slow_large: [0, 1, 1],
            ..load(8, [1, 1, 0], [1, 1, 0])
        };
        assert!(large.admits_struck(false) && !large.admits_struck(true));
    }
}
