//! `rigel completions` and `rigel man`.

use std::process::Command;

use crate::common::rigel;

/// What bash completes `words` to, the last of which is being typed, in `folder`; `None` without bash.
fn completed(folder: &std::path::Path, words: &[&str]) -> Option<Vec<String>> {
    let script = rigel(&["completions", "bash"]).ok();
    std::fs::write(folder.join("rigel.bash"), &script.stdout).unwrap();
    let before = words.len() - 1;
    let call = format!(
        "source ./rigel.bash; complete -p rigel; COMP_WORDS=(\"$@\"); COMP_CWORD={before}
         _rigel rigel \"${{COMP_WORDS[{before}]}}\" \"${{COMP_WORDS[{before} - 1]}}\" 2>/dev/null
         printf '%s\\n' \"${{COMPREPLY[@]}}\""
    );
    let output = Command::new("bash").args(["--norc", "-c", &call, "bash"]).args(words).current_dir(folder).output();
    let output = output.ok()?;
    let said = String::from_utf8(output.stdout).unwrap();
    let mut lines = said.lines().map(str::to_owned);
    let registered = lines.next().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    assert!(registered.contains("-F _rigel") && registered.contains("-o default"), "{registered}");
    Some(lines.filter(|line| !line.is_empty()).collect())
}

#[test]
fn bash_completes_what_an_option_takes() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a prompt.py"), "x").unwrap();
    std::fs::create_dir(folder.path().join("a-model")).unwrap();
    let of = |words: &[&str]| completed(folder.path(), words);
    let Some(files) = of(&["rigel", "generate", "--file", "a"]) else {
        return eprintln!("bash_completes…: skipped, there is no bash");
    };
    assert!(files.contains(&"a prompt.py".to_owned()), "{files:?}");
    assert_eq!(of(&["rigel", "generate", "--prompts", "a p"]).unwrap(), ["a prompt.py"]);
    assert_eq!(of(&["rigel", "generate", "--device", "c"]).unwrap(), ["cpu", "cuda"]);
    // Directories are added by bash itself.
    assert_eq!(of(&["rigel", "generate", "--model", "a"]).unwrap(), [""; 0]);
    // A number is no file.
    assert_eq!(of(&["rigel", "generate", "--threads", "a"]).unwrap(), ["a"]);
    assert_eq!(of(&["rigel", "det"]).unwrap(), ["detokenize"]);
    // Arguments without a name are files, which `-o default` completes.
    assert_eq!(of(&["rigel", "batch", "a"]).unwrap(), [""; 0]);
}

#[test]
fn directories_are_asked_for_in_every_shell() {
    let bash = rigel(&["completions", "bash"]).ok();
    assert!(bash.text().contains("compopt -o plusdirs") && bash.text().contains("compopt -o filenames"));
    let zsh = rigel(&["completions", "zsh"]).ok();
    assert!(zsh.text().lines().any(|line| line.contains("--model=[") && line.contains("_files -/")), "{}", zsh.text());
}

#[test]
fn manual_pages_keep_the_lines_of_examples() {
    for command in [&[][..], &["generate"], &["batch"], &["doctor"], &["bench", "model"], &["man"]] {
        let page = rigel(&[&["man"], command].concat()).ok();
        let (_, examples) = page.text().split_once(".SH EXTRA\n.nf\nExamples:\n").unwrap_or_else(|| panic!("{page:?}"));
        let (examples, _) = examples.split_once("\n.fi\n").unwrap_or_else(|| panic!("{page:?}"));
        assert!(examples.starts_with("  rigel ") && !examples.contains("\n.SH"), "{examples}");
        assert_eq!(page.text().matches("\n.nf\n").count(), page.text().matches("\n.fi\n").count(), "{command:?}");
    }
}
