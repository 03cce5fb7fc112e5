//! What can be switched off or chosen by name on a GPU, to find out which part is at fault: the variables
//! `RIGEL_CUDA_…`. They are read here and nowhere else, when a [`Device`](super::Device) is opened. docs/cuda.md lists
//! them.

use std::env;
use std::fmt;

use super::device::Properties;
use super::error::{CudaError, SwitchError};
use super::kernels::{attention_decode, attention_prefill, gemm_sm90, gemm_small_m_sm90, gemv, gemv_normed};
use super::launch::Launch;
use crate::backend::Determinism;

/// What a [`Device`](super::Device) does differently from its defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switches {
    /// `RIGEL_CUDA_SYNC`: every launch is waited for, so that the kernel that fails is named. No CUDA graphs then.
    pub synchronous: bool,
    /// `RIGEL_CUDA_PDL`: programmatic dependent launch, where the GPU has it.
    pub programmatic_launch: bool,
    /// `RIGEL_CUDA_GRAPHS`: decode steps are captured as CUDA graphs.
    pub graphs: bool,
    /// `RIGEL_CUDA_CARVEOUT`: the shared memory that every launch prefers, in percent of an SM's; `None` if
    /// the driver chooses for each kernel.
    pub carveout: Option<u32>,
    /// The algorithms that are chosen by name.
    pub algorithms: Algorithms,
}

impl Default for Switches {
    fn default() -> Switches {
        Switches {
            synchronous: false,
            programmatic_launch: true,
            graphs: true,
            carveout: None,
            algorithms: Algorithms::default(),
        }
    }
}

/// The algorithms that are chosen by name. `None` if the shape and the GPU choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Algorithms {
    /// `RIGEL_CUDA_GEMV`: linear layers of up to [`gemv::MAX_ROWS`] rows.
    pub gemv: Option<LinearAlgorithm>,
    /// `RIGEL_CUDA_GEMM`: linear layers of more rows.
    pub gemm: Option<LinearAlgorithm>,
    /// `RIGEL_CUDA_ATTENTION_DECODE`: attention of sequences with one row.
    pub decode: Option<AttentionAlgorithm>,
    /// `RIGEL_CUDA_ATTENTION_PREFILL`: attention of sequences with more rows.
    pub prefill: Option<AttentionAlgorithm>,
}

/// An algorithm for linear layers, by its kernel file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearAlgorithm {
    /// `gemv_normed.cu` behind a norm for one or two rows, `gemv.cu` elsewhere.
    GemvNormed,
    /// `gemv.cu`, with norms apart.
    Gemv,
    /// `gemm_small_m_sm90.cu`.
    SmallM,
    /// `gemm_sm90.cu`.
    Sm90,
    /// `gemm_sm80.cu`.
    Sm80,
}

/// An algorithm for attention, by its kernel file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionAlgorithm {
    /// `attention_decode.cu`, `attention_prefill.cu`.
    Sm80,
    /// `attention_decode_sm90.cu`, `attention_prefill_sm90.cu`.
    Sm90,
    /// `attention_batch_invariant.cu`, which computes rows of both kinds.
    BatchInvariant,
}

/// One variable: its name, the values that it takes, the first of them being the default, and what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// `RIGEL_CUDA_PDL`
    pub variable: &'static str,
    /// All values, the default first.
    pub values: &'static [&'static str],
    /// One line for a person.
    pub effect: &'static str,
}

/// Stands for any whole number from 0 to 100 among the values of a switch.
const PERCENT: &str = "0 to 100";

