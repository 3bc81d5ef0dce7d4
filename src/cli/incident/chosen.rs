//! The incident that a person means by the beginning of an id: a whole one, or a single event.

use super::file;
use crate::cli::exit::CliError;
use crate::cli::id::IdPrefix;
use crate::config::Config;
use crate::incident::{Incident, StoryState};
use crate::store::incidents::{self, Filter};

/// What an id names.
#[expect(clippy::large_enum_variant, reason = "there is only one at a time")]
pub(super) enum Chosen {
    /// A story, with the incidents that the log has of it, the oldest first.
    Story(StoryState, Vec<Incident>),
    /// A single incident.
    Event(Incident),
}

/// Finds what `id` names. If it names one story and single events of it too, the story is meant, unless `only_events`.
pub(super) async fn choose(
    id: &IdPrefix,
    only_events: bool,
    config: &Config,
) -> Result<Chosen, CliError> {
    let log = file(config);
    let is_named = |id_of: ulid::Ulid| id_of.to_string().starts_with(id.as_str());
    let mut stories = match only_events {
        true => Vec::new(),
        false => incidents::stories(&log).await?,
    };
    stories.retain(|state| is_named(state.story.id));
    if stories.len() == 1
        && let Some(state) = stories.pop()
    {
        let told = events(&state, config).await?;
        return Ok(Chosen::Story(state, told));
    }
    let found = incidents::with_id_prefix(&log, id.as_str().to_owned()).await?;
    if found.is_empty() && stories.is_empty() {
        let (id, days) = (id.as_str(), config.store.incidents.as_secs() / 86_400);
        return Err(CliError::NotFound(format!(
            "there is no incident {id}: the id is wrong, or the incident is more than {days} days old (store.incidents)"
        )));
    }
    let line = |incident: &Incident| format!("{}  {}", incident.kind.as_str(), incident.summary);
    let mut known: Vec<_> = found.iter().map(|i| (i.id, line(i))).collect();
    for state in &stories {
        if known.iter().all(|(id, _)| *id != state.story.id) {
            let story = &state.story;
            known.push((
                story.id,
                format!("{}  {}", story.kind.as_str(), story.title),
            ));
        }
    }
    let id = id.only(known, "incident")?;
    match found.into_iter().find(|incident| incident.id == id) {
        Some(incident) => Ok(Chosen::Event(incident)),
        None => Err(CliError::Internal(format!("incident {id} is gone"))),
    }
}

/// The story that `id` names: also the story of a single event.
pub(super) async fn choose_story(
    id: &IdPrefix,
    config: &Config,
) -> Result<(StoryState, Vec<Incident>), CliError> {
    let event = match choose(id, false, config).await? {
        Chosen::Story(state, told) => return Ok((state, told)),
        Chosen::Event(event) => event,
    };
    let stories = incidents::stories(&file(config)).await?;
    let is_its = |state: &StoryState| Some(state.story.id) == event.story;
    match stories.into_iter().find(is_its) {
        Some(state) => {
            let told = events(&state, config).await?;
            Ok((state, told))
        }
        None => Ok((StoryState::of_one(&event), vec![event])),
    }
}

/// The incidents of a story, the oldest first.
async fn events(state: &StoryState, config: &Config) -> Result<Vec<Incident>, CliError> {
    let filter = Filter {
        since: Some(state.story.began),
        story: Some(state.story.id),
        ..Filter::default()
    };
    let mut told = incidents::search(&file(config), filter).await?;
    told.reverse();
    Ok(told)
}
