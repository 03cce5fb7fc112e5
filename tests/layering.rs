//! Each module imports only from the layers below its own (the table in `src/lib.rs`).

use std::fs;
use std::path::{Path, PathBuf};

const LAYERS: [(&str, u32); 13] = [
    ("host", 0),
    ("checkpoint", 1),
    ("hub", 2),
    ("model", 2),
    ("text", 2),
    ("kv", 3),
    ("sampling", 3),
    ("backend", 4),
    ("engine", 5),
    ("bench", 5),
    ("openai", 5),
    ("server", 6),
    ("cli", 6),
];

/// `openai` turns bodies into the engine's requests and `bench` times an engine's start: the modules that import from
/// their own layer.
const BESIDE: [(&str, &str); 2] = [("openai", "engine"), ("bench", "engine")];

fn layer(module: &str) -> Option<u32> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|(_, layer)| *layer)
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// Modules named after `crate::` in a line of code. `crate::{a, b}` would hide names from this reader, so the crate
/// does not write it.
fn modules_named(line: &str) -> Vec<&str> {
    let code = line.split("//").next().unwrap_or("");
    code.split("crate::")
        .skip(1)
        .map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or(""))
        .collect()
}

/// Which device computes is the backend's business: the engine knows pages and tokens.
#[test]
fn the_engine_names_no_device() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine");
    let mut files = Vec::new();
    rust_files(&source, &mut files);
    let mut named = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for (number, line) in code.lines().enumerate() {
            let words = line.split("//").next().unwrap_or("");
            if ["cuda", "cpu::", "Gpu", "DeviceQueue"].iter().any(|word| words.contains(word)) {
                named.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(files.len() > 10, "{files:?}");
    assert!(named.is_empty(), "devices in the engine:\n{}", named.join("\n"));
}

#[test]
fn each_layer_imports_only_from_below() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&source, &mut files);
    let mut imports = 0;
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&source).unwrap();
        let module = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        // lib.rs and main.rs stand above every layer.
        let Some(own) = layer(module) else { continue };
        let text = fs::read_to_string(&file).unwrap();
        // Tests at a file's end may build what they test from any layer.
        let code = text.split("#[cfg(test)]").next().unwrap();
        for (number, line) in code.lines().enumerate() {
            for named in modules_named(line) {
                imports += 1;
                let beside = BESIDE.contains(&(module, named));
                let allowed = named == module || beside || layer(named).is_some_and(|below| below < own);
                if !allowed {
                    wrong.push(format!("src/{}:{}: {}", relative.display(), number + 1, line.trim()));
                }
            }
        }
    }
    assert!(imports > 20, "the reader of imports found only {imports}");
    assert!(wrong.is_empty(), "imports from the same layer or above:\n{}", wrong.join("\n"));
}