/// All of them, in the order of [`Switches::settings`].
pub const SWITCHES: [Switch; 8] = [
    Switch { variable: "RIGEL_CUDA_SYNC", values: &["0", "1"], effect: "1 waits for every launch" },
    Switch { variable: "RIGEL_CUDA_PDL", values: &["1", "0"], effect: "0 starts each kernel once the last has ended" },
    Switch { variable: "RIGEL_CUDA_GRAPHS", values: &["1", "0"], effect: "0 launches decode steps kernel by kernel" },
    Switch {
        variable: "RIGEL_CUDA_CARVEOUT",
        values: &["auto", PERCENT],
        effect: "shared memory of an SM in percent, for every kernel",
    },
    Switch {
        variable: "RIGEL_CUDA_GEMV",
        values: &["auto", "gemv_normed", "gemv", "small_m", "sm90", "sm80"],
        effect: "linear layers of 1 to 16 rows",
    },
    Switch {
        variable: "RIGEL_CUDA_GEMM",
        values: &["auto", "small_m", "sm90", "sm80"],
        effect: "linear layers of 17 rows and more",
    },
    Switch {
        variable: "RIGEL_CUDA_ATTENTION_DECODE",
        values: &["auto", "sm80", "sm90", "batch_invariant"],
        effect: "attention of one row a sequence",
    },
    Switch {
        variable: "RIGEL_CUDA_ATTENTION_PREFILL",
        values: &["auto", "sm80", "sm90", "batch_invariant"],
        effect: "attention of more rows a sequence",
    },
];

/// The value of a variable, with what is not UTF-8 in it replaced.
fn env_value(variable: &str) -> Option<String> {
    env::var_os(variable).map(|value| value.to_string_lossy().into_owned())
}

impl Switch {
    /// The value that is chosen: the one that was `set`, or the default where that is empty or nothing.
    fn chosen(&self, set: Option<String>) -> Result<String, SwitchError> {
        let Switch { variable, values, .. } = *self;
        let found = set.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let found = found.unwrap_or_else(|| values[0].to_owned());
        let percent = || found.parse().is_ok_and(|percent: u32| percent <= 100);
        if values.iter().any(|value| if *value == PERCENT { percent() } else { *value == found }) {
            Ok(found)
        } else {
            Err(SwitchError { variable, found, allowed: values })
        }
    }
}

impl Switches {
    /// What the environment says. A variable that is empty or not set has its default.
    ///
    /// # Errors
    /// [`SwitchError`] for a value that a variable does not take.
    pub fn from_env() -> Result<Switches, SwitchError> {
        Switches::from_values(env_value)
    }

    /// What is wrong with the environment's variables: every one with a value that it does not take.
    pub fn env_errors() -> Vec<SwitchError> {
        SWITCHES.iter().filter_map(|switch| switch.chosen(env_value(switch.variable)).err()).collect()
    }

    /// The same, of what `value` says of each variable.
    fn from_values(value: impl Fn(&str) -> Option<String>) -> Result<Switches, SwitchError> {
        let chosen = |index: usize| SWITCHES[index].chosen(value(SWITCHES[index].variable));
        Ok(Switches {
            synchronous: chosen(0)? == "1",
            programmatic_launch: chosen(1)? == "1",
            graphs: chosen(2)? == "1",
            carveout: chosen(3)?.parse().ok(),
            algorithms: Algorithms {
                gemv: LinearAlgorithm::from_name(&chosen(4)?),
                gemm: LinearAlgorithm::from_name(&chosen(5)?),
                decode: AttentionAlgorithm::from_name(&chosen(6)?),
                prefill: AttentionAlgorithm::from_name(&chosen(7)?),
            },
        })
    }

    /// Each variable with the value that means what is set here.
    pub fn settings(&self) -> [(Switch, String); SWITCHES.len()] {
        let on = |on: bool| if on { "1" } else { "0" }.to_owned();
        let auto = |name: Option<&str>| name.unwrap_or("auto").to_owned();
        let Algorithms { gemv, gemm, decode, prefill } = self.algorithms;
        let values = [
            on(self.synchronous),
            on(self.programmatic_launch),
            on(self.graphs),
            self.carveout.map_or_else(|| auto(None), |percent| percent.to_string()),
            auto(gemv.map(LinearAlgorithm::name)),
            auto(gemm.map(LinearAlgorithm::name)),
            auto(decode.map(AttentionAlgorithm::name)),
            auto(prefill.map(AttentionAlgorithm::name)),
        ];
        let mut index = 0;
        values.map(|value| {
            index += 1;
            (SWITCHES[index - 1], value)
        })
    }
}

