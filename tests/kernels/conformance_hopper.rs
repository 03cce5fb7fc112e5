//! What Hopper alone has does what `kernels/ptx/{mbarrier,bulk_copy,cluster,warpgroup}.cuh` say: a tiny kernel for each
//! function, on the interpreter and, unchanged, on a GPU. See `kernels_conformance.rs` for the rest.

use crate::common;
use crate::common::{Bench, Half, Random};
use rigel::backend::cuda::{Arguments, Buffer, Dimension, Image, Launch, Swizzle, TensorMap};

fn image(file: &'static str) -> Image {
    common::conformance_image_for(file, &["sm_90a"])
}

fn words(count: usize) -> Vec<u32> {
    let mut random = Random(11);
    (0..count).map(|_| random.bits() as u32).collect()
}

#[track_caller]
fn same(function: &str, found: &[u32], expected: &[u32]) {
    if let Some(at) = found.iter().zip(expected).position(|(found, expected)| found != expected) {
        panic!("{function}: word {at} is {:#010x}, expected {:#010x}", found[at], expected[at]);
    }
    assert_eq!(found.len(), expected.len(), "{function}");
}

/// Makes a map of a kernel's input or of its output.
type MapOf<'a> = &'a dyn Fn(&Buffer<u32>, &mut Buffer<u32>) -> TensorMap;

/// One kernel of `kernels/conformance/hopper.cu`, on `input`; returns its output, zeroed before.
struct Run<'a> {
    bench: &'a Bench,
    function: &'static str,
    threads: u32,
    /// Of the one cluster that is launched.
    blocks: u32,
}

impl<'a> Run<'a> {
    fn new(bench: &'a Bench, function: &'static str) -> Run<'a> {
        Run { bench, function, threads: 128, blocks: 1 }
    }

    /// `map` is made of input and output, where the kernel takes one.
    fn on(&self, input: &[u32], outputs: usize, map: Option<MapOf<'_>>) -> Vec<u32> {
        let stream = &self.bench.stream;
        let module = self.bench.device().load(image("hopper")).unwrap();
        let kernel = module.kernel(&format!("conform_{}", self.function)).unwrap();
        let input = stream.upload(input).unwrap();
        let mut output = stream.upload(&vec![0u32; outputs]).unwrap();
        let map = map.map(|map| map(&input, &mut output));
        let mut arguments = Arguments::new().input(input.view()).output(&output.view_mut());
        if let Some(map) = &map {
            arguments = arguments.tensor_map(map);
        }
        let launch =
            Launch { shared_bytes: 8192, cluster: [self.blocks, 1, 1], ..Launch::linear(self.blocks, self.threads) };
        // SAFETY: every kernel of the file takes its input, its output and, where the caller gives it, a map of one of
        // them.
        unsafe { stream.launch(&kernel, &launch, &arguments) }.unwrap_or_else(|e| panic!("{}: {e}", self.function));
        stream.download(output.view()).unwrap_or_else(|error| panic!("{}: {error}", self.function))
    }
}

/// A tensor of 16-bit elements and a box of 2 KiB, rows of 64 elements: sizes and box from the dimension of consecutive
/// elements on.
struct Tensor {
    sizes: &'static [usize],
    in_box: &'static [u32],
    swizzle: Swizzle,
}

const MATRIX: Tensor = Tensor { sizes: &[72, 12], in_box: &[64, 16], swizzle: Swizzle::Bytes128 };
const SOLID: Tensor = Tensor { sizes: &[72, 5, 3], in_box: &[64, 4, 4], swizzle: Swizzle::Bytes128 };
const HYPERSOLID: Tensor = Tensor { sizes: &[64, 4, 5, 3], in_box: &[64, 2, 4, 2], swizzle: Swizzle::None };

impl Tensor {
    fn elements(&self) -> usize {
        self.sizes.iter().product()
    }

    fn dimensions(&self) -> Vec<Dimension> {
        let strides = self.sizes.iter().scan(1, |stride, size| Some(std::mem::replace(stride, *stride * size)));
        let both = self.sizes.iter().zip(self.in_box).zip(strides);
        both.map(|((size, in_box), stride)| Dimension { size: *size, stride, in_box: *in_box }).collect()
    }

