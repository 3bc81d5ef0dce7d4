//! Reads a configuration beside a running relay.
//!
//! A read may hang: at a FIFO without a writer, or on a mount whose server does not answer. So each read runs on a thread of
//! its own, and the relay gives up the wait after a timeout. The build of the parts from the files has its own timeout, which
//! is much longer, because rules may take minutes to compile. Meanwhile the relay handles signals and its control socket, and
//! can end in every case.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinError;

use super::parts::{generation, notify_ways, prepare};
use super::{Core, metric_names};
use crate::config::{self, Config, Problems};
use crate::deadline::{Deadline, Elapsed};
use crate::listener::Prepared;
use crate::notify;
use crate::pipeline::Generation;
use crate::telemetry;

/// Time for one read of the files: 15 s. A read that works takes milliseconds, and less than a second of a file of the largest
/// size, so a longer one hangs.
const CONFIG_READ_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for one build of the parts from the files: 5 minutes, because large rules take minutes to compile.
const ENGINE_BUILD_TIMEOUT: Duration = Duration::from_secs(300);
/// Maximum duration of a reload: one read and one build. `spillway reload` waits this long.
pub const RELOAD_DURATION_MAX: Duration = CONFIG_READ_TIMEOUT.saturating_add(ENGINE_BUILD_TIMEOUT);
/// Maximum number of reads that were given up and still hang. Each holds a thread, and threads must not be lost without bound.
const HUNG_READS_MAX: usize = 8;

/// The reads of one relay. Only one runs at a time.
#[derive(Debug)]
pub(super) struct Readings {
    turn: Mutex<()>,
    threads: Arc<Semaphore>,
}

impl Default for Readings {
    fn default() -> Self {
        Self {
            turn: Mutex::default(),
            threads: Arc::new(Semaphore::new(HUNG_READS_MAX)),
        }
    }
}

impl Readings {
    /// Calls `read`, which blocks on `file` and on the files that it names, and then `build` with the result. Returns the
    /// result of `build`, or the problems, one on each line.
    ///
    /// Cancel safety: safe. The result of a read that has begun is dropped.
    pub(super) async fn read<R: Send + 'static, T: Send + 'static>(
        &self,
        file: Option<PathBuf>,
        read: impl FnOnce(Option<&Path>) -> Result<R, Vec<String>> + Send + 'static,
        build: impl FnOnce(R) -> Result<T, Vec<String>> + Send + 'static,
    ) -> Result<T, Vec<String>> {
        let Ok(_turn) = self.turn.try_lock() else {
            return Err(vec![
                "another reload is under way; try again when it has ended".to_owned(),
            ]);
        };
        let Ok(thread) = self.threads.clone().try_acquire_owned() else {
            let why = format!(
                "{HUNG_READS_MAX} earlier reloads still hang at files: repair the files or their mounts, or restart the relay"
            );
            return Err(vec![why]);
        };
        let shown = file.as_ref().map(|file| file.display().to_string());
        let shown = shown.as_deref().unwrap_or("the configuration");
        let reading = move || (read(file.as_deref()), thread);
        let (read, thread) = step(CONFIG_READ_TIMEOUT, reading).await.map_err(|why| match why {
            Some(error) => vec![format!("the configuration was not read: {error}")],
            None => vec![format!(
                "{shown}, or a file that it names, was not read within {} s: is it a FIFO, or on a mount whose server does \
                 not answer? Correct the path or repair the mount, and reload again",
                CONFIG_READ_TIMEOUT.as_secs(),
            )],
        })?;
        let read = read?;
        let building = move || (build(read), thread);
        let (built, _thread) = step(ENGINE_BUILD_TIMEOUT, building).await.map_err(|why| match why {
            Some(error) => vec![format!("the configuration was not built: {error}")],
            None => vec![format!(
                "{shown} was read, but a file that it names was not ready within {} s: rules take too long to compile, or \
                 the file hangs; simplify the rules or repair the mount, and reload again",
                ENGINE_BUILD_TIMEOUT.as_secs(),
            )],
        })?;
        built
    }
}

/// Runs `work`, which may block, on a thread. The error is `None` if `work` takes longer than `patience`, or the reason why the
/// thread ended without a result.
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

/// Reads a configuration, or all its problems. Blocks.
pub(super) fn read(path: Option<&Path>) -> Result<Config, Vec<String>> {
    let lines = |problems: Problems| {
        let text = problems.to_string();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    config::load(path).map_err(lines)
}

/// Refuses a reload of which the person expects the file `named`, while the relay reads another file. Blocks.
pub(super) fn refuse_another(
    reads: Option<&Path>,
    named: Option<&Path>,
) -> Result<(), Vec<String>> {
    let Some(named) = named else {
        return Ok(());
    };
    let shown = named.display();
    let Some(reads) = reads else {
        return Err(vec![format!(
            "the relay runs with the built-in defaults and reads no file, and you named {shown}: start it again with --config \
             {shown}"
        )]);
    };
    if is_same_file(reads, named) {
        return Ok(());
    }
    Err(vec![format!(
        "the relay reads {}, and you named {shown}: copy it there first, then `spillway reload` without --config; `spillway \
         check-config --config {shown} --diff` says what it changes",
        reads.display()
    )])
}

/// Whether two paths lead to one file, also over symbolic links. Blocks.
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    // A path that cannot be followed is compared as it is.
    let [one, other] = [one, other].map(|path| {
        let followed = path.canonicalize().or_else(|_| std::path::absolute(path));
        followed.unwrap_or_else(|_| path.to_owned())
    });
    one == other
}