impl LinearAlgorithm {
    const ALL: [LinearAlgorithm; 5] = [
        LinearAlgorithm::GemvNormed,
        LinearAlgorithm::Gemv,
        LinearAlgorithm::SmallM,
        LinearAlgorithm::Sm90,
        LinearAlgorithm::Sm80,
    ];

    /// Its name as a value of a switch.
    pub fn name(self) -> &'static str {
        match self {
            LinearAlgorithm::GemvNormed => "gemv_normed",
            LinearAlgorithm::Gemv => "gemv",
            LinearAlgorithm::SmallM => "small_m",
            LinearAlgorithm::Sm90 => "sm90",
            LinearAlgorithm::Sm80 => "sm80",
        }
    }

    fn from_name(name: &str) -> Option<LinearAlgorithm> {
        LinearAlgorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    fn runs_on(self, device: &Properties) -> bool {
        match self {
            LinearAlgorithm::GemvNormed | LinearAlgorithm::Gemv | LinearAlgorithm::Sm80 => true,
            LinearAlgorithm::SmallM => gemm_small_m_sm90::runs_on(device),
            LinearAlgorithm::Sm90 => gemm_sm90::runs_on(device),
        }
    }

    /// The most rows that it takes.
    fn max_rows(self) -> usize {
        match self {
            LinearAlgorithm::GemvNormed | LinearAlgorithm::Gemv => gemv::MAX_ROWS,
            LinearAlgorithm::SmallM => gemm_small_m_sm90::MAX_ROWS,
            LinearAlgorithm::Sm90 | LinearAlgorithm::Sm80 => usize::MAX,
        }
    }
}

impl AttentionAlgorithm {
    const ALL: [AttentionAlgorithm; 3] =
        [AttentionAlgorithm::Sm80, AttentionAlgorithm::Sm90, AttentionAlgorithm::BatchInvariant];

