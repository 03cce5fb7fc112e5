//! Every kernel alone, at the shapes that models give it, against the limits of the device.
//!
//! | file | what it holds |
//! |---|---|
//! | `case` | what is measured: kernels and sizes, and what each must move and compute |
//! | `filter` | which of them a word means |
//! | `prepare` | random inputs in device memory, in sets that outgrow the cache |
//! | `timer` | times on the device's own clock, and whether that clock stood |
//! | `limits` | what the device can do |
//! | `peers` | PyTorch's kernels, in turns with ours |

mod case;
mod filter;
mod limits;
mod peers;
mod prepare;
mod timer;

use std::time::Duration;

pub use case::{Case, Choice, What};
pub use filter::{Filter, UnknownKernel};
pub use limits::CeilingSizes;
pub use peers::{PeerError, Peers};
pub use timer::{Launches, Samples, Timer};

use super::report::{Ceilings, Report, Row};
use super::times::Times;
use crate::backend::cuda::kernels::Element;
use crate::backend::cuda::{CudaError, Device, Stream};
use crate::host::Size;

/// What is left free when it is asked whether a case fits: for the driver, and for peers' own buffers.
const SPARE_BYTES: u64 = 512 << 20;
/// Ours and theirs take turns, so that both see the same moods of the card.
const TURNS: u32 = 3;

/// How a run measures.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long each kernel of each side is measured.
    pub budget: Duration,
    /// Of the ceilings.
    pub ceilings: CeilingSizes,
    /// Of the random inputs.
    pub seed: u32,
    /// The most sets of inputs that are rotated; with few, small inputs stay in the cache.
    pub max_sets: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { budget: Duration::from_millis(150), ceilings: CeilingSizes::default(), seed: 0, max_sets: 256 }
    }
}

/// A run on one device, in elements of `T`.
pub struct KernelBench<T> {
    timer: Timer,
    options: Options,
    peers: Option<Peers>,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> KernelBench<T> {
    /// On `device`, beside `peers` where there are any.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(device: &Device, options: Options, peers: Option<Peers>) -> Result<KernelBench<T>, CudaError> {
        let timer = Timer::new(device.stream()?)?;
        Ok(KernelBench { timer, options, peers, element: std::marker::PhantomData })
    }

    fn stream(&self) -> Stream {
        self.timer.stream().clone()
    }

