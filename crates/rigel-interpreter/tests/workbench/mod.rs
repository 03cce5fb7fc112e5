//! What the kernel tests share: a device (the interpreter, or with `RIGEL_TEST_DEVICE=cuda` a real GPU), launches by
//! name, and buffers.

#![allow(dead_code)] // each test binary uses its own part

pub mod planted;

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr, DriverError, sys};
use rigel_interpreter::Interpreter;

/// Whether the tests run on a real GPU.
pub fn on_gpu() -> bool {
    std::env::var("RIGEL_TEST_DEVICE").is_ok_and(|device| device == "cuda")
}

/// One device for one test at a time: settings and errors belong to the process.
pub struct Bench {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    pub module: Arc<CudaModule>,
    _alone: MutexGuard<'static, ()>,
}

/// The grid, block and dynamic shared memory of a launch.
#[derive(Clone, Copy)]
pub struct Shape {
    pub grid: u32,
    pub block: u32,
    pub shared_bytes: u32,
}

pub fn shape(grid: u32, block: u32, shared_bytes: u32) -> Shape {
    Shape { grid, block, shared_bytes }
}

/// How a launch follows the work before it.
#[derive(Clone, Copy, PartialEq)]
pub enum Start {
    AfterAll,
    Early,
    Cooperative,
    /// In clusters of so many blocks.
    Clusters(u32),
}

impl Bench {
    /// Opens the device with this module image; on the interpreter an empty image stands for "the kernels linked in".
    pub fn open(image: &[u8]) -> Bench {
        static ALONE: Mutex<()> = Mutex::new(());
        // A failed test must not fail the ones after it.
        let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !on_gpu() {
            Interpreter::load().take_reports();
        }
        let context = CudaContext::new(0).expect("a device");
        // SAFETY: the tests use one stream at a time or order streams with events of their own.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().expect("a stream");
        let module = context.load_module(cudarc::nvrtc::Ptx::from_binary(image.to_vec())).expect("the module loads");
        Bench { context, stream, module, _alone: alone }
    }

    pub fn interpreter() -> &'static Interpreter {
        Interpreter::load()
    }

    pub fn function(&self, name: &str) -> CudaFunction {
        self.module.load_function(name).unwrap_or_else(|error| panic!("kernel {name}: {error:?}"))
    }

    /// Copies to the device.
    pub fn upload<T: DeviceRepr>(&self, values: &[T]) -> CudaSlice<T> {
        self.stream.clone_htod(values).expect("a copy to the device")
    }

    /// Memory that nobody has written yet.
    pub fn uninitialised<T: DeviceRepr>(&self, count: usize) -> CudaSlice<T> {
        // SAFETY: read by kernels under test, or after they have written it.
        unsafe { self.stream.alloc(count) }.expect("device memory")
    }

    pub fn download<T: DeviceRepr + Clone + Default>(&self, from: &CudaSlice<T>) -> Result<Vec<T>, DriverError> {
        let values = self.stream.clone_dtoh(from)?;
        self.stream.synchronize()?;
        Ok(values)
    }

    /// Launches on the bench's stream. `arguments` come from [`arguments!`].
    pub fn launch(&self, name: &str, shape: Shape, start: Start, arguments: &mut [*mut c_void]) {
        self.launch_on(&self.stream, name, shape, start, arguments);
    }

    pub fn launch_on(
        &self,
        stream: &CudaStream,
        name: &str,
        shape: Shape,
        start: Start,
        arguments: &mut [*mut c_void],
    ) {
        self.try_launch_on(stream, name, shape, start, arguments).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }

    pub fn try_launch_on(
        &self,
        stream: &CudaStream,
        name: &str,
        shape: Shape,
        start: Start,
        arguments: &mut [*mut c_void],
    ) -> Result<(), DriverError> {
        let function = self.function(name);
        if shape.shared_bytes > 48 << 10 {
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, shape.shared_bytes as i32)?;
        }
        // SAFETY: all-zero attributes are valid; the arguments' types are those of the kernel, as each test knows.
        unsafe {
            let mut attribute: sys::CUlaunchAttribute = std::mem::zeroed();
            match start {
                Start::AfterAll => {}
                Start::Early => {
                    attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
                    attribute.value.programmaticStreamSerializationAllowed = 1;
                }
                Start::Cooperative => {
                    attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
                    attribute.value.cooperative = 1;
                }
                Start::Clusters(blocks) => {
                    attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
                    attribute.value.clusterDim =
                        sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: blocks, y: 1, z: 1 };
                }
            }
            let config = sys::CUlaunchConfig {
                gridDimX: shape.grid,
                gridDimY: 1,
                gridDimZ: 1,
                blockDimX: shape.block,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: shape.shared_bytes,
                hStream: stream.cu_stream(),
                attrs: &raw mut attribute,
                numAttrs: u32::from(start != Start::AfterAll),
            };
            let extra = std::ptr::null_mut();
            sys::cuLaunchKernelEx(&config, function.cu_function(), arguments.as_mut_ptr(), extra).result()
        }
    }
}

/// The address of a buffer, as a kernel's argument.
pub fn address<T>(buffer: &CudaSlice<T>, stream: &CudaStream) -> u64 {
    use cudarc::driver::DevicePtr;
    buffer.device_ptr(stream).0
}

/// The map of a matrix of 16-bit elements, 128-byte swizzled boxes of 64 columns and `box_rows` rows.
pub fn tensor_map(matrix: u64, rows: u64, columns: u64, box_rows: u32) -> sys::CUtensorMap {
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let (sizes, strides, in_box, steps) = ([columns, rows], [2 * columns], [64, box_rows], [1u32; 2]);
    // SAFETY: arrays of two dimensions, one stride fewer; the map is written alone.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            matrix as *mut c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            in_box.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        .result()
    }
    .expect("a tensor map");
    map
}

/// A launch's arguments: pointers to the given values, which live until the end of the statement's block.
#[macro_export]
macro_rules! arguments {
    ($($value:expr),* $(,)?) => {
        &mut [$((&raw const $value).cast_mut().cast::<std::ffi::c_void>()),*]
    };
}