    /// Its name as a value of a switch.
    pub fn name(self) -> &'static str {
        match self {
            AttentionAlgorithm::Sm80 => "sm80",
            AttentionAlgorithm::Sm90 => "sm90",
            AttentionAlgorithm::BatchInvariant => "batch_invariant",
        }
    }

    fn from_name(name: &str) -> Option<AttentionAlgorithm> {
        AttentionAlgorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

impl Algorithms {
    /// What linear layers of so many rows are computed by, where that was chosen by name.
    pub fn linear(&self, rows: usize) -> Option<LinearAlgorithm> {
        if rows <= gemv::MAX_ROWS { self.gemv } else { self.gemm }
    }

    /// Whether one or two rows may take the norm ahead of them along.
    pub(super) fn fuses_norm(&self) -> bool {
        matches!(self.gemv, None | Some(LinearAlgorithm::GemvNormed))
    }

    /// Whether batch-invariant attention computes all rows.
    pub(super) fn is_batch_invariant(&self) -> bool {
        self.decode == Some(AttentionAlgorithm::BatchInvariant)
    }

    /// That they run on the device.
    ///
    /// # Errors
    /// [`CudaError::Algorithm`].
    pub(super) fn check_device(&self, device: &Properties) -> Result<(), CudaError> {
        let found = device.compute_capability;
        let needs_hopper = |variable, name| {
            let reason = format!("it needs compute capability 9.0, and a build for it; this GPU has {found}");
            Err(CudaError::Algorithm { switch: format!("{variable}={name}"), reason })
        };
        for (variable, algorithm) in [("RIGEL_CUDA_GEMV", self.gemv), ("RIGEL_CUDA_GEMM", self.gemm)] {
            if let Some(algorithm) = algorithm.filter(|algorithm| !algorithm.runs_on(device)) {
                return needs_hopper(variable, algorithm.name());
            }
        }
        let (decode, prefill) = ("RIGEL_CUDA_ATTENTION_DECODE", "RIGEL_CUDA_ATTENTION_PREFILL");
        if self.decode == Some(AttentionAlgorithm::Sm90) && !attention_decode::has_clusters(device) {
            return needs_hopper(decode, "sm90");
        }
        if self.prefill == Some(AttentionAlgorithm::Sm90) && !attention_prefill::has_warpgroups(device) {
            return needs_hopper(prefill, "sm90");
        }
        let is_batch_invariant = |algorithm| algorithm == Some(AttentionAlgorithm::BatchInvariant);
        if is_batch_invariant(self.decode) != is_batch_invariant(self.prefill) {
            let (one, other) = if is_batch_invariant(self.decode) { (decode, prefill) } else { (prefill, decode) };
            let reason = format!("one kernel computes all rows; set {other}=batch_invariant too");
            return Err(CudaError::Algorithm { switch: format!("{one}=batch_invariant"), reason });
        }
        Ok(())
    }

    /// That they compute a network whose hidden states have `width` elements, with these demands on its determinism.
    ///
    /// # Errors
    /// [`CudaError::Algorithm`].
    pub(super) fn check_network(&self, determinism: Determinism, width: usize) -> Result<(), CudaError> {
        if determinism == Determinism::BatchInvariant {
            let names = [
                self.gemv.filter(|it| *it != LinearAlgorithm::Sm80).map(|it| ("RIGEL_CUDA_GEMV", it.name(), "sm80")),
                self.gemm.filter(|it| *it != LinearAlgorithm::Sm80).map(|it| ("RIGEL_CUDA_GEMM", it.name(), "sm80")),
                self.decode
                    .filter(|it| *it != AttentionAlgorithm::BatchInvariant)
                    .map(|it| ("RIGEL_CUDA_ATTENTION_DECODE", it.name(), "batch_invariant")),
                self.prefill
                    .filter(|it| *it != AttentionAlgorithm::BatchInvariant)
                    .map(|it| ("RIGEL_CUDA_ATTENTION_PREFILL", it.name(), "batch_invariant")),
            ];
            if let Some((variable, name, only)) = names.into_iter().flatten().next() {
                let reason = format!("batch-invariant arithmetic takes {only} alone");
                return Err(CudaError::Algorithm { switch: format!("{variable}={name}"), reason });
            }
        }
        if self.gemv == Some(LinearAlgorithm::GemvNormed) && width > gemv_normed::MAX_WIDTH {
            let reason = format!("hidden_size is {width}, it takes {} at most", gemv_normed::MAX_WIDTH);
            return Err(CudaError::Algorithm { switch: "RIGEL_CUDA_GEMV=gemv_normed".to_owned(), reason });
        }
        Ok(())
    }

    /// That linear layers of so many rows can be computed.
    ///
    /// # Errors
    /// [`CudaError::Algorithm`].
    pub(super) fn check_rows(&self, rows: usize) -> Result<(), CudaError> {
        match self.linear(rows) {
            Some(algorithm) if rows > algorithm.max_rows() => {
                let variable = if rows <= gemv::MAX_ROWS { "RIGEL_CUDA_GEMV" } else { "RIGEL_CUDA_GEMM" };
                let reason = format!(
                    "a linear layer has {rows} rows, it takes {} at most; compute prompts in chunks of no more",
                    algorithm.max_rows()
                );
                Err(CudaError::Algorithm { switch: format!("{variable}={}", algorithm.name()), reason })
            }
            _ => Ok(()),
        }
    }
}

/// A launch in words, for errors.
pub(super) struct Described<'a>(pub(super) &'a Launch);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Launch { grid, block, cluster, shared_bytes, .. } = self.0;
        write!(f, "grid {grid:?} of {block:?} threads, {shared_bytes} bytes of shared memory")?;
        if *cluster == [1, 1, 1] { Ok(()) } else { write!(f, ", clusters of {cluster:?} blocks") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Switches, String> {
        let value = |variable: &str| pairs.iter().find(|(name, _)| *name == variable).map(|(_, v)| (*v).to_owned());
        Switches::from_values(value).map_err(|error| error.to_string())
    }

    #[test]
    fn unset_and_empty_variables_are_the_defaults() {
        assert_eq!(of(&[]), Ok(Switches::default()));
        assert_eq!(of(&[("RIGEL_CUDA_PDL", ""), ("RIGEL_CUDA_GEMM", " ")]), Ok(Switches::default()));
        for ((switch, value), first) in Switches::default().settings().into_iter().zip(SWITCHES) {
            assert_eq!((switch, value.as_str()), (first, first.values[0]));
        }
    }

    #[test]
    fn every_value_of_every_variable_is_taken_and_shown_again() {
        for (index, Switch { variable, values, .. }) in SWITCHES.into_iter().enumerate() {
            for value in values {
                let value = if *value == PERCENT { "57" } else { value };
                let switches = of(&[(variable, value)]).unwrap();
                assert_eq!(switches.settings()[index].1, value, "{variable}");
                // No other variable is touched by it.
                let others = switches.settings().into_iter().enumerate().filter(|(other, _)| *other != index);
                assert!(others.into_iter().all(|(_, (switch, value))| value == switch.values[0]), "{variable}={value}");
            }
        }
    }

    #[test]
    fn a_wrong_value_is_one_line_that_lists_the_right_ones() {
        let refused = |variable, value| of(&[(variable, value)]).unwrap_err();
        assert_eq!(refused("RIGEL_CUDA_PDL", "off"), "RIGEL_CUDA_PDL=off: expected 1 or 0");
        assert_eq!(refused("RIGEL_CUDA_CARVEOUT", "101"), "RIGEL_CUDA_CARVEOUT=101: expected auto or 0 to 100");
        assert_eq!(refused("RIGEL_CUDA_CARVEOUT", "-1"), "RIGEL_CUDA_CARVEOUT=-1: expected auto or 0 to 100");
        assert_eq!(refused("RIGEL_CUDA_GEMM", "gemv"), "RIGEL_CUDA_GEMM=gemv: expected auto, small_m, sm90 or sm80");
        assert_eq!(
            refused("RIGEL_CUDA_ATTENTION_DECODE", "SM90"),
            "RIGEL_CUDA_ATTENTION_DECODE=SM90: expected auto, sm80, sm90 or batch_invariant"
        );
    }

    #[test]
    fn what_cannot_be_computed_so_is_said() {
        let error = |algorithms: Algorithms, width| {
            let invariant = algorithms.check_network(Determinism::BatchInvariant, width);
            invariant.unwrap_err().to_string()
        };
        let algorithms = Algorithms { gemm: Some(LinearAlgorithm::Sm90), ..Algorithms::default() };
        assert_eq!(
            error(algorithms, 64),
            "RIGEL_CUDA_GEMM=sm90 cannot be used: batch-invariant arithmetic takes sm80 alone; unset it or choose another"
        );
        assert!(algorithms.check_network(Determinism::Fast, 64).is_ok());
        let algorithms = Algorithms { gemv: Some(LinearAlgorithm::GemvNormed), ..Algorithms::default() };
        assert!(algorithms.check_network(Determinism::Fast, gemv_normed::MAX_WIDTH).is_ok());
        let wide = algorithms.check_network(Determinism::Fast, gemv_normed::MAX_WIDTH + 8).unwrap_err().to_string();
        assert!(wide.contains("hidden_size is 8200, it takes 8192 at most"), "{wide}");
        let algorithms = Algorithms { gemm: Some(LinearAlgorithm::SmallM), ..Algorithms::default() };
        assert!(algorithms.check_rows(256).is_ok());
        let many = algorithms.check_rows(257).unwrap_err().to_string();
        assert!(many.starts_with("RIGEL_CUDA_GEMM=small_m cannot be used: a linear layer has 257 rows"), "{many}");
    }

    #[test]
    fn the_documentation_has_every_variable_and_value() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cuda.md");
        let text = std::fs::read_to_string(path).unwrap();
        for Switch { variable, values, .. } in SWITCHES {
            let row = text.lines().find(|line| line.starts_with(&format!("| `{variable}`")));
            let row = row.unwrap_or_else(|| panic!("{variable} has no row in docs/cuda.md"));
            for value in values {
                assert!(row.contains(&format!("`{value}`")), "{variable}: {value} is not in its row: {row}");
            }
        }
    }
}
