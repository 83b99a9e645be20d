//! Exchange of the master key: everything that was sealed with the one before is sealed anew.
//!
//! First the database says which key seals; from there on no transaction stores anything sealed with another. Then each
//! record is opened and sealed again, in one transaction. The key before must be kept until that has ended: whatever
//! interrupts it, each record opens with one of the two, and doing it again goes on where it stopped.

use interlock_store::identity::{self, Document, Versioned};
use interlock_store::{Error, Tx};
use serde::Serialize;
use serde_json::json;

use super::documents::{Agent, SecondFactors};
use super::elsewhere::ProviderLogin;
use super::sealing::{MasterKey, Sealing};
use super::{Db, Recorded, SystemPermit};
use crate::agents;

/// Records of one transaction at most.
const PART: usize = 50;

/// What was found, or done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Resealed {
    /// Secrets that the present key has sealed already.
    pub current: usize,
    /// Secrets that only the key before opens; after resealing: that were sealed anew.
    pub resealed: usize,
    /// Secrets that no key opens; at least one where another key is to seal.
    pub lost: usize,
}

/// A record with sealed secrets.
trait Sealed: Document + Clone {
    /// Each secret with what it is sealed as, and for whom.
    fn secrets(&mut self) -> Vec<(&'static str, String, &mut String)>;
}

impl Sealed for SecondFactors {
    fn secrets(&mut self) -> Vec<(&'static str, String, &mut String)> {
        let user = &self.user;
        let place = |id: &str| super::factors::place(user, id);
        self.totp.iter_mut().map(|factor| ("totp", place(&factor.id), &mut factor.sealed)).collect()
    }
}

impl Sealed for Agent {
    fn secrets(&mut self) -> Vec<(&'static str, String, &mut String)> {
        let agent = self.id;
        let secrets = self.webhook_secrets.iter_mut();
        secrets
            .map(|secret| (agents::WEBHOOK, agents::webhook_place(agent, &secret.id), &mut secret.sealed))
            .collect()
    }
}

impl Sealed for ProviderLogin {
    fn secrets(&mut self) -> Vec<(&'static str, String, &mut String)> {
        let owner = self.session.clone();
        // Empty where another key was to seal at that time.
        if self.proof.is_empty() {
            Vec::new()
        } else {
            vec![(super::elsewhere::PROOF, owner, &mut self.proof)]
        }
    }
}

/// Seals anew what needs it in one record; `true` if it changed.
fn renew<D: Sealed>(record: &mut D, master: &MasterKey, done: &mut Resealed) -> Result<bool, Error> {
    let mut changed = false;
    for (kind, owner, sealed) in record.secrets() {
        if master.has_sealed(kind, &owner, sealed) {
            done.current += 1;
        } else if let Ok(secret) = master.open(kind, &owner, sealed) {
            let again = master.seal(kind, &owner, &secret);
            *sealed = again.map_err(|error| Error::Corrupt(error.to_string()))?;
            done.resealed += 1;
            changed = true;
        } else {
            done.lost += 1;
        }
    }
    Ok(changed)
}

async fn examine_all<D: Sealed>(db: &Db, master: &MasterKey, done: &mut Resealed) -> Result<(), Error> {
    for mut record in identity::list::<D>(db.read(), None).await? {
        renew(&mut record.document, master, done)?;
    }
    Ok(())
}

/// Looks which secrets open, and changes nothing.
///
/// # Errors
/// The storage's.
pub async fn examine(db: &Db, master: &MasterKey) -> Result<Resealed, Error> {
    let mut found = Resealed::default();
    let sealing = identity::read::<Sealing>(db.read(), "seals").await?;
    if sealing.is_some_and(|sealing| !master.knows(&sealing.kid)) {
        found.lost = 1;
    }
    examine_all::<SecondFactors>(db, master, &mut found).await?;
    examine_all::<Agent>(db, master, &mut found).await?;
    examine_all::<ProviderLogin>(db, master, &mut found).await?;
    Ok(found)
}

async fn reseal_part<D: Sealed>(
    tx: &mut dyn Tx,
    ids: &[String],
    master: &MasterKey,
) -> Result<Resealed, Error> {
    let mut done = Resealed::default();
    for id in ids {
        // Read again: it may have changed, or gone, since it was listed.
        let Some(mut record): Option<Versioned<D>> = identity::get(tx, id).await? else { continue };
        if renew(&mut record.document, master, &mut done)? {
            identity::update(tx, &record).await?;
        }
    }
    Ok(done)
}

async fn reseal_all<D: Sealed + 'static>(
    db: &Db,
    permit: &SystemPermit,
    master: &std::sync::Arc<MasterKey>,
    total: &mut Resealed,
) -> Result<(), Error> {
    let ids: Vec<String> =
        identity::list::<D>(db.read(), None).await?.iter().map(|record| record.document.id()).collect();
    for part in ids.chunks(PART) {
        let (ids, master) = (part.to_vec(), std::sync::Arc::clone(master));
        let proof = permit.acting("secrets.resealed", Some(D::KIND.to_owned()));
        let done = db
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let done = reseal_part::<D>(tx, &ids, &master).await?;
                    Ok::<_, Error>(Recorded { value: done, details: json!(done) })
                })
            })
            .await?;
        total.current += done.current;
        total.resealed += done.resealed;
        total.lost += done.lost;
    }
    Ok(())
}

/// Seals everything with the present key of `master`. May be interrupted and done again.
///
/// # Errors
/// The storage's; what was sealed anew by then stays so.
pub async fn reseal(
    db: &Db,
    permit: &SystemPermit,
    master: &std::sync::Arc<MasterKey>,
) -> Result<Resealed, Error> {
    let kid = master.kid();
    let proof = permit.acting("master_key.exchanged", Some(kid.clone()));
    db.write(&proof, move |tx| {
        Box::pin(async move {
            let details = json!({ "kid": kid });
            match identity::get::<Sealing>(tx, "seals").await? {
                Some(mut known) => {
                    known.document.kid = kid;
                    identity::update(tx, &known).await?;
                }
                None => {
                    identity::insert(tx, &Sealing { kid }).await?;
                }
            }
            Ok::<_, Error>(Recorded { value: (), details })
        })
    })
    .await?;
    let mut total = Resealed::default();
    reseal_all::<SecondFactors>(db, permit, master, &mut total).await?;
    reseal_all::<Agent>(db, permit, master, &mut total).await?;
    reseal_all::<ProviderLogin>(db, permit, master, &mut total).await?;
    Ok(total)
}
