//! Bounded readers of lines: protocol lines, which must not be too long, and printed lines, which are cut.
//!
//! Pure buffers; the reading itself is done by [`crate::process`].

use std::collections::VecDeque;
use std::ops::Range;

/// Splits a stream into protocol lines.
pub(crate) struct LineReader {
    /// New bytes are added at the end.
    pub(crate) buffer: Vec<u8>,
    /// First byte that is not part of a line already handed out.
    start: usize,
    /// Bytes before this hold no newline.
    scanned: usize,
    longest: usize,
}

impl LineReader {
    pub(crate) fn new(longest: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, scanned: 0, longest }
    }

    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// Where the next whole line is, without its newline. Valid until the next call or the next read.
    pub(crate) fn next(&mut self) -> Result<Option<Range<usize>>, String> {
        let from = self.scanned.max(self.start);
        let newline = self.buffer[from..].iter().position(|byte| *byte == b'\n').map(|at| from + at);
        let end = newline.unwrap_or(self.buffer.len());
        if end - self.start > self.longest {
            self.clear();
            return Err(format!("the worker sent a line of more than {} bytes", self.longest));
        }
        let Some(newline) = newline else {
            self.buffer.drain(..self.start);
            self.start = 0;
            self.scanned = self.buffer.len();
            return Ok(None);
        };
        let line = self.start..newline;
        self.start = newline + 1;
        self.scanned = self.start;
        Ok(Some(line))
    }

    /// Gives back memory after a long line, once nothing else is in the buffer.
    pub(crate) fn shrink(&mut self) {
        if self.start >= self.buffer.len() {
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.buffer = Vec::new();
        self.start = 0;
        self.scanned = 0;
    }
}

/// Splits what was printed into lines for people. A line that is too long is cut, its rest is dropped.
pub(crate) struct LogReader {
    /// New bytes are added at the end; [`Self::digest`] takes them.
    pub(crate) buffer: Vec<u8>,
    line: Vec<u8>,
    longest: usize,
    lines: VecDeque<String>,
}

impl LogReader {
    pub(crate) fn new(longest: usize) -> Self {
        Self { buffer: Vec::new(), line: Vec::new(), longest, lines: VecDeque::new() }
    }

    /// Takes what was read.
    pub(crate) fn digest(&mut self) {
        for piece in std::mem::take(&mut self.buffer).split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = self.longest.saturating_sub(self.line.len());
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() < piece.len() {
                self.end();
            }
        }
    }

    /// Ends the present line, if it holds anything.
    pub(crate) fn end(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        if !line.is_empty() {
            self.lines.push_back(String::from_utf8_lossy(line).into_owned());
        }
    }

    pub(crate) fn pop(&mut self) -> Option<String> {
        self.lines.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_that_is_too_long_is_refused_as_soon_as_it_is() {
        let mut reader = LineReader::new(4);
        reader.buffer.extend_from_slice(b"1234\n12345");

        assert_eq!(reader.next(), Ok(Some(0..4)));
        assert!(reader.next().is_err());
    }

    #[test]
    fn a_printed_line_is_cut_and_the_next_one_is_whole() {
        let mut reader = LogReader::new(3);
        reader.buffer.extend_from_slice(b"abcdef\nxy\r\n\n\xffz");
        reader.digest();
        reader.end();

        let lines: Vec<_> = std::iter::from_fn(|| reader.pop()).collect();
        assert_eq!(lines, ["abc", "xy", "\u{fffd}z"]);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_they_arrive(
            lines in proptest::collection::vec("[a-z]{0,20}", 0..20),
            step in 1_usize..40,
        ) {
            let stream = (lines.join("\n") + "\n").into_bytes();
            prop_assume!(!lines.is_empty());
            let mut reader = LineReader::new(20);
            let mut seen = Vec::new();
            for chunk in stream.chunks(step) {
                reader.buffer.extend_from_slice(chunk);
                while let Some(range) = reader.next().expect("short lines") {
                    seen.push(String::from_utf8(reader.buffer[range].to_vec()).expect("text"));
                }
            }
            prop_assert_eq!(seen, lines);
        }
    }
}
