//! Puts the library that judges passkeys behind the engine's port.

use std::sync::Arc;

use interlock_engine::auth::{Ceremonies, Ceremony, NewPasskey};
use interlock_model::id::hexadecimal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use webauthn_rs::prelude::{
    DiscoverableAuthentication, DiscoverableKey, Passkey, PasskeyRegistration, PublicKeyCredential,
    RegisterPublicKeyCredential, Url, Uuid,
};
use webauthn_rs::{Webauthn, WebauthnBuilder};

/// Longest answer of a device that is looked at, in bytes of JSON.
const MAX_ANSWER: usize = 64 * 1024;

struct Library(Webauthn);

/// Judges answers for the server of this address; `None` where there can be no passkeys, because it has no name.
///
/// # Errors
/// What the library says of the address.
pub(crate) fn ceremonies(public_url: Option<&str>) -> anyhow::Result<Option<Arc<dyn Ceremonies>>> {
    let Some(origin) = public_url.and_then(|url| Url::parse(url).ok()) else { return Ok(None) };
    // Passkeys belong to a name; an address of numbers is none.
    let Some(name) = origin.domain() else { return Ok(None) };
    let library = WebauthnBuilder::new(name, &origin)?.rp_name("Interlock").build()?;
    Ok(Some(Arc::new(Library(library))))
}

fn of<T: DeserializeOwned>(value: &Value, what: &str) -> Result<T, String> {
    T::deserialize(value).map_err(|error| format!("{what}: {error}"))
}

fn json_of<T: Serialize>(value: &T) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}

fn bounded(answer: &Value) -> Result<(), String> {
    if answer.to_string().len() > MAX_ANSWER { Err("the answer is too long".to_owned()) } else { Ok(()) }
}

fn ceremony(options: &impl Serialize, state: &impl Serialize) -> Result<Ceremony, String> {
    let mut options = json_of(options)?;
    Ok(Ceremony { options: options["publicKey"].take(), state: json_of(state)? })
}

impl Ceremonies for Library {
    fn begin_registration(&self, handle: [u8; 16], name: &str, known: &[Value]) -> Result<Ceremony, String> {
        let known =
            known.iter().map(|key| of::<Passkey>(key, "a stored passkey").map(|key| key.cred_id().clone()));
        let known = known.collect::<Result<Vec<_>, _>>()?;
        let begun = self.0.start_passkey_registration(Uuid::from_bytes(handle), name, name, Some(known));
        let (options, state) = begun.map_err(|error| error.to_string())?;
        let mut ceremony = ceremony(&options, &state)?;
        // Whoever signs in names nobody, so the device has to find the passkey by itself.
        let selection = &mut ceremony.options["authenticatorSelection"];
        selection["residentKey"] = json!("required");
        selection["requireResidentKey"] = json!(true);
        Ok(ceremony)
    }

    fn finish_registration(&self, state: Value, answer: Value) -> Result<NewPasskey, String> {
        bounded(&answer)?;
        let answer: RegisterPublicKeyCredential = of(&answer, "the answer")?;
        let state: PasskeyRegistration = of(&state, "the challenge")?;
        let made = self.0.finish_passkey_registration(&answer, &state);
        let made = made.map_err(|error| error.to_string())?;
        let id = hexadecimal(made.cred_id().as_ref());
        Ok(NewPasskey { id, passkey: json_of(&made)? })
    }

    fn begin_sign_in(&self) -> Result<Ceremony, String> {
        let begun = self.0.start_discoverable_authentication();
        let (options, state) = begun.map_err(|error| error.to_string())?;
        ceremony(&options, &state)
    }

    fn named(&self, answer: &Value) -> Option<([u8; 16], String)> {
        bounded(answer).ok()?;
        let answer: PublicKeyCredential = of(answer, "the answer").ok()?;
        let (handle, id) = self.0.identify_discoverable_authentication(&answer).ok()?;
        Some((handle.into_bytes(), hexadecimal(id)))
    }

    fn finish_sign_in(&self, state: Value, answer: Value, passkey: &Value) -> Result<Option<Value>, String> {
        let answer: PublicKeyCredential = of(&answer, "the answer")?;
        let state: DiscoverableAuthentication = of(&state, "the challenge")?;
        let mut passkey: Passkey = of(passkey, "the stored passkey")?;
        let judged =
            self.0.finish_discoverable_authentication_v2(&answer, state, DiscoverableKey::from(&passkey));
        let judged = judged.map_err(|error| error.to_string())?;
        if !judged.user_verified() {
            return Err("the device did not check its owner".to_owned());
        }
        match passkey.update_credential(&judged) {
            Some(true) => json_of(&passkey).map(Some),
            Some(false) => Ok(None),
            None => Err("another passkey has answered".to_owned()),
        }
    }
}
