//! One target, driven by libFuzzer when built by `tools/fuzz` (`--cfg fuzzing`); otherwise the same target over the files named.
//!
//! `INTERLOCK_FUZZ` names the target. The list of targets is printed when it names none.
#![cfg_attr(fuzzing, no_main)]

use std::sync::OnceLock;

use interlock_fuzz::{TARGETS, Target};

/// The target that was asked for.
fn target() -> Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("INTERLOCK_FUZZ").unwrap_or_default();
        let found = TARGETS.iter().find(|(known, _)| *known == name);
        let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        found.unwrap_or_else(|| panic!("set INTERLOCK_FUZZ to one of: {}", names.join(" "))).1
    })
}

#[cfg(fuzzing)]
mod door {
    /// What libFuzzer calls, once for each input, never from two threads.
    #[expect(unsafe_code, reason = "libFuzzer's interface is C; it hands over a pointer and a length")]
    #[unsafe(no_mangle)]
    extern "C" fn LLVMFuzzerTestOneInput(data: *const u8, length: usize) -> std::ffi::c_int {
        let bytes: &[u8] = if length == 0 {
            &[]
        } else {
            // SAFETY: libFuzzer gives `length` bytes that stay where they are until this returns.
            unsafe { std::slice::from_raw_parts(data, length) }
        };
        super::target()(bytes);
        0
    }
}

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    for path in std::env::args_os().skip(1) {
        target()(&std::fs::read(path)?);
    }
    Ok(())
}
