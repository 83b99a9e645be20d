//! What no compiler checks: who may depend on whom, and habits that are banned in the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Crate, then the crates of ours that it may depend on (STYLE.md section 2).
const MAY_DEPEND_ON: [(&str, &[&str]); 12] = [
    ("interlock-model", &[]),
    ("interlock-store", &["interlock-model"]),
    ("interlock-evidence", &["interlock-model"]),
    ("interlock-engine", &["interlock-model", "interlock-store", "interlock-evidence"]),
    ("interlock-server", &["interlock-model", "interlock-engine"]),
    ("interlock-client", &["interlock-model"]),
    ("interlock-device", &["interlock-model", "interlock-client"]),
    ("interlock-directory", &["interlock-model"]),
    ("interlock-shared", &["interlock-model"]),
    ("interlock-tools", &["interlock-model", "interlock-engine", "interlock-client"]),
    // Drives the parsers of the others; in no product.
    (
        "interlock-fuzz",
        &[
            "interlock-model",
            "interlock-engine",
            "interlock-server",
            "interlock-device",
            "interlock-directory",
            "interlock-evidence",
            "interlock-shared",
            "interlock-tools",
        ],
    ),
    (
        "interlock",
        &[
            "interlock-model",
            "interlock-store",
            "interlock-engine",
            "interlock-server",
            "interlock-client",
            "interlock-device",
            "interlock-directory",
            "interlock-evidence",
            "interlock-shared",
            "interlock-tools",
        ],
    ),
];
/// Everything that `model` may use from outside.
const MODEL: [&str; 7] = ["serde", "serde_json", "thiserror", "sha2", "zeroize", "subtle", "jiff"];
/// Crate, then what it must not list from outside.
const MUST_NOT_LIST: [(&str, &[&str]); 5] = [
    ("interlock-model", &["tokio", "futures", "async-trait", "metrics", "tracing"]),
    (
        "interlock-engine",
        &[
            "axum",
            "hyper",
            "hyper-util",
            "tower",
            "http",
            "http-body",
            "rusqlite",
            "tokio-postgres",
            "reqwest",
        ],
    ),
    ("interlock-server", &["rusqlite", "tokio-postgres", "deadpool-postgres", "reqwest"]),
    ("interlock-device", &["axum", "hyper", "rusqlite", "tokio-postgres"]),
    ("interlock-directory", &["axum", "hyper", "rusqlite", "tokio-postgres", "argon2"]),
];
/// What one crate fences in: nobody else lists it.
const FENCED_IN: [(&str, &str); 2] = [("ldap3", "interlock-directory"), ("redis", "interlock-shared")];
/// A second TLS stack or a second set of cryptography.
const BANNED: [&str; 4] = ["ring", "openssl", "openssl-sys", "native-tls"];
/// Statements of SQL, as they begin.
const SQL: [&str; 9] = [
    "SELECT ",
    "INSERT INTO ",
    "DELETE FROM ",
    "CREATE TABLE ",
    "ALTER TABLE ",
    "DROP TABLE ",
    "PRAGMA ",
    "BEGIN IMMEDIATE",
    "UPDATE ",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

fn metadata() -> Value {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked", "--no-deps"])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("metadata")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// Our crates, each with the names of what it lists, tests' needs left out.
fn listed(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .filter(|package| package["source"].is_null())
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies").iter();
            let kept = dependencies
                .filter(|dependency| dependency["kind"] != "dev")
                .map(|dependency| text(&dependency["name"]).to_owned());
            (text(&package["name"]).to_owned(), kept.collect())
        })
        .collect()
}

#[test]
fn dependencies_point_one_way() {
    let crates = listed(&metadata());

    let known: BTreeSet<&str> = MAY_DEPEND_ON.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = crates.keys().map(String::as_str).collect();
    assert_eq!(found, known, "a new crate needs a decision on record and a row in this table");
    for (name, allowed) in MAY_DEPEND_ON {
        for dependency in crates[name].iter().filter(|dependency| known.contains(dependency.as_str())) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
    for (name, forbidden) in MUST_NOT_LIST {
        for dependency in forbidden {
            assert!(!crates[name].contains(*dependency), "{name} must not list {dependency}");
        }
    }
    for (dependency, owner) in FENCED_IN {
        let listed_by: Vec<&str> = crates
            .iter()
            .filter(|(_, list)| list.contains(dependency))
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(listed_by, [owner], "{dependency} belongs to one crate");
    }
    let surplus: Vec<&String> =
        crates["interlock-model"].iter().filter(|dependency| !MODEL.contains(&dependency.as_str())).collect();
    assert!(surplus.is_empty(), "model must stay free of {surplus:?}");
}

#[test]
fn there_is_one_stack_for_tls() {
    // Not `cargo metadata`: it lists what a feature could switch on but does not (rustls-webpki's `ring?/alloc`).
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["tree", "--locked", "--workspace", "--all-features", "--edges", "normal,build"])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8_lossy(&output.stdout).into_owned();
    let product: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();

    assert!(product.contains("rustls") && product.contains("aws-lc-rs"), "the list is whole");
    for banned in BANNED {
        assert!(!product.contains(banned), "{banned} is in the product");
    }
}

