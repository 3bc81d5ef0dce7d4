//! Final delivery into one Maildir per recipient.
//!
//! A delivery writes the message to `tmp`, syncs the file, renames it into `new`, and syncs the folder. After a power
//! loss the message is there completely or not at all. Steps that can fail are tried before the rename. After the
//! rename a mail program may have read the message, so a later error must not undo the delivery: each retry would add
//! another copy. The delivery adds the header fields of final delivery (RFC 5321 4.4) and converts line ends to LF,
//! because programs that read Maildirs expect LF in files. Everything else stays unchanged.
//!
//! A Maildir belongs to its user, who can replace its folders with anything; and a Maildir can be on a mount whose
//! server does not answer. This module therefore opens folders without blocking and without following links, and limits
//! the writers in one Maildir: a writer that hangs keeps its place in that Maildir, and deliveries to others continue.
//!
//! Folder names come from the recipient's address, which is untrusted text. Every character that could have a meaning
//! for the file system is written as `%XX`, including `%`. No two addresses share a folder, and no name leaves its
//! parent folder.

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
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use memchr::memmem;
use metrics::Gauge;
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::next_hop::{HopResult, HopSignal, NextHop};
use super::{Answer, BuildError, DeliveredSender, Outbound, Outcome};
use crate::deadline::Deadline;
use crate::message::{Content, Envelope, Mailbox, canonical};

/// Largest number of concurrent writers per next hop. More writers would only wait for the same disk.
const WRITERS_MAX: usize = 64;
/// Largest number of concurrent writers in one Maildir, so that a Maildir that hangs leaves most writers to the others.
const MAILDIR_WRITERS_MAX: usize = 4;
/// Number of Maildirs in memory from which a delivery removes those without a writer.
const MAILDIRS_CLEANUP_THRESHOLD: usize = 1024;
/// Largest size in octets of a folder name made from an address. A longer name is cut and gets a hash to stay unique;
/// file systems allow 255 octets.
const MAX_NAME_OCTETS: usize = 200;
/// Domain of the bare postmaster address (RFC 5321 4.5.1), which has none.
const POSTMASTER_DOMAIN: &str = "localhost";
/// Extra time after the deadline for the file that is being renamed at that moment. It must stay below the margin by
/// which the lease of a stored message exceeds the work on it.
const LAST_RENAME_GRACE: Duration = Duration::from_secs(2);
/// Text of a successful delivery.
const WRITTEN_TEXT: &str = "2.0.0 written to the Maildir";

/// Makes the file names of this process unique.
static FILE_NAME_COUNTER: AtomicU64 = AtomicU64::new(0);

/// A next hop that consists of Maildirs.
pub struct Maildir {
    name: Arc<str>,
    template: Arc<str>,
    host: Arc<str>,
    writers: Arc<Semaphore>,
    /// Semaphore of the places in each Maildir. An entry is alive while a writer or a waiting delivery uses it.
    places: Mutex<HashMap<PathBuf, Weak<Semaphore>>>,
    disk: Disk,
}

/// File operations that move a message into its Maildir. Tests replace them with operations that fail or block.
#[derive(Clone, Copy)]
struct Disk {
    /// Renames a file from `tmp` (first folder) into `new` (second folder).
    rename: fn(&File, &File, &str) -> io::Result<()>,
    /// Makes the rename durable in the folder.
    sync: fn(&File) -> io::Result<()>,
}

impl Disk {
    const REAL: Self = Self {
        rename: |tmp, new, name| Ok(renameat(tmp, name, new, name)?),
        sync: File::sync_all,
    };
}

/// One delivery to one recipient, executed in a thread that may block.
struct Job {
    envelope: Arc<Envelope>,
    /// Position of the recipient in the envelope.
    at: usize,
    mailbox: Mailbox,
    maildir: PathBuf,
    prefix: Bytes,
    content: Content,
    host: Arc<str>,
    disk: Disk,
    shared: Arc<JobState>,
    delivered: DeliveredSender,
}

/// State shared between the waiting task and the writing thread.
#[derive(Default)]
struct JobState {
    /// The waiting task has gone away, so no further file may appear in a Maildir.
    abandoned: AtomicBool,
    results: Mutex<Vec<(usize, io::Result<()>)>>,
}

impl JobState {
    fn record(&self, at: usize, result: io::Result<()>) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.push((at, result));
    }
}

/// Marks the job as abandoned when the waiting task ends: at the deadline, or because its future was dropped.
struct Waiting(Arc<JobState>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.abandoned.store(true, Ordering::SeqCst);
    }
}

impl Maildir {
    /// `path` is the path template, absolute or relative to the working folder. Fails if the template has no `{local}`.
    pub fn new(name: Arc<str>, path: &str) -> Result<Self, BuildError> {
        if !path.contains("{local}") {
            return Err(BuildError::SharedMaildir(name.to_string(), path.to_owned()));
        }
        let system = rustix::system::uname();
        // Colon and slash have a meaning in the file names of a Maildir (maildir(5)).
        let host = system.nodename().to_string_lossy().into_owned();
        let host = host.replace('/', "\\057").replace(':', "\\072");
        Ok(Self {
            name,
            template: path.into(),
            host: host.into(),
            writers: Arc::new(Semaphore::new(WRITERS_MAX)),
            places: Mutex::default(),
            disk: Disk::REAL,
        })
    }

