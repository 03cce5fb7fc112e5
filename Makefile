# The two commands of README.md, what CI adds to them, and what is given away.

.PHONY: run test lint bench package dist wheel

# Build, and let the bundled model write some code.
run:
	cargo run --release --quiet -- generate --echo 'def fibonacci(n):'

# Every test: the whole workspace, then, of the bare library that an embedder gets, its own tests and the engine's. The kernels are compiled for GPUs and
# run on the interpreter: that takes nvcc, fetched into .cuda/ where there is none (300 MB, once), and no GPU.
test:
	tools/install-nvcc --if-missing
	cargo test --workspace
	cargo test --no-default-features --lib --test engine --test layering

lint:
	cargo fmt --all --check
	tools/format-kernels --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps
	cargo check --quiet --no-default-features
	cargo check --quiet --no-default-features --features cli

bench:
	cargo bench --bench cpu_decode

# The crates as crates.io takes them, checked: size, files, and that they compile away from here.
package:
	tools/dist/package

# dist/: a tarball with the binary for any Linux from glibc 2.28 on, and a Python wheel that carries the same binary.
dist:
	tools/dist/build

wheel:
	tools/dist/build wheel
