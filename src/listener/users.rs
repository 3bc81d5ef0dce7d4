//! The users who may relay after AUTH: a file of `name:$argon2id$…` lines, as written by `spillway user add`.
//!
//! A password check uses much memory and time by design (argon2). An attacker must not use that against the relay, so only
//! a few checks run at a time, on threads that may block, and a check that waits too long fails with a transient error. A
//! check of an unknown name takes as long as one of a known name, so that response times do not reveal names. The file is
//! read again whenever it has changed, so a removed user cannot log in any more. If the file cannot be read because its
//! mount hangs, the users loaded before stay valid, and a check waits for the file only a short time.

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

/// Largest users file in octets: 16 MiB hold more than 100 000 users.
const USERS_FILE_OCTETS_MAX: u64 = 16 << 20;
/// Longest password in octets.
const PASSWORD_OCTETS_MAX: usize = 1024;
/// Largest number of concurrent password checks in the process; each needs 19 MiB.
const PASSWORD_CHECKS_MAX: usize = 4;
/// Longest wait for the start of a password check. After that the client gets a transient error.
const PASSWORD_CHECK_WAIT: Duration = Duration::from_secs(10);
/// Timeout for reading the users file. After that the users loaded before stay valid.
const USER_FILE_READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Hash to check for an unknown user. It has the parameters that [`add`] uses, and no password matches it.
const UNKNOWN_USER_HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c3BpbGx3YXktbm9ib2R5$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

static PASSWORD_CHECK_PERMITS: Semaphore = Semaphore::const_new(PASSWORD_CHECKS_MAX);

/// The users of one file.
#[derive(Debug)]
pub struct Users {
    path: PathBuf,
    /// The file is never read while this lock is held.
    loaded: Arc<Mutex<Loaded>>,
    /// One reader at a time, so that a file that hangs blocks one thread only.
    looking: Arc<Semaphore>,
    /// The last read took too long.
    hangs: AtomicBool,
}

/// The users that were read, and the version of the file.
#[derive(Debug)]
struct Loaded {
    stamp: Stamp,
    users: Arc<BTreeMap<String, PasswordHashString>>,
}

/// Version of a file: differs after the file was written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

/// Why users cannot be read, checked or changed.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The file cannot be read or written.
    #[error("{}: {}", .0.display(), .1)]
    File(PathBuf, #[source] std::io::Error),
    /// The file is too large for a users file.
    #[error("{}: the file is larger than 16 MiB, so it is not a users file", .0.display())]
    TooLarge(PathBuf),
    /// A line is not `name:hash`.
    #[error("{} line {}: {}", .0.display(), .1, .2)]
    Line(PathBuf, usize, &'static str),
    /// The name cannot be written to the file.
    #[error("{0:?} cannot be a user name: {1}")]
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
    /// Reads a users file. Blocks on disk I/O.
    pub fn load(path: &Path) -> Result<Self, UsersError> {
        let (loaded, _) = read(path)?;
        Ok(Self {
            path: path.to_owned(),
            loaded: Arc::new(Mutex::new(loaded)),
            looking: Arc::new(Semaphore::new(1)),
            hangs: AtomicBool::new(false),
        })
    }

    /// Whether this is the password of the user. An error says nothing about the password; a later try may succeed.
    ///
    /// Cancel safety: safe; a check that has begun continues and its result is dropped.
    pub async fn verify(&self, name: &str, password: &str) -> Result<bool, UsersError> {
        if password.len() > PASSWORD_OCTETS_MAX {
            return Ok(false);
        }
        let turn = Deadline::after(PASSWORD_CHECK_WAIT)
            .run(PASSWORD_CHECK_PERMITS.acquire())
            .await;
        let Ok(Ok(turn)) = turn else {
            return Err(UsersError::Busy);
        };
        let users = self.current().await;
        let (name, password) = (name.to_owned(), password.to_owned());
        tokio::task::spawn_blocking(move || {
            // Held until the check ends, even if its caller no longer waits.
            let _turn = turn;
            matches(&users, &name, &password)
        })
        .await
        .map_err(|error| UsersError::Check(error.to_string()))
    }

    /// The current users of the file, or the users loaded before if the file cannot be read within the timeout.
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
                // Held until the read ends, even if its caller no longer waits.
                let _place = place;
                look(&path, &loaded);
            });
            task.await.ok()
        };
        let is_late = Deadline::after(patience).run(looked).await.is_err();
        if is_late && !self.hangs.swap(is_late, Ordering::Relaxed) {
            let path = self.path.display();
            tracing::error!(%path, "reading the users file timed out; the users loaded before stay valid: check the mount of the file");
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
        Err(error) => {
            tracing::error!(%error, "the changed users file cannot be read; the users loaded before stay valid")
        }
    }
}

fn lock(loaded: &Mutex<Loaded>) -> MutexGuard<'_, Loaded> {
    loaded.lock().unwrap_or_else(PoisonError::into_inner)
}

