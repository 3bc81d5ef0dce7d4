//! Which message may take a free slot: one rule, which depends on the level of trust of the message (RESILIENCE section 2,
//! "Levels of trust").
//!
//! A level may fill all slots but those that are kept free for more trusted mail, at most [`Level::most_kept`]. Of 12 slots (with the default reserves),
//! unknown mail may fill 8 at least; unproven and unknown mail together may fill 10 at least; proven mail may take any slot.
//! A scan counts from its start to its end, slow or not, against its own level and against each more trusted level. It
//! cannot shut out a more trusted level, because the bound of that level is higher: if 8 scans of unknown mail hang, unproven
//! mail still has 2 slots, and proven mail has 2 more. Hanging mail of unknown senders therefore takes slots only from mail of
//! unknown senders. (An engine with one slot can keep none free.)
//!
//! The words for a scan that takes long:
//!
//! - **slow**: the scan lasts longer than [`Times::slow`](super::Times::slow). This is evidence and not a failure.
//! - **overdue**: the scan lasts longer than [`Times::timeout`](super::Times::timeout). Each overdue scan is slow. An overdue
//!   scan is a **zombie** as long as it holds its slot.
//! - **stuck**: a slow scan of an unknown sender, as [`Gate::suspects_unknown_senders`] counts it.
//! - **hang**: the engine does not end the scan by itself, or ends it only at a limit. The gate cannot know this before the
//!   end of the scan, so it judges by the states above.
//! - **lost worker**: the slot of an overdue scan whose message no interceptor matches (`src/intercept/loss.rs`).

use std::time::Duration;

use rand::RngExt as _;
use tokio::time::Instant;

use super::{Gate, GateRequest, GuardSettings, Scan};
use crate::ablation::{Mechanism, without};
use crate::chance;
use crate::message::SenderReputation;

/// Time constant of the mean use of slots by more trusted mail. The number of slots that are kept free for more trusted mail
/// follows this mean, and the slots must be free before the next message of that mail arrives. Mail arrives in bursts of
/// seconds, so a mean over 10 s spans the gaps between bursts.
const USE_TIME_CONSTANT: Duration = Duration::from_secs(10);
/// The gate suspects the waiting mail of unknown senders if, for each stuck scan of unknown senders, at most three scans have
/// ended well: a quarter or more are stuck. A suspected message that gets no slot is reported as `parked` and not as `busy`,
/// so other engines do not make up for the missing answer. Of valid mail, only a few scans in 1,000 hang. A flood that is large
/// enough to matter is at least as much as the valid mail beside the flood, so half of the scans or more hang. A quarter lies
/// between the two.
const FAST_SCANS_PER_STUCK_MAX: usize = 3;
/// A pause lasts at most a twentieth of the time that the scan has held the slot. So all pauses together last at most a
/// twentieth of the time that overdue scans hold slots. [`Gate::pause_slot`] states the whole rule.
const PAUSE_DIVISOR: u32 = 20;
/// If no mail of the more trusted levels has begun a scan for 10 minutes, no slots are kept free for those levels.
const KEPT_SLOTS_IDLE_MAX: Duration = Duration::from_secs(600);

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

    /// Largest number of slots, of `slots`, that are kept free of this level for more trusted mail. A level may fill the other
    /// slots. So the bound is higher for a more trusted level.
    fn most_kept(self, slots: usize, settings: &GuardSettings) -> usize {
        match self {
            Self::Proven => 0,
            Self::Unproven => settings.reserve_proven.slots(slots),
            Self::Unknown => settings.reserve_known.slots(slots),
        }
    }
}

/// Recent use of slots by mail that is more trusted than a level, for the two levels that have more trusted mail.
#[derive(Debug)]
pub(super) struct SlotUse {
    /// Time of the last update of `means`.
    at: Instant,
    /// Scans of each level that run now and are not slow.
    live: [u32; 3],
    /// Means of `live`, exponentially weighted with [`USE_TIME_CONSTANT`]: the first for proven mail (more trusted than
    /// unproven), the second for proven and unproven mail together (more trusted than unknown).
    means: [f64; 2],
    /// Start of the last scan: the first of proven mail, the second of proven or unproven mail.
    last_start: [Option<Instant>; 2],
}

