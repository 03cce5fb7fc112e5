//! The seed chooses the order of blocks, warps and lanes: it is the same in every process, and another for another
//! seed.

mod workbench;

use std::process::Command;

use workbench::{Bench, Start, address, on_gpu, shape};

const SEED: &str = "RIGEL_TEST_SEED";
const BLOCKS: u32 = 24;
const THREADS: u32 = 64;

/// The order in which threads came, in this process.
fn order(seed: u64) -> Vec<u32> {
    let bench = Bench::open(&[0; 64]);
    Bench::interpreter().set_seed(seed);
    let (counter, order) = (bench.upload(&[0u32]), bench.uninitialised::<u32>((BLOCKS * THREADS) as usize));
    let (counter_at, order_at) = (address(&counter, &bench.stream), address(&order, &bench.stream));
    let shape = shape(BLOCKS, THREADS, 0);
    bench.launch("correct_order_of_arrival", shape, Start::AfterAll, arguments![counter_at, order_at]);
    bench.download(&order).expect("a correct kernel")
}

/// The same in a process of its own: the shuffling goes on where it stands.
fn order_in_own_process(seed: u64) -> Vec<u32> {
    let program = std::env::current_exe().expect("the test binary's own path");
    let arguments = ["--exact", "a_seed_is_an_order", "--nocapture"];
    let output = Command::new(program).args(arguments).env(SEED, seed.to_string()).output().expect("it starts again");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.split_once("order: ")).expect("the order").1;
    line.split(' ').map(|thread| thread.parse().unwrap()).collect()
}

#[test]
fn a_seed_is_an_order() {
    if on_gpu() {
        return eprintln!("a_seed_is_an_order: skipped, a GPU has no seed");
    }
    if let Ok(seed) = std::env::var(SEED) {
        let order: Vec<String> = order(seed.parse().unwrap()).iter().map(u32::to_string).collect();
        return println!("\norder: {}", order.join(" "));
    }
    let all: Vec<u32> = (0..BLOCKS * THREADS).collect();
    let orders: Vec<Vec<u32>> = (0..6).map(order_in_own_process).collect();
    for (seed, order) in orders.iter().enumerate() {
        let mut sorted = order.clone();
        sorted.sort();
        assert_eq!(sorted, all, "seed {seed}: every thread comes once");
        assert_eq!(*order, order_in_own_process(seed as u64), "seed {seed} again");
        assert!(!orders[..seed].contains(order), "seed {seed} has the order of another");
    }
    // Seed 0 shuffles nothing: the blocks that run side by side at first begin in their order.
    let mut begun: Vec<u32> = Vec::new();
    for thread in &orders[0] {
        if !begun.contains(&(thread / THREADS)) {
            begun.push(thread / THREADS);
        }
    }
    assert_eq!(begun[..8], [0, 1, 2, 3, 4, 5, 6, 7]);
}
