//! [`Timeline`]: times that were measured joined with what the launches had to do.

use std::fmt;

use super::super::report::{Ceilings, Limit, Row, Suite};
use super::super::table::{Table, digits, percent};
use super::super::times::Times;
use crate::backend::cuda::model::cost_model::{KernelCost, Part};
use crate::backend::cuda::trace::{COPY, TimedLaunch};

/// Which step it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The prompt of one sequence.
    Prefill {
        /// Its rows.
        rows: usize,
    },
    /// One row of each sequence.
    Decode {
        /// Sequences.
        batch: usize,
        /// Positions that each has in the cache.
        depth: usize,
    },
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Prefill { .. } => "prefill",
            Step::Decode { .. } => "decode",
        }
    }

    fn sized(self, row: Row) -> Row {
        match self {
            Step::Prefill { rows } => row.size("rows", rows),
            Step::Decode { batch, depth } => row.size("batch", batch).size("depth", depth),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Prefill { rows } => write!(f, "prefill of {rows} tokens"),
            Step::Decode { batch, depth } => write!(f, "decode, batch {batch}, depth {depth}"),
        }
    }
}

/// One launch, or one copy, that ran.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Its name in the compiled image.
    pub kernel: String,
    /// What of the network it computed; none for a copy.
    pub part: Option<Part>,
    /// The layer.
    pub layer: Option<usize>,
    /// From the beginning of the step, in microseconds.
    pub start_us: f64,
    /// How long it took.
    pub us: f64,
    /// Bytes that it had to move; 0 for a copy.
    pub bytes: u64,
    /// Floating-point operations that it had to do.
    pub flops: u64,
    /// The least time that the ceilings allow, and which of them; none where they are not known.
    pub least: Option<(f64, Limit)>,
}

impl Span {
    /// When it ended.
    pub fn end_us(&self) -> f64 {
        self.start_us + self.us
    }

    /// The share of its own limit that it reached.
    pub fn of_limit(&self) -> Option<f64> {
        self.least.filter(|_| self.us > 0.0).map(|(least, _)| least / self.us)
    }
}

/// The launches that ran are not those that the cost model lists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("launch {index} of the step is {found}, the cost model says {expected}; profile with nothing else on the GPU")]
pub struct Mismatch {
    /// Counted from 0, copies aside.
    pub index: usize,
    /// What ran.
    pub found: String,
    /// What should have.
    pub expected: String,
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// Which.
    pub step: Step,
    /// Who saw the times: `cupti`, `events`.
    pub source: &'static str,
    /// Whether time between two spans is time that nothing ran, and not only a limit of what was seen.
    pub sees_gaps: bool,
    /// In the order of their starts.
    pub spans: Vec<Span>,
}

/// The launches of one part of the network together.
#[derive(Debug, Clone, PartialEq)]
pub struct PartTotal {
    /// The part; none for copies.
    pub part: Option<Part>,
    /// How many.
    pub launches: usize,
    /// Their times together, in microseconds.
    pub us: f64,
    /// Their bytes together.
    pub bytes: u64,
    /// Their floating-point operations together.
    pub flops: u64,
    /// The least times together, and the limit that most of that is of; none where one is not known.
    pub least: Option<(f64, Limit)>,
}

impl PartTotal {
    /// The part's name.
    pub fn name(&self) -> &'static str {
        self.part.map_or(COPY, Part::name)
    }

    /// The share of their own limits that they reached, each weighted with its time.
    pub fn of_limit(&self) -> Option<f64> {
        self.least.filter(|_| self.us > 0.0).map(|(least, _)| least / self.us)
    }
}

