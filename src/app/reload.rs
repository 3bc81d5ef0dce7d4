//! Reading a configuration beside a running relay.
//!
//! Files may hang: a FIFO that nobody writes to, a mount whose server is gone. Each reading is on a thread of its own and is
//! waited for so long at most, and so is the building of what was read, which may take far longer without anything being
//! wrong. The relay hears signals and its control socket all the while, and ends whatever hangs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinError;

use super::{generation, prepare};
use crate::config::{self, Config, Problems};
use crate::deadline::{Deadline, Elapsed};
use crate::listener::Prepared;
use crate::pipeline::Generation;

/// One reading of the files. Whatever takes longer hangs.
const CONFIG_READ_TIMEOUT: Duration = Duration::from_secs(15);
/// One building of what was read: rules may take their time to compile.
const ENGINE_BUILD_TIMEOUT: Duration = Duration::from_secs(300);
/// The longest reload.
pub const LONGEST_RELOAD: Duration = CONFIG_READ_TIMEOUT.saturating_add(ENGINE_BUILD_TIMEOUT);
/// Readings that were given up and may hang for ever, each on a thread.
const GIVEN_UP: usize = 8;

/// The readings of one relay: one at a time.
#[derive(Debug)]
pub(super) struct Readings {
    turn: Mutex<()>,
    threads: Arc<Semaphore>,
}

impl Default for Readings {
    fn default() -> Self {
        Self {
            turn: Mutex::default(),
            threads: Arc::new(Semaphore::new(GIVEN_UP)),
        }
    }
}

impl Readings {
    /// What `build` makes of what `read` returns, which blocks on `file` and on what that names; else why there is nothing,
    /// in lines.
    ///
    /// Cancel safety: safe; the result of a reading that has begun is thrown away.
    pub(super) async fn read<R: Send + 'static, T: Send + 'static>(
        &self,
        file: Option<PathBuf>,
        read: impl FnOnce(Option<&Path>) -> Result<R, Vec<String>> + Send + 'static,
        build: impl FnOnce(R) -> Result<T, Vec<String>> + Send + 'static,
    ) -> Result<T, Vec<String>> {
        let Ok(_turn) = self.turn.try_lock() else {
            return Err(vec!["another reload is under way".to_owned()]);
        };
        let Ok(thread) = self.threads.clone().try_acquire_owned() else {
            let why =
                format!("{GIVEN_UP} earlier reloads still hang at files: mend these, or restart");
            return Err(vec![why]);
        };
        let shown = file.as_ref().map(|file| file.display().to_string());
        let shown = shown.as_deref().unwrap_or("the configuration");
        let reading = move || (read(file.as_deref()), thread);
        let (read, thread) = step(CONFIG_READ_TIMEOUT, reading).await.map_err(|why| match why {
            Some(error) => vec![format!("the configuration was not read: {error}")],
            None => vec![format!(
                "{shown}, or a file that it names, was not read within {} s: is it a FIFO, or on a mount whose server is gone?",
                CONFIG_READ_TIMEOUT.as_secs(),
            )],
        })?;
        let read = read?;
        let building = move || (build(read), thread);
        let (built, _thread) = step(ENGINE_BUILD_TIMEOUT, building).await.map_err(|why| match why {
            Some(error) => vec![format!("the configuration was not built: {error}")],
            None => vec![format!(
                "{shown} was read, but what it names was not ready within {} s: rules that take too long to compile, or a file that hangs",
                ENGINE_BUILD_TIMEOUT.as_secs(),
            )],
        })?;
        built
    }
}

/// What blocks, on a thread that is given up after so long: then none; or why the thread ended.
async fn step<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Option<JoinError>> {
    let running = tokio::task::spawn_blocking(work);
    match Deadline::after(patience).run(running).await {
        Ok(done) => done.map_err(Some),
        Err(Elapsed) => Err(None),
    }
}

/// What the files of a configuration say.
pub(super) struct Files {
    config: Config,
    listeners: Vec<Prepared>,
}

impl Files {
    /// Blocks.
    pub(super) fn read(path: Option<&Path>) -> Result<Self, Vec<String>> {
        let lines = |problems: Problems| {
            problems
                .to_string()
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let config = config::load(path).map_err(lines)?;
        Ok(Self {
            listeners: prepare(&config).map_err(|error| vec![error.to_string()])?,
            config,
        })
    }
}

/// A configuration with everything built from it that can fail: what is left to do cannot.
pub(super) struct Next {
    pub(super) config: Config,
    pub(super) generation: Generation,
    pub(super) listeners: Vec<Prepared>,
}

impl Next {
    /// Reads the files of engines and next hops, and compiles rules: blocks.
    pub(super) fn build(files: Files, before: &Generation) -> Result<Self, Vec<String>> {
        Ok(Self {
            generation: generation(&files.config, Some(before))?,
            listeners: files.listeners,
            config: files.config,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;

    use futures_util::poll;

    use super::*;

    /// A file that hangs ends its own reading and nothing else: another one does not begin meanwhile, is told so, and may
    /// begin afterwards; but threads are not lost without bound.
    #[tokio::test(start_paused = true)]
    async fn a_reading_that_hangs_is_given_up() {
        let readings = Readings::default();
        let mut held = Vec::new();
        for _ in 0..GIVEN_UP {
            let (release, hangs) = mpsc::sync_channel::<()>(1);
            held.push(release);
            let file = Some("/etc/fifo".into());
            let mut hung = pin!(readings.read(file, move |_| Ok(hangs.recv().is_ok()), Ok));
            assert!(poll!(&mut hung).is_pending());
            let second = readings.read(None, |_| Ok(true), Ok).await;
            assert_eq!(second, Err(vec!["another reload is under way".to_owned()]));
            tokio::time::advance(CONFIG_READ_TIMEOUT).await;
            let given_up = hung.await.expect_err("nothing was read");
            assert!(
                given_up[0].starts_with("/etc/fifo, or a file"),
                "{given_up:?}"
            );
        }
        let bounded = readings.read(None, |_| Ok(true), Ok).await;
        assert!(bounded.expect_err("a bound")[0].contains("still hang"));
        held.pop();
        while readings.threads.available_permits() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(readings.read(None, |_| Ok(true), Ok).await, Ok(true));
    }
    /// Rules that compile for minutes can be reloaded; but not for ever.
    #[tokio::test(start_paused = true)]
    async fn what_was_read_may_take_minutes_to_build() {
        for in_time in [true, false] {
            let readings = Readings::default();
            let (begins, begun) = mpsc::sync_channel::<()>(1);
            let (release, compiles) = mpsc::sync_channel::<()>(1);
            let build = move |rules: &'static str| {
                begins.send(()).expect("the test waits");
                Ok(compiles.recv().map(|()| rules))
            };
            let file = Some("/etc/rules".into());
            let mut reload = pin!(readings.read(file, |_| Ok("rules"), build));
            while begun.try_recv().is_err() {
                assert!(poll!(&mut reload).is_pending());
                tokio::task::yield_now().await;
            }
            assert!(poll!(&mut reload).is_pending());
            let passes = if in_time {
                10 * CONFIG_READ_TIMEOUT
            } else {
                ENGINE_BUILD_TIMEOUT
            };
            tokio::time::advance(passes).await;
            if in_time {
                assert!(poll!(&mut reload).is_pending());
                release.send(()).expect("it compiles");
                assert_eq!(reload.await, Ok(Ok("rules")));
                continue;
            }
            let given_up = reload.await.expect_err("nothing was built");
            assert!(
                given_up[0].starts_with("/etc/rules was read, but"),
                "{given_up:?}"
            );
        }
    }
}
