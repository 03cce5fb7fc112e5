//! Which lines are this run's, and which of them are in the output already: one bit a line.

use std::fmt;
use std::str::FromStr;

use super::ids::Ids;

/// One of several parts of the input: every n-th line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 1 to `of`.
    index: u32,
    of: u32,
}

impl Shard {
    pub const WHOLE: Shard = Shard { index: 1, of: 1 };

    pub fn holds(self, line: u32) -> bool {
        (line - 1) % self.of == self.index - 1
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Shard, String> {
        let parsed = text.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match parsed {
            Some((index, of)) if 1 <= index && index <= of => Ok(Shard { index, of }),
            _ => Err("expected i/n with i from 1 to n, such as 1/4".to_owned()),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

/// The lines of one run.
#[derive(Debug)]
pub struct Ledger {
    ids: Ids,
    shard: Shard,
    /// Lines of the shard.
    total: u64,
    recorded: Vec<u64>,
    count: u64,
}

/// Why a record of the output cannot be one of this run's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    #[error("is not in the input")]
    Unknown,
    #[error("belongs to another shard")]
    OtherShard,
    #[error("is there twice")]
    Twice,
}

impl Ledger {
    /// Nothing recorded yet. `last` is the input's last line, `total` the number of lines in the shard.
    pub fn new(ids: Ids, shard: Shard, last: u32, total: u64) -> Ledger {
        Ledger { ids, shard, total, recorded: vec![0; last as usize / 64 + 1], count: 0 }
    }

    /// Notes that the output has the record of this id. Returns the number of its line.
    pub fn record(&mut self, id: &str) -> Result<u32, NotOurs> {
        let line = self.ids.line(id).ok_or(NotOurs::Unknown)?;
        if !self.shard.holds(line) {
            return Err(NotOurs::OtherShard);
        }
        let (word, bit) = place(line);
        // Every line of the ids is at most the last one.
        if self.recorded[word] & bit != 0 {
            return Err(NotOurs::Twice);
        }
        self.recorded[word] |= bit;
        self.count += 1;
        Ok(line)
    }

    /// Is this line still to be done? Lines of other shards are not.
    pub fn is_open(&self, line: u32) -> bool {
        let (word, bit) = place(line);
        self.shard.holds(line) && self.recorded.get(word).is_some_and(|bits| bits & bit == 0)
    }

    /// Returns `true` if the line still has the id it had when the ids were read.
    pub fn knows(&self, id: &str, line: u32) -> bool {
        self.ids.line(id) == Some(line)
    }

    /// Lines of this run.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Lines recorded.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn is_complete(&self) -> bool {
        self.count == self.total
    }
}

fn place(line: u32) -> (usize, u64) {
    (line as usize / 64, 1 << (line % 64))
}

#[cfg(test)]
mod tests {
    use super::super::ids::IdsBuilder;
    use super::*;

    fn ledger(lines: u32, shard: &str) -> Ledger {
        let mut ids = IdsBuilder::default();
        (1..=lines).for_each(|line| ids.push(&format!("id-{line}"), line));
        let shard: Shard = shard.parse().unwrap();
        let total = (1..=lines).filter(|line| shard.holds(*line)).count() as u64;
        Ledger::new(ids.build().unwrap(), shard, lines, total)
    }

    #[test]
    fn records_are_counted_once() {
        let mut ledger = ledger(130, "1/1");
        for line in [1, 63, 64, 128, 130] {
            assert!(ledger.is_open(line));
            ledger.record(&format!("id-{line}")).unwrap();
            assert!(!ledger.is_open(line));
            assert_eq!(ledger.record(&format!("id-{line}")), Err(NotOurs::Twice));
        }
        assert!(ledger.is_open(2) && ledger.is_open(65));
        assert_eq!(ledger.record("id-131"), Err(NotOurs::Unknown));
        assert_eq!((ledger.count(), ledger.total(), ledger.is_complete()), (5, 130, false));
        assert!(ledger.knows("id-7", 7) && !ledger.knows("id-7", 8) && !ledger.knows("x", 7));
    }

    #[test]
    fn shards_share_the_lines() {
        let mut shards: Vec<Ledger> = (1..=3).map(|i| ledger(100, &format!("{i}/3"))).collect();
        for line in 1..=100 {
            assert_eq!(shards.iter().filter(|ledger| ledger.is_open(line)).count(), 1);
        }
        assert_eq!(shards.iter().map(Ledger::total).sum::<u64>(), 100);
        assert_eq!(shards[0].record("id-2"), Err(NotOurs::OtherShard));
        for wrong in ["0/3", "4/3", "1", "1/0", "a/b", "-1/2", "1/2/3", ""] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
