//! The only way to write: a proof goes in, and the audit entry commits with the change.

use std::sync::Arc;

use futures::future::BoxFuture;
use interlock_model::audit::AuditDraft;
use interlock_store::{Error, Store, Tx, transact, transact_repeatable};
use serde_json::Value;

use super::notices;
use super::permit::Proof;
use crate::Ambient;
use crate::news::{News, is_news};

/// What a write hands back: a value for the caller and facts for its audit entry.
#[derive(Debug)]
pub struct Recorded<T> {
    /// For the caller.
    pub value: T,
    /// For the audit entry. Never secrets or sensitive values.
    pub details: Value,
}

/// The database behind a proof.
#[derive(Clone)]
pub struct Db {
    store: Arc<dyn Store>,
    ambient: Ambient,
    news: Option<Arc<dyn News>>,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Db")
    }
}

impl Db {
    /// Wraps a storage.
    pub fn new(store: Arc<dyn Store>, ambient: Ambient) -> Self {
        Self { store, ambient, news: None }
    }

    /// Also tells other servers when something was committed that they must know.
    #[must_use]
    pub fn telling(mut self, news: Arc<dyn News>) -> Self {
        self.news = Some(news);
        self
    }

    pub(crate) fn news(&self) -> Option<&dyn News> {
        self.news.as_deref()
    }

    /// Runs `work` in a transaction, appends the audit entry of `proof` to it, and returns when both are durable.
    ///
    /// `Err` from `work` rolls back and leaves no entry. Dropping the future does not undo what has begun.
    ///
    /// # Errors
    /// What `work` returns, or the storage's error when the change or its entry cannot be written: then neither is.
    pub async fn write<P, T, E, F>(&self, proof: &P, work: F) -> Result<T, E>
    where
        P: Proof + ?Sized,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: for<'t> FnOnce(&'t mut dyn Tx) -> BoxFuture<'t, Result<Recorded<T>, E>> + Send + 'static,
    {
        self.write_about(proof, None, work).await
    }

    /// As [`Db::write`], for a subject that the proof does not name because it comes to be only now.
    ///
    /// # Errors
    /// As [`Db::write`].
    pub async fn write_about<P, T, E, F>(&self, proof: &P, subject: Option<String>, work: F) -> Result<T, E>
    where
        P: Proof + ?Sized,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: for<'t> FnOnce(&'t mut dyn Tx) -> BoxFuture<'t, Result<Recorded<T>, E>> + Send + 'static,
    {
        let mut draft = proof.draft(self.ambient.clock.now(), Value::Null);
        draft.subject = subject.or(draft.subject);
        let news = self.news.as_ref().filter(|_| is_news(&draft.action));
        let (value, draft) = transact(&*self.store, move |tx| {
            Box::pin(async move {
                let recorded = work(&mut *tx).await?;
                draft.details = recorded.details;
                notices::changed(&mut *tx, &draft).await?;
                tx.record_audit(&draft).await?;
                Ok::<_, E>((recorded.value, draft))
            })
        })
        .await?;
        proof.mark_recorded();
        notices::log_changed(&draft);
        if let Some(news) = news {
            news.publish();
        }
        Ok(value)
    }

    /// Runs `work` in a transaction that changes counters only. Counting is no act of anybody, so it has no audit entry of its
    /// own; what was counted is recorded by whoever counts.
    pub(crate) async fn count<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut dyn Tx) -> BoxFuture<'t, Result<T, Error>> + Send + 'static,
    {
        transact(&*self.store, work).await
    }

    /// As [`Db::count`], for what a run leaves while it is carried out: its end is recorded, each step is not.
    pub(crate) async fn count_as<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: for<'t> FnOnce(&'t mut dyn Tx) -> BoxFuture<'t, Result<Recorded<T>, E>> + Send + 'static,
    {
        transact(&*self.store, move |tx| Box::pin(async move { Ok(work(tx).await?.value) })).await
    }

    /// As [`Db::write`], for what is written at every call: see [`Store::write_repeatable`].
    ///
    /// # Errors
    /// As [`Db::write`].
    pub async fn write_repeatable<P, T, E, F>(&self, proof: &P, work: F) -> Result<T, E>
    where
        P: Proof + ?Sized,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: for<'t> Fn(&'t mut dyn Tx) -> BoxFuture<'t, Result<Recorded<T>, E>> + Send + Sync + 'static,
    {
        let shared = Arc::new((work, proof.draft(self.ambient.clock.now(), Value::Null)));
        let value = transact_repeatable(&*self.store, move |tx| {
            let shared = Arc::clone(&shared);
            Box::pin(async move {
                let (work, draft) = &*shared;
                let recorded = work(&mut *tx).await?;
                let draft = AuditDraft { details: recorded.details, ..draft.clone() };
                tx.record_audit(&draft).await?;
                Ok::<T, E>(recorded.value)
            })
        })
        .await?;
        proof.mark_recorded();
        Ok(value)
    }

    /// Committed data, for use cases that hold a permit.
    pub(crate) fn read(&self) -> &dyn Store {
        &*self.store
    }
}