    /// Measures what the device can do, and what the peers reach of it, into `report`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn measure_ceilings(&mut self, report: &mut Report) -> Result<(), CudaError> {
        report.ceilings.extend(limits::measure(&mut self.timer, self.options.ceilings)?);
        if let Some(peers) = &mut self.peers {
            match peers.ceilings() {
                Ok(ceilings) => report.ceilings.extend(ceilings),
                Err(error) => tracing::warn!("the peers' ceilings: {error}"),
            }
        }
        report.check_ceilings();
        self.give_memory_back()
    }

    /// So that peers, and a model behind this bench, find the memory that the last inputs took.
    fn give_memory_back(&self) -> Result<(), CudaError> {
        self.timer.stream().synchronize()?;
        self.timer.stream().device().release_freed_memory()
    }

    /// Measures one case: our row, then a row for each peer. What cannot be measured says why in its row.
    ///
    /// # Errors
    /// A failure of the device: kernels that are missing, a launch that fails. That a case does not fit into memory is
    /// none.
    pub fn measure(&mut self, case: &Case, ceilings: &Ceilings) -> Result<Vec<Row>, CudaError> {
        let stream = self.stream();
        let device = stream.device().clone();
        let mut row = case.row(device.properties());
        let (bytes, (free, _)) = (case.set_bytes(), device.memory()?);
        let room = free.saturating_sub(SPARE_BYTES);
        if bytes > room {
            row.missing = Some(format!("needs {}, {} are free", Size(bytes), Size(free)));
            return Ok(vec![row]);
        }
        let l2_bytes = device.properties().l2_bytes;
        // Peers keep as many sets of their own.
        let sides = if self.peers.is_some() { 3 } else { 1 };
        let most = (room / sides / bytes.max(1)).max(1) as usize;
        let sets = prepare::sets_past_cache(bytes, l2_bytes).min(most).min(self.options.max_sets.max(1));
        let mut ours = match case.prepare::<T>(&stream, sets, self.options.seed) {
            Ok(ours) => ours,
            Err(error) => return self.without_us(row, error),
        };
        let (prepared, mut missing) = self.prepare_peers(case, sets, &row);

        let mut samples = Vec::new();
        let mut theirs: Vec<(String, Vec<f64>, Option<String>)> =
            prepared.into_iter().map(|by| (by, Vec::new(), None)).collect();
        let turns = if theirs.is_empty() { 1 } else { TURNS };
        let budget = self.options.budget / turns;
        let mut clocks = Vec::new();
        for _ in 0..turns {
            let Samples { us, clock, .. } = match self.timer.time(ours.as_mut(), budget) {
                Ok(samples) => samples,
                Err(error) => {
                    drop(ours);
                    return self.without_us(row, error);
                }
            };
            samples.extend(us);
            clocks.push(clock);
            self.turn_of_peers(&mut theirs, budget, &mut missing, &row);
        }
        if let Some(peers) = &mut self.peers
            && let Err(error) = peers.release()
        {
            tracing::warn!("peers: {error}");
        }
        drop(ours);
        self.give_memory_back()?;
        row.times = Times::of(samples);
        if (sets as u64).saturating_mul(bytes) < 2 * l2_bytes {
            row.marks.push("inputs fit the L2".to_owned());
        }
        row.marks.extend(clocks.iter().find_map(|clock| timer::clock_mark(*clock)));
        let slowest = clocks.iter().flatten().copied().min_by(f64::total_cmp);
        row.values.extend(slowest.map(|clock| ("clock_ghz".to_owned(), clock)));
        ceilings.judge(&mut row);
        let mut rows = vec![row];
        for (by, samples, path) in theirs.into_iter().filter(|(_, samples, _)| !samples.is_empty()) {
            let mut row = Row { by, path, times: Times::of(samples), marks: Vec::new(), ..rows[0].clone() };
            (row.of_limit, row.limit) = (None, None);
            ceilings.judge(&mut row);
            rows.push(row);
        }
        rows.extend(missing);
        Ok(rows)
    }

    /// A row that says what the device said of it, where the device can go on: it did not begin the work.
    fn without_us(&mut self, mut row: Row, error: CudaError) -> Result<Vec<Row>, CudaError> {
        if !matches!(error, CudaError::OutOfMemory { .. } | CudaError::Operand { .. } | CudaError::LaunchLimit { .. }) {
            return Err(error);
        }
        row.missing = Some(error.to_string());
        if let Some(peers) = &mut self.peers
            && let Err(error) = peers.release()
        {
            tracing::warn!("peers: {error}");
        }
        self.give_memory_back()?;
        Ok(vec![row])
    }

    /// Names of those who can do the case, and a row for each who cannot.
    fn prepare_peers(&mut self, case: &Case, sets: usize, ours: &Row) -> (Vec<String>, Vec<Row>) {
        let Some(peers) = &mut self.peers else { return (Vec::new(), Vec::new()) };
        match peers.prepare(case, T::NAME, sets, self.options.seed) {
            Ok(prepared) => {
                let missing = prepared.missing.into_iter().map(|it| without_figures(ours, &it.by, it.why)).collect();
                (prepared.peers, missing)
            }
            Err(error) => (Vec::new(), vec![without_figures(ours, "torch", error.to_string())]),
        }
    }

    /// Each peer's turn. One that fails is asked no more.
    fn turn_of_peers(
        &mut self,
        theirs: &mut Vec<(String, Vec<f64>, Option<String>)>,
        budget: Duration,
        missing: &mut Vec<Row>,
        ours: &Row,
    ) {
        let Some(peers) = &mut self.peers else { return };
        theirs.retain_mut(|(by, samples, path)| match peers.time(by, budget) {
            Ok((us, how)) => {
                samples.extend(us);
                *path = how;
                true
            }
            Err(error) => {
                missing.push(without_figures(ours, by, error.to_string()));
                false
            }
        });
    }
}

/// A row of the same key, and why it has no figures.
fn without_figures(ours: &Row, by: &str, why: String) -> Row {
    Row { by: by.to_owned(), path: None, missing: Some(why), marks: Vec::new(), ..ours.clone() }
}
