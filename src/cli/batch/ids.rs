//! Which line has which id, in 16 bytes a line: a hash of 96 bits and the line's number. Two different ids among a
//! million have the same hash with a probability of 10⁻¹⁷.

use super::digest::Digest;

/// The ids of a file, sorted by their hashes.
#[derive(Debug)]
pub struct Ids {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    hash: [u32; 3],
    line: u32,
}

/// Two lines have the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duplicate {
    pub first: u32,
    pub second: u32,
}

fn hash(id: &str) -> [u32; 3] {
    let mut digest = Digest::new();
    digest.update(id.as_bytes());
    let (value, mixed) = (digest.value(), digest.mixed());
    [(mixed >> 32) as u32, mixed as u32, (value >> 32) as u32]
}

/// Ids while they are read.
#[derive(Debug, Default)]
pub struct IdsBuilder {
    entries: Vec<Entry>,
}

impl IdsBuilder {
    pub fn push(&mut self, id: &str, line: u32) {
        self.entries.push(Entry { hash: hash(id), line });
    }

    /// All of them, once every line was read; the first line that repeats an id, otherwise.
    pub fn build(self) -> Result<Ids, Duplicate> {
        let mut entries = self.entries;
        entries.sort_unstable();
        entries.shrink_to_fit();
        let repeated = entries.windows(2).filter(|pair| pair[0].hash == pair[1].hash);
        match repeated.map(|pair| Duplicate { first: pair[0].line, second: pair[1].line }).min_by_key(|d| d.second) {
            Some(duplicate) => Err(duplicate),
            None => Ok(Ids { entries }),
        }
    }
}

impl Ids {
    /// The line with this id.
    pub fn line(&self, id: &str) -> Option<u32> {
        let hash = hash(id);
        let found = self.entries.binary_search_by_key(&hash, |entry| entry.hash);
        found.ok().map(|index| self.entries[index].line)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_sixteen_bytes() {
        assert_eq!(size_of::<Entry>(), 16);
    }

    #[test]
    fn finds_each_line_and_no_other() {
        let mut builder = IdsBuilder::default();
        for line in 1..=100_000 {
            builder.push(&format!("request-{line}"), line);
        }
        let ids = builder.build().unwrap();
        assert_eq!(ids.len(), 100_000);
        assert!((1..=100_000).all(|line| ids.line(&format!("request-{line}")) == Some(line)));
        assert!((0..100_000).all(|line| ids.line(&format!("other-{line}")).is_none()));
    }

    #[test]
    fn the_first_repetition_is_named() {
        let mut builder = IdsBuilder::default();
        for (line, id) in ["a", "b", "c", "b", "a"].iter().enumerate() {
            builder.push(id, line as u32 + 1);
        }
        assert_eq!(builder.build().unwrap_err(), Duplicate { first: 2, second: 4 });
    }
}
