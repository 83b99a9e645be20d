//! What a caller may be permitted to do: one type per kind of act.
//!
//! The type carries everything that authorisation, audit, metrics and documents need to know, so that a handler declares it
//! once, in its signature. Tokens for these types exist only as `engine::auth::Permit`.

use std::time::Duration;

use serde::Deserialize;

use crate::{AgentId, RunId};

/// How an act gets into the audit trail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// It changes nothing: recorded in batches, off the request's path.
    Read,
    /// It changes stored data: the record commits with the change.
    Change,
    /// It has an effect outside the database: intent before, outcome after.
    Act,
}

/// What a caller needs to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Needs {
    /// A scope.
    Scope(&'static str),
    /// To execute this device action.
    Execute {
        /// `device/action`.
        target: String,
        /// The role that may; a scope that covers the target will do as well.
        role: String,
    },
    /// To be signed in, nothing more.
    SignedIn,
    /// To be a person in a session of its own with its roles: neither software nor a key nor a narrowed session.
    Person,
}

/// How long a proof of identity is fresh.
pub const FRESH_FOR: Duration = Duration::from_mins(15);

/// How fresh the proof of identity must be (RFC 9470).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fresh {
    /// The session is enough.
    No,
    /// People who have a second factor must have shown it within [`FRESH_FOR`].
    SecondFactor,
    /// People must have proved who they are within [`FRESH_FOR`], with the second factor if they have one.
    Proof,
}

/// Facts about the installation that a decision may depend on.
pub trait World: Send + Sync {
    /// The role that may execute this device action, if the action exists.
    fn action_role(&self, action: &str) -> Option<String>;
    /// Short name of the device that `/execute` reaches.
    fn device(&self) -> &str;
}

/// A kind of act.
pub trait Action: Send + Sync + 'static {
    /// What it is done to; deserialised from the request's path.
    type Target: Target;
    /// Name in the audit trail and the documents.
    const NAME: &'static str;
    /// How it is recorded.
    const RECORDING: Recording;
    /// How fresh the caller's proof of identity must be.
    const FRESH: Fresh = Fresh::No;
    /// The use case goes on by itself, and is recorded, when nobody waits for it any more. Where it does not, the server sees
    /// to that.
    const GOES_ON: bool = false;
    /// What the caller needs to hold.
    fn needs(target: &Self::Target, world: &dyn World) -> Needs;
}

/// What an act is done to.
pub trait Target: Send + Sync + 'static {
    /// How the audit trail names it.
    fn subject(&self) -> Option<String>;
}

/// The installation as a whole.
#[derive(Debug, Deserialize)]
pub struct Installation {}

impl Target for Installation {
    fn subject(&self) -> Option<String> {
        None
    }
}

/// A device action, by name. The name is what the caller wrote; it may not exist.
#[derive(Debug, Deserialize)]
pub struct DeviceActionTarget {
    /// The name.
    pub task: String,
}

impl Target for DeviceActionTarget {
    fn subject(&self) -> Option<String> {
        Some(self.task.chars().take(64).collect())
    }
}

/// A run.
#[derive(Debug, Deserialize)]
pub struct RunTarget {
    /// The run.
    pub run_id: RunId,
}

impl Target for RunTarget {
    fn subject(&self) -> Option<String> {
        Some(self.run_id.to_string())
    }
}

/// A file that a run produced.
#[derive(Debug, Deserialize)]
pub struct ArtifactTarget {
    /// The run.
    pub run_id: RunId,
    /// The file's name.
    pub name: String,
}

impl Target for ArtifactTarget {
    fn subject(&self) -> Option<String> {
        Some(self.run_id.to_string())
    }
}

/// A banned network, as the caller wrote it.
#[derive(Debug, Deserialize)]
pub struct BanTarget {
    /// An address or a network.
    pub network: String,
}

impl Target for BanTarget {
    fn subject(&self) -> Option<String> {
        Some(self.network.chars().take(64).collect())
    }
}

/// A user, by name.
#[derive(Debug, Deserialize)]
pub struct UserTarget {
    /// The name.
    pub name: String,
}

impl Target for UserTarget {
    fn subject(&self) -> Option<String> {
        Some(self.name.chars().take(64).collect())
    }
}

/// An agent.
#[derive(Debug, Deserialize)]
pub struct AgentTarget {
    /// The agent.
    pub agent_id: AgentId,
}

impl Target for AgentTarget {
    fn subject(&self) -> Option<String> {
        Some(self.agent_id.to_string())
    }
}

/// An outcome that is told to an agent.
#[derive(Debug, Deserialize)]
pub struct DeliveryTarget {
    /// The agent.
    pub agent_id: AgentId,
    /// The run, as the caller wrote it.
    pub run_id: String,
}

