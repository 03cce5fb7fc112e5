//! The constants that kernels and their launchers share: read where the kernels define them, written as Rust.
//!
//! Of every `.cu` and `.cuh`, those that stand at the beginning of a line:
//!
//! ```text
//! static constexpr uint32_t kWarps = 8, kThreads = kWarps * 32;    pub const WARPS: u32 = 8; …
//! using Tile64 = Tile<64, kWarps>;                                 pub const TILE64: [u32; 2] = [64, WARPS];
//! ```
//!
//! in a module by the file's name; of aliases those whose names end in a digit, which tell instances apart. What
//! depends on a template's parameters or on `sizeof` is left out, and so is what is made of such.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Of one file name: constants in their order, and what it includes.
#[derive(Default)]
struct File {
    constants: Vec<Constant>,
    includes: Vec<String>,
}

struct Constant {
    /// As in Rust.
    name: String,
    /// C++ expressions; more than one for an alias.
    values: Vec<String>,
    is_alias: bool,
}

/// The Rust source for all files directly in `folders`. Has cargo watch them.
///
/// # Errors
/// A file that cannot be read.
pub fn constants(folders: &[PathBuf]) -> Result<String, String> {
    let mut files: BTreeMap<String, File> = BTreeMap::new();
    for path in sources(folders) {
        println!("cargo::rerun-if-changed={}", path.display());
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        // `common/norm.cuh` is part of `norm`.
        read(&text, files.entry(stem(&path)).or_default());
    }
    let mut source = String::new();
    for (name, file) in &files {
        let mut known: Vec<&str> = Vec::new();
        let mut lines = String::new();
        for constant in &file.constants {
            let value = |value: &String| translated(value, &|used| place(used, name, &known, &files));
            let Some(values) = constant.values.iter().map(value).collect::<Option<Vec<_>>>() else { continue };
            let (name, value) = (&constant.name, values.join(", "));
            let (ty, value) = match constant.is_alias {
                true => (format!("[u32; {}]", values.len()), format!("[{value}]")),
                false => ("u32".to_owned(), value),
            };
            lines.push_str(&format!("    pub const {name}: {ty} = {value};\n"));
            known.push(name);
        }
        if !lines.is_empty() {
            source.push_str(&format!("pub mod {name} {{\n{lines}}}\n"));
        }
    }
    Ok(source)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn sources(folders: &[PathBuf]) -> Vec<PathBuf> {
    let entries = folders.iter().rev().flat_map(|folder| {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh"));
        paths.sort();
        paths
    });
    entries.collect()
}

fn read(text: &str, file: &mut File) {
    let mut is_template = false;
    for line in text.lines() {
        let code = line.split("//").next().unwrap_or_default().trim_end();
        let declared = code.strip_suffix(';').filter(|_| !is_template);
        is_template = code.starts_with("template");
        if let Some(include) = code.strip_prefix("#include \"") {
            file.includes.push(stem(Path::new(include.trim_end_matches('"'))));
        } else if let Some(list) = declared.and_then(|code| code.strip_prefix("static constexpr uint32_t ")) {
            for (name, value) in list.split(',').filter_map(|one| one.split_once('=')) {
                let values = vec![value.trim().to_owned()];
                file.constants.push(Constant { name: rust_name(name.trim()), values, is_alias: false });
            }
        } else if let Some((name, alias)) =
            declared.and_then(|code| code.strip_prefix("using ")).and_then(|code| code.split_once(" = "))
            && name.ends_with(|c: char| c.is_ascii_digit())
            && let Some((_, arguments)) = alias.strip_suffix('>').and_then(|alias| alias.split_once('<'))
        {
            let values = arguments.split(',').map(|value| value.trim().to_owned()).collect();
            file.constants.push(Constant { name: rust_name(name), values, is_alias: true });
        }
    }
}

/// `kRowBytes` → `ROW_BYTES`, `Tile64x64` → `TILE64X64`.
fn rust_name(name: &str) -> String {
    let name = name.strip_prefix('k').filter(|rest| rest.starts_with(char::is_uppercase)).unwrap_or(name);
    let mut rust = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !rust.is_empty() {
            rust.push('_');
        }
        rust.push(c.to_ascii_uppercase());
    }
    rust
}

/// What Rust calls a constant in the module `own`: one that the module has so far, or one of a file that it includes.
fn place(name: &str, own: &str, known: &[&str], files: &BTreeMap<String, File>) -> Option<String> {
    if known.contains(&name) {
        return Some(name.to_owned());
    }
    let (mut reached, mut next) = (vec![own], 0);
    while let Some(file) = reached.get(next).and_then(|name| files.get(*name)) {
        for include in &file.includes {
            if files.contains_key(include) && !reached.contains(&include.as_str()) {
                reached.push(include);
            }
        }
        next += 1;
    }
    let has = |file: &&str| files[*file].constants.iter().any(|constant| constant.name == name);
    reached[1..].iter().find(|file| has(file)).map(|file| format!("super::{file}::{name}"))
}

/// A C++ expression of numbers, constants, operators and parentheses as Rust has it; `None` for another.
fn translated(value: &str, place: &impl Fn(&str) -> Option<String>) -> Option<String> {
    let mut rust = String::new();
    let mut rest = value;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = if is_word(first) {
            let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let word = &rest[..length];
            if first.is_ascii_digit() {
                rust.push_str(word.trim_end_matches('u'));
            } else if word.starts_with('k') {
                rust.push_str(&place(&rust_name(word))?);
            } else {
                return None;
            }
            length
        } else if rest.starts_with("<<") || rest.starts_with(">>") {
            rust.push_str(&rest[..2]);
            2
        } else if " +-*/%()".contains(first) {
            rust.push(first);
            1
        } else {
            return None;
        };
        rest = &rest[length..];
    }
    Some(rust)
}
