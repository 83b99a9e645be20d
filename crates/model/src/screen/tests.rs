//! The rules as sentences; rates over the corpora are in `tests/it/screening.rs`.
