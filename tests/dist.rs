//! tools/dist: what it says about a binary is what binutils says, and it lists the licences of what is linked. Releases
//! are made on x86-64 Linux.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn python(script: &str, arguments: &[&str]) -> Output {
    let script = Path::new(ROOT).join("tools/dist").join(script);
    let output = Command::new("python3").arg("-B").arg(script).args(arguments).current_dir(ROOT).output();
    output.expect("python3, which tools/install-nvcc needs, too")
}

fn check(arguments: &[&str]) -> Output {
    python("check_symbols.py", arguments)
}

/// stderr of a run that has to have ended with this code.
#[track_caller]
fn errors(output: &Output, code: i32) -> &str {
    let text = std::str::from_utf8(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

#[test]
fn the_symbols_of_a_binary_are_those_that_readelf_sees() {
    let own = env::current_exe().unwrap();
    let own = own.to_str().unwrap();
    let readelf = Command::new("readelf").args(["--wide", "--version-info", "--dynamic", own]).output();
    let readelf = String::from_utf8(readelf.expect("readelf, which comes with g++'s linker").stdout).unwrap();
    // "  0x0010:   Name: GLIBC_2.14  Flags: none  Version: 5", " 0x…01 (NEEDED)  Shared library: [libc.so.6]"
    let after = |start: &str, end: char| -> BTreeSet<&str> {
        readelf.lines().filter_map(|line| line.split_once(start)?.1.split(end).next()).collect()
    };
    let (versions, libraries) = (after("Name: ", ' '), after("Shared library: [", ']'));
    let number = |name: &&str| {
        let version = name.strip_prefix("GLIBC_")?;
        version.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>()
    };
    let newest = *versions.iter().filter(|name| number(name).is_some()).max_by_key(|name| number(name)).unwrap();

    let output = check(&["--glibc", "99.0", own]);
    errors(&output, 0);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains(newest), "{newest} is not in {said}");
    for library in libraries {
        assert!(said.contains(library), "{library} is not in {said}");
    }

    let late: BTreeSet<&str> = versions.into_iter().filter(|name| number(name) > Some(vec![2, 4])).collect();
    let output = check(&["--glibc", "2.4", own]);
    let error = errors(&output, 1);
    let named = error.split_once("needs ").unwrap().1.split(';').next().unwrap();
    assert_eq!(named.split(", ").collect::<BTreeSet<_>>(), late, "{error}");
}

#[test]
fn what_is_no_binary_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rigel");
    let refused = |bytes: &[u8], part: &str| {
        fs::write(&file, bytes).unwrap();
        let output = check(&[file.to_str().unwrap()]);
        let error = errors(&output, 1);
        assert!(error.lines().count() == 1 && error.contains(part), "{error}");
    };
    refused(b"#!/bin/sh\n", "not a 64-bit little-endian ELF file");
    let own = fs::read(env::current_exe().unwrap()).unwrap();
    refused(&own[..4096], "its tables do not lie inside the file");
    fs::remove_file(&file).unwrap();
    assert!(errors(&check(&[file.to_str().unwrap()]), 1).contains("No such file"));
}

#[test]
fn licences_are_those_of_what_is_linked() {
    let output = python("licenses.py", &[]);
    errors(&output, 0);
    let text = String::from_utf8(output.stdout).unwrap();
    let listed: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(' ')).map(|(name, _)| name).collect();
    for linked in ["clap", "cudarc", "memmap2", "rayon", "serde_json", "tokenizers"] {
        assert!(listed.contains(linked), "{linked} is linked, and not in {listed:?}");
    }
    // Of tests, of the build, of the compiler, and our own.
    for absent in ["criterion", "proptest", "cc", "serde_derive", "syn", "rigel-nano"] {
        assert!(!listed.contains(absent), "{absent} is not linked");
    }
    assert!(text.contains("Permission is hereby granted, free of charge"), "the texts themselves are there");
}
