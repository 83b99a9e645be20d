//! Passwords that are known from breaches: a file of their SHA-1 digests in order, as Have I Been Pwned gives it.
//!
//! A line is 40 hexadecimal digits, then perhaps a colon and a count. The file is never read as a whole: a password is looked
//! up by halving, about forty short reads for a billion lines. SHA-1 is what the lists are made of; nothing relies on it.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use aws_lc_rs::digest;
use interlock_model::id::hexadecimal;

/// Hexadecimal digits of a digest.
const DIGITS: usize = 40;
/// Longest line: a digest, a colon, a count of 20 digits, an end of two bytes.
const LINE: usize = DIGITS + 1 + 20 + 2;

/// An open list.
#[derive(Debug)]
pub struct Breached {
    file: File,
    size: u64,
}

impl Breached {
    /// Opens a list and looks at its first and last lines.
    ///
    /// # Errors
    /// When it cannot be read, or is not such a list.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path)?;
        let opened = Self { size: file.metadata()?.len(), file };
        let first = opened.digest_at(0)?;
        let mut last = None;
        for at in opened.size.saturating_sub(LINE as u64)..opened.size {
            if opened.begins(at)? {
                last = opened.digest_at(at)?;
            }
        }
        match (first, last) {
            (Some(first), Some(last)) if first <= last => Ok(opened),
            _ => Err(wrong()),
        }
    }

    /// Whether a password is in the list.
    ///
    /// # Errors
    /// When the file cannot be read any more, or has a line of another form where it was looked at.
    pub fn holds(&self, password: &str) -> Result<bool, Error> {
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, password.as_bytes());
        let wanted = hexadecimal(hash.as_ref());
        // The line that is looked for begins at `low` or after it, and before `high`.
        let (mut low, mut high) = (0, self.size);
        while high - low > LINE as u64 {
            let middle = low + (high - low) / 2;
            match self.line_from(middle)? {
                Some(found) if found == wanted => return Ok(true),
                Some(found) if found < wanted => low = middle,
                _ => high = middle,
            }
        }
        // What is left is a line or two; `low` may be inside the first, or at its begin.
        for at in low.saturating_sub(LINE as u64)..=high.min(self.size.saturating_sub(1)) {
            if self.begins(at)? && self.digest_at(at)? == Some(wanted.clone()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn begins(&self, at: u64) -> Result<bool, Error> {
        if at == 0 {
            return Ok(true);
        }
        let mut before = [0];
        self.file.read_exact_at(&mut before, at - 1)?;
        Ok(before[0] == b'\n')
    }

    /// The digest of the first line that begins at `at` or after it; `None` at the end of the file.
    fn line_from(&self, at: u64) -> Result<Option<String>, Error> {
        if self.begins(at)? {
            return self.digest_at(at);
        }
        let mut part = [0; LINE];
        let read = self.read_at(&mut part, at)?;
        match part[..read].iter().position(|byte| *byte == b'\n') {
            Some(end) => self.digest_at(at + end as u64 + 1),
            None if read < LINE => Ok(None),
            None => Err(wrong()),
        }
    }

    /// The digest of the line that begins at `at`; `None` at the end of the file.
    fn digest_at(&self, at: u64) -> Result<Option<String>, Error> {
        let mut part = [0; DIGITS + 1];
        let read = self.read_at(&mut part, at)?;
        if read == 0 {
            return Ok(None);
        }
        let ends = read == DIGITS || matches!(part[DIGITS], b':' | b'\r' | b'\n');
        if read < DIGITS || !ends || !part[..DIGITS].iter().all(u8::is_ascii_hexdigit) {
            return Err(wrong());
        }
        Ok(Some(String::from_utf8_lossy(&part[..DIGITS]).to_ascii_lowercase()))
    }

    fn read_at(&self, part: &mut [u8], at: u64) -> Result<usize, Error> {
        let mut read = 0;
        while read < part.len() {
            match self.file.read_at(&mut part[read..], at + read as u64)? {
                0 => break,
                more => read += more,
            }
        }
        Ok(read)
    }
}

fn wrong() -> Error {
    Error::new(ErrorKind::InvalidData, "not a list of SHA-1 digests in order, one a line")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn digest_of(password: &str) -> String {
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, password.as_bytes());
        hexadecimal(hash.as_ref()).to_ascii_uppercase()
    }

    fn list(text: &str) -> Result<Breached, Error> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        Breached::open(file.path())
    }

    fn of(passwords: &[String], tail: impl Fn(usize) -> String, end: &str) -> String {
        let mut digests: Vec<String> = passwords.iter().map(|password| digest_of(password)).collect();
        digests.sort();
        let lines: Vec<String> =
            digests.iter().enumerate().map(|(at, digest)| digest.clone() + &tail(at)).collect();
        lines.join(end)
    }

    #[test]
    fn every_password_of_a_list_is_found_and_no_other_in_every_form_of_the_file() {
        for count in [1, 2, 3, 10, 1000] {
            let passwords: Vec<String> = (0..count).map(|number| format!("password {number}")).collect();
            for (tail, end) in [
                (Box::new(|_| String::new()) as Box<dyn Fn(usize) -> String>, "\n"),
                (Box::new(|at| format!(":{}", 7_usize.pow(u32::try_from(at % 19).expect("small")))), "\r\n"),
                (Box::new(|at| format!(":{at}")), "\n"),
            ] {
                for last in ["", end] {
                    let found = list(&(of(&passwords, &tail, end) + last)).expect("a list");
                    for password in &passwords {
                        assert!(found.holds(password).expect("readable"), "{password} of {count}");
                    }
                    for number in 0..200 {
                        assert!(!found.holds(&format!("other {number}")).expect("readable"));
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_such_list_is_refused() {
        let digest = digest_of("a");
        let half = &digest[..39];
        for bad in ["", "\n", "password\n", half, &format!("{digest}x"), &format!("{digest}:1\npassword")] {
            assert!(list(bad).is_err(), "{bad}");
        }
        let disorder = format!("{}\n{}\n", "F".repeat(40), "0".repeat(40));
        assert!(list(&disorder).is_err());
        let binary = "\u{0}".repeat(4096);
        assert!(list(&binary).is_err());
    }
}
