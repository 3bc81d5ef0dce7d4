//! Reading a configuration beside a running relay.
//!
//! Files may hang: a FIFO that nobody writes to, a mount whose server is gone. Each reading is on a thread of its own and is
//! waited for so long at most; the relay hears signals and its control socket all the while, and ends whatever hangs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};

use super::{generation, prepare};
use crate::config::{self, Config, Problems};
use crate::deadline::{Deadline, Elapsed};
use crate::listener::Prepared;
use crate::pipeline::Generation;

/// One reading, the compiling of rules included: less than a command waits for its answer.
const PATIENCE: Duration = Duration::from_secs(15);
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
    /// What `read` returns, which blocks on `file` and on what that names; else why there is nothing, in lines.
    ///
    /// Cancel safety: safe; the result of a reading that has begun is thrown away.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        file: Option<PathBuf>,
        read: impl FnOnce(Option<&Path>) -> Result<T, Vec<String>> + Send + 'static,
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
        let reading = tokio::task::spawn_blocking(move || {
            let read = read(file.as_deref());
            drop(thread);
            read
        });
        match Deadline::after(PATIENCE).run(reading).await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => Err(vec![format!("the configuration was not read: {error}")]),
            Err(Elapsed) => Err(vec![format!(
                "{}, or a file that it names, was not read within {} s: is it a FIFO, or on a mount whose server is gone?",
                shown.as_deref().unwrap_or("the configuration"),
                PATIENCE.as_secs(),
            )]),
        }
    }
}

/// A configuration with everything built from it that can fail: what is left to do cannot.
pub(super) struct Next {
    pub(super) config: Config,
    pub(super) generation: Generation,
    pub(super) listeners: Vec<Prepared>,
}

impl Next {
    /// Reads files and compiles rules: blocks.
    pub(super) fn read(path: Option<&Path>, before: &Generation) -> Result<Self, Vec<String>> {
        let lines = |problems: Problems| {
            problems
                .to_string()
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let config = config::load(path).map_err(lines)?;
        Ok(Self {
            generation: generation(&config, Some(before))?,
            listeners: prepare(&config).map_err(|error| vec![error.to_string()])?,
            config,
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
            let (release, hangs) = mpsc::channel::<()>();
            held.push(release);
            let file = Some("/etc/fifo".into());
            let mut hung = pin!(readings.read(file, move |_| Ok(hangs.recv().is_ok())));
            assert!(poll!(&mut hung).is_pending());
            let second = readings.read(None, |_| Ok(true)).await;
            assert_eq!(second, Err(vec!["another reload is under way".to_owned()]));
            tokio::time::advance(PATIENCE).await;
            let given_up = hung.await.expect_err("nothing was read");
            assert!(
                given_up[0].starts_with("/etc/fifo, or a file"),
                "{given_up:?}"
            );
        }
        let bounded = readings.read(None, |_| Ok(true)).await;
        assert!(bounded.expect_err("a bound")[0].contains("still hang"));
        held.pop();
        while readings.threads.available_permits() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(readings.read(None, |_| Ok(true)).await, Ok(true));
    }
}