    /// Where each of the box's 1024 elements lies in the tensor, in the order of shared memory; none outside of it.
    fn places(&self, corner: &[i64]) -> Vec<Option<usize>> {
        let mut places = vec![None; 1024];
        for (index, place) in places.iter_mut().enumerate() {
            // What lies at `index` of shared memory: the swizzle is its own inverse.
            let (row, chunk) = (index / 64, index % 64 / 8);
            let chunk = if self.swizzle == Swizzle::Bytes128 { chunk ^ (row % 8) } else { chunk };
            let mut rest = row * 64 + chunk * 8 + index % 8;
            let (mut at, mut stride, mut inside) = (0, 1, true);
            for ((size, in_box), corner) in self.sizes.iter().zip(self.in_box).zip(corner) {
                let along = corner + (rest % *in_box as usize) as i64;
                rest /= *in_box as usize;
                inside &= (0..*size as i64).contains(&along);
                at += along.max(0) as usize * stride;
                stride *= size;
            }
            *place = inside.then_some(at);
        }
        places
    }
}

fn halves(words: &[u32]) -> &[u16] {
    bytemuck::cast_slice(words)
}

device_test! {
    fn bulk_copies_and_mbarriers() {
        common::on_every_hopper_schedule(|bench| {
            let x = words(128);
            for function in ["bulk_load", "bulk_load_hinted", "bulk_store"] {
                same(function, &Run::new(bench, function).on(&x, 128, None), &x);
            }
            let turned: Vec<u32> = (0..128).map(|thread| x[(thread + 10) % 128].wrapping_add(10)).collect();
            same("mbarrier_arrive", &Run::new(bench, "mbarrier_arrive").on(&x, 128, None), &turned);
        });
    }
}

device_test! {
    /// Stored in the ordinary way by one kernel, copied by the next, which may start before that one ends; and so on.
    fn what_a_kernel_stores_the_next_one_copies() {
        common::on_every_hopper_schedule(|bench| {
            let (stream, x) = (&bench.stream, words(128));
            let module = bench.device().load(image("hopper")).unwrap();
            let [store, copy] = ["stored_for_the_next", "bulk_load"].map(|f| module.kernel(&format!("conform_{f}")).unwrap());
            let (mut a, mut b) = (stream.upload(&x).unwrap(), stream.zeroed::<u32>(128).unwrap());
            let launch = Launch { shared_bytes: 8192, ..Launch::linear(1, 128) };
            for _ in 0..16 {
                // SAFETY: the kernels take an input and an output of 128 words.
                unsafe {
                    stream.launch(&store, &launch, &Arguments::new().input(a.view()).output(&b.view_mut())).unwrap();
                    stream.launch(&copy, &launch, &Arguments::new().input(b.view()).output(&a.view_mut())).unwrap();
                }
            }
            let expected: Vec<u32> = x.iter().map(|word| word.wrapping_add(16)).collect();
            same("stored_for_the_next", &stream.download(a.view()).unwrap(), &expected);
        });
    }
}

device_test! {
    fn boxes_of_tensors() {
        common::on_every_hopper_schedule(|bench| {
            let loads: [(&str, &Tensor, &[i64]); 6] = [
                ("tensor_load_2d", &MATRIX, &[16, -3]),
                ("tensor_load_2d_hinted", &MATRIX, &[16, 5]),
                ("tensor_load_3d", &SOLID, &[-8, 3, 1]),
                ("tensor_load_3d_hinted", &SOLID, &[8, -1, 0]),
                ("tensor_load_4d", &HYPERSOLID, &[0, 1, 2, -1]),
                ("tensor_load_4d_hinted", &HYPERSOLID, &[0, 1, 2, 1]),
            ];
            for (function, tensor, corner) in loads {
                let input = words(tensor.elements() / 2);
                let map = |input: &Buffer<u32>, _: &mut Buffer<u32>| {
                    let view = input.view().cast::<half::bf16>().unwrap();
                    TensorMap::input(view, &tensor.dimensions(), tensor.swizzle).unwrap()
                };
                let found = Run::new(bench, function).on(&input, 512, Some(&map));
                let element = |place: Option<usize>| place.map_or(0, |place| halves(&input)[place]);
                let places = tensor.places(corner);
                assert!(places.contains(&None), "{function}: the box reaches out of the tensor");
                let expected: Vec<u16> = places.into_iter().map(element).collect();
                same(function, &found, bytemuck::cast_slice(&expected));
            }
            let stores: [(&str, &Tensor, &[i64]); 2] =
                [("tensor_store_2d", &MATRIX, &[16, -3]), ("tensor_store_3d", &SOLID, &[8, 3, 1])];
            for (function, tensor, corner) in stores {
                let input = words(512);
                let map = |_: &Buffer<u32>, output: &mut Buffer<u32>| {
                    let mut view = output.view_mut();
                    let view = view.reborrow().cast::<half::bf16>().unwrap();
                    TensorMap::output(&view, &tensor.dimensions(), tensor.swizzle).unwrap()
                };
                let found = Run::new(bench, function).on(&input, tensor.elements() / 2, Some(&map));
                let mut expected = vec![0u16; tensor.elements()];
                for (index, place) in tensor.places(corner).into_iter().enumerate() {
                    if let Some(place) = place {
                        expected[place] = halves(&input)[index];
                    }
                }
                same(function, &found, bytemuck::cast_slice(&expected));
            }
        });
    }
}

