//! The lines of a file, one at a time and none longer than a limit.

use std::io::{self, BufRead};

/// The longest line that is looked at, in bytes: a prompt of a million tokens as a list of ids takes 8 MB.
pub const MAX_LINE: usize = 32 << 20;

/// What some editors put at a file's start.
pub const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The line without the byte order mark.
pub fn without_mark(line: &[u8]) -> &[u8] {
    line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line)
}

/// Lines of bytes, numbered from 1. Blank ones are counted and left out; one with a byte order mark alone is blank.
pub struct Lines<R> {
    reader: R,
    longest: usize,
    number: u32,
    /// Bytes read so far.
    bytes: u64,
    buffer: Vec<u8>,
}

/// A line without its line break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    Bytes(&'a [u8]),
    /// Longer than [`MAX_LINE`]; its bytes are gone.
    TooLong,
}

impl<R: BufRead> Lines<R> {
    pub fn new(reader: R) -> Lines<R> {
        Lines { reader, longest: MAX_LINE, number: 0, bytes: 0, buffer: Vec::new() }
    }

    /// Lines of any length: those that were written here.
    pub fn of_any_length(reader: R) -> Lines<R> {
        Lines { longest: usize::MAX, ..Lines::new(reader) }
    }

    /// The next line that is not blank, and its number; none at the end.
    pub fn next(&mut self) -> io::Result<Option<(u32, Line<'_>)>> {
        loop {
            let Some(length) = self.read_line()? else { return Ok(None) };
            if self.number == u32::MAX {
                return Err(io::Error::other(format!("more than {} lines; split the file", u32::MAX - 1)));
            }
            self.number += 1;
            if length > self.longest {
                return Ok(Some((self.number, Line::TooLong)));
            }
            if !without_mark(&self.buffer).trim_ascii().is_empty() {
                return Ok(Some((self.number, Line::Bytes(self.buffer.trim_ascii_end()))));
            }
        }
    }

    /// Bytes of the lines so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn into_inner(self) -> R {
        self.reader
    }

    /// Reads a line into the buffer, or past it where it is too long; its length, or none at the end.
    fn read_line(&mut self) -> io::Result<Option<usize>> {
        // A long line does not leave a large buffer behind.
        const KEEP: usize = 1 << 20;
        self.buffer.clear();
        self.buffer.shrink_to(KEEP);
        let mut length = 0;
        loop {
            let chunk = filled(&mut self.reader)?;
            if chunk.is_empty() {
                return Ok((length > 0).then_some(length));
            }
            let (line, end) = match chunk.iter().position(|byte| *byte == b'\n') {
                Some(end) => (&chunk[..end], true),
                None => (chunk, false),
            };
            length += line.len();
            if length <= self.longest {
                self.buffer.extend_from_slice(line);
            }
            let used = line.len() + usize::from(end);
            self.reader.consume(used);
            self.bytes += used as u64;
            if end {
                return Ok(Some(length));
            }
        }
    }
}

/// What the reader has in its buffer, read where that is empty; a signal that interrupts the reading is no failure.
pub fn filled(reader: &mut impl BufRead) -> io::Result<&[u8]> {
    while let Err(error) = reader.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    reader.fill_buf()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufReader, Cursor, Read};

    fn lines(bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        // Chunks of three bytes: lines span them.
        let mut lines = Lines::new(BufReader::with_capacity(3, Cursor::new(bytes.to_vec())));
        let mut found = Vec::new();
        while let Some((number, line)) = lines.next().unwrap() {
            let Line::Bytes(bytes) = line else { panic!("too long") };
            found.push((number, bytes.to_vec()));
        }
        found
    }

    #[test]
    fn lines_are_numbered_and_blank_ones_left_out() {
        let expected: [(u32, &[u8]); 3] = [(1, b"first"), (4, b"  second"), (5, b"third")];
        let expected = expected.map(|(number, line)| (number, line.to_vec()));
        assert_eq!(lines(b"first\n\n  \t\n  second\r\nthird"), expected);
        assert_eq!(lines(b"first\n\n  \t\n  second\r\nthird\n"), expected);
        assert_eq!(lines(b""), []);
        assert_eq!(lines(b"\n\n"), []);
        assert_eq!(lines(b"\xef\xbb\xbf\r\n\xef\xbb\xbf"), []);
        assert_eq!(lines(b"\xef\xbb\xbf\nx"), [(2, b"x".to_vec())]);
    }

    #[test]
    fn a_line_too_long_is_passed_over() {
        let long = std::io::repeat(b'x').take(MAX_LINE as u64 + 1);
        let fits = std::io::repeat(b'y').take(MAX_LINE as u64);
        let reader = Cursor::new(b"a\n").chain(long).chain(Cursor::new(b"\n")).chain(fits).chain(Cursor::new(b"\nb"));
        let mut lines = Lines::new(BufReader::new(reader));
        assert_eq!(lines.next().unwrap(), Some((1, Line::Bytes(b"a"))));
        assert_eq!(lines.next().unwrap(), Some((2, Line::TooLong)));
        assert_eq!(lines.bytes(), 2 + MAX_LINE as u64 + 2);
        assert!(matches!(lines.next().unwrap(), Some((3, Line::Bytes(bytes))) if bytes.len() == MAX_LINE));
        assert_eq!(lines.next().unwrap(), Some((4, Line::Bytes(b"b"))));
        assert_eq!(lines.next().unwrap(), None);
    }
}
