//! Final delivery into one Maildir per recipient.
//!
//! A message is written to `tmp`, synced, renamed into `new`, and the folder synced: after power loss it is there whole
//! or not at all. What can fail is tried before the rename: whoever reads the Maildir may have the message from then on, and
//! nothing takes it back, or the message would be there once more with every retry. It gets the lines that final delivery adds (RFC 5321 4.4), and its line ends become LF, because that
//! is what programs that read Maildirs expect of a file; nothing else changes.
//!
//! File names are made of the recipient's address, which is somebody else's text. Whatever could mean something to the
//! file system is written as `%XX`, `%` included, so that no two addresses share a folder and none leaves its place.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use memchr::memmem;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::{Answer, BuildError, Outbound, Outcome};
use crate::deadline::Deadline;
use crate::message::{Content, Envelope, Mailbox};

/// Deliveries that write at once; more would only wait for the same disk.
const WRITERS: usize = 64;
/// Octets of a folder's name made from an address; longer ones are cut and told apart by a hash.
const MAX_NAME: usize = 200;
/// What the bare postmaster (RFC 5321 4.5.1) has for a domain.
const NO_DOMAIN: &str = "localhost";
/// Beyond the deadline, for the one file that is being moved at that moment; below what the lease of a stored message
/// allows beyond the work on it.
const LAST_MOVE: Duration = Duration::from_secs(2);

/// Makes file names of one process differ.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A next hop that is a set of Maildirs.
pub struct Maildir {
    name: Arc<str>,
    template: Arc<str>,
    host: Arc<str>,
    writers: Semaphore,
    disk: Disk,
}

/// How a message comes into its Maildir; tests have some that fail or take their time.
#[derive(Clone, Copy)]
struct Disk {
    /// From `tmp` into `new`.
    rename: fn(&Path, &Path) -> io::Result<()>,
    /// Makes durable what was moved into the folder.
    sync: fn(&File) -> io::Result<()>,
}

impl Disk {
    const REAL: Self = Self {
        rename: |from, to| std::fs::rename(from, to),
        sync: File::sync_all,
    };
}

/// One delivery, moved to a thread that may block.
struct Job {
    envelope: Arc<Envelope>,
    recipients: Vec<usize>,
    prefix: Bytes,
    content: Content,
    template: Arc<str>,
    host: Arc<str>,
    disk: Disk,
    shared: Arc<JobState>,
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
            writers: Semaphore::new(WRITERS),
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
        let job = Job {
            envelope: mail.envelope.clone(),
            recipients: recipients.clone(),
            prefix: mail.prefix.clone(),
            content: mail.content.clone(),
            template: self.template.clone(),
            host: self.host.clone(),
            disk: self.disk,
            shared: shared.clone(),
        };
        let mut work = pin!(async {
            let _permit = self.writers.acquire().await;
            tokio::task::spawn_blocking(move || job.run()).await
        });
        let done = deadline.run(&mut work).await;
        drop(waiting);
        let why = match done {
            Ok(Ok(())) => "4.3.0 not written",
            Ok(Err(_)) => "4.3.0 writing to the Maildir was broken off",
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

    fn answer(&self, text: String) -> Answer {
        Answer {
            text,
            ..Answer::of(&self.name)
        }
    }

    /// A disk's trouble is ours and passes; it is never a reason to bounce.
    fn outcome(&self, result: io::Result<()>) -> Outcome {
        match result {
            Ok(()) => Outcome::Delivered(self.answer("2.0.0 written to the Maildir".to_owned())),
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
        for at in &self.recipients {
            let Some(recipient) = self.envelope.recipients.get(*at) else {
                continue;
            };
            if self.shared.abandoned.load(Ordering::SeqCst) {
                return;
            }
            if let Err(error) = self.deliver(*at, &recipient.mailbox) {
                self.shared.tell(*at, Err(error));
            }
        }
    }

    /// An error means that the message is not in the Maildir; that it is there is told as soon as it is.
    fn deliver(&self, at: usize, mailbox: &Mailbox) -> io::Result<()> {
        let maildir = folder(&self.template, mailbox);
        let name = self.unique_name();
        let (temporary, new) = (maildir.join("tmp").join(&name), maildir.join("new"));
        // `new` is opened before anything is moved there: without permission or descriptors nothing is.
        let open = || Ok::<_, io::Error>((File::open(&new)?, create(&temporary)?));
        let (folder, file) = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_maildir(&maildir)?;
                open()?
            }
            result => result?,
        };
        let moved = self.write(file, mailbox).and_then(|()| {
            if self.shared.abandoned.load(Ordering::SeqCst) {
                return Err(io::Error::other("given up"));
            }
            (self.disk.rename)(&temporary, &new.join(&name))
        });
        if moved.is_err() {
            // What could not be delivered must not fill the disk either.
            let _ = std::fs::remove_file(&temporary);
            return moved;
        }
        // From here on it is delivered, whatever happens.
        self.shared.tell(at, Ok(()));
        if let Err(error) = (self.disk.sync)(&folder) {
            // A disk that cannot sync may lose the move in a power cut. Delivered once more the message would be there
            // twice for certain, with every retry; and it cannot be taken back from somebody who has read it.
            tracing::warn!(folder = %new.display(), %error, "moved into the Maildir, but not synced");
        }
        Ok(())
    }

    fn write(&self, file: File, mailbox: &Mailbox) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(64 * 1024, file);
        writeln!(out, "Return-Path: {}", self.envelope.reverse_path)?;
        writeln!(out, "Delivered-To: {mailbox}")?;
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

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
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
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;
