//! Which authorities are trusted, and facts about a server's certificate for people to read.

use std::sync::{Arc, Mutex};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Installs the provider of cryptography where the program has not chosen one (tests and small tools).
pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
    rustls::crypto::CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}

/// The authorities in a PEM text, or those of this machine.
///
/// # Errors
/// A sentence.
pub(crate) fn roots(pem: Option<&str>) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    if let Some(pem) = pem {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|_| "the CA file is not PEM".to_owned())?;
            store
                .add(certificate)
                .map_err(|_| "the CA file holds a certificate that cannot be used".to_owned())?;
        }
        if store.is_empty() {
            return Err("the CA file holds no certificate".to_owned());
        }
    } else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if store.is_empty() {
            return Err("this machine trusts no certificate authority; name a CA file".to_owned());
        }
    }
    Ok(store)
}

/// A configuration that checks chain, time and name, and keeps the certificate that the server showed.
///
/// # Errors
/// A sentence.
pub(crate) fn config(roots: RootCertStore) -> Result<(ClientConfig, Arc<Seen>), String> {
    let provider = provider();
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|_| "the authorities cannot be used".to_owned())?;
    let seen = Arc::new(Seen { verifier, certificate: Mutex::new(None) });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| "this build speaks no version of TLS".to_owned())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&seen) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    Ok((config, seen))
}

/// The ordinary verifier, which remembers the last certificate: a person wants to see the one that was refused.
#[derive(Debug)]
pub(crate) struct Seen {
    verifier: Arc<WebPkiServerVerifier>,
    certificate: Mutex<Option<Vec<u8>>>,
}

impl Seen {
    /// What the certificate says, or that none was seen.
    pub(crate) fn facts(&self) -> String {
        let held = self.certificate.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        held.as_deref().map_or_else(|| "no certificate was shown".to_owned(), facts)
    }
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.certificate.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Some(end_entity.to_vec());
        self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Names, issuer, end and fingerprint of a certificate, on one line.
pub(crate) fn facts(der: &[u8]) -> String {
    let fingerprint = interlock_model::id::hexadecimal(&Sha256::digest(der));
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return format!("a certificate that cannot be read, SHA-256 {fingerprint}");
    };
    let mut names = Vec::new();
    if let Ok(Some(extension)) = certificate.subject_alternative_name() {
        for name in extension.value.general_names.iter().take(10) {
            match name {
                GeneralName::DNSName(name) => names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => names.push(address(bytes)),
                _ => {}
            }
        }
    }
    format!(
        "certificate for {}; issued by {}; valid until {}; SHA-256 {fingerprint}",
        if names.is_empty() { "no name".to_owned() } else { names.join(", ") },
        certificate.issuer(),
        certificate.validity().not_after,
    )
}

fn address(bytes: &[u8]) -> String {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        std::net::Ipv4Addr::from(four).to_string()
    } else if let Ok(sixteen) = <[u8; 16]>::try_from(bytes) {
        std::net::Ipv6Addr::from(sixteen).to_string()
    } else {
        "an address".to_owned()
    }
}

/// Why a handshake failed, and what to do: `(reason, remedy)`.
pub(crate) fn explain(error: &rustls::Error) -> (String, &'static str) {
    use rustls::CertificateError as C;
    match error {
        rustls::Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => (
            "the server's certificate comes from an authority that is not trusted".to_owned(),
            "name the authority's certificate as the CA file, after comparing its fingerprint",
        ),
        rustls::Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => {
            ("the server's certificate is expired".to_owned(), "renew the certificate of the server")
        }
        rustls::Error::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
            ("the server's certificate is not valid yet".to_owned(), "check the clocks of both machines")
        }
        rustls::Error::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => (
            "the server's certificate is for other names than the one in the URL".to_owned(),
            "use a name from the certificate in the URL, or have the certificate made for this name",
        ),
        rustls::Error::InvalidCertificate(_) => {
            ("the server's certificate is not acceptable".to_owned(), "have the certificate made anew")
        }
        rustls::Error::AlertReceived(alert) => (
            format!("the server ended the TLS handshake ({alert:?})"),
            "check that the server speaks TLS 1.2 or 1.3 and wants no client certificate",
        ),
        _ => (
            "the TLS handshake failed".to_owned(),
            "check that this port speaks TLS: ldaps:// is 636, StartTLS is on 389, https:// is 443",
        ),
    }
}
