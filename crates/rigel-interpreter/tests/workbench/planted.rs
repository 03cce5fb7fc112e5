//! Planted bugs: kernels of crates/rigel-interpreter/planted/ with one bug each, and what the report must say.

use rigel_interpreter::AsyncPolicy;

use crate::workbench::Bench;

/// A planted bug: the marker in the kernel file names the lines.
pub struct Bug {
    /// The file in crates/rigel-interpreter/planted/.
    pub file: &'static str,
    /// The text after `// BUG ` and, where a second line is to blame, after `// PARTNER `.
    pub marker: &'static str,
    /// Words of the report that name the check.
    pub says: &'static [&'static str],
}

/// "crates/rigel-interpreter/planted/memory.cu:8" for the line with this comment, if there is one.
fn line_of(file: &str, comment: &str) -> Option<String> {
    let path = format!("{}/planted/{file}", env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(&path).expect("the planted kernel file");
    let number = source.lines().position(|line| line.ends_with(comment))? + 1;
    Some(format!("crates/rigel-interpreter/planted/{file}:{number}"))
}

/// The seeds and policies under which every bug must be found and no correct kernel suspected.
pub fn every_schedule() -> impl Iterator<Item = (u64, AsyncPolicy)> {
    let policies = [AsyncPolicy::Late, AsyncPolicy::Eager, AsyncPolicy::Random];
    (0..8).flat_map(move |seed| policies.map(|policy| (seed, policy)))
}

/// Runs the launches under every schedule; each time the bug must be found and named: the check, the kernel, a block and
/// thread, and the source lines.
pub fn expect_found(bug: &Bug, launches: impl Fn(&Bench)) {
    let lines: Vec<String> = ["// BUG ", "// PARTNER "]
        .iter()
        .filter_map(|kind| line_of(bug.file, &format!("{kind}{}", bug.marker)))
        .collect();
    assert!(!lines.is_empty(), "{}: no line is marked {:?}", bug.file, bug.marker);
    for (seed, policy) in every_schedule() {
        let bench = Bench::open(&[0; 64]);
        let interpreter = Bench::interpreter();
        interpreter.set_seed(seed);
        interpreter.set_async(policy);
        launches(&bench);
        let outcome = bench.context.synchronize();
        let reports = interpreter.take_reports();
        let context = format!("{} with seed {seed}, {policy:?}", bug.marker);
        assert!(outcome.is_err(), "{context}: the bug was not found");
        assert_eq!(reports.len(), 1, "{context}: {reports:#?}");
        let all_there = bug.says.iter().copied().chain(lines.iter().map(String::as_str)).chain(["block (", "thread"]);
        for expected in all_there {
            assert!(reports[0].contains(expected), "{context}: no {expected:?} in the report:\n{}", reports[0]);
        }
    }
}

/// Runs the launches under every schedule; no check may fail.
pub fn expect_clean(name: &str, launches: impl Fn(&Bench)) {
    for (seed, policy) in every_schedule() {
        let bench = Bench::open(&[0; 64]);
        let interpreter = Bench::interpreter();
        interpreter.set_seed(seed);
        interpreter.set_async(policy);
        launches(&bench);
        let outcome = bench.context.synchronize();
        let reports = interpreter.take_reports();
        assert!(outcome.is_ok() && reports.is_empty(), "{name} with seed {seed}, {policy:?}: {reports:#?}");
    }
}
