//! What a launch must move and compute at the least: declared once for each kernel, beside its launcher, and checked
//! against the bytes that the tests' interpreter counts.

use std::iter::Sum;
use std::ops::Add;

/// Bytes of device memory that must be read and written, each once, and floating-point operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Bytes read, each input byte counted once.
    pub bytes_read: u64,
    /// Bytes written, each output byte counted once.
    pub bytes_written: u64,
    /// Floating-point operations; a multiply-add counts as two.
    pub flops: u64,
}

impl Work {
    /// Bytes moved in either direction.
    pub fn bytes(&self) -> u64 {
        self.bytes_read + self.bytes_written
    }
}

impl Add for Work {
    type Output = Work;

    fn add(self, other: Work) -> Work {
        Work {
            bytes_read: self.bytes_read + other.bytes_read,
            bytes_written: self.bytes_written + other.bytes_written,
            flops: self.flops + other.flops,
        }
    }
}

impl Sum for Work {
    fn sum<I: Iterator<Item = Work>>(works: I) -> Work {
        works.fold(Work::default(), Work::add)
    }
}
