//! The twins of the MMA instructions add up k in an order of their own for each shape, as hardware may: two paths
//! have equal bits only where both use one shape. Else a test of such a claim would pass here whatever the kernels do.

mod workbench;

use rigel_interpreter::Interpreter;
use workbench::{Bench, Start, address, on_gpu, shape};

/// Rows, columns and depth of the product: one m16n8k16, or two m16n8k8.
const M: usize = 16;
const N: usize = 8;
const K: usize = 16;

/// A 16-bit format.
struct Format {
    name: &'static str,
    mantissa_bits: u32,
    /// Exponent bits of 1.
    bias: u32,
}

impl Format {
    /// A random number ±(1 + mantissa) 2^exponent with an exponent of -6 to 6, and what it is worth. The exponents
    /// matter: products of like size add up exactly in f32, in any order.
    fn random(&self, state: &mut u64) -> (u16, f64) {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let random = (*state >> 33) as u32;
        let mantissa = random & ((1 << self.mantissa_bits) - 1);
        let negative = random >> 20 & 1;
        let exponent = (random >> 21) % 13;
        let bits = negative << 15 | (self.bias - 6 + exponent) << self.mantissa_bits | mantissa;
        let fraction = 1.0 + f64::from(mantissa) / f64::from(1u32 << self.mantissa_bits);
        let value = fraction * 2f64.powi(exponent as i32 - 6);
        (bits as u16, if negative == 1 { -value } else { value })
    }
}

const FORMATS: [Format; 2] =
    [Format { name: "bf16", mantissa_bits: 7, bias: 127 }, Format { name: "f16", mantissa_bits: 10, bias: 15 }];

/// Two elements of a register, the first below.
fn pair(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

/// Runs the conformance kernel of one instruction: fragments of a, b and c in, that of d out, 32 lanes a register.
fn multiply(bench: &Bench, kernel: &str, a: &[u32], b: &[u32], c: &[u32]) -> Vec<u32> {
    let input = bench.upload(&[a, b, c].concat());
    let output = bench.upload(&[0u32; 4 * 32]);
    let (from, to) = (address(&input, &bench.stream), address(&output, &bench.stream));
    bench.launch(kernel, shape(1, 32, 0), Start::AfterAll, arguments![from, to]);
    bench.download(&output).expect("a product")
}

/// One product of random matrices by either shape: the sums of each, and in float64 the exact ones and those of the
/// products' magnitudes.
fn products(bench: &Bench, format: &Format, seed: u64) -> (Vec<f32>, Vec<f32>, Vec<(f64, f64)>) {
    let mut state = seed;
    let a: Vec<[(u16, f64); K]> = (0..M).map(|_| std::array::from_fn(|_| format.random(&mut state))).collect();
    let b: Vec<[(u16, f64); N]> = (0..K).map(|_| std::array::from_fn(|_| format.random(&mut state))).collect();
    // PTX ISA, fragments of m16n8k16: registers 0 and 1 of a, and 0 of b, hold k below 8, the others the rest. So they
    // are the fragments of two m16n8k8, too.
    let (mut a_fragment, mut b_fragment) = (Vec::new(), Vec::new());
    for register in 0..4 {
        a_fragment.extend((0..32).map(|lane| {
            let (row, k) = (lane / 4 + register % 2 * 8, lane % 4 * 2 + register / 2 * 8);
            pair(a[row][k].0, a[row][k + 1].0)
        }));
    }
    for register in 0..2 {
        b_fragment.extend((0..32).map(|lane| {
            let (k, column) = (lane % 4 * 2 + register * 8, lane / 4);
            pair(b[k][column].0, b[k + 1][column].0)
        }));
    }
    let zero = [0u32; 4 * 32];
    let kernel = |k| format!("conform_multiply_m16n8k{k}_{}", format.name);
    let once = multiply(bench, &kernel(16), &a_fragment, &b_fragment, &zero);
    let half = multiply(bench, &kernel(8), &a_fragment[..64], &b_fragment[..32], &zero);
    let twice = multiply(bench, &kernel(8), &a_fragment[64..], &b_fragment[32..], &half);
    let exact = (0..4 * 32).map(|at| {
        let (register, lane) = (at / 32, at % 32);
        let (row, column) = (lane / 4 + register / 2 * 8, lane % 4 * 2 + register % 2);
        let product = |k: usize| a[row][k].1 * b[k][column].1;
        ((0..K).map(product).sum(), (0..K).map(|k| product(k).abs()).sum())
    });
    let floats = |bits: Vec<u32>| bits.into_iter().map(f32::from_bits).collect();
    (floats(once), floats(twice), exact.collect())
}

#[test]
fn shapes_agree_on_the_numbers_and_not_on_the_bits() {
    if on_gpu() {
        return eprintln!("shapes_agree…: skipped, hardware's order of adding is its own");
    }
    let bench = Bench::open(&[0; 64]);
    for format in &FORMATS {
        let mut different = 0;
        for seed in 1..=4 {
            let (once, twice, exact) = products(&bench, format, seed);
            for ((once, twice), (exact, magnitude)) in once.iter().zip(&twice).zip(&exact) {
                // 16 additions, each rounded to f32.
                let bound = 16.0 * f64::from(f32::EPSILON) * magnitude;
                assert!((f64::from(*once) - exact).abs() <= bound, "{}: {once}, {exact}", format.name);
                assert!((f64::from(*twice) - exact).abs() <= bound, "{}: {twice}, {exact}", format.name);
                different += u32::from(once.to_bits() != twice.to_bits());
            }
            let (again, ..) = products(&bench, format, seed);
            assert_eq!(once, again, "one shape has one order");
        }
        assert!(different > 0, "{}: all sums are equal to the bit", format.name);
        eprintln!("{}: {different} of 512 sums differ", format.name);
    }
    assert_eq!(Interpreter::load().reports(), Vec::<String>::new());
}
