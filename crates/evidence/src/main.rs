//! `interlock-verify`: checks an exported audit log, or the proof of one entry, with the public key and nothing of the server.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use interlock_evidence::bundle::{self, BundleError};
use interlock_evidence::checkpoint::VerifyingKey;
use interlock_evidence::examine::Trust;
use interlock_evidence::proof::Proof;

const USAGE: &str = "\
Checks an audit log that `interlock audit export` wrote, or a proof of `interlock audit prove`.

usage: interlock-verify --key KEY [--key KEY]... [--noted FILE] LOG
       interlock-verify --key KEY [--key KEY]... --proof FILE

  --key KEY      who is trusted to sign: NAME+HASH+KEY, as `interlock audit key` prints it; or a file of such lines
  --noted FILE   checkpoints that were kept somewhere else (the file of AUDIT_ANCHOR_FILE): the log must hold them too
  --proof FILE   the proof of one entry instead of a log

Take the key from whoever runs the server, not from the log. Exit code 0: good; 1: not; 2: could not be checked.
";

/// What was asked for.
#[derive(Default)]
struct Asked {
    keys: Vec<VerifyingKey>,
    noted: Option<PathBuf>,
    proof: Option<PathBuf>,
    log: Option<PathBuf>,
}

/// Why there is no answer, or the answer is no.
enum Failure {
    /// Nothing was checked.
    Unchecked(String),
    /// It is not what was signed.
    Bad(String),
}

fn ask(mut arguments: impl Iterator<Item = String>) -> Result<Asked, String> {
    let mut asked = Asked::default();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--key" => asked.keys.extend(keys(&value()?)?),
            "--noted" => asked.noted = Some(value()?.into()),
            "--proof" => asked.proof = Some(value()?.into()),
            other if other.starts_with('-') => return Err(format!("there is no option {other}")),
            log if asked.log.is_none() => asked.log = Some(log.into()),
            _ => return Err("one log at a time".to_owned()),
        }
    }
    if asked.keys.is_empty() {
        return Err("without --key nobody is trusted, so nothing can be checked".to_owned());
    }
    if asked.log.is_some() == asked.proof.is_some() {
        return Err("name a log, or a proof with --proof".to_owned());
    }
    Ok(asked)
}

fn keys(text: &str) -> Result<Vec<VerifyingKey>, String> {
    let lines = match text.parse::<VerifyingKey>() {
        Ok(key) => return Ok(vec![key]),
        Err(error) => std::fs::read_to_string(text).map_err(|_| format!("--key {text}: {error}"))?,
    };
    let wanted = lines.lines().filter(|line| !line.trim().is_empty());
    wanted.map(|line| line.parse().map_err(|error| format!("{text}: {error}"))).collect()
}

fn open(path: &Path) -> Result<BufReader<File>, Failure> {
    let opened =
        File::open(path).map_err(|error| Failure::Unchecked(format!("{}: {error}", path.display())))?;
    Ok(BufReader::with_capacity(1 << 20, opened))
}

fn trust(asked: &Asked) -> Result<Trust, Failure> {
    let mut trust = Trust::in_keys(asked.keys.clone());
    let Some(path) = &asked.noted else { return Ok(trust) };
    for (number, line) in (1..).zip(open(path)?.lines()) {
        let place =
            |problem: String| Failure::Unchecked(format!("{}, line {number}: {problem}", path.display()));
        let line = line.map_err(|error| place(error.to_string()))?;
        let note = bundle::noted(&line).map_err(|error| place(error.to_string()))?;
        trust.note(&note).map_err(|error| place(error.to_string()))?;
    }
    Ok(trust)
}

fn check(asked: Asked) -> Result<String, Failure> {
    if let Some(path) = &asked.proof {
        let proof: Proof = serde_json::from_reader(open(path)?).map_err(|error| {
            Failure::Unchecked(format!("{}: this is not a proof: {error}", path.display()))
        })?;
        let number = proof.entry.id;
        let checkpoint = proof.verify(&asked.keys).map_err(|error| Failure::Bad(error.to_string()))?;
        return Ok(format!(
            "good: entry {number} is in the log {} of {} entries, signed {}",
            checkpoint.origin, checkpoint.size, checkpoint.at
        ));
    }
    let trust = trust(&asked)?;
    let path = asked.log.unwrap_or_default();
    let report = bundle::verify(open(&path)?, trust).map_err(|error| match error {
        BundleError::Io(error) => Failure::Unchecked(format!("{}: {error}", path.display())),
        other => Failure::Bad(other.to_string()),
    })?;
    let mut words = format!(
        "good: entries {} to {}, {} checkpoints, {} kept elsewhere; the last entry is {}:{}",
        report.first,
        report.last,
        report.checkpoints,
        report.noted,
        report.last,
        interlock_model::id::hexadecimal(&report.hash)
    );
    if let Some(at) = report.signed_at {
        let signed = report.signed;
        words = format!(
            "{words}
signed up to entry {signed} at {at}; what is behind it is chained but not signed yet"
        );
    }
    Ok(words)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() || arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        let _ = std::io::stdout().write_all(USAGE.as_bytes());
        return ExitCode::from(if arguments.is_empty() { 2 } else { 0 });
    }
    let answer = ask(arguments.into_iter())
        .map_err(|problem| Failure::Unchecked(format!("{problem}\n\n{USAGE}")))
        .and_then(check);
    let (words, code) = match answer {
        Ok(words) => {
            let _ = writeln!(std::io::stdout(), "{words}");
            return ExitCode::SUCCESS;
        }
        Err(Failure::Bad(words)) => (format!("NOT GOOD: {words}"), 1),
        Err(Failure::Unchecked(words)) => (format!("not checked: {words}"), 2),
    };
    let _ = writeln!(std::io::stderr(), "{words}");
    ExitCode::from(code)
}
