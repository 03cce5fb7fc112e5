//! Races in shared memory are caught under every schedule, with both source lines.

mod workbench;

use workbench::planted::{Bug, expect_found};
use workbench::{Start, address, shape};

/// Runs one block of the kernel on x (256 floats) and y (64 floats), or on y alone where it takes no x.
fn expect_race(kernel: &str, marker: &'static str, threads: u32, takes_x: bool, says: &'static [&'static str]) {
    expect_found(&Bug { file: "shared_races.cu", marker, says }, |bench| {
        let (x, y) = (bench.upload(&vec![1.0f32; 256]), bench.upload(&[0.0f32; 64]));
        let (x_at, y_at) = (address(&x, &bench.stream), address(&y, &bench.stream));
        let one_block = shape(1, threads, 1024);
        if takes_x {
            bench.launch(kernel, one_block, Start::AfterAll, arguments![x_at, y_at]);
        } else {
            bench.launch(kernel, one_block, Start::AfterAll, arguments![y_at]);
        }
    });
}

const RACE: &[&str] = &["race in shared memory"];

#[test]
fn a_missing_barrier() {
    expect_race(
        "planted_missing_barrier",
        "missing barrier",
        64,
        false,
        &["race in shared memory", "no barrier orders the two"],
    );
}

#[test]
fn a_buffer_used_again_too_soon() {
    expect_race("planted_buffer_reused", "buffer reused", 64, true, RACE);
}

#[test]
fn two_threads_write_the_same_word() {
    expect_race(
        "planted_same_word_written",
        "two writers",
        32,
        false,
        &["race in shared memory", "not ordered after a write"],
    );
}

#[test]
fn a_shuffle_taken_for_a_barrier() {
    expect_race("planted_shuffle_as_barrier", "shuffle as barrier", 32, false, RACE);
}

#[test]
fn an_asynchronous_copy_not_waited_for() {
    let says = &["race in shared memory", "has not waited for its own asynchronous copy", "asynchronous copy"];
    expect_race("planted_copy_not_waited", "copy not waited", 32, true, says);
}

#[test]
fn an_asynchronous_copy_of_another_thread() {
    expect_race(
        "planted_copy_no_barrier",
        "copy without barrier",
        32,
        true,
        &["race in shared memory", "asynchronous copy"],
    );
}

#[test]
fn a_wait_that_leaves_a_group_pending() {
    expect_race("planted_wait_too_weak", "wait too weak", 32, true, &["race in shared memory", "asynchronous copy"]);
}

#[test]
fn a_stage_refilled_while_it_is_read() {
    expect_race("planted_stage_refilled", "stage refilled", 64, true, &["race in shared memory", "asynchronous copy"]);
}

#[test]
fn a_matrix_load_before_the_barrier() {
    expect_race("planted_matrix_race", "matrix race", 64, false, RACE);
}
