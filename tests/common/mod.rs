//! What the kernel tests share: a device (the interpreter, or with `RIGEL_TEST_DEVICE=cuda` a real GPU), a process for
//! each test, schedules, counted bytes, random numbers and bounds.

// Each test binary uses its part.
#![allow(dead_code)]

// The goldens' helpers, which some binaries have beside these, have it too.
#[allow(clippy::duplicate_mod)]
mod root;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use rigel::backend::cuda::kernels::Element;
use rigel::backend::cuda::kernels::ceilings::Ceilings;
use rigel::backend::cuda::{Buffer, CudaError, Device, Image, Slice, Stream, Work};
use rigel::checkpoint::{Checkpoint, ModelSource};
use rigel::model::ModelSpec;
use rigel_interpreter::{AsyncPolicy, DeviceProfile, Interpreter, LaunchCounters};

/// Set in the process that runs one test's body.
const CHILD: &str = "RIGEL_TEST_CHILD";

/// Runs `body` in a process of its own: a kernel's fault poisons a GPU's context for its whole process. `test` is the
/// name of the test function that calls this.
pub fn in_own_process(test: &str, body: impl FnOnce()) {
    in_own_process_with(test, &[], body);
}

/// The same, where the process has these environment variables.
pub fn in_own_process_with(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) {
    if env::var(CHILD).is_ok_and(|child| child == test) {
        return body();
    }
    let program = env::current_exe().expect("the test binary's own path");
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture"]).env(CHILD, test).envs(variables.iter().copied());
    let output = command.output().expect("the test binary starts again");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test} in a process of its own: {}\n{out}\n{err}", output.status);
    assert!(out.contains("1 passed"), "{test}: no such test in its own process\n{out}");
    // For --nocapture: what the body had to say.
    print!("{out}");
}

/// The name of a test function as the test binary lists it: with its module.
macro_rules! test_name {
    ($name:ident) => {
        concat!(module_path!(), "::", stringify!($name)).split_once("::").map_or("", |(_, name)| name)
    };
}