impl Target for DeliveryTarget {
    fn subject(&self) -> Option<String> {
        Some(self.run_id.chars().take(64).collect())
    }
}

/// A thing with a short id of our own making: an API key, a session, an invitation.
#[derive(Debug, Deserialize)]
pub struct IdTarget {
    /// The id as the caller wrote it; it may not exist.
    pub id: String,
}

impl Target for IdTarget {
    fn subject(&self) -> Option<String> {
        Some(self.id.chars().take(64).collect())
    }
}

macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident { $(#[$field_doc:meta])* $field:ident })*) => {$(
        $(#[$doc])*
        ///
        /// As the caller wrote it: whether it is a UUID is told by whoever may know.
        #[derive(Debug, Deserialize)]
        pub struct $name {
            $(#[$field_doc])*
            pub $field: String,
        }

        impl Target for $name {
            fn subject(&self) -> Option<String> {
                Some(self.$field.chars().take(64).collect())
            }
        }
    )*};
}

texts! {
    /// A task.
    TaskTarget {
        /// The task.
        task_id
    }
    /// A run of a task.
    TaskRunTarget {
        /// The run.
        run_id
    }
    /// A question to a person.
    ApprovalTarget {
        /// The question.
        approval_id
    }
}

/// A role, by name.
#[derive(Debug, Deserialize)]
pub struct RoleTarget {
    /// The name.
    pub role: String,
}

impl Target for RoleTarget {
    fn subject(&self) -> Option<String> {
        Some(self.role.chars().take(64).collect())
    }
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $target:ty, $recording:ident, $needs:expr $(, $fresh:ident)?;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $name {}

        impl Action for $name {
            type Target = $target;
            const NAME: &'static str = $text;
            const RECORDING: Recording = Recording::$recording;
            $(const FRESH: Fresh = Fresh::$fresh;)?
            fn needs(_: &Self::Target, _: &dyn World) -> Needs {
                $needs
            }
        }
    )*};
}

