//! Connections: TLS, time limits, session settings.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use futures::stream::StreamExt as _;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{broken, error};
use super::news::Messages;
use super::url::{self, OwnCertificate, Protection, Roots};
use crate::Error;

/// Time to reach the server and sign in.
const CONNECT: Duration = Duration::from_secs(10);
/// Time for the answer to a statement that does no work.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// Time to wait for a free connection: longer than a statement may take, so that its error is seen first.
const WAIT: Duration = Duration::from_mins(1);

/// A statement that takes longer is stuck; a lock that is held longer is another server's fault; a transaction that is idle
/// longer belongs to a server that is gone. A commit is on the disk before it is acknowledged, also where the database's
/// default is looser (`off` is the only value that is weaker than a flush).
const SESSION: &str = "SET statement_timeout = '30s'; SET lock_timeout = '10s'; \
    SET idle_in_transaction_session_timeout = '30s'; \
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

/// What every connection has in common.
fn settings(url: &str) -> Result<(Config, Protection), Error> {
    let (mut config, protection) = url::parse(url)?;
    if config.get_application_name().is_none() {
        config.application_name("interlock");
    }
    config
        .connect_timeout(CONNECT)
        .tcp_user_timeout(Duration::from_secs(30))
        .keepalives(true)
        .keepalives_idle(Duration::from_secs(30))
        // A standby would accept reads that miss our own writes.
        .target_session_attrs(TargetSessionAttrs::ReadWrite);
    Ok((config, protection))
}

/// A pool of at most `size` connections. Connects lazily.
pub(super) fn pool(url: &str, size: usize) -> Result<Pool, Error> {
    let (config, protection) = settings(url)?;
    let manage = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = match protection {
        Protection::Plain => Manager::from_config(config, NoTls, manage),
        Protection::Tls(roots, own) => {
            Manager::from_config(config, MakeRustlsConnect::new(tls(&roots, own)?), manage)
        }
    };
    Pool::builder(manager)
        .max_size(size)
        .wait_timeout(Some(WAIT))
        .create_timeout(Some(CONNECT))
        .recycle_timeout(Some(CONNECT))
        .runtime(Runtime::Tokio1)
        .post_create(Hook::async_fn(|client, _| {
            Box::pin(async move { client.batch_execute(SESSION).await.map_err(HookError::Backend) })
        }))
        .build()
        .map_err(|error| Error::Database(Box::new(error)))
}

/// A connection outside of any pool, and what the server sends on it. It lives as long as the messages are polled.
pub(super) async fn alone(url: &str) -> Result<(Client, Messages), Error> {
    let (mut config, protection) = settings(url)?;
    let name = format!("{} news", config.get_application_name().unwrap_or_default());
    config.application_name(name);
    let connecting = async {
        Ok(match protection {
            Protection::Plain => {
                let (client, mut connection) = config.connect(NoTls).await.map_err(error)?;
                let messages = futures::stream::poll_fn(move |context| connection.poll_message(context));
                (client, messages.boxed())
            }
            Protection::Tls(roots, own) => {
                let tls = MakeRustlsConnect::new(tls(&roots, own)?);
                let (client, mut connection) = config.connect(tls).await.map_err(error)?;
                let messages = futures::stream::poll_fn(move |context| connection.poll_message(context));
                (client, messages.boxed())
            }
        })
    };
    let late = |_| broken("the database server was not reached in time");
    tokio::time::timeout(CONNECT, connecting).await.map_err(late)?
}

fn tls(roots: &Roots, own: Option<OwnCertificate>) -> Result<ClientConfig, Error> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::System => {
            let found = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(found.certs);
        }
        Roots::File(path) => {
            let unreadable = |error: &dyn std::error::Error| {
                broken(&format!("the certificate file {} cannot be read: {error}", path.display()))
            };
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))? {
                let certificate = certificate.map_err(|error| unreadable(&error))?;
                store.add(certificate).map_err(|error| unreadable(&error))?;
            }
        }
    }
    if store.is_empty() {
        return Err(broken(
            "no certificate authority is known to check the database server with: install ca-certificates or give sslrootcert=FILE",
        ));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Database(Box::new(error)))?
        .with_root_certificates(store);
    Ok(match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let shown = Shown { own, provider };
            shown.read().map_err(|reason| broken(&reason))?;
            builder.with_client_cert_resolver(Arc::new(shown))
        }
    })
}

/// The certificate that we show. It is read again for each connection, so that one that lives for hours can be put in its place.
#[derive(Debug)]
struct Shown {
    own: OwnCertificate,
    provider: Arc<CryptoProvider>,
}

impl Shown {
    fn read(&self) -> Result<CertifiedKey, String> {
        let OwnCertificate { chain, key } = &self.own;
        let chain: Vec<_> = CertificateDer::pem_file_iter(chain)
            .and_then(Iterator::collect)
            .map_err(|error| format!("the certificate file {} cannot be read: {error}", chain.display()))?;
        if chain.is_empty() {
            return Err(format!("the certificate file {} holds none", self.own.chain.display()));
        }
        let secret = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| format!("the key file {} cannot be read: {error}", key.display()))?;
        CertifiedKey::from_der(chain, secret, &self.provider).map_err(|error| {
            format!("the certificate and the key in {} do not go together: {error}", key.display())
        })
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        match self.read() {
            Ok(shown) => Some(Arc::new(shown)),
            Err(reason) => {
                tracing::error!(%reason, "no certificate can be shown to the database server");
                None
            }
        }
    }

    fn has_certs(&self) -> bool {
        true
    }
}