impl SlotUse {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            at: now,
            live: [0; 3],
            means: [0.0; 2],
            last_start: [None; 2],
        }
    }

    /// Counts a scan of that level as use of a slot from now on.
    pub(super) fn scan_began(&mut self, now: Instant, level: Level) {
        self.update_means(now);
        self.live[level as usize] += 1;
        for last_start in self.last_start.iter_mut().skip(level as usize) {
            *last_start = Some(now);
        }
    }

    /// Ends the count of a scan that became slow, or that ended without becoming slow. The gate calls this once for each scan.
    /// A slow scan does not count, or a hanging scan would look like steady use of its slot.
    pub(super) fn scan_ended_or_slow(&mut self, now: Instant, level: Level) {
        self.update_means(now);
        self.live[level as usize] = self.live[level as usize].saturating_sub(1);
    }

    /// Updates the means to the present: since the last update, `live` was constant.
    pub(super) fn update_means(&mut self, now: Instant) {
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
    /// At most `most_kept`.
    fn kept(&self, now: Instant, level: Level, most_kept: usize) -> usize {
        let Some(more_trusted) = (level as usize).checked_sub(1) else {
            return 0;
        };
        match self.last_start[more_trusted] {
            Some(last) if now < last + KEPT_SLOTS_IDLE_MAX => {
                most_kept.min(1 + self.means[more_trusted] as usize)
            }
            _ => 0,
        }
    }
}

/// The slots of the replicas that take mail, and the scans that hold them, at one moment.
#[derive(Debug)]
pub(super) struct Load {
    slots: usize,
    /// Slots of each level that are kept free of it at most ([`Level::most_kept`]).
    most_kept: [usize; 3],
    /// For each level, the scans of that level and of *less* trusted levels: these together may not fill the slots that are
    /// kept free for more trusted mail. Scans of more trusted mail are left out, because the slots are kept for those scans.
    /// The number for [`Level::Proven`] is that of all scans.
    held: [usize; 3],
    /// The slow scans among `held`.
    slow: [usize; 3],
    /// For each level, the scans of large content of that level and of *more* trusted levels. Less trusted levels are left
    /// out, so that their hanging mail does not limit large mail of this level. The number for [`Level::Unknown`] is that of
    /// all scans of large content.
    large: [usize; 3],
    /// The slow scans among `large`.
    slow_large: [usize; 3],
    /// Scans of messages that timed out before.
    /// The first of known senders, the second of unknown senders.
    timed_out_before: [usize; 2],
    /// Free slots that take no mail of unknown senders yet.
    paused: usize,
}

