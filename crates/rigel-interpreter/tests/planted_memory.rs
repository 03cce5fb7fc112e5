//! Accesses to memory that is not there, not aligned, or not written, are caught and named.

mod workbench;

use workbench::planted::{Bug, expect_found};
use workbench::{Bench, Start, address, shape};

const FILE: &str = "memory.cu";

/// Launches one block of `threads` with x (256 floats of data) and y (as many words as threads, zero) as arguments.
fn with_x_and_y(kernel: &'static str, threads: u32, shared_bytes: u32) -> impl Fn(&Bench) {
    move |bench| {
        let x = bench.upload(&vec![1.0f32; 256]);
        let y = bench.upload(&vec![0u32; threads as usize]);
        let (x_at, y_at) = (address(&x, &bench.stream), address(&y, &bench.stream));
        bench.launch(kernel, shape(1, threads, shared_bytes), Start::AfterAll, arguments![x_at, y_at]);
    }
}

/// The same with y alone.
fn with_y(kernel: &'static str, threads: u32, shared_bytes: u32) -> impl Fn(&Bench) {
    move |bench| {
        let y = bench.upload(&vec![0u32; threads as usize]);
        let y_at = address(&y, &bench.stream);
        bench.launch(kernel, shape(1, threads, shared_bytes), Start::AfterAll, arguments![y_at]);
    }
}

#[test]
fn a_write_past_the_end() {
    let bug = Bug {
        file: FILE,
        marker: "global overrun",
        says: &[
            "out-of-bounds global write of 4 bytes",
            "has 256 bytes; the access begins at its byte 256",
            "thread (63,0,0)",
        ],
    };
    expect_found(&bug, |bench| {
        let y = bench.upload(&[0u32; 64]);
        let (y_at, n) = (address(&y, &bench.stream), 64i32);
        bench.launch("planted_global_overrun", shape(1, 64, 0), Start::AfterAll, arguments![y_at, n]);
    });
}

#[test]
fn a_read_before_the_start() {
    let says =
        &["out-of-bounds global read of 4 bytes", "thread (0,0,0) of block (0,0,0) of planted_global_underrun_read"];
    let bug = Bug { file: FILE, marker: "global underrun", says };
    expect_found(&bug, with_x_and_y("planted_global_underrun_read", 64, 0));
}

#[test]
fn freed_memory() {
    let bug = Bug { file: FILE, marker: "use after free", says: &["out-of-bounds global write"] };
    expect_found(&bug, |bench| {
        let y = bench.upload(&[0u32; 64]);
        let y_at = address(&y, &bench.stream);
        drop(y);
        bench.launch("planted_use_after_free", shape(1, 64, 0), Start::AfterAll, arguments![y_at]);
    });
}

#[test]
fn a_host_pointer() {
    let bug = Bug { file: FILE, marker: "host pointer", says: &["neither global nor shared memory"] };
    expect_found(&bug, |bench| {
        let host = vec![1u32; 64];
        let y = bench.upload(&[0u32; 64]);
        let (host_at, y_at) = (host.as_ptr() as u64, address(&y, &bench.stream));
        bench.launch("planted_host_pointer", shape(1, 64, 0), Start::AfterAll, arguments![host_at, y_at]);
    });
}

#[test]
fn a_misaligned_vector_load() {
    let bug = Bug { file: FILE, marker: "misaligned vector", says: &["misaligned read", "is not a multiple of 16"] };
    expect_found(&bug, with_x_and_y("planted_misaligned_vector", 32, 0));
}

#[test]
fn a_misaligned_load_by_a_wrapper() {
    let bug = Bug { file: FILE, marker: "misaligned wrapper", says: &["misaligned read", "is not a multiple of 16"] };
    expect_found(&bug, with_x_and_y("planted_misaligned_wrapper", 32, 0));
}

#[test]
fn a_misaligned_asynchronous_copy() {
    let bug = Bug { file: FILE, marker: "misaligned copy", says: &["misaligned cp.async destination"] };
    expect_found(&bug, with_x("planted_copy_misaligned"));
}

