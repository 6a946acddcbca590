//! A bounded queue of messages on disk: segments in one directory, oldest first.
//!
//! In: messages to append. Out: messages in order, each until it is settled. Files:
//!
//! | file | what |
//! | --- | --- |
//! | `00000000000000000001.seg`, ... | segments (`super::segment`) |
//! | `position` | segment and offset of the first record that is not settled yet |
//! | `lock` | held by the agent that uses the directory |
//!
//! Guarantees: what was appended survives the end of the process in any way (it is in the page
//! cache, see [`Log::sync`] for more); a record is given out again after a crash until it was
//! settled, so delivery is at least once. Bound: bytes of all segments; beyond it the oldest segment
//! is dropped, and its spans are counted. Blocking I/O: runs on a thread of its own.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::segment::{self, Found, MAGIC};

/// How long the lock of an agent that ends is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// What became of spans on disk, as it happened; the owner counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Dropped to stay within the bound.
    pub full: u64,
    /// In records that are damaged or cut off, as far as their headers say.
    pub damaged: u64,
    /// Segments with bytes that are no records: how many spans those held nobody knows.
    pub segments: u64,
}

/// A message on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which; for [`Log::settle`].
    pub place: Place,
    /// Spans in it.
    pub spans: u32,
    /// The message.
    pub message: Bytes,
}

/// Where a record begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    segment: u64,
    offset: u64,
}

/// The open spool.
#[derive(Debug)]
pub struct Log {
    directory: PathBuf,
    max_bytes: u64,
    segment_bytes: u64,
    segments: VecDeque<Segment>,
    /// The last segment is written to, if this process made it.
    writing: bool,
    next_number: u64,
    position: File,
    losses: Losses,
    dirty: bool,
    /// A segment was made whose name may not be on the disk yet.
    unnamed: bool,
    _lock: File,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    file: File,
    size: u64,
    /// Offset of the next record to give out.
    next: u64,
    /// Spans in records that were not given out yet.
    unread: u64,
}

impl Segment {
    fn is_read(&self) -> bool {
        self.next >= self.size
    }
}

/// Takes the lock, or says who has it. An agent that is being restarted may still be ending, and a
/// process that is being started holds our files until it executes its program.
fn take(lock: &File) -> io::Result<()> {
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(fs::TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "another agent uses it",
                ));
            }
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
}

