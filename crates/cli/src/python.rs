//! The Python package, carried inside the binary, and the interpreter that runs it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

include!(concat!(env!("OUT_DIR"), "/python_package.rs"));

/// Writes the package under `state`, once for each version of it, and returns the folder for `PYTHONPATH`.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn unpack(state: &Path) -> anyhow::Result<PathBuf> {
    let folder = state.join("python").join(PACKAGE_DIGEST);
    let package = folder.join("interlock");
    if folder.join("complete").exists() {
        return Ok(folder);
    }
    std::fs::create_dir_all(&package).with_context(|| format!("create {}", package.display()))?;
    for (name, text) in PACKAGE {
        std::fs::write(package.join(name), text)
            .with_context(|| format!("write {}", package.join(name).display()))?;
    }
    std::fs::write(folder.join("complete"), "")?;
    Ok(folder)
}

/// The interpreter: as told, else of the active virtual environment, else `python3`.
pub(crate) fn interpreter(told: Option<PathBuf>) -> PathBuf {
    told.or_else(|| {
        let environment = std::env::var_os("VIRTUAL_ENV")?;
        let python = Path::new(&environment).join("bin/python3");
        python.exists().then_some(python)
    })
    .unwrap_or_else(|| PathBuf::from("python3"))
}

/// Runs the linter of the package on a file and returns its report.
///
/// # Errors
/// When Python cannot be run or its answer is not a report.
pub(crate) fn lint(file: &Path) -> anyhow::Result<serde_json::Value> {
    let folder = scratch()?;
    let package = unpack(&folder)?;
    let python = interpreter(std::env::var_os("INTERLOCK_PYTHON").map(PathBuf::from));
    let output = Command::new(&python)
        .args(["-m", "interlock.lint"])
        .arg(file)
        .env("PYTHONPATH", &package)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .with_context(|| format!("run {}", python.display()))?;
    match serde_json::from_slice(&output.stdout) {
        Ok(report) => Ok(report),
        Err(_) => bail!("the linter did not answer: {}", String::from_utf8_lossy(&output.stderr).trim()),
    }
}

fn scratch() -> anyhow::Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .context("find a cache folder: HOME is not set")?;
    Ok(base.join("interlock"))
}
