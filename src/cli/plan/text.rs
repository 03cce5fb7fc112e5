//! A plan as people read it: the answer first.

use rigel::bench::table::{Table, digits};
use rigel::host::{Size, counted};
use rigel::model::grouped;

use super::DEFAULT_SEQUENCES;
use super::record::{CardLimit, CpuRecord, Line, Record};

pub(super) fn text(record: &Record<'_>) -> String {
    let Record { model, dtype, gpu, prefill_chunk, .. } = record;
    let mut table = Table::new(&["on the GPU", ">bytes", ">"]);
    let mut row = |what: &str, bytes: u64| table.row([what.to_owned(), grouped(bytes), Size(bytes).to_string()]);
    record.lines.iter().for_each(|Line { what, bytes }| row(what, *bytes));
    row("all", record.needed_bytes);
    match record.memory_bytes > record.gpu_memory_bytes {
        true => {
            row("asked for", record.memory_bytes);
            row("the GPU has", record.gpu_memory_bytes);
        }
        false => row("there is", record.memory_bytes),
    }
    if let Some(left) = record.memory_bytes.checked_sub(record.needed_bytes) {
        row("left", left);
    }
    let mut cards = Table::new(&["GPU", ">memory", ">GB/s", ">tokens/s", ">at the context", ">sequences"]);
    for limit in &record.limits {
        cards.row([
            limit.gpu.to_owned(),
            Size(limit.memory_bytes).to_string(),
            digits(limit.bytes_per_second / 1e9),
            digits(limit.tokens_per_second),
            digits(limit.tokens_per_second_at_context),
            sequences_on(limit),
        ]);
    }
    format!(
        "{answer}\n\n{model} in {dtype} on {gpu}, {sequences}, prompts in chunks of {prefill_chunk}:\n\n{table}\n{pages}\n\
         {cpu}\n\nA decoded token reads {weights} bytes of weights and adds {kv} to the cache. For one sequence, the memory of \
         a GPU\nallows by its data sheet, without keys and values and with all that a token sees; and sequences that fit 90 %\n\
         of the memory at once, up to {most}:\n\n{cards}",
        answer = answer(record),
        sequences = sequences(record.sequences, record.context),
        pages = pages(record),
        cpu = cpu(&record.cpu),
        most = if record.max_seqs_given { record.sequences } else { DEFAULT_SEQUENCES.get() },
        weights = grouped(record.weight_bytes_per_token),
        kv = grouped(record.kv_bytes_per_token),
    )
}

/// `starts: yes, 87 sequences of 16384 positions at once`
fn answer(record: &Record<'_>) -> String {
    let Record { sequences_at_once: at_once, context, .. } = record;
    if !record.starts {
        return format!("starts: no, {}", shortage(record));
    }
    if record.max_seqs_given && !record.fits {
        let asked = sequences(record.sequences, *context);
        return format!("starts: yes, {at_once} of {asked} at once");
    }
    let more = match at_once {
        _ if record.max_seqs_given => "",
        at_once if *at_once >= DEFAULT_SEQUENCES.get() => "; --max-seqs asks for more",
        1 if !record.fits => ", its prompt in smaller chunks",
        _ => "",
    };
    format!("starts: yes, {} at once{more}", sequences(*at_once, *context))
}

/// `weights 29.7 GiB > 23.2 GiB`, or of all that the first sequence needs.
pub(super) fn shortage(record: &Record<'_>) -> String {
    let weights = record.lines.first().map_or(0, |line| line.bytes);
    let room = Size(record.memory_bytes);
    match weights > record.memory_bytes {
        true => format!("weights {} > {room}", Size(weights)),
        false => format!("{} for {} > {room}", Size(record.needed_bytes), sequences(record.sequences, record.context)),
    }
}

fn sequences(count: usize, positions: usize) -> String {
    format!("{} of {positions} positions", counted(count, "sequence"))
}

fn sequences_on(limit: &CardLimit) -> String {
    match limit.sequences_at_once {
        0 if limit.holds_weights => "no, cache too large".to_owned(),
        0 => "no, weights too large".to_owned(),
        sequences => sequences.to_string(),
    }
}

/// What a sequence takes of the cache, and why.
fn pages(record: &Record<'_>) -> String {
    let Record { pages_of_sequence: pages, page_size, context, .. } = record;
    let all = context.div_ceil(*page_size as usize) as u32;
    let why = match record.window {
        Some(window) if *pages < all => format!("the window of {window} and a prompt's chunk"),
        _ => format!("its {context} positions"),
    };
    format!("A sequence has up to {} of {page_size} positions: {why}.", counted(*pages as usize, "page"))
}

fn cpu(cpu: &CpuRecord) -> String {
    let CpuRecord { weight_bytes, cache_bytes, activation_bytes, needed_bytes, .. } = cpu;
    let held = match (cpu.fits, cpu.available_bytes, cpu.limit) {
        (Some(true), Some(available), Some(limit)) => format!(";\n{} are left in {limit}.", Size(available)),
        (Some(false), Some(available), Some(limit)) => format!(
            ";\nonly {} are left in {limit}: weights would be read from their files again and again.",
            Size(available)
        ),
        _ => ".".to_owned(),
    };
    format!(
        "On the CPU, one sequence takes {}: weights {}, mapped, cache {}, activations {}{held}",
        Size(*needed_bytes),
        Size(*weight_bytes),
        Size(*cache_bytes),
        Size(*activation_bytes)
    )
}