/// A test of kernels, in a process of its own; skipped by name where there are none.
macro_rules! device_test {
    ($(#[$attribute:meta])* fn $name:ident() $body:block) => {
        #[test]
        $(#[$attribute])*
        fn $name() {
            if rigel::backend::cuda::images().is_empty() {
                eprintln!("{}: skipped, this build has no kernels; run tools/install-nvcc", stringify!($name));
                return;
            }
            crate::common::in_own_process(test_name!($name), || $body);
        }
    };
}

/// The root of the repository, or what stands for it.
pub fn root() -> PathBuf {
    root::root()
}

/// `kernels/conformance/<file>.cu`, compiled: no part of the binary, read from where build.rs left it.
pub fn conformance_image(file: &'static str) -> Image {
    conformance_image_for(file, &["sm_80", "compute_80", "sm_90"])
}

/// The same, of a file that names these targets.
pub fn conformance_image_for(file: &'static str, targets: &'static [&'static str]) -> Image {
    let path = root::conformance_fatbin(file);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Image { name: file, targets, fatbin: for_ever(&bytes) }
}

/// The checkpoint in `directory`, and the network that it is.
pub fn open(directory: &Path) -> (Checkpoint, ModelSpec) {
    let checkpoint = Checkpoint::open(&ModelSource::directory(directory).unwrap()).unwrap();
    let mut spec = ModelSpec::from_checkpoint(&checkpoint).unwrap();
    spec.untie_stored_head(&checkpoint);
    (checkpoint, spec)
}

/// The checkpoint `tests/goldens/<name>`, and the network that it is.
pub fn golden(name: &str) -> (Checkpoint, ModelSpec) {
    open(&root().join("tests/goldens").join(name))
}

/// Whether this test needs what the interpreter alone can do, and runs on a GPU: it says so then and ends.
pub fn skipped_on_a_gpu(test: &str, needs: &str) -> bool {
    let skipped = env::var("RIGEL_TEST_DEVICE").is_ok_and(|device| device == "cuda");
    if skipped {
        println!("{test}: skipped on a GPU, it needs {needs}");
    }
    skipped
}

/// Whether this test needs compute capability 9.0, and runs on a GPU that has another: it says so then and ends.
pub fn skipped_before_hopper(what: &str) -> bool {
    let on_gpu = env::var("RIGEL_TEST_DEVICE").is_ok_and(|device| device == "cuda");
    let skipped = on_gpu && Bench::open(None).device().properties().compute_capability.major != 9;
    if skipped {
        println!("skipped: {what} needs compute capability 9.0");
    }
    skipped
}

/// A device of compute capability 9.0, for tests of what fails there: the interpreter's reports are theirs to look at.
pub fn hopper_bench() -> Bench {
    if env::var("RIGEL_TEST_DEVICE").is_ok_and(|device| device == "cuda") {
        return Bench::open(None);
    }
    let interpreter = Interpreter::load();
    interpreter.set_device(DeviceProfile::Sm90);
    Bench::open(Some(interpreter))
}

/// That `compute` gives the same bits again and again, while another stream keeps single SMs busy for varying times: so
/// often as `RIGEL_TEST_REPEATS` says on a GPU, a few times on the interpreter.
pub fn assert_same_bits_however_often(bench: &Bench, mut compute: impl FnMut() -> Vec<u16>) {
    let times = match bench.interpreter() {
        Some(_) => 2,
        None => env::var("RIGEL_TEST_REPEATS").ok().and_then(|times| times.parse().ok()).unwrap_or(2000),
    };
    let beside = bench.device().stream().expect("a stream");
    let ceilings = Ceilings::load(bench.device()).expect("kernels");
    let mut passed = beside.zeroed::<u64>(2).expect("memory");
    beside.synchronize().expect("the zeros");
    let mut random = Random(3);
    let first = compute();
    for time in 0..times {
        ceilings.wait_and_count(&beside, 1 + random.bits() % 30_000, passed.view_mut()).expect("a launch");
        assert!(compute() == first, "other bits the {time}th time");
    }
    beside.synchronize().expect("the other stream's work");
}

/// A copy aligned for the driver's 8-byte words, which lives as long as the process.
pub fn for_ever(bytes: &[u8]) -> &'static [u8] {
    let mut aligned = vec![0u64; bytes.len().div_ceil(8)];
    bytemuck::cast_slice_mut::<u64, u8>(&mut aligned)[..bytes.len()].copy_from_slice(bytes);
    &bytemuck::cast_slice(Vec::leak(aligned))[..bytes.len()]
}

/// A stream to test on, and what watches it.
pub struct Bench {
    pub stream: Stream,
    interpreter: Option<&'static Interpreter>,
}

/// One way to run a kernel on the interpreter.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    pub profile: DeviceProfile,
    pub seed: u64,
    pub policy: AsyncPolicy,
}

/// Both generations, three orders of blocks and threads, three habits of asynchronous copies; no more of the
/// combinations than meet each pair once.
const SCHEDULES: [Schedule; 6] = [
    Schedule { profile: DeviceProfile::Sm80, seed: 1, policy: AsyncPolicy::Late },
    Schedule { profile: DeviceProfile::Sm90, seed: 2, policy: AsyncPolicy::Late },
    Schedule { profile: DeviceProfile::Sm86, seed: 3, policy: AsyncPolicy::Eager },
    Schedule { profile: DeviceProfile::Sm90, seed: 1, policy: AsyncPolicy::Eager },
    Schedule { profile: DeviceProfile::Sm80, seed: 2, policy: AsyncPolicy::Random },
    Schedule { profile: DeviceProfile::Sm90, seed: 3, policy: AsyncPolicy::Random },
];

/// Three orders and three habits on compute capability 9.0, for kernels that run on nothing else.
const HOPPER_SCHEDULES: [Schedule; 3] = [
    Schedule { profile: DeviceProfile::Sm90, seed: 2, policy: AsyncPolicy::Late },
    Schedule { profile: DeviceProfile::Sm90, seed: 1, policy: AsyncPolicy::Eager },
    Schedule { profile: DeviceProfile::Sm90, seed: 3, policy: AsyncPolicy::Random },
];

/// Calls `body` with a fresh device under every schedule; on a real GPU once.
pub fn on_every_schedule(body: impl Fn(&Bench)) {
    if env::var("RIGEL_TEST_DEVICE").is_ok_and(|device| device == "cuda") {
        return body(&Bench::open(None));
    }
    on_schedules(&SCHEDULES, body);
}

/// Calls `body` with a fresh device of compute capability 9.0 under every schedule that has one; on a real GPU once,
/// where it is one.
pub fn on_every_hopper_schedule(body: impl Fn(&Bench)) {
    if env::var("RIGEL_TEST_DEVICE").is_ok_and(|device| device == "cuda") {
        let bench = Bench::open(None);
        match bench.device().properties().compute_capability.major {
            9 => body(&bench),
            _ => println!("skipped: the GPU is no Hopper"),
        }
        return;
    }
    on_schedules(&HOPPER_SCHEDULES, body);
}

/// Calls `body` with a fresh device under one schedule, for whole models; on a real GPU once.
pub fn on_one_schedule(body: impl Fn(&Bench)) {
    if env::var("RIGEL_TEST_DEVICE").is_ok_and(|device| device == "cuda") {
        return body(&Bench::open(None));
    }
    on_schedules(&SCHEDULES[1..2], body);
}

fn on_schedules(schedules: &[Schedule], body: impl Fn(&Bench)) {
    let interpreter = Interpreter::load();
    for schedule in schedules {
        eprintln!("{schedule:?}");
        interpreter.set_device(schedule.profile);
        interpreter.set_seed(schedule.seed);
        interpreter.set_async(schedule.policy);
        body(&Bench::open(Some(interpreter)));
        assert_eq!(interpreter.reports(), Vec::<String>::new(), "the interpreter's reports under {schedule:?}");
    }
}

impl Bench {
    pub fn open(interpreter: Option<&'static Interpreter>) -> Bench {
        let device = Device::open(0).expect("a device");
        Bench { stream: device.stream().expect("a stream"), interpreter }
    }

    /// The interpreter, where it is what runs the kernels.
    pub fn interpreter(&self) -> Option<&'static Interpreter> {
        self.interpreter
    }

    pub fn device(&self) -> &Device {
        self.stream.device()
    }

    pub fn upload<T: Element>(&self, values: &[T]) -> Buffer<T> {
        self.stream.upload(values).expect("an upload")
    }

    /// A buffer whose every element is NaN.
    pub fn poisoned<T: Element>(&self, len: usize) -> Buffer<T> {
        let mut buffer = self.stream.alloc(len).expect("memory");
        self.stream.fill_bytes(buffer.view_mut(), 0xff).expect("a fill");
        buffer
    }

    pub fn download<T: Element>(&self, values: Slice<'_, T>) -> Vec<T> {
        self.stream.download(values).expect("the work so far")
    }

    /// What the interpreter counted of the last launch; nothing on a real GPU.
    pub fn last_launch(&self) -> Option<LaunchCounters> {
        self.interpreter.and_then(|interpreter| interpreter.counters().pop())
    }

    /// That `step`, done three times to `start`, leaves the same bits in it whether each is waited for, all are given
    /// to the stream at once, or a recording of it is replayed; and that it changes it.
    pub fn assert_same_however_launched<T: Half>(
        &self,
        start: &[T],
        mut step: impl FnMut(&mut Buffer<T>) -> Result<(), CudaError>,
    ) {
        let bits = |buffer: &Buffer<T>| bytemuck::cast_slice::<T, u16>(&self.download(buffer.view())).to_vec();
        let mut state = self.upload(start);
        for _ in 0..3 {
            step(&mut state).unwrap();
            self.stream.synchronize().unwrap();
        }
        let waited = bits(&state);
        assert!(waited != bytemuck::cast_slice::<T, u16>(start), "nothing has happened");

        self.stream.copy_from_host(start, state.view_mut()).unwrap();
        for _ in 0..3 {
            step(&mut state).unwrap();
        }
        assert!(bits(&state) == waited, "launched one after the other");

        self.stream.copy_from_host(start, state.view_mut()).unwrap();
        let graph = self.stream.capture(|| step(&mut state)).unwrap();
        graph.upload().unwrap();
        for _ in 0..3 {
            graph.launch().unwrap();
        }
        assert!(bits(&state) == waited, "replayed");
    }

    /// Runs one launch and, on the interpreter, holds the bytes that it moved against `declared`, within 2 %.
    pub fn run(&self, declared: Work, launch: impl FnOnce() -> Result<(), CudaError>) {
        self.run_all(&[declared], launch);
    }

    /// The same of some launches.
    pub fn run_all(&self, declared: &[Work], launch: impl FnOnce() -> Result<(), CudaError>) {
        self.stream.synchronize().expect("the work before");
        if let Some(interpreter) = self.interpreter {
            interpreter.clear_counters();
        }
        launch().expect("a launch");
        self.stream.synchronize().expect("the launch to run");
        let Some(interpreter) = self.interpreter else { return };
        let counters = interpreter.counters();
        assert_eq!(counters.len(), declared.len(), "launches counted");
        for (launch, declared) in counters.iter().zip(declared) {
            for (what, counted, declared) in [
                ("read", launch.bytes_read, declared.bytes_read),
                ("written", launch.bytes_written, declared.bytes_written),
            ] {
                let off = counted.abs_diff(declared) as f64;
                let kernel = &launch.kernel;
                assert!(off <= 0.02 * declared as f64, "{kernel}: {counted} bytes {what}, {declared} declared");
            }
        }
    }
}

