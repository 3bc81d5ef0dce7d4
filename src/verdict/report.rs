//! The whole answer of one engine about one message.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Answer, EngineClass, Finding, Reason, millis};
use crate::message::{MessageId, RequestedEdit};

/// The whole answer of one engine about one message. A message has exactly one report per configured engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The engine's name in the configuration.
    pub engine: Arc<str>,
    /// The class of the engine.
    pub class: EngineClass,
    /// The answer.
    pub answer: Answer,
    /// The replica that answered last, where the engine has several.
    pub replica: Option<String>,
    /// Version of the signatures, if the engine reports one.
    pub signatures: Option<String>,
    /// Number of calls, the first included; 0 if no call was made.
    pub attempts: u32,
    /// The source of the answer, if the engine was not asked about this message now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reused: Option<Reused>,
    /// For an engine that was drained while mail passes without it (`engine drain --pass`): the reason, and the person. Coverage
    /// then does not need the engine's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed: Option<Arc<str>>,
    /// The edits that the engine requests, in its order, each with the result. Records of earlier versions call them `wishes`.
    #[serde(default, alias = "wishes", skip_serializing_if = "Vec::is_empty")]
    pub requested_edits: Vec<RequestedEdit>,
    /// Time from the start of the scan to this report, including the wait for a slot.
    #[serde(with = "millis")]
    pub elapsed: Duration,
    /// The part of `elapsed` before the first call to the engine: the wait for a slot. Zero if no call was made.
    #[serde(default, with = "millis", skip_serializing_if = "millis::is_zero")]
    pub waited: Duration,
}

/// An answer that comes from another scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reused {
    /// The message that was really scanned. This is the same message if the answer came after its caller had left.
    pub from: MessageId,
    /// What the two messages have in common.
    pub same: Same,
}

/// How a message equals the message that was scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Same {
    /// Every octet that the engine gets is equal, so the engine's answer would be the same.
    Octets,
    /// The content is equal, but not the header ([`Identity`](crate::message::Identity)). The engine might answer differently
    /// about this message, so the answer is a *stand-in*: it is used while the engine is short of slots, and the engine scans
    /// this message later.
    Content,
}

impl Report {
    /// A report without a call: the engine was not asked about this message, and no time was spent on it.
    pub fn unasked(engine: Arc<str>, class: EngineClass, answer: Answer) -> Self {
        Self {
            engine,
            class,
            answer,
            replica: None,
            signatures: None,
            attempts: 0,
            reused: None,
            passed: None,
            requested_edits: Vec::new(),
            elapsed: Duration::ZERO,
            waited: Duration::ZERO,
        }
    }

    /// The message whose answer stands in, if the engine has not seen every octet of this message.
    pub fn stand_in(&self) -> Option<MessageId> {
        let reused = self.reused.filter(|reused| reused.same == Same::Content)?;
        Some(reused.from)
    }

    /// Whether the engine scanned the message and went away meanwhile, or its answer was awaited no more because the engine
    /// failed, or because an interceptor began to hold such mail. A timeout is counted by itself.
    pub fn hung(&self) -> bool {
        let is_cut_off = matches!(
            self.missing(),
            Some(Reason::Disconnected | Reason::BreakerOpen | Reason::Suspect)
        );
        is_cut_off && self.attempts > 0
    }

    /// The findings of a complete or an incomplete scan.
    pub fn findings(&self) -> &[Finding] {
        match &self.answer {
            Answer::Answered(findings) | Answer::None { findings, .. } => findings,
        }
    }

    /// The details of a missing answer.
    pub fn detail(&self) -> Option<&str> {
        match &self.answer {
            Answer::Answered(_) => None,
            Answer::None { detail, .. } => Some(detail),
        }
    }

    /// The reason of a missing answer.
    pub fn missing(&self) -> Option<Reason> {
        match &self.answer {
            Answer::Answered(_) => None,
            Answer::None { reason, .. } => Some(*reason),
        }
    }
}

/// The engines with a stand-in, in order, each with the message that was really scanned.
pub fn stand_ins(reports: &[Report]) -> impl Iterator<Item = (&Arc<str>, MessageId)> {
    reports
        .iter()
        .filter_map(|report| Some((&report.engine, report.stand_in()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The history stays small: a wait that would be written as 0 ms is left out, and is zero when it is read again. Older rows
    /// have such a wait.
    #[test]
    fn a_wait_of_no_millisecond_is_not_written() {
        let report = |waited| Report {
            engine: "clamd".into(),
            class: EngineClass::Av,
            answer: Answer::Answered(Vec::new()),
            replica: None,
            signatures: None,
            attempts: 1,
            reused: None,
            passed: None,
            requested_edits: Vec::new(),
            elapsed: Duration::from_millis(7),
            waited: Duration::from_micros(waited),
        };
        let written = |waited| serde_json::to_value(report(waited)).expect("JSON");
        assert_eq!(written(1500)["waited"], 1);
        let mut none = written(999);
        assert!(none.get("waited").is_none(), "{none}");
        for _ in 0..2 {
            let read: Report = serde_json::from_value(none.clone()).expect("a report");
            assert_eq!(read.waited, Duration::ZERO);
            none["waited"] = 0.into();
        }
    }
}
