//! The account for emergencies: sealed until it is needed, loud when it is used, renewed afterwards.
//!
//! It is made on the server's own machine, with a password that is printed once and kept on paper. Every use is a critical
//! event. It works for [`WINDOW`] after its first use and then not until it is renewed. Its guesses are delayed for each address
//! alone, so that no stranger can lock it, and it is asked for no second factor.

use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::secret::Secret;
use interlock_store::identity::{self, Document, Put, Versioned};
use interlock_store::{Error, Tx, UserRow};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::auth::documents::SecondFactors;
use crate::auth::{Db, Factors, Proof, Recorded};
use crate::users::{UserError, Users};

/// Its name. Nobody else can have it.
pub const NAME: &str = "break-glass";
/// How long it works after its first use.
pub const WINDOW: Duration = Duration::from_hours(24);

/// What is known of the account beside its user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Seal {
    made_at: Timestamp,
    #[serde(default)]
    used_at: Option<Timestamp>,
}

impl Document for Seal {
    const KIND: &'static str = "break_glass";

    fn id(&self) -> String {
        NAME.to_owned()
    }
}

async fn put(tx: &mut dyn Tx, seal: Seal) -> Result<(), Error> {
    let put = match identity::get::<Seal>(tx, NAME).await? {
        None => identity::insert(tx, &seal).await?,
        Some(found) => identity::update(tx, &Versioned { document: seal, version: found.version }).await?,
    };
    if put == Put::Done {
        Ok(())
    } else {
        Err(Error::Corrupt("a seal changed under its own lock".to_owned()))
    }
}

/// Makes the account, or renews it: new password, enabled, administrator, no second factor, every token before is dead.
pub(crate) async fn seal<P: Proof + ?Sized>(
    users: &Users,
    proof: &P,
    password: Secret,
) -> Result<UserRow, UserError> {
    users.passwords.accept(NAME, &password, Factors::Alone)?;
    let hash = users.passwords.hash(password).await.map_err(|_| UserError::Overloaded)?;
    let now = users.ambient.clock.now();
    let user = users
        .db
        .write(proof, move |tx| {
            Box::pin(async move {
                let before = tx.user(NAME).await?;
                let fresh = UserRow {
                    name: NAME.to_owned(),
                    password_hash: hash,
                    roles: vec![interlock_model::policy::ADMIN.to_owned()],
                    disabled: false,
                    tokens_valid_from: now,
                    created_at: now,
                    updated_at: now,
                    version: 1,
                };
                let renewed = before.is_some();
                let user = match before {
                    None => fresh,
                    Some(before) => UserRow {
                        created_at: before.created_at,
                        version: before.version + 1,
                        tokens_valid_from: now
                            .max(Timestamp::from_micros(before.tokens_valid_from.micros() + 1)),
                        ..fresh
                    },
                };
                let stored =
                    if renewed { tx.update_user(&user).await? } else { tx.insert_user(&user).await? };
                stored.then_some(()).ok_or(UserError::Conflict)?;
                if let Some(mut factors) = identity::get::<SecondFactors>(tx, NAME).await? {
                    factors.document.totp.clear();
                    factors.document.recovery.clear();
                    identity::update(tx, &factors).await?;
                }
                put(tx, Seal { made_at: now, used_at: None }).await?;
                Ok::<_, UserError>(Recorded { value: user, details: json!({ "renewed": renewed }) })
            })
        })
        .await?;
    users.principals.put(user.clone());
    Ok(user)
}

/// Notes a use. `false` when the seal was broken too long ago, or there is none.
pub(crate) async fn unseal<P: Proof + ?Sized>(db: &Db, proof: &P, now: Timestamp) -> Result<bool, Error> {
    db.write(proof, move |tx| {
        Box::pin(async move {
            let Some(found) = identity::get::<Seal>(tx, NAME).await? else {
                return Ok(Recorded {
                    value: false,
                    details: json!({ "result": "failed", "reason": "no seal" }),
                });
            };
            let first = found.used_at.is_none();
            let since = found.used_at.unwrap_or(now);
            if now.since(since) >= WINDOW {
                let details =
                    json!({ "result": "failed", "reason": "not renewed after its use", "used_at": since });
                return Ok(Recorded { value: false, details });
            }
            put(tx, Seal { used_at: Some(since), ..found.document }).await?;
            Ok(Recorded { value: true, details: json!({ "result": "success", "first": first }) })
        })
    })
    .await
}