/// A source file: its code without comments and texts, and its texts with the code before each.
struct Source {
    path: PathBuf,
    raw: String,
    code: String,
    /// `(code before, text)`
    texts: Vec<(String, String)>,
}

impl Source {
    fn read(path: PathBuf) -> Self {
        let raw = std::fs::read_to_string(&path).expect("a source file");
        let (code, texts) = lex(&raw);
        Self { path, raw, code, texts }
    }

    fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap_or(&self.path).display().to_string()
    }
}

/// Splits Rust into code and string literals. Knows comments, raw strings, escapes and character literals.
fn lex(raw: &str) -> (String, Vec<(String, String)>) {
    let bytes: Vec<char> = raw.chars().collect();
    let (mut code, mut texts, mut at) = (String::new(), Vec::new(), 0);
    let get = |index: usize| bytes.get(index).copied().unwrap_or('\0');
    while at < bytes.len() {
        let c = bytes[at];
        if c == '/' && get(at + 1) == '/' {
            while at < bytes.len() && bytes[at] != '\n' {
                at += 1;
            }
        } else if c == '/' && get(at + 1) == '*' {
            at += 2;
            while at < bytes.len() && !(bytes[at] == '*' && get(at + 1) == '/') {
                at += 1;
            }
            at += 2;
        } else if c == 'r'
            && (get(at + 1) == '"' || get(at + 1) == '#')
            && !code.ends_with(|p: char| p.is_alphanumeric() || p == '_')
        {
            let hashes = bytes[at + 1..].iter().take_while(|&&c| c == '#').count();
            if get(at + 1 + hashes) != '"' {
                code.push(c);
                at += 1;
                continue;
            }
            let end: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            let rest: String = bytes[at + 2 + hashes..].iter().collect();
            let literal = rest.split(&end).next().unwrap_or("").to_owned();
            at += 2 + hashes + literal.chars().count() + 1 + hashes;
            texts.push((tail(&code), literal));
            code.push_str("\"\"");
        } else if c == '"' {
            let mut literal = String::new();
            at += 1;
            while at < bytes.len() && bytes[at] != '"' {
                if bytes[at] == '\\' {
                    at += 1;
                }
                literal.push(get(at));
                at += 1;
            }
            at += 1;
            texts.push((tail(&code), literal));
            code.push_str("\"\"");
        } else if c == '\'' && (get(at + 1) == '\\' || get(at + 2) == '\'') {
            at += if get(at + 1) == '\\' { 3 } else { 2 };
            while at < bytes.len() && bytes[at] != '\'' {
                at += 1;
            }
            at += 1;
            code.push_str("' '");
        } else {
            code.push(c);
            at += 1;
        }
    }
    (code, texts)
}

/// The end of the code so far, without white space.
fn tail(code: &str) -> String {
    let end: String = code.chars().rev().filter(|c| !c.is_whitespace()).take(80).collect();
    end.chars().rev().collect()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every file of `crates/*/<part>`.
fn sources(part: &str) -> Vec<Source> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join("crates")).expect("crates").filter_map(Result::ok) {
        rust_files(&entry.path().join(part), &mut found);
    }
    assert!(!found.is_empty());
    found.sort();
    found.into_iter().map(Source::read).collect()
}

#[test]
fn time_is_asked_for_in_one_place() {
    for source in sources("src") {
        let allowed = source.name() == "crates/cli/src/ambient.rs";
        assert!(
            allowed || !source.code.contains("SystemTime::now"),
            "{} asks the system for the time",
            source.name()
        );
        // A thread of its own, which looks for processes that a worker left behind.
        let may_sleep = source.name() == "crates/device/src/escaped.rs";
        assert!(may_sleep || !source.code.contains("thread::sleep"), "{} sleeps", source.name());
    }
}