/// Numbers that look random and are the same in every run (SplitMix64, Steele et al. 2014).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From -1 to 1.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// `len` elements, uniform in `middle ± spread`.
    pub fn elements<T: Half>(&mut self, len: usize, middle: f64, spread: f64) -> Vec<T> {
        (0..len).map(|_| T::from_f64(middle + spread * self.uniform())).collect()
    }
}

/// What the references need of an element type.
pub trait Half: Element + std::fmt::Debug + PartialEq {
    /// The largest relative error of one rounding: half a unit in the last place of 1.
    const ROUNDING: f64;
    fn from_f64(value: f64) -> Self;
    fn f64(self) -> f64;
}

impl Half for half::bf16 {
    const ROUNDING: f64 = 1.0 / 256.0;
    fn from_f64(value: f64) -> Self {
        half::bf16::from_f64(value)
    }
    fn f64(self) -> f64 {
        self.to_f64()
    }
}

impl Half for half::f16 {
    const ROUNDING: f64 = 1.0 / 2048.0;
    fn from_f64(value: f64) -> Self {
        half::f16::from_f64(value)
    }
    fn f64(self) -> f64 {
        self.to_f64()
    }
}

/// Every element within one rounding of its expected value, plus `slack` for the f32 arithmetic before it. NaN, such
/// as an element that was never written, is not.
pub fn assert_close<T: Half>(found: &[T], expected: &[f64], slack: impl Fn(usize) -> f64, place: &str) {
    assert_eq!(found.len(), expected.len(), "{place}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        // f16 loses relative precision below 2^-14: half its smallest step is 2^-25.
        let bound = expected.abs() * T::ROUNDING * 1.001 + 2f64.powi(-25) + slack(index);
        let error = (found.f64() - expected).abs();
        assert!(error <= bound, "{place}, element {index}: {found:?}, expected {expected} ± {bound:e}");
    }
}
