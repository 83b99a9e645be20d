//! Lines of the log on their way out.
//!
//! The access line of a request waits some milliseconds for others, and a thread writes them together: no request waits for a
//! terminal or a collector. Every other line is written at once, behind what waits, so the order stays. Nothing is ever
//! dropped: when too much waits because the reader is slow, whoever logs writes it out and waits for the reader.

use std::io::{self, Stderr, Write};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::Duration;

use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

/// How long a line may wait for others.
const PATIENCE: Duration = Duration::from_millis(5);
/// Bytes that are worth a write of their own.
const MANY: usize = 64 << 10;
/// Bytes that wait at most.
const FULL: usize = 1 << 20;

/// The lines of this process.
static LINES: OnceLock<Lines<Stderr>> = OnceLock::new();

struct Lines<W> {
    waiting: Mutex<Vec<u8>>,
    wake: Condvar,
    /// Taken before `waiting`, so that lines leave in the order in which they came.
    sink: Mutex<W>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: Write> Lines<W> {
    fn new(sink: W) -> Self {
        Self { waiting: Mutex::default(), wake: Condvar::new(), sink: Mutex::new(sink) }
    }

    /// Adds a line; `patient` lines wait for others.
    fn put(&self, line: &[u8], patient: bool) {
        let mut waiting = lock(&self.waiting);
        let first = waiting.is_empty();
        waiting.extend_from_slice(line);
        let length = waiting.len();
        drop(waiting);
        if !patient || length >= FULL {
            self.flush();
        } else if first || (MANY..MANY + line.len()).contains(&length) {
            self.wake.notify_one();
        }
    }

    /// Writes what waits.
    fn flush(&self) {
        self.write_out(&mut lock(&self.sink));
    }

    fn write_out(&self, sink: &mut W) {
        let text = std::mem::take(&mut *lock(&self.waiting));
        // A log that nobody can read is no reason to stop.
        let _ = sink.write_all(&text).and_then(|()| sink.flush());
    }

    /// As [`Self::flush`], unless the thread that asks holds a lock itself. For the moment of a panic.
    fn flush_if_possible(&self) {
        let sink = match self.sink.try_lock() {
            Ok(sink) => Some(sink),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(mut sink) = sink
            && !matches!(self.waiting.try_lock(), Err(TryLockError::WouldBlock))
        {
            self.write_out(&mut sink);
        }
    }

    /// Writes patient lines for ever.
    fn serve(&self) -> ! {
        loop {
            let waiting = lock(&self.waiting);
            let waiting = self.wake.wait_while(waiting, |waiting| waiting.is_empty());
            let waiting = waiting.unwrap_or_else(PoisonError::into_inner);
            // Others join it, until there are many or the first has waited long enough.
            drop(self.wake.wait_timeout_while(waiting, PATIENCE, |waiting| waiting.len() < MANY));
            self.flush();
        }
    }
}

/// Where the log's layers write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Out {
    /// There is a thread for the lines that wait.
    served: bool,
}

/// Takes one line.
#[derive(Debug)]
pub(super) struct Line {
    patient: bool,
}

impl Out {
    /// Standard error. Also sees to it that a panic finds an empty queue.
    pub(super) fn start() -> Self {
        LINES.get_or_init(|| Lines::new(io::stderr()));
        let thread = std::thread::Builder::new().name("log".to_owned());
        let served = thread.spawn(|| LINES.get().map(Lines::serve)).is_ok();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if let Some(lines) = LINES.get() {
                lines.flush_if_possible();
            }
            hook(panic);
        }));
        Self { served }
    }
}

impl<'a> MakeWriter<'a> for Out {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { patient: false }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        Line { patient: self.served && metadata.target() == "access" }
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        LINES.get_or_init(|| Lines::new(io::stderr())).put(line, self.patient);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what waits. Call it before the process ends.
pub(crate) fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn written(lines: &Lines<Vec<u8>>) -> String {
        String::from_utf8_lossy(&lock(&lines.sink)).into_owned()
    }

    #[test]
    fn a_line_that_cannot_wait_takes_those_before_it_along() {
        let lines = Lines::new(Vec::new());

        lines.put(b"one\n", true);
        assert_eq!(written(&lines), "");
        lines.put(b"two\n", false);
        lines.put(b"three\n", true);
        assert_eq!(written(&lines), "one\ntwo\n");
        lines.flush();

        assert_eq!(written(&lines), "one\ntwo\nthree\n");
    }

    #[test]
    fn when_too_much_waits_it_is_written_not_dropped() {
        let lines = Lines::new(Vec::new());
        let line = [b"x".repeat(999), b"\n".to_vec()].concat();

        for _ in 0..3000 {
            lines.put(&line, true);
        }

        assert!(written(&lines).len() > 2 * FULL);
        assert!(lock(&lines.waiting).len() < FULL);
        lines.flush();
        assert_eq!(written(&lines).lines().count(), 3000);
    }

    #[test]
    fn lines_of_many_threads_stay_whole_and_each_thread_s_in_order() {
        let lines = Arc::new(Lines::new(Vec::new()));

        std::thread::scope(|scope| {
            for thread in 0..4 {
                let lines = &lines;
                scope.spawn(move || {
                    for number in 0..500 {
                        lines.put(format!("{thread} {number}\n").as_bytes(), number % 7 != 0);
                    }
                });
            }
        });
        lines.flush();

        let text = written(&lines);
        for thread in 0..4 {
            let prefix = format!("{thread} ");
            let numbers: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
            assert_eq!(numbers, (0..500).map(|number| number.to_string()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn lines_that_wait_are_written_without_being_asked() {
        struct Told(std::sync::mpsc::Sender<Vec<u8>>);
        impl Write for Told {
            fn write(&mut self, text: &[u8]) -> io::Result<usize> {
                self.0.send(text.to_vec()).map_err(io::Error::other).map(|()| text.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (told, heard) = std::sync::mpsc::channel();
        let lines = Arc::new(Lines::new(Told(told)));
        let serving = Arc::clone(&lines);
        std::thread::spawn(move || serving.serve());

        lines.put(b"patient\n", true);

        assert_eq!(heard.recv_timeout(Duration::from_secs(30)), Ok(b"patient\n".to_vec()));
    }

    #[test]
    fn a_panic_while_a_line_is_written_does_not_wait_for_itself() {
        let lines = Lines::new(Vec::new());
        lines.put(b"waits\n", true);

        let held = lock(&lines.sink);
        lines.flush_if_possible();
        drop(held);
        lines.flush_if_possible();

        assert_eq!(written(&lines), "waits\n");
    }
}
