//! The users who may relay after AUTH: a file of `name:$argon2id$…` lines, as written by `spillway user add`.
//!
//! Checking a password costs memory and time on purpose (argon2). So that this cannot be turned against the relay, few
//! are checked at once, on threads that may block, and who waits too long gets a transient error. An unknown name costs
//! what a known one costs: names cannot be found out by timing. The file is looked at again whenever it has changed, so
//! a removed user is out at once. A file that cannot be looked at, because its mount hangs, leaves the users as they were, and
//! delays nobody for long.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use argon2::password_hash::rand_core::OsRng;
use argon2::password_hash::{PasswordHashString, SaltString};
use argon2::{Argon2, PasswordHash, PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;

use crate::deadline::Deadline;
use crate::file;

/// Octets of a users file at most: some hundred thousand users.
const LARGEST_FILE: u64 = 16 << 20;
/// Octets of a password at most.
const LONGEST_PASSWORD: usize = 1024;
/// Passwords checked at once in the whole process; each takes 19 MiB.
const PASSWORD_CHECKS_MAX: usize = 4;
/// Wait for one's turn to be checked.
const PASSWORD_CHECK_WAIT: Duration = Duration::from_secs(10);
/// Wait for a look at a file; then the users are as before.
const USER_FILE_READ_TIMEOUT: Duration = Duration::from_secs(2);
/// The hash that stands for users we do not have: the parameters of [`add`], of no password.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$c3BpbGx3YXktbm9ib2R5$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

static TURNS: Semaphore = Semaphore::const_new(PASSWORD_CHECKS_MAX);

/// The users of one file.
#[derive(Debug)]
pub struct Users {
    path: PathBuf,
    /// Nothing is read while it is held.
    loaded: Arc<Mutex<Loaded>>,
    /// One looks at a time: one that hangs is one thread.
    looking: Arc<Semaphore>,
    /// The last look took too long.
    hangs: AtomicBool,
}

/// What was read, and of which file it was true.
#[derive(Debug)]
struct Loaded {
    stamp: Stamp,
    users: Arc<BTreeMap<String, PasswordHashString>>,
}

/// Differs whenever the file was written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

/// Why users cannot be read, checked or written.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The file cannot be read or written.
    #[error("{}: {}", .0.display(), .1)]
    File(PathBuf, #[source] std::io::Error),
    /// The file is too large to be one.
    #[error("{}: larger than 16 MiB: not a users file", .0.display())]
    TooLarge(PathBuf),
    /// A line is not `name:hash`.
    #[error("{} line {}: {}", .0.display(), .1, .2)]
    Line(PathBuf, usize, &'static str),
    /// The name cannot be written to the file.
    #[error("{0:?} cannot be a user's name: {1}")]
    Name(String, &'static str),
    /// The password cannot be used.
    #[error("the password {0}")]
    Password(&'static str),
    /// Too many passwords are being checked.
    #[error("too many passwords are being checked")]
    Busy,
    /// The check itself failed.
    #[error("the password was not checked: {0}")]
    Check(String),
}

impl Users {
    /// Reads a users file. Blocks on the disk.
    pub fn load(path: &Path) -> Result<Self, UsersError> {
        let (loaded, _) = read(path)?;
        Ok(Self {
            path: path.to_owned(),
            loaded: Arc::new(Mutex::new(loaded)),
            looking: Arc::new(Semaphore::new(1)),
            hangs: AtomicBool::new(false),
        })
    }

    /// Whether this is the user's password. An error says nothing about the password: try again later.
    ///
    /// Cancel safety: safe; a check that has begun ends by itself.
    pub async fn verify(&self, name: &str, password: &str) -> Result<bool, UsersError> {
        if password.len() > LONGEST_PASSWORD {
            return Ok(false);
        }
        let turn = Deadline::after(PASSWORD_CHECK_WAIT)
            .run(TURNS.acquire())
            .await;
        let Ok(Ok(turn)) = turn else {
            return Err(UsersError::Busy);
        };
        let users = self.current().await;
        let (name, password) = (name.to_owned(), password.to_owned());
        tokio::task::spawn_blocking(move || {
            // Kept until the work is done, even if nobody waits for it any more.
            let _turn = turn;
            matches(&users, &name, &password)
        })
        .await
        .map_err(|error| UsersError::Check(error.to_string()))
    }

    /// What the file says now; what it last said if it cannot be read, or not in time.
    async fn current(&self) -> Arc<BTreeMap<String, PasswordHashString>> {
        let still_hangs =
            self.hangs.load(Ordering::Relaxed) && self.looking.available_permits() == 0;
        let patience = if still_hangs {
            Duration::ZERO
        } else {
            USER_FILE_READ_TIMEOUT
        };
        let looked = async {
            let place = self.looking.clone().acquire_owned().await.ok()?;
            let (path, loaded) = (self.path.clone(), self.loaded.clone());
            let task = tokio::task::spawn_blocking(move || {
                // Kept until the work is done, even if nobody waits for it any more.
                let _place = place;
                look(&path, &loaded);
            });
            task.await.ok()
        };
        let is_late = Deadline::after(patience).run(looked).await.is_err();
        if is_late && !self.hangs.swap(is_late, Ordering::Relaxed) {
            let path = self.path.display();
            tracing::error!(%path, "users file not looked at in time; the users are as before: is its mount gone?");
        }
        if !is_late {
            self.hangs.store(false, Ordering::Relaxed);
        }
        lock(&self.loaded).users.clone()
    }
}

/// Reads the file again if it has changed.
fn look(path: &Path, loaded: &Mutex<Loaded>) {
    let stamp = std::fs::metadata(path).map(|found| Stamp::of(&found)).ok();
    if stamp == Some(lock(loaded).stamp) {
        return;
    }
    match read(path) {
        Ok((new, _)) => *lock(loaded) = new,
        Err(error) => tracing::error!(%error, "users file not read again; the users are as before"),
    }
}

fn lock(loaded: &Mutex<Loaded>) -> MutexGuard<'_, Loaded> {
    loaded.lock().unwrap_or_else(PoisonError::into_inner)
}

fn matches(users: &BTreeMap<String, PasswordHashString>, name: &str, password: &str) -> bool {
    let known = users.get(name);
    let hash = match known {
        Some(hash) => Some(hash.password_hash()),
        None => PasswordHash::new(NOBODY).ok(),
    };
    let right = hash.is_some_and(|hash| {
        let password = password.as_bytes();
        Argon2::default().verify_password(password, &hash).is_ok()
    });
    right && known.is_some()
}

impl Stamp {
    fn of(found: &std::fs::Metadata) -> Self {
        Self {
            inode: found.ino(),
            modified: (found.mtime(), found.mtime_nsec()),
            size: found.len(),
        }
    }
}

/// The users of a file, and its text.
fn read(path: &Path) -> Result<(Loaded, String), UsersError> {
    let failed = |error| UsersError::File(path.to_owned(), error);
    let file = file::open_regular(path).map_err(failed)?;
    // Taken before reading: a change in between is seen at the next look.
    let stamp = Stamp::of(&file.metadata().map_err(failed)?);
    if stamp.size > LARGEST_FILE {
        return Err(UsersError::TooLarge(path.to_owned()));
    }
    let mut text = String::new();
    file.take(LARGEST_FILE)
        .read_to_string(&mut text)
        .map_err(failed)?;
    let mut users = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = |what| UsersError::Line(path.to_owned(), number + 1, what);
        let Some((name, hash)) = entry(line).map_err(wrong)? else {
            continue;
        };
        let hash = PasswordHashString::new(hash)
            .map_err(|_| wrong("the hash is not of the form $argon2id$…"))?;
        if users.insert(name.to_owned(), hash).is_some() {
            return Err(wrong("the user is there twice"));
        }
    }
    let users = Arc::new(users);
    Ok((Loaded { stamp, users }, text))
}

/// Name and hash of a line; none for comments and empty lines.
fn entry(line: &str) -> Result<Option<(&str, &str)>, &'static str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (name, hash) = line.split_once(':').ok_or("the line is not name:hash")?;
    if !hash.starts_with("$argon2") {
        return Err("the hash is not of the form $argon2id$…");
    }
    Ok(Some((name, hash)))
}

/// The names in a users file, in their order. Blocks on the disk.
pub fn list(path: &Path) -> Result<Vec<String>, UsersError> {
    let (loaded, _) = read(path)?;
    Ok(loaded.users.keys().cloned().collect())
}

/// Adds a user, or gives one another password (then true is returned); makes the file if there is none, for its owner
/// alone. Blocks on the disk.
pub fn add(path: &Path, name: &str, password: &str) -> Result<bool, UsersError> {
    check_name(name).map_err(|what| UsersError::Name(name.to_owned(), what))?;
    if password.is_empty() {
        return Err(UsersError::Password("is empty"));
    }
    if password.len() > LONGEST_PASSWORD {
        return Err(UsersError::Password("has more than 1024 octets"));
    }
    let salt = SaltString::generate(&mut OsRng);
    let hash = Argon2::default()
        .hash_password(password.as_bytes(), &salt)
        .map_err(|error| UsersError::Check(error.to_string()))?;
    rewrite(path, true, |lines| {
        let line = format!("{name}:{hash}");
        match lines.iter_mut().find(|line| is_of(line, name)) {
            Some(old) => {
                *old = line;
                true
            }
            None => {
                lines.push(line);
                false
            }
        }
    })
}

/// Removes a user; false if there is none. Blocks on the disk.
pub fn remove(path: &Path, name: &str) -> Result<bool, UsersError> {
    rewrite(path, false, |lines| {
        let before = lines.len();
        lines.retain(|line| !is_of(line, name));
        lines.len() < before
    })
}

fn is_of(line: &str, name: &str) -> bool {
    matches!(entry(line), Ok(Some((found, _))) if found == name)
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("it is empty");
    }
    if name.len() > 255 {
        return Err("it has more than 255 octets");
    }
    if name.starts_with('#') || name.contains(':') {
        return Err("it starts with # or contains a colon");
    }
    if name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("it contains white space or control characters");
    }
    Ok(())
}

