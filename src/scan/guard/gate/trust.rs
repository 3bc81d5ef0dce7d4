//! Which message may take a free slot: one rule, which depends on the level of trust of the message (RESILIENCE section 2,
//! "Levels of trust").
//!
//! A scan counts against its own level and against the better-known levels, from its start to its end, slow or not. The slots
//! that a level may hold are therefore bounded by the needs of more trusted mail, and never by the number of hanging scans of
//! the same level: hanging mail of unknown senders takes slots from mail of unknown senders.

use std::time::Duration;

use rand::RngExt as _;
use tokio::time::Instant;

use super::{Gate, GateRequest, Scan};
use crate::ablation::{Mechanism, without};
use crate::chance;
use crate::message::SenderReputation;

/// Time constant of the mean use of slots by more trusted mail. The reserve follows this mean, and must be there before the
/// next message of more trusted mail arrives. Mail arrives in bursts of seconds, so a mean over 10 s spans the gaps between
/// bursts.
const USE_TIME_CONSTANT: Duration = Duration::from_secs(10);
/// Waiting mail of unknown senders is suspected if, for each stuck scan of unknown senders, at most three scans have ended
/// well: a quarter or more are stuck. Of valid mail, only a few scans in 1,000 hang. A flood that is large enough to matter
/// is at least as much as the valid mail beside the flood, so half of the scans or more hang. A quarter lies between the two.
const FAST_SCANS_PER_STUCK_MAX: usize = 3;
/// After a scan of an unknown sender has run past its timeout, its slot takes no mail of unknown senders for a random time, of
/// at most a twentieth of the time that the scan has held the slot.
const PAUSE_DIVISOR: u32 = 20;
/// If no mail of the more trusted levels has begun a scan for 10 minutes, no slots are kept free for those levels.
const RESERVE_IDLE_MAX: Duration = Duration::from_secs(600);

/// The level of trust of a message, from the most to the least trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Mail of a known sender. Each attachment, if there are any, was scanned in time before.
    Proven,
    /// Mail of a known sender with at least one attachment that was not scanned in time before.
    Unproven,
    /// Mail of an unknown sender.
    Unknown,
}

impl Level {
    pub(super) const ALL: [Self; 3] = [Self::Proven, Self::Unproven, Self::Unknown];

    /// The level of a message; `proven` says whether all its attachments were scanned in time before.
    pub(super) fn of(reputation: SenderReputation, proven: bool) -> Self {
        match (reputation, proven) {
            (SenderReputation::Known, true) => Self::Proven,
            (SenderReputation::Known, false) => Self::Unproven,
            (SenderReputation::Unknown, _) => Self::Unknown,
        }
    }

    /// Largest number of slots, of `slots`, that are kept free for more trusted mail.
    fn most_kept(self, slots: usize) -> usize {
        match self {
            Self::Proven => 0,
            Self::Unproven => (slots / 6).max(1),
            Self::Unknown => (slots / 3).max(1),
        }
    }
}

/// Recent use of slots by mail that is more trusted than a level, for the two levels that have more trusted mail.
#[derive(Debug)]
pub(super) struct Use {
    at: Instant,
    /// Scans of each level that run now and are not slow.
    live: [u32; 3],
    /// Means of `live`, exponentially weighted with [`USE_TIME_CONSTANT`]: the first for proven mail, the second for proven
    /// and unproven mail together.
    means: [f64; 2],
    /// Start of the last scan: the first of proven mail, the second of proven or unproven mail.
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

    /// A scan became slow, or ended without becoming slow.
    pub(super) fn ceases(&mut self, now: Instant, level: Level) {
        self.pass(now);
        self.live[level as usize] = self.live[level as usize].saturating_sub(1);
    }

    /// Updates the means to the present.
    pub(super) fn pass(&mut self, now: Instant) {
        let time = now.saturating_duration_since(self.at);
        if time.is_zero() {
            return;
        }
        self.at = now;
        let kept = (-time.div_duration_f64(USE_TIME_CONSTANT)).exp();
        let mut live = 0;
        for (mean, level) in self.means.iter_mut().zip(self.live) {
            live += level;
            *mean = *mean * kept + f64::from(live) * (1.0 - kept);
        }
    }

    /// Slots that are kept free of a level while no scan of the level, or of a less trusted one, is slow: the mean use by
    /// more trusted mail, rounded down, and one more, so that the next message of those levels finds a slot.
    fn kept(&self, now: Instant, level: Level, slots: usize) -> usize {
        let Some(better) = (level as usize).checked_sub(1) else {
            return 0;
        };
        match self.last[better] {
            Some(last) if now < last + RESERVE_IDLE_MAX => {
                level.most_kept(slots).min(1 + self.means[better] as usize)
            }
            _ => 0,
        }
    }
}

/// A slot that is free again after a scan of an unknown sender past its timeout, and takes no mail of unknown senders yet.
#[derive(Debug)]
pub(super) struct Pause {
    pub(super) end: Instant,
    /// Start of the scan.
    started: Instant,
}

