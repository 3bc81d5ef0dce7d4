//! Receives the content of a message within limits of size, memory, time and rate.

use std::time::Duration;

use tokio::time::Instant;

use super::{Ending, Session};
use crate::deadline::{Deadline, Elapsed};
use crate::listener::Limits;
use crate::listener::admission::Share;
use crate::message::{Charge, Content, MemoryBudget, Message, Times};
use crate::smtp::Reply;
use crate::smtp::content::Decoder;

/// Time after DATA or the first BDAT before the average rate is checked: 30 s, because a slow start is normal.
const RATE_CHECK_DELAY: Duration = Duration::from_secs(30);

/// The content of one transaction while it arrives.
pub(super) struct Intake {
    decoder: Decoder,
    /// Full segments of the kept content; `octets` is the segment that is being filled. A single growing vector would be
    /// copied at each doubling, and would hold half more memory than the content needs.
    segments: Vec<Vec<u8>>,
    octets: Vec<u8>,
    kept: usize,
    charge: Charge,
    /// `None` for content that is read and not kept.
    share: Option<Share>,
    limit: u64,
    /// Reply to a message whose content is not kept any more. Its content is still read to the true end, so that the
    /// commands after it are found.
    refusal: Option<Reply>,
    /// Time of DATA or of the first BDAT.
    began: Instant,
    /// Deadline for the complete content.
    pub(super) ends: Deadline,
    used: u64,
}

impl Intake {
    /// Size of a segment in octets. Content of up to one segment is never copied.
    const SEGMENT_OCTETS: usize = 256 * 1024;

    /// An intake for content of `declared` octets, or 0 if the client declared no size. The declared size may be wrong, so
    /// at most one segment is allocated for it. `charge` holds the memory that the message uses already.
    pub(super) fn new(decoder: Decoder, declared: u64, limits: &Limits, charge: Charge) -> Self {
        let declared = usize::try_from(declared).unwrap_or(usize::MAX);
        Self {
            decoder,
            segments: Vec::new(),
            octets: Vec::with_capacity(
                declared
                    .saturating_add(512)
                    .clamp(4096, Self::SEGMENT_OCTETS),
            ),
            kept: 0,
            charge,
            share: None,
            limit: limits.message_size,
            refusal: None,
            began: Instant::now(),
            ends: Deadline::after(limits.data_total),
            used: 0,
        }
    }

    /// Counts the memory of the content in this share.
    pub(super) fn shared(mut self, share: Share) -> Self {
        self.share = Some(share);
        self
    }

    /// Reserves memory for `octets` octets of content. False if the memory budget or the share of the client network has no
    /// room.
    fn has_room(&mut self, memory: &MemoryBudget, octets: usize) -> bool {
        if octets <= self.charge.octets() {
            return true;
        }
        let held = octets * MemoryBudget::OCTETS_PER_CONTENT_OCTET + self.charge.beside();
        self.share.as_mut().is_none_or(|share| share.grow_to(held))
            && memory.try_extend(&mut self.charge, octets)
    }

    fn keep(&mut self, piece: &[u8]) {
        // A segment that grows beyond its size would double, and half of its memory would be unused.
        if self.octets.len() + piece.len() > Self::SEGMENT_OCTETS && !self.octets.is_empty() {
            let next = Vec::with_capacity(Self::SEGMENT_OCTETS.max(piece.len()));
            self.segments
                .push(std::mem::replace(&mut self.octets, next));
        }
        self.octets.extend_from_slice(piece);
        self.kept += piece.len();
    }

    /// All segments in one piece. Each segment is freed as soon as it is copied, so that memory never holds the whole
    /// content twice.
    fn joined(mut self) -> Vec<u8> {
        if self.segments.is_empty() {
            return self.octets;
        }
        let mut whole = Vec::with_capacity(self.kept);
        self.segments.push(self.octets);
        for segment in self.segments {
            whole.extend_from_slice(&segment);
        }
        whole
    }

