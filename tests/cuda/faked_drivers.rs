//! What goes wrong between here and a GPU, one clear error each. The driver is always the interpreter's, which plays
//! the parts; each test has a process of its own.

use crate::common;
use std::num::NonZeroU32;

use crate::common::{conformance_image, for_ever};
use half::bf16;
use rigel::backend::cuda::model::{CudaBackend, CudaOptions};
use rigel::backend::cuda::{
    Algorithms, Arguments, Buffer, ComputeCapability, CudaError, Device, Dimension, Image, Kernel, Launch,
    LinearAlgorithm, Stream, Switches, Swizzle, TensorMap, driver, images, properties,
};
use rigel::backend::{Backend, Batch, Determinism, SequenceRows, Token};
use rigel::kv::{BlockTable, PageId};
use rigel::text::TokenId;
use rigel_interpreter::{DeviceProfile, Interpreter};

/// A test that needs no kernels, in a process of its own.
macro_rules! driver_test {
    (fn $name:ident() $body:block) => {
        #[test]
        fn $name() {
            common::in_own_process(test_name!($name), || $body);
        }
    };
}

fn play(profile: DeviceProfile) -> &'static Interpreter {
    let interpreter = Interpreter::load();
    interpreter.set_device(profile);
    interpreter
}

#[track_caller]
fn refusal<T>(result: Result<T, CudaError>) -> String {
    let error = result.err().expect("an error").to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

driver_test! {
    fn no_driver() {
        // Nothing is loaded here: on a machine with a driver there is nothing to see.
        if driver::version().is_ok() {
            return eprintln!("no_driver: skipped, this machine has a driver");
        }
        let expected = "no CUDA driver: libcuda.so was not found; install NVIDIA's driver 580 or newer, or use the device cpu";
        assert_eq!(refusal(Device::open(0)), expected);
        assert_eq!(refusal(driver::check()), expected);
        assert_eq!(refusal(driver::device_count()), expected);
        assert_eq!(refusal(properties(0)), expected);
    }
}

driver_test! {
    fn the_library_of_a_toolkit_is_no_driver() {
        play(DeviceProfile::StubLibrary);
        assert!(matches!(Device::open(0), Err(CudaError::NoDriver)));
    }
}

driver_test! {
    fn drivers_before_580_are_too_old() {
        // 12.9 came with driver 575, 13.0 with 580.
        for (version, name) in [(12_090, "12.9"), (12_000, "12.0"), (11_080, "11.8")] {
            play(DeviceProfile::OldDriver { version });
            let expected = format!(
                "the CUDA driver is too old: it supports CUDA {name}, the kernels need CUDA 13.0; install NVIDIA's \
                 driver 580 or newer"
            );
            assert_eq!(refusal(Device::open(0)), expected);
            assert_eq!(driver::version().unwrap().to_string(), name);
        }
        play(DeviceProfile::OldDriver { version: 13_020 });
        assert!(Device::open(0).is_ok(), "newer than needed");
    }
}

driver_test! {
    fn no_gpu() {
        play(DeviceProfile::NoDevice);
        let expected = "the CUDA driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the device cpu";
        assert_eq!(refusal(Device::open(0)), expected);
        assert_eq!(refusal(driver::device_count()), expected);
    }
}

driver_test! {
    fn no_such_gpu() {
        play(DeviceProfile::Sm80);
        assert_eq!(refusal(Device::open(1)), "there is no GPU 1: the driver sees 1, counted from 0");
        assert_eq!(refusal(Device::open(usize::MAX)), format!("there is no GPU {}: the driver sees 1, counted from 0", usize::MAX));
    }
}

driver_test! {
    fn a_gpu_before_ampere_is_too_old() {
        play(DeviceProfile::Sm75);
        assert_eq!(
            refusal(Device::open(0)),
            "interpreter sm_75 has compute capability 7.5; the kernels need 8.0 (Ampere) or newer; use the device cpu"
        );
        // Its properties can be read all the same.
        assert_eq!(properties(0).unwrap().compute_capability, ComputeCapability { major: 7, minor: 5 });
    }
}

driver_test! {
    fn out_of_memory_says_how_much_was_needed_and_free() {
        const MIB: usize = 1 << 20;
        play(DeviceProfile::Memory { bytes: 64 << 20 });
        let stream = Device::open(0).unwrap().stream().unwrap();
        let kept = stream.alloc::<u32>(4 * MIB).unwrap();
        let error = refusal(stream.alloc::<u16>(32 * MIB));
        assert_eq!(error, "out of GPU memory: 64.0 MiB were needed, 48.0 MiB of 64.0 MiB are free");
        assert_eq!(refusal(stream.upload(&vec![0u64; 8 * MIB])), error);
        assert_eq!(
            refusal(stream.zeroed::<u64>(usize::MAX / 2)),
            "out of GPU memory: 16.0 EiB were needed, 48.0 MiB of 64.0 MiB are free"
        );
        drop(kept);
        stream.synchronize().unwrap();
        assert!(stream.alloc::<u8>(64 * MIB).is_ok(), "freed memory can be had again");
    }
}

device_test! {
    fn an_image_without_code_for_the_gpu() {
        play(DeviceProfile::Sm86);
        let device = Device::open(0).unwrap();
        let image = Image { name: "later", targets: &["sm_90", "compute_90"], fatbin: images()[0].fatbin };
        assert_eq!(
            refusal(device.load(image)),
            "kernels/later.cu was compiled for sm_90, compute_90, and none of these runs on compute capability 8.6; \
             build again with RIGEL_CUDA_ARCHS unset"
        );
    }
}

device_test! {
    fn a_damaged_image() {
        play(DeviceProfile::Sm80);
        let device = Device::open(0).unwrap();
        let whole = images()[0].fatbin;
        for length in [0, 3, 15, 16, 40, 1000, whole.len() - 1] {
            let image = Image { name: "cut", targets: &["sm_80"], fatbin: for_ever(&whole[..length]) };
            let error = refusal(device.load(image));
            assert!(error.starts_with("kernels/cut.cu: the compiled image is damaged: "), "{length} bytes: {error}");
        }
        let mut other = whole.to_vec();
        other[..4].copy_from_slice(b"\x7fELF");
        let image = Image { name: "other", targets: &["sm_80"], fatbin: for_ever(&other) };
        assert!(refusal(device.load(image)).contains("it starts with 0x464c457f, not with a fatbin's 0xba55ed50"));
    }
}

/// `to[i] = from[i] + 1`, two blocks of 32, where `to` is a word short: the interpreter is to notice.
fn overrun(stream: &Stream, add: &Kernel, from: &Buffer<u32>, short: &mut Buffer<u32>) -> Result<(), CudaError> {
    let arguments = Arguments::new().input(from.view()).output(&short.view_mut());
    // SAFETY: none.
    unsafe { stream.launch(add, &Launch::linear(2, 32), &arguments) }
}

fn add_one(device: &Device) -> Kernel {
    device.load(conformance_image("device")).unwrap().kernel("device_add_one").unwrap()
}

device_test! {
    fn a_kernel_that_fails_is_reported_by_the_next_call_that_waits() {
        let interpreter = play(DeviceProfile::Sm90);
        let device = Device::open(0).unwrap();
        let (stream, add) = (device.stream().unwrap(), add_one(&device));
        assert!(!device.is_synchronous());
        let from = stream.upload(&[1u32; 64]).unwrap();
        let mut short = stream.zeroed::<u32>(63).unwrap();
        overrun(&stream, &add, &from, &mut short).unwrap();
        let error = refusal(stream.synchronize());
        assert_eq!(
            error,
            "a kernel of the work before failed (cuStreamSynchronize: CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure \
             (the interpreter's report says why)); this process cannot use the GPU any more; run again with \
             RIGEL_CUDA_SYNC=1 to learn which kernel"
        );
        let reports = interpreter.reports();
        assert_eq!(reports.len(), 1, "{reports:?}");
        assert!(reports[0].contains("device_add_one"), "{reports:?}");
        assert!(matches!(stream.download(from.view()), Err(CudaError::WorkFailed { .. })), "the error stays");
    }
}

device_test! {
    fn a_cluster_is_asked_of_the_driver_where_the_gpu_has_them() {
        play(DeviceProfile::Sm90);
        let device = Device::open(0).unwrap();
        let (stream, add) = (device.stream().unwrap(), add_one(&device));
        let mut data = stream.zeroed::<u32>(64).unwrap();
        let launch = Launch { cluster: [2, 1, 1], ..Launch::linear(2, 32) };
        let arguments = Arguments::new().input(data.view()).output(&data.view_mut());
        // SAFETY: as long as the kernel's two blocks read and write.
        unsafe { stream.launch(&add, &launch, &arguments) }.unwrap();
        assert_eq!(stream.download(data.view()).unwrap(), [1; 64]);
        // No whole number of clusters: refused by the driver, which shows that it was asked.
        let odd = Launch { grid: [3, 1, 1], ..launch };
        // SAFETY: it is refused.
        let refused = refusal(unsafe { stream.launch(&add, &odd, &arguments) });
        assert!(refused.contains("CUDA_ERROR_INVALID_VALUE"), "{refused}");
        play(DeviceProfile::Sm80);
        let (device, old) = (Device::open(0).unwrap(), "the number of blocks of a cluster is 2; this GPU allows 1 to 1");
        // SAFETY: as above.
        let refused = refusal(unsafe { device.stream().unwrap().launch(&add, &launch, &arguments) });
        assert!(refused.contains(old), "{refused}");
    }
}

/// A test of kernels in a process where every launch is waited for.
macro_rules! synchronous_test {
    (fn $name:ident() $body:block) => {
        #[test]
        fn $name() {
            if images().is_empty() {
                return eprintln!("{}: skipped, this build has no kernels; run tools/install-nvcc", stringify!($name));
            }
            common::in_own_process_with(test_name!($name), &[("RIGEL_CUDA_SYNC", "1")], || $body);
        }
    };
}

synchronous_test! {
    fn where_launches_are_waited_for_the_one_that_fails_says_so() {
        play(DeviceProfile::Sm90);
        let device = Device::open(0).unwrap();
        assert!(device.is_synchronous());
        let (stream, add) = (device.stream().unwrap(), add_one(&device));
        let from = stream.upload(&[1u32; 64]).unwrap();
        let (mut whole, mut short) = (stream.zeroed::<u32>(64).unwrap(), stream.zeroed::<u32>(63).unwrap());
        overrun(&stream, &add, &from, &mut whole).unwrap();
        assert_eq!(
            refusal(overrun(&stream, &add, &from, &mut short)),
            "device_add_one failed: CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure (the interpreter's report says \
             why); this process cannot use the GPU any more"
        );
    }
}

synchronous_test! {
    fn where_launches_are_waited_for_so_are_replays() {
        play(DeviceProfile::Sm80);
        let device = Device::open(0).unwrap();
        let (stream, add) = (device.stream().unwrap(), add_one(&device));
        let from = stream.upload(&[1u32; 64]).unwrap();
        let mut short = stream.zeroed::<u32>(63).unwrap();
        stream.synchronize().unwrap();
        // What is only recorded cannot be waited for, and does not fail.
        let graph = stream.capture(|| overrun(&stream, &add, &from, &mut short)).unwrap();
        let error = refusal(graph.launch());
        assert!(error.starts_with("a kernel of a CUDA graph failed: CUDA_ERROR_LAUNCH_FAILED"), "{error}");
    }
}

driver_test! {
    fn allocated_bytes_are_those_asked_for() {
        let interpreter = play(DeviceProfile::Sm90);
        let device = Device::open(0).unwrap();
        let stream = device.stream().unwrap();
        assert_eq!(interpreter.allocated_bytes(), 0);
        let first = stream.zeroed::<u16>(1001).unwrap();
        let second = stream.alloc::<u64>(3).unwrap();
        assert_eq!(interpreter.allocated_bytes(), 2002 + 24);
        let (free, total) = device.memory().unwrap();
        assert_eq!(total - free, 2002 + 24);
        drop(first);
        stream.synchronize().unwrap();
        assert_eq!(interpreter.allocated_bytes(), 24);
        drop(second);
        stream.synchronize().unwrap();
        assert_eq!(interpreter.allocated_bytes(), 0);
    }
}

device_test! {
    fn streams_that_do_not_wait_for_each_other_are_reported() {
        let interpreter = play(DeviceProfile::Sm80);
        let device = Device::open(0).unwrap();
        let (one, other) = (device.stream().unwrap(), device.stream().unwrap());
        let add = add_one(&device);
        let mut data = one.upload(&[1u32; 32]).unwrap();
        one.synchronize().unwrap();
        for stream in [&one, &other] {
            let arguments = Arguments::new().input(data.view()).output(&data.view_mut());
            // SAFETY: as long as the kernel's one block reads and writes.
            unsafe { stream.launch(&add, &Launch::linear(1, 32), &arguments) }.unwrap();
        }
        let failed = [one.synchronize(), other.synchronize()].into_iter().filter(Result::is_err).count();
        assert!(failed > 0, "two launches on the same data, in no order");
        assert!(interpreter.reports()[0].contains("race"), "{:?}", interpreter.reports());
    }
}

/// `CUDA_ERROR_NOT_SUPPORTED`
const NOT_SUPPORTED: i32 = 801;

fn model(device: &Device) -> CudaBackend<bf16> {
    let (checkpoint, spec) = common::golden("gqa9");
    let page_size = NonZeroU32::new(16).unwrap();
    let options = CudaOptions { page_size, pages: 4, max_rows: 4, max_sequences: 4, determinism: Determinism::Fast };
    CudaBackend::new(device, &checkpoint, spec, &options, &mut |_| {}).unwrap()
}

/// A decode step of so many sequences at position `start`, each on a page of its own: the logits of all.
fn decode(backend: &mut CudaBackend<bf16>, sequences: usize, start: u32) -> Vec<Vec<f32>> {
    let tables = [0, 1, 2, 3].map(|page| [BlockTable::from_pages(0, vec![PageId(page)])]);
    let rows = |index: usize| SequenceRows { rows: index..index + 1, start, tables: &tables[index] };
    let rows: Vec<SequenceRows<'_>> = (0..sequences).map(rows).collect();
    let ids: Vec<TokenId> = (0..sequences as u32).map(|index| TokenId(7 * index + start + 1)).collect();
    let logits_rows: Vec<usize> = (0..sequences).collect();
    backend.forward(&Batch { tokens: &Token::known(&ids), sequences: &rows, logits_rows: &logits_rows }).unwrap();
    logits_rows.into_iter().map(|row| backend.logits(row).unwrap().to_vec()).collect()
}

device_test! {
    fn a_capture_that_fails_leaves_its_bucket_launched_kernel_by_kernel_and_no_other() {
        let interpreter = play(DeviceProfile::Sm90);
        let device = Device::open(0).unwrap();
        let uncaptured = Device::open_with(0, Switches { graphs: false, ..Switches::default() }).unwrap();
        let expected = [1, 2].map(|sequences| -> Vec<_> {
            let mut backend = model(&uncaptured);
            (0..4).map(|start| decode(&mut backend, sequences, start)).collect()
        });
        // What may fail: to begin, to end, to make the graph runnable, and to run it.
        for call in ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphLaunch"] {
            let mut backend = model(&device);
            let mut captured = |sequences: usize, start: u32| {
                interpreter.clear_counters();
                let logits = decode(&mut backend, sequences, start);
                assert!(logits == expected[sequences - 1][start as usize], "{call}: {sequences} rows at {start}");
                let launches = interpreter.counters();
                let captured = launches.iter().filter(|launch| launch.recorded).count();
                assert!(captured == 0 || captured == launches.len(), "{call}: a step that ran twice, or in part");
                captured > 0
            };
            // One row: refused when its bucket is captured, then never tried again.
            assert!(!captured(1, 0));
            interpreter.refuse(call, NOT_SUPPORTED);
            assert!(!captured(1, 1));
            interpreter.refuse(call, 0);
            assert!(!captured(1, 2) && !captured(1, 3), "{call}: the bucket of one row is captured after all");
            // Two rows: another bucket, which tries for itself.
            let two: Vec<bool> = (0..4).map(|start| captured(2, start)).collect();
            assert_eq!(two, [false, true, true, true], "{call}");
        }
        assert_eq!(interpreter.reports(), Vec::<String>::new());
    }
}

