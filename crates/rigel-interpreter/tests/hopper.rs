//! Bulk copies, mbarriers, MMA instructions of a warpgroup and clusters: every mistake in their use is found under
//! every schedule, and correct uses run clean.

mod workbench;

use workbench::planted::{Bug, expect_clean, expect_found};
use workbench::{Bench, Start, address, shape, tensor_map};

/// bf16 1.0.
const ONE: u16 = 0x3f80;

/// Launches on a matrix `in` of 64 rows and 128 columns of ones, a matrix `out` of 64 x 64 and 4,224 floats `y`.
fn on_tiles(kernel: &'static str, threads: u32, start: Start) -> impl Fn(&Bench) {
    move |bench| {
        let (input, output) = (bench.upload(&[ONE; 64 * 128]), bench.upload(&[0u16; 64 * 64]));
        let y = bench.upload(&[0.0f32; 4224]);
        let of = |buffer| address(buffer, &bench.stream);
        let maps = (tensor_map(of(&input), 64, 128, 64), tensor_map(of(&output), 64, 64, 64));
        let y_at = address(&y, &bench.stream);
        let blocks = if let Start::Clusters(blocks) = start { blocks } else { 1 };
        bench.launch(kernel, shape(blocks, threads, 64 << 10), start, arguments![maps.0, maps.1, y_at]);
        // The buffers live until it has run; whether it failed is asked elsewhere.
        let _ = bench.stream.synchronize();
    }
}

#[track_caller]
fn found(kernel: &'static str, marker: &'static str, threads: u32, says: &'static [&'static str]) {
    expect_found(&Bug { file: "hopper.cu", marker, says }, on_tiles(kernel, threads, Start::AfterAll));
}

#[test]
fn ordinary_stores_that_the_asynchronous_proxy_reads() {
    let says = &["missing proxy fence", "an ordinary store wrote", "fence_proxy_async_shared"];
    found("planted_store_without_proxy_fence", "store without proxy fence", 128, says);
    found("planted_proxy_fence_too_late", "proxy fence too late", 256, says);
    found(
        "planted_earlier_work_without_proxy_fence",
        "earlier work without proxy fence",
        128,
        &["missing proxy fence", "fence_proxy_async_global"],
    );
    found(
        "planted_barrier_without_fence",
        "barrier without fence",
        128,
        &["missing proxy fence", "mbarrier_init_fence"],
    );
}

#[test]
fn bulk_copies_that_no_one_waited_for() {
    let says = &["race in shared memory", "bulk cop"];
    found("planted_load_not_waited", "load not waited", 128, says);
    found("planted_waited_for_another", "waited for another", 128, says);
    found("planted_waited_by_one", "waited by one", 128, says);
    found("planted_source_overwritten", "source overwritten", 128, says);
    let says = &["a thread returns before it has waited for its bulk store"];
    found("planted_store_not_waited", "store not waited", 128, says);
    let says = &["race in global memory", "bulk copies of warp 0"];
    found("planted_read_wait_for_written", "read wait for written", 128, says);
}

#[test]
fn boxes_where_they_may_not_lie() {
    found("planted_box_not_aligned", "box not aligned", 128, &["a box at shared address", "not aligned to 1024"]);
}

#[test]
fn mbarriers_that_count_wrong() {
    found("planted_too_many_arrivals", "too many arrivals", 128, &["counts 1 arrivals a phase, and this is one more"]);
    found("planted_too_few_bytes", "too few bytes", 128, &["4096 bytes more have come"]);
    let says = &["deadlock", "wait for the mbarrier at byte 8192, parity 0", "lacks 0 of 1 arrivals and 8192 bytes"];
    found("planted_too_many_bytes", "too many bytes", 128, says);
    let says = &["deadlock", "wait for the mbarrier at byte 8192, parity 1", "lacks 1 of 1 arrivals and 0 bytes"];
    found("planted_wrong_parity", "wrong parity", 128, says);
    found(
        "planted_barrier_overwritten",
        "barrier overwritten",
        128,
        &["the mbarrier at byte 8192 has been overwritten"],
    );
}

#[test]
fn registers_of_matrix_instructions() {
    found("planted_sums_read_early", "sums read early", 128, &["a read of a wgmma's sums before a warpgroup_wait"]);
    found("planted_fence_missing", "fence missing", 128, &["missing warpgroup_fence: its sums"]);
}

#[test]
fn stages_filled_while_they_are_read() {
    let says = &["race in shared memory", "bulk cop", "MMA instruction"];
    found("planted_wait_too_weak_for_stage", "wait too weak for stage", 160, says);
}

#[test]
fn warps_that_do_not_come_along() {
    found("planted_warp_misses_commit", "warp misses commit", 128, &["divergent warpgroup"]);
    let says = &["deadlock", "registers of other warpgroups (setmaxnreg.inc)"];
    found("planted_registers_never_come", "registers never come", 384, says);
}

#[test]
fn clusters() {
    let found = |kernel, marker, says| {
        expect_found(&Bug { file: "hopper.cu", marker, says }, on_tiles(kernel, 32, Start::Clusters(2)));
    };
    found("planted_multicast_too_early", "multicast too early", &["race in shared memory", "bulk cop"]);
    found("planted_wait_of_the_block", "wait of the block", &["race in shared memory"]);
    found("planted_relaxed_arrival", "relaxed arrival", &["race in shared memory"]);
    found("planted_other_block_unsynchronised", "other block unsynchronised", &["race in shared memory"]);
    found("planted_sent_and_wait_of_the_block", "sent and wait of the block", &["race in shared memory", "bulk cop"]);
    // Under way as the block ends, or there already.
    found("planted_sent_and_not_waited", "sent and not waited", &["the block ends"]);
}

#[test]
fn a_ring_of_tiles() {
    expect_clean("correct_ring", |bench| {
        let (input, output) = (bench.upload(&[ONE; 64 * 128]), bench.upload(&[0u16; 64 * 64]));
        let y = bench.uninitialised::<f32>(4096);
        let of = |buffer| address(buffer, &bench.stream);
        let maps = (tensor_map(of(&input), 64, 128, 64), tensor_map(of(&output), 64, 64, 64));
        let y_at = address(&y, &bench.stream);
        bench.launch("correct_ring", shape(1, 160, 48 << 10), Start::AfterAll, arguments![maps.0, maps.1, y_at]);
        assert_eq!(bench.download(&y).expect("a correct kernel"), [384.0; 4096]);
        assert_eq!(bench.download(&output).expect("a correct kernel"), [0x43c0; 4096]);
    });
}

#[test]
fn a_multicast() {
    expect_clean("correct_multicast", |bench| {
        let (input, output) = (bench.upload(&[ONE; 64 * 128]), bench.upload(&[0u16; 64 * 64]));
        let y = bench.uninitialised::<f32>(128);
        let of = |buffer| address(buffer, &bench.stream);
        let maps = (tensor_map(of(&input), 64, 128, 64), tensor_map(of(&output), 64, 64, 64));
        let y_at = address(&y, &bench.stream);
        bench.launch("correct_multicast", shape(4, 32, 20 << 10), Start::Clusters(2), arguments![maps.0, maps.1, y_at]);
        // Two ones of bf16, taken for a float, twice.
        assert_eq!(bench.download(&y).expect("a correct kernel"), [2.0 * f32::from_bits(0x3f80_3f80); 128]);
    });
}
