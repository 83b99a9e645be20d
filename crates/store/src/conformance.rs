//! The rules that every backend keeps, as cases that run on a fresh database each.
//!
//! A case takes the store and panics where a rule is broken. [`conformance_suite!`](crate::conformance_suite) makes a test of
//! each; the list there is the only one, so no backend can leave a case out.

pub mod audit;
pub mod bans;
pub mod deliveries;
pub mod identity;
pub mod keys;
pub mod notes;
pub mod orchestrator;
pub mod runs;
pub mod users;
pub mod writes;

use std::sync::Arc;

use futures::future::{BoxFuture, join_all};
use interlock_model::audit::AuditDraft;
use interlock_model::run::RunState;
use interlock_model::{RunId, Timestamp};
use serde_json::json;

use crate::{Error, Page, RunRow, Store, Tx, transact};

/// Makes a test of every case. `$on_fresh` is an async function that takes a case, an async function over
/// `Arc<dyn Store>`, and runs it on a new database.
#[macro_export]
macro_rules! conformance_suite {
    ($on_fresh:path) => {
        $crate::conformance_suite! { @cases $on_fresh;
            users::a_name_is_taken_once,
            users::a_stale_version_is_refused,
            users::names_are_listed_in_byte_order,
            users::a_rule_over_all_users_holds_when_many_change_them,
            users::the_change_mark_moves_with_users_and_revocations_only,
            users::a_revocation_survives_until_it_expires,
            runs::a_run_ends_once,
            runs::a_run_cannot_end_as_running,
            runs::pages_are_newest_first_with_totals,
            runs::an_empty_list_is_empty,
            runs::open_runs_are_listed_oldest_first,
            runs::events_keep_their_order,
            runs::an_event_is_never_replaced,
            runs::old_runs_of_a_device_are_found_and_deleted_with_their_events,
            runs::times_survive_to_the_microsecond,
            runs::texts_and_json_survive,
            runs::a_text_with_nul_is_refused_and_never_found,
            keys::a_key_is_claimed_by_one_of_many,
            keys::a_claim_that_is_rolled_back_frees_the_key,
            keys::an_expired_key_can_be_taken_again,
            keys::a_key_is_rebound,
            identity::a_record_is_read_back,
            identity::an_id_and_an_alias_are_taken_once,
            identity::a_record_is_changed_by_one_of_many,
            identity::the_feed_misses_nothing,
            identity::a_record_is_forgotten_after_its_end,
            identity::a_document_keeps_its_type,
            bans::a_ban_is_kept_replaced_and_forgotten,
            bans::an_automatic_ban_never_shortens_another,
            bans::a_ban_outlives_its_end_until_it_may_be_forgotten,
            bans::the_change_mark_moves_with_bans,
            audit::the_chain_verifies_under_concurrent_appenders,
            audit::a_rolled_back_entry_leaves_no_gap,
            audit::details_read_back_to_the_same_hash,
            audit::a_stranger_cannot_stop_the_record_with_odd_texts,
            audit::rows_are_filtered_and_paged,
            audit::rows_are_found_and_counted_by_their_details,
            audit::tiles_and_seals_are_read_back,
            audit::old_entries_are_deleted_and_the_chain_goes_on,
            orchestrator::a_task_is_read_back_and_changed,
            orchestrator::a_dedupe_key_belongs_to_one_living_task,
            orchestrator::tasks_are_filtered_and_paged,
            orchestrator::a_due_time_is_fired_by_one_of_many,
            orchestrator::a_run_lines_up_once,
            orchestrator::a_run_is_claimed_by_one_of_many,
            orchestrator::priorities_order_the_queue_and_starve_nobody,
            orchestrator::a_late_finish_is_fenced_off,
            orchestrator::a_dead_workers_runs_are_rescued,
            orchestrator::the_dead_claim_nothing,
            orchestrator::a_worker_that_comes_back_acquits_its_runs,
            orchestrator::a_run_is_suspected_only_by_workers_that_went_on_with_it,
            orchestrator::a_failed_run_is_tried_again,
            orchestrator::a_run_that_was_cancelled_does_not_wait,
            orchestrator::a_concurrency_key_is_held_by_one_run,
            orchestrator::waiting_runs_are_held_delayed_and_withdrawn,
            orchestrator::every_run_is_listed_once_newest_first,
            orchestrator::a_reader_of_events_misses_nothing,
            orchestrator::an_event_finds_its_listeners_and_is_kept_for_their_runs,
            orchestrator::a_window_admits_one_trigger,
            orchestrator::an_approval_is_decided_once_and_used_once,
            orchestrator::the_first_of_two_words_is_kept_once,
            orchestrator::an_answer_is_kept_under_its_key,
            orchestrator::old_runs_are_deleted_in_batches,
            deliveries::an_outcome_and_that_it_is_told_are_one_write,
            deliveries::a_delivery_is_tried_by_one_at_a_time,
            deliveries::an_outcome_that_was_told_is_at_rest,
            notes::what_a_run_told_is_read_on_from_anywhere,
            writes::a_rolled_back_write_leaves_no_trace,
            writes::a_repeatable_write_that_is_undone_takes_nobody_with_it,
            writes::a_failed_statement_cannot_be_committed,
            writes::a_write_sees_its_own_changes_and_nobody_else_does,
            writes::a_panic_costs_one_write_only,
            writes::a_caller_who_gives_up_does_not_undo_the_write,
            writes::ten_thousand_concurrent_writes_all_land,
            writes::a_large_batch_lands_whole,
            writes::a_closed_store_says_so,
        }
    };
    (@cases $on_fresh:path; $($module:ident :: $case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $on_fresh($crate::conformance::$module::$case).await;
            }
        )*
    };
}

