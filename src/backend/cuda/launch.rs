//! A launch: how many threads, with what, and whether it may start early.

use std::ffi::c_void;

use bytemuck::Pod;
use cudarc::driver::sys;

use super::buffer::{Slice, SliceMut};
use super::error::{CudaError, Naming, is_of_the_attribute};
use super::module::Kernel;
use super::stream::Stream;
use super::switches::Described;
use super::tensor_map::TensorMap;

/// Threads, shared memory and start of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Blocks of a cluster in x, y and z; more than one needs compute capability 9.0.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Whether it may start before the kernel before it ends.
    pub overlap: Overlap,
}

/// When a kernel starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// Once the work before it is done.
    None,
    /// Once every block of the kernel before it has called `griddepcontrol.launch_dependents` or ended: programmatic
    /// dependent launch. The kernel must call `griddepcontrol.wait` before it touches what that one, or any before
    /// it, reads or writes. Without machine code for compute capability 9.0, or where
    /// [`Switches::programmatic_launch`](super::Switches::programmatic_launch) is off, as [`Overlap::None`].
    Programmatic,
}

impl Launch {
    /// `grid` blocks of `block` threads in one dimension, no shared memory, no cluster, programmatic overlap.
    pub fn linear(grid: u32, block: u32) -> Launch {
        Launch {
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            cluster: [1, 1, 1],
            shared_bytes: 0,
            overlap: Overlap::Programmatic,
        }
    }
}

/// As many parameters as any kernel here has, with room.
const MOST: usize = 24;
/// And tensor maps among them.
const MAX_MAPS: usize = 5;
const TENSOR_MAP_BYTES: usize = size_of::<TensorMap>();

/// The arguments of one launch, in the order of the kernel's parameters.
#[derive(Debug, Clone, Default)]
pub struct Arguments {
    /// Of a tensor map its index in `maps`.
    values: [u64; MOST],
    sizes: [usize; MOST],
    len: usize,
    maps: [TensorMap; MAX_MAPS],
    maps_len: usize,
}

impl Arguments {
    /// None yet.
    pub fn new() -> Arguments {
        Arguments::default()
    }

    /// A buffer that the kernel reads.
    pub fn input<T: Pod>(self, buffer: Slice<'_, T>) -> Arguments {
        self.scalar(buffer.pointer())
    }

    /// A buffer that the kernel reads, or a null pointer.
    pub fn optional_input<T: Pod>(self, buffer: Option<Slice<'_, T>>) -> Arguments {
        self.scalar(buffer.map_or(0, |buffer| buffer.pointer()))
    }

    /// A buffer that the kernel writes.
    pub fn output<T: Pod>(self, buffer: &SliceMut<'_, T>) -> Arguments {
        self.scalar(buffer.pointer())
    }

    /// A number of 1 to 8 bytes.
    ///
    /// # Panics
    /// For a type of more than 8 bytes or more than 24 arguments: both are fixed when a launcher is written.
    pub fn scalar<T: Pod>(mut self, value: T) -> Arguments {
        let bytes = bytemuck::bytes_of(&value);
        bytemuck::bytes_of_mut(&mut self.values[self.len])[..bytes.len()].copy_from_slice(bytes);
        self.sizes[self.len] = bytes.len();
        self.len += 1;
        self
    }

    /// A tensor map, by value.
    ///
    /// # Panics
    /// For more than 24 arguments or 5 tensor maps: both are fixed when a launcher is written.
    pub fn tensor_map(mut self, map: &TensorMap) -> Arguments {
        self.maps[self.maps_len] = *map;
        self.values[self.len] = self.maps_len as u64;
        self.sizes[self.len] = TENSOR_MAP_BYTES;
        self.maps_len += 1;
        self.len += 1;
        self
    }
}

impl Stream {
    /// Gives a launch to the stream.
    ///
    /// # Errors
    /// [`CudaError::Arguments`] where number or sizes of the arguments are not those of the compiled kernel;
    /// [`CudaError::LaunchLimit`]; [`CudaError::Refused`]; [`CudaError::WorkFailed`] where an earlier kernel has
    /// failed; [`CudaError::KernelFailed`] where launches are waited for
    /// ([`Device::is_synchronous`](super::Device::is_synchronous)).
    ///
    /// # Safety
    /// `arguments` mean what the kernel takes them for, and the buffers among them are as long as the kernel, so
    /// launched, reads and writes them; they live until it has run.
    pub unsafe fn launch(&self, kernel: &Kernel, launch: &Launch, arguments: &Arguments) -> Result<(), CudaError> {
        let sizes = &arguments.sizes[..arguments.len];
        if sizes != kernel.parameters() {
            return Err(CudaError::Arguments {
                kernel: kernel.name().to_owned(),
                found: sizes.to_vec(),
                expected: kernel.parameters().to_vec(),
            });
        }
        self.check_limits(kernel, launch)?;
        self.bind()?;
        kernel.allow_shared_bytes(launch.shared_bytes)?;

        // The driver copies the values before it returns; it takes them by mutable pointer all the same.
        let (mut values, mut maps) = (arguments.values, arguments.maps);
        let mut pointers: [*mut c_void; MOST] = std::array::from_fn(|index| match arguments.sizes[index] {
            TENSOR_MAP_BYTES => (&raw mut maps[arguments.values[index] as usize]).cast(),
            _ => (&raw mut values[index]).cast(),
        });
        let mut launch_with = |overlap: Overlap| {
            let (mut attributes, count) = self.attributes(launch, overlap);
            let config = configuration(launch, self.handle(), &mut attributes[..count]);
            // SAFETY: configuration, attributes, values, maps and pointers outlive the call; number and sizes of the
            // arguments were compared with the kernel's; what they mean is the caller's promise.
            unsafe {
                sys::cuLaunchKernelEx(&config, kernel.handle(), pointers.as_mut_ptr(), std::ptr::null_mut()).result()
            }
        };
        if let Some(watch) = kernel.watch() {
            watch.launched(kernel.name(), launch);
        }
        let refused = |error| {
            CudaError::refused(kernel.name(), format!("a launch of {}", Described(launch)), "cuLaunchKernelEx", error)
        };
        let overlap = self.overlap_of(kernel, launch);
        match launch_with(overlap) {
            Ok(()) => {}
            // Where it is the attribute that the driver does not know, the launch is right without it.
            Err(error) if overlap == Overlap::Programmatic && is_of_the_attribute(error) => {
                launch_with(Overlap::None).map_err(refused)?;
                self.device().stop_launching_early(&refused(error));
            }
            Err(error) => return Err(refused(error)),
        }
        self.wait_where_synchronous(|| kernel.name().to_owned())?;
        self.trace().mark(self, kernel.name())
    }