/// The slots of the replicas that take mail, and the scans that hold them, at one moment.
#[derive(Debug)]
pub(super) struct Load {
    slots: usize,
    /// For each level, the scans of that level and of *less* trusted levels.
    held: [usize; 3],
    /// The slow scans among `held`.
    slow: [usize; 3],
    /// For each level, the scans of large content of that level and of *more* trusted levels.
    large: [usize; 3],
    /// The slow scans among `large`.
    slow_large: [usize; 3],
    /// Scans of messages that timed out before.
    timed_out_before: usize,
    /// Free slots that take no mail of unknown senders yet.
    paused: usize,
}

impl Load {
    fn of<'a>(slots: usize, scans: impl Iterator<Item = &'a Scan>) -> Self {
        let mut load = Self {
            slots,
            held: [0; 3],
            slow: [0; 3],
            large: [0; 3],
            slow_large: [0; 3],
            timed_out_before: 0,
            paused: 0,
        };
        for scan in scans.filter(|scan| !scan.is_probe) {
            for level in 0..=scan.level as usize {
                load.held[level] += 1;
                load.slow[level] += usize::from(scan.is_slow);
            }
            for level in scan.level as usize..3 {
                load.large[level] += usize::from(scan.request.large);
                load.slow_large[level] += usize::from(scan.request.large && scan.is_slow);
            }
            load.timed_out_before += usize::from(scan.request.timed_out_before);
        }
        load
    }

    /// Whether a message of that level may take a free slot. A message of an unproven or unknown level may start while the
    /// running scans of its level and of less trusted levels are fewer than the slots minus those kept free of the level. One
    /// scan of unproven mail may always run.
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
        let paused = match level {
            Level::Unknown => self.paused,
            Level::Proven | Level::Unproven => 0,
        };
        alone || self.held[at] + paused < self.slots.saturating_sub(kept).max(1)
    }

    /// Whether a message that timed out before may take a free slot. The message may hang again, so these messages are
    /// scanned one at a time, and only while at most half of the slots are held by slow scans. A scan that hangs again counts
    /// until the engine ends the scan. One at a time is necessary: on an engine with ten slots, unknown senders may hold
    /// seven. Two of these scans, and a drip of one new hanging message every 30 s (five within a `limit` of 150 s), would
    /// hold all seven. A large message also waits while any scan of large content is slow: then another timeout might not be
    /// the fault of the message.
    pub(super) fn admits_timed_out_before(&self, large: bool) -> bool {
        let explained = large && self.slow_large[Level::Unknown as usize] > 0;
        self.timed_out_before == 0 && 2 * self.slow[0] <= self.slots && !explained
    }

    /// Whether a large message of that level may take a free slot. Large content can take an engine much longer than small
    /// content. So once a scan of large content of that level or of a more trusted level is slow, these scans together may
    /// hold half of the slots that unknown senders may hold, and small mail has the rest. Less trusted levels do not count:
    /// hanging large mail of unknown senders takes no slots from large mail of known senders.
    pub(super) fn admits_large(&self, level: Level) -> bool {
        let at = level as usize;
        without(Mechanism::Lanes) || self.slow_large[at] == 0 || !self.is_too_much(self.large[at])
    }

    /// Whether a number of scans reaches the limit for scans of one sort (one party, or large content) of which at least one
    /// is slow: half of the slots that unknown senders may hold.
    fn is_too_much(&self, of_one_sort: usize) -> bool {
        let most = self
            .slots
            .saturating_sub(Level::Unknown.most_kept(self.slots));
        of_one_sort >= (most / 2).max(1)
    }
}

impl Gate {
    /// The present load, over the replicas that take mail.
    pub(super) fn load(&self, now: Instant) -> Load {
        let takes = |at: usize| self.replicas[at].allowed() > 0;
        let replicas = self.replicas.iter().filter(|replica| replica.allowed() > 0);
        let scans = self.scans.values().filter(|scan| takes(scan.replica));
        Load {
            paused: self.pauses.iter().filter(|pause| now < pause.end).count(),
            ..Load::of(replicas.count() * self.slots, scans)
        }
    }

    /// Pauses the slot of a scan that has ended, if the scan was of an unknown sender and past its timeout.
    ///
    /// Without the pause, hanging messages that arrive at a fixed interval can be in step with the slots: if the engine ends each
    /// hanging scan after a multiple of the interval, a slot becomes free just when the next hanging message is first in the
    /// queue, and other mail gets no slot. A random pause of up to four times [`Times::wait`](super::Times::wait) breaks the
    /// step, because fresh mail leaves the queue after `wait`.
    pub(super) fn pause_slot(&mut self, now: Instant, scan: &Scan) {
        self.pauses.retain(|pause| now < pause.end);
        if scan.is_overdue && scan.level == Level::Unknown && !scan.is_probe {
            let longest = (self.times.wait * 4).min((now - scan.started) / PAUSE_DIVISOR);
            let length = longest.mul_f64(chance::rng().random());
            self.pauses.push(Pause {
                end: now + length,
                started: scan.started,
            });
        }
    }

