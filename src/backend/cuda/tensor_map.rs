//! Tensor maps: what TMA of compute capability 9.0 (TMA) must know of a tensor in device memory and of the
//! box that one instruction moves. A kernel takes them as `const __grid_constant__ TensorMap`.

use cudarc::driver::sys;

use super::buffer::{Slice, SliceMut};
use super::error::CudaError;
use super::kernels::Element;

/// How 16-byte pieces of a box are spread over the banks of shared memory: each is xored with the number of its row of
/// that many bytes. The box is at most that wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swizzle {
    /// Rows one behind the other.
    None,
    /// Rows of 32 bytes.
    Bytes32,
    /// Rows of 64 bytes.
    Bytes64,
    /// Rows of 128 bytes.
    Bytes128,
}

/// One dimension of a tensor, and of the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dimension {
    /// Elements of the tensor along it; what lies beyond is read as zero, and not written.
    pub size: usize,
    /// Elements from one of its indices to the next; 1 for the first dimension.
    pub stride: usize,
    /// Elements of the box along it, 1 to 256.
    pub in_box: u32,
}

impl Dimension {
    /// Those of a matrix whose rows lie one behind the other, with a box of so many columns and rows.
    pub fn of_matrix(columns: usize, rows: usize, in_box: [u32; 2]) -> [Dimension; 2] {
        let [box_columns, box_rows] = in_box;
        [
            Dimension { size: columns, stride: 1, in_box: box_columns },
            Dimension { size: rows, stride: columns, in_box: box_rows },
        ]
    }
}

/// As the driver encodes it. Copied into the launch that it is an argument of.
#[derive(Clone, Copy)]
pub struct TensorMap(pub(super) sys::CUtensorMap);

impl Default for TensorMap {
    /// No tensor; takes the place of one until it is known.
    fn default() -> TensorMap {
        TensorMap(sys::CUtensorMap { opaque: [0; 16] })
    }
}

impl std::fmt::Debug for TensorMap {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("TensorMap")
    }
}

impl TensorMap {
    /// A tensor that a kernel reads: dimensions from the one with consecutive elements on, 2 to 5 of them.
    ///
    /// # Errors
    /// [`CudaError::Operand`] where the buffer is shorter than the dimensions reach; [`CudaError::Refused`] for what
    /// TMA cannot do: an address that is not aligned to 16 bytes, a stride or the box's first dimension
    /// that is no multiple of 16 bytes, a box wider than its swizzle.
    pub fn input<T: Element>(
        buffer: Slice<'_, T>,
        dimensions: &[Dimension],
        swizzle: Swizzle,
    ) -> Result<TensorMap, CudaError> {
        encode::<T>(buffer.pointer(), buffer.len(), dimensions, swizzle)
    }

    /// A tensor that a kernel writes.
    ///
    /// # Errors
    /// As for [`TensorMap::input`].
    pub fn output<T: Element>(
        buffer: &SliceMut<'_, T>,
        dimensions: &[Dimension],
        swizzle: Swizzle,
    ) -> Result<TensorMap, CudaError> {
        encode::<T>(buffer.pointer(), buffer.len(), dimensions, swizzle)
    }
}

fn encode<T: Element>(
    pointer: u64,
    len: usize,
    dimensions: &[Dimension],
    swizzle: Swizzle,
) -> Result<TensorMap, CudaError> {
    let operand = |expected: String| CudaError::Operand {
        kernel: "a tensor map",
        what: "its buffer",
        found: format!("{len} elements long"),
        expected,
    };
    let rank = dimensions.len();
    let consecutive = dimensions.first().is_some_and(|first| first.stride == 1);
    if !(2..=5).contains(&rank) || !consecutive || dimensions.iter().any(|dimension| dimension.size == 0) {
        return Err(operand(format!(
            "one for 2 to 5 dimensions of some size, the first of stride 1, not {dimensions:?}"
        )));
    }
    let reach = dimensions.iter().try_fold(1usize, |reach, dimension| {
        (dimension.size - 1).checked_mul(dimension.stride).and_then(|far| far.checked_add(reach))
    });
    if reach.is_none_or(|reach| reach > len) {
        return Err(operand(format!("as long as {dimensions:?} reach")));
    }
    let sizes: Vec<u64> = dimensions.iter().map(|dimension| dimension.size as u64).collect();
    let strides: Vec<u64> =
        dimensions[1..].iter().map(|dimension| (dimension.stride * size_of::<T>()) as u64).collect();
    let in_box: Vec<u32> = dimensions.iter().map(|dimension| dimension.in_box).collect();
    let element_strides = [1u32; 5];
    let mut map = TensorMap::default();
    // SAFETY: the arrays are as long as the rank (one less for the strides), and the call only writes the map. The
    // address is not read; that the map's copies stay inside of the buffer was checked above.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map.0,
            T::TENSOR_MAP_TYPE,
            rank as u32,
            pointer as *mut std::ffi::c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            in_box.as_ptr(),
            element_strides.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            match swizzle {
                Swizzle::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
                Swizzle::Bytes32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
                Swizzle::Bytes64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
                Swizzle::Bytes128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            },
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        .result()
    }
    .map_err(|error| {
        let what = format!("dimensions {dimensions:?} of {} bytes an element, swizzle {swizzle:?}", size_of::<T>());
        CudaError::refused("a tensor map", what, "cuTensorMapEncodeTiled", error)
    })?;
    Ok(map)
}
