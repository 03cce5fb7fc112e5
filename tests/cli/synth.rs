//! `rigel synth`.

use crate::common::{command, file, path, rigel};

const CONFIG: &str = r#"{"model_type":"starcoder2","vocab_size":4096,"hidden_size":48,"intermediate_size":64,
    "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":12,"max_position_embeddings":128}"#;

#[test]
fn a_checkpoint_that_was_written_runs() {
    let (config, root) = (file(CONFIG), tempfile::tempdir().unwrap());
    let out = root.path().join("made");
    let out = out.to_str().unwrap();
    let args = ["synth", path(&config), "--out", out, "--shard-size", "200kB", "--seed", "3", "--tokenizer", "nano"];
    let said = rigel(&args).ok();
    assert!(said.text().contains(" KiB of BF16 in 2 files in ") && said.stderr.is_empty(), "{said:?}");
    let record = rigel(&["inspect", "--json", "--model", out]).ok().json();
    assert_eq!(record["files"].as_array().unwrap().len(), 2);
    let run = rigel(&["generate", "--model", out, "--device", "cpu", "-n", "3", "x"]).ok();
    assert!(!run.text().is_empty());

    let line = rigel(&args);
    assert!(line.error(2).contains("made exists; give a directory that does not"), "{line:?}");
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn bad_input_is_said_in_a_line() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("x");
    let out = out.to_str().unwrap();
    assert!(rigel(&["synth", "9b", "--out", out]).error(2).contains("no such model: \"9b\""));
    let broken = file("{\"model_type\": 3}");
    rigel(&["synth", path(&broken), "--out", out]).error(2);
    let huge = file(r#"{"model_type":"starcoder2","num_hidden_layers":1000,"intermediate_size":200000000}"#);
    if cfg!(unix) {
        let run = rigel(&["synth", path(&huge), "--out", out]);
        assert!(run.error(1).contains("iB are needed and"), "{run:?}");
    }
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
}

#[cfg(unix)]
#[test]
fn a_signal_leaves_nothing() {
    for (signal, code) in [("TERM", 143), ("HUP", 129), ("INT", 130)] {
        let root = tempfile::tempdir().unwrap();
        // Gigabytes, of which the first are written when the signal comes.
        let out = root.path().join("x");
        let child = command(&["synth", "3b", "--out", out.to_str().unwrap()]).spawn().unwrap();
        let unfinished = root.path().join("x.unfinished");
        while !unfinished.exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let kill = std::process::Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
        assert!(kill.unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(code), &[][..]));
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
