//! An encoder for tests.

/// An encoder that uses a table of the given size and writes plain strings.
#[derive(Clone, Debug)]
pub(crate) struct Encoder {
    entries: std::collections::VecDeque<(String, String)>,
    limit: usize,
}

impl Encoder {
    pub(crate) fn new(limit: usize) -> Self {
        Encoder {
            entries: Default::default(),
            limit,
        }
    }

    /// Appends a field; `index`: it gets into the table.
    pub(crate) fn field(&mut self, name: &str, value: &str, index: bool, block: &mut Vec<u8>) {
        let known = self
            .entries
            .iter()
            .position(|(n, v)| n == name && v == value);
        if let Some(position) = known {
            write_integer(block, 0x80, 7, 62 + position);
            return;
        }
        let named = self
            .entries
            .iter()
            .position(|(n, _)| n == name)
            .map_or(0, |position| 62 + position);
        // Names of the static table come first, as every encoder has it.
        let named = match name {
            ":authority" => 1,
            ":method" => 2,
            ":path" => 4,
            ":scheme" => 6,
            ":status" => 8,
            "content-type" => 31,
            "server" => 54,
            _ => named,
        };
        let (first, prefix) = if index { (0x40, 6) } else { (0, 4) };
        write_integer(block, first, prefix, named);
        if named == 0 {
            write_integer(block, 0, 7, name.len());
            block.extend_from_slice(name.as_bytes());
        }
        write_integer(block, 0, 7, value.len());
        block.extend_from_slice(value.as_bytes());
        if index {
            let size = |(n, v): &(String, String)| n.len() + v.len() + 32;
            let entry = (name.to_string(), value.to_string());
            while !self.entries.is_empty()
                && self.entries.iter().map(size).sum::<usize>() + size(&entry) > self.limit
            {
                self.entries.pop_back();
            }
            if size(&entry) <= self.limit {
                self.entries.push_front(entry);
            }
        }
    }
}

pub(crate) fn write_integer(block: &mut Vec<u8>, first: u8, prefix: u8, value: usize) {
    let max = (1usize << prefix) - 1;
    if value < max {
        block.push(first | value as u8);
        return;
    }
    block.push(first | max as u8);
    let mut rest = value - max;
    while rest >= 128 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}
