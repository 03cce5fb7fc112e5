//! The first reading of the input: ids, hashes, and what is odd about it.

use std::collections::HashSet;
use std::io::BufReader;

use super::super::error::CliError;
use super::super::kind;
use super::super::lines::{Line, Lines};
use super::digest::{Hashing, hex, line_hash};
use super::head::IdFields;
use super::ids::{Duplicate, Ids, IdsBuilder};
use super::input::InputFile;
use super::job;
use super::ledger::{Ledger, Shard};
use super::manifest::InputEntry;
use super::oddities::Oddities;

/// What a first reading of the input finds out.
pub struct Scanned {
    ids: Ids,
    pub entry: InputEntry,
    /// The last line's number.
    last: u32,
    shard: Shard,
    /// Lines of the shard.
    pub total: u64,
    pub oddities: Oddities,
}

impl Scanned {
    /// The lines of the run, none of them recorded.
    pub fn into_ledger(self) -> Ledger {
        Ledger::new(self.ids, self.shard, self.last, self.total)
    }
}

/// Reads the input, and leaves it at its start.
pub fn scan(input: &mut InputFile, fields: &IdFields, shard: Shard) -> Result<Scanned, CliError> {
    let path = input.path().to_owned();
    kind::check_begin(&path, input.file())?;
    let mut lines = Lines::new(BufReader::with_capacity(1 << 16, Hashing::new(&*input)));
    let (mut ids, mut last, mut total, mut sum) = (IdsBuilder::default(), 0, 0u64, 0u128);
    let mut oddities = Oddities::new(fields.own());
    // The first line, until one begins as an object.
    let (mut first, mut has_objects) = (None, false);
    while let Some((number, line)) = lines.next().map_err(|error| input.error(error))? {
        has_objects |= job::is_object(line);
        if !has_objects
            && first.is_none()
            && let Line::Bytes(bytes) = line
        {
            first = Some(bytes[..bytes.len().min(1 << 10)].to_vec());
        }
        let head = fields.read(line, |name| oddities.field(name)).ok();
        oddities.end_line(number, head.as_ref().map(|id| id.as_ref().map(|id| id.field.as_str())));
        ids.push(&head.flatten().map_or_else(|| IdFields::id_without(number), |id| id.text), number);
        if shard.holds(number) {
            sum = sum.wrapping_add(line_hash(number, line));
            total += 1;
        }
        last = number;
    }
    if let Some(first) = first.filter(|_| !has_objects) {
        return Err(kind::refuse_without_objects(&path, &first));
    }
    let hashed = lines.into_inner().into_inner();
    let (bytes, digest) = (hashed.bytes, hashed.digest.hex());
    input.rewind()?;
    let ids = match ids.build() {
        Ok(ids) => ids,
        Err(duplicate) => return Err(refuse_duplicate(input, fields, duplicate)),
    };
    let name = path.display().to_string();
    let entry = InputEntry { name, bytes, lines: ids.len() as u64, digest, line_sum: Some(hex(sum)) };
    Ok(Scanned { ids, entry, last, shard, total, oddities })
}

/// The sum of the hashes of a shard's lines, as in [`InputEntry::line_sum`], without some lines. Leaves the input at
/// its start.
pub fn sum_without(input: &mut InputFile, shard: Shard, left_out: &HashSet<u32>) -> Result<u128, CliError> {
    let (mut lines, mut sum) = (Lines::new(BufReader::new(&*input)), 0u128);
    while let Some((number, line)) = lines.next().map_err(|error| input.error(error))? {
        if shard.holds(number) && !left_out.contains(&number) {
            sum = sum.wrapping_add(line_hash(number, line));
        }
    }
    input.rewind()?;
    Ok(sum)
}

fn refuse_duplicate(input: &InputFile, fields: &IdFields, duplicate: Duplicate) -> CliError {
    let Duplicate { first, second } = duplicate;
    let (of_first, of_second) = (written_id(input, fields, first), written_id(input, fields, second));
    let message = match (of_first, of_second) {
        (Some(id), None) => format!("the line has no id, so it is called {id:?}, and that is the id of line {first}"),
        (None, Some(id)) => format!("the id is {id:?}, and that is what line {first} is called, which has no id"),
        (_, Some(id)) => format!("the id {id:?} is that of line {first}, too"),
        // The input cannot be read any more.
        (None, None) => format!("the id is that of line {first}, too"),
    };
    let place = format!("{}:{second}", input.path().display());
    CliError::Usage(format!("{message}; give each line an id of its own")).at(place)
}

/// The id that stands in a line, for a message.
fn written_id(input: &InputFile, fields: &IdFields, wanted: u32) -> Option<String> {
    let mut lines = Lines::new(BufReader::new(std::fs::File::open(input.path()).ok()?));
    while let Some((number, line)) = lines.next().ok()? {
        if number == wanted {
            return fields.written_id(line).ok()?;
        }
    }
    None
}
