//! The paths of the two surfaces.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use super::{Act, Control, EngineAct, EngineActed, EngineAsked, Reloaded, gauges, page};
use crate::store::LogTrouble;
use crate::telemetry;

/// Maximum size of a request's body in octets. No request needs a body, so the limit is small.
const BODY_OCTETS_MAX: usize = 1024;

/// The paths of the TCP address, which change nothing: any client that reaches the address may use them.
pub(super) fn read_only<C: Control>(control: Arc<C>) -> Router {
    told().with_state(control)
}

/// The paths of the control socket: those of the TCP address, and those that only the owner of the socket may use.
pub(super) fn control<C: Control>(control: Arc<C>) -> Router {
    told()
        .route("/status", get(status))
        .route("/waits", get(waits))
        .route("/engines", get(engines))
        .route("/config", get(config))
        .route("/shadow", get(shadow))
        .route("/control/shadow", post(change_shadow))
        .route("/control/engine", post(engine))
        .route("/control/notify", post(notify))
        .route("/control/reload", post(reload))
        .route("/control/drain", post(drain))
        .route("/control/act", post(act))
        .route("/control/flush", post(flush))
        .with_state(control)
}

fn told<C: Control>() -> Router<Arc<C>> {
    Router::new()
        .route("/", get(people))
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics::<C>))
        .layer(DefaultBodyLimit::max(BODY_OCTETS_MAX))
}

async fn people<C: Control>(State(control): State<Arc<C>>) -> Response {
    let html = page::render(&control.status().await);
    let headers = [
        // The page needs no scripts and no other servers. The policy also blocks markup from mail, should any reach the page.
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFRESH, "10"),
    ];
    (headers, Html(html)).into_response()
}