    /// How the kernel is started, by its launch, its code and the device's switches.
    fn overlap_of(&self, kernel: &Kernel, launch: &Launch) -> Overlap {
        let early = launch.overlap == Overlap::Programmatic && kernel.target().number >= 90;
        if early && self.device().launches_early() { Overlap::Programmatic } else { Overlap::None }
    }

    /// The attributes of a launch, and how many there are.
    fn attributes(&self, launch: &Launch, overlap: Overlap) -> ([sys::CUlaunchAttribute; 3], usize) {
        let mut attributes = [empty_attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_IGNORE); 3];
        let mut count = 0;
        let mut add = |attribute| {
            attributes[count] = attribute;
            count += 1;
        };
        if launch.cluster != [1, 1, 1] {
            let [x, y, z] = launch.cluster;
            let mut attribute = empty_attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
            attribute.value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
            add(attribute);
        }
        if overlap == Overlap::Programmatic {
            let mut attribute =
                empty_attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
            attribute.value.programmaticStreamSerializationAllowed = 1;
            add(attribute);
        }
        // Of each launch and not of the function, so that graphs keep it.
        if let Some(percent) = self.device().switches().carveout {
            let mut attribute =
                empty_attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT);
            attribute.value.sharedMemCarveout = percent;
            add(attribute);
        }
        (attributes, count)
    }

    /// How many clusters of such a launch the GPU runs at a time, by its own account. Compute capability 9.0.
    ///
    /// # Errors
    /// As for [`Stream::launch`].
    pub fn clusters_at_a_time(&self, kernel: &Kernel, launch: &Launch) -> Result<u32, CudaError> {
        self.check_limits(kernel, launch)?;
        self.bind()?;
        kernel.allow_shared_bytes(launch.shared_bytes)?;
        let (mut attributes, count) = self.attributes(launch, Overlap::None);
        let config = configuration(launch, self.handle(), &mut attributes[..count]);
        let mut clusters = 0;
        // SAFETY: the kernel is loaded; configuration, attributes and the count outlive the call.
        unsafe { sys::cuOccupancyMaxActiveClusters(&raw mut clusters, kernel.handle(), &config) }
            .result()
            .named("cuOccupancyMaxActiveClusters")?;
        Ok(u32::try_from(clusters).unwrap_or(0))
    }

    fn check_limits(&self, kernel: &Kernel, launch: &Launch) -> Result<(), CudaError> {
        let device = self.device().properties();
        let product = |sizes: [u32; 3]| sizes.iter().map(|size| u64::from(*size)).product::<u64>();
        // What every such device takes; more is asked for by an attribute of the kernel.
        let max_clustered = if device.compute_capability.major >= 9 { 8 } else { 1 };
        let limits = [
            ("the number of threads of a block", product(launch.block), 1, 1024),
            ("the number of blocks of a cluster", product(launch.cluster), 1, max_clustered),
            ("the number of blocks in x", launch.grid[0].into(), 1, (1 << 31) - 1),
            ("the number of blocks in y", launch.grid[1].into(), 1, 65_535),
            ("the number of blocks in z", launch.grid[2].into(), 1, 65_535),
            ("dynamic shared memory in bytes", launch.shared_bytes.into(), 0, device.shared_bytes.into()),
        ];
        for (what, found, least, most) in limits {
            if !(least..=most).contains(&found) {
                let allowed = format!("{least} to {most}");
                return Err(CudaError::LaunchLimit { kernel: kernel.name().to_owned(), what, found, allowed });
            }
        }
        Ok(())
    }
}

/// The attributes must outlive what this returns.
fn configuration(
    launch: &Launch,
    stream: sys::CUstream,
    attributes: &mut [sys::CUlaunchAttribute],
) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: launch.grid[0],
        gridDimY: launch.grid[1],
        gridDimZ: launch.grid[2],
        blockDimX: launch.block[0],
        blockDimY: launch.block[1],
        blockDimZ: launch.block[2],
        sharedMemBytes: launch.shared_bytes,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}

fn empty_attribute(id: sys::CUlaunchAttributeID) -> sys::CUlaunchAttribute {
    // SAFETY: a C structure of a number, padding and a union of numbers and pointers: all zeros are valid.
    let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
    attribute.id = id;
    attribute
}
