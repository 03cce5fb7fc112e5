//! Every function of `kernels/ptx/` does what it says: a tiny kernel for each, on the interpreter and, unchanged, on a
//! GPU. The first run on a new device tells by name which twin, or which instruction's text, is wrong.

use crate::common;
use crate::common::Bench;
use rigel::backend::cuda::{Arguments, Image, Launch};

/// One kernel of `kernels/conformance/`, without its prefix `conform_`, and what it must make of its input.
struct Case {
    function: &'static str,
    blocks: u32,
    threads: u32,
    input: Vec<u32>,
    /// What every word of the output holds before.
    initial: u32,
    outputs: usize,
    check: Box<Check>,
}

/// Input and output, and what is wrong with the output.
type Check = dyn Fn(&[u32], &[u32]) -> Result<(), String>;
/// To 16 bits and from them.
type Conversions = (fn(f64) -> u16, fn(u16) -> f64);

impl Case {
    /// One warp on words that look random, output zeroed, as long as `expected` makes it.
    fn exact(function: &'static str, expected: impl Fn(&[u32]) -> Vec<u32> + 'static) -> Case {
        let input = words(128);
        let outputs = expected(&input).len();
        let check = move |input: &[u32], found: &[u32]| same(found, &expected(input));
        Case { function, blocks: 1, threads: 32, input, initial: 0, outputs, check: Box::new(check) }
    }

    fn input(self, input: Vec<u32>) -> Case {
        Case { input, ..self }
    }

    fn threads(self, threads: u32) -> Case {
        Case { threads, ..self }
    }

    fn blocks(self, blocks: u32) -> Case {
        Case { blocks, ..self }
    }
}

fn words(count: usize) -> Vec<u32> {
    let mut random = common::Random(11);
    (0..count).map(|_| random.bits() as u32).collect()
}

fn same(found: &[u32], expected: &[u32]) -> Result<(), String> {
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        None => Ok(()),
        Some(at) => Err(format!("word {at} is {:#010x}, expected {:#010x}", found[at], expected[at])),
    }
}

/// Every element within `tolerance`, relative to the expected one or, below 1, absolute.
fn close(found: &[u32], expected: &[f64], tolerance: f64) -> Result<(), String> {
    for (at, (found, expected)) in found.iter().map(|bits| f32::from_bits(*bits)).zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs();
        let equal = f64::from(found) == *expected || (found.is_nan() && expected.is_nan());
        // False where either is NaN.
        let near = error <= tolerance * expected.abs().max(1.0);
        if !equal && !near {
            return Err(format!("element {at} is {found}, expected {expected} within {tolerance:e}"));
        }
    }
    Ok(())
}

/// Runs the cases on the kernels of one conformance file, under every schedule, and names those that fail.
fn conform(file: &'static str, cases: &[Case]) {
    let image = common::conformance_image(file);
    common::on_every_schedule(|bench| {
        let failures: Vec<String> = cases.iter().filter_map(|case| run(bench, image, case).err()).collect();
        assert!(failures.is_empty(), "kernels/conformance/{file}.cu:\n{}", failures.join("\n"));
    });
}

fn run(bench: &Bench, image: Image, case: &Case) -> Result<(), String> {
    let module = bench.device().load(image).map_err(|error| error.to_string())?;
    let kernel = module.kernel(&format!("conform_{}", case.function)).map_err(|error| error.to_string())?;
    let input = bench.stream.upload(&case.input).map_err(|error| error.to_string())?;
    let mut output = bench.stream.upload(&vec![case.initial; case.outputs]).map_err(|error| error.to_string())?;
    let arguments = Arguments::new().input(input.view()).output(&output.view_mut());
    let launch = Launch { shared_bytes: 4096, ..Launch::linear(case.blocks, case.threads) };
    // SAFETY: every kernel of kernels/conformance/ takes its input and its output, as long as the case says.
    unsafe { bench.stream.launch(&kernel, &launch, &arguments) }
        .map_err(|error| format!("{}: {error}", case.function))?;
    let found = bench.stream.download(output.view()).map_err(|error| format!("{}: {error}", case.function))?;
    (case.check)(&case.input, &found).map_err(|problem| format!("{}: {problem}", case.function))
}

