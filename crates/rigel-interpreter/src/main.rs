//! Prints where the stand-in driver lies, so that any program can be run on it:
//! `LD_PRELOAD=$(rigel-interpreter) program`.

use std::process::ExitCode;

use rigel_interpreter::LIBRARY;

const HELP: &str = "\
Prints the path of the library that stands in for the CUDA driver, for a machine with no GPU:

    LD_PRELOAD=$(cargo run -q -p rigel-interpreter) rigel doctor

A program that is started so meets it wherever it looks for libcuda.so. It runs Rigel's kernels on the CPU, under
checks: correct and slow. What it plays:

    RIGEL_INTERPRETER_DEVICE   compute capability: 75, 80, 86, 90 (the default), or 0 for no device
    RIGEL_INTERPRETER_DRIVER   CUDA version of the driver: 13000 (the default), or 12040 for an old one
    RIGEL_INTERPRETER_MEMORY   memory in MiB: 4096 (the default)
    RIGEL_INTERPRETER_REFUSE   what a call answers, as a CUresult: cuGraphInstantiateWithFlags=801

docs/interpreter.md in Rigel's repository tells how to read its reports.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => println!("{LIBRARY}"),
        ["--help" | "-h"] => print!("{HELP}"),
        _ => {
            eprintln!("rigel-interpreter takes no arguments but --help; found: {}", arguments.join(" "));
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