device_test! {
    /// Boxes of which nothing lies in the tensor, as the second half of the activations of a small-M gemm: they bring
    /// zeros and count in full; stores to such places store nothing.
    fn boxes_wholly_outside_of_a_tensor() {
        common::on_every_hopper_schedule(|bench| {
            let x = words(MATRIX.elements() / 2);
            let of_input = |input: &Buffer<u32>, _: &mut Buffer<u32>| {
                TensorMap::input(input.view().cast::<half::bf16>().unwrap(), &MATRIX.dimensions(), MATRIX.swizzle).unwrap()
            };
            let found = Run::new(bench, "boxes_outside").on(&x, 1536, Some(&of_input));
            same("boxes_outside", &found, &[0; 1536]);

            // Each block has the box of block 0, then that of block 1, which is zeros.
            let box_of_first: Vec<u16> = MATRIX
                .places(&[0, 0])
                .iter()
                .map(|place| place.map_or(0, |at| halves(&x)[at]))
                .collect();
            let one: Vec<u32> = bytemuck::cast_slice(&box_of_first).iter().copied().chain([0; 512]).collect();
            let run = Run { blocks: 2, ..Run::new(bench, "box_outside_multicast") };
            let found = run.on(&x, 2048, Some(&of_input));
            same("box_outside_multicast", &found, &[one.clone(), one].concat());

            let of_output = |_: &Buffer<u32>, output: &mut Buffer<u32>| {
                let mut view = output.view_mut();
                let view = view.reborrow().cast::<half::bf16>().unwrap();
                TensorMap::output(&view, &MATRIX.dimensions(), MATRIX.swizzle).unwrap()
            };
            let found = Run::new(bench, "box_outside_store").on(&words(512), MATRIX.elements() / 2, Some(&of_output));
            same("box_outside_store", &found, &vec![0; MATRIX.elements() / 2]);
        });
    }
}

device_test! {
    fn clusters() {
        common::on_every_hopper_schedule(|bench| {
            for blocks in [1, 2, 3, 8] {
                let x = words(32);
                let run = |function| Run { blocks, threads: 32, ..Run::new(bench, function) };
                let all = 0..blocks as usize;
                let places: Vec<u32> = all.clone().flat_map(|rank| [x[rank].wrapping_add(blocks); 32]).collect();
                same("cluster_place", &run("cluster_place").on(&x, places.len(), None), &places);
                let sent = |to: usize| all.clone().map(move |from| (from, to));
                let sent: Vec<u32> =
                    all.clone().flat_map(sent).map(|(from, to)| x[from].wrapping_add(to as u32)).collect();
                if blocks > 1 {
                    same("cluster_all_to_all", &run("cluster_all_to_all").on(&x, sent.len(), None), &sent);
                }
            }
            let pair = |function| Run { blocks: 2, ..Run::new(bench, function) };
            let x = words(256);
            let swapped: Vec<u32> = (0..256).map(|i| x[i ^ 128]).collect();
            same("mbarrier_arrive_cluster", &pair("mbarrier_arrive_cluster").on(&x, 256, None), &swapped);
            same("mbarrier_cluster_relaxed", &pair("mbarrier_cluster_relaxed").on(&x, 256, None), &x);
            let counted: Vec<u32> = swapped.iter().map(|word| word.wrapping_add(2)).collect();
            same("load_cluster_4", &pair("load_cluster_4").on(&x, 256, None), &counted);
            for (function, of_block) in [("store_async_16", 512), ("store_async_8", 256)] {
                let x = words(2 * of_block);
                let swapped = [&x[of_block..], &x[..of_block]].concat();
                same(function, &pair(function).on(&x, 2 * of_block, None), &swapped);
            }

            // Each block has both halves, of 8 rows more than one box.
            let tensor = Tensor { sizes: &[64, 24], ..MATRIX };
            let input = words(tensor.elements() / 2);
            let map = |input: &Buffer<u32>, _: &mut Buffer<u32>| {
                let view = input.view().cast::<half::bf16>().unwrap();
                TensorMap::input(view, &tensor.dimensions(), tensor.swizzle).unwrap()
            };
            let found = pair("tensor_load_2d_multicast").on(&input, 2048, Some(&map));
            let half = |row| tensor.places(&[0, row]).into_iter().map(|place| halves(&input)[place.unwrap()]);
            let both: Vec<u16> = half(0).chain(half(8)).collect();
            same("tensor_load_2d_multicast", &found, bytemuck::cast_slice(&[&both[..], &both].concat()));
        });
    }
}