/// An arbitrary time in 2026.
const NOW: Timestamp = Timestamp::from_seconds(1_780_000_000);

/// A page that holds everything of a small test.
const ALL: Page = Page { limit: 200, offset: 0 };

fn after(micros: i64) -> Timestamp {
    Timestamp::from_micros(NOW.micros() + micros)
}

fn run_id(number: u32) -> RunId {
    format!("run_{number:032x}").parse().expect("32 hexadecimal digits")
}

fn run_row(number: u32) -> RunRow {
    RunRow {
        id: run_id(number),
        device: "ot2".to_owned(),
        action: "mix".to_owned(),
        state: RunState::Queued,
        simulated: false,
        parameters: json!({ "volume": 12.5 }),
        result: None,
        error: None,
        actor: "ana".to_owned(),
        request_id: format!("request-{number}"),
        created_at: after(i64::from(number)),
        started_at: None,
        finished_at: None,
        duration_ms: None,
    }
}

fn draft(subject: &str) -> AuditDraft {
    AuditDraft {
        at: NOW,
        actor: Some("ana".to_owned()),
        action: "device.executed".to_owned(),
        subject: Some(subject.to_owned()),
        details: json!({ "b": 1, "a": [true, null] }),
        client_ip: Some("192.0.2.1".to_owned()),
        request_id: None,
    }
}

/// A write that must be committed.
async fn put<T, F>(store: &dyn Store, work: F) -> T
where
    T: Send + 'static,
    F: for<'t> FnOnce(&'t mut dyn Tx) -> BoxFuture<'t, Result<T, Error>> + Send + 'static,
{
    transact(store, work).await.expect("the write is committed")
}

/// Runs `task` for every number below `count` at once and returns what each gives.
async fn at_once<T, F, Fut>(store: &Arc<dyn Store>, count: u32, task: F) -> Vec<T>
where
    T: Send + 'static,
    F: Fn(Arc<dyn Store>, u32) -> Fut,
    Fut: Future<Output = T> + Send + 'static,
{
    let tasks = (0..count).map(|number| tokio::spawn(task(Arc::clone(store), number)));
    join_all(tasks).await.into_iter().map(|joined| joined.expect("no task panics")).collect()
}
