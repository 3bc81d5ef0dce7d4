//! The way of records and their contents to the writer: large contents become files first.

use std::io;

use jiff::Timestamp;

use super::SqliteStore;
use super::bodies::{Written, failed};
use super::folder::{BODIES_LOCK, lock_shared};
use super::health::Part;
use super::row::Row;
use super::work::{NewRow, Room, Work, change_of};
use super::{Role, writer};
use crate::message::{Content, MessageId};
use crate::store::{Change, Lane, Record, StoreError};

impl SqliteStore {
    /// Writes new mail.
    pub(super) async fn put_until(
        &self,
        records: Vec<Record>,
        content: Content,
        lease: Option<Timestamp>,
        room: Room,
    ) -> Result<(), StoreError> {
        if room != Room::Reserve {
            self.health.check_part(Part::Reserve)?;
        }
        for part in [Part::OpenFiles, Part::Pages] {
            self.health.check_part(part)?;
        }
        let each = |record| (record, content.clone());
        let new = records.into_iter().map(each).collect();
        self.write(new, lease, None, room).await
    }

    /// Records that come from mail that the relay already has may use the reserve.
    pub(super) async fn settle_in(
        &self,
        lane: Lane,
        id: MessageId,
        change: Change,
        beside: Vec<(Record, Content)>,
    ) -> Result<(), StoreError> {
        let work = change_of(Some(lane), id, change, None)?;
        match beside.is_empty() {
            true => self.submit(work).await.map(|_| ()),
            false => {
                let work = Some(Box::new(work));
                self.write(beside, None, work, Room::Reserve).await
            }
        }
    }

    async fn write(
        &self,
        new: Vec<(Record, Content)>,
        lease: Option<Timestamp>,
        beside: Option<Box<Work>>,
        room: Room,
    ) -> Result<(), StoreError> {
        let (mut rows, mut large) = (Vec::with_capacity(new.len()), Vec::new());
        for (record, content) in new {
            let file = content.len() as u64 > self.inline_limit;
            if file {
                large.push((record.id, content.clone()));
            }
            let row = Row::encode(record, lease)?;
            rows.push(NewRow { row, content, file });
        }
        let files = match large.is_empty() {
            true => None,
            false => Some(self.write_files(large).await?),
        };
        let work = Work::Put {
            rows,
            files,
            beside,
            room,
        };
        self.submit(work).await.map(|_| ())
    }

    async fn write_files(
        &self,
        contents: Vec<(MessageId, Content)>,
    ) -> Result<Written, StoreError> {
        let place = self
            .files
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Closed)?;
        let bodies = self.bodies.clone();
        let health = self.health.clone();
        let guard = match self.role {
            Role::Tool => Some(self.folder.join(BODIES_LOCK)),
            Role::Relay => None,
        };
        let write = move || {
            let _place = place;
            let guard = guard.map(|path| lock_shared(&path)).transpose()?;
            let octets = contents.iter().map(|(_, content)| content.len()).sum();
            match Written::write(bodies, contents, guard) {
                Ok(written) => {
                    health.wrote(octets);
                    health.set(Part::Files, Ok(()));
                    Ok(written)
                }
                Err((_, error)) if error.kind() == io::ErrorKind::AlreadyExists => {
                    Err(writer::taken())
                }
                Err((path, error)) => {
                    let error = failed(&path, &error);
                    health.set(Part::Files, Err(error.clone()));
                    Err(error)
                }
            }
        };
        tokio::task::spawn_blocking(write)
            .await
            .map_err(|error| StoreError::Broken(error.to_string()))?
    }
}
