//! Cuts the API's JSON into objects while it arrives, so that one object is all that is ever held.
//!
//! In: pieces of a body, cut anywhere. Out: every object of a watch's stream, or of a list's array,
//! complete. What surrounds the items of a list is kept apart ([`Splitter::rest`]). It does not
//! judge the JSON: serde does, object by object.

/// Longest object; etcd takes 1.5 MiB by default.
const OBJECT_MAX: usize = 8 * 1024 * 1024;
/// What a list says beside its items.
const REST_MAX: usize = 64 * 1024;
/// Deeper JSON is none of the API's.
const DEPTH_MAX: u32 = 512;

/// A body that cannot be what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// An object beyond any size that the API stores.
    #[error("an object is larger than {OBJECT_MAX} bytes")]
    TooLarge,
    /// Brackets that do not fit, or nested beyond reason.
    #[error("the body is not the JSON that was asked for")]
    NotJson,
}

/// See the module's text.
#[derive(Debug)]
pub struct Splitter {
    /// Objects that begin this deep are handed out: 0 in a stream, 2 in a list's array.
    at_depth: u32,
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// What is open at that depth is an array (of items), not an object (such as the metadata).
    in_array: bool,
    /// Inside of an object to hand out.
    inside: bool,
    object: Vec<u8>,
    rest: Vec<u8>,
}

impl Splitter {
    /// For a watch: objects one after the other.
    pub fn stream() -> Self {
        Self::at(0)
    }

    /// For a list: the objects in its array of items.
    pub fn list() -> Self {
        Self::at(2)
    }

    fn at(at_depth: u32) -> Self {
        Splitter {
            at_depth,
            depth: 0,
            in_string: false,
            escaped: false,
            in_array: at_depth == 0,
            inside: false,
            object: Vec::new(),
            rest: Vec::new(),
        }
    }

    /// Takes a piece; calls `each` with every object that it completes.
    pub fn push(&mut self, piece: &[u8], each: &mut dyn FnMut(&[u8])) -> Result<(), SplitError> {
        for &byte in piece {
            self.byte(byte, each)?;
        }
        Ok(())
    }

    fn byte(&mut self, byte: u8, each: &mut dyn FnMut(&[u8])) -> Result<(), SplitError> {
        if self.in_string {
            match (self.escaped, byte) {
                (true, _) => self.escaped = false,
                (false, b'\\') => self.escaped = true,
                (false, b'"') => self.in_string = false,
                (false, _) => {}
            }
            return self.keep(byte);
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => {
                if byte == b'{' && self.depth == self.at_depth && self.in_array {
                    self.inside = true;
                }
                self.depth += 1;
                if self.depth == self.at_depth {
                    self.in_array = byte == b'[';
                }
                if self.depth > DEPTH_MAX {
                    return Err(SplitError::NotJson);
                }
            }
            b'}' | b']' => {
                self.depth = self.depth.checked_sub(1).ok_or(SplitError::NotJson)?;
                if self.inside && self.depth == self.at_depth {
                    self.keep(byte)?;
                    self.inside = false;
                    each(&self.object);
                    self.object.clear();
                    // One large object does not keep its room for ever.
                    self.object.shrink_to(64 * 1024);
                    return Ok(());
                }
            }
            // Between items: without them no comma.
            b',' if !self.inside && self.depth == self.at_depth && self.in_array => return Ok(()),
            _ => {}
        }
        self.keep(byte)
    }

    fn keep(&mut self, byte: u8) -> Result<(), SplitError> {
        let (kept, most) = match self.inside {
            true => (&mut self.object, OBJECT_MAX),
            false if byte.is_ascii_whitespace() && !self.in_string => return Ok(()),
            false => (&mut self.rest, REST_MAX),
        };
        if kept.len() >= most {
            return Err(SplitError::TooLarge);
        }
        kept.push(byte);
        Ok(())
    }

    /// Everything but the objects that were handed out.
    pub fn rest(&self) -> &[u8] {
        &self.rest
    }

    /// Whether the body ended where one can end.
    pub fn is_whole(&self) -> bool {
        self.depth == 0 && !self.in_string
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(mut splitter: Splitter, pieces: &[&[u8]]) -> (Vec<String>, String, bool) {
        let mut objects = Vec::new();
        for piece in pieces {
            let mut each = |object: &[u8]| {
                objects.push(String::from_utf8_lossy(object).into_owned());
            };
            splitter.push(piece, &mut each).expect("JSON");
        }
        let rest = String::from_utf8_lossy(splitter.rest()).into_owned();
        (objects, rest, splitter.is_whole())
    }

    const LIST: &str = r#"{"kind":"PodList","metadata":{"resourceVersion":"7","continue":""},
        "items":[{"a":"}]\"{"}, {"b":[{"c":{}}]}]}"#;

    #[test]
    fn a_list() {
        let (objects, rest, whole) = split(Splitter::list(), &[LIST.as_bytes()]);
        assert_eq!(objects, [r#"{"a":"}]\"{"}"#, r#"{"b":[{"c":{}}]}"#]);
        let rest: super::super::model::List = serde_json::from_str(&rest).expect("the rest");
        assert_eq!(&*rest.metadata.resource_version, "7");
        assert!(whole);
    }

    #[test]
    fn a_stream() {
        let text = b"{\"type\":\"ADDED\"}\n{\"x\":[1,{}]}{}\n{\"cut";
        let (objects, rest, whole) = split(Splitter::stream(), &[text]);
        assert_eq!(objects, [r#"{"type":"ADDED"}"#, r#"{"x":[1,{}]}"#, "{}"]);
        assert_eq!((rest.as_str(), whole), ("", false));
    }

    #[test]
    fn what_is_not_json_is_refused() {
        let mut nothing = |_: &[u8]| {};
        for (text, expected) in [
            (b"}".to_vec(), SplitError::NotJson),
            (b"[".repeat(600), SplitError::NotJson),
            (b"<html>".repeat(20_000), SplitError::TooLarge),
            (
                [b"{\"".to_vec(), b"x".repeat(OBJECT_MAX)].concat(),
                SplitError::TooLarge,
            ),
        ] {
            let refused = Splitter::stream().push(&text, &mut nothing);
            assert_eq!(refused, Err(expected));
        }
    }

    proptest! {
        /// Scenario: a body cut anywhere. Guarantee: the same objects and the same rest.
        #[test]
        fn any_split_gives_the_same(at in 0..LIST.len(), then in 0..LIST.len()) {
            let (first, second) = (at.min(then), at.max(then));
            let bytes = LIST.as_bytes();
            let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
            prop_assert_eq!(split(Splitter::list(), &pieces), split(Splitter::list(), &[bytes]));
        }

        /// Scenario: any bytes. Guarantee: an answer.
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for mut splitter in [Splitter::list(), Splitter::stream()] {
                let _ = splitter.push(&bytes, &mut |_| {});
            }
        }
    }
}
