//! Final delivery into one Maildir per recipient.
//!
//! A message is written to `tmp`, synced, renamed into `new`, and the folder synced: after power loss it is there whole
//! or not at all. What can fail is tried before the rename: whoever reads the Maildir may have the message from then on, and
//! nothing takes it back, or the message would be there once more with every retry. It gets the lines that final delivery adds (RFC 5321 4.4), and its line ends become LF, because that
//! is what programs that read Maildirs expect of a file; nothing else changes.
//!
//! A Maildir is its user's own, who may put anything in the place of its folders, or it lies on a mount whose server is gone.
//! So folders are opened without waiting and without following links, and few writers at once are in one of them: a writer
//! that hangs keeps its place there, and the others go on.
//!
//! File names are made of the recipient's address, which is somebody else's text. Whatever could mean something to the
//! file system is written as `%XX`, `%` included, so that no two addresses share a folder and none leaves its place.

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use memchr::memmem;
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::{Answer, BuildError, Outbound, Outcome, Told};
use crate::deadline::Deadline;
use crate::message::{Content, Envelope, Mailbox};

/// Deliveries that write at once; more would only wait for the same disk.
const WRITERS: usize = 64;
/// Of these in one Maildir.
const TOGETHER: usize = 4;
/// Maildirs remembered, beyond which it is looked which of them have no writer any more.
const REMEMBERED: usize = 1024;
/// Octets of a folder's name made from an address; longer ones are cut and told apart by a hash.
const MAX_NAME: usize = 200;
/// What the bare postmaster (RFC 5321 4.5.1) has for a domain.
const NO_DOMAIN: &str = "localhost";
/// Beyond the deadline, for the one file that is being moved at that moment; below what the lease of a stored message
/// allows beyond the work on it.
const LAST_MOVE: Duration = Duration::from_secs(2);
/// Where it went well.
const WRITTEN: &str = "2.0.0 written to the Maildir";

/// Makes file names of one process differ.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A next hop that is a set of Maildirs.
pub struct Maildir {
    name: Arc<str>,
    template: Arc<str>,
    host: Arc<str>,
    writers: Arc<Semaphore>,
    /// The places in each Maildir, for as long as somebody is in it.
    places: Mutex<HashMap<PathBuf, Weak<Semaphore>>>,
    disk: Disk,
}

/// How a message comes into its Maildir; tests have some that fail or take their time.
#[derive(Clone, Copy)]
struct Disk {
    /// From `tmp`, the first folder, into `new`, the second.
    rename: fn(&File, &File, &str) -> io::Result<()>,
    /// Makes durable what was moved into the folder.
    sync: fn(&File) -> io::Result<()>,
}

impl Disk {
    const REAL: Self = Self {
        rename: |tmp, new, name| Ok(renameat(tmp, name, new, name)?),
        sync: File::sync_all,
    };
}

/// One delivery to one recipient, moved to a thread that may block.
struct Job {
    envelope: Arc<Envelope>,
    /// The recipient's position.
    at: usize,
    mailbox: Mailbox,
    maildir: PathBuf,
    prefix: Bytes,
    content: Content,
    host: Arc<str>,
    disk: Disk,
    shared: Arc<JobState>,
    told: Told,
}

/// What the waiting side and the writing side both see.
#[derive(Default)]
struct JobState {
    /// Nobody waits any more: nothing further may appear in a Maildir.
    abandoned: AtomicBool,
    results: Mutex<Vec<(usize, io::Result<()>)>>,
}

impl JobState {
    fn tell(&self, at: usize, result: io::Result<()>) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.push((at, result));
    }
}

/// Abandons the job when the waiting side goes away, at the deadline or because it was dropped.
struct Waiting(Arc<JobState>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.abandoned.store(true, Ordering::SeqCst);
    }
}

impl Maildir {
    /// `path` is the template, absolute or relative to the working folder.
    pub fn new(name: Arc<str>, path: &str) -> Result<Self, BuildError> {
        if !path.contains("{local}") {
            return Err(BuildError::SharedMaildir(name.to_string(), path.to_owned()));
        }
        let system = rustix::system::uname();
        // Colon and slash have meanings in a Maildir's file names (maildir(5)).
        let host = system.nodename().to_string_lossy().into_owned();
        let host = host.replace('/', "\\057").replace(':', "\\072");
        Ok(Self {
            name,
            template: path.into(),
            host: host.into(),
            writers: Arc::new(Semaphore::new(WRITERS)),
            places: Mutex::default(),
            disk: Disk::REAL,
        })
    }

