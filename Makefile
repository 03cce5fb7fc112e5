# The two commands of README.md, and what CI adds to them.

.PHONY: run test lint bench

# Build, and let the bundled model write some code.
run:
	cargo run --release --quiet -- generate 'def fibonacci(n):'

# Every test: the whole workspace, then, of the bare library that an embedder gets, its own tests and the engine's. The kernels are compiled for GPUs and
# run on the interpreter: that takes nvcc, fetched into .cuda/ where there is none (300 MB, once), and no GPU.
test:
	tools/install-nvcc --if-missing
	cargo test --workspace
	cargo test --no-default-features --lib --test engine --test floors

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps

bench:
	cargo bench --bench cpu_decode
