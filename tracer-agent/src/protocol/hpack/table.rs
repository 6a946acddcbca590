//! The static table, and the dynamic table as far as it was seen.
//!
//! In: insertions and size updates. Out: the entry of an index, or that it is not known.
//!
//! What is certain: an index counts insertions back from the newest. An encoder never refers to an
//! entry that it evicted, so that the n-th newest insertion is what index n means, whatever was
//! evicted or too large to be inserted in between. Joining late or losing bytes therefore only
//! makes unknown what is older; nothing newer can be mistaken. For the same reason it does no harm
//! to keep entries longer than the peer does, and the peer's limit need not be known.

use std::collections::VecDeque;

/// RFC 7541, appendix A.
#[rustfmt::skip]
static STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// What an entry costs beside its bytes (RFC 7541, section 4.1).
const OVERHEAD: usize = 32;

/// Size of the table before anything was said (RFC 9113, section 6.5.2).
pub(super) const DEFAULT_LIMIT: usize = 4096;

/// Most that is kept of a table; what a peer with a larger one refers to beyond this is not known.
pub(super) const MAX_LIMIT: usize = 64 * 1024;

/// Largest index that any real table has: beyond it the block is not HPACK.
const MAX_INDEX: u32 = 1 << 16;

/// An insertion. Its name is missing if that was a reference to an entry not seen.
#[derive(Debug)]
struct Entry {
    bytes: Box<[u8]>,
    name: Option<usize>,
}

impl Entry {
    fn size(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }
}

/// Name and value; `None` where not known.
pub(super) type Pair<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// The dynamic table of one direction.
#[derive(Debug)]
pub(super) struct Table {
    /// Newest first.
    entries: VecDeque<Entry>,
    size: usize,
    limit: usize,
}

impl Table {
    /// `limit` is what is kept, not what the peer keeps.
    pub(super) fn new(limit: usize) -> Self {
        Table {
            entries: VecDeque::new(),
            size: 0,
            limit,
        }
    }

    /// What `index` means; `None` if no table has such an index.
    pub(super) fn pair(&self, index: u32) -> Option<Pair<'_>> {
        let index =
            usize::try_from(index.checked_sub(1).filter(|index| *index < MAX_INDEX)?).ok()?;
        if let Some((name, value)) = STATIC.get(index) {
            return Some((Some(name), Some(value)));
        }
        let Some(entry) = self.entries.get(index - STATIC.len()) else {
            return Some((None, None));
        };
        Some(
            match entry
                .name
                .and_then(|length| entry.bytes.split_at_checked(length))
            {
                Some((name, value)) => (Some(name), Some(value)),
                None => (None, Some(&entry.bytes)),
            },
        )
    }

    pub(super) fn insert(&mut self, name: Option<&[u8]>, value: &[u8]) {
        self.push(Entry {
            bytes: [name.unwrap_or_default(), value].concat().into(),
            name: name.map(<[u8]>::len),
        });
    }

    /// Inserts a value with the name of the entry at `index`.
    pub(super) fn insert_named(&mut self, index: u32, value: &[u8]) {
        let (name, _) = self.pair(index).unwrap_or_default();
        let entry = Entry {
            bytes: [name.unwrap_or_default(), value].concat().into(),
            name: name.map(<[u8]>::len),
        };
        self.push(entry);
    }

    fn push(&mut self, entry: Entry) {
        self.shrink(self.limit.saturating_sub(entry.size()));
        // One that does not fit empties the table (RFC 7541, section 4.4).
        if entry.size() <= self.limit {
            self.size += entry.size();
            self.entries.push_front(entry);
        }
    }

    /// The peer said how large its table is from here on.
    pub(super) fn update(&mut self, limit: u32) {
        self.limit = usize::try_from(limit).unwrap_or(MAX_LIMIT).min(MAX_LIMIT);
        self.shrink(self.limit);
    }

    /// Keeps at least so much, as far as that is allowed.
    pub(super) fn keep(&mut self, limit: u32) {
        let limit = usize::try_from(limit).unwrap_or(MAX_LIMIT).min(MAX_LIMIT);
        self.limit = self.limit.max(limit);
    }

    /// Insertions may have been missed: what was seen before has no known index any more.
    pub(super) fn forget(&mut self) {
        self.entries.clear();
        self.size = 0;
        self.limit = MAX_LIMIT;
    }

    fn shrink(&mut self, size: usize) {
        while self.size > size {
            match self.entries.pop_back() {
                Some(entry) => self.size = self.size.saturating_sub(entry.size()),
                None => self.size = 0,
            }
        }
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.entries.len(), self.size)
    }
}
