//! The steps from an empty database to the present schema, and the check of what a database says it has been through.
//!
//! Steps only go forward and are never edited: each is recorded with the SHA-256 of its text, and a database whose record
//! differs from this program's is refused rather than guessed at. The SQL that runs them is in each backend's `migrate.rs`.

use sha2::{Digest, Sha256};

use crate::Error;

/// One step. Its number is its place in the list, from 1.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// File name without the ending.
    pub name: &'static str,
    /// Statements, separated by semicolons.
    pub sql: &'static str,
}

/// What a database has recorded about a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The step's number.
    pub number: i64,
    /// SHA-256 of its text.
    pub sha256: Vec<u8>,
}

/// The steps of the SQLite backend.
#[cfg(feature = "sqlite")]
pub const SQLITE: &[Step] = &[
    Step { name: "0001_first", sql: include_str!("../migrations/sqlite/0001_first.sql") },
    Step { name: "0002_identity", sql: include_str!("../migrations/sqlite/0002_identity.sql") },
    Step { name: "0003_orchestrator", sql: include_str!("../migrations/sqlite/0003_orchestrator.sql") },
    Step { name: "0004_seals", sql: include_str!("../migrations/sqlite/0004_seals.sql") },
    Step { name: "0005_webhooks", sql: include_str!("../migrations/sqlite/0005_webhooks.sql") },
    Step { name: "0006_held", sql: include_str!("../migrations/sqlite/0006_held.sql") },
    Step { name: "0007_run_notes", sql: include_str!("../migrations/sqlite/0007_run_notes.sql") },
    Step { name: "0008_executions", sql: include_str!("../migrations/sqlite/0008_executions.sql") },
    Step { name: "0009_two_approvers", sql: include_str!("../migrations/sqlite/0009_two_approvers.sql") },
];

/// The steps of the PostgreSQL backend.
#[cfg(feature = "postgres")]
pub const POSTGRES: &[Step] = &[
    Step { name: "0001_first", sql: include_str!("../migrations/postgres/0001_first.sql") },
    Step { name: "0002_identity", sql: include_str!("../migrations/postgres/0002_identity.sql") },
    Step { name: "0003_orchestrator", sql: include_str!("../migrations/postgres/0003_orchestrator.sql") },
    Step { name: "0004_seals", sql: include_str!("../migrations/postgres/0004_seals.sql") },
    Step { name: "0005_webhooks", sql: include_str!("../migrations/postgres/0005_webhooks.sql") },
    Step { name: "0006_held", sql: include_str!("../migrations/postgres/0006_held.sql") },
    Step { name: "0007_run_notes", sql: include_str!("../migrations/postgres/0007_run_notes.sql") },
    Step { name: "0008_executions", sql: include_str!("../migrations/postgres/0008_executions.sql") },
    Step { name: "0009_two_approvers", sql: include_str!("../migrations/postgres/0009_two_approvers.sql") },
];

/// What is recorded for a step.
pub fn fingerprint(step: &Step) -> [u8; 32] {
    Sha256::digest(step.sql.as_bytes()).into()
}

/// Compares a database's record with `steps` and returns those that are still to run, with their numbers.
///
/// # Errors
/// [`Error::Newer`] if the database knows steps that this program does not; [`Error::Corrupt`] if a recorded step has
/// another text here, or the record has a gap.
pub fn pending<'s>(steps: &'s [Step], applied: &[Applied]) -> Result<Vec<(i64, &'s Step)>, Error> {
    if applied.len() > steps.len() {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        return Err(Error::Newer { found: count(applied.len()), known: count(steps.len()) });
    }
    let mut numbered = (1_i64..).zip(steps);
    for (record, (number, step)) in applied.iter().zip(numbered.by_ref()) {
        if record.number != number {
            return Err(Error::Corrupt(format!(
                "the database's record of migrations has {} where {number} belongs",
                record.number
            )));
        }
        if record.sha256 != fingerprint(step) {
            return Err(Error::Corrupt(format!(
                "migration {} was applied with another text than this program carries; install the version that made this \
                 database or restore a backup",
                step.name
            )));
        }
    }
    Ok((1_i64..).zip(steps).skip(applied.len()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: &[Step] = &[Step { name: "0001_a", sql: "a" }, Step { name: "0002_b", sql: "b" }];

    fn record(number: i64, step: &Step) -> Applied {
        Applied { number, sha256: fingerprint(step).to_vec() }
    }

    #[test]
    fn a_new_database_gets_every_step_and_a_current_one_gets_none() {
        let all = pending(STEPS, &[]).expect("an empty record is fine");
        assert_eq!(
            all.iter().map(|(number, step)| (*number, step.name)).collect::<Vec<_>>(),
            [(1, "0001_a"), (2, "0002_b")]
        );

        let current = [record(1, &STEPS[0]), record(2, &STEPS[1])];
        assert!(pending(STEPS, &current).expect("a current record is fine").is_empty());
        assert_eq!(pending(STEPS, &current[..1]).expect("an older record is fine").len(), 1);
    }

    #[test]
    fn a_newer_database_is_refused() {
        let newer = [record(1, &STEPS[0]), record(2, &STEPS[1]), record(3, &STEPS[1])];

        assert!(matches!(pending(STEPS, &newer), Err(Error::Newer { found: 3, known: 2 })));
    }

    #[test]
    fn a_changed_or_missing_step_is_refused() {
        assert!(matches!(pending(STEPS, &[record(1, &STEPS[1])]), Err(Error::Corrupt(_))));
        assert!(matches!(pending(STEPS, &[record(2, &STEPS[1])]), Err(Error::Corrupt(_))));
    }
}