/// The lanes 0 to 31, each through `of`.
fn by_lane(of: impl Fn(usize) -> u32) -> Vec<u32> {
    (0..32).map(of).collect()
}

device_test! {
    fn warp() {
        let with = |at: &[(usize, u32)]| {
            let mut input = words(128);
            at.iter().for_each(|(index, value)| input[*index] = *value);
            input
        };
        let lanes = |input: &[u32]| input[..32].to_vec();
        conform("warp", &[
            Case::exact("shuffle_xor", |x| by_lane(|lane| x[lane ^ 13])).input(with(&[(32, 13)])),
            Case::exact("shuffle_from", |x| by_lane(|_| x[21])).input(with(&[(32, 21)])),
            Case::exact("shuffle_up", |x| by_lane(|lane| x[if lane < 3 { lane } else { lane - 3 }])).input(with(&[(32, 3)])),
            Case::exact("shuffle_down", |x| by_lane(|lane| x[if lane + 5 > 31 { lane } else { lane + 5 }]))
                .input(with(&[(32, 5)])),
            Case::exact("shuffle_float", |x| by_lane(|lane| x[lane ^ 3])),
            Case::exact("shuffle_half_warp", |x| by_lane(|lane| x[if lane < 16 { lane ^ 5 } else { lane ^ 9 }])),
            Case::exact("warp_ballot", move |x| {
                vec![lanes(x).iter().enumerate().map(|(lane, word)| (word & 1) << lane).sum(); 32]
            }),
            Case::exact("warp_any", |_| vec![1; 32]).input(with(&[(32, words(128)[9]), (33, 0)])),
            Case::exact("warp_all", |_| vec![1; 32]).input(with(&[(32, u32::MAX), (33, words(128)[9] / 2)])),
            Case::exact("warp_sum_u32", move |x| vec![lanes(x).iter().fold(0u32, |sum, word| sum.wrapping_add(*word)); 32]),
            Case::exact("warp_min_u32", move |x| vec![*x[..32].iter().min().unwrap(); 32]),
            Case::exact("warp_max_u32", move |x| vec![*x[..32].iter().max().unwrap(); 32]),
            Case::exact("warp_sync", |x| by_lane(|lane| x[31 - lane])),
        ]);
    }
}

device_test! {
    fn barrier() {
        conform("barrier", &[
            Case::exact("block_sync", |x| (0..64).map(|thread| x[63 - thread]).collect()).threads(64),
            Case::exact("barrier_sync_arrive", |x| by_lane(|lane| x[31 - lane])).threads(64),
            Case::exact("barrier_any", |_| (0..128).map(|thread| if thread < 64 { 1 } else { 4 }).collect()).threads(128),
        ]);
    }
}

device_test! {
    fn memory() {
        let copied = |function, bytes: usize| Case::exact(function, move |x| x[..bytes * 8].to_vec());
        conform("memory", &[
            copied("load_global_4", 4),
            copied("load_readonly_4", 4),
            copied("load_once_4_evict_first", 4),
            copied("load_once_4_evict_last", 4),
            copied("store_global_4", 4),
            copied("load_global_8", 8),
            copied("load_readonly_8", 8),
            copied("load_once_8_evict_first", 8),
            copied("load_once_8_evict_last", 8),
            copied("store_global_8", 8),
            copied("load_global_16", 16),
            copied("load_readonly_16", 16),
            copied("load_once_16_evict_first", 16),
            copied("load_once_16_evict_last", 16),
            copied("store_global_16", 16),
            copied("prefetch_l2", 4),
        ]);
    }
}

device_test! {
    fn order() {
        let handed_on = |function| {
            Case::exact(function, |x| {
                let next: Vec<u32> = x[..32].iter().map(|word| word.wrapping_add(1)).collect();
                [&next[..], &[1], &[0; 31], &next].concat()
            })
            .blocks(2)
        };
        conform("order", &[
            handed_on("release_acquire"),
            handed_on("relaxed_with_fences"),
            handed_on("relaxed_with_system_fences"),
            Case::exact("fence_block", |x| {
                let turned: Vec<u32> = x[..32].iter().rev().copied().collect();
                [&x[..32], &[0; 32], &turned].concat()
            }),
        ]);
    }
}