async fn ready<C: Control>(State(control): State<Arc<C>>) -> (StatusCode, String) {
    match control.ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn metrics<C: Control>(State(control): State<Arc<C>>) -> Response {
    gauges::set(&control.status().await);
    // Rendering reads files of the kernel, and takes milliseconds: not on a thread that serves mail.
    let page = tokio::task::spawn_blocking(telemetry::metrics::render).await;
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    match page {
        Ok(page) => ([(header::CONTENT_TYPE, kind)], page).into_response(),
        // Only while the runtime ends.
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn status<C: Control>(State(control): State<Arc<C>>) -> impl IntoResponse {
    Json(control.status().await)
}

async fn waits<C: Control>(State(control): State<Arc<C>>) -> impl IntoResponse {
    Json(control.waits())
}

async fn engines<C: Control>(State(control): State<Arc<C>>) -> impl IntoResponse {
    Json(control.engines())
}

async fn engine<C: Control>(
    State(control): State<Arc<C>>,
    Query(asked): Query<EngineAsked>,
) -> Result<Response, (StatusCode, String)> {
    let none = |why: String| (StatusCode::NOT_FOUND, why);
    let (act, answer) = match asked.act {
        EngineAct::Drain => {
            let notes = control.drain_engine(&asked).await.map_err(none)?;
            ("engine-drain", acted(&*control, &asked, notes)?)
        }
        EngineAct::Resume => {
            let notes = control.resume_engine(&asked).await.map_err(none)?;
            ("engine-resume", acted(&*control, &asked, notes)?)
        }
        EngineAct::Test => {
            let tested = control.test_engine(&asked).await.map_err(none)?;
            ("engine-test", Json(tested).into_response())
        }
    };
    let extent = match (asked.act, asked.terms()) {
        (EngineAct::Drain, Ok(terms)) => terms.extent(),
        _ => String::new(),
    };
    let said = [extent.trim_start_matches([' ', ',']), &asked.reason];
    let said: Vec<&str> = said.into_iter().filter(|text| !text.is_empty()).collect();
    let detail = said.join(": ");
    let replica = asked.replica.iter().map(|replica| format!(" {replica}"));
    Act {
        who: asked.who,
        act: act.to_owned(),
        objects: asked.engine + &replica.collect::<String>(),
        done: 1,
        failed: 0,
        detail,
    }
    .tell();
    Ok(answer)
}

/// The state of the engine after an act. A reload may have removed the engine in the same moment.
fn acted<C: Control>(
    control: &C,
    asked: &EngineAsked,
    notes: Vec<String>,
) -> Result<Response, (StatusCode, String)> {
    let mut engines = control.engines().into_iter();
    let health = engines.find(|health| *health.engine == *asked.engine);
    let gone = || {
        (
            StatusCode::NOT_FOUND,
            format!("engine {} is gone", asked.engine),
        )
    };
    let engine = health.ok_or_else(gone)?;
    Ok(Json(EngineActed { engine, notes }).into_response())
}

/// A request for a test of the ways to tell people of trouble.
#[derive(Debug, Deserialize)]
struct NotifyAsked {
    /// The way's name; none for all.
    #[serde(default)]
    way: Option<String>,
    #[serde(default)]
    who: String,
}

async fn notify<C: Control>(
    State(control): State<Arc<C>>,
    Query(asked): Query<NotifyAsked>,
) -> Result<Response, (StatusCode, String)> {
    let tested = control.test_notify(asked.way.as_deref()).await;
    let tested = tested.map_err(|why| (StatusCode::NOT_FOUND, why))?;
    let failed = tested.iter().filter(|one| one.wrong.is_some()).count();
    let ways: Vec<&str> = tested.iter().map(|one| &*one.way).collect();
    Act {
        who: asked.who,
        act: "notify-test".to_owned(),
        objects: ways.join(", "),
        done: (ways.len() - failed) as u64,
        failed: failed as u64,
        detail: String::new(),
    }
    .tell();
    Ok(Json(tested).into_response())
}

/// The person who sends a request.
#[derive(Debug, Deserialize)]
struct Person {
    #[serde(default)]
    who: String,
}

impl Person {
    /// Logs an act of this person on the relay itself.
    fn tell(self, act: &str, is_done: bool) {
        Act {
            who: self.who,
            act: act.to_owned(),
            objects: "relay".to_owned(),
            done: is_done.into(),
            failed: (!is_done).into(),
            detail: String::new(),
        }
        .tell();
    }
}

async fn config<C: Control>(State(control): State<Arc<C>>) -> impl IntoResponse {
    Json(control.config())
}

async fn shadow<C: Control>(State(control): State<Arc<C>>) -> impl IntoResponse {
    Json(control.shadow())
}

/// The file that a person names: that of a shadow, or the one whose configuration a reload is to put in force.
#[derive(Debug, Deserialize)]
struct NamedFile {
    #[serde(default)]
    file: Option<PathBuf>,
}

async fn change_shadow<C: Control>(
    State(control): State<Arc<C>>,
    Query(person): Query<Person>,
    Query(wanted): Query<NamedFile>,
) -> Response {
    let Some(file) = wanted.file else {
        let ended = control.end_shadow();
        person.tell("shadow-off", ended.is_some());
        return Json(ended).into_response();
    };
    let begun = control.begin_shadow(file).await;
    person.tell("shadow", begun.is_ok());
    match begun {
        Ok(changes) => Json(Reloaded::Changes(changes)).into_response(),
        Err(problems) => {
            let refused = Json(Reloaded::Refused { problems });
            (StatusCode::UNPROCESSABLE_ENTITY, refused).into_response()
        }
    }
}

async fn reload<C: Control>(
    State(control): State<Arc<C>>,
    Query(person): Query<Person>,
    Query(named): Query<NamedFile>,
) -> (StatusCode, Json<Reloaded>) {
    let reloaded = control.reload(named.file).await;
    person.tell("reload", reloaded.is_ok());
    match reloaded {
        Ok(changes) => (StatusCode::OK, Json(Reloaded::Changes(changes))),
        Err(problems) => (
            StatusCode::UNPROCESSABLE_ENTITY,
            Json(Reloaded::Refused { problems }),
        ),
    }
}

async fn drain<C: Control>(
    State(control): State<Arc<C>>,
    Query(person): Query<Person>,
) -> StatusCode {
    person.tell("drain", true);
    control.drain();
    StatusCode::ACCEPTED
}

/// The relay need not check what the owner of its socket says: the owner could change the store as well.
async fn act<C: Control>(State(control): State<Arc<C>>, Query(act): Query<Act>) -> StatusCode {
    act.tell();
    control.wake();
    StatusCode::ACCEPTED
}

async fn flush<C: Control>(State(control): State<Arc<C>>) -> (StatusCode, Json<Vec<LogTrouble>>) {
    (StatusCode::ACCEPTED, Json(control.flush().await))
}