    /// Writes a file for each recipient at these positions of the envelope, and returns one outcome for each, in any
    /// order.
    ///
    /// Cancel safety: a message that is not in its Maildir when the future is dropped does not appear there later,
    /// except for the one file that is being renamed at that moment.
    async fn write_files(
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
            Ok(()) => "4.3.0 writing to the Maildir was interrupted",
            Err(_) => {
                // No new write starts. A short wait shows whether the file that is being renamed arrived.
                let _ = Deadline::after(LAST_RENAME_GRACE).run(&mut work).await;
                "4.3.0 the deadline passed before the message was in the Maildir"
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
            delivered: mail.delivered.clone(),
        })
    }

    /// Waits for a place in the Maildir and then for one of all writers, and writes. The writing thread keeps both
    /// until it ends, even if the delivery no longer waits for it.
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
        // The job has recorded its result; a panic shows as a missing result.
        let _ = written.await;
    }

    fn places(&self, maildir: &Path) -> Arc<Semaphore> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = places.get(maildir).and_then(Weak::upgrade) {
            return places;
        }
        if places.len() >= MAILDIRS_CLEANUP_THRESHOLD {
            places.retain(|_, places| places.strong_count() > 0);
        }
        let fresh = Arc::new(Semaphore::new(MAILDIR_WRITERS_MAX));
        places.insert(maildir.to_owned(), Arc::downgrade(&fresh));
        fresh
    }

    fn answer(&self, text: String) -> Answer {
        Answer {
            text,
            ..Answer::of(&self.name)
        }
    }

    /// Converts the result of a write. A disk error is a local and transient problem, so the outcome is never a bounce.
    fn outcome(&self, result: io::Result<()>) -> Outcome {
        match result {
            Ok(()) => Outcome::Delivered(self.answer(WRITTEN_TEXT.to_owned())),
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

impl NextHop for Maildir {
    fn deliver<'a>(
        &'a self,
        mail: &'a Outbound,
        recipients: Vec<usize>,
        _: &'a Gauge,
        deadline: Deadline,
    ) -> BoxFuture<'a, HopResult> {
        Box::pin(async move {
            HopResult {
                outcomes: self.write_files(mail, recipients, deadline).await,
                // A folder has no pace that a signal could change.
                signal: HopSignal::Unknown,
                offered: true,
            }
        })
    }
}

impl Job {
    fn run(self) {
        if self.shared.abandoned.load(Ordering::SeqCst) {
            return;
        }
        if let Err(error) = self.deliver() {
            self.shared.record(self.at, Err(error));
        }
    }

    /// Delivers the message. An error means that the message is not in the Maildir; success is recorded immediately
    /// after the rename.
    fn deliver(&self) -> io::Result<()> {
        let maildir = &self.maildir;
        // `new` is opened before the rename, so that missing permissions or file descriptors fail the delivery before
        // the message can appear there.
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
                return Err(io::Error::other("the delivery was abandoned"));
            }
            (self.disk.rename)(&tmp, &new, &name)
        });
        if moved.is_err() {
            // A failed delivery must not leave files that fill the disk.
            let _ = unlinkat(&tmp, &name, AtFlags::empty());
            return moved;
        }
        // From here on the message is delivered, even if the sync fails.
        self.shared.record(self.at, Ok(()));
        if let Err(error) = (self.disk.sync)(&new) {
            // A folder that cannot be synced may lose the rename in a power loss. But a second delivery would certainly
            // add a copy with every retry, and a message that a user has read cannot be withdrawn.
            tracing::warn!(folder = %maildir.display(), %error, "the message is in the Maildir, but the folder was not synced");
        }
        // Reported only after the sync, because the caller may remove the message from the store after this report.
        self.delivered.send(self.at, || WRITTEN_TEXT.to_owned());
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

    /// Time, process id, counter and host name: unique on all machines that share the folder (maildir(5)).
    fn unique_name(&self) -> String {
        let now = jiff::Timestamp::now();
        format!(
            "{}.M{}P{}Q{}.{}",
            now.as_second(),
            now.subsec_microsecond(),
            std::process::id(),
            FILE_NAME_COUNTER.fetch_add(1, Ordering::Relaxed),
            self.host
        )
    }
}

/// The Maildir of a recipient.
fn folder(template: &str, mailbox: &Mailbox) -> PathBuf {
    // Routes compare the canonical form, and all spellings of a mailbox are one folder.
    let canonical = canonical::mailbox(mailbox.as_str());
    let (local, domain) = canonical
        .rsplit_once('@')
        .unwrap_or((&canonical, POSTMASTER_DOMAIN));
    // `""@b` has a name too, and an earlier version may have stored what is no mailbox today.
    let named = |canonical, received| match canonical {
        "" => received,
        canonical => canonical,
    };
    let (local, domain) = (
        named(local, mailbox.local_part()),
        named(domain, mailbox.domain()),
    );
    let (local, domain) = (safe(local), safe(domain));
    // Encoded names contain no braces, so neither name can contain the placeholder of the other.
    template
        .replace("{domain}", &domain)
        .replace("{local}", &local)
        .into()
}

/// Encodes text as one file name without special characters.
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
    if name.len() > MAX_NAME_OCTETS {
        let hash = Sha256::digest(text.as_bytes());
        name.truncate(name.floor_char_boundary(MAX_NAME_OCTETS - 34));
        // Two percent signs never occur in encoded text, so no encoded name equals a cut name.
        name.push_str("%%");
        for octet in &hash[..16] {
            let _ = write!(name, "{octet:02x}");
        }
    }
    name
}

/// Opens a folder without blocking. Any other kind of file is an error.
fn open_folder(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Creates the Maildir and all missing parent folders, durably.
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
