//! `rigel list` and `rigel remove`.

use serde_json::{Value, json};

use super::server::{COMMIT, Server};
use super::{Home, nano_files};

fn models(home: &Home) -> Vec<Value> {
    home.run(&["list", "--json"]).ok().json()["models"].as_array().unwrap().clone()
}

#[test]
fn models_are_listed_with_what_they_are() {
    let home = Home::new();
    let [nano] = &models(&home)[..] else { panic!() };
    assert_eq!((&nano["id"], &nano["runs"], &nano["commit"]), (&json!("nano"), &json!(true), &Value::Null));

    home.pull(&Server::new(&nano_files()), &["-q", "o/m"]).ok();
    let folder = |name: &str| {
        let folder = home.cache().join(name).join("snapshots/aaaaaaaaaaaa");
        std::fs::create_dir_all(&folder).unwrap();
        folder
    };
    let llama = folder("models--o--llama");
    std::fs::write(llama.join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
    for name in ["models--o--cut", "models--o--main", "models--gpt2"] {
        std::fs::copy(super::nano().join("config.json"), folder(name).join("config.json")).unwrap();
    }
    std::fs::create_dir_all(home.cache().join("models--o--main/refs")).unwrap();
    std::fs::write(home.cache().join("models--o--main/refs/main"), "aaaaaaaaaaaa").unwrap();
    std::fs::create_dir_all(home.cache().join("models--o--begun/blobs")).unwrap();
    std::fs::write(home.cache().join("models--o--begun/blobs/x.incomplete"), [0; 2048]).unwrap();

    let records = models(&home);
    let record = |id: &str| records.iter().find(|record| record["id"] == id).unwrap();
    let pulled = record("o/m");
    assert_eq!(pulled["commit"], COMMIT);
    assert_eq!(pulled["refs"], json!(["main"]));
    assert_eq!(pulled["model_type"], "starcoder2");
    assert_eq!((&pulled["runs"], &pulled["complete"], &pulled["error"]), (&json!(true), &json!(true), &Value::Null));
    let bytes: usize = nano_files()[..5].iter().map(|(_, content)| content.len()).sum();
    assert_eq!(pulled["bytes"], bytes);
    assert_eq!((&record("o/llama")["runs"], &record("o/llama")["complete"]), (&json!(false), &Value::Null));
    assert_eq!((&record("o/cut")["runs"], &record("o/cut")["complete"]), (&json!(false), &json!(false)));
    for (id, advice) in [
        ("o/cut", "; download it with `rigel pull o/cut --revision aaaaaaaaaaaa`"),
        ("o/main", "; download it with `rigel pull o/main`"),
    ] {
        let error = record(id)["error"].as_str().unwrap();
        assert!(error.ends_with(advice), "{error}");
    }
    assert_eq!((&record("o/begun")["commit"], &record("o/begun")["complete"]), (&Value::Null, &json!(false)));

    let table = home.run(&["list"]).ok();
    for (id, needle) in [
        ("nano", "yes"),
        ("o/m ", "| 01234567 (main) |"),
        ("o/llama", "no: llama is not supported"),
        ("o/cut", "no: incomplete; `rigel pull o/cut@aaaaaaaaaaaa` fetches the rest"),
        ("o/main", "no: incomplete; `rigel pull o/main` fetches the rest"),
        ("o/begun", "2.00 KiB | no: incomplete; `rigel pull o/begun` fetches the rest"),
    ] {
        let row = table.text().lines().find(|line| line.contains(id)).unwrap();
        assert!(row.contains(needle), "{row}");
    }
    // No name that `rigel pull` takes.
    let gpt2 = table.text().lines().find(|line| line.contains("gpt2")).unwrap();
    assert!(gpt2.contains("no: incomplete") && !gpt2.contains("rigel pull"), "{gpt2}");
    assert!(table.text().ends_with(&format!("\ncache: {}\n", home.cache().display())));
}

#[cfg(feature = "cuda")]
#[test]
fn doctor_counts_the_models_of_the_cache() {
    let home = Home::new();
    home.pull(&Server::new(&nano_files()), &["-q", "o/m"]).ok();
    let bytes: usize = nano_files()[..5].iter().map(|(_, content)| content.len()).sum();
    // A GPU that cannot be used is an exit code of 1, and no matter here.
    let record = home.run(&["doctor", "--json"]).json();
    assert_eq!(record["cache"]["models"], json!([{"id": "o/m", "bytes": bytes}]));
    let line = format!("1 model, {}; `rigel list` shows them", rigel::host::Size(bytes as u64));
    assert!(home.run(&["doctor"]).text().contains(&line));
}

#[test]
fn a_model_goes_only_by_consent() {
    let home = Home::new();
    home.pull(&Server::new(&nano_files()), &["-q", "o/m"]).ok();
    home.pull(&Server::new(&nano_files()), &["-q", "o/m@v1"]).ok();
    let asked = home.run(&["remove", "o/m"]);
    assert!(asked.error(2).contains("give --yes"), "{asked:?}");
    assert!(home.snapshot().is_dir());
    // Two names of one commit: the first one alone goes.
    assert!(home.run(&["remove", "o/m@v1", "-y"]).ok().text().contains("another name has the same files"));
    assert!(home.snapshot().is_dir() && !home.model().join("refs/v1").exists());
    let unknown = home.run(&["remove", "o/m@v1", "-y"]);
    assert!(unknown.error(2).contains("no revision \"v1\" of o/m; it has main, "), "{unknown:?}");
    let run = home.run(&["remove", "o/m", "--yes"]).ok();
    assert!(run.text().starts_with("removed o/m, 1 revision, "), "{}", run.text());
    assert!(!home.model().exists());
    let gone = home.run(&["remove", "o/m", "--yes"]);
    assert!(gone.error(2).starts_with("o/m is not in the Hugging Face cache "), "{gone:?}");
    assert!(home.run(&["remove", "nano", "--yes"]).error(2).contains("part of this program"));
}

#[test]
fn what_is_removed_of_a_model_without_revisions_is_said() {
    let home = Home::new();
    let remove = |id: &str| home.run(&["remove", id, "--yes"]).ok().text().to_owned();
    let empty = home.cache().join("models--o--empty");
    std::fs::create_dir_all(&empty).unwrap();
    assert_eq!(remove("o/empty"), "removed o/empty, an empty folder: no revision and no file\n");
    let begun = home.cache().join("models--o--begun");
    std::fs::create_dir_all(begun.join("blobs")).unwrap();
    std::fs::write(begun.join("blobs/x.incomplete"), [0; 2048]).unwrap();
    assert_eq!(remove("o/begun"), "removed o/begun, 2.00 KiB of a download that did not end\n");
    assert!(!empty.exists() && !begun.exists());
}