#[test]
fn sql_lives_in_the_store_only() {
    for source in sources("src").into_iter().filter(|source| !source.name().starts_with("crates/store/")) {
        for (_, literal) in &source.texts {
            let statement = SQL.iter().find(|statement| literal.trim_start().starts_with(*statement));
            assert!(statement.is_none(), "{} speaks SQL: {literal:?}", source.name());
        }
        assert!(
            !source.code.contains("rusqlite") && !source.code.contains("tokio_postgres"),
            "{} names a database",
            source.name()
        );
    }
}

#[test]
fn no_handler_can_name_storage() {
    for source in sources("src").into_iter().filter(|source| source.name().starts_with("crates/server/")) {
        assert!(!source.code.contains("interlock_store"), "{}", source.name());
    }
}

#[test]
fn the_installation_s_own_authority_is_made_by_wiring_code_only() {
    for source in sources("src").into_iter().filter(|source| !source.name().starts_with("crates/cli/src/")) {
        // Where it is defined, and the tests beside the code.
        let defined = source.name() == "crates/engine/src/auth/permit.rs";
        let code = source.code.split("#[cfg(test)]").next().unwrap_or("");
        assert!(
            defined || !code.contains("SystemPermit::root"),
            "{} makes authority of its own",
            source.name()
        );
    }
}

#[test]
fn no_test_is_switched_off_and_nothing_is_left_to_do() {
    for part in ["src", "tests", "examples"] {
        for source in sources(part) {
            for banned in ["#[ignore", "todo!(", "unimplemented!(", "dbg!("] {
                assert!(!source.code.contains(banned), "{} holds {banned}", source.name());
            }
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for source in sources("src") {
        assert!(source.raw.starts_with("//!"), "{} does not begin with //!", source.name());
    }
}

/// Codes that the server can answer, or tell in a run.
fn codes() -> BTreeSet<String> {
    let is_code = |text: &str| text.len() > 3 && text.bytes().all(|c| c.is_ascii_lowercase() || c == b'_');
    let mut codes = BTreeSet::new();
    for source in sources("src") {
        if source.name().starts_with("crates/server/src/") {
            for (before, literal) in &source.texts {
                // `StatusCode::CONFLICT, "device_busy"` and `error.code = "unavailable"`.
                let after_status = before.strip_suffix(',').is_some_and(|before| {
                    let status = before.trim_end_matches(|c: char| c.is_ascii_uppercase() || c == '_');
                    status.len() < before.len() && status.ends_with("StatusCode::")
                });
                if (after_status || before.ends_with(".code=")) && is_code(literal) {
                    codes.insert(literal.clone());
                }
            }
        }
        if source.name() == "crates/model/src/run.rs" {
            let from = source.raw.find("pub fn conclude").expect("the function that names the codes");
            let to = source.raw[from..].find("\n}\n").expect("its end") + from;
            codes.extend(
                lex(&source.raw[from..to])
                    .1
                    .into_iter()
                    .map(|(_, literal)| literal)
                    .filter(|literal| is_code(literal)),
            );
        }
    }
    codes
}

#[test]
fn every_error_code_has_a_page_and_every_page_a_code() {
    let codes = codes();
    assert!(
        codes.len() > 25 && codes.contains("device_busy") && codes.contains("idempotency_key_reused"),
        "{codes:?}"
    );
    let pages: BTreeSet<String> = std::fs::read_dir(root().join("docs/errors"))
        .expect("docs/errors")
        .filter_map(Result::ok)
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".md")?.to_owned()))
        .filter(|name| !["README", "index"].contains(&name.as_str()))
        .collect();

    let missing: Vec<&String> = codes.difference(&pages).collect();
    let stale: Vec<&String> = pages.difference(&codes).collect();

    assert!(missing.is_empty(), "docs/errors/<code>.md is missing for {missing:?}");
    assert!(stale.is_empty(), "the server never answers {stale:?}");
}

#[test]
fn the_lexer_of_this_test_tells_code_from_texts() {
    let (code, texts) = lex(
        "let a = \"x\\\"y\"; // \"no\"\n/* \"no\" */ let b = r#\"q\"r\"#; let c = '\"'; let d: &'static str = \"z\"; StatusCode::OK,\n \"code\"",
    );

    assert_eq!(
        texts.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(),
        ["x\"y", "q\"r", "z", "code"]
    );
    assert!(!code.contains("no"));
    assert!(texts[3].0.ends_with("StatusCode::OK,"));
}