impl Load {
    /// Counts the scans of mail; probes are left out.
    fn of<'a>(
        slots: usize,
        settings: &GuardSettings,
        scans: impl Iterator<Item = &'a Scan>,
    ) -> Self {
        let mut load = Self {
            slots,
            most_kept: Level::ALL.map(|level| level.most_kept(slots, settings)),
            held: [0; 3],
            slow: [0; 3],
            large: [0; 3],
            slow_large: [0; 3],
            timed_out_before: [0; 2],
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
            let of_unknown = usize::from(scan.level == Level::Unknown);
            load.timed_out_before[of_unknown] += usize::from(scan.request.timed_out_before);
        }
        load
    }

    /// Whether a message of that level may take a free slot. A message of an unproven or unknown level may start while the
    /// running scans of its level and of less trusted levels are fewer than the slots minus those kept free of the level. One
    /// scan of unproven mail may always run.
    pub(super) fn admits(&self, now: Instant, level: Level, slot_use: &SlotUse) -> bool {
        if without(Mechanism::TrustLevels) || level == Level::Proven {
            return true;
        }
        let at = level as usize;
        let kept = match self.slow[at] {
            0 => slot_use.kept(now, level, self.most_kept[at]),
            _ => self.most_kept[at],
        };
        let no_unproven_runs =
            self.held[Level::Unproven as usize] == self.held[Level::Unknown as usize];
        let first_unproven = level == Level::Unproven && no_unproven_runs;
        let paused = match level {
            Level::Unknown => self.paused,
            Level::Proven | Level::Unproven => 0,
        };
        first_unproven || self.held[at] + paused < self.slots.saturating_sub(kept).max(1)
    }

    /// Whether a message that timed out before may take a free slot. The message may hang again, so these messages are
    /// scanned one at a time, and only while slow scans hold at most half of the slots. A scan that hangs again counts until
    /// the engine ends the scan.
    ///
    /// The limit of one has this reason. On an engine with ten slots, unknown senders may hold seven. If a new message hangs
    /// every 30 s, five new messages hang within a `limit` of 150 s. Two scans of messages that timed out before would take
    /// the other two slots of the seven.
    ///
    /// A large message also waits while any scan of large content is slow. The slow scan shows that the size of the content may
    /// be the cause, so another timeout might not be the fault of the message.
    ///
    /// Known and unknown senders each have one such scan, and for known senders only their own slow scans count: hanging mail
    /// of unknown senders takes nothing from mail of known senders (law 2), which may have timed out just before an outage.
    pub(super) fn admits_timed_out_before(&self, level: Level, large: bool) -> bool {
        let (all, unknown) = (
            self.slow[Level::Proven as usize],
            self.slow[Level::Unknown as usize],
        );
        let (running, slow) = match level {
            Level::Proven | Level::Unproven => (self.timed_out_before[0], all - unknown),
            Level::Unknown => (self.timed_out_before[1], all),
        };
        let size_explains_timeout = large && self.slow_large[Level::Unknown as usize] > 0;
        running == 0 && 2 * slow <= self.slots && !size_explains_timeout
    }

    /// Whether a large message of that level may take a free slot. Large content can take an engine much longer than small
    /// content. So once a scan of large content of that level or of a more trusted level is slow, these scans together may
    /// hold half of the slots that unknown senders may hold, and small mail has the rest. Less trusted levels do not count:
    /// hanging large mail of unknown senders takes no slots from large mail of known senders.
    pub(super) fn admits_large(&self, level: Level) -> bool {
        let at = level as usize;
        without(Mechanism::TrustLevels)
            || self.slow_large[at] == 0
            || !self.is_group_at_limit(self.large[at])
    }

    /// Whether a group of scans, the scans of one party or those of large content, may not get another slot once one of its
    /// scans is slow: the group holds half of the slots that unknown senders may hold.
    fn is_group_at_limit(&self, group_scans: usize) -> bool {
        let kept = self.most_kept[Level::Unknown as usize];
        let most = self.slots.saturating_sub(kept);
        group_scans >= (most / 2).max(1)
    }
}

impl Gate {
    /// The present load, over the replicas that take mail.
    pub(super) fn load(&self, now: Instant) -> Load {
        let takes = |at: usize| self.replicas[at].allowed() > 0;
        let replicas = self.replicas.iter().filter(|replica| replica.allowed() > 0);
        let scans = self.scans.values().filter(|scan| takes(scan.replica));
        Load {
            paused: self.pauses.iter().filter(|end| now < **end).count(),
            ..Load::of(replicas.count() * self.slots, &self.settings, scans)
        }
    }