actions! {
    /// See what a device offers.
    ListActions = "actions.listed", Installation, Read, Needs::Scope("actions:read");
    /// See how a device is.
    ReadDevice = "device.read", Installation, Read, Needs::Scope("devices:read");
    /// See runs.
    ListRuns = "runs.listed", Installation, Read, Needs::Scope("runs:read");
    /// See one run and its events.
    ReadRun = "run.read", RunTarget, Read, Needs::Scope("runs:read");
    /// Download a file that a run produced.
    ReadArtifact = "run.artifact_read", ArtifactTarget, Read, Needs::Scope("runs:read");
    /// Cancel a queued or running run.
    CancelRun = "run.cancelled", RunTarget, Act, Needs::Scope("runs:cancel");
    /// Engage the emergency stop. Whoever is signed in may.
    EmergencyStop = "device.stopped", Installation, Act, Needs::SignedIn;
    /// Release the emergency stop.
    ReleaseStop = "device.released", Installation, Act, Needs::Scope("devices:release"), SecondFactor;
    /// Confirm that a person has looked at the device.
    ClearAttention = "device.attention_cleared", Installation, Act, Needs::Scope("devices:attention");
    /// See users.
    ListUsers = "users.listed", Installation, Read, Needs::Scope("users:read");
    /// Make a user.
    CreateUser = "user.created", Installation, Change, Needs::Scope("users:manage"), SecondFactor;
    /// Change a user's roles or state.
    UpdateUser = "user.updated", UserTarget, Change, Needs::Scope("users:manage"), SecondFactor;
    /// Set a user's password.
    SetPassword = "user.password_set", UserTarget, Change, Needs::Scope("users:manage"), SecondFactor;
    /// Invite somebody by a link that works once.
    Invite = "invitation.made", Installation, Change, Needs::Scope("users:manage"), SecondFactor;
    /// See invitations.
    ListInvitations = "invitations.listed", Installation, Read, Needs::Scope("users:manage");
    /// Take an invitation back.
    RevokeInvitation = "invitation.revoked", IdTarget, Change, Needs::Scope("users:manage"), SecondFactor;
    /// See which networks are refused.
    ListBans = "bans.listed", Installation, Read, Needs::Scope("bans:read");
    /// Refuse a network.
    AddBan = "ban.added", Installation, Change, Needs::Scope("bans:manage");
    /// Serve a refused network again.
    RemoveBan = "ban.removed", BanTarget, Change, Needs::Scope("bans:manage");
    /// Read the audit trail.
    ReadAudit = "audit.read", Installation, Read, Needs::Scope("audit:read");
    /// Read the metrics.
    ReadMetrics = "metrics.read", Installation, Read, Needs::Scope("metrics:read");
    /// Read the API documents of a production server.
    ReadDocs = "docs.read", Installation, Read, Needs::Scope("docs:read");
    /// See who one is.
    WhoAmI = "session.read", Installation, Read, Needs::SignedIn;
    /// End one's own session.
    LogOut = "token.revoked", Installation, Change, Needs::SignedIn;
    /// Change one's own password.
    ChangePassword = "user.password_changed", Installation, Change, Needs::Person;
    /// Prove again who one is.
    StepUp = "session.stepped_up", Installation, Change, Needs::Person;
    /// See what one is told about one's own account.
    ListNotices = "notices.listed", Installation, Read, Needs::Person;
    /// Say that one has seen it.
    ReadNotices = "notices.read", Installation, Change, Needs::Person;
    /// See all principals with their rights and credentials.
    ReviewAccess = "access.reviewed", Installation, Read, Needs::Scope("audit:read");
    /// See which device a code lets in.
    ShowDeviceCode = "device_code.shown", Installation, Read, Needs::Person;
    /// Let a device in as oneself.
    ApproveDevice = "device_code.approved", Installation, Change, Needs::Person, Proof;
    /// Keep a device out.
    DenyDevice = "device_code.denied", Installation, Change, Needs::Person;
    /// See one's own second factors.
    ListFactors = "factors.listed", Installation, Read, Needs::Person;
    /// Set up an authenticator app.
    EnrolFactor = "factor.enrolled", Installation, Change, Needs::Person, Proof;
    /// Give the first code of an authenticator app.
    ConfirmFactor = "factor.confirmed", Installation, Change, Needs::Person, Proof;
    /// Remove one's own second factor.
    RemoveFactor = "factor.removed", IdTarget, Change, Needs::Person, Proof;
    /// Make new recovery codes.
    RenewRecoveryCodes = "recovery_codes.made", Installation, Change, Needs::Person, Proof;
    /// Remove the second factors of somebody who has lost them.
    ResetFactors = "user.factors_reset", UserTarget, Change, Needs::Scope("users:manage"), SecondFactor;
    /// Let somebody who has lost a credential replace it, by a token that works once.
    StartReset = "user.reset_started", UserTarget, Change, Needs::Scope("users:manage"), SecondFactor;
    /// Take such tokens back.
    RevokeReset = "user.reset_revoked", UserTarget, Change, Needs::Scope("users:manage"), SecondFactor;
    /// See agents.
    ListAgents = "agents.listed", Installation, Read, Needs::Scope("agents:read");
    /// See one agent. An agent may always see itself; the use case hides the others.
    ReadAgent = "agent.read", AgentTarget, Read, Needs::SignedIn;
    /// Make an agent.
    CreateAgent = "agent.created", Installation, Change, Needs::Scope("agents:manage"), SecondFactor;
    /// Change an agent.
    UpdateAgent = "agent.updated", AgentTarget, Change, Needs::Scope("agents:manage"), SecondFactor;
    /// Disable an agent for good.
    DeleteAgent = "agent.deleted", AgentTarget, Change, Needs::Scope("agents:manage"), SecondFactor;
    /// Make or set an agent's secret.
    SetAgentSecret = "agent.credentials_created", AgentTarget, Change, Needs::Scope("agents:manage"), SecondFactor;
    /// Register whom an agent's certificates name.
    SetAgentCertificates = "agent.certificates_set", AgentTarget, Change, Needs::Scope("agents:manage"), SecondFactor;
    /// Register an agent's public keys.
    SetAgentKeys = "agent.keys_set", AgentTarget, Change, Needs::Scope("agents:manage"), SecondFactor;
    /// Make a new secret for the messages to an agent's webhook.
    RotateWebhookSecret = "agent.webhook_secret_made", AgentTarget, Change, Needs::Scope("agents:manage"), SecondFactor;
    /// Have an outcome told to an agent once more.
    RetryDelivery = "webhook.repeated", DeliveryTarget, Change, Needs::Scope("agents:manage");
    /// End every token of somebody.
    RevokeTokens = "token.revoked", Installation, Change, Needs::Scope("tokens:manage"), SecondFactor;
    /// Ask what a token stands for (RFC 7662).
    Introspect = "token.introspected", Installation, Read, Needs::Scope("tokens:introspect");
    /// See API keys: one's own, or everybody's with `keys:manage`.
    ListApiKeys = "api_keys.listed", Installation, Read, Needs::SignedIn;
    /// Make an API key for oneself, or for another with `keys:manage`.
    CreateApiKey = "api_key.created", Installation, Change, Needs::SignedIn, SecondFactor;
    /// End an API key: one's own, or any with `keys:manage`.
    RevokeApiKey = "api_key.revoked", IdTarget, Change, Needs::SignedIn;
    /// See sessions: one's own, or everybody's with `sessions:manage`.
    ListSessions = "sessions.listed", Installation, Read, Needs::SignedIn;
    /// End a session: one's own, or any with `sessions:manage`.
    EndSession = "session.ended", IdTarget, Change, Needs::SignedIn, Proof;
    /// End all of one's own sessions.
    EndSessions = "sessions.ended", Installation, Change, Needs::SignedIn, Proof;
    /// See roles and their scopes.
    ListRoles = "roles.listed", Installation, Read, Needs::Scope("users:read");
    /// Make or change a custom role.
    PutRole = "role.changed", RoleTarget, Change, Needs::Scope("roles:manage"), SecondFactor;
    /// Delete a custom role.
    DeleteRole = "role.deleted", RoleTarget, Change, Needs::Scope("roles:manage"), SecondFactor;
    /// See at which accounts somebody guesses.
    ListLockouts = "security.lockouts_listed", Installation, Read, Needs::Scope("security:manage");
    /// Forget the guesses at an account.
    Unlock = "security.unlocked", IdTarget, Change, Needs::Scope("security:manage");
    /// Make a task.
    CreateTask = "task.created", Installation, Change, Needs::Scope("tasks:create");
    /// See tasks.
    ListTasks = "tasks.listed", Installation, Read, Needs::Scope("tasks:read");
    /// See one task.
    ReadTask = "task.read", TaskTarget, Read, Needs::Scope("tasks:read");
    /// Change a task.
    UpdateTask = "task.updated", TaskTarget, Change, Needs::Scope("tasks:update");
    /// Have a task run now.
    RunTask = "task.run_now", TaskTarget, Change, Needs::Scope("tasks:update");
    /// Have what waits of a task wait longer.
    SnoozeTask = "task.snoozed", TaskTarget, Change, Needs::Scope("tasks:update");
    /// Leave the next due time of a task out.
    SkipTask = "task.skipped", TaskTarget, Change, Needs::Scope("tasks:update");
    /// Stop a task from running by itself.
    PauseTask = "task.paused", TaskTarget, Change, Needs::Scope("tasks:update");
    /// Let a task run by itself again.
    ResumeTask = "task.resumed", TaskTarget, Change, Needs::Scope("tasks:update");
    /// End a task for good.
    CancelTask = "task.canceled", TaskTarget, Change, Needs::Scope("tasks:delete");
    /// See when a schedule would be due.
    PreviewSchedule = "schedule.previewed", Installation, Read, Needs::Scope("tasks:read");
    /// See one run of a task.
    ReadTaskRun = "run.read", TaskRunTarget, Read, Needs::Scope("runs:read");
    /// See runs of one task.
    ReadTaskRuns = "runs.listed", TaskTarget, Read, Needs::Scope("runs:read");
    /// End a run of a task.
    CancelTaskRun = "run.cancelled", TaskRunTarget, Change, Needs::Scope("runs:cancel");
    /// Publish an event.
    PublishEvent = "event.published", Installation, Change, Needs::Scope("events:publish");
    /// See events and the topics that tasks wait for.
    ReadEvents = "events.read", Installation, Read, Needs::Scope("events:read");
    /// Delete old events.
    CleanEvents = "event.stream_cleaned", Installation, Change, Needs::Scope("events:manage");
    /// See which tools one may use.
    ListTools = "tools.listed", Installation, Read, Needs::SignedIn;
    /// See what waits for a person's word.
    ListApprovals = "approvals.listed", Installation, Read, Needs::Scope("approvals:read");
    /// Give that word.
    DecideApproval = "approval.decided", ApprovalTarget, Change, Needs::Scope("approvals:decide");
    /// Ask why somebody may or may not do something.
    TestPolicy = "policy.tested", Installation, Read, Needs::Scope("users:read");
}

/// Execute a device action. The action may ask for a role of its own.
#[derive(Debug)]
pub enum ExecuteAction {}

impl Action for ExecuteAction {
    type Target = DeviceActionTarget;
    const NAME: &'static str = "device.executed";
    const RECORDING: Recording = Recording::Act;
    const GOES_ON: bool = true;

    fn needs(target: &DeviceActionTarget, world: &dyn World) -> Needs {
        let role = world.action_role(&target.task).unwrap_or_else(|| crate::policy::OPERATOR.to_owned());
        Needs::Execute { target: format!("{}/{}", world.device(), target.task), role }
    }
}

/// Check the parameters of a device action without executing it.
#[derive(Debug)]
pub enum CheckAction {}

impl Action for CheckAction {
    type Target = DeviceActionTarget;
    const NAME: &'static str = "device.checked";
    const RECORDING: Recording = Recording::Read;

    fn needs(target: &DeviceActionTarget, world: &dyn World) -> Needs {
        ExecuteAction::needs(target, world)
    }
}
