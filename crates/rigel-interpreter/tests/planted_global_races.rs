//! Unordered accesses to global memory are caught: between blocks, between grids of a dependent launch, between
//! streams.

mod workbench;

use cudarc::driver::CudaSlice;
use workbench::planted::{Bug, expect_found};
use workbench::{Bench, Start, address, shape};

fn bug(marker: &'static str, says: &'static [&'static str]) -> Bug {
    Bug { file: "global_races.cu", marker, says }
}

fn zeros(bench: &Bench, count: usize) -> (CudaSlice<u32>, u64) {
    let slice = bench.upload(&vec![0u32; count]);
    let at = address(&slice, &bench.stream);
    (slice, at)
}

#[test]
fn blocks_that_write_the_same_word() {
    let says = &["race in global memory", "not ordered after a write", "no barrier reaches across blocks"];
    expect_found(&bug("blocks overlap", says), |bench| {
        let (_y, y_at) = zeros(bench, 256);
        bench.launch("planted_blocks_overlap", shape(4, 32, 0), Start::AfterAll, arguments![y_at]);
    });
}

#[test]
fn a_block_that_reads_what_another_writes() {
    expect_found(&bug("reads other block", &["race in global memory"]), |bench| {
        let ((_y, y_at), (_z, z_at)) = (zeros(bench, 64), zeros(bench, 32));
        bench.launch("planted_reads_other_block", shape(2, 32, 0), Start::AfterAll, arguments![y_at, z_at]);
    });
}

#[test]
fn one_byte_of_sixteen_that_another_block_stores() {
    expect_found(&bug("wide and narrow", &["race in global memory"]), |bench| {
        let ((_y, y_at), (_z, z_at)) = (zeros(bench, 8), zeros(bench, 1));
        bench.launch("planted_wide_and_narrow", shape(2, 32, 0), Start::AfterAll, arguments![y_at, z_at]);
    });
}

#[test]
fn partial_results_without_a_fence() {
    expect_found(&bug("missing fence", &["race in global memory", "no fence and flag"]), |bench| {
        let ((_p, partial), (_c, counter), (_y, y_at)) = (zeros(bench, 8), zeros(bench, 1), zeros(bench, 1));
        bench.launch("planted_missing_fence", shape(8, 32, 0), Start::AfterAll, arguments![partial, counter, y_at]);
    });
}

#[test]
fn a_counter_that_is_raised_before_the_block_is_done() {
    expect_found(&bug("counts too soon", &["race in global memory"]), |bench| {
        let ((_d, data), (_c, counter), (_y, y_at)) = (zeros(bench, 256), zeros(bench, 1), zeros(bench, 64));
        bench.launch("planted_counts_too_soon", shape(4, 64, 64), Start::AfterAll, arguments![data, counter, y_at]);
    });
}

#[test]
fn a_flag_written_by_a_plain_store() {
    expect_found(&bug("plain flag", &["race in global memory"]), |bench| {
        let ((_d, data), (_f, flag), (_y, y_at)) = (zeros(bench, 1), zeros(bench, 1), zeros(bench, 1));
        bench.launch("planted_plain_flag", shape(2, 32, 0), Start::AfterAll, arguments![data, flag, y_at]);
    });
}

const TOO_EARLY: &[&str] = &["race in global memory", "griddepcontrol.wait must come first"];

/// A producer that writes x late, then a step that was launched to start early, on x and y.
fn after_a_slow_producer(kernel: &'static str) -> impl Fn(&Bench) {
    move |bench| {
        let ((_x, x), (_y, y), (_b, busy)) = (zeros(bench, 32), zeros(bench, 32), zeros(bench, 1));
        bench.launch("planted_slow_producer", shape(1, 32, 0), Start::AfterAll, arguments![x, busy]);
        bench.launch(kernel, shape(1, 32, 0), Start::Early, arguments![x, y]);
    }
}

#[test]
fn a_read_before_the_wait() {
    expect_found(&bug("read before wait", TOO_EARLY), after_a_slow_producer("planted_read_before_wait"));
}

#[test]
fn a_write_before_the_wait_of_what_the_grid_ahead_reads() {
    expect_found(&bug("write before wait", TOO_EARLY), |bench| {
        let ((_x, x), (_y, y), (_b, busy)) = (zeros(bench, 32), zeros(bench, 32), zeros(bench, 1));
        bench.launch("planted_slow_producer", shape(1, 32, 0), Start::AfterAll, arguments![y, busy]);
        bench.launch("planted_write_before_wait", shape(1, 32, 0), Start::Early, arguments![x, y]);
    });
}

#[test]
fn a_wait_does_not_reach_past_a_grid_that_did_not_wait() {
    // correct_dependent_step waits, but only for planted_no_wait, which did not wait for the producer.
    expect_found(&bug("dependent launch", &["race in global memory", "correct_dependent_step"]), |bench| {
        let ((_x, x), (_y, y), (_b, busy)) = (zeros(bench, 32), zeros(bench, 32), zeros(bench, 1));
        let ((_e, elsewhere), (_z, z)) = (zeros(bench, 32), zeros(bench, 32));
        bench.launch("planted_slow_producer", shape(1, 32, 0), Start::AfterAll, arguments![x, busy]);
        bench.launch("planted_no_wait", shape(1, 32, 0), Start::Early, arguments![elsewhere, z]);
        bench.launch("correct_dependent_step", shape(1, 32, 0), Start::Early, arguments![x, y]);
    });
}

#[test]
fn streams_that_nothing_orders() {
    expect_found(&bug("streams unordered", &["race in global memory", "different streams"]), |bench| {
        let other = bench.context.new_stream().expect("a second stream");
        let ((_x, x), (_y, y), (_z, z)) = (zeros(bench, 32), zeros(bench, 32), zeros(bench, 32));
        bench.stream.synchronize().expect("the uploads are done");
        bench.launch("planted_plain_step", shape(1, 32, 0), Start::AfterAll, arguments![x, y]);
        bench.launch_on(&other, "planted_plain_step", shape(1, 32, 0), Start::AfterAll, arguments![y, z]);
        let _ = bench.context.synchronize();
    });
}