impl Log {
    /// Opens or makes `directory` and looks through what is there. An error says that it cannot be
    /// used at all; damage is counted instead.
    pub fn open(directory: &Path, max_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let open = |name: &str| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options.open(directory.join(name))
        };
        let lock = open("lock")?;
        take(&lock)?;
        let mut log = Self {
            directory: directory.to_owned(),
            max_bytes,
            // Dropping the oldest segment must not drop everything.
            segment_bytes: (max_bytes / 16).clamp(64 * 1024, 16 * 1024 * 1024),
            segments: VecDeque::new(),
            writing: false,
            next_number: 1,
            position: open("position")?,
            losses: Losses::default(),
            dirty: false,
            unnamed: false,
            _lock: lock,
        };
        log.recover()?;
        Ok(log)
    }

    fn recover(&mut self) -> io::Result<()> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".seg"));
            numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        let settled = self.read_position().unwrap_or(Place {
            segment: 0,
            offset: 0,
        });
        // A number that was settled once must not be used again: its segment would be taken for done.
        self.next_number = self.next_number.max(settled.segment);
        for number in numbers {
            self.next_number = self.next_number.max(number.saturating_add(1));
            if number < settled.segment {
                self.remove(number);
                continue;
            }
            let from = if number == settled.segment {
                settled.offset
            } else {
                0
            };
            match self.scan(number, from) {
                Ok(Some(segment)) => self.segments.push_back(segment),
                Ok(None) => self.remove(number),
                Err(_) => {
                    // Left where it is: what cannot be read now may be read by the next start.
                    self.losses.segments += 1;
                }
            }
        }
        self.keep_bound(0);
        Ok(())
    }

    /// Walks a segment of an earlier process from `from` on. What follows its last record is cut
    /// off. `None`: nothing is left in it.
    fn scan(&mut self, number: u64, from: u64) -> io::Result<Option<Segment>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(number))?;
        let size = file.metadata()?.len();
        if !segment::has_magic(&file, size)? {
            // Shorter: made, but not written to before the end came.
            self.losses.segments += u64::from(size >= MAGIC.len() as u64);
            return Ok(None);
        }
        let start = from.max(MAGIC.len() as u64);
        let (mut offset, mut unread) = (start, 0);
        loop {
            match segment::read(&file, size, offset)? {
                Found::End => break,
                Found::Record(head, _) | Found::Damaged(head) => {
                    unread += u64::from(head.spans);
                    offset += head.size();
                }
                Found::Torn(head) => {
                    self.losses.damaged += u64::from(head.spans);
                    break;
                }
                Found::Lost => {
                    // Less than a header at the end is a torn write; more is damage.
                    self.losses.segments += 1;
                    break;
                }
            }
        }
        if offset < size {
            file.set_len(offset)?;
        }
        Ok((offset > start).then_some(Segment {
            number,
            file,
            size: offset,
            next: start,
            unread,
        }))
    }

    /// Adds a message at the end. An error (a full disk) leaves the spool as it was.
    pub fn append(&mut self, spans: u32, message: &[u8]) -> io::Result<()> {
        let Some(record) = segment::record(spans, message) else {
            return Err(io::Error::other("the message is too large for the spool"));
        };
        let added = record.len() as u64;
        if added + MAGIC.len() as u64 > self.max_bytes {
            return Err(io::Error::other(
                "the message is larger than --spool-max-bytes",
            ));
        }
        let has_room = |last: &Segment| {
            last.size + added <= self.segment_bytes || last.size == MAGIC.len() as u64
        };
        if !self.segments.back().is_some_and(has_room) {
            self.seal();
        }
        self.keep_bound(added + MAGIC.len() as u64);
        if !self.writing {
            self.begin_segment()?;
        }
        let Some(last) = self.segments.back_mut() else {
            return Err(io::Error::other("no segment to write to"));
        };
        if let Err(error) = last.file.write_all_at(&record, last.size) {
            // Part of it may be there: a reader after a crash would have to step over it.
            let _ = last.file.set_len(last.size);
            return Err(error);
        }
        last.size += added;
        last.unread += u64::from(spans);
        self.dirty = true;
        Ok(())
    }

    /// The oldest message that was not given out yet. Damaged ones are counted and stepped over.
    pub fn take_next(&mut self) -> Option<Record> {
        loop {
            let segment = self
                .segments
                .iter_mut()
                .find(|segment| !segment.is_read())?;
            let place = Place {
                segment: segment.number,
                offset: segment.next,
            };
            match segment::read(&segment.file, segment.size, segment.next) {
                Ok(Found::Record(head, message)) => {
                    segment.next += head.size();
                    segment.unread = segment.unread.saturating_sub(u64::from(head.spans));
                    return Some(Record {
                        place,
                        spans: head.spans,
                        message,
                    });
                }
                Ok(Found::Damaged(head)) => {
                    segment.next += head.size();
                    segment.unread = segment.unread.saturating_sub(u64::from(head.spans));
                    self.losses.damaged += u64::from(head.spans);
                }
                Ok(Found::End | Found::Lost | Found::Torn(_)) | Err(_) => {
                    // Damaged since it was written or looked through.
                    segment.next = segment.size;
                    self.losses.damaged += std::mem::take(&mut segment.unread);
                    self.losses.segments += 1;
                }
            }
        }
    }

    /// The message of `place`, and all before it, need not be given out again.
    pub fn settle(&mut self, place: Place) {
        while let Some(first) = self.segments.front() {
            let written_to = self.writing && self.segments.len() == 1;
            if !first.is_read() || first.number > place.segment || written_to {
                break;
            }
            let number = first.number;
            self.segments.pop_front();
            self.remove(number);
        }
        let position = match self.segments.front() {
            Some(first) if first.is_read() && self.segments.len() == 1 => {
                // Everything is delivered: start anew, so that an empty spool takes no room.
                let number = first.number;
                self.segments.clear();
                self.writing = false;
                self.remove(number);
                Place {
                    segment: self.next_number,
                    offset: 0,
                }
            }
            Some(first) => Place {
                segment: first.number,
                offset: first.next,
            },
            None => Place {
                segment: self.next_number,
                offset: 0,
            },
        };
        self.write_position(position);
    }

    /// Puts what was appended onto the disk itself: from here on it survives a power failure too.
    pub fn sync(&mut self) {
        if std::mem::take(&mut self.dirty)
            && let Some(last) = self.segments.back()
        {
            // A disk that fails here fails the next append too, which is counted.
            let _ = last.file.sync_data();
            if std::mem::take(&mut self.unnamed) {
                let _ = File::open(&self.directory).and_then(|directory| directory.sync_all());
            }
        }
    }

    /// Whether there is something to sync.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.size).sum()
    }

    /// Spans that were not given out yet.
    pub fn unread(&self) -> u64 {
        self.segments.iter().map(|segment| segment.unread).sum()
    }

    /// What was lost since the last call.
    pub fn take_losses(&mut self) -> Losses {
        std::mem::take(&mut self.losses)
    }

    /// Drops the oldest segments until `room` more bytes fit.
    fn keep_bound(&mut self, room: u64) {
        while self.bytes() + room > self.max_bytes {
            let Some(oldest) = self.segments.pop_front() else {
                break;
            };
            self.writing &= !self.segments.is_empty();
            self.losses.full += oldest.unread;
            self.remove(oldest.number);
        }
    }

    fn seal(&mut self) {
        self.sync();
        self.writing = false;
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        let number = self.next_number;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.path(number))?;
        // Taken even if the header cannot be written: the file is there.
        self.next_number = number.saturating_add(1);
        if let Err(error) = file.write_all_at(&MAGIC, 0) {
            self.remove(number);
            return Err(error);
        }
        self.segments.push_back(Segment {
            number,
            file,
            size: MAGIC.len() as u64,
            next: MAGIC.len() as u64,
            unread: 0,
        });
        self.writing = true;
        self.unnamed = true;
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:020}.seg"))
    }

    /// A file that cannot be removed is behind the position and is tried again at the next start.
    fn remove(&self, number: u64) {
        let _ = fs::remove_file(self.path(number));
    }

    /// `None` if there is none, or if its writing was cut short: then everything is given out again.
    fn read_position(&self) -> Option<Place> {
        let mut bytes = [0; 20];
        self.position.read_exact_at(&mut bytes, 0).ok()?;
        let (fields, crc) = bytes.split_last_chunk::<4>()?;
        let (segment, rest) = fields.split_first_chunk::<8>()?;
        let offset = rest.first_chunk::<8>()?;
        (crc32fast::hash(fields) == u32::from_le_bytes(*crc)).then(|| Place {
            segment: u64::from_le_bytes(*segment),
            offset: u64::from_le_bytes(*offset),
        })
    }

    /// Not synced: after a power failure an older position gives messages out once more. Errors
    /// mean the same.
    fn write_position(&self, place: Place) {
        let mut bytes = Vec::with_capacity(20);
        bytes.extend_from_slice(&place.segment.to_le_bytes());
        bytes.extend_from_slice(&place.offset.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        let _ = self.position.write_all_at(&bytes, 0);
    }
}
