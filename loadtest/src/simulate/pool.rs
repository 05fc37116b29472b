//! Independent runs on several threads, results in the order of the work.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Does all of `work`, `threads` at a time.
pub(super) fn run<I: Sync, T: Send>(
    threads: usize,
    work: &[I],
    each: impl Fn(&I) -> T + Sync,
) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, T)>> = Mutex::new(Vec::with_capacity(work.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, work.len().max(1)) {
            scope.spawn(|| {
                while let Some((index, item)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    work.get(index).map(|item| (index, item))
                } {
                    let result = each(item);
                    let mut results = results.lock().unwrap_or_else(|broken| broken.into_inner());
                    results.push((index, result));
                    progress(results.len(), work.len());
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(|broken| broken.into_inner());
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// A line that overwrites itself, for people only.
fn progress(done: usize, all: usize) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        // A terminal that is gone is no reason to stop.
        let _ = write!(out, "\r{done}/{all} runs ");
        if done == all {
            let _ = write!(out, "\r                    \r");
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_come_in_the_order_of_the_work() {
        let work: Vec<u64> = (0..50).collect();
        let squares = super::run(2, &work, |n| n * n);
        assert!(squares.iter().zip(&work).all(|(square, n)| *square == n * n));
    }
}