device_test! {
    fn atomic() {
        // Four blocks of 32 threads. The word out[0] is checked against `last`, the old values, sorted, against `seen`.
        fn case(
            function: &'static str,
            initial: u32,
            last: impl Fn(&[u32]) -> Option<u32> + 'static,
            seen: impl Fn(&[u32], u32, &[u32]) -> bool + 'static,
        ) -> Case {
            let check = move |x: &[u32], out: &[u32]| {
                if let Some(last) = last(&x[..128]).filter(|last| *last != out[0]) {
                    return Err(format!("it leaves {}, expected {last}", out[0]));
                }
                let old = &out[32..160];
                if seen(&x[..128], out[0], old) { Ok(()) } else { Err(format!("the old values {old:?} fit no order")) }
            };
            let input = words(128).iter().map(|word| word % 1000).chain([9]).collect();
            Case { function, blocks: 4, threads: 32, input, initial, outputs: 160, check: Box::new(check) }
        }
        let sorted = |mut values: Vec<u32>| {
            values.sort_unstable();
            values
        };
        // In the order of the additions, each old value plus its own input is the next one.
        let sums = |x: &[u32], last: u32, old: &[u32]| {
            let after: Vec<u32> = old.iter().zip(x).map(|(old, x)| old + x).collect();
            let (mut before, mut after) = (old.to_vec(), after);
            before.push(last);
            after.push(0);
            before.sort_unstable();
            after.sort_unstable();
            before == after
        };
        // Each value is taken over once: those written and the first one, less the one that stays.
        let exchanged = move |x: &[u32], last: u32, old: &[u32]| {
            sorted([old, &[last]].concat()) == sorted([x, &[5]].concat())
        };
        let sum = |x: &[u32]| Some(x.iter().sum::<u32>());
        let any = |_: &[u32], _: u32, _: &[u32]| true;
        // All inputs are whole numbers and their sum is below 2^24, so that sums of f32 are exact in any order.
        let float_sum = |x: &[u32]| Some((x.iter().sum::<u32>() as f32).to_bits());
        conform("atomic", &[
            case("atomic_add_relaxed", 0, sum, sums),
            case("atomic_add_acq_rel", 0, sum, sums),
            case("atomic_min_relaxed", 5000, |x| x.iter().min().copied(), |x, _, old| {
                old.contains(&5000) && old.iter().all(|old| *old == 5000 || x.contains(old))
            }),
            case("atomic_max_relaxed", 0, |x| x.iter().max().copied(), |x, _, old| {
                old.contains(&0) && old.iter().all(|old| *old == 0 || x.contains(old))
            }),
            case("atomic_exchange_relaxed", 5, |_| None, exchanged),
            case("atomic_exchange_acq_rel", 5, |_| None, exchanged),
            // 128 calls with last = 9 go round twelve times and end at 128 % 10.
            case("atomic_wrap_acq_rel", 0, |_| Some(8), move |_, _, old| {
                sorted(old.to_vec()) == sorted((0..128).map(|call| call % 10).collect())
            }),
            case("atomic_add_float", 0, float_sum, any),
            case("reduce_add_float", 0, float_sum, any),
            case("reduce_add_release", 0, sum, any),
            case("atomic_compare_exchange_relaxed", 0, sum, sums),
            case("atomic_compare_exchange_acq_rel", 0, sum, sums),
            case("atomic_max_u64", 0, |x| {
                let pairs = x.iter().zip(0u32..).map(|(x, thread)| (*x, thread));
                pairs.max().map(|(_, thread)| thread)
            }, any),
            case("atomic_compare_exchange_u64", 0, |_| None, |_, last, old| {
                // The winner saw 0, everyone else what it left: its number plus one.
                (1..=128).contains(&last)
                    && old.iter().enumerate().all(|(thread, old)| *old == if thread as u32 + 1 == last { 0 } else { last })
            }),
        ]);
    }
}

