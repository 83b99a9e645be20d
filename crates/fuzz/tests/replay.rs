//! The kept inputs, through every target: what was found once stays mended.

use std::fs;
use std::path::Path;

use interlock_fuzz::TARGETS;

#[test]
fn every_kept_input_is_taken_without_a_panic() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora");
    for (name, target) in TARGETS {
        let mut inputs: Vec<_> = fs::read_dir(corpora.join(name))
            .unwrap_or_else(|error| panic!("corpora/{name}: {error}"))
            .map(|entry| entry.expect("the folder can be read").path())
            .collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "corpora/{name} holds nothing");
        for input in inputs {
            let bytes = fs::read(&input).expect("the input can be read");
            let caught = std::panic::catch_unwind(|| target(&bytes));
            assert!(caught.is_ok(), "{name} panics on {}", input.display());
            // Cut off anywhere, and with one byte changed: cheap neighbours of what is known to go deep.
            for at in (0..bytes.len()).step_by(bytes.len() / 16 + 1) {
                let mut changed = bytes.clone();
                changed[at] ^= 0x20;
                for neighbour in [&bytes[..at], &changed[..]] {
                    let caught = std::panic::catch_unwind(|| target(neighbour));
                    assert!(
                        caught.is_ok(),
                        "{name} panics near {} at byte {at}: {neighbour:?}",
                        input.display()
                    );
                }
            }
        }
    }
}