device_test! {
    fn a_replay_that_is_refused_later_is_launched_kernel_by_kernel() {
        let interpreter = play(DeviceProfile::Sm90);
        let device = Device::open(0).unwrap();
        let expected: Vec<_> = {
            let mut backend = model(&device);
            (0..5).map(|start| decode(&mut backend, 1, start)).collect()
        };
        let mut backend = model(&device);
        for start in 0..5 {
            if start == 3 {
                interpreter.refuse("cuGraphLaunch", NOT_SUPPORTED);
            }
            assert!(decode(&mut backend, 1, start) == expected[start as usize], "position {start}");
        }
    }
}

device_test! {
    fn a_driver_without_programmatic_launch_starts_kernels_one_after_the_other() {
        let interpreter = play(DeviceProfile::Sm90);
        let expected = decode(&mut model(&Device::open(0).unwrap()), 2, 0);
        interpreter.refuse("programmatic", NOT_SUPPORTED);
        let device = Device::open(0).unwrap();
        let mut backend = model(&device);
        interpreter.clear_counters();
        assert!(decode(&mut backend, 2, 0) == expected);
        let launches = interpreter.counters();
        assert!(launches.len() > 10 && launches.iter().all(|launch| !launch.programmatic));
        // It is not asked again.
        interpreter.refuse("programmatic", 0);
        interpreter.clear_counters();
        decode(&mut backend, 2, 1);
        assert!(interpreter.counters().iter().all(|launch| !launch.programmatic));
    }
}