device_test! {
    fn async_copy() {
        // Words per lane; every third lane gets this many of them.
        let copied = |function, width: usize, partial: usize| {
            Case::exact(function, move |x| {
                let kept = |at: usize| !(at / width).is_multiple_of(3) || at % width < partial;
                (0..32 * width).map(|at| if kept(at) { x[at] } else { 0 }).collect()
            })
        };
        conform("async_copy", &[
            copied("copy_async_4", 1, 0),
            copied("copy_async_8", 2, 1),
            copied("copy_async_16", 4, 2),
            Case::exact("copy_async_groups", |x| x[..64].to_vec()),
            Case::exact("copy_async_wait_all", |x| x[..32].to_vec()),
        ]);
    }
}

/// Element (row, column) of matrix m of four, stored row by row in 128 words.
fn element(x: &[u32], m: usize, row: usize, column: usize) -> u32 {
    x[m * 32 + row * 4 + column / 2] >> (column % 2 * 16) & 0xffff
}

device_test! {
    fn matrix_loads() {
        let loaded = |function, count: usize, transposed: bool| {
            Case::exact(function, move |x| {
                let at = |m, row, column| if transposed { element(x, m, column, row) } else { element(x, m, row, column) };
                let register = |m, lane: usize| {
                    let (row, column) = (lane / 4, lane % 4 * 2);
                    at(m, row, column) | at(m, row, column + 1) << 16
                };
                (0..count * 32).map(|index| register(index / 32, index % 32)).collect()
            })
        };
        conform("matrix", &[
            loaded("load_matrix_x1", 1, false),
            loaded("load_matrix_x2", 2, false),
            loaded("load_matrix_x4", 4, false),
            loaded("load_matrix_x1_transposed", 1, true),
            loaded("load_matrix_x2_transposed", 2, true),
            loaded("load_matrix_x4_transposed", 4, true),
        ]);
    }
}

/// The case of one multiplication: random fragments, and their product in f64. The layouts are those of the PTX ISA's
/// figures, written down by row and column, not as the interpreter gathers them.
fn product(function: &'static str, k: usize, from_f64: fn(f64) -> u16, to_f64: fn(u16) -> f64) -> Case {
    let (registers_a, registers_b) = (k / 4, k / 8);
    let mut random = common::Random(5);
    let mut pair = || u32::from(from_f64(random.uniform())) | u32::from(from_f64(random.uniform())) << 16;
    let mut input: Vec<u32> = (0..(registers_a + registers_b) * 32).map(|_| pair()).collect();
    input.extend((0..128).map(|i| (i as f32 * 0.25 - 16.0).to_bits()));
    let check = move |x: &[u32], found: &[u32]| {
        let half = |register: usize, lane: usize, high: usize| to_f64((x[register * 32 + lane] >> (16 * high)) as u16);
        // a[row][column]: lane 4 (row % 8) + (column % 8) / 2, register (row / 8) + 2 (column / 8), half column % 2.
        let a = |row: usize, column: usize| half(row / 8 + 2 * (column / 8), row % 8 * 4 + column % 8 / 2, column % 2);
        // b[row][column]: lane 4 column + (row % 8) / 2, register row / 8, half row % 2.
        let b = |row: usize, column: usize| half(registers_a + row / 8, column * 4 + row % 8 / 2, row % 2);
        let mut expected = vec![0.0; 128];
        for row in 0..16 {
            for column in 0..8 {
                // c, d[row][column]: lane 4 (row % 8) + column / 2, register 2 (row / 8) + column % 2.
                let at = (row / 8 * 2 + column % 2) * 32 + row % 8 * 4 + column / 2;
                let c = f64::from(f32::from_bits(x[(registers_a + registers_b) * 32 + at]));
                expected[at] = c + (0..k).map(|i| a(row, i) * b(i, column)).sum::<f64>();
            }
        }
        // Hardware may cut off bits below the largest term: 2^-20 of it is far above that, far below any wrong layout.
        close(found, &expected, 2f64.powi(-20) * 16.0)
    };
    Case { function, blocks: 1, threads: 32, input, initial: 0, outputs: 128, check: Box::new(check) }
}

