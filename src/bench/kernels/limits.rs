//! What the device can do, measured: a read of memory for bytes, a large product of random numbers for FLOPs.

use std::time::Duration;

use crate::backend::cuda::kernels::BiasTerm;
use crate::backend::cuda::kernels::ceilings::Ceilings;
use crate::backend::cuda::kernels::linear::{Epilogue, GemmShape};
use crate::backend::cuda::{Buffer, CudaError, Stream};

use super::super::report::{Ceiling, Limit};
use super::super::times::Times;
use super::prepare::{Filler, Layer};
use super::timer::{Launches, Timer};

/// How large the measurements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CeilingSizes {
    /// Bytes that are read.
    pub read_bytes: u64,
    /// Rows, columns and depth of the product.
    pub product: usize,
    /// How long each is measured.
    pub budget: Duration,
}

impl Default for CeilingSizes {
    fn default() -> CeilingSizes {
        CeilingSizes { read_bytes: 4 << 30, product: 8192, budget: Duration::from_millis(500) }
    }
}

/// The ceilings.
///
/// # Errors
/// Those of the device.
pub fn measure(timer: &mut Timer, sizes: CeilingSizes) -> Result<Vec<Ceiling>, CudaError> {
    let stream = timer.stream().clone();
    let (free, _) = stream.device().memory()?;
    let bytes = sizes.read_bytes.min(free / 2).next_multiple_of(16);
    let mut read = Read::new(timer, &stream, bytes)?;
    let reading = timer.time(&mut read, sizes.budget)?;
    drop(read);

    let n = sizes.product;
    let filler = Filler::<half::bf16>::new(&stream, 0)?;
    let shape = GemmShape { m: n, n, k: n };
    let mut product = Layer::new(&filler, Epilogue::BiasGelu, shape, BiasTerm::Absent, 1)?;
    filler.settle()?;
    let multiplying = timer.time(&mut product, sizes.budget)?;

    let per_second = |count: f64, us: Vec<f64>| Times::of(us).map_or(0.0, |times| count / times.seconds().max(1e-9));
    let ceiling = |limit, per_second, how| Ceiling { limit, by: "rigel".to_owned(), per_second, how };
    let ceilings = vec![
        ceiling(Limit::Bytes, per_second(bytes as f64, reading.us), format!("read of {} MiB", bytes >> 20)),
        ceiling(Limit::Flops, per_second(2.0 * (n as f64).powi(3), multiplying.us), format!("bf16 {n} x {n} x {n}")),
    ];
    Ok(ceilings)
}

/// A read of memory and nothing else. Its random words keep the memory's wires as busy as weights do.
struct Read {
    kernels: Ceilings,
    source: Buffer<half::bf16>,
    folded: Buffer<u32>,
}

impl Read {
    fn new(timer: &Timer, stream: &Stream, bytes: u64) -> Result<Read, CudaError> {
        let filler = Filler::<half::bf16>::new(stream, 0)?;
        Ok(Read {
            kernels: Ceilings::load(stream.device())?,
            source: filler.activations(bytes as usize / 2, 0, 0)?,
            folded: stream.zeroed(timer.ceilings().folded_len(bytes as usize / 4))?,
        })
    }
}

impl Launches for Read {
    fn sets(&self) -> usize {
        1
    }

    fn launch(&mut self, stream: &Stream, _: usize) -> Result<(), CudaError> {
        let (from, into) = (self.source.len(), self.source.len() / 2);
        let words = self.source.view().cast::<u32>().ok_or(CudaError::CopyLength { from, into })?;
        self.kernels.read(stream, words, self.folded.view_mut())
    }
}