    /// Pauses the slot of a scan that has ended, if the scan was of an unknown sender and past its timeout: the slot takes no
    /// mail of unknown senders for a random time. The upper bound is four times [`Times::wait`](super::Times::wait), or the
    /// time that the scan held the slot divided by [`PAUSE_DIVISOR`] if that is shorter.
    ///
    /// Without the pause, hanging messages that arrive at a fixed interval can be in step with the slots. If the engine ends
    /// each hanging scan after a multiple of the interval, a slot becomes free just when the next hanging message is first in
    /// the queue, and other mail gets no slot. The pause breaks this step: fresh mail leaves the queue after `wait`. So a
    /// hanging message that waits for this slot mostly leaves before the pause ends, and the slot goes to a message that
    /// arrived at another time.
    pub(super) fn pause_slot(&mut self, now: Instant, scan: &Scan) {
        self.pauses.retain(|end| now < *end);
        if !scan.is_overdue || scan.level != Level::Unknown || scan.is_probe {
            return;
        }
        let longest = (self.times.wait * 4).min((now - scan.started) / PAUSE_DIVISOR);
        let end = now + longest.mul_f64(chance::rng().random());
        self.pauses.push(end);
        // It is unknown whether the next mail in the slot hangs as well until mail that waits has begun, and would be slow.
        if self.statistics_suspect(Some(scan.started)) {
            let judged = end + self.times.wait + self.times.slow(false);
            self.suspected_until = self.suspected_until.max(Some(judged));
        }
    }

