//! The scenes of the demo in their order, and the check of each result.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::scene::{self, End, Scene};
use super::show;
use super::stage::{FRAGILE_ENGINE, Sent, Stage, WAIT_MAX};
use crate::cli::exit::CliError;
use crate::cli::terminal::Terminal;
use crate::deadline::Deadline;
use crate::message::MessageId;
use crate::store::{Filter, Lane, Record};
use crate::verdict::{Decision, Report};

/// The result of one message.
#[derive(Debug, Serialize)]
pub(super) struct Act {
    /// The scene's name.
    pub(super) name: &'static str,
    /// The scene's headline.
    pub(super) headline: &'static str,
    /// The relay's id for the message.
    pub(super) id: Option<MessageId>,
    /// The reply to the sender; none if the scene sends no message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reply: Option<String>,
    /// How long the sender waited for the reply, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) answered_in_ms: Option<u64>,
    /// How much earlier the reply came than that of the message on which the engine hung, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) overtook_by_ms: Option<u64>,
    /// Where the message should be.
    pub(super) expected: End,
    /// Where the message is.
    pub(super) end: End,
    /// Whether all is as expected: the place, the rule, the answer of the fragile engine, the order.
    pub(super) as_expected: bool,
    /// The last decision.
    pub(super) decision: Option<Decision>,
    /// The report of each engine.
    pub(super) reports: Vec<Report>,
}

/// Plays all scenes in their order, and shows each result as soon as it is known. Returns one act for each scene.
pub(super) async fn play(stage: &Stage, terminal: &mut Terminal<'_>) -> Result<Vec<Act>, CliError> {
    let mut acts = Vec::new();
    show::introduction(stage, terminal)?;
    for scene in [scene::clean(), scene::eicar(), scene::blocked_attachment()] {
        show::headline(acts.len(), &scene, terminal)?;
        let sent = stage.send(scene.content.clone()).await;
        acts.push(act(stage, &scene, &sent).await?);
        show::last(&acts, terminal)?;
    }
    let waits = while_the_engine_hangs(stage, &mut acts, terminal).await?;
    for lane in [Lane::Held, Lane::Scan] {
        let records = stored(stage, lane).await?;
        show::stored(lane, &records, stage.waits(), terminal)?;
    }
    let recovery = scene::recovery();
    show::headline(acts.len(), &recovery, terminal)?;
    if let Some(id) = waits {
        stage.engine().restart();
        stage.store().make_due(id, Timestamp::now()).await?;
        stage.wake();
    }
    acts.push(looked_up(stage, &recovery, waits, false).await?);
    show::last(&acts, terminal)?;
    Ok(acts)
}

/// Sends two messages at once, one of which makes the engine hang. Returns the id of that message, which stays in the relay.
async fn while_the_engine_hangs(
    stage: &Stage,
    acts: &mut Vec<Act>,
    terminal: &mut Terminal<'_>,
) -> Result<Option<MessageId>, CliError> {
    let (hanging, clean) = (scene::hung_engine(), scene::meanwhile());
    show::headline(acts.len(), &hanging, terminal)?;
    let second = async {
        // If the engine does not hang, the clean message overtakes nothing, and the result reports that.
        let _ = Deadline::after(WAIT_MAX).run(stage.engine().hangs()).await;
        stage.send(clean.content.clone()).await
    };
    let (slow, fast) = tokio::join!(stage.send(hanging.content.clone()), second);
    acts.push(act(stage, &hanging, &slow).await?);
    show::last(acts, terminal)?;

    show::headline(acts.len(), &clean, terminal)?;
    let mut overtaking = act(stage, &clean, &fast).await?;
    let ahead = slow.at.checked_duration_since(fast.at);
    overtaking.overtook_by_ms = ahead.filter(|by| !by.is_zero()).and_then(millis);
    overtaking.as_expected &= overtaking.overtook_by_ms.is_some();
    acts.push(overtaking);
    show::last(acts, terminal)?;
    Ok(slow.id)
}

async fn stored(stage: &Stage, lane: Lane) -> Result<Vec<Record>, CliError> {
    let filter = Filter {
        lanes: vec![lane],
        limit: 10,
        ..Filter::default()
    };
    Ok(stage.store().search(filter).await?)
}

/// The result of a message that was `sent`.
async fn act(stage: &Stage, scene: &Scene, sent: &Sent) -> Result<Act, CliError> {
    let act = looked_up(stage, scene, sent.id, sent.refused).await?;
    Ok(Act {
        reply: Some(sent.reply.clone()),
        answered_in_ms: millis(sent.took),
        ..act
    })
}

/// Looks up where a message is, and the relay's decision and reports about it.
async fn looked_up(
    stage: &Stage,
    scene: &Scene,
    id: Option<MessageId>,
    refused: bool,
) -> Result<Act, CliError> {
    let (mut last, mut lane) = (None, None);
    if let Some(id) = id {
        last = stage.last_event(id, scene.end.event()).await?;
        lane = stage.store().get(id).await?.map(|record| record.lane);
    }
    let copies = stage.mail_server().copies(scene.content.as_bytes());
    let end = match (copies, lane, refused) {
        (1, None, false) => End::Delivered,
        (0, Some(Lane::Held), false) => End::Held,
        (0, Some(Lane::Scan), false) => End::Deferred,
        (0, None, true) => End::Rejected,
        _ => End::Unknown,
    };
    let (decision, reports) = last
        .map(|last| (last.decision, last.reports))
        .unwrap_or_default();
    let rule = decision.as_ref().map(|decision| decision.rule.as_str());
    let fragile = reports
        .iter()
        .find(|report| &*report.engine == FRAGILE_ENGINE);
    let engine = fragile.is_some_and(|report| report.missing() == scene.missing);
    Ok(Act {
        name: scene.name,
        headline: scene.headline,
        id,
        reply: None,
        answered_in_ms: None,
        overtook_by_ms: None,
        expected: scene.end,
        end,
        as_expected: end == scene.end && rule == Some(scene.rule) && engine,
        decision,
        reports,
    })
}

fn millis(duration: Duration) -> Option<u64> {
    u64::try_from(duration.as_millis()).ok()
}