device_test! {
    fn matrix_products() {
        let bf16: Conversions =
            (|x| half::bf16::from_f64(x).to_bits(), |bits| half::bf16::from_bits(bits).to_f64());
        let f16: Conversions =
            (|x| half::f16::from_f64(x).to_bits(), |bits| half::f16::from_bits(bits).to_f64());
        conform("matrix", &[
            product("multiply_m16n8k16_bf16", 16, bf16.0, bf16.1),
            product("multiply_m16n8k16_f16", 16, f16.0, f16.1),
            product("multiply_m16n8k8_bf16", 8, bf16.0, bf16.1),
            product("multiply_m16n8k8_f16", 8, f16.0, f16.1),
        ]);
    }
}

/// Numbers at which roundings go wrong: ties, both sides of them, the ends of each format's range.
const ROUNDED: [f32; 32] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1.003_906_2,
    1.011_718_8,
    1.000_488_3,
    1.001_464_8,
    1.000_488_4,
    0.333_333_34,
    65504.0,
    65519.0,
    65520.0,
    -65520.0,
    1e5,
    3.389_531_4e38,
    3.4e38,
    -3.4e38,
    f32::INFINITY,
    f32::NEG_INFINITY,
    6.103_515_6e-5,
    6.1e-5,
    5.960_464_5e-8,
    2.980_232_2e-8,
    2.980_232_6e-8,
    8.940_697e-8,
    -5e-8,
    1e-10,
    123.456,
    -7.5,
    2049.0,
    2051.0,
];

device_test! {
    fn convert() {
        let floats: Vec<u32> = ROUNDED.iter().chain(ROUNDED.iter().rev()).map(|value| value.to_bits()).collect();
        let bf16 = |bits: u32| u32::from(half::bf16::from_f32(f32::from_bits(bits)).to_bits());
        let f16 = |bits: u32| u32::from(half::f16::from_f32(f32::from_bits(bits)).to_bits());
        // All numbers of 16 bits would be 65,536 lanes; these are zeros, subnormals, ones, the largest, infinities.
        let halves: Vec<u32> = (0..32).map(|lane| [0x0000, 0x0001, 0x03ff, 0x0400, 0x3c00, 0x7bff, 0x7c00, 0x3f80][lane % 8]
            | ((lane as u32 / 8 % 2) << 15) | (lane as u32 / 16 * 0x55)).collect();
        let halves: Vec<u32> = halves.into_iter().map(|bits| if bits & 0x7c00 == 0x7c00 { bits & 0xfc00 } else { bits }).collect();
        conform("convert", &[
            Case::exact("pack_bf16x2", move |x| by_lane(|lane| bf16(x[lane]) | bf16(x[32 + lane]) << 16)).input(floats.clone()),
            Case::exact("pack_f16x2", move |x| by_lane(|lane| f16(x[lane]) | f16(x[32 + lane]) << 16)).input(floats.clone()),
            Case::exact("round_bf16", move |x| by_lane(|lane| bf16(x[lane]))).input(floats.clone()),
            Case::exact("round_f16", move |x| by_lane(|lane| f16(x[lane]))).input(floats.clone()),
            Case::exact("widen_bf16", |x| by_lane(|lane| half::bf16::from_bits(x[lane] as u16).to_f32().to_bits()))
                .input(halves.clone()),
            Case::exact("widen_f16", |x| by_lane(|lane| half::f16::from_bits(x[lane] as u16).to_f32().to_bits()))
                .input(halves.clone()),
        ]);
    }
}