    /// The time since DATA or the first BDAT.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn is_too_slow(&self, rate: u64) -> bool {
        let elapsed = self.began.elapsed();
        elapsed > RATE_CHECK_DELAY && self.used < rate.saturating_mul(elapsed.as_secs())
    }

    /// Deadline for the next octets. Fails if the content has arrived too slowly so far.
    pub(super) fn wait(&self, limits: &Limits) -> Result<Deadline, Ending> {
        match self.is_too_slow(limits.data_rate) {
            true => Err(Ending::TimedOut("The message arrives too slowly")),
            false => Ok(self.ends.within(limits.data_idle)),
        }
    }

    pub(super) fn refuse(&mut self, reply: Reply) {
        self.segments = Vec::new();
        self.octets = Vec::new();
        self.kept = 0;
        self.charge = Charge::default();
        self.share = None;
        self.refusal.get_or_insert(reply);
    }

    /// Returns the content. The error is the reply that refuses the message.
    pub(super) fn finish(mut self, refuse_bare: bool) -> Result<Content, Reply> {
        let mut last = Vec::new();
        self.decoder.finish(|piece| last.extend_from_slice(piece));
        match self.refusal.take() {
            Some(reply) => Err(reply),
            None if refuse_bare && self.decoder.saw_bare_line_end() => Err(Reply::bare_line_end()),
            None => {
                self.keep(&last);
                let mut charge = std::mem::take(&mut self.charge);
                if let Some(mut share) = self.share.take() {
                    share.complete();
                    charge.keep(share);
                }
                Ok(Content::charged(self.joined(), charge))
            }
        }
    }
}

impl Session {
    /// Reads content into `intake`: up to the end of data, or exactly `chunk` octets.
    pub(super) async fn receive(
        &mut self,
        intake: &mut Intake,
        chunk: Option<u64>,
    ) -> Result<(), Ending> {
        let limits = self.context.limits.clone();
        let mut left = chunk;
        loop {
            if self.take_input(intake, &mut left) || left == Some(0) {
                return Ok(());
            }
            let wait = intake.wait(&limits)?;
            match wait.run(self.wire.read_content()).await {
                Ok(Ok(0)) => return Err(Ending::Closed),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(Elapsed) => {
                    return Err(Ending::TimedOut("Timed out while receiving the message"));
                }
            }
        }
    }

    /// Gives a message, whose content took `receiving` to arrive, to the pipeline, and returns the reply to it.
    pub(super) async fn hand_over(&self, message: Message, receiving: Duration) -> Reply {
        let message = Message {
            times: Some(Times {
                received: Instant::now(),
                receiving,
                storing: Duration::ZERO,
            }),
            ..message
        };
        let (id, envelope) = (message.id, message.envelope.clone());
        let mode = self.context.settings.mode;
        let reply = self.pipeline.accept(message, mode).await;
        if reply.is_refusal() {
            self.message_refused(id, &envelope, &reply);
        }
        reply
    }

    /// Decodes the buffered input. True if it contains the end of data.
    fn take_input(&mut self, intake: &mut Intake, left: &mut Option<u64>) -> bool {
        let input = self.wire.input();
        let input = match left {
            Some(octets) => {
                &input[..input
                    .len()
                    .min(usize::try_from(*octets).unwrap_or(usize::MAX))]
            }
            None => input,
        };
        // Normalising can double a line end, and nothing else grows. Content beyond the limit is not kept.
        let largest = usize::try_from(intake.limit).unwrap_or(usize::MAX);
        let wanted = (intake.kept + input.len() * 2).min(largest);
        if intake.refusal.is_none() && !intake.has_room(self.pipeline.memory(), wanted) {
            intake.refuse(Reply::no_room());
        }
        let keep = intake.refusal.is_none();
        let mut decoder = intake.decoder.clone();
        let (used, done) = decoder.decode(input, |piece| {
            if keep {
                intake.keep(piece);
            }
        });
        intake.decoder = decoder;
        self.wire.consume(used);
        intake.used += used as u64;
        if let Some(octets) = left {
            *octets -= used as u64;
        }
        if intake.kept as u64 > intake.limit {
            intake.refuse(Reply::too_large(intake.limit));
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// During the first 30 s the rate does not matter. After that, the average since DATA must reach the limit.
    #[tokio::test(start_paused = true)]
    async fn the_average_rate_is_checked_after_half_a_minute() {
        let limits = Limits::default();
        let mut intake = Intake::new(Decoder::data(false), 0, &limits, Charge::default());
        tokio::time::advance(RATE_CHECK_DELAY).await;
        assert!(!intake.is_too_slow(256), "not judged yet");
        tokio::time::advance(std::time::Duration::from_secs(10)).await;
        assert!(intake.is_too_slow(256));
        assert!(!intake.is_too_slow(0), "no limit");
        intake.used = 40 * 256;
        assert!(!intake.is_too_slow(256));
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        assert!(intake.is_too_slow(256));
    }
}
