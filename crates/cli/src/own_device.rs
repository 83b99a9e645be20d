//! The device of this process, as the steps of its own tasks reach it: over its listener, signed in as somebody.
//!
//! Only `interlock dev` has both profiles in one process. A token that has ended is replaced by signing in again; a request that
//! was refused for its token did nothing, so it is sent once more.

use async_trait::async_trait;
use interlock_client::{Client, ClientError, Submission};
use interlock_model::RunId;
use interlock_model::device::ActionSpec;
use interlock_model::secret::Secret;
use interlock_model::wire::{RunEventView, RunView};
use interlock_tools::device::Link;
use tokio::sync::Mutex;

/// The way to it.
pub(crate) struct OwnDevice {
    url: String,
    user: String,
    password: Secret,
    client: Mutex<Option<Client>>,
}

impl OwnDevice {
    /// At `url`, as `user`.
    pub(crate) fn new(url: String, user: &str, password: Secret) -> Self {
        Self { url, user: user.to_owned(), password, client: Mutex::new(None) }
    }

    /// A client with a token, a new one if `renew`.
    async fn client(&self, renew: bool) -> Result<Client, ClientError> {
        let mut kept = self.client.lock().await;
        if let Some(client) = kept.as_ref().filter(|_| !renew) {
            return Ok(client.clone());
        }
        let answer =
            Client::builder(&self.url).build()?.login(&self.user, &self.password, None, None).await?;
        let client = Client::builder(&self.url).token(Secret::new(answer.access_token)).build()?;
        *kept = Some(client.clone());
        Ok(client)
    }

    async fn ask<T, F>(&self, ask: impl Fn(Client) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        match ask(self.client(false).await?).await {
            Err(ClientError::SignInNeeded(_)) => ask(self.client(true).await?).await,
            answer => answer,
        }
    }
}

#[async_trait]
impl Link for OwnDevice {
    async fn actions(&self) -> Result<Vec<ActionSpec>, ClientError> {
        self.ask(|client| async move { Link::actions(&client).await }).await
    }

    async fn submit(&self, submission: &Submission) -> Result<RunId, ClientError> {
        self.ask(|client| async move { Link::submit(&client, submission).await }).await
    }

    async fn run(&self, run: RunId) -> Result<RunView, ClientError> {
        self.ask(|client| async move { Link::run(&client, run).await }).await
    }

    async fn follow(
        &self,
        run: RunId,
        after: u64,
        heard: &(dyn Fn(RunEventView) + Send + Sync),
    ) -> Result<(), ClientError> {
        self.ask(|client| async move { Link::follow(&client, run, after, heard).await }).await
    }

    async fn cancel(&self, run: RunId, reason: &str) -> Result<(), ClientError> {
        self.ask(|client| async move { Link::cancel(&client, run, reason).await }).await
    }
}