impl Timeline {
    /// The launches that ran, each with its declared cost.
    ///
    /// # Errors
    /// [`Mismatch`] where they are not the same launches.
    pub fn join(
        step: Step,
        source: (&'static str, bool),
        ran: Vec<TimedLaunch>,
        costs: &[KernelCost],
        ceilings: &Ceilings,
    ) -> Result<Timeline, Mismatch> {
        let mut declared = costs.iter();
        let mut spans = Vec::with_capacity(ran.len());
        let mut index = 0;
        for TimedLaunch { kernel, start_us, us } in ran {
            let of = if kernel == COPY { None } else { Some(declared.next()) };
            let span = match of {
                None => Span { kernel, part: None, layer: None, start_us, us, bytes: 0, flops: 0, least: None },
                Some(Some(launch)) if launch.kernel == kernel => {
                    let (bytes, flops) = (launch.work.bytes(), launch.work.flops);
                    let least = ceilings.min_us(bytes, flops);
                    index += 1;
                    Span { kernel, part: Some(launch.part), layer: launch.layer, start_us, us, bytes, flops, least }
                }
                Some(launch) => {
                    let expected = launch.map_or("that it has ended".to_owned(), |launch| launch.kernel.clone());
                    return Err(Mismatch { index, found: kernel, expected });
                }
            };
            spans.push(span);
        }
        match declared.next() {
            None => Ok(Timeline { step, source: source.0, sees_gaps: source.1, spans }),
            Some(launch) => Err(Mismatch { index, found: "missing".to_owned(), expected: launch.kernel.clone() }),
        }
    }

    /// From the first beginning to the last end, in microseconds.
    pub fn wall_us(&self) -> f64 {
        let first = self.spans.iter().map(|span| span.start_us).fold(f64::INFINITY, f64::min);
        let last = self.spans.iter().map(Span::end_us).fold(f64::NEG_INFINITY, f64::max);
        if self.spans.is_empty() { 0.0 } else { last - first }
    }

    /// The times of all launches together; more than the wall where some overlap.
    pub fn kernels_us(&self) -> f64 {
        self.spans.iter().map(|span| span.us).sum()
    }

    /// Stretches `(start, end)` between launches in which nothing ran, in microseconds.
    pub fn gaps(&self) -> Vec<(f64, f64)> {
        let mut gaps = Vec::new();
        let mut busy_until = self.spans.first().map_or(0.0, |span| span.start_us);
        for span in &self.spans {
            if span.start_us > busy_until {
                gaps.push((busy_until, span.start_us));
            }
            busy_until = busy_until.max(span.end_us());
        }
        gaps
    }

    /// The stretches of [`Timeline::gaps`] together; none where they cannot be seen.
    pub fn idle_us(&self) -> Option<f64> {
        self.sees_gaps.then(|| self.gaps().iter().map(|(start, end)| end - start).sum())
    }

    /// The totals by part, in the order of a step, copies last; parts without a launch are left out.
    pub fn parts(&self) -> Vec<PartTotal> {
        let parts = Part::ALL.into_iter().map(Some).chain([None]);
        parts.map(|part| self.total(part)).filter(|total| total.launches > 0).collect()
    }

    fn total(&self, part: Option<Part>) -> PartTotal {
        let spans: Vec<&Span> = self.spans.iter().filter(|span| span.part == part).collect();
        let leasts: Option<Vec<(f64, Limit)>> = spans.iter().map(|span| span.least).collect();
        let least = leasts.filter(|leasts| !leasts.is_empty()).map(|leasts| {
            let of = |limit| leasts.iter().filter(|(_, of)| *of == limit).map(|(least, _)| least).sum::<f64>();
            let (bytes, flops) = (of(Limit::Bytes), of(Limit::Flops));
            (bytes + flops, if flops > bytes { Limit::Flops } else { Limit::Bytes })
        });
        PartTotal {
            part,
            launches: spans.len(),
            us: spans.iter().map(|span| span.us).sum(),
            bytes: spans.iter().map(|span| span.bytes).sum(),
            flops: spans.iter().map(|span| span.flops).sum(),
            least,
        }
    }

    /// The least time that the step's limits allow, launch by launch, as a share of the time it took; none where the
    /// ceilings are not known.
    pub fn of_limit(&self) -> Option<f64> {
        let leasts: Option<Vec<f64>> =
            self.spans.iter().filter(|span| span.part.is_some()).map(|span| span.least.map(|least| least.0)).collect();
        let least: f64 = leasts?.iter().sum();
        (least > 0.0 && self.wall_us() > 0.0).then(|| least / self.wall_us())
    }

    /// The totals by part as a table.
    pub fn table(&self) -> Table {
        let columns = ["part", ">launches", ">µs", ">of the step", ">GB/s", ">TFLOP/s", ">of its limit", "limit"];
        let mut table = Table::new(&columns);
        let wall = self.wall_us();
        for total in self.parts() {
            let rate = |count: u64, scale: f64| match total.us > 0.0 && count > 0 {
                true => digits(count as f64 / total.us * 1e6 / scale),
                false => "-".to_owned(),
            };
            table.row([
                total.name().to_owned(),
                total.launches.to_string(),
                digits(total.us),
                if wall > 0.0 { percent(total.us / wall) } else { "-".to_owned() },
                rate(total.bytes, 1e9),
                rate(total.flops, 1e12),
                total.of_limit().map_or("-".to_owned(), percent),
                total.least.map_or("-", |(_, limit)| limit_name(limit)).to_owned(),
            ]);
        }
        table
    }

    /// The step's totals, one line.
    pub fn summary(&self) -> String {
        let (kernels, wall) = (self.kernels_us(), self.wall_us());
        let gaps = match self.idle_us() {
            Some(idle) if wall > 0.0 => format!("gaps {} µs ({})", digits(idle), percent(idle / wall)),
            Some(idle) => format!("gaps {} µs", digits(idle)),
            None => "gaps not seen (an event behind each launch: gaps count to the launch behind them)".to_owned(),
        };
        let limit = self.of_limit().map_or(String::new(), |share| format!("; {} of the limit", percent(share)));
        let launches = self.spans.iter().filter(|span| span.part.is_some()).count();
        format!("{launches} launches {} µs, {gaps}, step {} µs{limit}", digits(kernels), digits(wall))
    }

    /// The rows of a result: the step, its parts, and its launches with when they began.
    pub fn rows(&self) -> Vec<Row> {
        let name = self.step.name();
        let row = |what: &str, us: f64, bytes: u64, flops: u64, of_limit, limit| {
            let row = Row::new(Suite::Profile, format!("{name} {what}"));
            let row = Row {
                path: Some(self.source.to_owned()),
                times: Times::of(vec![us]),
                bytes,
                flops,
                of_limit,
                limit,
                ..row
            };
            self.step.sized(row)
        };
        let sum = |count: fn(&Span) -> u64| self.spans.iter().map(count).sum();
        let mut step =
            row("step", self.wall_us(), sum(|span| span.bytes), sum(|span| span.flops), self.of_limit(), None);
        step.values.insert("kernels_us".to_owned(), self.kernels_us());
        step.values.extend(self.idle_us().map(|idle| ("gaps_us".to_owned(), idle)));
        if let (Step::Decode { .. }, Some(idle)) = (self.step, self.idle_us())
            && self.wall_us() > 0.0
        {
            step.values.insert("gpu_idle".to_owned(), idle / self.wall_us());
        }
        let mut rows = vec![step];
        for total in self.parts() {
            let limit = total.least.map(|(_, limit)| limit);
            let mut row = row(total.name(), total.us, total.bytes, total.flops, total.of_limit(), limit);
            row.values.insert("launches".to_owned(), total.launches as f64);
            rows.push(row);
        }
        for (index, span) in self.spans.iter().enumerate() {
            let limit = span.least.map(|(_, limit)| limit);
            let mut row = row("launch", span.us, span.bytes, span.flops, span.of_limit(), limit).size("index", index);
            row = row.size("kernel", span.kernel.clone()).size("part", span.part.map_or(COPY, Part::name));
            if let Some(layer) = span.layer {
                row = row.size("layer", layer);
            }
            row.values.insert("start_us".to_owned(), span.start_us);
            if let Some(before) = index.checked_sub(1).filter(|_| self.sees_gaps) {
                row.values.insert("gap_us".to_owned(), span.start_us - self.spans[before].end_us());
            }
            rows.push(row);
        }
        rows
    }
}

fn limit_name(limit: Limit) -> &'static str {
    match limit {
        Limit::Bytes => "bytes",
        Limit::Flops => "FLOPs",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::Work;

    fn launch(kernel: &str, part: Part, bytes: u64, flops: u64) -> KernelCost {
        let work = Work { bytes_read: bytes, bytes_written: 0, flops };
        KernelCost { kernel: kernel.to_owned(), family: "gemv", part, layer: Some(0), work }
    }

    fn ran(kernel: &str, start_us: f64, us: f64) -> TimedLaunch {
        TimedLaunch { kernel: kernel.to_owned(), start_us, us }
    }

    fn timeline(ran: Vec<TimedLaunch>, costs: &[KernelCost]) -> Result<Timeline, Mismatch> {
        // 1 MB and 1 MFLOP a microsecond.
        let ceilings = Ceilings { bytes: Some(1e12), flops: Some(1e12) };
        Timeline::join(Step::Decode { batch: 1, depth: 7 }, ("cupti", true), ran, costs, &ceilings)
    }

    fn kernel_costs() -> [KernelCost; 3] {
        let down_proj = launch("gemv", Part::DownProj, 2_000_000, 1_000);
        [launch("norm", Part::MlpNorm, 1_000_000, 0), launch("gemv", Part::UpProj, 0, 3_000_000), down_proj]
    }

    #[test]
    fn times_and_accounts_meet_in_order() {
        let seen = vec![ran("copy", 0.0, 1.0), ran("norm", 1.0, 2.0), ran("gemv", 4.0, 6.0), ran("gemv", 9.0, 4.0)];
        let timeline = timeline(seen, &kernel_costs()).unwrap();
        assert_eq!((timeline.wall_us(), timeline.kernels_us()), (13.0, 13.0));
        // The last overlaps the one before it.
        assert_eq!((timeline.gaps(), timeline.idle_us()), (vec![(3.0, 4.0)], Some(1.0)));
        let shares: Vec<_> = timeline.spans.iter().map(|span| (span.part, span.of_limit())).collect();
        let parts = [None, Some(Part::MlpNorm), Some(Part::UpProj), Some(Part::DownProj)];
        let expected: Vec<_> = parts.into_iter().zip([None, Some(0.5), Some(0.5), Some(0.5)]).collect();
        assert_eq!(shares, expected);
        assert_eq!(timeline.of_limit(), Some(6.0 / 13.0));
        let table = timeline.table().to_string();
        assert!(
            table.contains("| up_proj   |        1 | 6.00 |        46 % |    - |    0.50 |         50 % | FLOPs |"),
            "{table}"
        );
        assert_eq!(timeline.summary(), "3 launches 13.0 µs, gaps 1.00 µs (7.7 %), step 13.0 µs; 46 % of the limit");

        let rows = timeline.rows();
        assert_eq!(rows.len(), 1 + 4 + 4);
        assert_eq!((rows[0].values["gaps_us"], rows[0].values["gpu_idle"]), (1.0, 1.0 / 13.0));
        assert_eq!((rows[8].values["start_us"], rows[8].values["gap_us"]), (9.0, -1.0));
        assert_eq!(rows[8].sizes(), "batch 1, depth 7, index 3, kernel gemv, layer 0, part down_proj");
    }

    #[test]
    fn other_launches_are_told_from_the_steps() {
        let error = |ran| timeline(ran, &kernel_costs()).unwrap_err().to_string();
        let other = error(vec![ran("norm", 0.0, 1.0), ran("gemm", 1.0, 1.0)]);
        assert!(other.starts_with("launch 1 of the step is gemm, the cost model says gemv"), "{other}");
        let short = error(vec![ran("norm", 0.0, 1.0), ran("gemv", 1.0, 1.0)]);
        assert!(short.starts_with("launch 2 of the step is missing, the cost model says gemv"), "{short}");
        let all = vec![ran("norm", 0.0, 1.0), ran("gemv", 1.0, 1.0), ran("gemv", 2.0, 1.0), ran("x", 3.0, 1.0)];
        assert!(error(all).contains("launch 3 of the step is x, the cost model says that it has ended"));
    }

    #[test]
    fn events_see_no_gaps() {
        let seen = vec![ran("norm", 0.0, 2.0), ran("gemv", 2.0, 3.0), ran("gemv", 5.0, 1.0)];
        let step = Step::Prefill { rows: 9 };
        let timeline = Timeline::join(step, ("events", false), seen, &kernel_costs(), &Ceilings::default()).unwrap();
        assert_eq!((timeline.idle_us(), timeline.of_limit()), (None, None));
        assert!(timeline.summary().contains("gaps not seen"));
        assert!(timeline.rows().iter().all(|row| !row.values.contains_key("gap_us") && row.of_limit.is_none()));
    }
}