/// The contents of the files of a configuration.
pub(super) struct Files {
    config: Config,
    listeners: Vec<Prepared>,
    ways: Vec<notify::Prepared>,
}

impl Files {
    /// Reads the files. Blocks.
    pub(super) fn read(path: Option<&Path>) -> Result<Self, Vec<String>> {
        let config = read(path)?;
        Ok(Self {
            listeners: prepare(&config).map_err(|error| vec![error.to_string()])?,
            ways: notify_ways(&config)?,
            config,
        })
    }
}

/// A configuration, and all parts built from it whose build can fail. The steps that remain cannot fail.
pub(super) struct Next {
    pub(super) config: Config,
    pub(super) generation: Generation,
    pub(super) listeners: Vec<Prepared>,
    pub(super) ways: Vec<notify::Prepared>,
    /// The changes from the configuration in force.
    difference: Vec<String>,
}

impl Next {
    /// Compares with the configuration in force, reads the files of engines and next hops, and compiles rules. Blocks. The error
    /// is all problems, or the changes that need a restart.
    pub(super) fn build(
        files: Files,
        (before, in_force): (&Generation, &Config),
    ) -> Result<Self, Vec<String>> {
        let restart = config::settings_that_need_restart(in_force, &files.config);
        if !restart.is_empty() {
            let needs = |line: &String| format!("{line} (needs a restart)");
            return Err(restart.iter().map(needs).collect());
        }
        Ok(Self {
            difference: config::diff(in_force, &files.config),
            generation: generation(&files.config, Some(before))?,
            listeners: files.listeners,
            ways: files.ways,
            config: files.config,
        })
    }
}

impl Core {
    /// Puts a configuration and its parts in force, and returns the changes. Does nothing that takes longer with a larger
    /// configuration: it runs beside the mail.
    pub(super) fn apply(&self, next: Next) -> Vec<String> {
        let mut config = self.lock();
        next.generation.scanner.watch();
        telemetry::metrics::register(&metric_names(&next.config), &metric_names(&config));
        let hostname = &next.config.relay.hostname;
        self.notifier
            .apply(next.ways, hostname, &next.generation.delivery);
        self.pipeline
            .replace(next.generation, next.config.intercept.clone());
        for (listener, prepared) in self.listeners.iter().zip(next.listeners) {
            listener.apply(prepared);
        }
        self.admission.apply(Arc::new(next.config.limits.clone()));
        *config = Arc::new(next.config);
        next.difference
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;

    use futures_util::poll;

    use super::*;

    /// A person who names another file than the relay reads would take "reloaded" for that file: nothing is read then, and the
    /// answer says what to do. Another path to the same file is no other file.
    #[test]
    fn a_reload_of_another_file_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let [reads, new, link] = ["a.toml", "b.toml", "link"].map(|name| folder.path().join(name));
        for file in [&reads, &new] {
            std::fs::write(file, "").expect("writes");
        }
        std::os::unix::fs::symlink(&reads, &link).expect("links");
        let roundabout = folder
            .path()
            .join("../")
            .join(folder.path().file_name().expect("a name"))
            .join("a.toml");
        for same in [None, Some(&reads), Some(&link), Some(&roundabout)] {
            let same = same.map(|path| path.as_path());
            assert_eq!(refuse_another(Some(&reads), same), Ok(()), "{same:?}");
        }
        let refused = refuse_another(Some(&reads), Some(&new)).expect_err("another file");
        let (from, to) = (new.display(), reads.display());
        let what = format!("the relay reads {to}, and you named {from}: copy it there first");
        assert!(refused[0].starts_with(&what), "{refused:?}");
        let refused = refuse_another(None, Some(&new)).expect_err("no file");
        assert!(refused[0].contains("reads no file"), "{refused:?}");
        std::fs::remove_file(&reads).expect("removes");
        assert_eq!(
            refuse_another(Some(&reads), Some(&reads)),
            Ok(()),
            "the read says that it is gone"
        );
    }

    /// A file that hangs ends only its own read. Meanwhile another reload is refused with the reason, and afterwards it may
    /// begin. The number of threads that hang is bounded.
    #[tokio::test(start_paused = true)]
    async fn a_reading_that_hangs_is_given_up() {
        let readings = Readings::default();
        let mut held = Vec::new();
        for _ in 0..HUNG_READS_MAX {
            let (release, hangs) = mpsc::sync_channel::<()>(1);
            held.push(release);
            let file = Some("/etc/fifo".into());
            let mut hung = pin!(readings.read(file, move |_| Ok(hangs.recv().is_ok()), Ok));
            assert!(poll!(&mut hung).is_pending());
            let second = readings.read(None, |_| Ok(true), Ok).await;
            assert_eq!(
                second,
                Err(vec![
                    "another reload is under way; try again when it has ended".to_owned()
                ])
            );
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
    /// A reload may compile rules for minutes, but not without bound.
    #[tokio::test(start_paused = true)]
    async fn a_build_may_take_minutes() {
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
