//! The connectors against real servers (slapd, oidc-provider) and against servers that mean harm.

mod ldap_hostile;
mod ldap_real;
mod oidc_hostile;
mod oidc_real;
mod provider;
mod workloads;

use interlock_directory::{DirectoryError, Outcome, Refusal, Step};

/// The refusal in a result; anything else is a failure of the test.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, DirectoryError>) -> Refusal {
    match result {
        Err(DirectoryError::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

/// Name and outcome of each step.
fn outcomes(steps: &[Step]) -> Vec<(&'static str, Outcome)> {
    steps.iter().map(|step| (step.name, step.outcome)).collect()
}

#[track_caller]
fn step<'a>(steps: &'a [Step], name: &str) -> &'a Step {
    steps.iter().find(|step| step.name == name).unwrap_or_else(|| panic!("no step {name}: {steps:#?}"))
}
