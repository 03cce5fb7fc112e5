//! `rigel bench`, as far as it needs no GPU.

use crate::common::rigel;

/// Runs it and gives what it prints.
fn stdout(args: &[&str]) -> String {
    rigel(args).ok().text().to_owned()
}

/// Runs it and has it refuse its arguments in one line that holds `what`.
fn refused(args: &[&str], what: &str) {
    let run = rigel(args);
    let line = run.error(2);
    assert!(line.contains(what), "{line}");
}

#[test]
fn a_model_is_measured_in_llama_benchs_words() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("result.json");
    let file = json.to_str().unwrap();
    let arguments = ["bench", "model", "--device", "cpu", "-p", "16", "-n", "4", "-d", "0,8", "-b", "1,3", "-r", "2"];
    let text = stdout(&[&arguments[..], &["--json", file]].concat());
    for words in
        ["| nano", "3.9 M", "| marks ", "of limit: ", "pp16 ", "pp16 @ d8", "tg4 ", "tg4 @ d8", "ceiling: ", "GB/s"]
    {
        assert!(text.contains(words), "{words}:\n{text}");
    }
    let report = rigel::bench::Report::read(&json).unwrap();
    let found: Vec<_> = report.rows.iter().map(|row| (row.name.as_str(), row.tokens)).collect();
    let expected = [("pp16", 16), ("pp16 @ d8", 16), ("tg4", 4), ("tg4", 12), ("tg4 @ d8", 4), ("tg4 @ d8", 12)];
    assert_eq!(found, expected);
    for row in &report.rows {
        assert!(row.tokens_per_second().unwrap() > 0.0 && row.of_limit.unwrap() > 0.0, "{row:?}");
        assert_eq!(row.times.unwrap().samples, 2);
    }
    // The result with itself.
    let text = stdout(&["bench", "compare", file, file]);
    assert!(text.contains("~ 1.00 x"), "{text}");
}

#[test]
fn random_weights_stand_in_for_a_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("tiny.json");
    let tiny = r#"{"model_type": "starcoder2", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 128, "vocab_size": 256, "max_position_embeddings": 64}"#;
    std::fs::write(&config, tiny).unwrap();
    let arguments = ["bench", "model", "--device", "cpu", "-p", "8", "-n", "0", "-r", "1", "-o", "csv"];
    let text = stdout(&[&arguments[..], &["--dummy-weights", config.to_str().unwrap()]].concat());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[1].starts_with("\"tiny\",cpu,") && lines[1].contains(",pp8,1,8,"), "{text}");
}

#[test]
fn bad_input_is_one_line() {
    refused(&["bench", "model", "--device", "cpu", "-p", "0", "-n", "0"], "nothing to measure");
    refused(
        &["bench", "model", "--device", "cpu", "--dummy-weights", "8b"],
        "no such model: \"8b\"; expected a checkpoint",
    );
    refused(&["bench", "model", "--device", "cpu", "-r", "0"], "--repetitions is 0; expected at least 1");
    refused(&["bench", "model", "--device", "cpu", "-b", "1,0"], "--batch is 0; expected at least 1");
    refused(&["bench", "compare", "missing.json", "missing.json"], "missing.json");
}

#[cfg(feature = "cuda")]
#[test]
fn kernels_are_listed_and_misspelt_ones_corrected_without_a_gpu() {
    let text = stdout(&["bench", "kernels", "--list", "15b", "attention_decode", "batch=64"]);
    let expected = "\
starcoder2-15b  attention_decode  batch 64, context 1024
starcoder2-15b  attention_decode  batch 64, context 4096
";
    assert_eq!(text, expected);
    refused(&["bench", "kernels", "gemn"], "no kernel is called \"gemn\"; did you mean gemm or gemv?");
}

#[cfg(feature = "cuda")]
#[test]
fn no_message_names_an_option_that_the_command_lacks() {
    use crate::cuda::{NO_GPU, rigel_on};
    for command in [&["bench", "kernels", "gemv"][..], &["profile", "--events"]] {
        let line = rigel_on(&[NO_GPU], command);
        assert!(line.error(2).starts_with("device cuda: ") && !line.stderr.contains("--device"), "{line:?}");
    }
}