fn matches(users: &BTreeMap<String, PasswordHashString>, name: &str, password: &str) -> bool {
    let known = users.get(name);
    let hash = match known {
        Some(hash) => Some(hash.password_hash()),
        None => PasswordHash::new(UNKNOWN_USER_HASH).ok(),
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

/// The users of a file, and the text of the file.
fn read(path: &Path) -> Result<(Loaded, String), UsersError> {
    let failed = |error| UsersError::File(path.to_owned(), error);
    let file = file::open_regular(path).map_err(failed)?;
    // Taken before the read: the next check then sees a change made during the read.
    let stamp = Stamp::of(&file.metadata().map_err(failed)?);
    if stamp.size > USERS_FILE_OCTETS_MAX {
        return Err(UsersError::TooLarge(path.to_owned()));
    }
    let mut text = String::new();
    file.take(USERS_FILE_OCTETS_MAX)
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
            return Err(wrong("the user has a second line; remove one of them"));
        }
    }
    let users = Arc::new(users);
    Ok((Loaded { stamp, users }, text))
}

/// Name and hash of a line; `None` for a comment or an empty line.
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

/// The user names in a users file, sorted. Blocks on disk I/O.
pub fn list(path: &Path) -> Result<Vec<String>, UsersError> {
    let (loaded, _) = read(path)?;
    Ok(loaded.users.keys().cloned().collect())
}

/// Adds a user, or replaces the password of an existing user and returns true. Creates a missing file, readable by its
/// owner only. Blocks on disk I/O.
pub fn add(path: &Path, name: &str, password: &str) -> Result<bool, UsersError> {
    check_name(name).map_err(|what| UsersError::Name(name.to_owned(), what))?;
    if password.is_empty() {
        return Err(UsersError::Password("is empty"));
    }
    if password.len() > PASSWORD_OCTETS_MAX {
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

/// Removes a user; false if the file has no such user. Blocks on disk I/O.
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

/// Changes the lines of a file atomically: readers see the old file or the new one. Concurrent writers wait for each other.
fn rewrite<T>(
    path: &Path,
    create: bool,
    change: impl FnOnce(&mut Vec<String>) -> T,
) -> Result<T, UsersError> {
    let failed = |error| UsersError::File(path.to_owned(), error);
    // Replace the file itself and not a link to it.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // Lock the folder, because the file is replaced: a lock on the old file would lock nothing.
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
        // For root, this keeps the file readable for the user of the relay. Any other caller owns the file already.
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

    /// Only the right password of a known user is accepted, and a change of the file takes effect at once.
    #[tokio::test]
    async fn only_the_right_password_is_let_in() {
        let (_folder, path) = file();
        assert!(!add(&path, "tim", "secret").expect("adds"));
        let users = Users::load(&path).expect("loads");
        assert!(users.verify("tim", "secret").await.expect("checks"));
        for (name, password) in [("tim", "Secret"), ("tim", ""), ("Tim", "secret"), ("", "")] {
            assert!(!users.verify(name, password).await.expect("checks"));
        }
        let long = "x".repeat(PASSWORD_OCTETS_MAX + 1);
        assert!(!users.verify("tim", &long).await.expect("checks"));

        assert!(add(&path, "tim", "other").expect("replaces"));
        assert!(!users.verify("tim", "secret").await.expect("checks"));
        assert!(users.verify("tim", "other").await.expect("checks"));
        assert!(remove(&path, "tim").expect("removes"));
        assert!(!users.verify("tim", "other").await.expect("checks"));
    }

    /// The hash for unknown users has real parameters, so its check takes as long as any other check.
    #[test]
    fn an_unknown_user_costs_as_much_as_a_known_one() {
        let unknown = PasswordHash::new(UNKNOWN_USER_HASH).expect("a hash");
        let salt = SaltString::generate(&mut OsRng);
        let known = Argon2::default()
            .hash_password(b"x", &salt)
            .expect("a hash");
        assert_eq!(unknown.algorithm, known.algorithm);
        assert_eq!(unknown.params, known.params);
        let lengths = |hash: &PasswordHash<'_>| hash.hash.map(|output| output.len());
        assert_eq!(lengths(&unknown), lengths(&known));
    }

    /// If the file becomes invalid, the users loaded before stay valid.
    #[tokio::test]
    async fn an_invalid_file_keeps_the_users() {
        let (_folder, path) = file();
        add(&path, "tim", "secret").expect("adds");
        let users = Users::load(&path).expect("loads");
        std::fs::write(&path, "tim").expect("writes");
        assert!(users.verify("tim", "secret").await.expect("checks"));
    }

    /// While a FIFO stands in place of the file, the users loaded before stay valid. A regular file takes effect at once.
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

    /// A file whose mount hangs delays one password check by the timeout, and later ones not at all. When the file can be
    /// read again, it takes effect.
    #[tokio::test(start_paused = true)]
    async fn a_read_that_hangs_delays_one_check() {
        let (_folder, path) = file();
        add(&path, "tim", "secret").expect("adds");
        let users = Users::load(&path).expect("loads");
        // Has the effect of a read that hangs.
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

    /// A rewrite keeps comments and order, and only the owner can read the new file.
    #[test]
    fn a_rewrite_keeps_comments_and_order() {
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

    /// An invalid line is reported with its number. A name that cannot be stored in one line is refused.
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
