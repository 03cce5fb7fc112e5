//! `rigel profile` and `rigel bench report`.

use rigel::backend::cuda::images;

use crate::common::rigel;
use crate::cuda::{NO_GPU, rigel_on};

#[test]
fn a_profile_is_a_table_two_pictures_and_a_result() {
    if images().is_empty() {
        return eprintln!("a_profile_is…: skipped, this build has no kernels; run tools/install-nvcc");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (svg, html, json) = (file("a.svg"), file("a.html"), file("a.json"));
    let sizes = ["profile", "--events", "--prefill", "4", "--depth", "2", "--ceiling-bytes", "65536"];
    let files = ["--ceiling-product", "64", "--svg", &svg, "--html", &html, "--json", &json];
    let run = rigel_on(&[], &[&sizes[..], &files].concat()).ok();
    for part in ["prefill of 4 tokens: ", "decode, batch 1, depth 2: ", "| up_proj ", "gaps not seen", "ceiling: "] {
        assert!(run.text().contains(part), "no {part:?} in {}", run.text());
    }
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    assert!(read(&svg).starts_with("<svg ") && read(&html).contains("<svg "));
    let report: serde_json::Value = serde_json::from_str(&read(&json)).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["name"] == "decode up_proj" && row["of_limit"].as_f64().is_some()));
    assert!(rows.iter().any(|row| row["name"] == "prefill step"));
}

#[test]
fn a_profile_that_cannot_be_says_why() {
    if images().is_empty() {
        return eprintln!("a_profile_that_cannot_be…: skipped, this build has no kernels; run tools/install-nvcc");
    }
    assert!(rigel_on(&[NO_GPU], &["profile", "--events"]).error(2).contains("sees no GPU"));
    let deep = rigel(&["profile", "--depth", "99999999"]);
    assert!(deep.error(2).starts_with("--depth is 99999999; expected 0 to "), "{}", deep.stderr);
    let cupti = rigel_on(&[], &["profile", "--cupti", "/nowhere/libcupti.so"]);
    assert!(cupti.error(2).starts_with("--cupti /nowhere/libcupti.so: "), "{}", cupti.stderr);
}

#[test]
fn a_report_without_results_says_that_nothing_is_measured() {
    let docs = tempfile::tempdir().unwrap();
    let (docs_path, page) = (docs.path().to_str().unwrap(), docs.path().join("performance.md"));
    let report =
        |check: &[&str]| rigel(&[&["bench", "report", "--results", "/nowhere", "--docs", docs_path], check].concat());
    assert!(report(&[]).error(2).contains("performance.md"));
    std::fs::write(&page, "no marker\n").unwrap();
    assert!(report(&[]).error(2).contains("once each"));
    let markers = [rigel::bench::document::BEGIN, rigel::bench::document::END].join("\n");
    std::fs::write(&page, format!("# Ours\n\n{markers}\n")).unwrap();
    assert!(report(&["--check"]).error(1).contains("run `rigel bench report`"));
    assert!(report(&[]).ok().text().contains("no results"));
    assert_eq!(report(&["--check"]).ok().text(), "");
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.starts_with("# Ours\n") && text.contains("| GEMM, M ≥ 2048"), "{text}");
}
