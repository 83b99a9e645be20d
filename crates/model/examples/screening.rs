//! Prints what the detector makes of the corpora: rates for each place and family, and the time it takes.
//!
//! `cargo run --profile fast -p interlock-model --example screening`

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use interlock_model::screen::{Meter, Place, inspect};

const PLACES: [Place; 5] = [Place::Path, Place::Query, Place::Header, Place::Label, Place::FreeText];

fn corpus(name: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpora").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    text.lines().map(str::to_owned).filter(|line| !line.is_empty()).collect()
}

#[expect(clippy::print_stdout, reason = "a table for people")]
fn main() {
    println!(
        "{:<22}{:>6}{:>9}{:>9}{:>9}{:>9}{:>11}",
        "corpus", "texts", "path", "query", "header", "label", "free text"
    );
    let attacks = ["sql", "markup", "traversal", "shell", "template", "nosql", "ldap", "xxe"]
        .map(|name| format!("attacks/{name}.txt"));
    let honest = ["texts", "chat", "code", "queries", "user_agents"].map(|name| format!("honest/{name}.txt"));
    for name in attacks.iter().chain(&honest) {
        let texts = corpus(name);
        let mut line = format!("{name:<22}{:>6}", texts.len());
        for place in PLACES {
            let hits = texts
                .iter()
                .filter(|text| {
                    // Encoded as a client would, so that every character arrives.
                    let raw: String = match place {
                        Place::Path | Place::Query if !name.ends_with("queries.txt") => text
                            .bytes()
                            .fold(String::new(), |encoded, byte| encoded + &format!("%{byte:02x}")),
                        _ => (*text).clone(),
                    };
                    inspect(place, raw.as_bytes(), &mut Meter::default()).is_some()
                })
                .count();
            let share = 1000 * hits / texts.len().max(1);
            let width = if place == Place::FreeText { 10 } else { 8 };
            let _ = write!(line, "{:>width$}%", format!("{}.{}", share / 10, share % 10));
        }
        println!("{line}");
    }
    println!("\n{:<22}{:>12}{:>14}", "64 KiB of", "ns a byte", "steps a byte");
    for unit in [
        "plain words and 5 µL ",
        "<a ",
        "<a b=\"",
        "1 or ",
        "' or 1=",
        "select a from b where ",
        "{{",
        "${${",
        "(a=",
        "../",
        "%25",
        "/e",
        "; cat ",
        "`id ",
    ] {
        let text = unit.repeat(65_536 / unit.len());
        let mut meter = Meter::default();
        let begun = Instant::now();
        let _ = inspect(Place::FreeText, text.as_bytes(), &mut meter);
        let spent = begun.elapsed().as_nanos();
        println!(
            "{:<22}{:>12}{:>14}",
            format!("{unit:?}"),
            spent / text.len() as u128,
            meter.steps() / text.len() as u64
        );
    }
}
