//! The three locks of authority, each a compile error (STYLE.md section 3), and the fence before storage.
//!
//! Expected messages lie beside the cases; `TRYBUILD=overwrite` writes them anew after a look.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[test]
fn what_forgets_authority_does_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/compile_fail/*.rs");
}

/// The newest library of this name that Cargo has built for these tests.
fn library(name: &str) -> (PathBuf, PathBuf) {
    let test = std::env::current_exe().expect("this test has a path");
    let folder = test.parent().expect("it lies in a folder").to_owned();
    let prefix = format!("lib{name}-");
    let newest = std::fs::read_dir(&folder)
        .expect("the folder can be read")
        .filter_map(Result::ok)
        .filter(|entry| {
            let file = entry.file_name();
            let file = file.to_string_lossy();
            file.starts_with(&prefix) && file.ends_with(".rlib")
        })
        .max_by_key(|entry| entry.metadata().and_then(|metadata| metadata.modified()).expect("a time"))
        .expect("the library is built");
    (newest.path(), folder)
}

/// Compiles a crate that depends on `interlock-server` and nothing else.
fn compile(folder: &Path, source: &str) -> Output {
    let (server, dependencies) = library("interlock_server");
    let file = folder.join("scratch.rs");
    std::fs::write(&file, source).expect("the scratch file can be written");
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--extern"])
        .arg(format!("interlock_server={}", server.display()))
        .arg("-L")
        .arg(format!("dependency={}", dependencies.display()))
        .arg("--out-dir")
        .arg(folder)
        .arg(&file)
        .output()
        .expect("the compiler starts")
}

#[test]
fn who_has_the_server_only_cannot_name_storage() {
    let folder = tempfile::tempdir().expect("a folder");

    let control = compile(folder.path(), "//! Scratch.\npub use interlock_server::AppState;\n");
    assert!(control.status.success(), "{}", String::from_utf8_lossy(&control.stderr));

    for source in [
        "pub use interlock_store::Store;\n",
        "pub use interlock_server::store::Store;\n",
        "pub use interlock_server::interlock_store::Store;\n",
        "pub fn reach(state: &interlock_server::AppState) { let _ = &state.store; }\n",
        "pub fn reach(state: &interlock_server::AppState) { let _ = &state.db; }\n",
    ] {
        let output = compile(folder.path(), source);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{source} compiles");
        assert!(
            ["E0432", "E0433", "E0463", "E0609"].iter().any(|code| text.contains(code)),
            "{source} fails for another reason: {text}"
        );
    }
}