    /// Delivers to the recipients at these positions of the envelope; one outcome for each, in any order.
    ///
    /// Cancel safety: what is not in its Maildir yet will not appear there any more, but for the one file that is being
    /// moved at that moment.
    pub async fn deliver(
        &self,
        mail: &Outbound,
        recipients: Vec<usize>,
        deadline: Deadline,
    ) -> Vec<(usize, Outcome)> {
        let shared = Arc::new(JobState::default());
        let waiting = Waiting(shared.clone());
        let writing: FuturesUnordered<_> = recipients
            .iter()
            .filter_map(|at| self.job(mail, *at, &shared))
            .map(|job| self.write(job))
            .collect();
        let mut work = pin!(writing.collect::<()>());
        let done = deadline.run(&mut work).await;
        drop(waiting);
        let why = match done {
            Ok(()) => "4.3.0 writing to the Maildir was broken off",
            Err(_) => {
                // Nothing new is begun, and whether the file that is being moved came there is known in a moment.
                let _ = Deadline::after(LAST_MOVE).run(&mut work).await;
                "4.3.0 time ran out before the message was in the Maildir"
            }
        };
        let results = std::mem::take(
            &mut *shared
                .results
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let mut outcomes: Vec<_> = results
            .into_iter()
            .map(|(at, result)| (at, self.outcome(result)))
            .collect();
        for at in recipients {
            if !outcomes.iter().any(|(done, _)| *done == at) {
                outcomes.push((at, Outcome::Deferred(self.answer(why.to_owned()))));
            }
        }
        outcomes
    }

    fn job(&self, mail: &Outbound, at: usize, shared: &Arc<JobState>) -> Option<Job> {
        let mailbox = mail.envelope.recipients.get(at)?.mailbox.clone();
        Some(Job {
            envelope: mail.envelope.clone(),
            at,
            maildir: folder(&self.template, &mailbox),
            mailbox,
            prefix: mail.prefix.clone(),
            content: mail.content.clone(),
            host: self.host.clone(),
            disk: self.disk,
            shared: shared.clone(),
            told: mail.told.clone(),
        })
    }

    /// Writes when there is a place in the Maildir, and then one among all writers. Both are kept for as long as the writer is
    /// there, whoever still waits for it.
    async fn write(&self, job: Job) {
        let places = self.places(&job.maildir);
        let (Ok(place), Ok(writer)) = (
            places.acquire_owned().await,
            self.writers.clone().acquire_owned().await,
        ) else {
            return;
        };
        let written = tokio::task::spawn_blocking(move || {
            let _kept = (place, writer);
            job.run();
        });
        // What it came to was told; a panic is told by its absence.
        let _ = written.await;
    }

    fn places(&self, maildir: &Path) -> Arc<Semaphore> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = places.get(maildir).and_then(Weak::upgrade) {
            return places;
        }
        if places.len() >= REMEMBERED {
            places.retain(|_, places| places.strong_count() > 0);
        }
        let fresh = Arc::new(Semaphore::new(TOGETHER));
        places.insert(maildir.to_owned(), Arc::downgrade(&fresh));
        fresh
    }

    fn answer(&self, text: String) -> Answer {
        Answer {
            text,
            ..Answer::of(&self.name)
        }
    }

    /// A disk's trouble is ours and passes; it is never a reason to bounce.
    fn outcome(&self, result: io::Result<()>) -> Outcome {
        match result {
            Ok(()) => Outcome::Delivered(self.answer(WRITTEN.to_owned())),
            Err(error) => {
                let status = match error.kind() {
                    io::ErrorKind::StorageFull => "4.3.1",
                    io::ErrorKind::QuotaExceeded => "4.2.2",
                    _ => "4.3.0",
                };
                Outcome::Deferred(self.answer(format!("{status} writing to the Maildir: {error}")))
            }
        }
    }
}

impl Job {
    fn run(self) {
        if self.shared.abandoned.load(Ordering::SeqCst) {
            return;
        }
        if let Err(error) = self.deliver() {
            self.shared.tell(self.at, Err(error));
        }
    }

