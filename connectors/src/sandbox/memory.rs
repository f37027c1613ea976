//! What a target remembers: bounded in time and in number, the oldest forgotten first.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// Values by name, each for as long as the window since it came.
#[derive(Debug)]
pub(super) struct Memory<V> {
    window: Option<Duration>,
    count_max: usize,
    values: HashMap<String, V>,
    /// In the order in which they came; a name stands here once for each value that it has.
    order: VecDeque<(Instant, String)>,
}

impl<V> Memory<V> {
    /// Forgets after the window, if there is one, and the oldest beyond so many.
    pub(super) fn new(window: Option<Duration>, count_max: usize) -> Memory<V> {
        Memory { window, count_max: count_max.max(1), values: HashMap::new(), order: VecDeque::new() }
    }

    /// The value, if it is still known.
    pub(super) fn get(&mut self, name: &str) -> Option<&V> {
        self.forget(Instant::now());
        self.values.get(name)
    }

    /// Remembers a value. A name that is known keeps its age: a repeat does not renew what the target promised.
    pub(super) fn put(&mut self, name: String, value: V) {
        let now = Instant::now();
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push_back((now, name));
        }
        self.forget(now);
    }

    pub(super) fn clear(&mut self) {
        self.values.clear();
        self.order.clear();
    }

    fn forget(&mut self, now: Instant) {
        let expired = |since: &Instant| self.window.is_some_and(|window| now.duration_since(*since) >= window);
        while self.order.front().is_some_and(|(since, _)| self.order.len() > self.count_max || expired(since)) {
            if let Some((_, name)) = self.order.pop_front() {
                self.values.remove(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn keys_are_forgotten_after_the_window_and_beyond_the_count() {
        let mut memory = Memory::new(Some(Duration::from_secs(10)), 2);
        memory.put("a".into(), 1);
        tokio::time::advance(Duration::from_secs(6)).await;
        memory.put("a".into(), 2);
        memory.put("b".into(), 3);
        assert_eq!(memory.get("a"), Some(&2));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(memory.get("a"), None, "a repeat does not renew the window");
        assert_eq!(memory.get("b"), Some(&3));
        memory.put("c".into(), 4);
        memory.put("d".into(), 5);
        assert!(memory.get("b").is_none() && memory.get("c").is_some() && memory.get("d").is_some());
    }
}
