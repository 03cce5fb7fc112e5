//! The parts that the stand-in driver plays, as cudarc sees them.

mod workbench;

use std::sync::Mutex;

use cudarc::driver::sys::{CUdevice_attribute, CUresult};
use cudarc::driver::{CudaContext, DriverError, result, sys};
use rigel_interpreter::{DeviceProfile, Interpreter};
use workbench::{Bench, Start, address, shape};

/// What is played belongs to the process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn playing<R>(profile: DeviceProfile, test: impl FnOnce() -> R) -> R {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    Interpreter::load().set_device(profile);
    let result = test();
    Interpreter::load().set_device(DeviceProfile::Sm90);
    result
}

fn error_of<T>(result: Result<T, DriverError>) -> CUresult {
    result.err().expect("an error").0
}

#[test]
fn devices_with_their_limits() {
    // Compute capability, SMs, and the most shared memory of one block, from CUDA's technical
    // specifications.
    let devices = [
        (DeviceProfile::Sm75, (7, 5), 40, 64),
        (DeviceProfile::Sm80, (8, 0), 108, 163),
        (DeviceProfile::Sm86, (8, 6), 84, 99),
        (DeviceProfile::Sm90, (9, 0), 132, 227),
    ];
    for (profile, capability, sm_count, shared_kib) in devices {
        playing(profile, || {
            let context = CudaContext::new(0).expect("a device");
            assert_eq!(context.compute_capability().unwrap(), capability);
            let attribute = |attribute| context.attribute(attribute).unwrap();
            use CUdevice_attribute::*;
            assert_eq!(attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT), sm_count);
            assert_eq!(attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN), shared_kib << 10);
        });
    }
}

#[test]
fn shared_memory_beyond_the_device_is_refused() {
    for (profile, most) in
        [(DeviceProfile::Sm80, 163 << 10), (DeviceProfile::Sm86, 99 << 10), (DeviceProfile::Sm90, 227 << 10)]
    {
        playing(profile, || {
            let bench = Bench::open(&[0; 64]);
            let (x, y) = (bench.upload(&[0.0f32; 64]), bench.upload(&[0.0f32; 64]));
            let (x_at, y_at, n) = (address(&x, &bench.stream), address(&y, &bench.stream), 64i32);
            let launch = |bytes| {
                let arguments = arguments![x_at, y_at, n];
                bench.try_launch_on(&bench.stream, "correct_exchange", shape(1, 64, bytes), Start::AfterAll, arguments)
            };
            launch(most).expect("as much as the device gives");
            bench.stream.synchronize().expect("a correct kernel");
            assert_eq!(error_of(launch(most + 1)), CUresult::CUDA_ERROR_INVALID_VALUE);
        });
    }
}

#[test]
fn more_shared_memory_than_asked_for_is_refused() {
    playing(DeviceProfile::Sm90, || {
        let bench = Bench::open(&[0; 64]);
        let function = bench.function("correct_exchange");
        // 48 KiB is all that a function gets without MAX_DYNAMIC_SHARED_SIZE_BYTES.
        // SAFETY: the launch is refused before its arguments are read.
        let refused = unsafe {
            let stream = bench.stream.cu_stream();
            result::launch_kernel(function.cu_function(), (1, 1, 1), (64, 1, 1), (48 << 10) + 1, stream, &mut [])
        };
        assert_eq!(error_of(refused), CUresult::CUDA_ERROR_INVALID_VALUE);
    });
}

#[test]
fn a_block_beyond_the_launch_bounds_is_refused() {
    playing(DeviceProfile::Sm90, || {
        let bench = Bench::open(&[0; 64]);
        let too_many =
            bench.try_launch_on(&bench.stream, "correct_exchange", shape(1, 512, 0), Start::AfterAll, &mut []);
        assert_eq!(error_of(too_many), CUresult::CUDA_ERROR_INVALID_VALUE);
    });
}

