//! Threads that do not meet where they must are reported: divergent barriers and collectives, deadlocks, livelocks.

mod workbench;

use workbench::planted::{Bug, expect_clean, expect_found};
use workbench::{Bench, Start, address, shape};

fn on_words(kernel: &'static str, grid: u32, threads: u32, start: Start) -> impl Fn(&Bench) {
    move |bench| {
        let y = bench.upload(&[0u32; 64]);
        let y_at = address(&y, &bench.stream);
        bench.launch(kernel, shape(grid, threads, 512), start, arguments![y_at]);
    }
}

fn bug(marker: &'static str, says: &'static [&'static str]) -> Bug {
    Bug { file: "divergence.cu", marker, says }
}

#[test]
fn a_barrier_in_both_branches() {
    let bug = bug("divergent barrier", &["divergent barrier: threads of the block wait at different block_sync calls"]);
    expect_found(&bug, on_words("planted_divergent_barrier", 1, 64, Start::AfterAll));
}

#[test]
fn lanes_of_a_warp_at_different_barriers() {
    let bug = bug("divergent warp at barrier", &["divergent barrier: lanes of one warp"]);
    expect_found(&bug, on_words("planted_divergent_warp_at_barrier", 1, 32, Start::AfterAll));
}

#[test]
fn a_barrier_that_threads_count_differently() {
    let bug = bug("barrier counts", &["barrier 1: this thread expects", "others expect"]);
    expect_found(&bug, on_words("planted_barrier_counts", 1, 96, Start::AfterAll));
}

#[test]
fn barriers_that_do_not_exist() {
    let sixteenth = bug("barrier 16", &["barrier 16 does not exist: a block has 16"]);
    expect_found(&sixteenth, on_words("planted_barrier_16", 1, 32, Start::AfterAll));
    let zeroth = bug("barrier 0", &["barrier 0 belongs to block_sync"]);
    expect_found(&zeroth, on_words("planted_barrier_0", 1, 32, Start::AfterAll));
    let part_of_a_warp = bug("barrier of 33", &["barrier 1: 33 threads is not a multiple of the warp size"]);
    expect_found(&part_of_a_warp, on_words("planted_barrier_of_33", 1, 64, Start::AfterAll));
}

#[test]
fn lanes_that_return_before_a_barrier() {
    expect_found(&bug("early return", &["divergent barrier"]), |bench| {
        let y = bench.upload(&[0u32; 64]);
        let (y_at, n) = (address(&y, &bench.stream), 40i32);
        bench.launch("planted_early_return", shape(1, 64, 0), Start::AfterAll, arguments![y_at, n]);
    });
}

#[test]
fn a_shuffle_that_half_a_warp_reaches() {
    let bug = bug("shuffle in branch", &["shfl.sync.bfly"]);
    expect_found(&bug, on_words("planted_shuffle_in_branch", 1, 32, Start::AfterAll));
}

#[test]
fn two_collectives_at_once() {
    let bug = bug("mismatched collective", &["divergent warp", "shfl.sync.bfly", "vote.sync"]);
    expect_found(&bug, on_words("planted_mismatched_collective", 1, 32, Start::AfterAll));
}

#[test]
fn a_shuffle_from_outside_its_mask() {
    let bug =
        bug("outside mask", &["shfl.sync.idx: lane", "reads from lane 20, which its mask (lanes 0000ffff) leaves out"]);
    expect_found(&bug, on_words("planted_shuffle_outside_mask", 1, 32, Start::AfterAll));
}

#[test]
fn a_mask_without_its_caller_and_one_beyond_the_warp() {
    let without = bug("mask without caller", &["shfl.sync.bfly: its mask (lanes 0000ffff) lacks the calling lane"]);
    expect_found(&without, on_words("planted_mask_without_caller", 1, 32, Start::AfterAll));
    let beyond =
        bug("mask beyond warp", &["bar.warp.sync: its mask (lanes ffffffff) names lanes that this warp does not"]);
    expect_found(&beyond, on_words("planted_mask_beyond_warp", 1, 48, Start::AfterAll));
}

#[test]
fn one_matrix_load_in_each_branch() {
    let bug = bug("matrix load in branches", &["divergent warp", "ldmatrix.x1"]);
    expect_found(&bug, on_words("planted_matrix_load_in_branches", 1, 32, Start::AfterAll));
}

#[test]
fn a_deadlock() {
    let says = &["deadlock", "32 threads wait for barrier.sync", "threads 0-31", "threads 32-63", "block (0,0,0)"];
    let bug = Bug { file: "divergence.cu", marker: "deadlock", says };
    expect_found(&bug, on_words("planted_deadlock", 1, 64, Start::AfterAll));
}

#[test]
fn a_flag_that_no_one_sets() {
    let bug = bug("livelock", &["livelock", "1 thread wait for a flag to change"]);
    expect_found(&bug, on_words("planted_livelock", 1, 32, Start::AfterAll));
}

#[test]
fn a_barrier_of_the_grid_needs_a_cooperative_launch() {
    let bug = bug("grid barrier", &["livelock", "blocks have not started", "only in a cooperative launch"]);
    expect_found(&bug, on_words("planted_grid_barrier", 40, 32, Start::AfterAll));
    expect_clean("a cooperative grid barrier", on_words("planted_grid_barrier", 40, 32, Start::Cooperative));
}
