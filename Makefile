# The two commands of README.md, and what CI adds to them.

.PHONY: run test lint bench

# Build, and let the bundled model write some code.
run:
	cargo run --release --quiet -- generate 'def fibonacci(n):'

# Every test: the whole crate, then the bare library that an embedder gets.
test:
	cargo test
	cargo test --no-default-features --lib --tests

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps

bench:
	cargo bench --bench cpu_decode
