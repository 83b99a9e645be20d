//! Embeds the Python package: one list of names and texts, and a digest that names its version.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::hash::{Hash as _, Hasher as _};
use std::path::Path;
use std::{env, fs};

fn main() {
    let root =
        Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../../python/interlock");
    println!("cargo::rerun-if-changed={}", root.display());
    let mut names: Vec<String> = fs::read_dir(&root)
        .expect("the repository holds python/interlock")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            Path::new(name).extension().is_some_and(|extension| extension == "py" || extension == "typed")
        })
        .collect();
    names.sort();
    let mut hasher = DefaultHasher::new();
    let mut list = String::from("/// Files of the package.\nconst PACKAGE: &[(&str, &str)] = &[\n");
    for name in &names {
        let path = root.join(name);
        println!("cargo::rerun-if-changed={}", path.display());
        let text = fs::read_to_string(&path).expect("the package is readable");
        (name, &text).hash(&mut hasher);
        let path = path.canonicalize().expect("the file exists");
        writeln!(list, "    ({name:?}, include_str!({:?})),", path.display().to_string())
            .expect("writing to a text");
    }
    writeln!(
        list,
        "];\n/// Changes when any file does.\nconst PACKAGE_DIGEST: &str = \"{:016x}\";",
        hasher.finish()
    )
    .expect("writing to a text");
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("python_package.rs");
    fs::write(out, list).expect("cargo's folder is writable");
}