#[test]
fn a_cooperative_launch_too_large_is_refused() {
    playing(DeviceProfile::Sm86, || {
        let bench = Bench::open(&[0; 64]);
        let counter = bench.upload(&[0u32]);
        let at = address(&counter, &bench.stream);
        // 84 SMs hold 32 blocks of one warp each.
        let large = bench.try_launch_on(
            &bench.stream,
            "planted_grid_barrier",
            shape(84 * 32 + 1, 32, 0),
            Start::Cooperative,
            arguments![at],
        );
        assert_eq!(error_of(large), CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    });
}

#[test]
fn no_device() {
    playing(DeviceProfile::NoDevice, || assert_eq!(error_of(CudaContext::new(0)), CUresult::CUDA_ERROR_NO_DEVICE));
}

#[test]
fn a_stub_library() {
    playing(DeviceProfile::StubLibrary, || {
        assert_eq!(error_of(CudaContext::new(0)), CUresult::CUDA_ERROR_STUB_LIBRARY)
    });
}

#[test]
fn an_old_driver() {
    playing(DeviceProfile::OldDriver { version: 12040 }, || {
        CudaContext::new(0).expect("it opens");
        let mut version = 0;
        // SAFETY: the pointer is to a live integer.
        unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().unwrap();
        assert_eq!(version, 12040);
    });
}

#[test]
fn out_of_memory() {
    playing(DeviceProfile::Memory { bytes: 1 << 20 }, || {
        let context = CudaContext::new(0).expect("a device");
        let stream = context.new_stream().expect("a stream");
        // SAFETY: never read.
        let half = unsafe { stream.alloc::<u8>(1 << 19) }.expect("half of the memory");
        // SAFETY: never read.
        let too_much = unsafe { stream.alloc::<u8>((1 << 19) + 1) };
        assert_eq!(error_of(too_much), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        drop(half);
        stream.synchronize().expect("the memory is free again");
        // SAFETY: never read.
        unsafe { stream.alloc::<u8>(1 << 20) }.expect("all of the memory");
    });
}

#[test]
fn an_unknown_kernel() {
    playing(DeviceProfile::Sm90, || {
        let bench = Bench::open(&[0; 64]);
        assert_eq!(error_of(bench.module.load_function("no_such_kernel")), CUresult::CUDA_ERROR_NOT_FOUND);
    });
}

#[test]
fn copies_and_fills_beyond_an_allocation_are_refused() {
    playing(DeviceProfile::Sm90, || {
        let bench = Bench::open(&[0; 64]);
        let (x, y) = (bench.upload(&[1u8; 64]), bench.upload(&[2u8; 64]));
        let (stream, x_at, y_at) = (bench.stream.cu_stream(), address(&x, &bench.stream), address(&y, &bench.stream));
        let mut host = [0u8; 65];
        // SAFETY: refused; were they not, the stand-in's memory and `host` are large enough.
        unsafe {
            assert_eq!(error_of(result::memcpy_htod_async(x_at, &host, stream)), CUresult::CUDA_ERROR_INVALID_VALUE);
            assert_eq!(
                error_of(result::memcpy_dtoh_async(&mut host, x_at, stream)),
                CUresult::CUDA_ERROR_INVALID_VALUE
            );
            assert_eq!(
                error_of(result::memcpy_dtod_async(y_at, x_at + 1, 64, stream)),
                CUresult::CUDA_ERROR_INVALID_VALUE
            );
            assert_eq!(
                error_of(result::memcpy_dtod_async(y_at + 1, x_at, 64, stream)),
                CUresult::CUDA_ERROR_INVALID_VALUE
            );
            assert_eq!(error_of(result::memset_d8_async(x_at, 0, 65, stream)), CUresult::CUDA_ERROR_INVALID_VALUE);
            assert_eq!(error_of(result::free_async(x_at + 1, stream)), CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        assert_eq!(bench.download(&x).unwrap(), [1; 64]);
        assert_eq!(bench.download(&y).unwrap(), [2; 64]);
    });
}