device_test! {
    fn what_a_launch_needs_and_is_refused_is_named_with_the_kernel() {
        let interpreter = play(DeviceProfile::Sm90);
        let device = Device::open(0).unwrap();
        let (stream, add) = (device.stream().unwrap(), add_one(&device));
        let mut data = stream.zeroed::<u32>(64).unwrap();
        let arguments = Arguments::new().input(data.view()).output(&data.view_mut());
        // SAFETY: as long as the kernel's two blocks read and write; most are refused.
        let launch = |launch: Launch| unsafe { stream.launch(&add, &launch, &arguments) };
        let plain = Launch::linear(2, 32);

        interpreter.refuse("cluster", NOT_SUPPORTED);
        assert_eq!(
            refusal(launch(Launch { cluster: [2, 1, 1], ..plain })),
            "device_add_one: the driver refuses a launch of grid [2, 1, 1] of [32, 1, 1] threads, 0 bytes of shared memory, \
             clusters of [2, 1, 1] blocks (CUDA_ERROR_NOT_SUPPORTED: operation not supported)"
        );
        interpreter.refuse("cuFuncSetAttribute", NOT_SUPPORTED);
        assert_eq!(
            refusal(launch(Launch { shared_bytes: 100 << 10, ..plain })),
            "device_add_one: the driver refuses 102400 bytes of shared memory for a block (CUDA_ERROR_NOT_SUPPORTED: \
             operation not supported)"
        );
        assert!(launch(plain).is_ok(), "what needs none of that is launched");
        assert_eq!(stream.download(data.view()).unwrap(), [1; 64]);

        let switches = Switches { carveout: Some(50), ..Switches::default() };
        let carved = Device::open_with(0, switches).unwrap().stream().unwrap();
        interpreter.refuse("carveout", NOT_SUPPORTED);
        // SAFETY: it is refused.
        assert!(refusal(unsafe { carved.launch(&add, &plain, &arguments) }).contains("device_add_one: the driver refuses a launch"));

        interpreter.refuse("cuTensorMapEncodeTiled", NOT_SUPPORTED);
        let matrix = stream.zeroed::<bf16>(64 * 16).unwrap();
        let dimensions = Dimension::of_matrix(64, 16, [64, 16]);
        let refused = refusal(TensorMap::input(matrix.view(), &dimensions, Swizzle::Bytes128));
        assert!(refused.starts_with("a tensor map: the driver refuses dimensions [Dimension"), "{refused}");

        interpreter.refuse("cuModuleLoadData", NOT_SUPPORTED);
        assert_eq!(
            refusal(device.load(conformance_image("device"))),
            "kernels/device.cu: the driver refuses to load its code for sm_90 (CUDA_ERROR_NOT_SUPPORTED: operation not \
             supported)"
        );
    }
}

