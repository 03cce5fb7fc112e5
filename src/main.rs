//! The `rigel` command. Everything it does is in [`cli`].

#[deny(unsafe_code)]
mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