    /// Parties that may not start another scan: at least one scan of the party is slow, and the party already holds half of
    /// the slots that unknown senders may hold. The other half is for other parties.
    pub(super) fn parties_at_limit(&self, load: &Load) -> Vec<u64> {
        if load.slow[Level::Proven as usize] == 0 || without(Mechanism::TrustLevels) {
            return Vec::new();
        }
        let scans = || self.scans.values().filter(|scan| !scan.is_probe);
        let scans_of = |party| {
            scans()
                .filter(|scan| scan.request.fairness_key.party == party)
                .count()
        };
        let mut parties: Vec<u64> = scans()
            .filter(|scan| scan.is_slow)
            .map(|s| s.request.fairness_key.party)
            .collect();
        parties.sort_unstable();
        parties.dedup();
        parties.retain(|party| load.is_group_at_limit(scans_of(*party)));
        parties
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
            load.admits(now, level, &self.slot_use) && (!request.large || load.admits_large(level))
        };
        self.free() == 0 || self.canaries.blocking(request).is_some() || !admits()
    }

    /// Whether the mail of unknown senders is suspected: by the scans that are stuck now, or by those that have ended, until the
    /// next scans in their slots would be slow. The gate then parks waiting mail of unknown senders: other engines do not make
    /// up for this engine, or policy would deliver a flood on their answers.
    pub(super) fn suspects_unknown_senders(&self, now: Instant) -> bool {
        self.suspected_until.is_some_and(|until| now < until) || self.statistics_suspect(None)
    }

    /// Whether statistics make the mail of unknown senders suspected: of their scans that began since the oldest stuck one, at
    /// most [`FAST_SCANS_PER_STUCK_MAX`] have ended well for each stuck one, so a quarter or more are stuck. This pattern shows
    /// a flood from many senders whose messages have no common trait. `ended` is the start of a stuck scan that ends now.
    fn statistics_suspect(&self, ended: Option<Instant>) -> bool {
        let is_stuck =
            |scan: &&Scan| scan.level == Level::Unknown && !scan.is_probe && scan.is_slow;
        let running = self.scans.values().filter(is_stuck);
        let stuck: Vec<Instant> = running.map(|scan| scan.started).chain(ended).collect();
        let Some(oldest) = stuck.iter().min() else {
            return false;
        };
        let fast = self.unknown_fast_scans.iter();
        let fast_since = fast.filter(|began| *began >= oldest);
        let most = FAST_SCANS_PER_STUCK_MAX * stuck.len();
        fast_since.take(most + 1).count() <= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(slots: usize, held: [usize; 3], slow: [usize; 3]) -> Load {
        Load {
            slots,
            most_kept: Level::ALL.map(|level| level.most_kept(slots, &GuardSettings::default())),
            held,
            slow,
            large: [0; 3],
            slow_large: [0; 3],
            timed_out_before: [0; 2],
            paused: 0,
        }
    }

    /// Law 1: without more trusted mail, unknown senders may use every slot. Otherwise the slots that more trusted mail uses
    /// are kept free, and one more: at most a third, and a third as soon as one scan of unknown senders is slow.
    #[tokio::test(start_paused = true)]
    async fn the_slots_kept_free_follow_recent_use() {
        let now = Instant::now();
        let mut slot_use = SlotUse::new(now);
        let most = |now, slot_use: &SlotUse, slow| {
            let admits = |n: &usize| {
                let slow = usize::from(slow);
                load(12, [*n; 3], [slow; 3]).admits(now, Level::Unknown, slot_use)
            };
            (0..12).take_while(admits).count()
        };
        assert_eq!(most(now, &slot_use, false), 12, "no other mail is there");
        slot_use.scan_began(now, Level::Proven);
        assert_eq!(most(now, &slot_use, false), 11);
        let later = now + 3 * USE_TIME_CONSTANT;
        slot_use.update_means(later);
        assert_eq!(
            most(later, &slot_use, false),
            11,
            "one is used nearly always"
        );
        (0..9).for_each(|_| slot_use.scan_began(later, Level::Unproven));
        let later = later + 3 * USE_TIME_CONSTANT;
        slot_use.update_means(later);
        assert_eq!(most(later, &slot_use, false), 8, "a third at most");
        (0..9).for_each(|_| slot_use.scan_ended_or_slow(later, Level::Unproven));
        slot_use.scan_ended_or_slow(later, Level::Proven);
        let later = later + 6 * USE_TIME_CONSTANT;
        slot_use.update_means(later);
        assert_eq!(most(later, &slot_use, false), 11);
        assert_eq!(most(later, &slot_use, true), 8, "a third once one is slow");
        assert_eq!(most(later + KEPT_SLOTS_IDLE_MAX, &slot_use, false), 12);
    }

    /// Law 2: known senders with new attachments have slots of their own, even if many scans of unknown senders hang.
    #[tokio::test(start_paused = true)]
    async fn hanging_unknown_mail_leaves_slots_to_unproven_mail() {
        let now = Instant::now();
        let slot_use = SlotUse::new(now);
        let stuck = load(12, [8, 8, 8], [8, 8, 8]);
        assert!(!stuck.admits(now, Level::Unknown, &slot_use));
        assert!(stuck.admits(now, Level::Unproven, &slot_use));
        let more = load(12, [10, 10, 8], [10, 10, 8]);
        assert!(!more.admits(now, Level::Unproven, &slot_use));
        assert!(more.admits(now, Level::Proven, &slot_use));
        let alone = load(3, [2, 2, 2], [2, 2, 2]);
        assert!(
            alone.admits(now, Level::Unproven, &slot_use),
            "one may always"
        );
    }

    /// Law 4: messages that timed out before are scanned one at a time, and only while at most half of the slots are held by
    /// slow scans; large ones not while large mail is slow.
    #[test]
    fn mail_that_timed_out_before_is_scanned_alone() {
        assert!(load(8, [8, 0, 0], [4, 0, 0]).admits_timed_out_before(Level::Unknown, false));
        assert!(!load(8, [8, 0, 0], [5, 0, 0]).admits_timed_out_before(Level::Unknown, false));
        let one = Load {
            timed_out_before: [0, 1],
            ..load(8, [1, 1, 1], [0; 3])
        };
        assert!(!one.admits_timed_out_before(Level::Unknown, false));
        assert!(one.admits_timed_out_before(Level::Proven, false));
        let many_of_unknown = load(8, [6, 6, 6], [6, 6, 6]);
        assert!(many_of_unknown.admits_timed_out_before(Level::Unproven, false));
        let many_of_known = load(8, [6, 0, 0], [6, 0, 0]);
        assert!(!many_of_known.admits_timed_out_before(Level::Proven, false));
        let large = Load {
            large: [0, 1, 1],
            slow_large: [0, 1, 1],
            ..load(8, [1, 1, 0], [1, 1, 0])
        };
        assert!(
            large.admits_timed_out_before(Level::Unknown, false)
                && !large.admits_timed_out_before(Level::Unknown, true)
        );
    }
}
