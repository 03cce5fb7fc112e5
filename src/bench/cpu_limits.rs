//! What a processor can do: bytes read from memory a second, and multiply-adds in registers.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::report::{Ceiling, Limit};

/// Memory that is read: larger than any cache.
const READ_BYTES: usize = 1 << 30;
/// Bytes of a piece that one thread reads at a time.
const PIECE: usize = 1 << 20;
/// How often each is measured; the fastest counts, since nothing but this machine itself can slow it down.
const TURNS: usize = 5;

/// Both ceilings of `threads` threads, measured now; takes a second or two and a gigabyte of memory.
pub fn measure(threads: usize) -> Vec<Ceiling> {
    // Not zeros: untouched pages would all be the one page of zeros.
    let memory: Vec<u8> =
        (0..READ_BYTES / 8).flat_map(|word| (word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    let pieces: Vec<&[u8]> = memory.chunks(PIECE).collect();
    let mut best = [0.0f64; 2];
    for _ in 0..TURNS {
        for (_, reader) in READERS {
            let start = Instant::now();
            read(&pieces, threads, reader);
            let seconds = start.elapsed().max(Duration::from_nanos(1)).as_secs_f64();
            best[0] = best[0].max(READ_BYTES as f64 / seconds);
        }
        best[1] = best[1].max(multiply_add_peak(threads));
    }
    let how = [
        format!("read of {} MiB by {threads} threads", READ_BYTES >> 20),
        format!("f32 multiply-adds in registers of {threads} threads"),
    ];
    let ceiling = |(limit, (per_second, how))| Ceiling { limit, by: "rigel".to_owned(), per_second, how };
    [Limit::Bytes, Limit::Flops].into_iter().zip(best.into_iter().zip(how)).map(ceiling).collect()
}

/// A way to read memory, and what it is called.
pub type Reader = (&'static str, fn(&[u8]) -> u64);

/// Ways to read memory; the fastest one is the ceiling.
pub const READERS: [Reader; 3] = [
    ("eight streams of 512 bits", read_vectors::<8>),
    ("one stream of 512 bits, prefetched", read_vectors::<1>),
    ("a sum of integers, as the compiler has it", read_integers),
];

/// Sums all bytes up on `threads` threads; pieces go to whoever is free.
pub fn read(stretches: &[&[u8]], threads: usize, reader: fn(&[u8]) -> u64) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut sum = 0u64;
                while let Some(stretch) = stretches.get(next.fetch_add(1, Ordering::Relaxed)) {
                    sum = sum.wrapping_add(reader(stretch));
                }
                black_box(sum);
            });
        }
    });
}

fn read_integers(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(0u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

fn read_vectors<const STREAMS: usize>(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the machine has AVX-512.
        return unsafe { read_avx512::<STREAMS>(bytes) };
    }
    read_integers(bytes)
}

/// `STREAMS` neighbouring parts of `bytes` at once.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn read_avx512<const STREAMS: usize>(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::*;
    let part = bytes.len() / STREAMS / 256 * 256;
    let mut sums = [_mm512_setzero_si512(); 8];
    for at in (0..part).step_by(256) {
        for stream in 0..STREAMS {
            for line in 0..4 {
                // SAFETY: `at + 255` lies in the part, the part in `bytes`; a prefetch may lie beyond.
                let x = unsafe {
                    let from = bytes.as_ptr().add(stream * part + at + line * 64);
                    if STREAMS == 1 {
                        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(4096).cast());
                    }
                    _mm512_loadu_si512(from.cast())
                };
                let sum = &mut sums[(stream * 4 + line) % 8];
                *sum = _mm512_add_epi64(*sum, x);
            }
        }
    }
    sums.into_iter().fold(0u64, |sum, x| sum.wrapping_add(_mm512_reduce_add_epi64(x) as u64))
}

/// f32 operations a second of multiply-adds in registers, on `threads` threads.
pub fn multiply_add_peak(threads: usize) -> f64 {
    // Some 100 ms: long enough for the system to give each thread its core.
    const ROUNDS: usize = 40_000_000;
    let start = Instant::now();
    let per_round = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| multiply_add(ROUNDS))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(0)).sum::<usize>()
    });
    (per_round * ROUNDS) as f64 / start.elapsed().as_secs_f64()
}

/// Returns the operations of a round.
fn multiply_add(rounds: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has AVX-512.
            return unsafe { multiply_add_avx512(rounds) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the machine has AVX2 and FMA.
            return unsafe { multiply_add_avx2(rounds) };
        }
    }
    let mut sums = [1.0f32; 64];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = *sum * black_box(0.5) + 0.25);
    }
    black_box(sums);
    2 * 64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn multiply_add_avx512(rounds: usize) -> usize {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
    let mut sums = [a; 16];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, a, b));
    }
    black_box(sums);
    2 * 16 * 16
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_add_avx2(rounds: usize) -> usize {
    use std::arch::x86_64::*;
    let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
    let mut sums = [a; 12];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, a, b));
    }
    black_box(sums);
    2 * 12 * 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reader_reads_every_byte() {
        // Sums of words and of vectors are the same modulo 2^64, wherever the pieces lie.
        let bytes: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let expected = read_integers(&bytes);
        for (name, reader) in READERS {
            assert_eq!(reader(&bytes), expected, "{name}");
        }
        read(&bytes.chunks(512).collect::<Vec<_>>(), 2, READERS[0].1);
    }

    #[test]
    fn arithmetic_has_a_rate() {
        assert!(multiply_add(1000) >= 64);
    }
}