    /// An error means that the message is not in the Maildir; that it is there is told as soon as it is.
    fn deliver(&self) -> io::Result<()> {
        let maildir = &self.maildir;
        // `new` is opened before anything is moved there: without permission or descriptors nothing is.
        let open = || {
            let inner = |name: &str| open_folder(&maildir.join(name), OFlags::NOFOLLOW);
            Ok::<_, io::Error>((inner("new")?, inner("tmp")?))
        };
        let (new, tmp) = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_maildir(maildir)?;
                open()?
            }
            result => result?,
        };
        let name = self.unique_name();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&tmp, &name, flags, Mode::RUSR | Mode::WUSR)?;
        let moved = self.write(file.into()).and_then(|()| {
            if self.shared.abandoned.load(Ordering::SeqCst) {
                return Err(io::Error::other("given up"));
            }
            (self.disk.rename)(&tmp, &new, &name)
        });
        if moved.is_err() {
            // What could not be delivered must not fill the disk either.
            let _ = unlinkat(&tmp, &name, AtFlags::empty());
            return moved;
        }
        // From here on it is delivered, whatever happens.
        self.shared.tell(self.at, Ok(()));
        if let Err(error) = (self.disk.sync)(&new) {
            // A disk that cannot sync may lose the move in a power cut. Delivered once more the message would be there
            // twice for certain, with every retry; and it cannot be taken back from somebody who has read it.
            tracing::warn!(folder = %maildir.display(), %error, "moved into the Maildir, but not synced");
        }
        // Only now, as it may be forgotten here from then on.
        self.told.tell(self.at, || WRITTEN.to_owned());
        Ok(())
    }

    fn write(&self, file: File) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(64 * 1024, file);
        writeln!(out, "Return-Path: {}", self.envelope.reverse_path)?;
        writeln!(out, "Delivered-To: {}", self.mailbox)?;
        for octets in [&self.prefix, self.content.bytes()] {
            let mut at = 0;
            for end in memmem::find_iter(octets, b"\r\n") {
                out.write_all(&octets[at..end])?;
                out.write_all(b"\n")?;
                at = end + 2;
            }
            out.write_all(&octets[at..])?;
        }
        out.into_inner()
            .map_err(|error| error.into_error())?
            .sync_all()
    }

    /// Time, process, count and host: unique on all machines that share the folder (maildir(5)).
    fn unique_name(&self) -> String {
        let now = jiff::Timestamp::now();
        format!(
            "{}.M{}P{}Q{}.{}",
            now.as_second(),
            now.subsec_microsecond(),
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed),
            self.host
        )
    }
}

/// The Maildir of a recipient.
fn folder(template: &str, mailbox: &Mailbox) -> PathBuf {
    let domain = match mailbox.domain() {
        "" => NO_DOMAIN,
        domain => domain,
    };
    let domain = safe(&domain.to_lowercase());
    let local = safe(mailbox.local_part());
    // Replaced names contain no braces, so neither can bring in the other's placeholder.
    template
        .replace("{domain}", &domain)
        .replace("{local}", &local)
        .into()
}

/// One name without meaning to the file system.
fn safe(text: &str) -> String {
    use std::fmt::Write as _;
    let mut name = String::with_capacity(text.len());
    for c in text.chars() {
        let harmless =
            c.is_alphanumeric() || "-_+=@#!~&".contains(c) || (c == '.' && !name.is_empty());
        if harmless {
            name.push(c);
            continue;
        }
        let mut octets = [0; 4];
        for octet in c.encode_utf8(&mut octets).bytes() {
            // Writing to a String cannot fail.
            let _ = write!(name, "%{octet:02X}");
        }
    }
    if name.len() > MAX_NAME {
        let hash = Sha256::digest(text.as_bytes());
        name.truncate(name.floor_char_boundary(MAX_NAME - 34));
        // Two percent signs: no encoded octet looks like that.
        name.push_str("%%");
        for octet in &hash[..16] {
            let _ = write!(name, "{octet:02x}");
        }
    }
    name
}

/// A folder, and at once: whatever else is there is an error.
fn open_folder(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Makes the Maildir and whatever folder above it is missing, durably.
fn make_maildir(maildir: &Path) -> io::Result<()> {
    let present = maildir.ancestors().skip(1).find(|folder| folder.is_dir());
    for inner in ["tmp", "new", "cur"] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(maildir.join(inner))?;
    }
    for folder in maildir.ancestors() {
        if folder.as_os_str().is_empty() {
            return sync_folder(Path::new("."));
        }
        sync_folder(folder)?;
        if Some(folder) == present {
            break;
        }
    }
    Ok(())
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    open_folder(folder, OFlags::empty())?.sync_all()
}

#[cfg(test)]
mod tests;