/// `(1 + k ε) (1 - k ε) - 1`, which is exact in f64 and in f32, and 0 where the product is rounded before.
fn fused() -> Case {
    let sum = |x: &[u32]| {
        let [a, b, c] = [x[0], x[1], x[2]].map(|bits| f64::from(f32::from_bits(bits)));
        ((a * b + c) as f32).to_bits()
    };
    let of = |k: i32| [k as f32 * f32::EPSILON + 1.0, 1.0 - k as f32 * f32::EPSILON, -1.0].map(f32::to_bits);
    let input: Vec<u32> = (1..33).flat_map(of).collect();
    let expected = move |x: &[u32]| x.chunks(3).map(sum).collect::<Vec<u32>>();
    assert!(expected(&input).iter().all(|bits| f32::from_bits(*bits) < 0.0));
    let check = move |x: &[u32], found: &[u32]| same(found, &expected(x));
    let (function, outputs, check) = ("multiply_add_rounded", 32, Box::new(check));
    Case { function, blocks: 1, threads: 32, input, initial: 0, outputs, check }
}

device_test! {
    fn math() {
        let on = |function, from: f64, to: f64, exact: fn(f64) -> f64, tolerance: f64| {
            let input: Vec<u32> = (0..32).map(|i| ((from + (to - from) * f64::from(i) / 31.0) as f32).to_bits()).collect();
            let check = move |x: &[u32], found: &[u32]| {
                let expected: Vec<f64> = x.iter().map(|bits| exact(f64::from(f32::from_bits(*bits)))).collect();
                close(found, &expected, tolerance)
            };
            Case { function, blocks: 1, threads: 32, input, initial: 0, outputs: 32, check: Box::new(check) }
        };
        // Bounds as the PTX ISA gives them, with room for the rounding of the result; tanh: 2^-11 relative.
        conform("math", &[
            on("exp2_approx", -20.0, 20.0, f64::exp2, 2f64.powi(-21)),
            on("log2_approx", 0.01, 1000.0, f64::log2, 2f64.powi(-20)),
            on("reciprocal_approx", -3.0, 8.0, |x| 1.0 / x, 2f64.powi(-22)),
            on("rsqrt_approx", 1e-3, 1e3, |x| 1.0 / x.sqrt(), 2f64.powi(-21)),
            on("tanh_approx", -6.0, 6.0, f64::tanh, 2f64.powi(-10)),
            fused(),
        ]);
    }
}

device_test! {
    /// Attention leaves out the rescaling by 2^0, and gives weight 0 to a key that no row sees: neither may be off at
    /// all.
    fn powers_of_two_of_zero_and_of_infinity_are_exact() {
        let input: Vec<u32> = [0.0, -0.0, f32::NEG_INFINITY, -200.0].iter().cycle().take(32).map(|x| x.to_bits()).collect();
        let expected = [1.0f32, 1.0, 0.0, 0.0].map(f32::to_bits);
        conform("math", &[Case::exact("exp2_approx", move |_| expected.repeat(8)).input(input)]);
    }
}

device_test! {
    fn grid() {
        conform("grid", &[
            Case::exact("grid_dependency", |x| by_lane(|lane| x[lane].wrapping_add(1))),
            Case::exact("global_nanoseconds", |x| x[..32].to_vec()),
            Case::exact("sm_cycles", |x| x[..32].to_vec()),
        ]);
    }
}

/// Every function has its kernel: the names in kernels/ptx/ are looked for in kernels/conformance/.
#[test]
fn no_function_is_left_out() {
    let read = |folder: &str, extension: &str| -> String {
        let folder = common::root().join("kernels").join(folder);
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let paths = entries.flatten().map(|entry| entry.path());
        let mut texts = paths.filter(|path| path.extension().is_some_and(|it| it == extension));
        texts.by_ref().map(|path| std::fs::read_to_string(path).unwrap()).collect()
    };
    let (instructions, kernels) = (read("ptx", "cuh"), read("conformance", "cu"));
    let declared = instructions.lines().filter(|line| line.starts_with("DEVICE "));
    let names: Vec<&str> = declared.filter_map(|line| line.split('(').next()?.split_whitespace().last()).collect();
    assert!(names.len() > 50, "{names:?}");
    let code = kernels.lines().filter_map(|line| line.split("//").next());
    let words: std::collections::HashSet<&str> =
        code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_')).collect();
    for name in names {
        assert!(words.contains(name), "no kernel calls {name}");
    }
}
