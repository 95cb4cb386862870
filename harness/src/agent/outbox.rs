//! Where events go out, and the clock they carry.

use super::wire::Event;
use nix::time::{ClockId, clock_gettime};
use std::{
    io::Write,
    sync::{Arc, Mutex, PoisonError},
};

/// Nanoseconds of CLOCK_REALTIME.
pub(super) fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME)
        .map_or(0, |time| time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs())
}

/// Writes events, one a line; shared by all threads.
#[derive(Clone)]
pub(super) struct Outbox(Arc<Mutex<Box<dyn Write + Send>>>);

impl Outbox {
    pub(super) fn new(output: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Box::new(output))))
    }

    /// Writes one event. Blocks while the engine does not read.
    pub(super) fn send(&self, event: &Event) {
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        let mut output = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if output.write_all(&line).and_then(|()| output.flush()).is_err() {
            // The engine is gone; nobody is left to work for.
            std::process::exit(1);
        }
    }

    pub(super) fn error(&self, about: Option<String>, text: String) {
        self.send(&Event::Error { about, text });
    }
}