/// Changes the lines of a file in one step: readers see the old file or the new one. Two that write wait for each other.
fn rewrite<T>(
    path: &Path,
    create: bool,
    change: impl FnOnce(&mut Vec<String>) -> T,
) -> Result<T, UsersError> {
    let failed = |error| UsersError::File(path.to_owned(), error);
    // The file itself, not a link to it, is replaced.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // The file is replaced, so a lock on it would be a lock on what is gone; the folder stays.
    let lock = std::fs::File::open(folder).map_err(failed)?;
    lock.lock().map_err(failed)?;
    let old = std::fs::metadata(&target).ok();
    let text = match (&old, create) {
        (None, true) => String::new(),
        _ => read(&target)?.1,
    };
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let result = change(&mut lines);
    let mut fresh = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    for line in &lines {
        writeln!(fresh, "{line}").map_err(failed)?;
    }
    let file = fresh.as_file();
    let mode = std::fs::Permissions::from_mode(0o600);
    file.set_permissions(mode).map_err(failed)?;
    if let Some(old) = old {
        // As root this keeps the file readable for the relay's user; as anybody else it is ours already.
        let _ = std::os::unix::fs::fchown(file, Some(old.uid()), Some(old.gid()));
    }
    file.sync_all().map_err(failed)?;
    fresh.persist(&target).map_err(|e| failed(e.error))?;
    lock.sync_all().map_err(failed)?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("users");
        (folder, path)
    }

    /// The right password of a known user, and nothing else, is let in; a change of the file counts at once.
    #[tokio::test]
    async fn only_the_right_password_is_let_in() {
        let (_folder, path) = file();
        assert!(!add(&path, "tim", "secret").expect("adds"));
        let users = Users::load(&path).expect("loads");
        assert!(users.verify("tim", "secret").await.expect("checks"));
        for (name, password) in [("tim", "Secret"), ("tim", ""), ("Tim", "secret"), ("", "")] {
            assert!(!users.verify(name, password).await.expect("checks"));
        }
        let long = "x".repeat(LONGEST_PASSWORD + 1);
        assert!(!users.verify("tim", &long).await.expect("checks"));

        assert!(add(&path, "tim", "other").expect("replaces"));
        assert!(!users.verify("tim", "secret").await.expect("checks"));
        assert!(users.verify("tim", "other").await.expect("checks"));
        assert!(remove(&path, "tim").expect("removes"));
        assert!(!users.verify("tim", "other").await.expect("checks"));
    }

    /// The hash that stands for unknown users is a real one: checking it takes the time of a real check.
    #[test]
    fn nobody_costs_what_somebody_costs() {
        let nobody = PasswordHash::new(NOBODY).expect("a hash");
        let salt = SaltString::generate(&mut OsRng);
        let somebody = Argon2::default()
            .hash_password(b"x", &salt)
            .expect("a hash");
        assert_eq!(nobody.algorithm, somebody.algorithm);
        assert_eq!(nobody.params, somebody.params);
        let lengths = |hash: &PasswordHash<'_>| hash.hash.map(|output| output.len());
        assert_eq!(lengths(&nobody), lengths(&somebody));
    }

    /// A broken file that was fine before changes nothing: mail keeps flowing for the users it had.
    #[tokio::test]
    async fn broken_file_keeps_the_users() {
        let (_folder, path) = file();
        add(&path, "tim", "secret").expect("adds");
        let users = Users::load(&path).expect("loads");
        std::fs::write(&path, "tim").expect("writes");
        assert!(users.verify("tim", "secret").await.expect("checks"));
    }

    /// What is no file leaves the users as they were, and when it is one again, it counts at once.
    #[tokio::test]
    async fn a_fifo_keeps_the_users() {
        let (_folder, path) = file();
        add(&path, "tim", "secret").expect("adds");
        let users = Users::load(&path).expect("loads");
        let good = std::fs::read(&path).expect("reads");
        std::fs::remove_file(&path).expect("removes");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).expect("a FIFO");
        assert!(users.verify("tim", "secret").await.expect("checks"));
        std::fs::remove_file(&path).expect("removes");
        std::fs::write(&path, good).expect("writes");
        add(&path, "tim", "other").expect("replaces");
        assert!(users.verify("tim", "other").await.expect("checks"));
        assert!(!users.verify("tim", "secret").await.expect("checks"));
    }

    /// A file whose mount hangs delays its own users for a moment, once, and nobody else; when it is there again, it counts.
    #[tokio::test(start_paused = true)]
    async fn a_look_that_hangs_is_not_waited_for() {
        let (_folder, path) = file();
        add(&path, "tim", "secret").expect("adds");
        let users = Users::load(&path).expect("loads");
        // As good as a look that hangs.
        let hangs = users.looking.clone().acquire_owned().await.expect("free");
        add(&path, "tim", "other").expect("replaces");
        for waits in [USER_FILE_READ_TIMEOUT, Duration::ZERO] {
            let begun = tokio::time::Instant::now();
            assert!(users.verify("tim", "secret").await.expect("checks"));
            let took = begun.elapsed();
            assert!(
                took >= waits && took < waits + Duration::from_millis(100),
                "{took:?}"
            );
        }
        drop(hangs);
        assert!(users.verify("tim", "other").await.expect("checks"));
    }

    /// Writing keeps comments and order, and leaves a file that its owner alone can read.
    #[test]
    fn rewriting_keeps_what_others_wrote() {
        let (_folder, path) = file();
        add(&path, "a", "1").expect("adds");
        let text = std::fs::read_to_string(&path).expect("reads");
        std::fs::write(&path, format!("# the office\n\n{text}")).expect("writes");
        add(&path, "b", "2").expect("adds");
        let text = std::fs::read_to_string(&path).expect("reads");
        assert!(text.starts_with("# the office\n\na:$argon2id$"), "{text}");
        assert_eq!(list(&path).expect("lists"), ["a", "b"]);
        let mode = std::fs::metadata(&path).expect("file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!remove(&path, "c").expect("no such user"));
    }

    /// A line that is no user is named; a name that would become another line is refused.
    #[test]
    fn wrong_lines_and_names_are_refused() {
        let (_folder, path) = file();
        for (text, line) in [
            ("a", 1),
            ("# x\nb:plain", 2),
            ("c:$argon2id$v=19$nonsense$", 1),
        ] {
            std::fs::write(&path, text).expect("writes");
            let error = Users::load(&path).expect_err(text);
            assert!(
                matches!(error, UsersError::Line(_, at, _) if at == line),
                "{error}"
            );
        }
        for name in ["", "a:b", "#a", "a b", "a\nb"] {
            assert!(matches!(add(&path, name, "x"), Err(UsersError::Name(..))));
        }
        assert!(matches!(add(&path, "a", ""), Err(UsersError::Password(_))));
    }
}
