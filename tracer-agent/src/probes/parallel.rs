//! The same work on many things, by several threads at once.
//!
//! The verifier takes a second of CPU time for all programs. Attaching waits: the kernel has one lock for
//! it, which an agent that ends holds for a grace period for each of its hooks. Who waits for it with
//! all hooks at once waits for one such period; one hook after the other would wait for nearly all.

use std::sync::{Mutex, PoisonError};

/// Does `work` on every item, on `threads` threads at most, this one among them. The results are in the
/// order of the items. Where threads cannot be had, fewer do it.
pub(super) fn each<T: Send, R: Send>(
    items: Vec<T>,
    threads: usize,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let threads = threads.min(items.len());
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let queue = Mutex::new(items.into_iter().enumerate());
    let go_on = || {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((index, item)) = next else {
                return;
            };
            let result = work(item);
            done.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((index, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            let thread = std::thread::Builder::new().name("probes".into());
            if thread.spawn_scoped(scope, go_on).is_err() {
                break;
            }
        }
        go_on();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    fn check(items: usize, threads: usize) {
        let results = each((0..items).collect(), threads, |item| item * 2);
        let expected: Vec<usize> = (0..items).map(|item| item * 2).collect();
        assert_eq!(results, expected, "{items} items, {threads} threads");
    }

    #[test]
    fn everything_is_done_once_and_in_order() {
        for (items, threads) in [(0, 4), (1, 4), (100, 0), (100, 1), (100, 7), (3, 64)] {
            check(items, threads);
        }
    }

    #[test]
    fn it_is_done_at_the_same_time() {
        // With fewer threads nobody would get past it.
        let barrier = Barrier::new(8);
        let results = each(vec![(); 8], 8, |()| barrier.wait().is_leader());
        assert_eq!(results.iter().filter(|leads| **leads).count(), 1);
    }
}
