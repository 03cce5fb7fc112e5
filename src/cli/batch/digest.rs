//! A hash of 128 bits that stays the same over builds and machines: FNV-1a (draft-eastlake-fnv-17). It tells apart what
//! differs by accident; it is no protection against somebody who wants two things to look the same.

use std::io::{self, Read};

use super::super::lines::Line;

const OFFSET_BASIS: u128 = 0x6c62272e07bb014262b821756295c58d;
const PRIME: u128 = (1 << 88) + 0x13b;

/// The hash of bytes given piece by piece.
#[derive(Debug, Clone, Copy)]
pub struct Digest(u128);

impl Digest {
    pub fn new() -> Digest {
        Digest(OFFSET_BASIS)
    }

    pub fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    }

    /// Adds a piece whose end counts, too: `"a", "bc"` and `"ab", "c"` differ.
    pub fn part(&mut self, bytes: &[u8]) {
        self.update(&(bytes.len() as u64).to_le_bytes());
        self.update(bytes);
    }

    pub fn value(self) -> u128 {
        self.0
    }

    /// 64 bits in which every bit of the hash has a part: FNV itself leaves the last bytes' traces in few of them.
    pub fn mixed(self) -> u64 {
        mix((self.0 >> 64) as u64 ^ mix(self.0 as u64))
    }

    pub fn hex(self) -> String {
        hex(self.0)
    }
}

/// A hash of 128 bits as a file has it.
pub fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}

/// The hash of a line and its number. Hashes of lines are added up: the sum does not depend on the order, and the
/// hashes of some lines can be subtracted from it.
pub fn line_hash(number: u32, line: Line<'_>) -> u128 {
    let mut digest = Digest::new();
    digest.update(&number.to_le_bytes());
    // The bytes of a line that is too long are gone.
    if let Line::Bytes(bytes) = line {
        digest.update(bytes);
    }
    let (high, low) = ((digest.0 >> 64) as u64, digest.0 as u64);
    // Sums of the bare hash would keep its regularities.
    u128::from(mix(high ^ mix(low))) << 64 | u128::from(mix(low ^ mix(high.rotate_left(32))))
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d049bb133111eb);
    x ^ (x >> 31)
}

/// A reader that hashes what goes through it.
pub struct Hashing<R> {
    reader: R,
    pub digest: Digest,
    pub bytes: u64,
}

impl<R> Hashing<R> {
    pub fn new(reader: R) -> Hashing<R> {
        Hashing { reader, digest: Digest::new(), bytes: 0 }
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.digest.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Digest {
        let mut digest = Digest::new();
        digest.update(bytes);
        digest
    }

    /// The draft's test vectors.
    #[test]
    fn it_is_fnv_1a() {
        assert_eq!(of(b"").hex(), "6c62272e07bb014262b821756295c58d");
        assert_eq!(of(b"a").hex(), "d228cb696f1a8caf78912b704e4a8964");
        assert_eq!(of(b"foobar").hex(), "343e1662793c64bf6f0d3597ba446f18");
    }

    #[test]
    fn every_bit_of_the_mixed_hash_moves() {
        let (mut any, mut all) = (0, u64::MAX);
        for i in 0..256 {
            let bits = of(format!("line-{i}").as_bytes()).mixed() ^ of(b"line-x").mixed();
            any |= bits;
            all &= bits;
        }
        assert_eq!((any, all), (u64::MAX, 0));
    }

    #[test]
    fn lines_add_up_in_any_order_and_can_be_taken_out() {
        let hash = |number, text: &str| line_hash(number, Line::Bytes(text.as_bytes()));
        let lines = [hash(1, "a"), hash(2, "b"), hash(3, "c")];
        let sum = |lines: &[u128]| lines.iter().fold(0u128, |sum, line| sum.wrapping_add(*line));
        assert_eq!(sum(&lines).wrapping_sub(hash(2, "b")), sum(&[hash(3, "c"), hash(1, "a")]));
        // Neither a change of a line nor two lines that change places go unseen.
        assert_ne!(sum(&lines), sum(&[hash(1, "a"), hash(2, "B"), hash(3, "c")]));
        assert_ne!(sum(&lines), sum(&[hash(1, "b"), hash(2, "a"), hash(3, "c")]));
        assert_ne!(hash(1, "1a"), hash(11, "a"));
    }

    #[test]
    fn parts_have_ends() {
        let of = |parts: [&[u8]; 2]| {
            let mut digest = Digest::new();
            parts.iter().for_each(|part| digest.part(part));
            digest.value()
        };
        assert_ne!(of([b"a", b"bc"]), of([b"ab", b"c"]));
    }
}
