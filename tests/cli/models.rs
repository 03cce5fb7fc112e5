//! What models are called: one set of names in all commands.

use std::path::Path;

use serde_json::json;

use crate::common::{Copy, nano, rigel};

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn shapes_have_the_same_names_everywhere() {
    let config = nano().join("config.json");
    let inspect = |model: &str| rigel(&["inspect", "--json", "--model", model]).ok().json();
    for name in ["3b", "3B", "starcoder2-3b", "StarCoder2-3B"] {
        let record = inspect(name);
        // 3,030,371,328, as the published checkpoint's own index has it at four bytes each.
        assert_eq!(record["parameters"], 3_030_371_328_u64, "{name}");
        assert_eq!((&record["source"], &record["files"]), (&json!("starcoder2-3b"), &json!([])));
    }
    let (shape, whole) = (inspect(path(&config)), inspect("nano"));
    for field in ["parameters", "layers", "window", "weight_bytes_per_token", "kv_bytes_per_token_bf16", "gpu_weights"]
    {
        assert_eq!(shape[field], whole[field], "{field}");
    }
    let out = tempfile::tempdir().unwrap();
    for (n, name) in [path(&config), "nano", path(&nano())].iter().enumerate() {
        let folder = out.path().join(n.to_string());
        rigel(&["synth", name, "--out", path(&folder), "-q"]).ok();
        assert!(folder.join("model.safetensors").exists(), "{name}");
    }
}

#[test]
fn weights_are_asked_for_where_a_shape_is_not_enough() {
    let config = nano().join("config.json");
    for name in ["3B", path(&config)] {
        let expected = format!(
            "{name} is a shape without weights; give a checkpoint; `rigel synth {name} --out DIR` makes one of random weights"
        );
        for command in [&["generate", "x"][..], &["tokenize", "x"], &["bench", "start"]] {
            assert_eq!(rigel(&[command, &["--model", name]].concat()).error(2), expected);
        }
        let run = rigel(&["bench", "model", "--device", "cpu", "--model", name]);
        let expected = format!("{name} is a shape without weights; give a checkpoint, or --dummy-weights {name}");
        assert_eq!(run.error(2), expected);
    }
    let tokenizer = rigel(&["synth", "3b", "--out", "unused", "--tokenizer", "7b"]);
    assert!(tokenizer.error(2).starts_with("7b is a shape without weights"), "{tokenizer:?}");
}

#[test]
fn a_name_that_means_nothing_is_said_in_the_same_words() {
    let expected = "no such model: \"8b\"; expected a checkpoint directory, a hub id such as bigcode/starcoder2-3b, nano, or \
                    for shapes without weights 3b, 7b, 15b or a config.json";
    for command in [
        &["generate", "x", "--model"][..],
        &["inspect", "--model"],
        &["tokenize", "x", "--model"],
        &["synth", "--out", "unused"],
        &["bench", "start", "--model"],
        &["bench", "model", "--device", "cpu", "--dummy-weights"],
    ] {
        assert_eq!(rigel(&[command, &["8b"]].concat()).error(2), expected, "{command:?}");
    }
}

#[test]
fn files_that_are_no_models() {
    let copy = Copy::of_nano();
    copy.write("m.gguf", b"GGUF\x03\0\0\0");
    for command in [&["generate", "x"][..], &["inspect"]] {
        let run = rigel(&[command, &["--model", path(&copy.path("m.gguf"))]].concat());
        assert!(run.error(2).contains("m.gguf is a GGUF file, which is not read yet; use the model's"), "{run:?}");
    }
}

/// A directory of somebody else.
#[cfg(unix)]
#[test]
fn what_may_not_be_read_is_not_called_absent() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let private = folder.path().join("priv");
    std::fs::create_dir_all(private.join("m")).unwrap();
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o000)).unwrap();
    let is_root = std::fs::read_dir(&private).is_ok();
    let model = private.join("m");
    let run = rigel(&["generate", "--model", path(&model), "x"]);
    let in_cache = crate::common::rigel_env(&["generate", "--model", "o/m", "x"], "HF_HUB_CACHE", &private);
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o700)).unwrap();
    if is_root {
        // Root may read everything; the unit tests have a loop of links, which nobody may.
        eprintln!("not run: what_may_not_be_read_is_not_called_absent: this user may read every directory");
        return;
    }
    let expected = format!("{} cannot be read: Permission denied", model.display());
    assert!(run.error(2).starts_with(&expected), "{run:?}");
    assert!(in_cache.error(2).contains("cannot be read: Permission denied"), "{in_cache:?}");
}
