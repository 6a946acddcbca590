//! New programs that turned out not to be traced.
//!
//! The kernel side looks at every new program until user space has decided about it, which may be late.
//! In: the decisions. Out: whether what comes out of the ring is of a program that was looked at for that
//! reason only. Pure.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

/// How long records of what was before a decision may wait in the ring.
const LONGEST_NS: u64 = 5_000_000_000;
/// As many as the kernel side has entries for.
const MOST: usize = 16_384;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Denied {
    /// By process: when that was decided.
    since: FxHashMap<u32, u64>,
    /// In the order of the decisions.
    order: VecDeque<(u64, u32)>,
}

impl Denied {
    /// Something is decided about a process.
    pub fn decided(&mut self, tgid: u32, is_traced: bool, now_ns: u64) {
        if is_traced {
            self.since.remove(&tgid);
            return;
        }
        if self.order.len() >= MOST
            && let Some((since, oldest)) = self.order.pop_front()
        {
            self.forget(oldest, since);
        }
        self.since.insert(tgid, now_ns);
        self.order.push_back((now_ns, tgid));
    }

    /// A process ended; its number may be used again.
    pub fn ended(&mut self, tgid: u32) {
        self.since.remove(&tgid);
    }

    /// True if what a process did is to be left out.
    pub fn has(&self, tgid: u32) -> bool {
        self.since.contains_key(&tgid)
    }

    /// True if that is so for none.
    pub fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// Time passed.
    pub fn expire(&mut self, now_ns: u64) {
        while let Some(&(since, tgid)) = self.order.front()
            && now_ns.saturating_sub(since) >= LONGEST_NS
        {
            self.order.pop_front();
            self.forget(tgid, since);
        }
    }

    /// Unless it was decided again since.
    fn forget(&mut self, tgid: u32, since_ns: u64) {
        if self.since.get(&tgid) == Some(&since_ns) {
            self.since.remove(&tgid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_decision_holds() {
        let mut denied = Denied::default();
        assert!(denied.is_empty());
        denied.decided(1, false, 10);
        denied.decided(2, false, 20);
        assert!(denied.has(1) && denied.has(2) && !denied.has(3));
        denied.decided(1, true, 30);
        assert!(!denied.has(1));
        denied.ended(2);
        assert!(denied.is_empty());
    }

    #[test]
    fn they_expire_by_their_last_decision() {
        let mut denied = Denied::default();
        denied.decided(1, false, 10);
        denied.decided(2, false, 10);
        denied.decided(1, false, 20);
        denied.expire(10 + LONGEST_NS);
        assert!(denied.has(1) && !denied.has(2));
        denied.expire(20 + LONGEST_NS);
        assert!(denied.is_empty());
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let mut denied = Denied::default();
        for tgid in 0..=MOST as u32 {
            denied.decided(tgid, false, u64::from(tgid));
        }
        assert!(!denied.has(0) && denied.has(1) && denied.has(MOST as u32));
        assert_eq!((denied.since.len(), denied.order.len()), (MOST, MOST));
    }
}