device_test! {
    fn a_model_whose_clusters_are_refused_says_which_switch_takes_others() {
        let interpreter = play(DeviceProfile::Sm90);
        // A prompt of more rows than gemv takes: small-M gemms in clusters.
        let prompt = |device: &Device| {
            let (checkpoint, spec) = common::golden("gqa9");
            let page_size = NonZeroU32::new(16).unwrap();
            let determinism = Determinism::Fast;
            let options = CudaOptions { page_size, pages: 4, max_rows: 20, max_sequences: 1, determinism };
            let mut backend = CudaBackend::<bf16>::new(device, &checkpoint, spec, &options, &mut |_| {}).unwrap();
            let tables = [BlockTable::from_pages(0, vec![PageId(0), PageId(1)])];
            let sequences = [SequenceRows { rows: 0..20, start: 0, tables: &tables }];
            let ids: Vec<TokenId> = (1..=20).map(TokenId).collect();
            backend.forward(&Batch { tokens: &Token::known(&ids), sequences: &sequences, logits_rows: &[19] })
        };
        interpreter.refuse("cluster", NOT_SUPPORTED);
        let error = prompt(&Device::open(0).unwrap()).unwrap_err().to_string();
        assert!(error.contains("gemm_small_m_bias_rope_kv_bf16_64: the driver refuses a launch of grid"), "{error}");
        assert!(error.contains("clusters of [2, 1, 1] blocks"), "{error}");
        assert!(error.contains("; RIGEL_CUDA_GEMM=sm80, or RIGEL_CUDA_GEMV=sm80 for"), "{error}");
        // And it does.
        let algorithms = Algorithms { gemm: Some(LinearAlgorithm::Sm80), ..Algorithms::default() };
        prompt(&Device::open_with(0, Switches { algorithms, ..Switches::default() }).unwrap()).unwrap();
    }
}