    /// Parties that may not start another scan: at least one scan of the party is slow, and the party already holds half of
    /// the slots that unknown senders may hold. The other half is for other parties.
    pub(super) fn stuck_parties(&self, load: &Load) -> Vec<u64> {
        if load.slow[0] == 0 || without(Mechanism::Lanes) {
            return Vec::new();
        }
        let scans = || self.scans.values().filter(|scan| !scan.is_probe);
        let of = |party| {
            scans()
                .filter(|scan| scan.request.fairness_key.party == party)
                .count()
        };
        let mut stuck: Vec<u64> = scans()
            .filter(|scan| scan.is_slow)
            .map(|s| s.request.fairness_key.party)
            .collect();
        stuck.sort_unstable();
        stuck.dedup();
        stuck.retain(|party| load.is_too_much(of(*party)));
        stuck
    }

    /// Whether the engine is short of slots for a message: the engine takes mail, but this message would have to wait now,
    /// for a slot that its level of trust may take, or behind copies of the same content. An engine that is out is not short
    /// of slots: that engine gives no answer at all, and coverage decides.
    pub(in crate::scan::guard) fn is_short(&self, now: Instant, request: &GateRequest) -> bool {
        if self.refuses().is_some() {
            return false;
        }
        let admits = || {
            let (load, level) = (self.load(now), self.level(request));
            load.admits(now, level, &self.used) && (!request.large || load.admits_large(level))
        };
        self.free() == 0 || self.canaries.blocking(request).is_some() || !admits()
    }

    /// Whether statistics blame the mail of unknown senders: of their scans that began since the oldest stuck one, at most
    /// [`FAST_SCANS_PER_STUCK_MAX`] have ended well for each stuck one, so a quarter or more are stuck. A scan counts as stuck
    /// until the pause of its slot has ended. This pattern shows a flood from many senders whose messages have no common trait.
    /// Other engines then do not make up for this engine, or policy would deliver the flood on their answers.
    pub(super) fn blames_strangers(&self, now: Instant) -> bool {
        let is_stuck =
            |scan: &&Scan| scan.level == Level::Unknown && !scan.is_probe && scan.is_slow;
        let running = self
            .scans
            .values()
            .filter(is_stuck)
            .map(|scan| scan.started);
        let paused = self.pauses.iter().filter(|pause| now < pause.end);
        let stuck: Vec<Instant> = running.chain(paused.map(|pause| pause.started)).collect();
        let Some(oldest) = stuck.iter().min() else {
            return false;
        };
        let well = self.strangers_well.iter().filter(|began| *began >= oldest);
        let most = FAST_SCANS_PER_STUCK_MAX * stuck.len();
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
            timed_out_before: 0,
            paused: 0,
        }
    }

    /// Law 1: without more trusted mail, unknown senders may use every slot. Otherwise the slots that more trusted mail uses
    /// are kept free, and one more: at most a third, and a third as soon as one scan of unknown senders is slow.
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
        let later = now + 3 * USE_TIME_CONSTANT;
        used.pass(later);
        assert_eq!(most(later, &used, false), 11, "one is used nearly always");
        (0..9).for_each(|_| used.begins(later, Level::Unproven));
        let later = later + 3 * USE_TIME_CONSTANT;
        used.pass(later);
        assert_eq!(most(later, &used, false), 8, "a third at most");
        (0..9).for_each(|_| used.ceases(later, Level::Unproven));
        used.ceases(later, Level::Proven);
        let later = later + 6 * USE_TIME_CONSTANT;
        used.pass(later);
        assert_eq!(most(later, &used, false), 11);
        assert_eq!(most(later, &used, true), 8, "a third once one is slow");
        assert_eq!(most(later + RESERVE_IDLE_MAX, &used, false), 12);
    }

    /// Law 2: known senders with new attachments have slots of their own, even if many scans of unknown senders hang.
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

    /// Law 4: messages that timed out before are scanned one at a time, and only while at most half of the slots are held by
    /// slow scans; large ones not while large mail is slow.
    #[test]
    fn what_hung_once_is_scanned_alone() {
        assert!(load(8, [8, 0, 0], [4, 0, 0]).admits_timed_out_before(false));
        assert!(!load(8, [8, 0, 0], [5, 0, 0]).admits_timed_out_before(false));
        let one = Load {
            timed_out_before: 1,
            ..load(8, [1, 1, 1], [0; 3])
        };
        assert!(!one.admits_timed_out_before(false));
        let large = Load {
            large: [0, 1, 1],
            slow_large: [0, 1, 1],
            ..load(8, [1, 1, 0], [1, 1, 0])
        };
        assert!(large.admits_timed_out_before(false) && !large.admits_timed_out_before(true));
    }
}