device_test! {
    fn matrix_stores_and_registers() {
        common::on_every_hopper_schedule(|bench| {
            let x = words(512);
            for (function, transposed) in [("store_matrix_x4", false), ("store_matrix_x4_transposed", true)] {
                let mut expected = vec![0u16; 1024];
                for (matrix, elements) in expected.chunks_mut(64).enumerate() {
                    for (at, element) in elements.iter_mut().enumerate() {
                        let (row, column) = if transposed { (at % 8, at / 8) } else { (at / 8, at % 8) };
                        // Lane 4 row + column / 2 has it, in the half column % 2.
                        *element = (x[matrix * 32 + row * 4 + column / 2] >> (16 * (column % 2))) as u16;
                    }
                }
                same(function, &Run::new(bench, function).on(&x, 512, None), bytemuck::cast_slice(&expected));
            }
            let taken: Vec<u32> = (0..384).map(|thread| x[thread].wrapping_add(u32::from(thread >= 256))).collect();
            let run = Run { threads: 384, ..Run::new(bench, "warpgroup_registers") };
            same("warpgroup_registers", &run.on(&x, 384, None), &taken);
        });
    }
}

/// d = A B^T with A [64, 16] and B [columns, 16], then d = A B^T + d, by `conform_<form>_<element>_<columns>`.
fn product<T: Half>(bench: &Bench, form: &str, columns: usize) {
    let function = format!("conform_{form}_{}_{columns}", T::NAME);
    let mut random = Random(columns as u64);
    let (a, b) = (random.elements::<T>(64 * 16, 0.0, 1.0), random.elements::<T>(columns * 16, 0.0, 1.0));
    let stream = &bench.stream;
    let kernel = bench.device().load(image("warpgroup")).unwrap().kernel(&function).unwrap();
    let input = stream.upload(&[&a[..], &b].concat()).unwrap();
    let mut output = stream.upload(&vec![0f32; 2 * 64 * columns]).unwrap();
    let arguments = Arguments::new().input(input.view()).output(&output.view_mut());
    let launch = Launch { shared_bytes: 48 << 10, ..Launch::linear(1, 128) };
    // SAFETY: every kernel of the file takes both operands and the sums, twice.
    unsafe { stream.launch(&kernel, &launch, &arguments) }.unwrap();
    let found = stream.download(output.view()).unwrap_or_else(|error| panic!("{function}: {error}"));
    for (times, sums) in found.chunks(64 * columns).enumerate() {
        for (at, sum) in sums.iter().enumerate() {
            let (register, thread) = (at / 128, at % 128);
            let row = thread / 32 * 16 + thread % 32 / 4 + register / 2 % 2 * 8;
            let column = register / 4 * 8 + thread % 4 * 2 + register % 2;
            let exact: f64 = (0..16).map(|k| a[row * 16 + k].f64() * b[column * 16 + k].f64()).sum();
            let exact = exact * (times + 1) as f64;
            // Hardware may cut off bits below the largest term; any wrong layout is far beyond this.
            let error = (f64::from(*sum) - exact).abs();
            assert!(error <= 2f64.powi(-18) * 16.0, "{function}, row {row}, column {column}: {sum}, expected {exact}");
        }
    }
}

device_test! {
    fn warpgroup_products() {
        use half::{bf16, f16};
        common::on_every_hopper_schedule(|bench| {
            for columns in [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256] {
                for form in ["k_k", "registers_k"] {
                    product::<bf16>(bench, form, columns);
                    product::<f16>(bench, form, columns);
                }
            }
            for (form, columns) in [("k_mn", 64), ("mn_k", 64), ("second_step", 32), ("k64_k64", 64), ("registers_mn", 128)] {
                product::<bf16>(bench, form, columns);
            }
            for (form, columns) in [("k_mn", 128), ("mn_mn", 192), ("matrices", 64), ("registers_mn", 64)] {
                product::<f16>(bench, form, columns);
            }
        });
    }
}
