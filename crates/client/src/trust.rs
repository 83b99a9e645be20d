//! What a server shows before anybody trusts it, and whether it fits an authority.
//!
//! A handshake only: nothing is asked and nothing is told. What comes back is a claim until a person, or a fingerprint that
//! came another way, has confirmed it.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::builder::shown;
use crate::{ClientError, server_address};

/// Longest wait for a connection and its handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// The certificates that a server shows, its own first. Nothing about them is checked but that it holds the key of the first.
///
/// # Errors
/// [`ClientError`] where there is no such server or it speaks no TLS.
pub async fn offered(url: &str) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let provider = provider();
    let config = with(&provider)?.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)));
    handshake(url, config.with_no_client_auth()).await
}

/// Whether the server's certificate is this authority's, for this name and now.
///
/// # Errors
/// [`ClientError::Tls`] where it is not.
pub async fn fits(url: &str, authority: &CertificateDer<'static>) -> Result<(), ClientError> {
    let mut roots = RootCertStore::empty();
    let unusable = |_| ClientError::Settings("the authority's certificate cannot be used".to_owned());
    roots.add(authority.clone()).map_err(unusable)?;
    let config = with(&provider())?.with_root_certificates(roots).with_no_client_auth();
    handshake(url, config).await.map(drop)
}

fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default()
        .map_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()), Arc::clone)
}

type Begun = rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>;

fn with(provider: &Arc<CryptoProvider>) -> Result<Begun, ClientError> {
    ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientError::Settings(error.to_string()))
}

async fn handshake(url: &str, config: ClientConfig) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let address = server_address(url)?;
    let shown = shown(&address);
    if address.scheme() != "https" {
        return Err(ClientError::Settings(format!(
            "{shown} speaks no TLS; the address begins with https://"
        )));
    }
    let host = address.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = address.port_or_known_default().unwrap_or(443);
    let unreachable = |reason: String| ClientError::Unreachable { url: shown.clone(), reason, sent: false };
    let name = ServerName::try_from(host.clone())
        .map_err(|_| ClientError::Settings("the address names no host".to_owned()))?;
    let dialling = async {
        let tcp = TcpStream::connect((host.as_str(), port))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .map_err(|error| ClientError::Tls { url: shown.clone(), reason: error.to_string() })
    };
    let stream = tokio::time::timeout(PATIENCE, dialling)
        .await
        .map_err(|_| unreachable("it did not answer in time".to_owned()))??;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    Ok(chain.iter().map(|certificate| certificate.clone().into_owned()).collect())
}

/// Takes any certificate; the signature still shows that the server holds its key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