/// Launches one warp with 1 KiB of shared memory and x alone.
fn with_x(kernel: &'static str) -> impl Fn(&Bench) {
    move |bench| {
        let x = bench.upload(&vec![1.0f32; 256]);
        let x_at = address(&x, &bench.stream);
        bench.launch(kernel, shape(1, 32, 1024), Start::AfterAll, arguments![x_at]);
    }
}

#[test]
fn an_asynchronous_copy_that_reads_more_than_it_writes() {
    let bug = Bug { file: FILE, marker: "copy reads too much", says: &["cp.async of 16 bytes reads 17"] };
    expect_found(&bug, with_x("planted_copy_reads_too_much"));
}

#[test]
fn a_misaligned_load_of_shared_memory() {
    let bug = Bug { file: FILE, marker: "misaligned shared", says: &["misaligned read", "is not a multiple of 16"] };
    expect_found(&bug, with_y("planted_misaligned_shared", 32, 1024));
}

#[test]
fn a_misaligned_atomic() {
    let says = &["misaligned atomic update", "is not a multiple of 4"];
    let bug = Bug { file: FILE, marker: "misaligned atomic", says };
    expect_found(&bug, with_y("planted_misaligned_atomic", 32, 0));
}

#[test]
fn shared_memory_taken_for_global_and_the_other_way_round() {
    let bug = Bug { file: FILE, marker: "global load of shared", says: &["which is not global memory"] };
    expect_found(&bug, with_y("planted_global_load_of_shared", 32, 1024));
    let says = &["which is not in this block's shared memory"];
    let bug = Bug { file: FILE, marker: "shared address of global", says };
    expect_found(&bug, with_y("planted_shared_address_of_global", 32, 1024));
}

#[test]
fn the_shared_memory_of_another_block() {
    let says = &["write of 4 bytes in the shared memory of another block"];
    let bug = Bug { file: FILE, marker: "shared memory of another block", says };
    expect_found(&bug, with_y("planted_shared_of_another_block", 32, 1024));
}

#[test]
fn global_memory_that_no_one_wrote() {
    let bug = Bug { file: FILE, marker: "uninitialised global", says: &["uninitialised global read of 4 bytes"] };
    expect_found(&bug, |bench| {
        let (x, y) = (bench.uninitialised::<u32>(32), bench.upload(&[0u32; 32]));
        let (x_at, y_at) = (address(&x, &bench.stream), address(&y, &bench.stream));
        bench.launch("planted_uninitialised_global", shape(1, 32, 0), Start::AfterAll, arguments![x_at, y_at]);
    });
}

#[test]
fn shared_memory_that_no_one_wrote() {
    let says = &["uninitialised shared read of 4 bytes at byte 252", "thread (63,0,0)"];
    let bug = Bug { file: FILE, marker: "uninitialised shared", says };
    expect_found(&bug, with_y("planted_uninitialised_shared", 64, 256));
}

#[test]
fn a_write_past_the_end_of_shared_memory() {
    let bug = Bug {
        file: FILE,
        marker: "shared overrun",
        says: &["out-of-bounds shared write of 4 bytes at byte 256 of the 256 bytes", "thread (63,0,0)"],
    };
    expect_found(&bug, with_y("planted_shared_overrun", 64, 256));
}

#[test]
fn a_read_only_load_of_what_the_grid_wrote() {
    let bug = Bug { file: FILE, marker: "read-only load", says: &["a read-only load (ld.global.nc)"] };
    expect_found(&bug, with_x_and_y("planted_read_only_written", 32, 0));
}

#[test]
fn calls_without_end() {
    let says = &["stack overflow: a thread here has 60 KiB", "of planted_endless_calls"];
    let bug = Bug { file: FILE, marker: "endless calls", says };
    expect_found(&bug, with_y("planted_endless_calls", 64, 0));
}

#[test]
fn an_array_larger_than_the_stack() {
    let bug = Bug { file: FILE, marker: "large array", says: &["stack overflow", "of planted_large_array"] };
    expect_found(&bug, with_y("planted_large_array", 64, 0));
}
